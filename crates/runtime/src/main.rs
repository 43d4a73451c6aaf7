//! The OCI runtime as a program of its own: `runc`'s command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    runtime::cli::main(std::env::args_os().collect())
}
