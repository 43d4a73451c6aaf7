//! Events on their way out: in the order of the changes, and not before these are on disk.
//!
//! ```text
//! turn of the writer:   reserve a place
//! change is readable:   put the events there ────┐
//! change is on disk:    so is all before it ─────┴──▶ hand out from the front what is there and on disk
//! ```
//!
//! Who hears of a change goes by it, and a crash must not undo it then. An ordinary change is on disk when it is answered;
//! the events of a relaxed one wait for the next of those, or for [`Metadata::sync`](crate::Metadata::sync). If nobody
//! listens, they wait for no disk: who notes them in memory has lost them too, after that crash.

use std::collections::VecDeque;
use std::sync::{Arc, MutexGuard};

use stdx::Mutex;

use crate::event::{Events, Sink};

/// Whether anybody listens to events.
pub type Hearing = Box<dyn Fn() -> bool + Send + Sync>;

/// Clones are the same.
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
    /// What was made in places before this one is on disk.
    on_disk: u64,
    /// In the order of the changes.
    places: VecDeque<Reserved>,
}

struct Reserved {
    number: u64,
    /// None until their change can be read.
    events: Option<Events>,
    /// They are out once their change is on disk, not before.
    waits: bool,
}

impl Outbox {
    pub(crate) fn new(sink: Sink, is_heard: Hearing) -> Outbox {
        Outbox(Arc::new(Inner { sink, is_heard, queue: Mutex::default() }))
    }

    /// Called with the writer's turn in hand.
    pub(crate) fn reserve(&self) -> Place {
        let mut queue = self.queue();
        let number = queue.next;
        queue.next += 1;
        queue.places.push_back(Reserved { number, events: None, waits: true });
        Place { outbox: self.clone(), number, is_filled: false }
    }

    /// The place after all that are reserved. Called with the writer's turn in hand, and with what it gives then,
    /// [`Outbox::on_disk`] once the change of that turn is on disk.
    pub(crate) fn end(&self) -> u64 {
        self.queue().next
    }

    /// The first place whose change may not be answered yet.
    pub(crate) fn answered(&self) -> u64 {
        let queue = self.queue();
        let open = queue.places.iter().find(|place| place.events.is_none());
        open.map_or(queue.next, |place| place.number)
    }

    /// Hands out what waited for changes before the place `end` to be on disk.
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

/// A place in the outbox. Dropped unfilled, it is given up: its change was not committed.
pub(crate) struct Place {
    outbox: Outbox,
    number: u64,
    is_filled: bool,
}

impl Place {
    /// Of a change that is on disk, or that waits for it: see [`Outbox::on_disk`].
    pub(crate) fn fill(mut self, events: Events) {
        self.is_filled = true;
        self.outbox.fill(self.number, events, true);
    }

    /// Of a change that can be read and is not on disk. Whether somebody waits for them.
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
