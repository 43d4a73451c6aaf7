//! A container that writes to the shim's program: a process that enters a container is a copy of the shim until it
//! executes its own program (CVE-2019-5736).

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::fs::{StatVfsMountFlags, fstatvfs};
use serde_json::json;
use tempfile::TempDir;
use testkit::{Finished, ShimHost, eventually, is_root, run};

use super::attempt;
use crate::runtime_bundle::{Runtime, bundle, script};

/// A copy that nobody else runs: a program that runs cannot be written to by anyone.
fn copy_of_the_shim(dir: &TempDir) -> PathBuf {
    let program = dir.path().join("containerd-shim-hoist-v2");
    testkit::executable_copy(&testkit::shim_program(), &program);
    program
}

#[test]
fn the_shims_program_is_not_written_through_proc() {
    if !is_root("a container") {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    let program = copy_of_the_shim(&dir);
    let sum = || run(Command::new("sha256sum").arg(&program)).ok().stdout;
    let before = sum();
    let shared = dir.path().join("shared");
    fs::create_dir(&shared).expect("a writable directory");
    let host = ShimHost::with_program(program.clone());
    // `exec` by itself would end the shell where what it is about to open has ended.
    let attack = "echo up > /shared/up; while true; do for p in /proc/[0-9]*; do
           case $(readlink $p/exe) in */busybox|'') continue ;; esac
           command exec 3< $p/exe || continue
           echo > /shared/opened
           until test -e /shared/end; do
             echo overwritten >> /proc/self/fd/3 && echo > /shared/won; echo >> /shared/tries; done
           exit
         done; done 2>/dev/null";
    let task = host
        .container("attacker", attack)
        .with(|container| {
            let rights = json!(["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"]);
            container.spec["process"]["capabilities"] =
                json!({"bounding": rights, "effective": rights, "permitted": rights});
            let mounts = container.spec["mounts"].as_array_mut().expect("mounts");
            mounts.push(
                json!({"destination": "/shared", "type": "bind", "source": shared, "options": ["bind"]}),
            );
        })
        .run();
    eventually("the attacker is up", || shared.join("up").exists().then_some(()));
    // A long search for the program keeps the process in the container before its exec.
    let search = json!({"user": {"uid": 0, "gid": 0}, "args": ["busybox", "true"], "cwd": "/",
        "env": [format!("PATH={}/bin", "/nothing/here:".repeat(3000))]});
    let mut count = 0;
    eventually("the attacker has opened the program", || {
        count += 1;
        let id = format!("e{count}");
        task.exec(&id, "true", |exec| {
            exec.spec.as_mut().expect("a process").value = search.to_string().into_bytes();
        })
        .expect("it is added");
        task.start(&id);
        assert_eq!(task.wait(&id), 0);
        task.delete(&id).expect("it has ended");
        shared.join("opened").exists().then_some(())
    });
    // A process that runs the program keeps it from being written to, wherever it is. So the shim ends.
    task.kill_shim();
    let tries = || fs::metadata(shared.join("tries")).map_or(0, |file| file.len());
    let begin = tries();
    eventually("the attacker has tried", || (tries() > begin + 100).then_some(()));
    assert!(!shared.join("won").exists(), "the program was open for writing");
    assert_eq!(sum(), before);
    fs::write(shared.join("end"), "").expect("a writable directory");
}

/// What looks at the shim itself, as a container in the host's pid namespace does.
#[test]
fn a_shim_runs_from_where_nobody_writes() {
    if !is_root("a container") {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    let program = copy_of_the_shim(&dir);
    let host = ShimHost::with_program(program.clone());
    let task = host.container("sealed", "exec sleep 1000").run();
    let open = File::open(format!("/proc/{}/exe", task.shim_pid())).expect("it runs");
    assert!(fstatvfs(&open).expect("a file").f_flag.contains(StatVfsMountFlags::RDONLY));
    task.kill_shim();
    let again = OpenOptions::new().write(true).open(format!("/proc/self/fd/{}", open.as_raw_fd()));
    let refused = again.expect_err("nobody may write to it").raw_os_error();
    assert_eq!(refused, Some(rustix::io::Errno::ROFS.raw_os_error()));
    OpenOptions::new().append(true).open(&program).expect("by its own path root may");
}

/// No shim at all is better than one that its containers can write to.
#[test]
fn where_there_is_no_place_to_run_from_no_shim_starts() {
    let dir = TempDir::new().expect("a temporary directory");
    // Without the right to mount there is memory; a call that is not there is a kernel that nobody has thought of.
    let start = |kernel_has_open_tree: bool| -> Finished {
        let bundle = bundle(|spec| {
            if !kernel_has_open_tree {
                spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                    {"names": ["open_tree"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]});
            }
            script(
                spec,
                "/shim -namespace n -id a -address /d.sock start || exit
                 for i in $(busybox seq 500); do
                   busybox grep -qs hoist-shim /proc/[0-9]*/comm && echo && echo serves && exit
                   busybox usleep 10000
                 done",
            );
        });
        fs::copy(testkit::shim_program(), bundle.path().join("rootfs/shim")).expect("a writable root");
        attempt(&Runtime::ours(), &bundle)
    };
    let done = start(true).ok();
    assert!(done.text().ends_with("\nserves"), "{done}");
    let done = start(false).expect_code(1);
    assert!(!done.stdout.contains("serves"), "{done}");
    done.expect_stderr("start the shim");

    // Whoever calls the second stage without the first gets a shim as little.
    let program = copy_of_the_shim(&dir);
    let listener = std::os::unix::net::UnixListener::bind(dir.path().join("s")).expect("a free name");
    let mut serve = Command::new(&program);
    serve.args(["-namespace", "n", "-id", "a", "serve"]).current_dir(dir.path());
    let output = serve.stdin(Stdio::from(std::os::fd::OwnedFd::from(listener))).output().expect("it runs");
    assert!(!output.status.success());
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.contains("can be written to"), "{words}");
}
