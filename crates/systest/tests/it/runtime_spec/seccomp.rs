//! Seccomp: actions, and supervisors (`SCMP_ACT_NOTIFY`, `listenerPath`). What the kernel then does with calls is in
//! `runtime_filters.rs`.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::eventually;

use super::ours;
use crate::runtime_bundle::{Runtime, bundle, compile, read_text, same, script};

/// A supervisor in C: takes one listener, keeps the message for the test, and answers one call.
const SUPERVISOR: &str = r#"
#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
int main(int argc, char **argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, argv[1]);
    int server = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(server, (void *)&address, sizeof address) || listen(server, 8)) return 1;
    int message = open(argv[2], O_WRONLY | O_CREAT | O_APPEND, 0644);
    for (;;) {
        int client = accept(server, 0, 0);
        char text[65536], space[CMSG_SPACE(sizeof(int))];
        struct iovec part = {text, sizeof text};
        struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
        ssize_t len = recvmsg(client, &header, 0);
        int listener;
        memcpy(&listener, CMSG_DATA(CMSG_FIRSTHDR(&header)), sizeof listener);
        write(message, text, len);
        write(message, "\n", 1);
        if (fork()) { close(client); close(listener); continue; }
        for (;;) {
            struct seccomp_notif call = {0};
            if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call)) return errno != EINTR && errno != ENOENT;
            struct seccomp_notif_resp answer = {.id = call.id, .error = -ENOTEMPTY};
            ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
        }
    }
}
"#;

/// Calls that the profile has a supervisor asked about are answered by it, in the first process and in those
/// that enter, whatever other call it is asked about.
#[test]
fn a_supervisor_answers_for_the_kernel() {
    let dir = TempDir::new().expect("a temporary directory");
    let (program, socket, messages) =
        (dir.path().join("supervisor"), dir.path().join("s"), dir.path().join("messages"));
    compile(SUPERVISOR, &program);
    let mut supervisor = Command::new(&program).arg(&socket).arg(&messages).spawn().expect("just compiled");
    eventually("the supervisor listens", || socket.exists().then_some(()));
    for no_new_privileges in [true, false] {
        let runtime = Runtime::ours();
        let bundle = bundle(|spec| {
            script(spec, "mkdir /first 2>/said; sleep 1000");
            spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
            spec["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": socket, "listenerMetadata": "for the test",
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}]});
        });
        let path = bundle.path().display().to_string();
        let id = runtime.id("notify");
        let status = runtime.command(&["run", "-d", "--bundle", &path, &id]).stdout(Stdio::null()).status();
        assert!(status.expect("it runs").success());
        let said = bundle.path().join("rootfs/said");
        eventually("the first process is answered", || {
            fs::read_to_string(&said).is_ok_and(|text| text.contains("not empty")).then_some(())
        });
        runtime.run(&["exec", &id, "mkdir", "/second"]).expect_code(1).expect_stderr("not empty");
        let text = read_text(&messages);
        let told: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let told: Vec<&Value> = told.iter().filter(|told| told["state"]["id"] == id).collect();
        assert_eq!(told.len(), 2, "{text}");
        for (told, status) in told.iter().zip(["creating", "running"]) {
            assert_eq!((&told["metadata"], &told["fds"]), (&json!("for the test"), &json!(["seccompFd"])));
            assert_eq!(told["state"]["status"], status);
            assert!(told["pid"].as_u64().is_some_and(|pid| pid > 1), "{told}");
        }
        runtime.run(&["delete", "--force", &id]).ok();
    }
    supervisor.kill().expect("a child of ours");
    supervisor.wait().expect("a child of ours");
    let bundle = bundle(|spec| {
        spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]});
    });
    let runtime = Runtime::ours();
    let path = bundle.path().display().to_string();
    let refused = runtime.run(&["run", "--bundle", &path, &runtime.id("notify")]);
    refused.expect_code(1).expect_stderr("listenerPath");
}

/// Actions of a filter, as runc's library makes them.
#[test]
fn actions_of_filters_are_runcs() {
    for action in [
        "SCMP_ACT_ERRNO",
        "SCMP_ACT_KILL",
        "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_KILL_THREAD",
        "SCMP_ACT_TRAP",
        "SCMP_ACT_LOG",
        "SCMP_ACT_TRACE",
    ] {
        let attempt =
            "sh -c 'mkdir /made' 2>/dev/null; echo $?; test -d /made && busybox rmdir /made; echo end";
        let filter = |spec: &mut Value, flags: Value| {
            spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags,
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": action}]});
        };
        let said = same(attempt, |spec| filter(spec, json!([])));
        assert!(said.contains("end"), "{action}: {said}");
        // Debian's runc knows no flags.
        let flags =
            ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"];
        assert_eq!(ours(attempt, |spec| filter(spec, json!(flags))), said.trim(), "{action} with flags");
    }
}
