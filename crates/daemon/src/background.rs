//! Background tasks, which run as long as the daemon: garbage collection, recording of events and others.
//!
//! Each task has a name. If a task panicked and the others went on, the daemon would silently do only a part of its
//! work. Therefore the daemon exits with an error that names the task: the service manager starts a new daemon, and
//! containers are not affected.

use std::collections::HashMap;
use std::future::pending;

use tokio::task::{Id, JoinSet};
use types::Error;

/// The running tasks. Dropping this aborts them.
#[derive(Default)]
pub(crate) struct Background {
    tasks: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

impl Background {
    /// Spawns a task. `name` identifies it in errors.
    pub(crate) fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let id = self.tasks.spawn(task).id();
        self.names.insert(id, name);
    }

    /// Waits until a task panics and returns the error to exit with. A task that ends normally is ignored. Cancel-safe.
    pub(crate) async fn broken(&mut self) -> Error {
        while let Some(ended) = self.tasks.join_next_with_id().await {
            let id = match &ended {
                Ok((id, ())) => *id,
                Err(error) => error.id(),
            };
            let name = self.names.remove(&id).unwrap_or("without a name");
            match ended {
                Err(error) if error.is_panic() => {
                    let message = format!(
                        "the task \"{name}\" broke down, so the daemon ends; start it again: containers go on meanwhile"
                    );
                    return Error::internal(message).with_source(error);
                }
                _ => {}
            }
        }
        pending().await
    }

    /// Aborts all tasks and waits until they have ended.
    pub(crate) async fn stop(&mut self) {
        self.tasks.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::time::Duration;

    use tokio::sync::oneshot;
    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_told_by_the_name_of_its_task_and_an_end_is_not() {
        let mut background = Background::default();
        assert!(timeout(LONG, background.broken()).await.is_err(), "there is no task");

        let (go_on, told) = oneshot::channel::<()>();
        background.spawn("one that ends", ready(()));
        background.spawn("one that goes on", pending());
        background.spawn("one that panics", async move {
            told.await.expect("it is told");
            panic!("out of order");
        });
        assert!(timeout(LONG, background.broken()).await.is_err(), "nothing has panicked yet");

        go_on.send(()).expect("it listens");
        let error = background.broken().await.chain();
        assert!(error.contains("\"one that panics\"") && error.contains("out of order"), "{error}");
    }

    #[tokio::test]
    async fn stopping_ends_background_tasks() {
        let mut background = Background::default();
        let (held, dropped) = oneshot::channel::<()>();
        background.spawn("one that goes on", async move {
            let _held = held;
            pending::<()>().await;
        });
        background.stop().await;
        dropped.await.expect_err("the task is gone, and what it held");
    }
}
