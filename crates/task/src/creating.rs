//! Tasks that are still being created, and how their creation is cancelled.
//!
//! While our shim waits for a hook or an external runtime it still answers calls, and a kill ends what it waits for. A
//! call that waits inside the kernel, such as for the server of a FUSE file system, blocks the shim itself. Then the
//! daemon kills the shim, unless other containers share it: it has nothing yet that could be lost. A restarted daemon
//! recognizes such a task by its bundle, in which no first process is noted. If the container exists, its processes may
//! be what blocks the shim: then the daemon kills them without it.

use std::time::Duration;

use linux::signal::SIGKILL;
use tokio::sync::watch;
use tokio::time::timeout;
use types::{Error, ErrorKind, ExecId, Result, Timestamp};

use crate::shims::blocking;
use crate::{Exit, Shims, Task, cgroup};

/// How long a shim may take to answer that it received the kill.
const RESPONSE_LIMIT: Duration = Duration::from_secs(5);
/// Pause before the next attempt to reach the shim.
const PROBE_PAUSE: Duration = Duration::from_millis(20);
/// How long the shim may take to kill its processes.
const KILL_LIMIT: Duration = Duration::from_secs(30);
/// How long finding the process of an unresponsive shim may take.
const FIND_LIMIT: Duration = Duration::from_secs(5);
/// How long a cancelled creation may take to be undone.
const END_LIMIT: Duration = Duration::from_secs(30);

/// Whether the shim does not read requests: no answer in time, or its socket's buffer is full.
fn is_unresponsive(error: &Error) -> bool {
    error.is(ErrorKind::DeadlineExceeded) || error.is(ErrorKind::ResourceExhausted)
}

impl Shims {
    /// Sends a signal to the task's first process, to all of its processes, or to an exec'd process. SIGKILL also
    /// cancels a creation, and with our shim takes effect even if the shim does not respond.
    pub async fn kill(&self, task: &Task, exec: Option<&ExecId>, signal: u32, all: bool) -> Result<()> {
        if signal != SIGKILL || exec.is_some() {
            return task.kill(exec, signal, all).await;
        }
        let limit = if self.is_being_created(task).await { RESPONSE_LIMIT } else { KILL_LIMIT };
        match task.kill_within(Some(limit), None, signal, all).await {
            Err(error) if is_unresponsive(&error) => self.kill_unresponsive_shim(task, error).await,
            outcome => outcome,
        }
    }

    /// Whether the task is known to be still in creation. Shims of other makers leave no note to tell by.
    pub(crate) async fn is_being_created(&self, task: &Task) -> bool {
        if self.creation_of(task).is_some() {
            return true;
        }
        let (bundle, program) = task.bundle_and_program();
        let (bundle, is_ours) = (bundle.clone(), program.is_ours());
        is_ours && blocking(move || bundle.has_process()).await.is_ok_and(|has_process| !has_process)
    }

    async fn kill_unresponsive_shim(&self, task: &Task, error: Error) -> Result<()> {
        let id = task.id();
        // What other makers' shims leave running is not known here.
        if !task.bundle_and_program().1.is_ours() {
            return Err(error.context(format!("kill task {id}: its shim does not answer")));
        }
        let (shims, socket) = (self.clone(), task.socket());
        let found = timeout(FIND_LIMIT, blocking(move || shims.shim_at(&socket))).await;
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
                "{}: its shim, process {}, is not killed, because other containers need it",
                why(),
                shim.pid()
            )));
        }
        tracing::warn!(namespace = %task.namespace(), %id, "the shim does not hear, and is killed");
        self.end_stray(&shim).map_err(|error| error.context(why()))
    }

    /// Kills the container's processes without the shim, and checks that the shim then responds.
    async fn kill_past_shim(&self, task: &Task) -> Result<()> {
        let id = task.id();
        tracing::warn!(namespace = %task.namespace(), %id, "the shim does not hear, and its container is killed");
        let bundle = task.bundle_and_program().0.clone();
        let own = id.clone();
        let killed = timeout(FIND_LIMIT, blocking(move || cgroup::kill(&bundle, own.as_str()))).await;
        killed.unwrap_or_else(|_| Err(Error::deadline_exceeded("kill its processes")))?;
        let hears = async {
            while let Err(error) = task.state(None).await
                && is_unresponsive(&error)
            {
                // The shim's full socket buffer is reported at once, without waiting.
                tokio::time::sleep(PROBE_PAUSE).await;
            }
        };
        timeout(RESPONSE_LIMIT, hears)
            .await
            .map_err(|_| Error::deadline_exceeded("its processes were killed"))
    }

    /// Cancels a creation, like the kill of a container that was not started. `over` closes when the creation has
    /// ended.
    pub(crate) async fn delete_creating(self, task: Task, mut over: watch::Receiver<()>) -> Result<Exit> {
        self.kill_creating(&task).await?;
        if timeout(END_LIMIT, over.changed()).await.is_err() {
            return Err(does_not_end(&task));
        }
        match self.task(task.namespace(), task.id()) {
            // The kill arrived after the container was created, so the container is deleted.
            Ok(made) => self.delete_one(made, None).await,
            Err(_) => Ok(nothing_ran()),
        }
    }

    /// Cancels a creation that an earlier daemon began: only the shim knows whether it is over.
    pub(crate) async fn delete_left(self, task: Task) -> Result<Exit> {
        self.kill_creating(&task).await?;
        match self.delete_one(task.clone(), Some(END_LIMIT)).await {
            Err(error) if error.is(ErrorKind::DeadlineExceeded) => Err(does_not_end(&task)),
            outcome => outcome,
        }
    }

    async fn kill_creating(&self, task: &Task) -> Result<()> {
        match self.kill(task, None, SIGKILL, true).await {
            // The creation is being undone already, or its shim cannot yet take calls for it.
            Err(error) if error.is(ErrorKind::NotFound) || error.is(ErrorKind::Unavailable) => Ok(()),
            // It is created, and its processes are in a checkpoint: there are none to kill.
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

/// The exit of a container that never ran.
fn nothing_ran() -> Exit {
    Exit { pid: 0, status: 128 + SIGKILL, at: Timestamp::now() }
}
