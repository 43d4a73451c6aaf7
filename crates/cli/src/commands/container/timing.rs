//! `run --timing`: prints how long each step of a run took.
//!
//! ```text
//! this program   prepare the pipes ─▶ [fetch the image] ─▶ ask the daemon ──────▶ run to its end, and remove it
//! the daemon                                               find the image ─▶ … ─▶ record the start
//! ```
//!
//! The daemon's steps add up to all of its time, so the rest of "ask the daemon" is the time on the connection.

use std::time::Duration;

use api::engine::Created;
use stdx::Laps;

pub(super) const PIPES: &str = "prepare the pipes";
pub(super) const FETCH: &str = "fetch the image";
pub(super) const ASK: &str = "ask the daemon";
pub(super) const RUN: &str = "run to its end";

/// Prints the table to standard error, as standard output is the container's.
pub(super) fn print(laps: &Laps, created: &Created) {
    eprint!("{}", table(&laps.laps(), created));
}

fn table(laps: &[(&'static str, Duration)], created: &Created) -> String {
    let daemons: Vec<(&str, Duration)> =
        created.laps.iter().map(|lap| (lap.step.as_str(), Duration::from_micros(lap.microseconds))).collect();
    let within: Duration = daemons.iter().map(|(_, took)| *took).sum();
    let mut lines = Vec::new();
    for (step, took) in laps {
        if *step == ASK {
            lines.push((*step, took.saturating_sub(within)));
            lines.extend(&daemons);
        } else {
            lines.push((*step, *took));
        }
    }
    lines.push(("all", laps.iter().map(|(_, took)| *took).sum()));
    lines.iter().map(|(step, took)| format!("{:>9.2} ms  {step}\n", took.as_secs_f64() * 1e3)).collect()
}

#[cfg(test)]
mod tests {
    use api::engine::Lap;

    use super::*;

    #[test]
    fn the_timing_table_has_the_daemons_steps_in_place_of_the_call() {
        let laps = [
            (PIPES, Duration::from_micros(200)),
            (ASK, Duration::from_millis(10)),
            (RUN, Duration::from_millis(3)),
        ];
        let lap = |step: &str, microseconds| Lap { step: step.into(), microseconds };
        let created = Created {
            id: "x".into(),
            laps: vec![lap("find the image", 1_500), lap("start the shim", 6_500)],
            warnings: Vec::new(),
        };
        let expected = "     0.20 ms  prepare the pipes
     2.00 ms  ask the daemon
     1.50 ms  find the image
     6.50 ms  start the shim
     3.00 ms  run to its end
    13.20 ms  all
";
        assert_eq!(table(&laps, &created), expected);
    }
}
