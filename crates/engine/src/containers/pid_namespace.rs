//! Joins the PID namespace of another container (`--pid container:NAME`). For the network namespace, which outlives its
//! processes, see `networks`.
//!
//! The other container must run. Its namespace is opened while it is known to run, and kept open until the new
//! container has joined: after the process has ended, its pid may be reused.

use std::os::fd::{AsRawFd, OwnedFd};

use api::engine::Create;
use linux::ns::NsKind;
use types::spec::runtime::Spec;
use types::{ContainerId, Error, Result};

use crate::Engine;
use crate::names::short;
use crate::spec::OF_CONTAINER;

/// An open PID namespace; `None` if the container joins none.
#[derive(Default)]
pub(super) struct Joined(Option<OwnedFd>);

impl Joined {
    pub(super) fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// Sets the namespace's path in a spec. Valid while `self` is held.
    pub(super) fn apply(&self, spec: &mut Spec) {
        let Some(file) = &self.0 else { return };
        let namespaces = &mut spec.linux.get_or_insert_default().namespaces;
        let own = namespaces.iter_mut().filter(|namespace| namespace.kind == NsKind::Pid.name());
        own.for_each(|namespace| {
            namespace.path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        });
    }
}

impl Engine {
    /// Finds the container whose PID namespace is joined, and replaces its name by its id.
    pub(super) fn name_joined(&self, create: &mut Create) -> Result<()> {
        if let Some(text) = create.extras.pid.strip_prefix(OF_CONTAINER) {
            let other =
                self.find(text).map_err(|error| error.context(format!("--pid {}", create.extras.pid)))?;
            create.extras.pid = format!("{OF_CONTAINER}{}", other.id);
        }
        Ok(())
    }

    /// `FailedPrecondition` if the other container does not run; `Unavailable` if its restart policy will start it.
    pub(super) async fn open_joined(&self, create: &Create) -> Result<Joined> {
        let Some(other) = create.extras.pid.strip_prefix(OF_CONTAINER) else { return Ok(Joined::default()) };
        let about = |error: Error| error.context("join its processes");
        let text = other.to_owned();
        let other = self.blocking(move |engine| Ok(engine.find(&text)?.id)).await.map_err(about)?;
        let joined = match self.open_namespace_of(&other).await {
            Ok(file) => Ok(Joined(Some(file))),
            Err(error) => self.blocking(move |engine| Err(engine.or_awaited(&other, error))).await,
        };
        joined.map_err(about)
    }

    async fn open_namespace_of(&self, other: &ContainerId) -> Result<OwnedFd> {
        let task = self.running(other)?;
        let open = |pid| NsKind::Pid.open(format!("/proc/{pid}/ns/{}", NsKind::Pid.file_name()).as_ref());
        let opened = self.open_of_task(&task, short(other), open).await?;
        let ended = || Error::failed_precondition(format!("container {} is not running", short(other)));
        opened.map(|(_process, file)| file).ok_or_else(ended)
    }
}
