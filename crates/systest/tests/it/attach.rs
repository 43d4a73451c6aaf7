//! `attach`: clients that read and write the streams of a running container. The bytes do not pass through the daemon.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rustix::process::Signal;
use testkit::{Daemon, Terminal, eventually};

/// Ctrl-P Ctrl-Q.
const DETACH: &str = "\u{10}\u{11}";

/// A client whose streams are pipes.
struct Attached {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Attached {
    fn to(daemon: &Daemon, arguments: &[&str]) -> Attached {
        let mut command: Command = daemon.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        Attached { child, stdin, stdout }
    }

    fn type_in(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("open");
        stdin.write_all(format!("{line}\n").as_bytes()).expect("somebody reads");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("text");
        line.trim_end().to_owned()
    }

    /// The exit code, once the client has ended.
    fn end(mut self) -> Option<i32> {
        self.child.wait().expect("a child of ours").code()
    }

    fn kill(mut self) {
        self.child.kill().expect("it was there");
        self.child.wait().expect("a child of ours");
    }
}

fn state(daemon: &Daemon, name: &str) -> String {
    daemon.hoist(["inspect", "-f", "{{.State.Status}}", name]).ok().text().to_owned()
}

fn wait_until_running(daemon: &Daemon, name: &str) {
    eventually("it runs", || (state(daemon, name) == "running").then_some(()));
}

#[test]
fn a_terminal_is_left_and_joined_again() {
    let daemon = Daemon::with_busybox();
    daemon.hoist(["run", "-dit", "--name", "shell", "--network", "none", "busybox", "sh"]).ok();
    let attach = |rows, columns| Terminal::run_session(&daemon.command(["attach", "shell"]), rows, columns);
    let mut first = attach(33, 101);
    first.type_in("stty size\n");
    first.wait_for("33 101");
    first.type_in(DETACH);
    first.wait_for("detached from");
    assert_eq!(first.end(), (Some(0), true), "the terminal is as it was");
    assert_eq!(state(&daemon, "shell"), "running");
    let mut second = attach(20, 66);
    second.type_in("stty size; echo again-$((1 + 1))\n");
    second.wait_for("20 66");
    second.wait_for("again-2");
    // A second client with other detach keys: the first key alone is passed on if the second does not follow.
    let keys = ["attach", "--detach-keys", "ctrl-a,x", "shell"];
    let mut third = Terminal::run_session(&daemon.command(keys), 20, 66);
    third.type_in("echo both-$((2 + 2))\n");
    third.wait_for("both-4");
    second.wait_for("both-4");
    third.type_in("\u{1}x");
    assert_eq!(third.end(), (Some(0), true));
    second.type_in("exit 7\n");
    assert_eq!(second.end(), (Some(7), true), "the code is the container's");
}

#[test]
fn who_ran_it_may_leave_it_and_come_back() {
    let daemon = Daemon::with_busybox();
    let run = ["run", "-it", "--name", "shell", "--network", "none", "busybox", "sh"];
    let mut run = Terminal::run_session(&daemon.command(run), 24, 80);
    run.type_in("word=kept; echo here-$((1 + 1))\n");
    run.wait_for("here-2");
    run.type_in(DETACH);
    assert_eq!(run.end(), (Some(0), true));
    // `start -ai` attaches to a running container too.
    for command in [&["attach", "shell"][..], &["start", "-ai", "shell"]] {
        let mut attached = Terminal::run_session(&daemon.command(command), 24, 80);
        attached.type_in("echo $word-$((2 + 3))\n");
        attached.wait_for("kept-5");
        attached.type_in(DETACH);
        assert_eq!(attached.end(), (Some(0), true));
    }
    let mut last = Terminal::run_session(&daemon.command(["attach", "shell"]), 24, 80);
    last.type_in("exit 3\n");
    assert_eq!(last.end(), (Some(3), true));
    assert_eq!(state(&daemon, "shell"), "exited");
}

/// Every client sees all output, and each may type; a client that leaves, in whatever way, does not end the others.
#[test]
fn several_look_and_type_at_once() {
    let daemon = Daemon::with_busybox();
    let script = "while read word; do echo out-$word; echo err-$word >&2; done; echo end of input";
    daemon.hoist(["run", "-di", "--name", "box", "--network", "none", "busybox", "sh", "-c", script]).ok();
    let join = |word: &str| {
        let mut one = Attached::to(&daemon, &["attach", "box"]);
        one.type_in(word);
        assert_eq!(one.line(), format!("out-{word}"));
        one
    };
    let mut first = join("first");
    let mut second = join("second");
    assert_eq!(first.line(), "out-second");
    let mut looker = Attached::to(&daemon, &["attach", "--no-stdin", "box"]);
    // Output before it is attached does not reach it.
    let mut said = 0;
    let seen = {
        let (send, lines) = std::sync::mpsc::channel();
        let stdout = std::mem::replace(&mut looker.stdout, BufReader::new(nobody()));
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
        eventually("the looker sees what the others say", || {
            first.type_in("hello");
            assert_eq!((first.line().as_str(), second.line().as_str()), ("out-hello", "out-hello"));
            said += 1;
            lines.try_recv().ok().map(|line| assert_eq!(line, "out-hello"))
        });
        lines
    };
    first.kill();
    // The end of one client's input is not the end of the container's.
    drop(second.stdin.take());
    let third = join("third");
    assert_eq!(second.line(), "out-third");
    third.kill();
    let mut fourth = join("fourth");
    assert_eq!(second.line(), "out-fourth");
    daemon.hoist(["kill", "box"]).ok();
    assert_eq!(fourth.line(), "", "that is the end of its output");
    let mut errors = String::new();
    fourth.child.stderr.as_mut().expect("piped").read_to_string(&mut errors).expect("text");
    assert_eq!(errors, "err-fourth\n", "the two outputs stay apart");
    assert_eq!((second.end(), fourth.end(), looker.end()), (Some(137), Some(137), Some(137)));
    let rest: Vec<String> = seen.iter().filter(|line| line != "out-hello").collect();
    assert_eq!(rest, ["out-third", "out-fourth"], "it missed nothing ({said} times hello)");
}

fn nobody() -> ChildStdout {
    let mut child = Command::new("true").stdout(Stdio::piped()).spawn().expect("it starts");
    let stdout = child.stdout.take().expect("piped");
    child.wait().expect("a child of ours");
    stdout
}

/// With `create -i` and without `-d`, the end of the client's input is the end of the container's. After a restart the
/// container has a new input.
#[test]
fn an_input_ends_with_the_one_who_types_where_that_was_asked_for() {
    let daemon = Daemon::with_busybox();
    let create = |name: &str, flag: &str, script: &str| {
        let flags = ["create", "-i", "--name", name, "--network", "none", flag, "busybox", "sh", "-c"];
        daemon.hoist(flags.iter().chain([&script])).ok();
        daemon.hoist(["start", name]).ok();
    };
    create("once", "--restart=no", "cat; echo end; exit 4");
    let mut one = Attached::to(&daemon, &["attach", "once"]);
    one.type_in("typed");
    drop(one.stdin.take());
    assert_eq!((one.line(), one.line()), ("typed".into(), "end".into()));
    assert_eq!(one.end(), Some(4));

    create("again", "--restart=always", "read word; echo got-$word; exit 5");
    for word in ["one", "two"] {
        wait_until_running(&daemon, "again");
        let mut one = Attached::to(&daemon, &["attach", "again"]);
        one.type_in(word);
        assert_eq!(one.line(), format!("got-{word}"));
        assert_eq!(one.end(), Some(5));
    }
    daemon.hoist(["rm", "-f", "again"]).ok();
}

#[test]
fn who_is_attached_stays_so_beyond_the_daemon() {
    let mut daemon = Daemon::with_busybox();
    let script = "while read word; do test $word = stop && exit 9; echo out-$word; done";
    daemon.hoist(["run", "-di", "--name", "box", "--network", "none", "busybox", "sh", "-c", script]).ok();
    let mut one = Attached::to(&daemon, &["attach", "box"]);
    let say = |one: &mut Attached, word: &str| {
        one.type_in(word);
        assert_eq!(one.line(), format!("out-{word}"));
    };
    say(&mut one, "before");
    daemon.kill();
    say(&mut one, "without");
    daemon.start_again();
    say(&mut one, "after");
    let mut other = Attached::to(&daemon, &["attach", "box"]);
    say(&mut other, "other");
    assert_eq!(one.line(), "out-other");
    other.type_in("stop");
    assert_eq!((one.end(), other.end()), (Some(9), Some(9)));
}

#[test]
fn signals_are_for_the_container_or_for_the_client() {
    let daemon = Daemon::with_busybox();
    let script = "for signal in HUP INT QUIT TERM USR1 USR2; do trap 'echo signal; exit 6' $signal; done
        echo ready; while read word; do echo $word; done";
    let passed = [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::USR1, Signal::USR2];
    let passed = passed.map(|signal| ("--sig-proxy", signal, 6, "exited"));
    let kept = [
        ("--sig-proxy=false", Signal::TERM, 143, "running"),
        ("--sig-proxy=false", Signal::QUIT, 131, "running"),
    ];
    for (flag, signal, code, after) in kept.into_iter().chain(passed) {
        daemon.hoist(["rm", "-f", "box"]);
        daemon
            .hoist(["run", "-di", "--name", "box", "--network", "none", "busybox", "sh", "-c", script])
            .ok();
        let mut one = Attached::to(&daemon, &["attach", flag, "box"]);
        one.type_in("word");
        while one.line() != "word" {}
        let pid = rustix::process::Pid::from_child(&one.child);
        rustix::process::kill_process(pid, signal).expect("it is there");
        assert_eq!(one.end(), Some(code), "{flag} {signal:?}");
        assert_eq!(state(&daemon, "box"), after, "{flag} {signal:?}");
    }
}

#[test]
fn what_cannot_be_attached_to_is_said() {
    let daemon = Daemon::with_busybox();
    let refused = |arguments: &[&str], words: &str| {
        daemon.hoist(["attach"].iter().chain(arguments)).expect_code(1).expect_stderr(words);
    };
    refused(&["nobody"], "nobody");
    daemon.hoist(["create", "--name", "box", "--network", "none", "busybox", "sleep", "1000"]).ok();
    refused(&["box"], "does not run: start it");
    daemon.hoist(["start", "box"]).ok();
    daemon.hoist(["pause", "box"]).ok();
    refused(&["box"], "is paused: unpause it");
    daemon.hoist(["unpause", "box"]).ok();
    refused(&["--detach-keys", "ctrl-1", "box"], "ctrl-1");
    daemon.hoist(["run", "-dit", "--name", "tty", "--network", "none", "busybox", "sh"]).ok();
    refused(&["tty"], "--no-stdin");
    // A container of another client of the daemon, whose output is not logged.
    daemon.ctr(["containers", "create", "docker.io/library/busybox:latest", "foreign", "true"]).ok();
    refused(&["foreign"], "foreign");
}

/// A `run` that is interrupted leaves no running container, no id file without an id, and no pipes.
#[test]
fn a_run_that_is_broken_off_leaves_nothing_that_runs() {
    let daemon = Daemon::with_busybox();
    let file = daemon.dir().join("cid");
    let script = "trap 'exit 130' INT; while :; do sleep 0.05; done";
    for round in 0..8 {
        let words = ["run", "--rm", "--network", "none", "--cidfile"];
        let mut command = daemon.command(words);
        command.arg(&file).args(["busybox", "sh", "-c", script]);
        let mut child = command.stdout(Stdio::null()).spawn().expect("it starts");
        let pid = rustix::process::Pid::from_child(&child);
        // From here on `run` asks the daemon for the container.
        eventually("it has begun", || file.exists().then_some(()));
        let code = eventually("it ends", || {
            rustix::process::kill_process(pid, Signal::INT).expect("it is there");
            child.try_wait().expect("a child of ours").map(|ended| ended.code())
        });
        assert_eq!(code, Some(130), "round {round}");
        let id = std::fs::read_to_string(&file).ok();
        assert!(id.as_ref().is_none_or(|id| id.len() == 64), "round {round}: {id:?}");
        let _ = std::fs::remove_file(&file);
        eventually("nothing is left of it", || {
            daemon.hoist(["ps", "-aq"]).ok().text().is_empty().then_some(())
        });
        let socket = daemon.socket();
        let beside =
            std::fs::read_dir(socket.parent().expect("it is in a directory")).expect("its directory");
        let names = beside.map(|entry| entry.expect("readable").file_name().into_string().expect("text"));
        assert!(!names.into_iter().any(|name| name.starts_with("hoist-")), "round {round}");
    }
}

/// A client with another `/tmp` than the daemon's, such as a service with `PrivateTmp=`.
#[test]
fn streams_need_no_common_tmp() {
    let daemon = Daemon::with_busybox();
    let run = daemon.command(["run", "--rm", "--network", "none", "busybox", "echo", "heard"]);
    let mut apart = Command::new("unshare");
    apart.args(["-m", "sh", "-c", "mount -t tmpfs none /tmp && exec \"$@\"", "sh"]);
    apart.arg(run.get_program()).args(run.get_args()).env("TMPDIR", "/tmp");
    for (key, value) in run.get_envs() {
        if let Some(value) = value {
            apart.env(key, value);
        }
    }
    assert_eq!(testkit::run(&mut apart).ok().text(), "heard");
}
