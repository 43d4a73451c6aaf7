//! Finished commands with their output, in a form that makes failures readable.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// A command that has ended.
#[derive(Clone, Debug)]
pub struct Finished {
    pub command: String,
    /// The exit status; 128 + n for a command that signal n killed.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// Panics with the whole output unless the command exited with `code`.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Finished {
        assert_eq!(self.code, code, "{self}");
        self
    }

    #[track_caller]
    pub fn ok(self) -> Finished {
        self.expect_code(0)
    }

    /// Panics with the whole output unless standard error contains `text`.
    #[track_caller]
    pub fn expect_stderr(self, text: &str) -> Finished {
        assert!(self.stderr.contains(text), "stderr has no {text:?}\n{self}");
        self
    }

    /// Standard output without surrounding white space.
    pub fn text(&self) -> &str {
        self.stdout.trim()
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "$ {}\nexit {}\n--- stdout\n{}\n--- stderr\n{}",
            self.command, self.code, self.stdout, self.stderr
        )
    }
}

/// Runs a command to its end. Panics if it cannot be started.
#[track_caller]
pub fn run(command: &mut Command) -> Finished {
    let shown = shown(command);
    let output = command.output().unwrap_or_else(|error| panic!("{shown}: {error}"));
    finished(shown, &output)
}

/// As [`run`], for at most `limit`: then the command is killed and the test fails with the text of `state`.
#[track_caller]
pub fn run_within(limit: Duration, command: &mut Command, state: impl FnOnce() -> String) -> Finished {
    let shown = shown(command);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.unwrap_or_else(|error| panic!("{shown}: {error}"));
    let pid = Pid::from_child(&child);
    let (send, receive) = mpsc::channel();
    let waiting = thread::spawn(move || send.send(child.wait_with_output()));
    let Ok(output) = receive.recv_timeout(limit) else {
        let state = state();
        // The command may have ended just now. A process that the kernel does not let go is not waited for.
        let _gone = kill_process(pid, Signal::KILL);
        panic!("{shown}: did not end within {limit:?}\n{state}");
    };
    // The thread has sent its result.
    let _sent = waiting.join();
    finished(shown, &output.expect("a child of ours"))
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

fn finished(command: String, output: &Output) -> Finished {
    Finished {
        command,
        code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0)),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_exceeds_its_limit_is_killed_and_reported() {
        let said = run_within(crate::DEADLINE, Command::new("echo").arg("said"), String::new).ok();
        assert_eq!(said.text(), "said");
        let endless =
            || run_within(Duration::from_millis(1), Command::new("cat").arg("/dev/zero"), || "why".into());
        let panic = std::panic::catch_unwind(endless).unwrap_err();
        let words = panic.downcast::<String>().unwrap();
        assert!(words.contains("cat /dev/zero: did not end") && words.ends_with("why"), "{words}");
    }
}
