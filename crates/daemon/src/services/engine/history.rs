//! What happened to containers, images, volumes and networks: the last of it kept in memory, and told on to those who listen.
//!
//! ```text
//! exchange ─▶ record: who is it? ─┬▶ past: [`PAST_LEN_MAX`] events, [`PAST_BYTES_MAX`]
//!                                 └▶ listener: up to [`CAPACITY`] that wait, of [`BYTES_MAX`] ─▶ as fast as it reads
//! ```
//!
//! Invariants
//! - An event is kept and told with what was known of the container when it came: nobody may know it any more when a client
//!   gets to it. What a record says that goes is noted before it goes ([`Engine::take_removed`]).
//! - Who joins gets what is kept and then what comes: nothing is missing between the two, and nothing there twice.
//! - A listener that is too slow is told so, and ends: to go on would hide that something is missing.
//! - The past goes with the daemon, as Docker's does.

use std::collections::VecDeque;
use std::sync::Arc;

use api::engine::Happened;
use engine::Engine;
use events::{CAPACITY, Envelope, Exchange, Listening, Received, Subscription};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::events::Filters;
use super::happened::read;
use super::{Document, document};

/// Events that are kept.
const PAST_LEN_MAX: usize = 1024;
/// Bytes of them. Each has all labels of its container, and these may be large.
const PAST_BYTES_MAX: usize = 4 << 20;
/// Bytes that may wait for a listener.
const BYTES_MAX: usize = 16 << 20;
/// Who wants to join waits for a place, and then until what has happened is noted.
const JOINS_WAITING: usize = 16;

/// Who wants to listen, and how to answer.
type Join = (Filters, oneshot::Sender<(Vec<Happened>, Listener)>);

/// How to listen. Clones are the same.
#[derive(Clone)]
pub(crate) struct History {
    exchange: Exchange,
    joins: mpsc::Sender<Join>,
}

/// The one who hears and notes; to be run.
pub(crate) struct Recorder {
    heard: Subscription,
    joining: mpsc::Receiver<Join>,
    engine: Engine,
    past: Past,
    listeners: Vec<(Filters, Heard)>,
}

impl History {
    /// Of what happens from here on.
    pub(crate) fn new(exchange: &Exchange, engine: Engine) -> (History, Recorder) {
        let namespace = engine.namespace().clone();
        let heard = exchange.overhear(move |envelope| envelope.namespace == namespace);
        let (joins, joining) = mpsc::channel(JOINS_WAITING);
        let recorder = Recorder { heard, joining, engine, past: Past::default(), listeners: Vec::new() };
        (History { exchange: exchange.clone(), joins }, recorder)
    }

    /// What is kept, the oldest first, and what comes from here on. None if the daemon ends.
    pub(super) async fn join(&self, filters: Filters) -> Option<(Vec<Happened>, Listener)> {
        let (answer, answered) = oneshot::channel();
        self.joins.send((filters, answer)).await.ok()?;
        let (past, mut listener) = answered.await.ok()?;
        listener.listening = Some(self.exchange.listening());
        Some((past, listener))
    }
}

impl Recorder {
    /// Until there is nothing more to hear.
    pub(crate) async fn run(mut self) {
        loop {
            tokio::select! {
                // Who joins is told what had happened by then.
                biased;
                received = self.heard.receive() => match received {
                    Some(Received::Event(envelope)) => self.note(&envelope).await,
                    Some(Received::Lagged(lost)) => {
                        tracing::warn!("{lost} events came faster than they could be noted, and are not told");
                        // Who listens sees that something is missing.
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
        // An id is missing where it is of none alone.
        if happened.kind == "container" && !happened.actor.id.is_empty() {
            let id = &happened.actor.id;
            let known = match happened.action.as_str() {
                "destroy" => self.engine.take_removed(id),
                _ => self.engine.describe(id).await,
            };
            // Containers of others have no name.
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
        // Who is gone meanwhile is not there at the next event.
        let _ = answer.send((past, Listener { waiting, listening: None }));
    }
}

/// The last events, the oldest first.
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

/// Who listens. As long as somebody does, events of changes are held back until these are on disk.
pub(super) struct Listener {
    waiting: Waiting,
    listening: Option<Listening>,
}

impl Listener {
    /// None if it was too slow.
    pub(super) async fn next(&mut self) -> Option<(Document, OwnedSemaphorePermit)> {
        self.waiting.recv().await
    }
}

/// What was heard and waits for the client, with the room that it takes.
type Waiting = mpsc::Receiver<(Document, OwnedSemaphorePermit)>;

/// The other end.
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
    /// Whether somebody hears it, and there was room for it. If nothing else waits there is, however large it is.
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
    fn so_many_events_are_kept_and_so_many_bytes() {
        let mut past = Past::default();
        (0..2 * PAST_LEN_MAX).for_each(|_| past.keep(of(1)));
        assert_eq!((past.events.len(), past.bytes), (PAST_LEN_MAX, PAST_LEN_MAX));
        (0..10).for_each(|_| past.keep(of(PAST_BYTES_MAX / 4)));
        assert_eq!((past.events.len(), past.bytes), (4, PAST_BYTES_MAX));
        past.keep(of(PAST_BYTES_MAX + 1));
        assert_eq!((past.events.len(), past.bytes), (0, 0), "one that is larger than all may be");
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_holds_so_many_events_and_so_many_bytes() {
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
