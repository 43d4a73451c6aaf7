//! `containerd-shim-hoist-v2`
#![forbid(unsafe_code)]

use std::process::ExitCode;

/// Keeps what is free for the next call: the C library's gives each page back to the kernel and takes it again, which
/// was a tenth of a start.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    shim::main(std::env::args_os().collect())
}
