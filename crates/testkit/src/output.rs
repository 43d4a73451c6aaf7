//! Finished commands, with what they said, in a form that makes failures readable.

use std::process::Command;

/// A command that ran to its end.
#[derive(Clone, Debug)]
pub struct Finished {
    pub command: String,
    /// The exit status; 128 + n for a command killed by signal n.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// Panics, telling everything, unless the command exited with `code`.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Finished {
        assert_eq!(self.code, code, "{self}");
        self
    }

    #[track_caller]
    pub fn ok(self) -> Finished {
        self.expect_code(0)
    }

    /// Panics unless the error output contains `text`.
    #[track_caller]
    pub fn expect_stderr(self, text: &str) -> Finished {
        assert!(self.stderr.contains(text), "stderr has no {text:?}\n{self}");
        self
    }

    /// Standard output without the white space around it.
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

/// Runs a command to its end.
#[track_caller]
pub fn run(command: &mut Command) -> Finished {
    use std::os::unix::process::ExitStatusExt;
    let shown = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ");
    let output = command.output().unwrap_or_else(|error| panic!("{shown}: {error}"));
    Finished {
        command: shown,
        code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0)),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
