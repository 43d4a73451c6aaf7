//! Failed writes to standard output: the reader may close the pipe early (`hoist ps | head -1`), and a disk may be
//! full.
//!
//! SIGPIPE stays ignored, as the standard library has it: a write to a daemon or container that closed its end would
//! raise it too, and end us without a message. So failed writes are detected in the panic of `println!`. Code that
//! copies bytes calls [`code_of`].

use std::any::Any;
use std::{io, panic, process};

use rustix::io::Errno;
use types::spelled;

/// The exit code that a shell reports for a program ended by SIGPIPE: the command may be incomplete.
const EXIT_CODE: u8 = 128 + 13;

/// Has a failed `println!` end the program: silently if the reader is gone, otherwise with an error message.
pub(crate) fn end_without_panic(program: &'static str) {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |panic| match lost(panic.payload()) {
        Some(why) if why == io::Error::from(Errno::PIPE).to_string() => process::exit(EXIT_CODE.into()),
        Some(why) => {
            eprintln!("{program}: write to standard output: {}", spelled(why.to_owned()));
            process::exit(1);
        }
        None => usual(panic),
    }));
}

/// The exit code after a failed write to one of our streams. Prints the error unless the reader is gone.
pub(crate) fn code_of(program: &str, error: &io::Error, stream: &str) -> u8 {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return EXIT_CODE;
    }
    eprintln!("{program}: write to {stream}: {}", spelled(error.to_string()));
    1
}

/// The error of a failed `println!`, if the panic is one.
fn lost(panic: &dyn Any) -> Option<&str> {
    panic.downcast_ref::<String>()?.strip_prefix("failed printing to stdout: ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_panics_of_failed_writes_are_recognized() {
        let why = |words: &str| lost(&words.to_owned()).map(str::to_owned);
        let full = io::Error::from(Errno::NOSPC);
        assert_eq!(why(&format!("failed printing to stdout: {full}")), Some(full.to_string()));
        assert_eq!(why(&format!("called `Result::unwrap()` on an `Err` value: {full}")), None);
    }

    #[test]
    fn a_broken_pipe_ends_with_the_code_of_sigpipe() {
        assert_eq!(code_of("hoist", &Errno::PIPE.into(), "standard output"), 141);
        assert_eq!(code_of("hoist", &Errno::NOSPC.into(), "standard output"), 1);
    }
}
