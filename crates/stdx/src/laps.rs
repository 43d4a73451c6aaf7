//! A stopwatch for the steps of an operation.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::lock::Mutex;

/// Measures consecutive steps. The laps add up to the whole time since the start, so that no slow part can hide between
/// two of them. Clones share one clock.
#[derive(Clone, Debug)]
pub struct Laps(Arc<Mutex<Course>>);

#[derive(Debug)]
struct Course {
    last: Instant,
    laps: Vec<(&'static str, Duration)>,
}

impl Laps {
    /// Starts now.
    pub fn start() -> Laps {
        Laps(Arc::new(Mutex::new(Course { last: Instant::now(), laps: Vec::new() })))
    }

    /// Ends a step, which began at the end of the previous one.
    pub fn lap(&self, step: &'static str) {
        let now = Instant::now();
        let mut course = self.0.lock();
        let took = now.duration_since(course.last);
        course.last = now;
        course.laps.push((step, took));
    }

    /// The steps so far, in order.
    pub fn laps(&self) -> Vec<(&'static str, Duration)> {
        self.0.lock().laps.clone()
    }
}

impl Default for Laps {
    fn default() -> Laps {
        Laps::start()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn laps_add_up_to_the_whole() {
        let before = Instant::now();
        let laps = Laps::start();
        let began = Instant::now();
        laps.lap("first");
        let other = laps.clone();
        other.lap("second");
        let least = began.elapsed();
        laps.lap("third");
        let sum: Duration = laps.laps().iter().map(|(_, took)| *took).sum();
        assert_eq!(
            laps.laps().iter().map(|(step, _)| *step).collect::<Vec<_>>(),
            ["first", "second", "third"]
        );
        assert!(least <= sum && sum <= before.elapsed());
    }
}
