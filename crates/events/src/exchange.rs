//! The ring of events and the ends that read it.

use std::sync::Arc;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::broadcast::{self, Receiver, Sender};
use types::Filters;

use crate::Envelope;

/// How many events a listener may be behind. A start and end of a container makes about five.
pub const CAPACITY: usize = 4096;

/// Where events are published. Clones share one ring.
#[derive(Clone, Debug)]
pub struct Exchange {
    ring: Sender<Arc<Envelope>>,
}

impl Default for Exchange {
    fn default() -> Exchange {
        Exchange::with_capacity(CAPACITY)
    }
}

impl Exchange {
    pub fn new() -> Exchange {
        Exchange::default()
    }

    pub fn with_capacity(capacity: usize) -> Exchange {
        Exchange { ring: broadcast::channel(capacity).0 }
    }

    /// Tells everybody who listens. Without listeners the event is dropped.
    pub fn publish(&self, envelope: Envelope) {
        // The only error is that nobody listens.
        let _ = self.ring.send(Arc::new(envelope));
    }

    /// Listens to events from here on, by namespace and topic.
    pub fn subscribe(&self, filters: Filters) -> Subscription {
        self.subscribe_where(move |envelope| filters.matches(envelope))
    }

    /// Listens to events of one topic.
    pub fn subscribe_topic(&self, topic: &'static str) -> Subscription {
        self.subscribe_where(move |envelope| envelope.topic == topic)
    }

    /// Listens to events that `wanted` says yes to. It runs when the listener receives, not when
    /// somebody publishes.
    pub fn subscribe_where(
        &self,
        wanted: impl Fn(&Envelope) -> bool + Send + Sync + 'static,
    ) -> Subscription {
        Subscription { ring: self.ring.subscribe(), wanted: Box::new(wanted) }
    }
}

/// A listener's end.
pub struct Subscription {
    ring: Receiver<Arc<Envelope>>,
    wanted: Box<dyn Fn(&Envelope) -> bool + Send + Sync>,
}

/// What a subscription gives.
#[derive(Clone, Debug, PartialEq)]
pub enum Received {
    Event(Arc<Envelope>),
    /// So many events, wanted or not, passed by unread.
    Lagged(u64),
}

impl Subscription {
    /// The next event, or `None` when the exchange is gone. Safe to cancel.
    pub async fn receive(&mut self) -> Option<Received> {
        loop {
            match self.ring.recv().await {
                Ok(envelope) if (self.wanted)(&envelope) => return Some(Received::Event(envelope)),
                Ok(_) => {}
                Err(RecvError::Lagged(lost)) => return Some(Received::Lagged(lost)),
                Err(RecvError::Closed) => return None,
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
    async fn listeners_get_what_they_asked_for_in_order() {
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
    async fn a_slow_listener_is_told_what_it_lost() {
        let exchange = Exchange::with_capacity(2);
        let slow = exchange.subscribe(Filters::all());
        for topic in ["/a", "/b", "/c", "/d"] {
            exchange.publish(event("default", topic));
        }
        drop(exchange);
        assert_eq!(topics(slow).await, ["lost 2", "/c", "/d"]);
    }

    #[tokio::test]
    async fn nobody_hears_the_past() {
        let exchange = Exchange::new();
        exchange.publish(event("default", "/a"));
        let late = exchange.subscribe(Filters::all());
        drop(exchange);
        assert_eq!(topics(late).await, Vec::<String>::new());
    }
}
