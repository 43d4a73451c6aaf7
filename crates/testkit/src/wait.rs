//! Waiting with a deadline.

use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

/// The longest that a test waits for anything before it fails. Two slow cores may run many tests at once, so it is
/// long; a passing test never waits for it.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Calls `ready` again and again, with short pauses, until it returns `Some`.
///
/// For states without an event: a socket that another program will listen on, a line that will appear in a file. Panics
/// with `what` after [`DEADLINE`].
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

/// Waits for `pause` on a condition that nothing signals.
pub(crate) fn wait_for(pause: Duration) {
    let (lock, condition) = (Mutex::new(()), Condvar::new());
    let guard = lock.lock().expect("nobody else has this lock");
    drop(condition.wait_timeout(guard, pause));
}
