//! Where the time of one course of work goes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::lock::Mutex;

/// A clock that is asked at the end of each step. The laps add up to all the time since it was made: what
/// is slow can't hide between two of them. Clones are the same clock.
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

    /// Ends a step, which began where the last one ended.
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
