//! The programs that the machine must have, and the command that installs them.

#[cfg(test)]
use std::collections::BTreeSet;
use std::env;
use std::path::Path;

/// Programs that the system tests use, in PATH or elsewhere, and the Debian package of each.
const FOR_TESTS: &[(&str, &str)] = &[
    ("cc", "gcc"),
    ("busybox", "busybox-static"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("crun", "crun"),
    ("criu", "criu"),
    ("dockerd", "docker.io"),
    ("podman", "podman"),
    ("newuidmap", "uidmap"),
    ("setpriv", "util-linux"),
    ("docker-registry", "docker-registry"),
    ("skopeo", "skopeo"),
    ("umoci", "umoci"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
    ("redis-cli", "redis-tools"),
    ("/usr/lib/cni/ptp", "containernetworking-plugins"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("curl", "curl"),
    ("dpkg-deb", "dpkg"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("strace", "strace"),
    ("python3", "python3"),
    ("pkill", "procps"),
    ("tar", "tar"),
];

pub(crate) fn in_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian keeps `nft` in `/usr/sbin`, which is not in every user's PATH.
    let folders = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.into_iter().any(|folder| folder.join(program).is_file())
}

pub(crate) fn need(program: &str, package: &str, what: &str) -> Result<(), String> {
    if in_path(program) {
        return Ok(());
    }
    Err(format!("{what} is missing: no {program:?} in PATH; try: apt-get install {package}"))
}

/// The packages of the programs that are not installed.
fn missing(programs: &[(&str, &'static str)]) -> Vec<&'static str> {
    let absent = programs.iter().filter(|(program, _)| !in_path(program));
    let mut packages: Vec<&str> = absent.map(|&(_, package)| package).collect();
    packages.dedup();
    packages
}

pub(crate) fn need_for_tests() -> Result<(), String> {
    let missing = missing(FOR_TESTS);
    if missing.is_empty() {
        return Ok(());
    }
    let install = missing.join(" ");
    Err(format!(
        "the tests need programs that are not here; try: apt-get install --no-install-recommends {install}"
    ))
}

pub(crate) fn need_root(to_do: &str) -> Result<(), String> {
    // The owner of our own /proc entry is our effective user (proc(5)).
    use std::os::unix::fs::MetadataExt;
    let uid = Path::new("/proc/self").metadata().map_err(|error| format!("/proc/self: {error}"))?.uid();
    if uid == 0 {
        return Ok(());
    }
    // sudo sets a PATH of its own, which lacks the cargo of rustup.
    Err(format!("root is needed to {to_do}; try: sudo -E env \"PATH=$PATH\" cargo xtask …"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packages that every Debian has, and packages that have no program.
    const OF_DEBIAN: [&str; 2] = ["dpkg", "util-linux"];
    const NO_PROGRAMS: [&str; 2] = ["libc6-dev", "ca-certificates"];

    #[test]
    fn ci_installs_what_tests_are_told_to_need() {
        let script = include_str!("../../../.ci/run");
        let (_, words) = script.split_once("--no-install-recommends").expect("it installs packages");
        let words =
            words.split_whitespace().take_while(|word| !word.starts_with('>')).filter(|word| *word != "\\");
        let installed: BTreeSet<&str> =
            words.chain(OF_DEBIAN).filter(|name| !NO_PROGRAMS.contains(name)).collect();
        let needed: BTreeSet<&str> = FOR_TESTS.iter().map(|(_, package)| *package).collect();
        assert_eq!(installed, needed);
    }

    #[test]
    fn missing_programs_are_named_with_the_command_that_installs_them() {
        let none = need("no-such-program", "its-package", "a thing").unwrap_err();
        assert_eq!(
            none,
            "a thing is missing: no \"no-such-program\" in PATH; try: apt-get install its-package"
        );
        let absent =
            missing(&[("sh", "dash"), ("no-such-program", "its-package"), ("another", "its-package")]);
        assert_eq!(absent, ["its-package"]);
    }
}
