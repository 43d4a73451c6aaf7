//! The command line of `hoist`, with Docker's commands, over the daemon's API.
//!
//! ```text
//! words ─▶ [`args`] ─▶ connect (or start a daemon) ─▶ [`commands`] ─▶ tables, bars, exit code
//! ```
//!
//! - `commands`: a module for each noun; `parse` reads values of flags.
//! - `completion`: shell completion.
//! - `credentials`: the user's credentials for registries.
//! - `streams`: pipes and terminals of containers; `keys`: detach keys; `signals`: forwarded signals.
//! - `private_folder`: where pipes lie, and files that only the daemon is to read.
//! - `ctr`: a command line compatible with containerd's `ctr`.
//! - `output`: tables; `template`: Go templates of `--format`.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod completion;
mod credentials;
pub mod ctr;
mod daemon;
mod interrupt;
mod keys;
mod listing;
mod lost_output;
mod output;
mod parse;
mod private_folder;
mod progress;
mod signals;
mod streams;
mod template;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use types::{Error, ErrorKind};

/// Runs one command. `args[0]` is the program's name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    lost_output::end_without_panic("hoist");
    match completion::answer(&args) {
        Ok(false) => {}
        Ok(true) => return ExitCode::SUCCESS,
        Err(error) => {
            let _ = error.print();
            return ExitCode::FAILURE;
        }
    }
    let args = without_help_command(args);
    let runs = is_run(&args);
    let (args, parsed) = parse_words(args);
    let parsed = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            let error = match error.kind() {
                clap::error::ErrorKind::MissingSubcommand => help_about(args),
                _ => error,
            };
            let is_help = !error.use_stderr();
            // A failure to print the help, such as a closed pipe, is ignored.
            let _ = error.print();
            return ExitCode::from(if is_help {
                0
            } else if runs {
                125
            } else {
                1
            });
        }
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an executor can be made");
    let outcome = runtime.block_on(commands::run(parsed));
    // A read of standard input may still block a thread; do not wait for it.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            print(&error);
            ExitCode::from(if runs { run_code(&error) } else { 1 })
        }
    }
}

/// Parses the command line. `--rm=true` is rewritten to `--rm`, and `--rm=false` is removed, as Go programs understand
/// both.
fn parse_words(mut args: Vec<OsString>) -> (Vec<OsString>, clap::error::Result<args::Cli>) {
    loop {
        let parsed = args::Cli::try_parse_from(&args);
        let Some((at, word)) = parsed.as_ref().err().and_then(|error| switch(error, &args)) else {
            return (args, parsed);
        };
        args.splice(at..=at, word);
    }
}

/// The position of the word that gives a switch a value, found by clap's error, and the word that replaces it.
fn switch(error: &clap::Error, args: &[OsString]) -> Option<(usize, Option<OsString>)> {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let flag = context(ContextKind::InvalidArg)?;
    match error.kind() {
        ErrorKind::TooManyValues => {
            let value = context(ContextKind::InvalidValue)?;
            let word = is_on(value)?.then(|| flag.into());
            // The first occurrence: later ones are arguments of the container's program.
            let at = args.iter().position(|arg| *arg == *format!("{flag}={value}"))?;
            Some((at, word))
        }
        // For `-d=false` clap reports an unknown flag `-=`.
        ErrorKind::UnknownArgument if flag == "-=" => letters(args),
        _ => None,
    }
}

/// As [`switch`], for short flags: `-d=false`, and the last letter of `-it=true`.
fn letters(args: &[OsString]) -> Option<(usize, Option<OsString>)> {
    args.iter().enumerate().find_map(|(at, arg)| {
        let (letters, value) = arg.to_str()?.split_once('=')?;
        let (others, _) = letters.char_indices().next_back().map(|(at, _)| letters.split_at(at))?;
        let is_on = is_on(value)?;
        // The words before it parse, so this word is the mistake. `-e=true` is none: it sets the value of a flag.
        let error = args::Cli::try_parse_from(&args[..=at]).err()?;
        if error.kind() != clap::error::ErrorKind::UnknownArgument {
            return None;
        }
        let kept = if is_on { letters } else { others };
        Some((at, Some(kept).filter(|kept| *kept != "-").map(OsString::from)))
    })
}

/// Parses a boolean as Go's `strconv.ParseBool`.
fn is_on(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Rewrites Docker's `hoist help WORDS` to `hoist WORDS --help`.
fn without_help_command(mut args: Vec<OsString>) -> Vec<OsString> {
    if args.get(1).is_some_and(|word| word == "help") {
        args.remove(1);
        args.push("--help".into());
    }
    args
}

/// The help of a noun that is given without a command, as Docker prints it.
fn help_about(mut args: Vec<OsString>) -> clap::Error {
    args.push("--help".into());
    match args::Cli::try_parse_from(args) {
        Err(help) => help,
        Ok(_) => unreachable!("help is never a command"),
    }
}

/// The global flags whose value is the next word.
pub const FLAGS_WITH_VALUES: [&str; 8] =
    ["-H", "--address", "--host", "--config", "-l", "--log-level", "-c", "--context"];

/// Whether the command is `run` or `create`, with or without the noun. Determined from the words, so that it also works
/// for command lines that do not parse.
fn is_run(args: &[OsString]) -> bool {
    let mut words = args.iter().skip(1);
    while let Some(word) = words.next() {
        // Short flags may share a dash; the last of them takes the value.
        let letters =
            word.to_str().and_then(|word| word.strip_prefix('-')).map(|word| word.trim_start_matches('D'));
        if FLAGS_WITH_VALUES.iter().any(|flag| word == flag) || matches!(letters, Some("H" | "l" | "c")) {
            words.next();
        } else if word != "container" && !word.as_encoded_bytes().starts_with(b"-") {
            return word == "run" || word == "create";
        }
    }
    false
}

/// Docker's exit codes of `run`: 127 and 126 if the program cannot be executed, 125 for other errors.
fn run_code(error: &Error) -> u8 {
    // By the text too, as other OCI runtimes report the reason only there.
    let text = error.chain();
    let says = |words: &[&str]| text.contains("exec: ") && words.iter().any(|word| text.contains(word));
    if says(&["no such file or directory", "executable file not found"]) {
        127
    } else if says(&["permission denied", "is a directory", "exec format error"]) {
        126
    } else {
        125
    }
}

/// What a user without a right to the daemon's socket can do.
const NO_RIGHT: &str =
    "run as root, or have the socket given to a group of yours (grpc.gid, see docs/operate/install.md)";

/// Prints the error, and on a second line what the user can do.
fn print(error: &Error) {
    eprintln!("hoist: {}", output::said(error));
    let text = error.chain();
    let hint = match error.kind() {
        ErrorKind::PermissionDenied if text.contains("hoist daemon at") => Some(NO_RIGHT),
        ErrorKind::FailedPrecondition if text.contains("is running") => Some("hoist stop, or hoist rm -f"),
        _ => None,
    };
    if let Some(hint) = hint {
        eprintln!("hint: {hint}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_have_values_by_their_letters_too() {
        for (given, meant) in [
            ("run --rm=true -d=true x -d=true", "run --rm -d x -d=true"),
            ("run -it=false x", "run -i x"),
            ("run -e=true -d=0 x", "run -e=true x"),
            ("exec -i=1 x y", "exec -i x y"),
        ] {
            let words =
                |text: &str| format!("hoist {text}").split(' ').map(OsString::from).collect::<Vec<_>>();
            let (found, parsed) = parse_words(words(given));
            assert!(parsed.is_ok(), "{given}");
            assert_eq!(found, words(meant), "{given}");
        }
        assert!(parse_words(["hoist", "run", "-d=maybe", "x"].map(OsString::from).to_vec()).1.is_err());
    }

    #[test]
    fn run_is_recognized_after_global_flags() {
        let is_run = |words: &str| is_run(&words.split(' ').map(OsString::from).collect::<Vec<_>>());
        for words in [
            "hoist run x",
            "hoist create",
            "hoist -H /a run x",
            "hoist --address=/a run --nosuch",
            "hoist container run x",
            "hoist -D -l debug --config /c run x",
        ] {
            assert!(is_run(words), "{words}");
        }
        for words in [
            "hoist",
            "hoist ps",
            "hoist -H run ps",
            "hoist exec x run",
            "hoist container ls run",
            "hoist --version",
        ] {
            assert!(!is_run(words), "{words}");
        }
    }
}
