//! The exchange: a ring of recent events, and the subscriptions that read it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use stdx::Mutex;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::broadcast::{self, Receiver, Sender};
use types::Filters;

use crate::Envelope;

/// How many events a subscriber may lag behind. Starting and ending a container publishes about five.
pub const CAPACITY: usize = 4096;

/// The most bytes of unread events, over all subscribers. [`CAPACITY`] events of the daemon and its shims take about a
/// megabyte, but clients may publish events as large as a gRPC message.
const BYTES_MAX: usize = 16 << 20;

/// Where events are published. Clones share one ring.
#[derive(Clone, Debug)]
pub struct Exchange {
    ring: Sender<Arc<Slot>>,
    waiting: Arc<Waiting>,
}

/// The events that some subscriber has not read yet.
#[derive(Debug)]
struct Waiting {
    bytes: Arc<AtomicUsize>,
    bytes_max: usize,
    capacity: usize,
    /// Oldest first.
    slots: Mutex<VecDeque<Weak<Slot>>>,
    /// Also held by each subscription to more than one topic; their number is its reference count.
    listening: Arc<()>,
}

/// An event in the ring. The envelope is dropped early when unread events exceed the byte limit.
#[derive(Debug)]
struct Slot {
    envelope: Mutex<Option<Arc<Envelope>>>,
    len: usize,
    bytes: Arc<AtomicUsize>,
}

impl Default for Exchange {
    fn default() -> Exchange {
        Exchange::with_limits(CAPACITY, BYTES_MAX)
    }
}

impl Exchange {
    pub fn new() -> Exchange {
        Exchange::default()
    }

    /// An exchange with other limits: a subscriber may lag `capacity` events behind, and unread events may take
    /// `bytes_max` bytes in all. The newest event is kept whatever its size.
    pub fn with_limits(capacity: usize, bytes_max: usize) -> Exchange {
        let (bytes, slots, listening) = Default::default();
        let waiting = Waiting { bytes, bytes_max, capacity, slots, listening };
        Exchange { ring: broadcast::channel(capacity).0, waiting: Arc::new(waiting) }
    }

    /// Delivers the event to all subscribers. Without subscribers it is dropped.
    pub fn publish(&self, envelope: Envelope) {
        let slot = self.waiting.slot(envelope);
        let young = Arc::downgrade(&slot);
        // The only possible error is that there are no subscribers.
        let _ = self.ring.send(slot);
        self.waiting.note(young);
    }

    /// Whether a subscriber follows more than one topic: then the daemon holds events of changes back until the changes
    /// are on disk.
    pub fn is_heard(&self) -> bool {
        Arc::strong_count(&self.waiting.listening) > 1
    }

    /// Subscribes to the events from now on that match these filters on namespace and topic.
    pub fn subscribe(&self, filters: Filters) -> Subscription {
        self.subscribe_where(move |envelope| filters.matches(envelope))
    }

    /// As [`Exchange::subscribe_where`], but does not count for [`Exchange::is_heard`]: no event waits for the disk for
    /// this subscriber's sake.
    pub fn overhear(&self, wanted: impl Fn(&Envelope) -> bool + Send + Sync + 'static) -> Subscription {
        self.listen(None, wanted)
    }

    /// Counts as a subscriber for [`Exchange::is_heard`] while held: for a client that is served from a subscription
    /// made with [`Exchange::overhear`].
    pub fn listening(&self) -> Listening {
        Listening { _listening: self.waiting.listening.clone() }
    }

    /// Subscribes to the events of one topic.
    pub fn subscribe_topic(&self, topic: &'static str) -> Subscription {
        self.listen(None, move |envelope| envelope.topic == topic)
    }

    /// Subscribes to the events that `wanted` accepts. The subscriber runs `wanted` when it receives, not the
    /// publisher.
    pub fn subscribe_where(
        &self,
        wanted: impl Fn(&Envelope) -> bool + Send + Sync + 'static,
    ) -> Subscription {
        self.listen(Some(self.waiting.listening.clone()), wanted)
    }

    fn listen(
        &self,
        listening: Option<Arc<()>>,
        wanted: impl Fn(&Envelope) -> bool + Send + Sync + 'static,
    ) -> Subscription {
        Subscription {
            ring: self.ring.subscribe(),
            next: None,
            wanted: Box::new(wanted),
            _listening: listening,
        }
    }
}

impl Waiting {
    fn slot(&self, envelope: Envelope) -> Arc<Slot> {
        let len = envelope.len();
        self.bytes.fetch_add(len, Ordering::Relaxed);
        Arc::new(Slot { envelope: Mutex::new(Some(Arc::new(envelope))), len, bytes: self.bytes.clone() })
    }

    /// Drops the oldest unread events while they exceed the byte limit.
    fn note(&self, young: Weak<Slot>) {
        let mut slots = self.slots.lock();
        slots.push_back(young);
        while slots.len() > 1 {
            let is_read = slots[0].strong_count() == 0;
            let is_too_much = self.bytes.load(Ordering::Relaxed) > self.bytes_max;
            if !(is_read || is_too_much || slots.len() > self.capacity) {
                return;
            }
            if let Some(slot) = slots.pop_front().and_then(|slot| slot.upgrade())
                && is_too_much
            {
                slot.drop_envelope();
            }
        }
    }
}

impl Slot {
    fn envelope(&self) -> Option<Arc<Envelope>> {
        self.envelope.lock().clone()
    }

    fn drop_envelope(&self) {
        if self.envelope.lock().take().is_some() {
            self.bytes.fetch_sub(self.len, Ordering::Relaxed);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.drop_envelope();
    }
}

/// A guard: see [`Exchange::listening`].
#[derive(Debug)]
pub struct Listening {
    _listening: Arc<()>,
}

/// The receiving end of the exchange.
pub struct Subscription {
    ring: Receiver<Arc<Slot>>,
    /// The first event after a gap, kept while the gap is reported.
    next: Option<Arc<Envelope>>,
    wanted: Box<dyn Fn(&Envelope) -> bool + Send + Sync>,
    _listening: Option<Arc<()>>,
}

/// What a subscription yields.
#[derive(Clone, Debug, PartialEq)]
pub enum Received {
    Event(Arc<Envelope>),
    /// The subscriber was too slow and lost this many events, whether or not they match its filter.
    Lagged(u64),
}

impl Subscription {
    /// The next event, or `None` once the exchange is dropped. Cancel-safe.
    pub async fn receive(&mut self) -> Option<Received> {
        loop {
            let envelope = match self.next.take() {
                Some(envelope) => envelope,
                None => match self.ring.recv().await {
                    Ok(slot) => match slot.envelope() {
                        Some(envelope) => envelope,
                        None => return Some(Received::Lagged(self.skip())),
                    },
                    Err(RecvError::Lagged(lost)) => return Some(Received::Lagged(lost)),
                    Err(RecvError::Closed) => return None,
                },
            };
            if (self.wanted)(&envelope) {
                return Some(Received::Event(envelope));
            }
        }
    }

    /// Counts consecutive lost events. The caller has received the first of them.
    fn skip(&mut self) -> u64 {
        let mut lost = 1;
        loop {
            match self.ring.try_recv().map(|slot| slot.envelope()) {
                Ok(None) => lost += 1,
                Err(TryRecvError::Lagged(more)) => lost += more,
                Ok(next) => {
                    self.next = next;
                    return lost;
                }
                Err(TryRecvError::Empty | TryRecvError::Closed) => return lost,
            }
        }
    }
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{Namespace, Opaque, Timestamp};

    fn event(namespace: &str, topic: &str) -> Envelope {
        let namespace = Namespace::new(namespace).expect("a namespace");
        Envelope::new(Timestamp::default(), namespace, topic, Opaque::default()).expect("an envelope")
    }

    fn filters(text: &str) -> Filters {
        Filters::parse(&[text]).expect("a filter")
    }

    async fn topics(mut subscription: Subscription) -> Vec<String> {
        let mut topics = Vec::new();
        while let Some(received) = subscription.receive().await {
            topics.push(match received {
                Received::Event(envelope) => envelope.topic.clone(),
                Received::Lagged(lost) => format!("lost {lost}"),
            });
        }
        topics
    }

    #[tokio::test]
    async fn subscribers_get_matching_events_in_order() {
        let exchange = Exchange::new();
        let all = exchange.subscribe(Filters::all());
        let exits = exchange.subscribe(filters(r#"topic=="/tasks/exit""#));
        let one = exchange.subscribe(filters("namespace==a,topic~=images"));
        for (namespace, topic) in [("a", "/tasks/start"), ("b", "/tasks/exit"), ("a", "/images/create")] {
            exchange.publish(event(namespace, topic));
        }
        drop(exchange);
        assert_eq!(topics(all).await, ["/tasks/start", "/tasks/exit", "/images/create"]);
        assert_eq!(topics(exits).await, ["/tasks/exit"]);
        assert_eq!(topics(one).await, ["/images/create"]);
    }

    #[tokio::test]
    async fn a_slow_subscriber_is_told_how_many_events_it_lost() {
        let exchange = Exchange::with_limits(2, BYTES_MAX);
        let slow = exchange.subscribe(Filters::all());
        for topic in ["/a", "/b", "/c", "/d"] {
            exchange.publish(event("default", topic));
        }
        drop(exchange);
        assert_eq!(topics(slow).await, ["lost 2", "/c", "/d"]);
    }

    fn large(topic: &str, len: usize) -> Envelope {
        let value = vec![0; len];
        Envelope { event: Opaque { value, ..Opaque::default() }, ..event("default", topic) }
    }

    #[tokio::test]
    async fn lagging_subscribers_hold_a_bounded_number_of_bytes() {
        let exchange = Exchange::with_limits(100, 10_000);
        let held = exchange.waiting.bytes.clone();
        let (slow, mut quick) = (exchange.subscribe(Filters::all()), exchange.subscribe(Filters::all()));
        for topic in ["/a", "/b", "/c", "/d", "/e"] {
            exchange.publish(large(topic, 4000));
            let Some(Received::Event(envelope)) = quick.receive().await else { panic!("{topic} is lost") };
            assert_eq!(envelope.topic, topic, "who reads in time loses nothing");
            assert!(held.load(Ordering::Relaxed) <= 10_000);
        }
        // An event larger than the limit is kept until a newer one comes.
        exchange.publish(large("/f", 20_000));
        exchange.publish(large("/g", 1));
        exchange.publish(large("/h", 1));
        assert!(held.load(Ordering::Relaxed) <= 10_000);
        drop((quick, exchange));
        assert_eq!(topics(slow).await, ["lost 6", "/g", "/h"]);
        assert_eq!(held.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn events_that_all_subscribers_have_read_are_freed() {
        let exchange = Exchange::with_limits(4, 10_000);
        let held = exchange.waiting.bytes.clone();
        let mut listener = exchange.subscribe(Filters::all());
        for _ in 0..100 {
            exchange.publish(large("/a", 1000));
            assert!(matches!(listener.receive().await, Some(Received::Event(_))));
            assert_eq!(held.load(Ordering::Relaxed), 0);
        }
        // An event without subscribers is not held.
        drop(listener);
        exchange.publish(large("/a", 1000));
        assert_eq!(held.load(Ordering::Relaxed), 0);
        assert!(exchange.waiting.slots.lock().len() <= 4);
    }

    #[test]
    fn a_subscription_to_one_topic_does_not_count_as_heard() {
        let exchange = Exchange::new();
        let exits = exchange.subscribe_topic("/tasks/exit");
        assert!(!exchange.clone().is_heard());
        let all = exchange.clone().subscribe(Filters::all());
        assert!(exchange.is_heard());
        drop(all);
        assert!(!exchange.is_heard());
        drop(exits);
        let overheard = exchange.overhear(|_| true);
        assert!(!exchange.is_heard());
        let listening = exchange.listening();
        assert!(exchange.is_heard());
        drop((listening, overheard));
        assert!(!exchange.is_heard());
    }

    #[tokio::test]
    async fn a_new_subscription_gets_no_past_events() {
        let exchange = Exchange::new();
        exchange.publish(event("default", "/a"));
        let late = exchange.subscribe(Filters::all());
        drop(exchange);
        assert_eq!(topics(late).await, Vec::<String>::new());
    }
}
