//! Runs tests, and says at the end what failed.
//!
//! ```text
//! cargo test ─▶ its output, as it comes
//!            └▶ failures ─▶ few: once more, alone ─▶ all of them again at the end, with what each printed
//! ```
//!
//! A run of all tests prints thousands of lines; who reads it afterwards, perhaps only its end, wants the few that matter.
//! A test that passes alone what it failed among the others has found a race, in itself or in what it tests: that is told,
//! and does not stop the rest from being tested.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::Outcome;

/// With more of them something is broken, and not by chance.
const TRIED_AGAIN_MAX: usize = 3;

/// Lines of a failure that are shown again: the message, and the beginning of what surrounds it.
const SHOWN_LINES_MAX: usize = 60;

/// A failed test with what it printed.
#[derive(Debug, PartialEq)]
struct Failure {
    test: String,
    output: Vec<String>,
}

/// Runs tests to their end. `again` runs those named, alone.
pub(crate) fn run(what: &str, tests: &mut Command, again: impl FnOnce(&[&str]) -> Command) -> Outcome {
    let (succeeded, failures) = watch(what, tests)?;
    if succeeded {
        return Ok(());
    }
    let names: Vec<&str> = failures.iter().map(|failure| failure.test.as_str()).collect();
    let mut passed = false;
    if (1..=TRIED_AGAIN_MAX).contains(&names.len()) {
        println!("\nonce more, alone: {}", names.join(" "));
        (passed, _) = watch(what, &mut again(&names))?;
    }
    for failure in &failures {
        println!("\n==== failed: {}", failure.test);
        for line in failure.output.iter().take(SHOWN_LINES_MAX) {
            println!("{line}");
        }
    }
    if passed {
        println!("\n==== {what}: passed alone, and failed among the others: {}", names.join(" "));
        return Ok(());
    }
    Err(format!(
        "{what}: failed: {}",
        if names.is_empty() { "see above".to_owned() } else { names.join(" ") }
    ))
}

/// The words after `cargo test` for these tests, one after another.
pub(crate) fn alone<'a>(tests: &[&'a str]) -> Vec<&'a str> {
    [&["--all-targets", "--", "--exact", "--test-threads=1"], tests].concat()
}

/// Whether the command succeeded, and what failed in it. Its output is passed on as it comes.
fn watch(what: &str, command: &mut Command) -> Outcome<(bool, Vec<Failure>)> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{what}: cannot start {command:?}: {error}"))?;
    let mut failures = Failures::default();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).split(b'\n') {
            let line = line.map_err(|error| format!("{what}: read its output: {error}"))?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            failures.read(&line);
        }
    }
    let status = child.wait().map_err(|error| format!("{what}: {error}"))?;
    Ok((status.success(), failures.found))
}

/// Finds the failures in the output of test programs.
#[derive(Default)]
struct Failures {
    found: Vec<Failure>,
    /// Whether what comes is of the last one found.
    is_inside: bool,
}

impl Failures {
    fn read(&mut self, line: &str) {
        if let Some(test) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            self.found.push(Failure { test: test.to_owned(), output: Vec::new() });
            self.is_inside = true;
        } else if line == "failures:" {
            self.is_inside = false;
        } else if self.is_inside
            && let Some(last) = self.found.last_mut()
        {
            last.output.push(line.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: &str = "\
running 3 tests
test a::fine ... ok
test a::breaks ... FAILED
test b::breaks_too ... FAILED

failures:

---- a::breaks stdout ----
thread a::breaks panicked at src/a.rs:1:
left: 1

---- b::breaks_too stdout ----
no

failures:
    a::breaks
    b::breaks_too

test result: FAILED. 1 passed; 2 failed
";

    fn prints(text: &str, code: u8) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("printf '%s' '{text}'; exit {code}")]);
        command
    }

    #[test]
    fn failures_are_found_with_what_they_printed() {
        let (succeeded, found) = watch("tests", &mut prints(FAILED, 101)).unwrap();
        assert!(!succeeded);
        let lines = |lines: &[&str]| lines.iter().map(ToString::to_string).collect::<Vec<_>>();
        let expected = [
            ("a::breaks", lines(&["thread a::breaks panicked at src/a.rs:1:", "left: 1", ""])),
            ("b::breaks_too", lines(&["no", ""])),
        ];
        let expected = expected.map(|(test, output)| Failure { test: test.to_owned(), output });
        assert_eq!(found, expected);
    }

    #[test]
    fn few_failures_are_tried_again_and_count_if_they_stay() {
        let again = |code: u8| {
            run("tests", &mut prints(FAILED, 101), |names| {
                assert_eq!(names, ["a::breaks", "b::breaks_too"]);
                prints("", code)
            })
        };
        assert_eq!(again(0), Ok(()));
        assert_eq!(again(101), Err("tests: failed: a::breaks b::breaks_too".to_owned()));
        // What does not compile, or is killed, has no names.
        let nothing = run("tests", &mut prints("", 101), |_| unreachable!("nothing to try again"));
        assert_eq!(nothing, Err("tests: failed: see above".to_owned()));
        let many = FAILED.repeat(2);
        run("tests", &mut prints(&many, 101), |_| unreachable!("too many")).unwrap_err();
        assert_eq!(run("tests", &mut prints("", 0), |_| unreachable!("none failed")), Ok(()));
    }
}
