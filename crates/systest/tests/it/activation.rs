//! Containers as services of systemd, or of a manager with its protocol: socket activation (`LISTEN_FDS`,
//! sd_listen_fds(3)) and readiness (`NOTIFY_SOCKET`, sd_notify(3)). Debian's runc does the same.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;
use tempfile::TempDir;
use testkit::{Finished, run};

use crate::runtime_bundle::{Runtime, bundle, compile, script};

/// A C program that sends each of its arguments to the socket `NOTIFY_SOCKET`.
const NOTIFY: &str = r#"
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
int main(int argc, char **argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, getenv("NOTIFY_SOCKET"));
    int socket_fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    for (int at = 1; at < argc; at++)
        if (sendto(socket_fd, argv[at], strlen(argv[at]), 0, (void *)&address, sizeof address) < 0) return 1;
    return 0;
}
"#;

/// The service manager's end of `NOTIFY_SOCKET`.
pub(crate) struct Supervisor {
    dir: TempDir,
    socket: UnixDatagram,
}

impl Supervisor {
    pub(crate) fn new() -> Supervisor {
        let dir = TempDir::new().expect("a temporary directory");
        let socket = UnixDatagram::bind(dir.path().join("socket")).expect("a free name");
        socket.set_read_timeout(Some(std::time::Duration::from_secs(20))).expect("a socket of ours");
        Supervisor { dir, socket }
    }

    pub(crate) fn address(&self) -> String {
        self.dir.path().join("socket").display().to_string()
    }

    /// The next message. The runtime sends it before it ends, or has sent it.
    pub(crate) fn hear(&self) -> String {
        let mut message = [0; 256];
        let len = self.socket.recv(&mut message).expect("a message");
        String::from_utf8_lossy(&message[..len]).trim_end().to_owned()
    }

    /// Checks for the barrier (sd_notify_barrier(3)), which Debian's runc does not send.
    fn is_asked_whether_it_knows(&self, name: &str) {
        if name == "hoist" {
            assert_eq!(self.hear(), "BARRIER=1");
        }
    }
}

/// The pid in the pid file, which the runtime writes before it returns.
fn number(path: &Path) -> String {
    fs::read_to_string(path).expect("the runtime wrote it")
}

#[test]
fn who_waits_is_told_when_the_program_is_ready() {
    let bundle = bundle(|spec| {
        script(
            spec,
            "echo $NOTIFY_SOCKET > /told; /notify 'MAINPID=1' STATUS=begins; /notify READY=1; exec sleep 1000",
        );
        spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    });
    let root = bundle.path().join("rootfs");
    compile(NOTIFY, &root.join("notify"));
    run(Command::new("chmod").args(["-R", "a+rwX"]).arg(bundle.path())).ok();
    let path = bundle.path().display().to_string();
    let pid_file = bundle.path().join("pid");
    for runtime in Runtime::both() {
        let name = runtime.name;
        // Detached, the container's program is the service's main process, and the runtime ends when the program is
        // ready.
        let id = runtime.id("ready");
        let supervisor = Supervisor::new();
        let words = ["run", "-d", "--bundle", &path, "--pid-file", pid_file.to_str().expect("UTF-8"), &id];
        let mut started = runtime.command(&words);
        started.env("NOTIFY_SOCKET", supervisor.address()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut started = started.spawn().expect("it runs");
        assert_eq!(supervisor.hear(), "READY=1", "{name}");
        assert_eq!(supervisor.hear(), format!("MAINPID={}", number(&pid_file)), "{name}");
        supervisor.is_asked_whether_it_knows(name);
        assert!(started.wait().expect("a child of ours").success(), "{name}");
        assert_eq!(fs::read_to_string(root.join("told")).expect("written"), "/run/notify/notify.sock\n");
        runtime.run(&["delete", "--force", &id]).ok();

        // `create` and `start` as two commands.
        let (id, supervisor) = (runtime.id("ready"), Supervisor::new());
        let created = runtime
            .command(&["create", "--bundle", &path, &id])
            .env("NOTIFY_SOCKET", supervisor.address())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(created.expect("it runs").success(), "{name}");
        let mut start = runtime.command(&["start", &id]);
        let mut start = start.env("NOTIFY_SOCKET", supervisor.address()).spawn().expect("it runs");
        assert_eq!(supervisor.hear(), "READY=1", "{name}");
        assert!(supervisor.hear().starts_with("MAINPID="), "{name}");
        supervisor.is_asked_whether_it_knows(name);
        assert!(start.wait().expect("a child of ours").success(), "{name}");
        runtime.run(&["delete", "--force", &id]).ok();

        // In the foreground, the runtime itself is the service's main process.
        let (id, supervisor) = (runtime.id("ready"), Supervisor::new());
        let mut child = runtime.command(&["run", "--bundle", &path, &id]);
        let child = child.env("NOTIFY_SOCKET", supervisor.address()).stdout(Stdio::null()).spawn();
        let mut child = child.expect("it runs");
        assert_eq!(supervisor.hear(), "READY=1", "{name}");
        assert_eq!(supervisor.hear(), format!("MAINPID={}", child.id()), "{name}");
        supervisor.is_asked_whether_it_knows(name);
        runtime.run(&["kill", &id, "KILL"]).ok();
        child.wait().expect("a child of ours");
        runtime.run(&["delete", "--force", &id]);
    }
}

/// The runtime does not wait for a program that ends without a message, and starts without a manager that listens.
#[test]
fn a_program_that_never_is_ready_keeps_nobody() {
    let bundle = bundle(|spec| script(spec, "true"));
    let path = bundle.path().display().to_string();
    let runtime = Runtime::ours();
    let supervisor = Supervisor::new();
    let id = runtime.id("mute");
    let mut command = runtime.command(&["run", "-d", "--bundle", &path, &id]);
    command.env("NOTIFY_SOCKET", supervisor.address()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(command.status().expect("it runs").success());
    runtime.run(&["delete", "--force", &id]).ok();
    let mut alone = runtime.command(&["run", "--bundle", &path, &runtime.id("alone")]);
    run(alone.env("NOTIFY_SOCKET", "/no/such/socket")).ok();
    supervisor.socket.set_nonblocking(true).expect("a socket of ours");
    let heard = supervisor.socket.recv(&mut [0; 16]).map_err(|error| error.kind());
    assert_eq!(heard, Err(std::io::ErrorKind::WouldBlock), "nothing was said");
}

#[test]
fn sockets_are_handed_on() {
    let bundle = bundle(|spec| {
        script(
            spec,
            "cat <&3; cat <&4; echo $LISTEN_FDS $LISTEN_PID; ls /proc/self/fd | busybox tr '\\n' ' '",
        );
    });
    let path = bundle.path().display().to_string();
    fs::write(bundle.path().join("one"), "the first\n").expect("writable");
    fs::write(bundle.path().join("two"), "the second\n").expect("writable");
    for runtime in Runtime::both() {
        let call = |pid: &str, flags: &[&str]| -> Finished {
            let id = runtime.id("sockets");
            let run_it = runtime.command(&[&["run", "--bundle", &path], flags, &[&id]].concat());
            let words: Vec<String> = std::iter::once(run_it.get_program())
                .chain(run_it.get_args())
                .map(|word| format!("'{}'", word.to_string_lossy()))
                .collect();
            let open = format!(
                "exec 3<'{path}/one' 4<'{path}/two' 5</dev/null 6</etc; export LISTEN_FDS=2 LISTEN_PID={pid}; exec {}",
                words.join(" ")
            );
            run(Command::new("bash").args(["-c", &open]).stdin(Stdio::null()))
        };
        let name = runtime.name;
        assert_eq!(
            call("$$", &[]).ok().text(),
            "the first\nthe second\n2 1\n0 1 2 3 4 5",
            "{name}: 5 is what ls reads"
        );
        // Beside the descriptors of `--preserve-fds`.
        assert_eq!(
            call("$$", &["--preserve-fds", "1"]).ok().text(),
            "the first\nthe second\n2 1\n0 1 2 3 4 5 6",
            "{name}"
        );
        // Sockets for another pid (`LISTEN_PID`) are not passed on.
        let other = call("1", &[]);
        assert!(!other.stdout.contains("the first"), "{name}: {other}");
    }
}
