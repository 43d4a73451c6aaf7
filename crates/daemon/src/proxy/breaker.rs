//! A circuit breaker: whether a plugin may be called now.
//!
//! ```text
//! closed ──stuck──▶ open ──pause is over──▶ trial ──answered──▶ closed
//!                    ▲                        └──── stuck ────▶ open, for twice as long
//! ```
//!
//! Only unresponsiveness opens it. A plugin that returns errors, or whose socket refuses connections, delays no caller.

use std::time::{Duration, Instant};

const PAUSE_MIN: Duration = Duration::from_secs(5);
const PAUSE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Default, PartialEq)]
pub(super) struct Breaker {
    state: State,
    pause: Duration,
}

#[derive(Debug, Default, PartialEq)]
enum State {
    #[default]
    Closed,
    Open {
        until: Instant,
    },
    /// One trial call is in progress.
    Trial,
}

#[derive(Debug, PartialEq)]
pub(super) enum Leave {
    Go,
    /// Check the plugin's health first.
    Try,
    /// Refused for this long.
    Not(Duration),
}

impl Breaker {
    pub(super) fn ask(&mut self, now: Instant) -> Leave {
        match self.state {
            State::Closed => Leave::Go,
            State::Open { until } if now >= until => {
                self.state = State::Trial;
                Leave::Try
            }
            State::Open { until } => Leave::Not(until - now),
            State::Trial => Leave::Not(PAUSE_MIN),
        }
    }

    /// How long calls will still be refused, as far as known; `None` if they are not.
    pub(super) fn refuses_for(&self, now: Instant) -> Option<Duration> {
        match self.state {
            State::Open { until } if now < until => Some(until - now),
            _ => None,
        }
    }

    pub(super) fn answered(&mut self) {
        *self = Breaker::default();
    }

    /// Opens the breaker. Returns whether it was closed before.
    pub(super) fn stuck(&mut self, now: Instant) -> bool {
        if matches!(self.state, State::Open { .. }) {
            return false;
        }
        self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        self.state = State::Open { until: now + self.pause };
        true
    }

    /// A trial was abandoned without a result: the next call is the trial.
    pub(super) fn abandoned(&mut self) {
        if self.state == State::Trial {
            self.state = State::Open { until: Instant::now() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_breaker_opens_on_silence_and_closes_on_an_answer() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        assert_eq!(breaker.ask(start), Leave::Go);
        assert!(breaker.stuck(start));
        assert!(!breaker.stuck(start), "those who waited as well make it no longer");
        assert_eq!(breaker.ask(start), Leave::Not(PAUSE_MIN));
        assert_eq!(breaker.refuses_for(start), Some(PAUSE_MIN));
        let later = start + PAUSE_MIN;
        assert_eq!(breaker.refuses_for(later), None, "whoever comes may try");
        assert_eq!(breaker.ask(later), Leave::Try);
        assert!(matches!(breaker.ask(later), Leave::Not(_)), "one tries at a time");
        assert!(breaker.stuck(later));
        assert_eq!(breaker.ask(later), Leave::Not(PAUSE_MIN * 2));
        assert_eq!(breaker.ask(later + PAUSE_MIN * 2), Leave::Try);
        breaker.answered();
        assert_eq!(breaker, Breaker::default());
    }

    #[test]
    fn breaker_pauses_are_bounded_and_an_abandoned_trial_is_repeated() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        for _ in 0..20 {
            breaker.stuck(now);
            now += PAUSE_MAX;
            assert_eq!(breaker.ask(now), Leave::Try);
        }
        breaker.abandoned();
        assert_eq!(breaker.ask(Instant::now()), Leave::Try);
    }
}
