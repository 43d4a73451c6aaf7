//! What a container's first process gets from its parent while it builds its root.
//!
//! ```text
//! parent   cgroups of version 1 ─▶ limits ─▶ Cgroup (fds)       filter is compiled ─▶ Filter
//!                                                │                                       │
//! child    root … ─────────────────────────────▶ enters ─▶ streams, descriptors ───────▶ user, filter
//! ```
//!
//! The child enters its cgroup as late as possible: before a mount that shows the cgroup, before a mount that takes
//! limited resources, before hooks, before sysctls if network devices move in, and before it becomes the container's
//! user. Messages are received in the order in which the parent sends them, before any other.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::Read as _;

use linux::cgroup::Entry;
use linux::ns::{self, NsKind};
use linux::seccomp::Program;
use types::{Context, Error, Result};

use crate::channel::{Channel, Message};
use crate::plan::Namespaces;
use crate::program::Filter;

pub(crate) struct Supplies<'a> {
    channel: &'a Channel,
    /// The cgroup namespace is made once the process is in its cgroup.
    has_cgroup_namespace: bool,
    has_filter: bool,
    is_inside: Cell<bool>,
    filter: RefCell<Option<Filter>>,
}

impl Supplies<'_> {
    pub(crate) fn expect<'a>(
        channel: &'a Channel,
        namespaces: &Namespaces,
        has_filter: bool,
    ) -> Supplies<'a> {
        Supplies {
            channel,
            has_cgroup_namespace: namespaces.is_new(NsKind::Cgroup),
            has_filter,
            is_inside: Cell::new(false),
            filter: RefCell::new(None),
        }
    }

    /// Enters the cgroup, if that is not done yet. In version 2, and in a scope of systemd's, the process is in it
    /// already.
    pub(crate) fn enter_cgroup(&self) -> Result<()> {
        if self.is_inside.replace(true) {
            return Ok(());
        }
        match self.channel.receive()? {
            Some(Message::Cgroup(cgroup_fds)) => {
                Entry::of_tasks(cgroup_fds).enter().context(|| "enter the cgroup")?;
            }
            _ => return Err(parent_went_away()),
        }
        // The namespace's root is the process's cgroup at this moment.
        if self.has_cgroup_namespace {
            ns::unshare(&[NsKind::Cgroup])?;
        }
        Ok(())
    }

    /// Receives everything that is still to come.
    pub(crate) fn complete(&self) -> Result<()> {
        self.enter_cgroup()?;
        if !self.has_filter || self.filter.borrow().is_some() {
            return Ok(());
        }
        let Some(Message::Filter(file)) = self.channel.receive()? else { return Err(parent_went_away()) };
        let mut bytes = Vec::with_capacity(4096);
        File::from(file).take(u64::MAX).read_to_end(&mut bytes).context(|| "read the seccomp filter")?;
        self.filter.replace(Some(Filter { program: Program::from_bytes(&bytes)? }));
        Ok(())
    }

    /// The filter, if the spec has one.
    pub(crate) fn into_filter(self) -> Result<Option<Filter>> {
        self.complete()?;
        Ok(self.filter.into_inner())
    }
}

pub(crate) fn parent_went_away() -> Error {
    Error::aborted("the parent went away")
}
