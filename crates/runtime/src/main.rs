//! The OCI runtime as a program of its own: `runc`'s command line and nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    runtime::cli::main(std::env::args_os().collect())
}
