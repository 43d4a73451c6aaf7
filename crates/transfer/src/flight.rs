//! Single flight: a blob that several pulls need is fetched by one of them.
//!
//! ```text
//! pull A ─▶ board(blob) ─▶ fetches ─▶ commits ─▶ leaves
//! pull B ─▶ board(blob) ─ waits ───────────────▶ boards ─▶ finds the blob
//! ```
//!
//! Invariants
//! - One flight per digest, whatever the namespace: namespaces share the blob that the first pull fetches.
//! - A waiting pull holds nothing that another one needs, and is woken by the end of the flight before its own, in
//!   the order of arrival. A cancelled pull leaves, and the next one resumes from its bytes.
//! - A pull whose host sends little of a layer leaves too, for others that may be faster, and boards again behind
//!   them.
//! - A document is small enough to be fetched twice: a pull that has waited for one for a while fetches it beside the
//!   flight, which a malicious host may be delaying.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use stdx::Mutex;
use tokio::sync::OwnedMutexGuard;
use types::Digest;

/// How long a pull waits for a document that another pull fetches.
const PATIENCE: Duration = Duration::from_secs(5);

/// The blobs that pulls are fetching. Clones share them: a daemon has one.
#[derive(Clone)]
pub struct Flights {
    on_their_way: Arc<Mutex<HashMap<Digest, Flight>>>,
    patience: Duration,
}

/// The fetch of one blob.
#[derive(Default)]
struct Flight {
    turn: Arc<tokio::sync::Mutex<()>>,
    /// The pulls that fetch it or wait for it, by the registry that they would ask.
    passengers: Vec<String>,
}

/// The right to fetch a blob, until dropped.
pub(crate) struct Boarded {
    // Dropped before the seat: the waiting pulls have seats, so the flight stays.
    _turn: OwnedMutexGuard<()>,
    _seat: Seat,
}

/// A pull on a flight, waiting or fetching, until dropped.
struct Seat {
    flights: Flights,
    digest: Digest,
    host: String,
}

impl Default for Flights {
    fn default() -> Flights {
        Flights::with_patience(PATIENCE)
    }
}

impl Flights {
    /// Sets how long a pull waits for a document of another pull.
    pub fn with_patience(patience: Duration) -> Flights {
        Flights { on_their_way: Arc::default(), patience }
    }

    /// Returns when no other pull fetches this blob. The caller would fetch it from the registry `host`.
    pub(crate) async fn board(&self, digest: &Digest, host: &str) -> Boarded {
        let turn = {
            let mut flights = self.lock();
            let flight = flights.entry(digest.clone()).or_default();
            flight.passengers.push(host.to_owned());
            flight.turn.clone()
        };
        let seat = Seat { flights: self.clone(), digest: digest.clone(), host: host.to_owned() };
        Boarded { _turn: turn.lock_owned().await, _seat: seat }
    }

    /// As [`Flights::board`], for a document; `None` if that takes longer than the patience of these flights.
    pub(crate) async fn board_or_leave(&self, document: &Digest, host: &str) -> Option<Boarded> {
        tokio::time::timeout(self.patience, self.board(document, host)).await.ok()
    }

    /// Whether the pull that fetches a blob slowly from `host` should yield to waiting pulls: if they would ask
    /// another registry, or if the fetch has stalled, which may be due to the pull's own credentials or connection.
    pub(crate) fn should_yield(&self, digest: &Digest, host: &str, is_stalled: bool) -> bool {
        let flights = self.lock();
        let Some(flight) = flights.get(digest) else { return false };
        flight.passengers.iter().any(|other| other != host) || (is_stalled && flight.passengers.len() > 1)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Flight>> {
        self.on_their_way.lock()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut flights = self.flights.lock();
        let Some(flight) = flights.get_mut(&self.digest) else { return };
        if let Some(at) = flight.passengers.iter().position(|host| *host == self.host) {
            flight.passengers.swap_remove(at);
        }
        if flight.passengers.is_empty() {
            flights.remove(&self.digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn one_at_a_time_boards_in_the_order_of_arrival() {
        let (flights, blob, other) = (Flights::default(), Digest::of(b"a"), Digest::of(b"b"));
        let first = poll(pin!(flights.board(&blob, "a"))).expect("nobody is before it");
        let (mut second, mut third) = (pin!(flights.board(&blob, "a")), pin!(flights.board(&blob, "a")));
        assert!(poll(second.as_mut()).is_none() && poll(third.as_mut()).is_none());
        assert!(poll(pin!(flights.board(&other, "a"))).is_some(), "another blob is another flight");
        drop(first);
        assert!(poll(third.as_mut()).is_none());
        let second = poll(second).expect("the first has left");
        drop(second);
        drop(poll(third).expect("the second has left"));
        assert!(flights.lock().is_empty(), "nothing is kept of a flight that is over");
    }

    #[test]
    fn a_cancelled_pull_is_not_waited_for() {
        let (flights, blob) = (Flights::default(), Digest::of(b"a"));
        let first = poll(pin!(flights.board(&blob, "a"))).expect("nobody is before it");
        let mut third = pin!(flights.board(&blob, "a"));
        {
            let mut second = pin!(flights.board(&blob, "a"));
            assert!(poll(second.as_mut()).is_none() && poll(third.as_mut()).is_none());
        }
        drop(first);
        drop(poll(third).expect("the first has left, the second has given up"));
        assert!(flights.lock().is_empty());
    }

    #[test]
    fn a_slow_pull_yields_to_pulls_that_may_be_faster() {
        let (flights, blob) = (Flights::default(), Digest::of(b"a"));
        let _first = poll(pin!(flights.board(&blob, "a"))).expect("nobody is before it");
        assert!(!flights.should_yield(&blob, "a", true), "nobody waits");
        let mut same = pin!(flights.board(&blob, "a"));
        assert!(poll(same.as_mut()).is_none());
        assert!(!flights.should_yield(&blob, "a", false), "they would get no more from there");
        assert!(flights.should_yield(&blob, "a", true));
        {
            let mut other = pin!(flights.board(&blob, "b"));
            assert!(poll(other.as_mut()).is_none());
            assert!(flights.should_yield(&blob, "a", false));
        }
        assert!(!flights.should_yield(&blob, "a", false), "it has given up");
    }
}
