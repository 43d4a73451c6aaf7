//! Shims that a container blocks inside the kernel, so that they answer no call.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use testkit::{Daemon, eventually, is_root, run};

use crate::births::{root, run_spec, spec};
use crate::runtime_bundle::compile;

/// A page fault that is never answered (userfaultfd(2)): a process that writes from this page holds the pipe's lock,
/// and any other process that reads the pipe, or asks for its fill level, waits for the lock uninterruptibly.
const TRAP: &str = r#"
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
static int faults;
static char *page;
static int set_trap(void) {
    faults = syscall(SYS_userfaultfd, O_CLOEXEC);
    struct uffdio_api api = { .api = UFFD_API };
    if (faults < 0 || ioctl(faults, UFFDIO_API, &api)) return 2;
    page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct uffdio_register all = {
        .range = { (unsigned long)page, 4096 }, .mode = UFFDIO_REGISTER_MODE_MISSING };
    return ioctl(faults, UFFDIO_REGISTER, &all) ? 3 : 0;
}
"#;

/// The shim reads as long as the pipe has data. The trap works if the shim comes while the lock is held. If the shim
/// was faster and has emptied the pipe, the page is provided after all, for another attempt.
const HOLDS_ITS_SHIM: &str = r#"
#include <poll.h>
#include <pthread.h>
static void *let_it_come_if_empty(void *end) {
    struct pollfd output = { *(int *)end, POLLIN };
    struct uffd_msg fault;
    while (read(faults, &fault, sizeof fault) == sizeof fault) {
        if (poll(&output, 1, 0) == 1) break;
        struct uffdio_zeropage zeros = { .range = { (unsigned long)page, 4096 } };
        ioctl(faults, UFFDIO_ZEROPAGE, &zeros);
    }
    pause();
    return 0;
}
int main(void) {
    pthread_t watcher;
    int end = open("/proc/self/fd/1", O_RDONLY | O_NONBLOCK);
    int failed = end < 0 ? 5 : set_trap();
    if (failed || pthread_create(&watcher, 0, let_it_come_if_empty, &end)) return failed ? failed : 6;
    for (;;) {
        write(1, "begins\n", 7);
        write(1, page, 4096);
        madvise(page, 4096, MADV_DONTNEED);
    }
}
"#;

/// A shim whose `delete` waits for a blocked child, and notes that in the bundle.
const WAITS_FOR_A_CHILD: &str = r#"
#include <sched.h>
#include <stdio.h>
#include <string.h>
int main(void) {
    int ends[2], child;
    char byte, note[64];
    if (pipe(ends)) return 5;
    if (!(child = fork())) {
        for (int fd = 0; fd < 3; fd++) close(fd);
        if (set_trap()) return 2;
        write(ends[1], "begins\n", 7);
        return write(ends[1], page, 4096);
    }
    int file = open("holders", O_CREAT | O_APPEND | O_WRONLY, 0600);
    write(file, note, sprintf(note, "%d\n", child));
    sprintf(note, "/proc/%d/wchan", child);
    do {
        char place[64] = "";
        int wchan = open(note, O_RDONLY);
        read(wchan, place, 63);
        close(wchan);
        if (strstr(place, "userfault")) break;
    } while (!sched_yield());
    return read(ends[0], &byte, 1);
}
"#;

#[test]
fn a_container_that_holds_up_its_shim_is_ended_and_its_pod_lives_on() {
    if !is_root("containers") {
        return;
    }
    let daemon = Daemon::start();
    compile(&[TRAP, HOLDS_ITS_SHIM].concat(), &root(&daemon).join("bin/holds"));
    let group = |spec: &mut serde_json::Value| {
        spec["annotations"] = json!({ "io.containerd.runc.v2.group": "pod" });
    };
    let neighbour = spec(&daemon, "neighbour", group);
    run_spec(&daemon, "neighbour", &neighbour, &[]).ok();
    let holds = spec(&daemon, "holds", |spec| {
        group(spec);
        spec["process"]["args"] = json!(["/bin/holds"]);
        let all = json!(["CAP_SYS_PTRACE"]);
        spec["process"]["capabilities"] = json!({ "bounding": all, "effective": all, "permitted": all });
    });
    let log = format!("file://{}", daemon.dir().join("out").display());
    run_spec(&daemon, "holds", &holds, &["--log-uri", &log]);
    let state_of = |id: &str| {
        let listed = daemon.own_ctr(["tasks", "ls"]).ok().stdout;
        let line = listed.lines().find(|line| line.starts_with(id)).unwrap_or_default();
        line.split_whitespace().last().unwrap_or_default().to_owned()
    };
    eventually("the shim hears nothing", || (state_of("holds") == "UNKNOWN").then_some(()));
    daemon.own_ctr(["tasks", "kill", "-s", "KILL", "holds"]).ok();
    eventually("it has ended", || (state_of("holds") == "STOPPED").then_some(()));
    assert_eq!(state_of("neighbour"), "RUNNING");
    let echoed =
        daemon.own_ctr(["tasks", "exec", "--exec-id", "e", "neighbour", "/bin/busybox", "echo", "lives"]);
    assert_eq!(echoed.ok().text(), "lives");
    for id in ["holds", "neighbour"] {
        daemon.own_ctr(["tasks", "delete", "--force", id]).ok();
    }
}

/// The shim's `delete` is blocked in the kernel and cannot be killed; the daemon starts without waiting for it.
#[test]
fn a_clean_up_that_cannot_even_be_killed_holds_up_no_daemon() {
    if !is_root("containers") {
        return;
    }
    /// Kills the process that holds the lock when dropped.
    struct Holders(PathBuf);
    impl Drop for Holders {
        fn drop(&mut self) {
            let text = fs::read_to_string(&self.0).unwrap_or_default();
            for pid in text.lines().filter_map(|pid| pid.parse().ok()).filter_map(Pid::from_raw) {
                let _gone = kill_process(pid, Signal::KILL);
            }
        }
    }
    let mut daemon = Daemon::start();
    let lost = spec(&daemon, "lost", |_| {});
    run_spec(&daemon, "lost", &lost, &[]).ok();
    let bundle = daemon.state().join("tasks/default/lost");
    let program = daemon.dir().join("containerd-shim-hoist-v2");
    compile(&[TRAP, WAITS_FOR_A_CHILD].concat(), &program);
    daemon.kill();
    run(Command::new("pkill").args(["-KILL", "-f", "--", "-id lost .* serve"])).ok();
    let note = bundle.join("shim-binary-path");
    let ours = fs::read(&note).expect("it is noted");
    fs::write(&note, program.as_os_str().as_encoded_bytes()).expect("a writable bundle");
    let holders = Holders(bundle.join("holders"));
    daemon.start_again();
    assert!(!daemon.own_ctr(["tasks", "ls"]).ok().stdout.contains("lost"));
    assert!(bundle.exists(), "its notes are kept");
    daemon.kill();
    drop(holders);
    fs::write(&note, ours).expect("a writable bundle");
    daemon.start_again();
    assert!(!bundle.exists(), "it is taken down");
}

/// The daemon waits for all shims at the same time.
#[test]
fn a_list_waits_for_all_deaf_shims_at_once() {
    if !is_root("containers") {
        return;
    }
    let daemon = Daemon::with_busybox();
    let start = |_| {
        let words = ["run", "-d", "--network", "none", "busybox", "sleep", "1000"];
        daemon.hoist(words).ok().text().to_owned()
    };
    let ids: Vec<String> = (0..5).map(start).collect();
    let signal = |signal: &str| {
        for id in &ids {
            run(Command::new("pkill").args([signal, "-f", "--", &format!("-id {id} .* serve")])).ok();
        }
    };
    signal("-STOP");
    let began = Instant::now();
    let listed = daemon.hoist(["ps", "--format", "{{.State}}"]).ok();
    let took = began.elapsed();
    signal("-CONT");
    assert_eq!(listed.text(), ["unknown"; 5].join("\n"));
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert_eq!(daemon.hoist(["ps", "--format", "{{.State}}"]).ok().text(), ["running"; 5].join("\n"));
    daemon.hoist([&["rm", "-f"], &ids.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat()).ok();
}
