//! Descriptors of the caller, opened on the host: no process of a container gets one.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;
use tempfile::TempDir;
use testkit::{Finished, run};

use super::Running;
use crate::runtime_bundle::{Runtime, bundle, script};

/// CVE-2024-21626: a leaked descriptor of a host's directory, used as the working directory and in the path of the
/// program.
#[test]
fn descriptors_of_the_host_lead_nowhere() {
    let host = TempDir::new().expect("a temporary directory");
    fs::write(host.path().join("secret"), "of the host").expect("writable");
    fs::copy("/bin/busybox", host.path().join("cat")).expect("busybox is installed");
    let runtime = Runtime::ours();
    for fd in 3..24 {
        // As the cwd, directly and by a link in the image.
        for cwd in [format!("/proc/self/fd/{fd}"), "/link".to_owned()] {
            let bundle = bundle(|spec| {
                spec["process"]["cwd"] = json!(cwd);
                spec["process"]["args"] = json!(["cat", "secret", "../../../etc/hostname"]);
            });
            symlink(format!("/proc/self/fd/{fd}"), bundle.path().join("rootfs/link")).expect("writable");
            let done = with_leaked_directory(&runtime, &bundle, host.path());
            assert!(done.code != 0 && done.stdout.is_empty(), "cwd {cwd}, fd {fd}: {done}");
        }
        let bundle = bundle(|spec| {
            spec["process"]["args"] = json!([format!("/proc/self/fd/{fd}/cat"), "/proc/self/cmdline"]);
        });
        let done = with_leaked_directory(&runtime, &bundle, host.path());
        assert!(done.code != 0 && done.stdout.is_empty(), "program by fd {fd}: {done}");
    }
}

/// Runs a bundle with a directory of the host open under every descriptor that a careless runtime could pass on.
fn with_leaked_directory(runtime: &Runtime, bundle: &TempDir, host: &Path) -> Finished {
    let path = bundle.path().display().to_string();
    leak_to(&runtime.command(&["run", "--bundle", &path, &runtime.id("leak")]), host)
}

/// As [`with_leaked_directory`], for any command of the runtime.
fn leak_to(ours: &Command, host: &Path) -> Finished {
    let words: Vec<String> = std::iter::once(ours.get_program())
        .chain(ours.get_args())
        .map(|word| format!("'{}'", word.to_string_lossy()))
        .collect();
    // The shell keeps what it opens open for the program that it executes.
    let open = format!("exec 5<'{0}' 7<'{0}' 9<'{0}'; exec {1}", host.display(), words.join(" "));
    run(Command::new("bash").args(["-c", &open]).stdin(Stdio::null()))
}

#[test]
fn an_exec_gets_no_descriptor_of_the_host_either() {
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| script(spec, "sleep 1000"));
    symlink("/proc/self/fd/7", bundle.path().join("rootfs/link")).expect("a writable root");
    let host = TempDir::new().expect("a temporary directory");
    fs::write(host.path().join("secret"), "of the host").expect("writable");
    fs::copy("/bin/busybox", host.path().join("cat")).expect("busybox is installed");
    let running = Running::start(&runtime, &bundle);
    let leak = |flags: &[&str], words: &[&str]| {
        leak_to(&runtime.command(&[&["exec"], flags, &[&running.id], words].concat()), host.path())
    };
    for fd in 3..24 {
        let cwd = ["--cwd", &format!("/proc/self/fd/{fd}")];
        for words in [&["ls", "../.."][..], &["cat", "secret", "../../../etc/hostname"]] {
            let done = leak(&cwd, words);
            assert!(done.code != 0 && done.stdout.is_empty(), "fd {fd}: {done}");
        }
        for program in ["cat", "../../../../../../../bin/busybox"] {
            let done = leak(&[], &[&format!("/proc/self/fd/{fd}/{program}"), "/proc/self/cmdline"]);
            assert!(done.code != 0 && done.stdout.is_empty(), "program by fd {fd}: {done}");
        }
    }
    assert_ne!(leak(&["--cwd", "/link"], &["true"]).code, 0);
    let open = leak(&[], &["ls", "/proc/self/fd"]).ok();
    // Descriptor 3 is the directory that `ls` reads.
    assert_eq!(open.text().split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
}

/// Only the standard streams may be open in the first process.
#[test]
fn the_first_process_has_its_streams_and_nothing_else() {
    let runtime = Runtime::ours();
    let host = TempDir::new().expect("a temporary directory");
    let leaked = File::open(host.path()).expect("a directory");
    assert!(leaked.as_raw_fd() > 2);
    let bundle = bundle(|spec| script(spec, "ls /proc/self/fd"));
    let done = with_leaked_directory(&runtime, &bundle, host.path()).ok();
    assert_eq!(
        done.text().split_whitespace().collect::<Vec<_>>(),
        ["0", "1", "2", "3"],
        "3 is what ls reads"
    );
}
