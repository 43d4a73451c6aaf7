//! `containerd-shim-hoist-v2`
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    shim::main(std::env::args_os().collect())
}
