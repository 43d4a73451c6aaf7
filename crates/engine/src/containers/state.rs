//! The state of a container as clients see it.
//!
//! ```text
//! its end is being settled   the recorded end   (its shim may still exist or be exiting)
//! its shim answers           the shim's state; if it has ended, with the exit
//! it has no task             the record's state, read after that was found
//! ```
//!
//! A client that sees that a container has ended also sees how: both change in one step.

use std::collections::BTreeMap;
use std::sync::MutexGuard;

use stdx::Mutex;
use task::{Process, Status};
use types::ContainerId;

use crate::Engine;
use crate::record::{ExitRecord, Extension};

/// Ends that are being settled, by container: meanwhile neither shim nor record is authoritative.
#[derive(Default)]
pub(crate) struct Ends(Mutex<BTreeMap<String, ExitRecord>>);

impl Ends {
    pub(crate) fn begin(&self, id: &ContainerId, exit: ExitRecord) {
        self.lock().insert(id.to_string(), exit);
    }

    /// Forgets a settled end, unless there was a newer one.
    pub(crate) fn over(&self, id: &ContainerId, exit: &ExitRecord) {
        let mut all = self.lock();
        if all.get(id.as_str()) == Some(exit) {
            all.remove(id.as_str());
        }
    }

    fn get(&self, id: &ContainerId) -> Option<ExitRecord> {
        self.lock().get(id.as_str()).copied()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, ExitRecord>> {
        self.0.lock()
    }
}

/// A container's phase of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It has never run, or is about to.
    Created,
    Running,
    Paused,
    /// It has ended, and its restart policy will start it again.
    Restarting,
    Exited,
    /// Its shim does not answer or cannot be asked: it may be running.
    Unknown,
}

impl Phase {
    /// Docker's name of the phase.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Phase::Created => "created",
            Phase::Running => "running",
            Phase::Paused => "paused",
            Phase::Restarting => "restarting",
            Phase::Exited => "exited",
            Phase::Unknown => "unknown",
        }
    }

    /// Whether it runs, may be running, or will be restarted. `prune` removes the others.
    pub(crate) const fn is_alive(self) -> bool {
        !matches!(self, Phase::Created | Phase::Exited)
    }
}

#[derive(Debug, PartialEq)]
pub(crate) struct State {
    pub(crate) phase: Phase,
    /// 0 if it has no process.
    pub(crate) pid: u32,
    /// How its last run ended; `None` while it runs.
    pub(crate) exit: Option<ExitRecord>,
}

impl State {
    const fn of_run(phase: Phase, pid: u32) -> State {
        State { phase, pid, exit: None }
    }

    pub(crate) const fn is_alive(&self) -> bool {
        self.phase.is_alive()
    }
}

const UNKNOWN: State = State::of_run(Phase::Unknown, 0);

impl Engine {
    /// The state of a container. `extension` may be outdated: if the shim contradicts it, the record is read again.
    pub(crate) async fn state_of(&self, id: &ContainerId, extension: &Extension) -> State {
        let process = match self.task_of(id) {
            Ok(Some(task)) => match task.state_or_unknown().await {
                Ok(process) => Some(process),
                // Its shim has just deleted the task.
                Err(_) if self.0.ends.get(id).is_some() || matches!(self.task_of(id), Ok(None)) => None,
                Err(_) => return UNKNOWN,
            },
            Ok(None) => None,
            Err(_) => return UNKNOWN,
        };
        self.state_from(id, extension, process.as_ref()).await
    }

    /// As [`Engine::state_of`], if its shim, if any, has been asked already.
    pub(crate) async fn state_from(
        &self,
        id: &ContainerId,
        extension: &Extension,
        process: Option<&Process>,
    ) -> State {
        if let Some(exit) = self.0.ends.get(id) {
            return self.ended(id, Some(exit));
        }
        let Some(process) = process else { return self.state_by_record(id, extension).await };
        match process.status {
            Status::Running => State::of_run(Phase::Running, process.pid),
            Status::Paused | Status::Pausing => State::of_run(Phase::Paused, process.pid),
            Status::Created => State::of_run(Phase::Created, process.pid),
            Status::Stopped => {
                let oom_killed = self.was_short_of_memory(id).await;
                let exit = process.exit.map(|exit| ExitRecord { code: exit.status, at: exit.at, oom_killed });
                self.ended(id, exit)
            }
            // It did not answer because it was exiting.
            Status::Unknown if matches!(self.task_of(id), Ok(None)) => {
                self.state_by_record(id, extension).await
            }
            Status::Unknown => UNKNOWN,
        }
    }

    async fn state_by_record(&self, id: &ContainerId, extension: &Extension) -> State {
        let now = if extension.exit.is_none() { self.extension(id).await.ok() } else { None };
        let extension = now.as_ref().unwrap_or(extension);
        match extension.started {
            None => State::of_run(Phase::Created, 0),
            Some(_) => self.ended(id, extension.exit),
        }
    }

    fn ended(&self, id: &ContainerId, exit: Option<ExitRecord>) -> State {
        let is_planned = self.0.restarts.are_planned(id.as_str());
        State { phase: if is_planned { Phase::Restarting } else { Phase::Exited }, pid: 0, exit }
    }
}

#[cfg(test)]
mod tests {
    use types::Timestamp;

    use super::*;

    #[test]
    fn what_is_alive_is_not_pruned_and_every_phase_has_dockers_name() {
        let check = |phase: Phase, name: &str, is_alive| {
            assert_eq!((phase.name(), phase.is_alive()), (name, is_alive));
            assert_eq!(State::of_run(phase, 0).is_alive(), is_alive, "{name}");
        };
        check(Phase::Created, "created", false);
        check(Phase::Running, "running", true);
        check(Phase::Paused, "paused", true);
        check(Phase::Restarting, "restarting", true);
        check(Phase::Exited, "exited", false);
        check(Phase::Unknown, "unknown", true);
    }

    #[test]
    fn an_end_is_over_when_it_is_settled_and_not_when_an_earlier_one_is() {
        let (ends, id) = (Ends::default(), ContainerId::new("a").unwrap());
        let exit = |code| ExitRecord { code, at: Timestamp::default(), oom_killed: false };
        ends.begin(&id, exit(1));
        assert_eq!(ends.get(&id), Some(exit(1)));
        ends.begin(&id, exit(2));
        ends.over(&id, &exit(1));
        assert_eq!(ends.get(&id), Some(exit(2)));
        ends.over(&id, &exit(2));
        assert_eq!(ends.get(&id), None);
    }
}
