//! The socket on which shims publish events: `containerd.services.events.ttrpc.v1.Events`.
//!
//! Our shim numbers its events and repeats each until it is acknowledged. A repeated event is acknowledged but not
//! published again, so that subscribers see it once in a daemon's lifetime, even if a connection breaks.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::ready;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use api::shim::events::{
    FORWARD, ForwardRequest, SEQUENCE_KEY, SERVICE, SOURCE_KEY, TaskDelete, TaskExit, TaskOom, topic,
};
use events::Envelope;
use prost::Message;
use stdx::Mutex;
use tokio::net::UnixListener;
use ttrpc::Request;
use types::{ContainerId, Error, Namespace, Result};

use crate::{Shims, convert};

/// Number of containers whose newest sequence number is remembered. One that has been silent while many others published
/// may be forgotten; its last event is published twice if its shim then repeats it.
const SOURCES_MAX: usize = 16_384;

/// Serves until dropped. Events of one connection are published in the order of their arrival.
pub async fn serve(listener: UnixListener, shims: Shims) {
    let heard = Arc::new(Mutex::new(Heard::default()));
    ttrpc::asynchronous::serve(listener, move |request| ready(answer(&request, &shims, &heard))).await;
}

/// The newest sequence number of each container of each shim, keyed by a hash of their names: most of the many names belong
/// to dead shims.
///
/// A shim numbers the events of all its containers together and sends them in that order. But it keeps them in a journal
/// for each container, and when it has died these are sent one after the other.
#[derive(Default)]
struct Heard {
    newest: HashMap<u64, Newest>,
    hasher: RandomState,
    /// Number of events received so far.
    count: u64,
}

struct Newest {
    sequence: u64,
    /// Value of `count` when it arrived.
    at: u64,
}

impl Heard {
    /// Whether an event has not been seen before. Records it.
    fn is_new(&mut self, source: &str, container: &str, sequence: u64) -> bool {
        self.count += 1;
        let newest = Newest { sequence, at: self.count };
        match self.newest.entry(self.hasher.hash_one((source, container))) {
            Entry::Occupied(before) if sequence <= before.get().sequence => return false,
            Entry::Occupied(mut before) => drop(before.insert(newest)),
            Entry::Vacant(place) => drop(place.insert(newest)),
        }
        if self.newest.len() > SOURCES_MAX {
            self.forget_a_quarter();
        }
        true
    }

    /// A quarter at a time, because finding the oldest entries takes a pass over all.
    fn forget_a_quarter(&mut self) {
        let mut times: Vec<u64> = self.newest.values().map(|newest| newest.at).collect();
        let (_, quarter, _) = times.select_nth_unstable(SOURCES_MAX / 4);
        let quarter = *quarter;
        self.newest.retain(|_, newest| newest.at > quarter);
    }
}

fn answer(request: &Request, shims: &Shims, heard: &Mutex<Heard>) -> Result<Vec<u8>> {
    match (request.service.as_str(), request.method.as_str()) {
        (SERVICE, FORWARD) => {
            let envelope = envelope(request.read()?)?;
            let source = request.metadata(SOURCE_KEY);
            let sequence = request.metadata(SEQUENCE_KEY).and_then(|text| text.parse().ok());
            // Held during publication, because the same event may arrive on two connections at once.
            let mut heard = heard.lock();
            let container = container_of(&envelope);
            let number = source.zip(sequence);
            if number.is_none_or(|(source, sequence)| heard.is_new(source, &container, sequence)) {
                note_end(&envelope, shims);
                shims.exchange().publish(envelope);
            }
            Ok(Vec::new())
        }
        (SERVICE, _) => Err(request.unknown_method()),
        _ => Err(request.unknown_service()),
    }
}

/// Notes that a shim has published its task's exit or deletion, so that the daemon does not publish it as well.
fn note_end(envelope: &Envelope, shims: &Shims) {
    let bytes = envelope.event.value.as_slice();
    let told = match envelope.topic.as_str() {
        topic::EXIT => TaskExit::decode(bytes).map(|exit| (exit.container_id, exit.id)),
        topic::DELETE => TaskDelete::decode(bytes).map(|delete| (delete.container_id, delete.id)),
        _ => return,
    };
    let (container, process) = told.unwrap_or_default();
    // A delete event names no process, or the first one.
    let is_task = process == container || envelope.topic == topic::DELETE && process.is_empty();
    let id = ContainerId::new(&container).ok().filter(|_| is_task);
    if let Some(task) = id.and_then(|id| shims.task(&envelope.namespace, &id).ok()) {
        task.note_published(&envelope.topic);
    }
}

/// The container that an event of our shim is about: the first field of each of its events, as of this one.
fn container_of(envelope: &Envelope) -> String {
    TaskOom::decode(envelope.event.value.as_slice()).unwrap_or_default().container_id
}

fn envelope(request: ForwardRequest) -> Result<Envelope> {
    let Some(envelope) = request.envelope else {
        return Err(Error::invalid_argument("an envelope is required"));
    };
    let Some(timestamp) = envelope.timestamp else {
        return Err(Error::invalid_argument("an envelope needs a timestamp"));
    };
    Envelope::new(
        convert::timestamp(timestamp),
        Namespace::new(&envelope.namespace)?,
        envelope.topic,
        convert::opaque(envelope.event.unwrap_or_default()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::shim::types as wire;
    use events::{Exchange, Received};
    use types::Filters;

    fn forward(topic: &str) -> Request {
        forward_about("", topic)
    }

    fn forward_about(container: &str, topic: &str) -> Request {
        let event = TaskOom { container_id: container.into() };
        let envelope = wire::Envelope {
            timestamp: Some(prost_types::Timestamp { seconds: 1, nanos: 2 }),
            namespace: "default".into(),
            topic: topic.into(),
            event: Some(prost_types::Any { type_url: "x".into(), value: event.encode_to_vec() }),
        };
        Request::new(SERVICE, FORWARD, &ForwardRequest { envelope: Some(envelope) })
    }

    fn numbered(source: &str, sequence: u64) -> Request {
        forward(&format!("/{source}/{sequence}"))
            .with_metadata(SOURCE_KEY, source)
            .with_metadata(SEQUENCE_KEY, &sequence.to_string())
    }

    /// The topics that subscribers receive.
    async fn heard(requests: &[Request]) -> Vec<String> {
        let exchange = Exchange::new();
        let mut events = exchange.subscribe(Filters::all());
        let shims = Shims::new(crate::Config::for_tests(), exchange);
        let heard = Mutex::default();
        for request in requests {
            answer(request, &shims, &heard).unwrap();
        }
        drop(shims);
        let mut topics = Vec::new();
        while let Some(received) = events.receive().await {
            let Received::Event(event) = received else { panic!("events were lost") };
            topics.push(event.topic.clone());
        }
        topics
    }

    #[tokio::test]
    async fn what_shims_forward_is_published() {
        assert_eq!(heard(&[forward("/tasks/exit"), forward("/tasks/exit")]).await.len(), 2);
        let shims = Shims::new(crate::Config::for_tests(), Exchange::new());
        assert!(answer(&forward("no topic"), &shims, &Mutex::default()).is_err());
        assert!(answer(&Request::new(SERVICE, "Else", &()), &shims, &Mutex::default()).is_err());
    }

    #[tokio::test]
    async fn an_event_that_comes_again_is_acknowledged_and_no_more() {
        let sent = [("a", 1), ("b", 1), ("a", 1), ("a", 2), ("a", 1), ("b", 2)];
        let sent: Vec<Request> = sent.iter().map(|(source, number)| numbered(source, *number)).collect();
        assert_eq!(heard(&sent).await, ["/a/1", "/b/1", "/a/2", "/b/2"]);
    }

    /// The journals of the containers of a pod, whose shim has died.
    #[tokio::test]
    async fn an_event_is_not_taken_for_a_repeated_one_after_a_later_one_of_another_container() {
        let sent = [("one", 1), ("one", 4), ("two", 2), ("two", 3), ("one", 4)];
        let numbered = |(container, number): (&str, u64)| {
            forward_about(container, &format!("/{container}/{number}"))
                .with_metadata(SOURCE_KEY, "pod")
                .with_metadata(SEQUENCE_KEY, &number.to_string())
        };
        let sent: Vec<Request> = sent.into_iter().map(numbered).collect();
        assert_eq!(heard(&sent).await, ["/one/1", "/one/4", "/two/2", "/two/3"]);
    }

    #[test]
    fn the_number_of_remembered_event_sources_is_bounded() {
        let mut heard = Heard::default();
        for number in 0..=SOURCES_MAX {
            assert!(heard.is_new(&number.to_string(), "", 1));
        }
        assert_eq!(heard.newest.len(), SOURCES_MAX / 4 * 3);
        assert!(!heard.is_new(&SOURCES_MAX.to_string(), "", 1), "the newest is remembered");
        assert!(!heard.is_new(&(SOURCES_MAX / 2).to_string(), "", 1), "and those that were not long ago");
        assert!(heard.is_new("0", "", 1), "not the oldest");
    }
}
