//! Seccomp filters in the kernel: every system call convention, every comparison, and supervisors
//! (`SECCOMP_RET_USER_NOTIF`).

use std::fs;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{eventually, run};

use crate::runtime_bundle::{Runtime, bundle, compile, read_text, same};

/// Calls mkdir by the named system call convention, and prints what the kernel returns.
const WAYS: &str = r#"
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
static long kernel(long number) {
    long result;
    register long mode asm("rsi") = 0755;
    asm volatile("syscall" : "=a"(result) : "a"(number), "D"("/made"), "r"(mode) : "rcx", "r11", "memory");
    return result;
}
int main(int argc, char **argv) {
    long result;
    if (!strcmp(argv[1], "x86_64")) {
        result = kernel(SYS_mkdir);
    } else if (!strcmp(argv[1], "x32")) {
        result = kernel(SYS_mkdir | 0x40000000);
    } else {
        int of_i386 = 39;
        asm volatile("int $0x80" : "=a"(result) : "a"(of_i386), "b"("/made"), "c"(0755) : "memory");
        result = (int)result;
    }
    rmdir("/made");
    return printf("%s %ld\n", argv[1], result) < 0;
}
"#;

/// What a program prints under a filter: with Hoist the same as with Debian's runc.
#[track_caller]
fn filtered(program: &TempDir, name: &str, args: &Value, filter: &Value) -> String {
    same("", |spec| {
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        mounts.push(
            json!({"destination": "/p", "type": "bind", "source": program.path(), "options": ["bind"]}),
        );
        spec["process"]["args"] = args.clone();
        spec["process"]["args"][0] = json!(format!("/p/{name}"));
        spec["linux"]["seccomp"] = filter.clone();
    })
}

#[test]
fn every_way_into_the_kernel_is_filtered() {
    let dir = TempDir::new().expect("a temporary directory");
    compile(WAYS, &dir.path().join("ways"));
    let filter = |architectures: &[&str]| {
        json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures,
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]})
    };
    let all = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"];
    for way in ["x86_64", "i386", "x32"] {
        let said = filtered(&dir, "ways", &json!(["", way]), &filter(&all));
        assert_eq!(said, format!("{way} -95\n"));
        // A call by a convention that the filter does not name kills the process.
        let said = filtered(&dir, "ways", &json!(["", way]), &filter(&all[..1]));
        assert_eq!(said, if way == "x86_64" { "x86_64 -95\n" } else { "" }, "{way}");
    }
    for (way, architectures) in [("i386", &all[..2]), ("x32", &[all[0], all[2]])] {
        let said = filtered(&dir, "ways", &json!(["", way]), &filter(architectures));
        assert_eq!(said, format!("{way} -95\n"));
    }
}

/// Calls lseek on an invalid descriptor with each offset, and prints the error: that of the filter, or the kernel's
/// own.
const SEEKS: &str = r#"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        errno = 0;
        syscall(SYS_lseek, -1, strtoul(argv[i], 0, 0), 0);
        printf("%d ", errno);
    }
    return 0;
}
"#;

#[test]
fn every_comparison_is_made_by_the_kernel() {
    const VALUES: [u64; 9] = [0, 4, 5, 6, 0xff, 0x1_0000_0004, 0x1_0000_0005, 0x1_0000_0006, u64::MAX];
    type Holds = fn(u64) -> bool;
    let dir = TempDir::new().expect("a temporary directory");
    compile(SEEKS, &dir.path().join("seeks"));
    let condition = |index: u64, op: &str, value: u64, two: u64| json!({"index": index, "value": value, "valueTwo": two, "op": format!("SCMP_CMP_{op}")});
    let rows: [(&str, Value, Holds); 11] = [
        ("NE", json!([condition(1, "NE", 5, 0)]), |value| value != 5),
        ("LT", json!([condition(1, "LT", 5, 0)]), |value| value < 5),
        ("LE", json!([condition(1, "LE", 5, 0)]), |value| value <= 5),
        ("EQ", json!([condition(1, "EQ", 0x1_0000_0005, 0)]), |value| value == 0x1_0000_0005),
        ("LE over 32 bits", json!([condition(1, "LE", 0x1_0000_0005, 0)]), |value| value <= 0x1_0000_0005),
        ("GE", json!([condition(1, "GE", 0x1_0000_0005, 0)]), |value| value >= 0x1_0000_0005),
        ("GT", json!([condition(1, "GT", 5, 0)]), |value| value > 5),
        ("MASKED_EQ", json!([condition(1, "MASKED_EQ", 0x1_0000_000f, 0x1_0000_0004)]), |value| {
            value & 0x1_0000_000f == 0x1_0000_0004
        }),
        ("two arguments", json!([condition(1, "GE", 5, 0), condition(2, "EQ", 0, 0)]), |value| value >= 5),
        ("two arguments, one is other", json!([condition(1, "GE", 5, 0), condition(2, "EQ", 1, 0)]), |_| {
            false
        }),
        // Conditions on the same argument become rules of their own, as with runc.
        ("one argument twice", json!([condition(1, "LT", 5, 0), condition(1, "GT", 0xff, 0)]), |value| {
            !(5..=0xff).contains(&value)
        }),
    ];
    let args: Vec<String> = std::iter::once(String::new()).chain(VALUES.iter().map(u64::to_string)).collect();
    for (what, conditions, holds) in rows {
        let filter = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["lseek"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95, "args": conditions}]});
        let said = filtered(&dir, "seeks", &json!(args), &filter);
        // EBADF (9) is the kernel's own error.
        let expected: String = VALUES.map(|value| if holds(value) { "95 " } else { "9 " }).concat();
        assert_eq!(said, expected, "{what}");
    }
}

/// A supervisor that sends a signal to the process that asks, waits a while, and answers.
const INTERRUPTING: &str = r#"
#include <linux/seccomp.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>
int main(int argc, char **argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, argv[1]);
    int server = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(server, (void *)&address, sizeof address) || listen(server, 8)) return 1;
    int client = accept(server, 0, 0), listener;
    char text[65536], space[CMSG_SPACE(sizeof(int))];
    struct iovec part = {text, sizeof text};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    recvmsg(client, &header, 0);
    memcpy(&listener, CMSG_DATA(CMSG_FIRSTHDR(&header)), sizeof listener);
    close(client);
    struct seccomp_notif call = {0};
    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call)) return 2;
    // If the signal interrupts the call, the process ends. If not, only the passing of time shows it.
    struct pollfd program = {.fd = syscall(SYS_pidfd_open, call.pid, 0), .events = POLLIN};
    if (program.fd < 0 || kill(call.pid, SIGALRM)) return 3;
    poll(&program, 1, 200);
    struct seccomp_notif_resp answer = {.id = call.id, .error = -ENOTEMPTY};
    ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
    return 0;
}
"#;

/// Makes a directory, with a handler for the signal.
const INTERRUPTED: &str = r#"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
static void heard(int number) {}
int main(void) {
    struct sigaction action = {.sa_handler = heard};
    sigaction(SIGALRM, &action, 0);
    mkdir("/made", 0755);
    return printf("%d\n", errno) < 0;
}
"#;

#[test]
fn a_supervisor_is_waited_for_where_the_flag_says_so() {
    let dir = TempDir::new().expect("a temporary directory");
    let supervisor = dir.path().join("supervisor");
    compile(INTERRUPTING, &supervisor);
    let killable = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV";
    for (flags, expected) in
        [(json!([]), rustix::io::Errno::INTR), (json!([killable]), rustix::io::Errno::NOTEMPTY)]
    {
        let socket = dir.path().join(format!("s{}", expected.raw_os_error()));
        let mut supervising = Command::new(&supervisor).arg(&socket).spawn().expect("just compiled");
        eventually("the supervisor listens", || socket.exists().then_some(()));
        let runtime = Runtime::ours();
        let bundle = bundle(|spec| {
            spec["process"]["args"] = json!(["/interrupted"]);
            spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": socket,
                "flags": flags, "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]});
        });
        compile(INTERRUPTED, &bundle.path().join("rootfs/interrupted"));
        let output = bundle.path().join("output");
        let file = fs::File::create(&output).expect("a writable bundle");
        let path = bundle.path().display().to_string();
        let mut run = runtime.command(&["run", "--bundle", &path, &runtime.id("waits")]);
        let status = run.stdout(Stdio::from(file)).status().expect("it runs");
        assert!(status.success(), "{flags}");
        assert_eq!(read_text(&output), expected.raw_os_error().to_string(), "{flags}");
        assert!(supervising.wait().expect("a child of ours").success());
    }
}

/// Most flags have no effect that a test could see, so strace(1) shows that the kernel gets them.
#[test]
fn flags_reach_the_kernel() {
    let runtime = Runtime::ours();
    // The last flag is for a filter with a supervisor, and this one has none.
    let rows =
        [&["LOG"][..], &["SPEC_ALLOW"], &["TSYNC"], &["LOG", "SPEC_ALLOW"], &["LOG", "WAIT_KILLABLE_RECV"]];
    for flags in rows {
        let names: Vec<String> = flags.iter().map(|flag| format!("SECCOMP_FILTER_FLAG_{flag}")).collect();
        let bundle = bundle(|spec| {
            spec["process"]["args"] = json!(["true"]);
            spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": names,
                "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_ERRNO"}]});
        });
        let (path, calls) = (bundle.path().display().to_string(), bundle.path().join("calls"));
        let start = runtime.command(&["run", "--bundle", &path, &runtime.id("flags")]);
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-e", "trace=seccomp", "-o"]).arg(&calls);
        strace.arg(start.get_program()).args(start.get_args()).stdin(Stdio::null());
        run(&mut strace).ok();
        let calls = read_text(&calls);
        let told: Vec<&str> =
            names.iter().map(String::as_str).filter(|name| !name.contains("WAIT")).collect();
        let told = format!("(SECCOMP_SET_MODE_FILTER, {}, ", told.join("|"));
        assert!(calls.contains(&told), "{told}: {calls}");
    }
}

/// exit_group(2) is refused as well.
#[test]
fn a_filter_that_refuses_everything_holds_up_nobody() {
    for action in ["SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS"] {
        let runtime = Runtime::ours();
        let bundle = bundle(|spec| spec["linux"]["seccomp"] = json!({"defaultAction": action}));
        let path = bundle.path().display().to_string();
        let run_it = runtime.command(&["run", "--bundle", &path, &runtime.id("mute")]);
        let mut timed = Command::new("timeout");
        timed.args(["--signal", "KILL", "20"]).arg(run_it.get_program()).args(run_it.get_args());
        run(timed.stdin(Stdio::null())).expect_code(1).expect_stderr("ended before it was ready");
    }
}

#[test]
fn an_empty_filter_is_none() {
    let status = same("grep Seccomp: /proc/self/status", |spec| spec["linux"]["seccomp"] = json!({}));
    assert_eq!(status, "Seccomp:\t0\n");
}

/// A program can be executed without any of these calls.
#[test]
fn sockets_may_be_forbidden() {
    let runtime = Runtime::ours();
    for forbids_privileges in [false, true] {
        let bundle = bundle(|spec| {
            spec["process"]["args"] = json!(["sh", "-c", "echo started"]);
            spec["process"]["noNewPrivileges"] = json!(forbids_privileges);
            spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{
                "names": ["accept", "accept4", "sendto", "sendmsg", "recvfrom", "recvmsg"],
                "action": "SCMP_ACT_ERRNO"}]});
        });
        let (path, id) = (bundle.path().display().to_string(), runtime.id("sockets"));
        assert_eq!(runtime.run(&["run", "--bundle", &path, &id]).ok().text(), "started");
        // With `create` and `start`.
        let output = bundle.path().join("output");
        let mut create = runtime.command(&["create", "--bundle", &path, &id]);
        let file = fs::File::create(&output).expect("a writable bundle");
        assert!(create.stdout(file).stderr(Stdio::null()).status().expect("it runs").success());
        runtime.run(&["start", &id]).ok();
        let said = || Some(read_text(&output)).filter(|text| !text.is_empty());
        assert_eq!(eventually("it says something", said), "started");
        runtime.run(&["delete", "--force", &id]).ok();
    }
}

/// Waits for its end, or says that it is there: with hardly a call.
const FRUGAL: &str = r#"
#include <unistd.h>
int main(int argc, char **argv) {
    if (argc > 1) return write(1, "here\n", 5) != 5;
    for (;;) pause();
}
"#;

/// A filter comes last: what it refuses the program lacks, and nobody on the way to it. Where privileges can be gained, it
/// must allow to give up that of loading it.
#[test]
fn a_filter_refuses_nothing_to_who_makes_or_enters_the_container() {
    const CALLS: [&[&str]; 11] = [
        &["clone", "clone3", "fork", "vfork"],
        &["setsid", "setpgid", "ioctl"],
        &["setns", "unshare"],
        &["prctl"],
        &["setuid", "setgid", "setresuid", "setresgid", "getgroups", "setgroups"],
        &["chdir", "fchdir", "getcwd"],
        &["chown", "fchown", "fchownat"],
        &["umask", "getrlimit", "setrlimit", "prlimit64"],
        &["open", "openat", "openat2", "stat", "newfstatat", "statx", "access", "faccessat", "faccessat2"],
        &["rt_sigaction", "rt_sigprocmask"],
        &["close", "close_range", "dup2", "fcntl", "recvmsg", "sendmsg", "seccomp"],
    ];
    let runtime = Runtime::ours();
    let mut rows: Vec<Vec<&str>> = CALLS.iter().map(|calls| calls.to_vec()).collect();
    rows.push(CALLS.concat());
    for no_new_privileges in [true, false] {
        for calls in &rows {
            let mut refused = calls.clone();
            if no_new_privileges {
                refused.extend(["capget", "capset"]);
            }
            let bundle = bundle(|spec| {
                spec["process"]["args"] = json!(["/frugal"]);
                spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
                spec["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [7]});
                // So few that the runtime itself needs more.
                spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 16, "hard": 16}]);
                spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                    {"names": refused, "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]});
            });
            compile(FRUGAL, &bundle.path().join("rootfs/frugal"));
            let (path, id) = (bundle.path().display().to_string(), runtime.id("frugal"));
            let output = fs::File::create(bundle.path().join("output")).expect("a writable bundle");
            let mut create = runtime.command(&["create", "--bundle", &path, &id]);
            create.stdout(output.try_clone().expect("a file")).stderr(output);
            let is_made = create.status().expect("it runs").success();
            assert!(is_made, "{refused:?}: {}", read_text(&bundle.path().join("output")));
            let started = runtime.run(&["start", &id]);
            let entered = [&[][..], &["--user", "5:5"]]
                .map(|flags| runtime.run(&[&["exec"], flags, &[&id, "/frugal", "here"]].concat()));
            runtime.run(&["delete", "--force", &id]).ok();
            for done in [started].into_iter().chain(entered) {
                assert_eq!(done.code, 0, "{refused:?}, {no_new_privileges}: {done}");
            }
        }
    }
}
