//! Leaves the tables for unwinding out of the program: in its profile a panic aborts, and they are a tenth of it. And has
//! the linker pack the list of addresses that depend on where the program lies (`DT_RELR` of the ELF specification),
//! which is forty kilobytes else.

fn main() {
    println!("cargo:rerun-if-changed=unwinding.ld");
    // The tests are built for another C library, and unwind.
    if std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|libc| libc == "musl") {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/unwinding.ld");
        println!("cargo:rustc-link-arg-bins=-Wl,-T,{script},-z,pack-relative-relocs");
    }
}
