//! Runs tests, and says at the end what failed.
//!
//! ```text
//! cargo test ─▶ its output, as it comes
//!            └▶ failures ─▶ few: once more, alone ─▶ all of them again at the end, with what each printed
//! ```
//!
//! A run of all tests prints thousands of lines; who reads it afterwards, perhaps only its end, wants the few that matter.
//! A test that passes alone what it failed among the others has found a race, in itself or in what it tests: that is told,
//! and does not stop the rest from being tested. What died without telling its failures is not tried again.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use stdx::Mutex;

use super::{Outcome, tell_time};

/// Flags of `cargo test` whose value is the next word, if it is not joined to them.
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

/// Flags of `cargo test` that say which targets.
const TARGETS: &[&str] =
    &["all-targets", "bench", "benches", "bin", "bins", "doc", "example", "examples", "lib", "test", "tests"];

/// With more of them something is broken, and not by chance.
const TRIED_AGAIN_MAX: usize = 3;

/// Lines of a failure that are shown again: the message, and the beginning of what surrounds it.
const SHOWN_LINES_MAX: usize = 60;

/// How long what was written is read on after the tests have ended. Something that they left running may hold their
/// output open for ever.
const REST: Duration = Duration::from_secs(10);

/// Tests that failed among the others and passed alone, by their names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Unsteady(Vec<String>);

impl Unsteady {
    pub(crate) fn and(mut self, more: Unsteady) -> Unsteady {
        self.0.extend(more.0);
        self
    }

    /// The last words about a run that passed: a race that was found is not to be lost among thousands of lines.
    pub(crate) fn verdict(&self) -> String {
        match self.0.len() {
            0 => "all tests passed".to_owned(),
            number => format!(
                "PASSED WITH {number} UNSTEADY (failed among the others, passed alone): {}",
                self.0.join(" ")
            ),
        }
    }
}

/// Runs tests to their end. `again` runs those named, alone.
pub(crate) fn run(
    what: &str,
    tests: &mut Command,
    again: impl FnOnce(&[&str]) -> Command,
) -> Outcome<Unsteady> {
    let (succeeded, report) = watch(what, tests)?;
    if succeeded {
        return Ok(Unsteady::default());
    }
    let names: Vec<&str> = report.failed.iter().map(String::as_str).collect();
    let mut passed = false;
    if report.is_whole() && (1..=TRIED_AGAIN_MAX).contains(&names.len()) {
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
        return Ok(Unsteady(report.failed));
    }
    let died = if report.is_whole() { "" } else { " (and a test program died)" };
    Err(format!(
        "{what}: failed: {}{died}",
        if names.is_empty() { "see above".to_owned() } else { names.join(" ") }
    ))
}

/// The words after `cargo test` for these tests, one after another: of what was selected by these words, or of all.
pub(crate) fn alone<'a>(selection: &[&'a str], tests: &[&'a str]) -> Vec<&'a str> {
    [selection, &["--", "--exact", "--test-threads=1"], tests].concat()
}

/// Whether words for `cargo test` say which targets: with `--all-targets` beside them, cargo would test all.
pub(crate) fn names_targets(words: &[&str]) -> bool {
    let is_target = |word: &&str| {
        let name = word.strip_prefix("--").map(|flag| flag.split('=').next().unwrap_or(flag));
        name.is_some_and(|name| TARGETS.contains(&name))
    };
    words.iter().take_while(|word| **word != "--").any(is_target)
}

/// Whether words for `cargo test` say which packages: with `--workspace` beside them, cargo would test all.
pub(crate) fn names_packages(words: &[&str]) -> bool {
    let is_package = |word: &&str| {
        let long = word.strip_prefix("--package");
        long.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
            || (word.starts_with("-p") && !word.starts_with("--"))
    };
    words.iter().take_while(|word| **word != "--").any(is_package)
}

/// Those words of a `cargo test` that select packages and targets and how they are built, without the filters: words that
/// stand alone, and what comes after `--`.
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

/// Whether the command succeeded, and what its output says. That is passed on as it comes.
fn watch(what: &str, command: &mut Command) -> Outcome<(bool, Report)> {
    let begun = Instant::now();
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{what}: cannot start {command:?}: {error}"))?;
    let output = child.stdout.take().ok_or("a pipe was asked for")?;
    let report = Arc::new(Mutex::new(Report::default()));
    let (ended, end) = mpsc::channel();
    let reader = Arc::clone(&report);
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n') {
            let Ok(line) = line else { break };
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            reader.lock().read(&line);
        }
        // Nobody listens any more if something held it open.
        let _ = ended.send(());
    });
    let status = child.wait().map_err(|error| format!("{what}: {error}"))?;
    let _ = end.recv_timeout(REST);
    tell_time(what, begun);
    let report = std::mem::take(&mut *report.lock());
    Ok((status.success(), report))
}

/// What test programs say, one after another.
#[derive(Debug, Default)]
struct Report {
    /// Tests that failed, by the lists at the ends of their programs.
    failed: Vec<String>,
    /// What failed tests printed.
    outputs: Vec<(String, Vec<String>)>,
    passed: usize,
    /// Programs that began, and programs that came to their end.
    begun: usize,
    ended: usize,
    part: Part,
}

/// Where in a program's output a line stands.
#[derive(Debug, Default)]
enum Part {
    #[default]
    Results,
    /// Of the last of `outputs`.
    Output,
    /// After the word `failures:`, which stands before the outputs and before the list.
    List,
}

impl Report {
    /// Whether every program that began said how it ended.
    fn is_whole(&self) -> bool {
        self.begun == self.ended
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
    fn failures_are_found_with_what_they_printed() {
        let (succeeded, report) =
            watch("tests", &mut prints(&(FAILED.to_owned() + &passed(4)), 101)).unwrap();
        assert!(!succeeded && report.is_whole());
        assert_eq!(report.passed, 5);
        assert_eq!(report.failed, ["a::breaks", "b::is_silent"]);
        let output = ["thread a::breaks panicked at src/a.rs:1:", "    left: 1", "", ""].map(str::to_owned);
        assert_eq!(report.outputs, [("a::breaks".to_owned(), output.to_vec())]);
    }

    #[test]
    fn few_failures_are_tried_again_and_count_if_they_stay() {
        let again = |text: &str, code: u8| {
            run("tests", &mut prints(FAILED, 101), |names| {
                assert_eq!(names, ["a::breaks", "b::is_silent"]);
                prints(text, code)
            })
        };
        let stay = Err("tests: failed: a::breaks b::is_silent".to_owned());
        let unsteady = again(&passed(2), 0).expect("they pass alone");
        assert_eq!(unsteady, Unsteady(["a::breaks", "b::is_silent"].map(str::to_owned).to_vec()));
        let twice = Unsteady::default().and(unsteady);
        assert_eq!(
            twice.verdict(),
            "PASSED WITH 2 UNSTEADY (failed among the others, passed alone): a::breaks b::is_silent"
        );
        assert_eq!(again(FAILED, 101), stay);
        assert_eq!(again(&passed(1), 0), stay, "one of them did not run");
        assert_eq!(
            run("tests", &mut prints("", 0), |_| unreachable!("none failed")),
            Ok(Unsteady::default())
        );
    }

    #[test]
    fn what_is_tried_again_is_what_was_selected() {
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
    fn what_is_no_chance_is_not_tried_again() {
        let never = |text: &str| {
            run("tests", &mut prints(text, 101), |_| unreachable!("not again")).expect_err("they failed")
        };
        assert_eq!(never(""), "tests: failed: see above", "it does not compile");
        never(&FAILED.repeat(2));
        for text in [DIED.to_owned() + FAILED, FAILED.to_owned() + DIED] {
            assert_eq!(never(&text), "tests: failed: a::breaks b::is_silent (and a test program died)");
        }
    }

    #[test]
    fn what_tests_leave_running_is_not_waited_for() {
        let mut leaves = Command::new("sh");
        leaves.args(["-c", &format!("printf '%s' '{}'; sleep 600 2>/dev/null & echo $!; exit 0", passed(1))]);
        let (succeeded, report) = watch("tests", &mut leaves).unwrap();
        assert!(succeeded && report.passed == 1);
    }
}
