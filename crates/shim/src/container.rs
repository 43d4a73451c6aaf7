//! A container of this shim: its runtime, its processes, and the resources that were set up for it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use linux::cgroup::{Oom, OomWatch};

use crate::oci::Oci;
use crate::process::ProcessKey;
use crate::stdio::open::Owner;

pub(crate) struct Container {
    pub id: String,
    /// The event loop's key of the container, which is never used again in this shim.
    pub key: u32,
    pub bundle: PathBuf,
    pub oci: Oci,
    /// Whether the runtime may block on other programs (see [`crate::oci::waits_for_others`]), so that workers call it.
    pub waits_for_others: bool,
    pub init: ProcessKey,
    pub execs: BTreeMap<String, ProcessKey>,
    pub paused: bool,
    /// The shim mounted the root file system and has to unmount it.
    pub rootfs_mounted: bool,
    /// The container has its own pid namespace, so that the kernel kills all its processes with the first one.
    pub owns_pids: bool,
    pub oom: Option<OomWatch>,
    /// The counters that the watch has reported so far.
    pub oom_seen: Oom,
    /// The first process has ended, and its exit event waits for those of the execs.
    pub exit_held: bool,
    /// User and group that own the pipes of its processes.
    pub io_owner: (u32, u32),
}

impl Container {
    /// The owner of further processes' streams.
    pub(crate) fn owner<'a>(&'a self, namespace: &'a str) -> Owner<'a> {
        let (uid, gid) = self.io_owner;
        Owner { namespace, container: &self.id, uid, gid }
    }

    pub(crate) fn processes(&self) -> impl Iterator<Item = ProcessKey> {
        std::iter::once(self.init).chain(self.execs.values().copied())
    }
}
