//! `logs --follow`, `--since` and `--until`.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};

use testkit::Daemon;

/// `logs` on a pipe.
struct Following {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Following {
    fn start(daemon: &Daemon, words: &[&str]) -> Following {
        let mut child = daemon.command(words).stdout(Stdio::piped()).spawn().expect("hoist starts");
        let lines = BufReader::new(child.stdout.take().expect("a pipe"));
        Following { child, lines }
    }

    fn next(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a pipe");
        line
    }

    /// The rest of the output, and the exit code.
    fn rest(mut self) -> (String, Option<i32>) {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).expect("a pipe");
        (rest, self.child.wait().expect("a child of ours").code())
    }
}

#[test]
fn a_log_is_followed_to_the_end_of_its_container() {
    let daemon = Daemon::with_busybox();
    let program =
        "echo one; echo two; until test -e /go; do usleep 10000; done; echo three; echo four; exit 5";
    daemon.hoist(["run", "-d", "--name", "says", "--network", "none", "busybox", "sh", "-c", program]).ok();
    let mut all = Following::start(&daemon, &["logs", "-f", "says"]);
    assert_eq!([all.next(), all.next()], ["one\n", "two\n"]);
    let mut last = Following::start(&daemon, &["logs", "--follow", "--tail", "1", "says"]);
    assert_eq!(last.next(), "two\n");
    let mut later = Following::start(&daemon, &["logs", "-f", "-n", "0", "says"]);
    // The container ends by this, and may take the command along.
    daemon.hoist(["exec", "says", "touch", "/go"]);
    for (following, which) in [(all, "all"), (last, "last")] {
        assert_eq!(following.rest(), ("three\nfour\n".to_owned(), Some(0)), "{which}");
    }
    // It may have begun to follow before the two lines, between them, or after both.
    let first = later.next();
    assert!(["three\n", "four\n", ""].contains(&first.as_str()), "{first}");
    assert_eq!(later.rest().1, Some(0));
    // The log of a container that has ended has an end.
    let ended = Following::start(&daemon, &["logs", "-f", "--tail", "2", "says"]);
    assert_eq!(ended.rest(), ("three\nfour\n".to_owned(), Some(0)));
}

/// The last lines may still be in the pipe when the container has ended.
#[test]
fn who_follows_a_log_gets_all_that_is_said_at_the_end() {
    let daemon = Daemon::with_busybox();
    let program = "echo begun; until test -e /go; do usleep 10000; done; exec seq 10000";
    daemon.hoist(["run", "-d", "--name", "says", "--network", "none", "busybox", "sh", "-c", program]).ok();
    let mut all = Following::start(&daemon, &["logs", "-f", "says"]);
    assert_eq!(all.next(), "begun\n");
    daemon.hoist(["exec", "says", "touch", "/go"]).ok();
    let (rest, code) = all.rest();
    assert_eq!((rest.lines().count(), rest.lines().last(), code), (10_000, Some("10000"), Some(0)));
    // The log of a container that never started has an end.
    daemon.hoist(["create", "--name", "silent", "--network", "none", "busybox", "true"]).ok();
    assert_eq!(Following::start(&daemon, &["logs", "-f", "silent"]).rest(), (String::new(), Some(0)));
}

#[test]
fn a_log_is_shown_from_a_time_to_a_time() {
    let daemon = Daemon::with_busybox();
    daemon.hoist(["run", "-d", "--name", "says", "--network", "none", "busybox", "sleep", "1000"]).ok();
    let logs = |flags: &[&str]| daemon.hoist(["logs", "says"].iter().chain(flags)).ok().text().to_owned();
    // Each is another write, and has a time of its own.
    for word in ["one", "two", "three"] {
        daemon.hoist(["exec", "says", "sh", "-c", &format!("echo {word} > /proc/1/fd/1")]).ok();
        testkit::eventually("it is logged", || logs(&[]).contains(word).then_some(()));
    }
    let stamped = logs(&["-t"]);
    let second = stamped.lines().nth(1).and_then(|line| line.split(' ').next()).expect("a time").to_owned();
    assert_eq!(logs(&["--since", &second]), "two\nthree");
    assert_eq!(logs(&["--until", &second]), "one\ntwo");
    assert_eq!(logs(&["--since", &second, "--until", &second]), "two");
    assert_eq!(logs(&["--since", "1h", "-n", "1"]), "three");
    assert_eq!(logs(&["--until", "1h"]), "");
    let following = Following::start(&daemon, &["logs", "-f", "--until", &second, "says"]);
    assert_eq!(following.rest(), ("one\ntwo\n".to_owned(), Some(0)), "what comes is later still");
    daemon
        .hoist(["logs", "--since", "soon", "says"])
        .expect_code(1)
        .expect_stderr("invalid --since \"soon\"");
}
