//! What must be on the machine, and the command that brings it.

use std::env;
use std::path::Path;

/// Programs that the system tests use, and Debian's package of each.
const FOR_TESTS: &[(&str, &str)] = &[
    ("busybox", "busybox-static"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("podman", "podman"),
    ("setpriv", "util-linux"),
    ("docker-registry", "docker-registry"),
    ("skopeo", "skopeo"),
    ("umoci", "umoci"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
    ("redis-cli", "redis-tools"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("curl", "curl"),
    ("dpkg-deb", "dpkg"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("strace", "strace"),
];

pub(crate) fn in_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    // `/usr/sbin` is where Debian keeps `nft`, and it is not in every user's PATH.
    let folders = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.into_iter().any(|folder| folder.join(program).is_file())
}

pub(crate) fn need(program: &str, package: &str, what: &str) -> Result<(), String> {
    if in_path(program) {
        return Ok(());
    }
    Err(format!("{what} is missing: no {program:?} in PATH; try: apt-get install {package}"))
}

pub(crate) fn need_for_tests() -> Result<(), String> {
    let mut missing: Vec<&str> =
        FOR_TESTS.iter().filter(|(program, _)| !in_path(program)).map(|&(_, package)| package).collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    let install = missing.join(" ");
    Err(format!(
        "the tests need programs that are not here; try: apt-get install --no-install-recommends {install}"
    ))
}

pub(crate) fn need_root(to_do: &str) -> Result<(), String> {
    // The owner of our own /proc entry is our effective user.
    use std::os::unix::fs::MetadataExt;
    let uid = Path::new("/proc/self").metadata().map_err(|error| format!("/proc/self: {error}"))?.uid();
    if uid == 0 { Ok(()) } else { Err(format!("root is needed to {to_do}; try: sudo -E cargo xtask …")) }
}
