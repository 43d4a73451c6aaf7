//! Events on their way to the daemon, in the order in which they happened.
//!
//! A daemon learns from `exit` that a process has ended: an event that gets lost is a container that runs for ever to
//! whoever waits for it. So each is sent until the daemon has it, however often that is started anew meanwhile.

use std::time::{Duration, SystemTime};

use api::shim::events::{FORWARD, ForwardRequest, SERVICE};
use api::shim::pack;
use api::shim::types::{Envelope, TypeUrl};
use prost::Message;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use ttrpc::asynchronous::AsyncClient;
use ttrpc::{NAMESPACE_KEY, Request};
use types::{ErrorKind, Result};

const ANSWER_MAX: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The queue of events. It has no bound: it grows with the daemon's calls, not with time.
pub(crate) struct Events {
    namespace: String,
    queue: UnboundedSender<Envelope>,
}

impl Events {
    /// The task ends when the sender is dropped and everything has arrived.
    pub(crate) fn new(namespace: &str, address: String) -> (Events, JoinHandle<()>) {
        let (queue, waiting) = unbounded_channel();
        let delivery = tokio::spawn(deliver(address, waiting));
        (Events { namespace: namespace.to_owned(), queue }, delivery)
    }

    pub(crate) fn publish<M: Message + TypeUrl>(&self, topic: &str, event: &M) {
        let envelope = Envelope {
            timestamp: Some(SystemTime::now().into()),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(pack(event)),
        };
        // Fails only after the delivery has ended, when the shim ends.
        let _late = self.queue.send(envelope);
    }
}

async fn deliver(address: String, mut waiting: UnboundedReceiver<Envelope>) {
    let mut daemon = None;
    while let Some(envelope) = waiting.recv().await {
        let namespace = envelope.namespace.clone();
        let request = Request::new(SERVICE, FORWARD, &ForwardRequest { envelope: Some(envelope) })
            .with_metadata(NAMESPACE_KEY, &namespace)
            .with_timeout(ANSWER_MAX);
        let mut pause = PAUSE_MIN;
        while !send(&address, &mut daemon, &request).await {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

/// Returns whether the daemon has answered, with success or with a refusal.
async fn send(address: &str, daemon: &mut Option<AsyncClient>, request: &Request) -> bool {
    if daemon.as_ref().is_none_or(AsyncClient::is_closed) {
        *daemon = AsyncClient::connect(address).await.ok();
    }
    let Some(client) = daemon else { return false };
    let sent: Result<()> = client.call(request).await;
    match sent {
        Err(error) if error.is(ErrorKind::Unavailable) || error.is(ErrorKind::DeadlineExceeded) => false,
        Err(error) => {
            // The daemon would refuse it again.
            crate::log(&error.context("publish an event"));
            true
        }
        Ok(()) => true,
    }
}
