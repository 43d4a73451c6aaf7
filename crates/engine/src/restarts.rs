//! Planned restarts: containers that have ended and will be started again by their restart policy. A restart is planned
//! as soon as the exit is known, and begins once the end is settled.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard};

use stdx::Mutex;
use tokio::sync::Notify;

/// For each waiting container, how to cancel its restart.
#[derive(Default)]
pub(crate) struct Restarts(Mutex<BTreeMap<String, Arc<Notify>>>);

impl Restarts {
    /// Plans a restart, replacing an earlier plan. Notifying the result cancels it.
    pub(crate) fn plan(&self, id: &str) -> Arc<Notify> {
        let cancelled = Arc::new(Notify::new());
        if let Some(before) = self.lock().insert(id.to_owned(), cancelled.clone()) {
            before.notify_one();
        }
        cancelled
    }

    pub(crate) fn are_planned(&self, id: &str) -> bool {
        self.lock().contains_key(id)
    }

    /// Cancels the planned restart, if there is one.
    pub(crate) fn cancel(&self, id: &str) {
        if let Some(planned) = self.lock().remove(id) {
            planned.notify_one();
        }
    }

    /// Forgets a plan that is done, unless there is a newer one.
    pub(crate) fn end(&self, id: &str, planned: &Arc<Notify>) {
        let mut all = self.lock();
        if all.get(id).is_some_and(|current| Arc::ptr_eq(current, planned)) {
            all.remove(id);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Notify>>> {
        self.0.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_new_restart_plan_replaces_the_last() {
        let restarts = Restarts::default();
        let first = restarts.plan("a");
        let second = restarts.plan("a");
        first.notified().await;
        restarts.end("a", &first);
        assert!(restarts.are_planned("a") && !restarts.are_planned("b"));
        restarts.cancel("a");
        second.notified().await;
        assert!(!restarts.are_planned("a"));
        let third = restarts.plan("a");
        restarts.end("a", &third);
        assert!(!restarts.are_planned("a"));
    }
}
