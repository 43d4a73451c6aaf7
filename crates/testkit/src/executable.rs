//! Programs that a test makes and executes at once.
//!
//! Another process writes them. What is open here for writing is so in children that other tests of the same program
//! start at that moment, too, until these execute something; and the kernel executes no file that somebody has open for
//! writing (ETXTBSY, execve(2)).

use std::path::Path;
use std::process::Command;

use crate::run;

/// Writes a program of this text, most often a script, in place of what is there.
#[track_caller]
pub fn executable(path: &Path, text: &str) {
    let write = "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\"";
    run(Command::new("sh").args(["-c", write]).arg(path).arg(text)).ok();
}

/// Copies a program, one that others may run at that moment.
#[track_caller]
pub fn executable_copy(program: &Path, to: &Path) {
    run(Command::new("cp").arg(program).arg(to)).ok();
}
