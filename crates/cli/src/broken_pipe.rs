//! Whoever reads our output may stop before its end: `hoist ps | head -1`.
//!
//! SIGPIPE stays ignored, as the standard library has it: a daemon that ends, or a container that closes its
//! input, would send the same signal, and end us without a word. So a failed write to standard output is
//! looked for where the library reports it, in the panic of `println!`.

use std::any::Any;
use std::panic;
use std::process;

/// The exit code of a program that SIGPIPE ended, as shells tell it: what was asked for is perhaps not done.
const EXIT_CODE: i32 = 128 + 13;

/// From now on a broken pipe on standard output ends the program quietly.
pub(crate) fn end_quietly() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if is_broken_pipe(panic.payload()) {
            process::exit(EXIT_CODE);
        }
        usual(panic);
    }));
}

fn is_broken_pipe(payload: &dyn Any) -> bool {
    let words = payload.downcast_ref::<String>().map_or("", String::as_str);
    words.starts_with("failed printing to stdout") && words.contains(&broken_pipe())
}

/// As the library writes it behind its own words.
fn broken_pipe() -> String {
    std::io::Error::from_raw_os_error(rustix::io::Errno::PIPE.raw_os_error()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_reads_ends_quietly() {
        let check = |words: &str| is_broken_pipe(&words.to_owned());
        assert!(check(&format!("failed printing to stdout: {}", broken_pipe())));
        assert!(!check("failed printing to stdout: No space left on device (os error 28)"));
        assert!(!check(&format!("called `Result::unwrap()` on an `Err` value: {}", broken_pipe())));
    }
}
