//! Events as Docker tells them, of what containerd's say of the engine's containers and images.
//!
//! ```text
//! exchange ─▶ listen: who is it? ─▶ up to [`CAPACITY`] that wait, of [`LEN_MAX`] bytes ─▶ the client, as fast as it reads
//! ```
//!
//! An event is told with what was known of the container when it came: it is looked up then, not when the client gets to
//! it, when nobody may know the container any more. A client that is too slow is told so, and ends: to go on would hide
//! that something is missing.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;

use api::engine::{Actor, Happened};
use api::grpc::event::{ContainerCreate, ContainerDelete, ImageCreate, ImageDelete, ImageUpdate};
use api::shim::events::{
    TaskExecAdded, TaskExecStarted, TaskExit, TaskOom, TaskPaused, TaskResumed, TaskStart, topic,
};
use engine::{Engine, health};
use events::{CAPACITY, Envelope, Exchange, Received, Subscription};
use prost::Message;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use types::{Error, Result};

use super::{Document, Sender, document};

/// Bytes that may wait for a client. Each event has all labels of its container, and these may be large.
const LEN_MAX: usize = 16 << 20;

const KNOWN: &[&str] = &["container", "event", "image", "label", "type"];

/// Tells what happens until nobody listens.
pub(super) async fn follow(
    engine: &Engine,
    exchange: &Exchange,
    filters: &[String],
    send: &Sender,
) -> Result<()> {
    let filters = parse(filters)?;
    let namespace = engine.namespace().clone();
    let subscription = exchange.subscribe_where(move |envelope| envelope.namespace == namespace);
    let (heard, mut waiting) = queue(CAPACITY, LEN_MAX);
    let telling = async move {
        while let Some((document, _room)) = waiting.recv().await {
            if send.send(Ok(document)).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(listen(engine, subscription, &filters, heard), telling).0
}

/// Hears what happens, until the other end of `heard` is gone.
async fn listen(
    engine: &Engine,
    mut subscription: Subscription,
    filters: &Filters,
    heard: Heard,
) -> Result<()> {
    let too_slow = |lost: &dyn Display| {
        Error::data_loss(format!(
            "the listener was too slow and lost {lost} events: listen again, then list anew"
        ))
    };
    // Of those that go, nobody can be asked any more.
    let mut known = engine.describe_all().await?;
    loop {
        let received = tokio::select! {
            received = subscription.receive() => received,
            () = heard.send.closed() => return Ok(()),
        };
        let envelope = match received {
            Some(Received::Event(envelope)) => envelope,
            Some(Received::Lagged(lost)) => return Err(too_slow(&lost)),
            None => return Ok(()),
        };
        let Some(mut happened) = read(&envelope) else { continue };
        if happened.kind == "container" {
            let id = &happened.actor.id;
            if let Some(attributes) = engine.describe(id).await {
                known.insert(id.clone(), attributes);
            }
            let known = match happened.action.as_str() {
                "destroy" => known.remove(id),
                _ => known.get(id).cloned(),
            };
            // Containers of others have no name.
            let Some(known) = known else { continue };
            happened.actor.attributes.extend(known);
        }
        if fits(filters, &happened) && !heard.keep(document(&happened)) {
            return Err(too_slow(&"further"));
        }
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
    /// Whether there was room for it, or nobody wants it any more. If nothing else waits there is, however large it is.
    fn keep(&self, document: Document) -> bool {
        let len = u32::try_from(document.json.len().min(self.len_max)).expect("not so much room");
        let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(len) else { return false };
        !matches!(self.send.try_send((document, room)), Err(TrySendError::Full(_)))
    }
}

fn read(envelope: &Envelope) -> Option<Happened> {
    let bytes = envelope.event.value.as_slice();
    let mut attributes = BTreeMap::new();
    let mut note = |key: &str, value: String| drop(attributes.insert(key.to_owned(), value));
    let (kind, action, id) = match envelope.topic.as_str() {
        "/containers/create" => ("container", "create", ContainerCreate::decode(bytes).ok()?.id),
        "/containers/delete" => ("container", "destroy", ContainerDelete::decode(bytes).ok()?.id),
        "/images/create" => ("image", "create", ImageCreate::decode(bytes).ok()?.name),
        "/images/update" => ("image", "update", ImageUpdate::decode(bytes).ok()?.name),
        "/images/delete" => ("image", "delete", ImageDelete::decode(bytes).ok()?.name),
        topic::START => ("container", "start", TaskStart::decode(bytes).ok()?.container_id),
        topic::OOM => ("container", "oom", TaskOom::decode(bytes).ok()?.container_id),
        topic::PAUSED => ("container", "pause", TaskPaused::decode(bytes).ok()?.container_id),
        topic::RESUMED => ("container", "unpause", TaskResumed::decode(bytes).ok()?.container_id),
        topic::EXIT => {
            let exit = TaskExit::decode(bytes).ok()?;
            note("exitCode", exit.exit_status.to_string());
            if exit.id == exit.container_id {
                ("container", "die", exit.container_id)
            } else {
                note("execID", exit.id);
                ("container", "exec_die", exit.container_id)
            }
        }
        topic::EXEC_ADDED => {
            let added = TaskExecAdded::decode(bytes).ok()?;
            note("execID", added.exec_id);
            ("container", "exec_create", added.container_id)
        }
        topic::EXEC_STARTED => {
            let started = TaskExecStarted::decode(bytes).ok()?;
            note("execID", started.exec_id);
            ("container", "exec_start", started.container_id)
        }
        health::TOPIC => {
            let changed: health::Changed = serde_json::from_slice(bytes).ok()?;
            note("health", changed.status);
            ("container", "health_status", changed.id)
        }
        _ => return None,
    };
    // Docker says in the action itself what became of it.
    let action =
        attributes.remove("health").map_or_else(|| action.to_owned(), |status| format!("{action}: {status}"));
    let mut note = |key: &str, value: String| drop(attributes.insert(key.to_owned(), value));
    if kind == "image" {
        note("name", id.clone());
    }
    let time = envelope.timestamp;
    Some(Happened {
        kind: kind.to_owned(),
        action,
        actor: Actor { id, attributes },
        scope: "local".to_owned(),
        time: time.seconds,
        time_nano: time.seconds.saturating_mul(1_000_000_000).saturating_add(time.nanos.into()),
    })
}

/// Values by key.
type Filters = BTreeMap<String, Vec<String>>;

fn parse(texts: &[String]) -> Result<Filters> {
    let mut filters = Filters::new();
    for text in texts {
        let bad = |why: &str| Error::invalid_argument(format!("invalid filter {text:?}: {why}"));
        let (key, value) = text.split_once('=').ok_or_else(|| bad("expected KEY=VALUE"))?;
        if !KNOWN.contains(&key) {
            return Err(bad(&format!("known are {}", KNOWN.join(", "))));
        }
        filters.entry(key.to_owned()).or_default().push(value.to_owned());
    }
    Ok(filters)
}

fn fits(filters: &Filters, happened: &Happened) -> bool {
    let Actor { id, attributes } = &happened.actor;
    let is = |key: &str, value: &String| attributes.get(key) == Some(value);
    let is_container = happened.kind == "container";
    filters.iter().all(|(key, values)| {
        let mut values = values.iter();
        match key.as_str() {
            "container" => values.any(|value| is_container && (is("name", value) || id.starts_with(value))),
            "event" => values.any(|value| {
                happened
                    .action
                    .strip_prefix(value.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(": "))
            }),
            "image" => values.any(|value| is("image", value) || !is_container && is("name", value)),
            "label" => values.all(|value| match value.split_once('=') {
                Some((label, wanted)) => attributes.get(label).is_some_and(|own| own == wanted),
                None => attributes.contains_key(value),
            }),
            _ => values.any(|value| *value == happened.kind),
        }
    })
}

#[cfg(test)]
mod tests {
    use types::{Namespace, Opaque, Timestamp};

    use super::*;

    fn exit(id: &str) -> Happened {
        let exit =
            TaskExit { container_id: "c".into(), id: id.into(), exit_status: 3, ..TaskExit::default() };
        let event = Opaque { type_url: String::new(), value: exit.encode_to_vec() };
        let time = Timestamp { seconds: 1, nanos: 2 };
        let namespace = Namespace::new("default").unwrap();
        read(&Envelope::new(time, namespace, topic::EXIT, event).unwrap()).unwrap()
    }

    #[test]
    fn ends_are_of_containers_or_of_further_processes() {
        let first = exit("c");
        assert_eq!((first.action.as_str(), first.time_nano), ("die", 1_000_000_002));
        assert_eq!(first.actor.attributes["exitCode"], "3");
        let further = exit("x");
        assert_eq!((further.action.as_str(), further.actor.attributes["execID"].as_str()), ("exec_die", "x"));
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_holds_so_many_events_and_so_many_bytes() {
        let document = |len: usize| Document { json: vec![b' '; len] };
        let (heard, mut waiting) = queue(5, 1000);
        let mut kept = |len: usize| {
            let count = (0..100).take_while(|_| heard.keep(document(len))).count();
            while waiting.try_recv().is_ok() {}
            count
        };
        assert_eq!([kept(1), kept(200), kept(300), kept(600)], [5, 5, 3, 1]);
        assert_eq!([kept(5000), kept(1)], [1, 5], "one is kept whatever its size is");
        drop(waiting);
        assert!(heard.keep(document(1)), "who is gone is not slow");
    }

    #[test]
    fn filters_of_one_key_are_alternatives() {
        let mut happened = exit("c");
        happened.actor.attributes.extend([("name".into(), "web".into()), ("tier".into(), "front".into())]);
        let check = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
            fits(&parse(&texts).unwrap(), &happened)
        };
        assert!(check(&[]) && check(&["event=die", "event=start", "container=web", "type=container"]));
        assert!(check(&["label=tier", "label=tier=front"]) && !check(&["label=tier=front", "label=nosuch"]));
        assert!(
            !check(&["event=start"]) && !check(&["event=die", "container=other"]) && !check(&["image=web"])
        );
        let unknown = parse(&["nosuch=1".to_owned()]).unwrap_err();
        assert!(unknown.to_string().contains("known are container"), "{unknown}");
    }
}
