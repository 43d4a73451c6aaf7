//! The history of events in Docker's form: keeps recent ones in memory and forwards new ones to listeners.
//!
//! ```text
//! exchange ─▶ recorder: adds attributes ─┬▶ past: [`PAST_LEN_MAX`] events, [`PAST_BYTES_MAX`]
//!                                        └▶ listener's queue: [`CAPACITY`] events, [`BYTES_MAX`] ─▶ client
//! ```
//!
//! Invariants
//! - An event is recorded with the attributes that its container had at that time: later they may be unknown.
//!   Attributes of a record are saved before it is deleted ([`Engine::take_removed`]).
//! - A listener gets the past and then new events, without gaps or duplicates.
//! - A listener that is too slow is told so and ended: continuing would hide a gap.
//! - The past is lost when the daemon ends, as in Docker.

use std::collections::VecDeque;
use std::sync::Arc;

use api::engine::Happened;
use engine::Engine;
use events::{CAPACITY, Envelope, Exchange, Listening, Received, Subscription};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::docker_event::read;
use super::events::Filters;
use super::{Document, document};

/// The most past events that are kept.
const PAST_LEN_MAX: usize = 1024;
/// The most bytes of past events. Each has all labels of its container, which may be large.
const PAST_BYTES_MAX: usize = 4 << 20;
/// The most bytes that wait for a listener.
const BYTES_MAX: usize = 16 << 20;
/// The most listeners that wait to be admitted; further ones block.
const JOINS_WAITING: usize = 16;

/// A request to listen: the filters, and where to send the past and the listener.
type Join = (Filters, oneshot::Sender<(Vec<Happened>, Listener)>);

/// The interface for listeners. Clones share state.
#[derive(Clone)]
pub(crate) struct History {
    exchange: Exchange,
    joins: mpsc::Sender<Join>,
}

/// The task that receives events from the exchange and records them.
pub(crate) struct Recorder {
    heard: Subscription,
    joining: mpsc::Receiver<Join>,
    engine: Engine,
    past: Past,
    listeners: Vec<(Filters, Heard)>,
}

impl History {
    /// Records events from now on.
    pub(crate) fn new(exchange: &Exchange, engine: Engine) -> (History, Recorder) {
        let namespace = engine.namespace().clone();
        let heard = exchange.overhear(move |envelope| envelope.namespace == namespace);
        let (joins, joining) = mpsc::channel(JOINS_WAITING);
        let recorder = Recorder { heard, joining, engine, past: Past::default(), listeners: Vec::new() };
        (History { exchange: exchange.clone(), joins }, recorder)
    }

    /// Past events, oldest first, and a listener for new ones. `None` if the daemon is stopping.
    pub(super) async fn join(&self, filters: Filters) -> Option<(Vec<Happened>, Listener)> {
        let (answer, answered) = oneshot::channel();
        self.joins.send((filters, answer)).await.ok()?;
        let (past, mut listener) = answered.await.ok()?;
        listener.listening = Some(self.exchange.listening());
        Some((past, listener))
    }
}

impl Recorder {
    /// Runs until the exchange is closed.
    pub(crate) async fn run(mut self) {
        loop {
            tokio::select! {
                // Events first, so that a new listener's past is complete.
                biased;
                received = self.heard.receive() => match received {
                    Some(Received::Event(envelope)) => self.note(&envelope).await,
                    Some(Received::Lagged(lost)) => {
                        tracing::warn!("{lost} events came faster than they could be noted, and are not told");
                        // Ending the listeners makes the gap visible to clients.
                        self.listeners.clear();
                    }
                    None => return,
                },
                Some((filters, answer)) = self.joining.recv() => self.admit(filters, answer),
            }
        }
    }

    async fn note(&mut self, envelope: &Envelope) {
        let Some(mut happened) = read(envelope) else { return };
        // An event about all containers, such as a prune, has no id.
        if happened.kind == "container" && !happened.actor.id.is_empty() {
            let id = &happened.actor.id;
            let known = match happened.action.as_str() {
                "destroy" => self.engine.take_removed(id),
                _ => self.engine.describe(id).await,
            };
            // Containers of other clients are unknown to the engine.
            let Some(known) = known else { return };
            happened.actor.attributes.extend(known);
        }
        let told = document(&happened);
        self.listeners.retain(|(filters, heard)| !filters.fit(&happened) || heard.keep(told.clone()));
        self.past.keep(told);
    }

    fn admit(&mut self, filters: Filters, answer: oneshot::Sender<(Vec<Happened>, Listener)>) {
        let (heard, waiting) = queue(CAPACITY, BYTES_MAX);
        let past = self.past.events.iter().filter_map(|told| serde_json::from_slice(&told.json).ok());
        let past = past.filter(|happened| filters.fit(happened)).collect();
        self.listeners.retain(|(_, heard)| !heard.send.is_closed());
        self.listeners.push((filters, heard));
        // A client that has disconnected is removed at the next event.
        let _ = answer.send((past, Listener { waiting, listening: None }));
    }
}

/// The past events, oldest first.
#[derive(Default)]
struct Past {
    events: VecDeque<Document>,
    bytes: usize,
}

impl Past {
    fn keep(&mut self, told: Document) {
        self.bytes += told.json.len();
        self.events.push_back(told);
        while self.events.len() > PAST_LEN_MAX || self.bytes > PAST_BYTES_MAX {
            let Some(oldest) = self.events.pop_front() else { return };
            self.bytes -= oldest.json.len();
        }
    }
}

/// A client's listener. While there is one, events of changes are held back until the changes are durable.
pub(super) struct Listener {
    waiting: Waiting,
    listening: Option<Listening>,
}

impl Listener {
    /// `None` if the listener was too slow.
    pub(super) async fn next(&mut self) -> Option<(Document, OwnedSemaphorePermit)> {
        self.waiting.recv().await
    }
}

/// A listener's queue; each event holds a permit for its bytes.
type Waiting = mpsc::Receiver<(Document, OwnedSemaphorePermit)>;

/// The sending end of the queue.
struct Heard {
    send: mpsc::Sender<(Document, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
    len_max: usize,
}

fn queue(capacity: usize, len_max: usize) -> (Heard, Waiting) {
    let (send, waiting) = mpsc::channel(capacity);
    (Heard { send, room: Arc::new(Semaphore::new(len_max)), len_max }, waiting)
}

impl Heard {
    /// Enqueues an event. False if the listener is gone or its queue full; an empty queue accepts an event of any size.
    fn keep(&self, document: Document) -> bool {
        let len = u32::try_from(document.json.len().min(self.len_max)).expect("not so much room");
        let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(len) else { return false };
        self.send.try_send((document, room)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(len: usize) -> Document {
        Document { json: vec![b' '; len] }
    }

    #[test]
    fn past_events_are_bounded_by_number_and_bytes() {
        let mut past = Past::default();
        (0..2 * PAST_LEN_MAX).for_each(|_| past.keep(of(1)));
        assert_eq!((past.events.len(), past.bytes), (PAST_LEN_MAX, PAST_LEN_MAX));
        (0..10).for_each(|_| past.keep(of(PAST_BYTES_MAX / 4)));
        assert_eq!((past.events.len(), past.bytes), (4, PAST_BYTES_MAX));
        past.keep(of(PAST_BYTES_MAX + 1));
        assert_eq!((past.events.len(), past.bytes), (0, 0), "one that is larger than all may be");
    }

    #[tokio::test]
    async fn a_slow_event_listener_is_bounded_by_number_and_bytes() {
        let (heard, mut waiting) = queue(5, 1000);
        let mut kept = |len: usize| {
            let count = (0..100).take_while(|_| heard.keep(of(len))).count();
            while waiting.try_recv().is_ok() {}
            count
        };
        assert_eq!([kept(1), kept(200), kept(300), kept(600)], [5, 5, 3, 1]);
        assert_eq!([kept(5000), kept(1)], [1, 5], "one is kept whatever its size is");
        drop(waiting);
        assert!(!heard.keep(of(1)), "nobody hears it");
    }
}
