//! Hoist's `ctr` and a container's process: keys, signals, and children that keep the output open after the process has
//! ended.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use testkit::{Daemon, Terminal, eventually};

use crate::cgroups::HIERARCHIES;

const OUR_RUNTIME: &str = "io.containerd.hoist.v2";

/// A daemon with busybox, and the image's name.
fn daemon() -> (Daemon, String) {
    let daemon = Daemon::with_busybox();
    let image = daemon.own_ctr(["images", "ls", "-q"]).ok().text().to_owned();
    (daemon, image)
}

/// Starts a client with an open standard input, and reads the first line of its output.
fn started(mut command: Command) -> (Child, BufReader<ChildStdout>, String) {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut output = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    output.read_line(&mut line).expect("text");
    (child, output, line)
}

#[test]
fn who_attaches_to_a_terminal_types_into_it() {
    let _hierarchies = HIERARCHIES.read();
    let (daemon, image) = daemon();
    let script = "echo ready; read word; echo got-$word; exit 3";
    let words = ["run", "-t", "--runtime", OUR_RUNTIME, &image, "typed", "sh", "-c", script];
    let mut run = daemon.own_ctr_command(words);
    // The client makes its pipes in this directory.
    run.env("TMPDIR", daemon.dir());
    let mut first = Terminal::run(run);
    first.wait_for("ready");
    drop(first);
    let mut second = Terminal::run(daemon.own_ctr_command(["tasks", "attach", "typed"]));
    second.type_in("hello\n");
    second.wait_for("got-hello");
    assert_eq!(second.end(), (Some(3), true), "the code is the container's, and the terminal as it was");
    daemon.own_ctr(["containers", "rm", "typed"]).ok();
}

#[test]
fn signals_are_for_the_process() {
    let _hierarchies = HIERARCHIES.read();
    let (daemon, image) = daemon();
    let script = "for signal in HUP INT QUIT TERM USR1 USR2; do trap 'exit 6' $signal; done
        echo ready; while :; do sleep 0.1; done";
    let run = ["run", "--rm", "--runtime", OUR_RUNTIME, &image, "signalled", "sh", "-c", script];
    let exec = ["tasks", "exec", "--exec-id", "one", "beside", "sh", "-c", script];
    daemon.own_ctr(["run", "-d", "--runtime", OUR_RUNTIME, &image, "beside", "sleep", "1000"]).ok();
    for signal in [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::USR1, Signal::USR2] {
        for words in [&run[..], &exec] {
            let (mut child, _output, line) = started(daemon.own_ctr_command(words));
            assert_eq!(line, "ready\n");
            kill_process(Pid::from_child(&child), signal).expect("it is there");
            assert_eq!(child.wait().expect("a child of ours").code(), Some(6), "{words:?} {signal:?}");
        }
    }
    daemon.own_ctr(["tasks", "rm", "-f", "beside"]).ok();
    daemon.own_ctr(["containers", "rm", "beside"]).ok();
}

/// An exec ends although a child of its process keeps the output open.
#[test]
fn an_output_that_is_kept_keeps_nobody() {
    let _hierarchies = HIERARCHIES.read();
    let (daemon, image) = daemon();
    daemon.own_ctr(["run", "-d", "--runtime", OUR_RUNTIME, &image, "keeper", "sleep", "1000"]).ok();
    let exec = |id: &str| {
        let script = "trap '' INT; sleep 1000 & echo out; exit 3";
        daemon.own_ctr_command(["tasks", "exec", "--exec-id", id, "keeper", "sh", "-c", script])
    };
    let (mut patient, _output, line) = started(exec("patient"));
    assert_eq!(line, "out\n");
    assert_eq!(patient.wait().expect("a child of ours").code(), Some(3));
    // A user interrupts the client instead of waiting for the end of the output.
    let (mut hasty, _output, _line) = started(exec("hasty"));
    let code = eventually("it ends", || {
        kill_process(Pid::from_child(&hasty), Signal::INT).expect("a child of ours");
        hasty.try_wait().expect("a child of ours").map(|ended| ended.code())
    });
    assert_eq!(code, Some(130));
    daemon.own_ctr(["tasks", "rm", "-f", "keeper"]).ok();
    daemon.own_ctr(["containers", "rm", "keeper"]).ok();
}
