//! What happened to records, told after the commit and in the order of the changes.
//!
//! ```text
//! turn of the writer:  reserve a place in the outbox
//! after the commit:    put the events there ──▶ hand out from the front all that are ready
//! ```

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use types::{ContainerId, Digest, Labels, Namespace};

use crate::container::Runtime;

/// One change of a record. The topic of containerd that goes with it is in the comment.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// `/namespaces/create`
    NamespaceCreated { labels: Labels },
    /// `/namespaces/update`
    NamespaceUpdated { labels: Labels },
    /// `/namespaces/delete`
    NamespaceDeleted,
    /// `/images/create`
    ImageCreated { name: String, labels: Labels },
    /// `/images/update`
    ImageUpdated { name: String, labels: Labels },
    /// `/images/delete`, also for images that expired
    ImageDeleted { name: String },
    /// `/containers/create`
    ContainerCreated { id: ContainerId, image: String, runtime: Runtime },
    /// `/containers/update`
    ContainerUpdated { id: ContainerId, image: String, labels: Labels, snapshot_key: String },
    /// `/containers/delete`
    ContainerDeleted { id: ContainerId },
    /// `/content/create`
    /// The type is empty where nobody said it.
    ContentCreated { digest: Digest, size: u64, media_type: String },
    /// `/content/delete`
    ContentDeleted { digest: Digest },
    /// `/snapshot/prepare`
    SnapshotPrepared { snapshotter: String, key: String, parent: String },
    /// `/snapshot/commit`
    SnapshotCommitted { snapshotter: String, key: String, name: String },
    /// `/snapshot/remove`, also for snapshots that were collected
    SnapshotRemoved { snapshotter: String, key: String },
}

/// Takes events. It is called with a lock held: it must be quick and must not call back.
pub type Sink = Box<dyn Fn(&Namespace, Event) + Send + Sync>;

pub(crate) type Events = Vec<(Namespace, Event)>;

/// Clones are the same.
#[derive(Clone)]
pub(crate) struct Outbox(Arc<Inner>);

struct Inner {
    sink: Sink,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    next: u64,
    /// Places in the order of the changes; `None` until their change is committed.
    places: VecDeque<(u64, Option<Events>)>,
}

impl Outbox {
    pub(crate) fn new(sink: Sink) -> Outbox {
        Outbox(Arc::new(Inner { sink, queue: Mutex::default() }))
    }

    /// Called with the writer's turn in hand.
    pub(crate) fn reserve(&self) -> Place {
        let mut queue = self.0.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let number = queue.next;
        queue.next += 1;
        queue.places.push_back((number, None));
        Place { outbox: self.clone(), number, is_filled: false }
    }

    fn fill(&self, number: u64, events: Events) {
        let mut queue = self.0.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = queue.places.iter_mut().find(|place| place.0 == number) {
            place.1 = Some(events);
        }
        while queue.places.front().is_some_and(|(_, events)| events.is_some()) {
            let events = queue.places.pop_front().and_then(|(_, events)| events);
            for (namespace, event) in events.into_iter().flatten() {
                (self.0.sink)(&namespace, event);
            }
        }
    }
}

/// A place in the outbox. Dropped unfilled, it is given up: its change was not committed.
pub(crate) struct Place {
    outbox: Outbox,
    number: u64,
    is_filled: bool,
}

impl Place {
    pub(crate) fn fill(mut self, events: Events) {
        self.is_filled = true;
        self.outbox.fill(self.number, events);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.is_filled {
            self.outbox.fill(self.number, Events::new());
        }
    }
}
