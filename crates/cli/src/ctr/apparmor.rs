//! AppArmor profiles of containers: a loaded one by its name, or the default profile, loaded under a given name.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use types::{Context, Error, Result};

use super::command::Call;

/// The profiles that the kernel has loaded, one on each line: `NAME (MODE)` (apparmor(7)).
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
/// AppArmor's tool that compiles and loads profiles (apparmor_parser(8)).
const PARSER: &str = "apparmor_parser";
/// Files that the profile includes if the machine has them (apparmor.d(5)).
const GLOBALS: (&str, &str) = ("/etc/apparmor.d/tunables/global", "#include <tunables/global>");
const BASE: (&str, &str) = ("/etc/apparmor.d/abstractions/base", "#include <abstractions/base>");

/// The profile of the container's first process. Empty is none.
pub(super) fn profile(call: &Call) -> Result<String> {
    match (call.value("apparmor-profile"), call.value("apparmor-default-profile")) {
        (Some(_), Some(_)) => Err(Error::invalid_argument(
            "--apparmor-profile and --apparmor-default-profile: a program has one profile",
        )),
        (own, None) => Ok(own.unwrap_or_default().to_owned()),
        (None, Some(name)) => {
            load(name).map_err(|error| error.context(format!("--apparmor-default-profile {name}")))?;
            Ok(name.to_owned())
        }
    }
}

/// Loads the default profile, unless a profile of this name is loaded. `NotFound` if the kernel has no AppArmor.
fn load(name: &str) -> Result<()> {
    let is_word = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    if !name.starts_with(|letter: char| letter.is_ascii_alphanumeric()) || !name.chars().all(is_word) {
        return Err(Error::invalid_argument(
            "a profile's name consists of letters, digits, '-', '_' and '.'",
        ));
    }
    let loaded = fs::read_to_string(LOADED).context(|| format!("read {LOADED}"))?;
    if loaded.lines().any(|line| line.rsplit_once(" (").is_some_and(|(own, _)| own == name)) {
        return Ok(());
    }
    let has = |(path, include): (&str, &'static str)| Path::new(path).exists().then_some(include);
    let what = || format!("load it by {PARSER}");
    let mut command = Command::new(PARSER);
    // Not into the cache of profiles that are loaded when the machine boots.
    command
        .args(["--replace", "--skip-cache"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().context(what)?;
    let text = text(name, has(GLOBALS), has(BASE));
    // If the parser exits early it reports the reason, which is returned below.
    let _unread = child.stdin.take().expect("a pipe").write_all(text.as_bytes());
    let output = child.wait_with_output().context(what)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::failed_precondition(format!("{}: {said}", what())))
}

/// The default profile of Docker and containerd: no writes to host settings in `/proc` and `/sys`, no mounts, no
/// tracing of processes outside, and, as in newer Dockers, no access to the kernel's cryptography.
fn text(name: &str, globals: Option<&str>, base: Option<&str>) -> String {
    const PROC: &str = "@{PROC}";
    let mut rules: Vec<String> = base.iter().map(ToString::to_string).collect();
    rules.extend(["network,", "capability,", "file,", "umount,"].map(str::to_owned));
    // Also denied for `socketcall` of 32-bit programs, whose arguments seccomp filters cannot inspect (CVE-2026-31431).
    rules.push("deny network alg,".into());
    rules.push("signal (receive) peer=unconfined,".into());
    rules.push(format!("signal (send, receive) peer={name},"));
    rules.push(format!("ptrace (trace, read, tracedby, readby) peer={name},"));
    rules.push("deny mount,".into());
    // Writes are allowed below /proc/PID, and below /proc/sys where namespaces have settings of their own.
    rules.push(format!("deny {PROC}/* w,"));
    rules.push(format!(
        "deny {PROC}/{{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9]*}}/** w,"
    ));
    rules.push(format!("deny {PROC}/sys/[^k]** w,"));
    rules.push(format!("deny {PROC}/sys/kernel/{{?,??,[^s][^h][^m]**}} w,"));
    for path in ["sysrq-trigger", "mem", "kmem", "kcore"] {
        rules.push(format!("deny {PROC}/{path} rwklx,"));
    }
    for path in ["[^f]*/**", "f[^s]*/**", "fs/[^c]*/**", "fs/c[^g]*/**", "fs/cg[^r]*/**"] {
        rules.push(format!("deny /sys/{path} wklx,"));
    }
    for path in ["firmware/**", "devices/virtual/powercap/**", "kernel/security/**"] {
        rules.push(format!("deny /sys/{path} rwklx,"));
    }
    // Without AppArmor's tunables the variable has to be defined here.
    let head = globals.unwrap_or("@{PROC}=/proc/");
    format!(
        "{head}\nprofile {name} flags=(attach_disconnected,mediate_deleted) {{\n  {}\n}}\n",
        rules.join("\n  ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_apparmor_profile_is_named_and_complete() {
        let bare = text("mine", None, None);
        assert!(bare.starts_with("@{PROC}=/proc/\nprofile mine flags="), "{bare}");
        assert!(bare.contains("peer=mine,") && !bare.contains("#include"), "{bare}");
        assert!(bare.contains("  network,\n") && bare.contains("  deny network alg,\n"), "{bare}");
        assert_eq!(bare.matches('{').count(), bare.matches('}').count());
        let rich = text("mine", Some(GLOBALS.1), Some(BASE.1));
        assert!(
            rich.starts_with("#include <tunables/global>\n")
                && rich.contains("  #include <abstractions/base>\n")
        );
    }

    #[test]
    fn apparmor_profile_names_with_syntax_are_refused() {
        for name in ["", "a b", "a{", "../a", "-a"] {
            assert!(load(name).unwrap_err().message().contains("letters"), "{name}");
        }
    }
}
