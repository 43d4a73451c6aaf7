//! Prometheus histograms of durations.

use std::time::Duration;

use super::text::Text;

/// Upper bounds of the buckets, in seconds: Prometheus's defaults.
const BOUNDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// A histogram of durations.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    /// Counts per bucket; the last bucket has no upper bound.
    buckets: [u64; BOUNDS.len() + 1],
    sum: Duration,
}

impl Histogram {
    pub(crate) fn add(&mut self, time: Duration) {
        let bucket = BOUNDS.iter().position(|bound| time.as_secs_f64() <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[bucket] += 1;
        self.sum += time;
    }

    #[cfg(test)]
    pub(crate) fn sum(&self) -> Duration {
        self.sum
    }

    /// Writes the samples of a family that was begun.
    pub(super) fn write(&self, text: &mut Text, name: &str, labels: &[(&str, &str)]) {
        let mut below = 0;
        for (count, bound) in self.buckets.iter().zip(BOUNDS.iter().copied().chain([f64::INFINITY])) {
            below += count;
            let bound = if bound.is_finite() { bound.to_string() } else { "+Inf".to_owned() };
            let labels = [labels, &[("le", bound.as_str())]].concat();
            text.sample(&format!("{name}_bucket"), &labels, below as f64);
        }
        text.sample(&format!("{name}_sum"), labels, self.sum.as_secs_f64());
        text.sample(&format!("{name}_count"), labels, below as f64);
    }
}
