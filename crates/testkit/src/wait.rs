//! Waiting with a deadline.

use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

/// How long anything in a test may take before the test fails. Long, because two slow cores run
/// many tests at once; nothing waits this long when it works.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Asks again and again, with short pauses, until `ready` answers something.
///
/// For states that have no event to wait for: a socket that another program will listen on, a line
/// that will stand in a file. Panics with `what` after [`DEADLINE`].
pub fn eventually<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(answer) = ready() {
            return answer;
        }
        assert!(start.elapsed() < DEADLINE, "{what}: did not happen within {DEADLINE:?}");
        wait_for(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// A pause between two looks. Nobody signals the condition, so it always runs its time.
pub(crate) fn wait_for(pause: Duration) {
    let (lock, condition) = (Mutex::new(()), Condvar::new());
    let guard = lock.lock().expect("nobody else has this lock");
    drop(condition.wait_timeout(guard, pause));
}
