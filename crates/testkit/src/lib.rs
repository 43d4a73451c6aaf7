//! The harness of the system tests and benchmarks: a real daemon on its own root, a real registry on loopback, real
//! images made from Debian's packages.
//!
//! - [`Daemon`]: `hoist daemon` on temporary directories, and the command line connected to it.
//! - [`Containerd`]: Debian's containerd or another one, to compare with and to run Hoist's shim under.
//! - [`Docker`]: Debian's dockerd, to exchange images with.
//! - [`ShimHost`]: Hoist's shim without a daemon, called as containerd calls it.
//! - [`Registry`]: Debian's `docker-registry` on a free port of loopback.
//! - [`FaultProxy`]: a proxy that adds faults to a registry's answers.
//! - [`Bundle`]: an OCI bundle of busybox, and Hoist's OCI runtime to run it with.
//! - [`Guest`]: a virtual machine of another kind than the host, to run a test program in.
//! - [`images`]: root file systems made from packages, and images made from root file systems.
//! - [`bulk`]: images of any size.
//! - [`Layout`]: images put together by hand, byte by byte.
//! - [`Terminal`]: a pseudoterminal with a program on it.
//! - [`executable`]: programs that are written and executed at once.
//! - [`eventually`]: waits for a state that has no event.
//!
//! Everything made here is removed when its guard drops, whether the test passed or not.
#![forbid(unsafe_code)]

pub mod bulk;
mod bundle;
mod containerd;
mod daemon;
pub mod disk;
mod docker;
mod executable;
mod fault_proxy;
mod fuse;
mod guest;
pub mod images;
pub mod layout;
pub mod memory;
mod output;
mod registry;
mod shim;
mod terminal;
mod tokens;
mod wait;

pub use bundle::Bundle;
pub use containerd::Containerd;
pub use daemon::{Daemon, MountsBelow, Places, clean_up, unmount_below};
pub use docker::Docker;
pub use executable::{executable, executable_copy};
pub use fault_proxy::{Asked, Fault, FaultProxy, Gate, Served};
pub use fuse::SilentDisk;
pub use guest::{Guest, GuestKind, Outcome};
pub use layout::{Layout, digest_of, noise};
pub use output::{Finished, run, run_within};
pub use registry::{Registry, certify};
pub use shim::{
    Events, Received, SHIM_NAMESPACE, ShimContainer, ShimHost, ShimTask, process, run_shim, shim_program,
};
pub use stdx::testing::is_root;
pub use terminal::Terminal;
pub use wait::{DEADLINE, eventually};

use std::path::PathBuf;

/// The directory of files that test programs share and keep between runs.
pub fn cache_dir() -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
    target.join("testkit")
}

/// A temporary directory on a tmpfs, if there is one: it stands for `/run`.
fn memory_dir() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory } else { std::path::Path::new("/var/tmp") };
    // The prefix is short, because paths of Unix sockets have at most 107 bytes (unix(7)).
    tempfile::TempDir::with_prefix_in("hs-", parent).expect("a temporary directory")
}

/// The root directory of the repository.
pub fn repository() -> PathBuf {
    let crate_dir = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    crate_dir.ancestors().nth(2).expect("crates/testkit is two levels deep").to_owned()
}

/// The `hoist` program under test: `HOIST_BIN`, or the release build.
pub fn hoist_program() -> PathBuf {
    let built = std::env::var_os("HOIST_BIN")
        .map_or_else(|| repository().join("target/release/hoist"), PathBuf::from);
    assert!(built.is_file(), "{} is not there; try: cargo xtask build", built.display());
    built
}
