//! The way of a container's first process into its cgroup, which its parent makes, and limits, meanwhile.
//!
//! It enters as late as it can, and no later than it must: before a mount that shows the cgroup, before a mount that
//! takes of what is limited, before hooks, and before it becomes the container's user.

use std::cell::Cell;

use linux::cgroup::Entry;
use linux::ns::{self, NsKind};
use types::{Context, Error, Result};

use crate::channel::{Channel, Message};
use crate::create::Plan;

pub(crate) struct CgroupWay<'a> {
    plan: &'a Plan,
    channel: &'a Channel,
    is_inside: Cell<bool>,
}

impl CgroupWay<'_> {
    pub(crate) fn new<'a>(plan: &'a Plan, channel: &'a Channel) -> CgroupWay<'a> {
        CgroupWay { plan, channel, is_inside: Cell::new(false) }
    }

    /// Enters, if that is not done yet. In version 2, and where systemd has made it, the process is there already.
    pub(crate) fn enter(&self) -> Result<()> {
        if self.is_inside.replace(true) {
            return Ok(());
        }
        match self.channel.receive()? {
            Some(Message::Cgroup(doors)) => {
                Entry::of_tasks(doors).enter().context(|| "enter the cgroup")?;
            }
            _ => return Err(Error::aborted("the parent went away")),
        }
        // Its root is where the process is at this moment.
        if self.plan.namespaces.is_new(NsKind::Cgroup) {
            ns::unshare(&[NsKind::Cgroup])?;
        }
        Ok(())
    }
}
