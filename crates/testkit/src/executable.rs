//! Programs that a test writes and executes at once.
//!
//! A separate process writes them. If the test program did, a child that another of its tests forks at that moment
//! would inherit the open descriptor until it executes, and the kernel refuses to execute a file that is open for
//! writing (ETXTBSY, execve(2)).

use std::path::Path;
use std::process::Command;

use crate::run;

/// Writes an executable file of this text, most often a script. Replaces an older file.
#[track_caller]
pub fn executable(path: &Path, text: &str) {
    let write = "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\"";
    run(Command::new("sh").args(["-c", write]).arg(path).arg(text)).ok();
}

/// Copies a program that others may be running at that moment.
#[track_caller]
pub fn executable_copy(program: &Path, to: &Path) {
    run(Command::new("cp").arg(program).arg(to)).ok();
}
