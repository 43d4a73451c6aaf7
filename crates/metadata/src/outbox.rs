//! The outbox of events: publishes them in the order of the changes, and not before the changes are on disk.
//!
//! ```text
//! in the write turn:     reserve a place
//! change is readable:    put its events there ────┐
//! change is on disk:     so are all before it ────┴──▶ publish from the front the events that are there and on disk
//! ```
//!
//! A subscriber acts on an event, so a crash must not undo its change. A normal change is on disk when it is
//! acknowledged; the events of a relaxed one wait for the next normal change, or for
//! [`Metadata::sync`](crate::Metadata::sync). Without subscribers they do not wait: a crash would also erase what
//! keeps them in memory.

use std::collections::VecDeque;
use std::sync::{Arc, MutexGuard};

use stdx::Mutex;

use crate::event::{Events, Sink};

/// Whether events have subscribers.
pub type Hearing = Box<dyn Fn() -> bool + Send + Sync>;

/// Clones share one outbox.
#[derive(Clone)]
pub(crate) struct Outbox(Arc<Inner>);

struct Inner {
    sink: Sink,
    is_heard: Hearing,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    next: u64,
    /// Changes with places before this number are on disk.
    on_disk: u64,
    /// In the order of the changes.
    places: VecDeque<Reserved>,
}

struct Reserved {
    number: u64,
    /// `None` until the change is readable.
    events: Option<Events>,
    /// Whether the events wait until the change is on disk.
    waits: bool,
}

impl Outbox {
    pub(crate) fn new(sink: Sink, is_heard: Hearing) -> Outbox {
        Outbox(Arc::new(Inner { sink, is_heard, queue: Mutex::default() }))
    }

    /// Reserves the next place. The caller holds the write turn.
    pub(crate) fn reserve(&self) -> Place {
        let mut queue = self.queue();
        let number = queue.next;
        queue.next += 1;
        queue.places.push_back(Reserved { number, events: None, waits: true });
        Place { outbox: self.clone(), number, is_filled: false }
    }

    /// The number after all reserved places. The caller holds the write turn, and passes the number to
    /// [`Outbox::on_disk`] once its change is on disk.
    pub(crate) fn end(&self) -> u64 {
        self.queue().next
    }

    /// The first place whose change may not be acknowledged yet.
    pub(crate) fn answered(&self) -> u64 {
        let queue = self.queue();
        let open = queue.places.iter().find(|place| place.events.is_none());
        open.map_or(queue.next, |place| place.number)
    }

    /// Marks changes before the place `end` as on disk, and publishes their events.
    pub(crate) fn on_disk(&self, end: u64) {
        let mut queue = self.queue();
        queue.on_disk = queue.on_disk.max(end);
        self.hand_out(queue);
    }

    /// The first place whose events wait for the disk.
    pub(crate) fn held(&self) -> Option<u64> {
        let queue = self.queue();
        let waits =
            |place: &&Reserved| place.number >= queue.on_disk && place.events.is_some() && place.waits;
        queue.places.iter().find(waits).map(|place| place.number)
    }

    fn fill(&self, number: u64, events: Events, waits: bool) {
        let mut queue = self.queue();
        if let Some(place) = queue.places.iter_mut().find(|place| place.number == number) {
            (place.events, place.waits) = (Some(events), waits);
        }
        self.hand_out(queue);
    }

    fn hand_out(&self, mut queue: MutexGuard<'_, Queue>) {
        let on_disk = queue.on_disk;
        let goes = |place: &Reserved| {
            let is_free = |events: &Events| place.number < on_disk || events.is_empty() || !place.waits;
            place.events.as_ref().is_some_and(is_free)
        };
        while queue.places.front().is_some_and(goes) {
            let events = queue.places.pop_front().and_then(|place| place.events);
            for (namespace, event) in events.into_iter().flatten() {
                (self.0.sink)(&namespace, event);
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock()
    }
}

/// A reserved place in the outbox. Dropped unfilled, it is given up: its change was not committed.
pub(crate) struct Place {
    outbox: Outbox,
    number: u64,
    is_filled: bool,
}

impl Place {
    /// Fills in the events of a change that is on disk, or whose writer will call [`Outbox::on_disk`].
    pub(crate) fn fill(mut self, events: Events) {
        self.is_filled = true;
        self.outbox.fill(self.number, events, true);
    }

    /// Fills in the events of a change that is readable but not on disk. Returns whether they wait for that.
    pub(crate) fn hold(mut self, events: Events) -> bool {
        self.is_filled = true;
        let is_heard = (self.outbox.0.is_heard)();
        self.outbox.fill(self.number, events, is_heard);
        is_heard
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.is_filled {
            self.outbox.fill(self.number, Events::new(), true);
        }
    }
}
