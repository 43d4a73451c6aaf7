//! Linker options that make the shim small. The unwind tables are dropped, a tenth of the program, as a panic aborts;
//! and relative relocations are packed (`DT_RELR`), which saves forty kilobytes.

fn main() {
    println!("cargo:rerun-if-changed=unwinding.ld");
    // Tests are built for another libc, and unwind.
    if std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|libc| libc == "musl") {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/unwinding.ld");
        println!("cargo:rustc-link-arg-bins=-Wl,-T,{script},-z,pack-relative-relocs");
    }
}
