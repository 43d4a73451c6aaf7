//! Output that cannot be written: whoever reads us may stop before its end (`hoist ps | head -1`), and a disk may be full.
//!
//! SIGPIPE stays ignored, as the standard library has it: a daemon that ends, or a container that closes its
//! input, would send the same signal, and end us without a word. So a failed write to standard output is
//! looked for where the library reports it, in the panic of `println!`; whoever copies bytes asks [`code_of`].

use std::any::Any;
use std::{io, panic, process};

use rustix::io::Errno;
use types::spelled;

/// The exit code of a program that SIGPIPE ended, as shells tell it: what was asked for is perhaps not done.
const EXIT_CODE: u8 = 128 + 13;

/// From now on a failed `println!` ends the program: quietly where nobody reads it, with an error else.
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

/// The exit code where bytes for a stream of ours could not be written, which is said unless nobody reads them.
pub(crate) fn code_of(program: &str, error: &io::Error, stream: &str) -> u8 {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return EXIT_CODE;
    }
    eprintln!("{program}: write to {stream}: {}", spelled(error.to_string()));
    1
}

/// Why a `println!` failed, if it was one that did.
fn lost(panic: &dyn Any) -> Option<&str> {
    panic.downcast_ref::<String>()?.strip_prefix("failed printing to stdout: ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failed_writes_are_no_panics() {
        let why = |words: &str| lost(&words.to_owned()).map(str::to_owned);
        let full = io::Error::from(Errno::NOSPC);
        assert_eq!(why(&format!("failed printing to stdout: {full}")), Some(full.to_string()));
        assert_eq!(why(&format!("called `Result::unwrap()` on an `Err` value: {full}")), None);
    }

    #[test]
    fn whoever_is_not_read_ends_as_by_the_signal() {
        assert_eq!(code_of("hoist", &Errno::PIPE.into(), "standard output"), 141);
        assert_eq!(code_of("hoist", &Errno::NOSPC.into(), "standard output"), 1);
    }
}
