//! `containerd-shim-hoist-v2`
#![forbid(unsafe_code)]

use std::process::ExitCode;

use linux::heap::DenseHeap;

#[global_allocator]
static HEAP: DenseHeap = DenseHeap;

fn main() -> ExitCode {
    shim::main(std::env::args_os().collect())
}
