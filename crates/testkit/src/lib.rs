//! What the system tests and benchmarks stand on: a real daemon in a root of its own, a real
//! registry on loopback, real images made from Debian's packages.
//!
//! - [`Daemon`]: `hoist daemon` on temporary directories, and the command line that talks to it.
//! - [`Containerd`]: Debian's containerd or another one, to compare with and to run our shim under.
//! - [`Docker`]: Debian's dockerd, to give images to and take them from.
//! - [`ShimHost`]: our shim without a daemon, called as containerd calls it.
//! - [`Registry`]: Debian's `docker-registry` on a free port of loopback.
//! - [`FaultProxy`]: the same registry, as it is on a bad day.
//! - [`Bundle`]: a bundle of busybox, and our OCI runtime to run it with.
//! - [`Guest`]: a virtual machine with systemd and cgroups of version 2, to run a test program in.
//! - [`images`]: root file systems from packages, and images from root file systems.
//! - [`bulk`]: images of any size.
//! - [`Layout`]: images put together by hand, byte by byte.
//! - [`Terminal`]: a terminal with somebody at it.
//! - [`executable`]: programs that are written and executed at once.
//! - [`eventually`]: waiting for something that has no event to wait for.
//!
//! Everything made here is taken down when its guard drops, whatever the test's outcome.
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

/// Where things that several test programs share are kept between runs.
pub fn cache_dir() -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
    target.join("testkit")
}

/// A directory in memory, where there is such a place: what `/run` is to a service.
fn memory_dir() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory } else { std::path::Path::new("/var/tmp") };
    // Short, because paths of sockets end at 107 bytes.
    tempfile::TempDir::with_prefix_in("hs-", parent).expect("a temporary directory")
}

/// The repository's root folder.
pub fn repository() -> PathBuf {
    let crate_dir = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    crate_dir.ancestors().nth(2).expect("crates/testkit is two levels deep").to_owned()
}

/// The `hoist` program under test: `HOIST_BIN`, else the release build.
pub fn hoist_program() -> PathBuf {
    let built = std::env::var_os("HOIST_BIN")
        .map_or_else(|| repository().join("target/release/hoist"), PathBuf::from);
    assert!(built.is_file(), "{} is not there; try: cargo xtask build", built.display());
    built
}
