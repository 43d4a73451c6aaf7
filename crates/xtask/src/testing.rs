//! Runs tests, and prints a summary of the failures at the end.
//!
//! ```text
//! cargo test ─▶ its output, passed through
//!            └▶ failures ─▶ if few: run once more, alone ─▶ all failures again at the end, with their output
//! ```
//!
//! Several commands may run side by side. Their lines come as they are printed, and each has a report of its own.
//!
//! A run of all tests prints thousands of lines; the summary at the end has the few that matter. A test that fails
//! among the others and passes alone has found a race, in itself or in the code under test: the summary names it as
//! flaky, and the run goes on. Tests are not retried if a test program died before it listed its failures.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use stdx::Mutex;

use super::{Outcome, tell_time};

/// Flags of `cargo test` whose value may be the next word.
const HAVE_VALUES: &[&str] = &[
    "-p",
    "--package",
    "--exclude",
    "--test",
    "--bin",
    "--example",
    "--bench",
    "-F",
    "--features",
    "--target",
    "--profile",
    "-j",
    "--jobs",
];

/// Flags of `cargo test` that select targets.
const TARGETS: &[&str] =
    &["all-targets", "bench", "benches", "bin", "bins", "doc", "example", "examples", "lib", "test", "tests"];

/// More failures than this are no accident, and are not retried.
const RETRIES_MAX: usize = 3;

/// The number of lines of a failed test's output in the summary: the message, and the beginning of the backtrace.
const SHOWN_LINES_MAX: usize = 60;

/// How long output is read after the tests have ended. A process that a test left running may hold the pipe open for
/// ever.
const OUTPUT_WAIT_MAX: Duration = Duration::from_secs(10);

/// The names of tests that failed among the others and passed alone.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Flaky(Vec<String>);

impl Flaky {
    pub(crate) fn and(mut self, more: Flaky) -> Flaky {
        self.0.extend(more.0);
        self
    }

    /// The last line about a run that passed. It names flaky tests, so that they are not lost among thousands of lines.
    pub(crate) fn verdict(&self) -> String {
        match self.0.len() {
            0 => "all tests passed".to_owned(),
            number => format!(
                "PASSED WITH {number} FLAKY (failed among the others, passed alone): {}",
                self.0.join(" ")
            ),
        }
    }
}

/// Runs commands that run tests, each with its name, side by side to their end. `again` returns the command that runs the
/// named tests alone.
pub(crate) fn run(
    what: &str,
    tests: &mut [(&str, Command)],
    again: impl FnOnce(&[&str]) -> Command,
) -> Outcome<Flaky> {
    let (succeeded, report) = watch_all(tests)?;
    if succeeded {
        return Ok(Flaky::default());
    }
    let names: Vec<&str> = report.failed.iter().map(String::as_str).collect();
    let mut passed = false;
    if report.is_whole() && (1..=RETRIES_MAX).contains(&names.len()) {
        println!("\nonce more, alone: {}", names.join(" "));
        let (succeeded, report) = watch(what, &mut again(&names))?;
        passed = succeeded && report.passed >= names.len();
    }
    for (test, output) in &report.outputs {
        println!("\n==== failed: {test}");
        for line in output.iter().take(SHOWN_LINES_MAX) {
            println!("{line}");
        }
    }
    if passed {
        println!("\n==== {what}: passed alone, and failed among the others: {}", names.join(" "));
        return Ok(Flaky(report.failed));
    }
    let died = if report.is_whole() { "" } else { " (and a test program died)" };
    Err(format!(
        "{what}: failed: {}{died}",
        if names.is_empty() { "see above".to_owned() } else { names.join(" ") }
    ))
}

/// Arguments of `cargo test` that run these tests one after another, within the packages and targets of `selection`.
pub(crate) fn alone<'a>(selection: &[&'a str], tests: &[&'a str]) -> Vec<&'a str> {
    [selection, &["--", "--exact", "--test-threads=1"], tests].concat()
}

/// Whether arguments of `cargo test` select targets. With `--tests` beside them, cargo would test all.
pub(crate) fn names_targets(words: &[&str]) -> bool {
    let is_target = |word: &&str| {
        let name = word.strip_prefix("--").map(|flag| flag.split('=').next().unwrap_or(flag));
        name.is_some_and(|name| TARGETS.contains(&name))
    };
    words.iter().take_while(|word| **word != "--").any(is_target)
}

/// Whether arguments of `cargo test` select packages. With `--workspace` beside them, cargo would test all.
pub(crate) fn names_packages(words: &[&str]) -> bool {
    let is_package = |word: &&str| {
        let long = word.strip_prefix("--package");
        long.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
            || (word.starts_with("-p") && !word.starts_with("--"))
    };
    words.iter().take_while(|word| **word != "--").any(is_package)
}

/// The arguments of `cargo test` that select packages and targets and control the build. Filters, which are words
/// without a flag, and the arguments after `--` are left out.
pub(crate) fn selection<'a>(words: &[&'a str]) -> Vec<&'a str> {
    let mut selected = Vec::new();
    let mut words = words.iter().copied().take_while(|word| *word != "--");
    while let Some(word) = words.next() {
        if !word.starts_with('-') {
            continue;
        }
        selected.push(word);
        if HAVE_VALUES.contains(&word) {
            selected.extend(words.next());
        }
    }
    selected
}

/// Runs commands side by side, as [`watch`] runs each. Returns whether all succeeded, and one report of all.
fn watch_all(tests: &mut [(&str, Command)]) -> Outcome<(bool, Report)> {
    let watched: Vec<Outcome<(bool, Report)>> = thread::scope(|scope| {
        let watching: Vec<_> =
            tests.iter_mut().map(|(what, command)| scope.spawn(move || watch(what, command))).collect();
        watching.into_iter().map(|watching| watching.join().expect("it does not panic")).collect()
    });
    let (mut all_succeeded, mut all) = (true, Report::default());
    for one in watched {
        let (succeeded, report) = one?;
        all_succeeded &= succeeded;
        all.add(report);
    }
    Ok((all_succeeded, all))
}

/// Runs a command and passes its output through. Returns whether it succeeded, and the report parsed from the output.
fn watch(what: &str, command: &mut Command) -> Outcome<(bool, Report)> {
    watch_for(what, command, OUTPUT_WAIT_MAX)
}

/// As [`watch`], with the longest that output is read after the end.
fn watch_for(what: &str, command: &mut Command, output_wait_max: Duration) -> Outcome<(bool, Report)> {
    let begun = Instant::now();
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{what}: cannot start {command:?}: {error}"))?;
    let output = child.stdout.take().ok_or("a pipe was asked for")?;
    let report = Arc::new(Mutex::new(Report::default()));
    let (ended, end) = mpsc::channel();
    let reader = Arc::clone(&report);
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n') {
            let Ok(line) = line else { break };
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            reader.lock().read(&line);
        }
        // The receiver is gone if a process held the pipe open past the limit.
        let _ = ended.send(());
    });
    let status = child.wait().map_err(|error| format!("{what}: {error}"))?;
    let _ = end.recv_timeout(output_wait_max);
    tell_time(what, begun);
    let report = std::mem::take(&mut *report.lock());
    Ok((status.success(), report))
}

/// The results of one or more test programs.
#[derive(Debug, Default)]
struct Report {
    /// Failed tests, from the list at the end of each program's output.
    failed: Vec<String>,
    /// The failed tests' output.
    outputs: Vec<(String, Vec<String>)>,
    passed: usize,
    /// The number of programs that started, and of those that printed their summary.
    begun: usize,
    ended: usize,
    part: Part,
}

/// The section of a program's output that the parser is in.
#[derive(Debug, Default)]
enum Part {
    #[default]
    Results,
    /// The output of the last test in `outputs`.
    Output,
    /// After the line `failures:`, which stands before the outputs and before the list.
    List,
}

impl Report {
    /// Whether every program that started also printed its summary.
    fn is_whole(&self) -> bool {
        self.begun == self.ended
    }

    fn add(&mut self, more: Report) {
        self.failed.extend(more.failed);
        self.outputs.extend(more.outputs);
        self.passed += more.passed;
        self.begun += more.begun;
        self.ended += more.ended;
    }

    fn read(&mut self, line: &str) {
        let is_count = |rest: &str| rest.ends_with(" test") || rest.ends_with(" tests");
        if line.strip_prefix("running ").is_some_and(is_count) {
            self.begun += 1;
            self.part = Part::Results;
        } else if let Some(result) = line.strip_prefix("test result: ") {
            self.ended += 1;
            self.part = Part::Results;
            let passed = result.split(' ').nth(1).and_then(|number| number.parse::<usize>().ok());
            self.passed += passed.unwrap_or(0);
        } else if let Some(test) =
            line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"))
        {
            self.outputs.push((test.to_owned(), Vec::new()));
            self.part = Part::Output;
        } else if line == "failures:" {
            self.part = Part::List;
        } else {
            match (&self.part, line.strip_prefix("    ")) {
                (Part::List, Some(test)) => self.failed.push(test.to_owned()),
                (Part::Output, _) => {
                    self.outputs.last_mut().into_iter().for_each(|(_, output)| output.push(line.to_owned()));
                }
                _ => {}
            }
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
test b::is_silent ... FAILED

failures:

---- a::breaks stdout ----
thread a::breaks panicked at src/a.rs:1:
    left: 1


failures:
    a::breaks
    b::is_silent

test result: FAILED. 1 passed; 2 failed; 0 ignored
";
    const DIED: &str = "running 2 tests\ntest c::one ... ok\n";

    fn passed(number: usize) -> String {
        format!("running {number} tests\n\ntest result: ok. {number} passed; 0 failed; 0 ignored\n")
    }

    fn prints(text: &str, code: u8) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("printf '%s' '{text}'; exit {code}")]);
        command
    }

    #[test]
    fn failed_tests_are_found_with_their_output() {
        let (succeeded, report) =
            watch("tests", &mut prints(&(FAILED.to_owned() + &passed(4)), 101)).unwrap();
        assert!(!succeeded && report.is_whole());
        assert_eq!(report.passed, 5);
        assert_eq!(report.failed, ["a::breaks", "b::is_silent"]);
        let output = ["thread a::breaks panicked at src/a.rs:1:", "    left: 1", "", ""].map(str::to_owned);
        assert_eq!(report.outputs, [("a::breaks".to_owned(), output.to_vec())]);
    }

    #[test]
    fn few_failures_are_retried_and_count_if_they_stay() {
        let again = |text: &str, code: u8| {
            run("tests", &mut [("tests", prints(FAILED, 101))], |names| {
                assert_eq!(names, ["a::breaks", "b::is_silent"]);
                prints(text, code)
            })
        };
        let stay = Err("tests: failed: a::breaks b::is_silent".to_owned());
        let flaky = again(&passed(2), 0).expect("they pass alone");
        assert_eq!(flaky, Flaky(["a::breaks", "b::is_silent"].map(str::to_owned).to_vec()));
        let twice = Flaky::default().and(flaky);
        assert_eq!(
            twice.verdict(),
            "PASSED WITH 2 FLAKY (failed among the others, passed alone): a::breaks b::is_silent"
        );
        assert_eq!(again(FAILED, 101), stay);
        assert_eq!(again(&passed(1), 0), stay, "one of them did not run");
        let passes = || ("tests", prints("", 0));
        assert_eq!(run("tests", &mut [passes()], |_| unreachable!("none failed")), Ok(Flaky::default()));
    }

    #[test]
    fn retries_keep_the_selection_of_packages_and_targets() {
        let words = ["-p", "systest", "--test=it", "--release", "gc::", "--", "--nocapture", "gc::one"];
        let selected = selection(&words);
        assert_eq!(selected, ["-p", "systest", "--test=it", "--release"]);
        for words in [&selected[..], &["-pxtask"], &["--package=xtask"], &["gc::", "--package", "systest"]] {
            assert!(names_packages(words), "{words:?}");
        }
        for words in [&["gc::"][..], &["--profile", "shim"], &["--", "-p"], &["--exclude", "systest"]] {
            assert!(!names_packages(words), "{words:?}");
        }
        let exact = ["--", "--exact", "--test-threads=1", "gc::one"];
        assert_eq!(alone(&selected, &["gc::one"]), [&selected[..], &exact].concat());
        assert_eq!(selection(&["gc::", "--"]), [""; 0], "all packages");
        assert_eq!(alone(&[], &["gc::one"]), exact);
        assert!(names_targets(&selected) && names_targets(&["--doc"]));
        for words in [&["gc::"][..], &["--release", "lib"], &["--", "--test"], &["--test-threads=2"]] {
            assert!(!names_targets(words), "{words:?}");
        }
    }

    #[test]
    fn many_failures_or_a_crash_are_not_retried() {
        let never = |text: &str| {
            let mut tests = [("tests", prints(text, 101))];
            run("tests", &mut tests, |_| unreachable!("not again")).expect_err("they failed")
        };
        assert_eq!(never(""), "tests: failed: see above", "it does not compile");
        never(&FAILED.repeat(2));
        for text in [DIED.to_owned() + FAILED, FAILED.to_owned() + DIED] {
            assert_eq!(never(&text), "tests: failed: a::breaks b::is_silent (and a test program died)");
        }
    }

    #[test]
    fn commands_run_side_by_side_and_are_reported_together() {
        let (told, tell) = std::io::pipe().unwrap();
        let script = |script: &str| {
            let mut command = Command::new("timeout");
            command.args(["60", "sh", "-c", script]);
            command
        };
        // The first waits for the second.
        let mut waits = script(&format!("head -n 1 && printf '%s' '{FAILED}' && exit 101"));
        let mut tells = script(&format!("echo begun >&2; printf '%s' '{}'", passed(4)));
        waits.stdin(told);
        tells.stderr(tell);
        let (succeeded, report) = watch_all(&mut [("one", waits), ("another", tells)]).unwrap();
        assert!(!succeeded && report.is_whole());
        assert_eq!(report.passed, 5);
        assert_eq!(report.failed, ["a::breaks", "b::is_silent"]);
        let (succeeded, report) =
            watch_all(&mut [("one", prints(DIED, 101)), ("another", prints(&passed(4), 0))]).unwrap();
        assert!(!succeeded && !report.is_whole());
    }

    #[test]
    fn output_held_open_by_a_leftover_process_is_not_waited_for() {
        let mut leaves = Command::new("sh");
        leaves.args(["-c", &format!("printf '%s' '{}'; sleep 600 2>/dev/null & echo $!; exit 0", passed(1))]);
        let (succeeded, report) = watch_for("tests", &mut leaves, Duration::from_secs(1)).unwrap();
        assert!(succeeded && report.passed == 1);
    }
}
