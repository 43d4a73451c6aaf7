//! `exec` on a terminal: input, output, size.

use testkit::{Daemon, Terminal};

#[test]
fn exec_runs_on_a_terminal_that_changes_its_size() {
    let daemon = Daemon::with_busybox();
    daemon.hoist(["run", "-d", "--name", "host", "--network", "none", "busybox", "sleep", "1000"]).ok();
    let script = "test -t 0 && test -t 1 && test -t 2 || exit 9
        until stty size | grep -q '^33 101$'; do usleep 10000; done; echo as it was
        read word; echo got-$word
        until stty size | grep -q '^20 66$'; do usleep 10000; done; echo as it became
        exit 3";
    let exec = daemon.command(["exec", "-it", "host", "sh", "-c", script]);
    let mut terminal = Terminal::run_session(&exec, 33, 101);
    terminal.wait_for("as it was");
    terminal.type_in("typed\n");
    terminal.wait_for("got-typed");
    terminal.resize(20, 66);
    terminal.wait_for("as it became");
    assert_eq!(terminal.end(), (Some(3), true), "the code is the command's, and the terminal as it was");
    assert_eq!(daemon.hoist(["inspect", "-f", "{{.State.Status}}", "host"]).ok().text(), "running");
}
