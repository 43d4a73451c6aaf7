//! A container that writes to the runtime's program, which a process that enters a container runs until it executes its
//! own (CVE-2019-5736). For the shim's program see `shim.rs`.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;
use testkit::{eventually, run};

use super::{Running, add_capabilities, attempt};
use crate::runtime_bundle::{Runtime, bundle, script};

/// CVE-2019-5736: a process of the container opens the program of one that enters it, and writes to it once it no
/// longer runs.
#[test]
fn the_runtimes_program_is_not_written_through_proc() {
    let dir = TempDir::new().expect("a temporary directory");
    // A copy for this test: a program that runs cannot be written to (ETXTBSY).
    let program = dir.path().join("hoist");
    testkit::executable_copy(&testkit::hoist_program(), &program);
    let sum = || run(Command::new("sha256sum").arg(&program)).ok().stdout;
    let before = sum();
    let runtime = Runtime::at(program.clone());
    // Without `CAP_SYS_PTRACE`, which containers lack by default, the container could not open the program at all.
    let bundle = bundle(|spec| {
        add_capabilities(spec, &["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"]);
        script(
            spec,
            // A subshell, which ends if the process that it inspects has ended.
            "echo up > /up; while true; do (for p in /proc/[0-9]*; do
               case $(readlink $p/exe) in */busybox|'') continue ;; esac
               exec 3< $p/exe
               echo > /opened
               until test -e /end; do echo overwritten >> /proc/self/fd/3 && echo > /won; echo >> /tries; done
               exit
             done); done 2>/dev/null",
        );
    });
    let rootfs = bundle.path().join("rootfs");
    let running = Running::start(&runtime, &bundle);
    eventually("the attacker is up", || rootfs.join("up").exists().then_some(()));
    // A long search in PATH keeps the process in the container before its exec.
    let path = format!("PATH={}/bin", "/nothing/here:".repeat(3000));
    eventually("the attacker has opened the program", || {
        running.exec_with(&["--env", &path], &["true"]).ok();
        rootfs.join("opened").exists().then_some(())
    });
    // The program does not run any more.
    let tries = || fs::metadata(rootfs.join("tries")).map_or(0, |file| file.len());
    let begin = tries();
    eventually("the attacker has tried", || (tries() > begin + 100).then_some(()));
    assert!(!rootfs.join("won").exists(), "the program was open for writing");
    assert_eq!(sum(), before);
    drop(running);
}

/// As above, with `/proc/self/exe` as the program in the image.
#[test]
fn the_runtimes_program_as_entry_point_is_not_writable() {
    let program = testkit::hoist_program();
    let before = (program.metadata().expect("it is there").size(), read_head(&program));
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| spec["process"]["args"] = json!(["/bin/entry", "--version"]));
    symlink("/proc/self/exe", bundle.path().join("rootfs/bin/entry")).expect("a writable root");
    attempt(&runtime, &bundle);
    assert_eq!((program.metadata().expect("it is there").size(), read_head(&program)), before);
}

fn read_head(path: &Path) -> Vec<u8> {
    use std::io::Read;
    let mut head = Vec::new();
    File::open(path).expect("it is there").take(4096).read_to_end(&mut head).expect("readable");
    head
}
