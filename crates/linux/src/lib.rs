//! Safe wrappers of the system calls and kernel file formats that Hoist needs, as functions over owned and borrowed
//! descriptors. Nearly all `unsafe` of the project lives here.
//!
//! - [`beneath`]: path resolution inside a hostile root.
//! - [`mount`], [`tree_mounts`], [`layers`], [`loopdev`], [`devmapper`], [`tree`], [`removal`], [`writeback`],
//!   [`page_cache`], [`verity`], [`ns`], [`idmap`]: file systems and namespaces.
//! - [`process`], [`memory`], [`mapping`], [`heap`], [`procfs`], [`cap`], [`tty`], [`sealed`], [`search`], [`spawn`],
//!   [`signal`], [`fd_passing`], [`pipe`], [`keyring`]: processes, their rights, and their communication.
//! - [`sampling`]: CPU profiles of this process.
//! - [`device`]: device nodes.
//! - [`cgroup`]: control groups, version 1, 2 and both.
//! - [`seccomp`]: system call filters.
//! - [`netlink`], [`rtnetlink`], [`nft`], [`conntrack`]: links, addresses, routes, packet filter rules, tracked flows.
//! - [`random`]: unguessable names.
//! - [`release()`]: the kernel's version.
//! - `host_lookup`: the C library's host name lookup.

pub mod beneath;
pub mod cap;
pub mod cgroup;
pub mod conntrack;
mod dbus;
pub mod device;
pub mod devmapper;
pub mod fd_passing;
pub mod heap;
#[cfg(target_env = "gnu")]
pub mod host_lookup;
pub mod idmap;
pub mod keyring;
pub mod loopdev;
pub mod lower_dirs;
pub mod mapping;
pub mod memory;
pub mod mount;
pub mod netlink;
pub mod nft;
pub mod ns;
mod overlay;
pub mod page_cache;
pub mod pipe;
pub mod placement;
pub mod process;
pub mod procfs;
pub mod random;
mod release;
pub mod removal;
pub mod rtnetlink;
pub mod sampling;
pub mod sealed;
pub mod search;
pub mod seccomp;
pub mod signal;
pub mod spawn;
pub mod tree;
pub mod tree_mounts;
pub mod tty;
pub mod verity;
pub mod writeback;

pub use release::release;
