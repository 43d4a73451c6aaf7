//! The daemon as a service of systemd: it reports when it is ready and when it stops (sd_notify(3)), and answers
//! running calls before it ends.

use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use testkit::{Daemon, eventually, is_root};

/// Stands for systemd: `NOTIFY_SOCKET` is its socket.
struct Manager {
    dir: TempDir,
    socket: UnixDatagram,
}

impl Manager {
    fn new() -> Manager {
        let dir = TempDir::with_prefix("hm-").expect("a temporary directory");
        let socket = UnixDatagram::bind(dir.path().join("notify")).expect("a free address");
        socket.set_read_timeout(Some(Duration::from_secs(30))).expect("a time");
        Manager { dir, socket }
    }

    fn hears(&self) -> String {
        let mut buffer = [0; 256];
        let len = self.socket.recv(&mut buffer).expect("the daemon says something");
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    }
}

#[test]
fn the_manager_is_told_when_the_daemon_is_ready_and_when_it_stops() {
    let manager = Manager::new();
    let address = manager.dir.path().join("notify").display().to_string();
    let prepared = Daemon::start_in(&[], "", &[("NOTIFY_SOCKET", &address)]);
    assert_eq!(manager.hears(), "READY=1");
    // The socket accepts connections by then, since units that are ordered after the daemon call it at once.
    UnixStream::connect(prepared.socket()).expect("it listens by then");
    let mut daemon = prepared;
    assert_eq!(daemon.terminate(), Some(0));
    assert_eq!(manager.hears(), "STOPPING=1");
}

#[test]
fn a_call_that_is_under_way_is_answered_before_the_daemon_ends() {
    if !is_root("containers") {
        return;
    }
    let mut daemon = Daemon::with_busybox();
    // The container ignores SIGTERM until the test lets it end, within the timeout of `stop`.
    let program =
        "trap 'echo told' TERM; echo ready; while [ ! -e /shared/go ]; do usleep 10000; done; exit 7";
    let shared = format!("{}:/shared", daemon.dir().display());
    daemon.hoist(["run", "-d", "--name", "slow", "-v", &shared, "busybox", "sh", "-c", program]).ok();
    let says = |daemon: &Daemon, word: &str| {
        eventually(&format!("the container says {word}"), || {
            daemon.hoist(["logs", "slow"]).ok().stdout.contains(word).then_some(())
        });
    };
    says(&daemon, "ready");
    let mut stop = daemon.command(["stop", "-t", "60", "slow"]);
    let stop = stop.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("hoist starts");
    says(&daemon, "told");
    daemon.begin_to_terminate();
    eventually("it takes no more calls", || UnixStream::connect(daemon.socket()).is_err().then_some(()));
    assert!(daemon.is_there(), "somebody waits for an answer");
    std::fs::write(daemon.dir().join("go"), "").expect("a writable directory");
    let stopped = stop.wait_with_output().expect("a child of ours");
    assert!(stopped.status.success(), "{}", String::from_utf8_lossy(&stopped.stderr));
    assert_eq!(daemon.terminated(), Some(0));
    daemon.start_again();
    assert_eq!(daemon.hoist(["inspect", "-f", "{{.State.ExitCode}}", "slow"]).ok().text(), "7");
}
