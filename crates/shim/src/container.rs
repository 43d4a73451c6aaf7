//! A container of this shim: its runtime, its processes, and what was set up for it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use linux::cgroup::{Oom, OomWatch};

use crate::oci::Oci;
use crate::process::ProcessKey;
use crate::stdio::open::Owner;

pub(crate) struct Container {
    pub id: String,
    /// What the event loop knows the container by. No later container of this shim has the same.
    pub key: u32,
    pub bundle: PathBuf,
    pub oci: Oci,
    /// What its runtime does may wait for somebody else (see [`crate::oci::waits_for_others`]), so that workers do it.
    pub waits_for_others: bool,
    pub init: ProcessKey,
    pub execs: BTreeMap<String, ProcessKey>,
    pub paused: bool,
    /// The shim mounted the root file system and has to unmount it.
    pub rootfs_mounted: bool,
    /// The container has its own pid namespace, so that the kernel ends all its processes with the first.
    pub owns_pids: bool,
    pub oom: Option<OomWatch>,
    /// What the watch has reported so far.
    pub oom_seen: Oom,
    /// The first process ended, and its exit waits for those of the execs.
    pub exit_held: bool,
    /// User and group that pipes of its processes belong to.
    pub io_owner: (u32, u32),
}

impl Container {
    /// Who the streams of its further processes belong to.
    pub(crate) fn owner<'a>(&'a self, namespace: &'a str) -> Owner<'a> {
        let (uid, gid) = self.io_owner;
        Owner { namespace, container: &self.id, uid, gid }
    }

    pub(crate) fn processes(&self) -> impl Iterator<Item = ProcessKey> {
        std::iter::once(self.init).chain(self.execs.values().copied())
    }
}
