//! Tasks whose creation goes on, and how it is ended.
//!
//! While a hook, or a runtime that options name, keeps our shim waiting it answers, and a kill ends what it waits for.
//! What waits inside the kernel, for the server of a file system, holds up the shim itself. Then that is killed, unless
//! others need it: it has nothing yet that could be lost. A daemon that was started since knows such a task from its
//! bundle: no first process is noted there. Once there is a container, that may be what holds the shim up, and is killed
//! past it.

use std::time::Duration;

use linux::signal::SIGKILL;
use tokio::sync::watch;
use tokio::time::timeout;
use types::{Error, ErrorKind, ExecId, Result, Timestamp};

use crate::shims::blocking;
use crate::{Exit, Shims, Task, cgroup};

/// How long a shim may take to hear that a creation is to end.
const HEAR_LIMIT: Duration = Duration::from_secs(5);
/// Before it is asked again whether it hears.
const HEAR_PAUSE: Duration = Duration::from_millis(20);
/// How long it may take to kill what it has.
const KILL_LIMIT: Duration = Duration::from_secs(30);
/// How long it may take to find the process of one that hears nothing.
const LOOK_LIMIT: Duration = Duration::from_secs(5);
/// How long a creation that was killed takes to be undone.
const END_LIMIT: Duration = Duration::from_secs(30);

/// Whether a shim does not read what it is told: it has not answered, or has so much unread that no more goes in.
fn is_deafness(error: &Error) -> bool {
    error.is(ErrorKind::DeadlineExceeded) || error.is(ErrorKind::ResourceExhausted)
}

impl Shims {
    /// Sends a signal to the task's first process, to all of them, or to a further one. SIGKILL ends a creation, and is
    /// answered in any case.
    pub async fn kill(&self, task: &Task, exec: Option<&ExecId>, signal: u32, all: bool) -> Result<()> {
        if signal != SIGKILL || exec.is_some() {
            return task.kill(exec, signal, all).await;
        }
        let limit = if self.is_being_created(task).await { HEAR_LIMIT } else { KILL_LIMIT };
        match task.kill_within(Some(limit), None, signal, all).await {
            Err(error) if is_deafness(&error) => self.kill_deaf_shim(task, error).await,
            outcome => outcome,
        }
    }

    /// Whether its creation is known not to be over. Shims of others note nothing.
    pub(crate) async fn is_being_created(&self, task: &Task) -> bool {
        if self.creation_of(task).is_some() {
            return true;
        }
        let (bundle, program) = task.bundle_and_program();
        let (bundle, is_ours) = (bundle.clone(), program.is_ours());
        is_ours && blocking(move || bundle.has_process()).await.is_ok_and(|has_process| !has_process)
    }

    async fn kill_deaf_shim(&self, task: &Task, error: Error) -> Result<()> {
        let id = task.id();
        // What shims of others leave running is not known here.
        if !task.bundle_and_program().1.is_ours() {
            return Err(error.context(format!("kill task {id}: its shim does not answer")));
        }
        let (shims, socket) = (self.clone(), task.socket());
        let found = timeout(LOOK_LIMIT, blocking(move || shims.shim_at(&socket))).await;
        let found = found.unwrap_or_else(|_| Err(Error::deadline_exceeded("look for the shim's process")));
        let Some(shim) = found.map_err(|error| error.context(format!("kill task {id}")))? else {
            return Err(
                error.context(format!("kill task {id}: its shim does not answer, and is not to be found"))
            );
        };
        if !self.is_being_created(task).await {
            return self.kill_past_shim(task).await.map_err(|cause| {
                error.context(format!(
                    "kill task {id}: its shim does not answer ({}); end what that waits for, as the server of a file \
                     system, or the shim itself, process {}: its containers end with it",
                    cause.chain(),
                    shim.pid()
                ))
            });
        }
        let why = || format!("kill task {id}, which is being created");
        if self.shim_is_shared(task) {
            return Err(error.context(format!(
                "{}: others need its shim, process {}, which is not killed",
                why(),
                shim.pid()
            )));
        }
        tracing::warn!(namespace = %task.namespace(), %id, "the shim does not hear, and is killed");
        self.end_stray(&shim).map_err(|error| error.context(why()))
    }

    /// Kills a container that may be what its shim waits for, and sees whether that goes on.
    async fn kill_past_shim(&self, task: &Task) -> Result<()> {
        let id = task.id();
        tracing::warn!(namespace = %task.namespace(), %id, "the shim does not hear, and its container is killed");
        let bundle = task.bundle_and_program().0.clone();
        let own = id.clone();
        let killed = timeout(LOOK_LIMIT, blocking(move || cgroup::kill(&bundle, own.as_str()))).await;
        killed.unwrap_or_else(|_| Err(Error::deadline_exceeded("kill its processes")))?;
        let hears = async {
            while let Err(error) = task.state(None).await
                && is_deafness(&error)
            {
                // Where it has no room for a question that is said at once.
                tokio::time::sleep(HEAR_PAUSE).await;
            }
        };
        timeout(HEAR_LIMIT, hears).await.map_err(|_| Error::deadline_exceeded("its processes were killed"))
    }

    /// Ends a creation, as one would kill a container that was not started. `over` closes with it.
    pub(crate) async fn delete_creating(self, task: Task, mut over: watch::Receiver<()>) -> Result<Exit> {
        self.kill_creating(&task).await?;
        if timeout(END_LIMIT, over.changed()).await.is_err() {
            return Err(does_not_end(&task));
        }
        match self.task(task.namespace(), task.id()) {
            // The kill came when it was made, and was for what was made.
            Ok(made) => self.delete_one(made, None).await,
            Err(_) => Ok(nothing_ran()),
        }
    }

    /// The same for a creation that an earlier daemon began: whether it is over, only its shim knows.
    pub(crate) async fn delete_left(self, task: Task) -> Result<Exit> {
        self.kill_creating(&task).await?;
        match self.clone().delete_one(task.clone(), Some(END_LIMIT)).await {
            // It has been undone, and nobody but us would send the shim away.
            Err(error) if error.is(ErrorKind::NotFound) => {
                self.forget(&task).await?;
                Ok(nothing_ran())
            }
            Err(error) if error.is(ErrorKind::DeadlineExceeded) => Err(does_not_end(&task)),
            outcome => outcome,
        }
    }

    async fn kill_creating(&self, task: &Task) -> Result<()> {
        match self.kill(task, None, SIGKILL, true).await {
            // It is being undone already, or its shim cannot be asked about what it has not made yet.
            Err(error) if error.is(ErrorKind::NotFound) || error.is(ErrorKind::Unavailable) => Ok(()),
            // It waits in a checkpoint.
            Err(error) if error.is(ErrorKind::FailedPrecondition) => Ok(()),
            outcome => outcome,
        }
    }
}

fn does_not_end(task: &Task) -> Error {
    Error::deadline_exceeded(format!(
        "task {} is being created, and that does not end; end what its creation waits for: a hook, or the server of a \
         file system",
        task.id()
    ))
}

/// The end of what never was.
fn nothing_ran() -> Exit {
    Exit { pid: 0, status: 128 + SIGKILL, at: Timestamp::now() }
}
