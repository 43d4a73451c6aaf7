//! `containerd.services.events.v1`

use std::borrow::Cow;
use std::collections::BTreeMap;

use api::grpc::event::{
    ContainerCreate, ContainerDelete, ContainerRuntime, ContainerUpdate, ContentCreate, ContentDelete,
    ImageCreate, ImageDelete, ImageUpdate, NamespaceCreate, NamespaceDelete, NamespaceUpdate, SandboxCreate,
    SandboxExit, SandboxStart, SnapshotCommit, SnapshotPrepare, SnapshotRemove,
};
use api::grpc::events::events_server::Events;
use api::grpc::events::{ForwardRequest, PublishRequest, SubscribeRequest};
use api::grpc::types::Envelope as Wire;
use api::shim::events::{
    TaskCheckpointed, TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIo, TaskOom,
    TaskPaused, TaskResumed, TaskStart,
};
use api::shim::types::TypeUrl;
use events::{Envelope, Exchange, Received};
use prost::Message;
use prost_types::Any;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use types::{FieldPath, Fields, Filters, Opaque, Timestamp};

use super::{Answer, Answers, caller, convert, identifier, required, status};

fn untimed() -> Status {
    Status::invalid_argument("timestamp must be set on forwarded event: invalid argument")
}

/// Events queued for a listener. Each may be as large as a message, so that more wait in the exchange, which bounds
/// their size.
const EVENTS_WAITING: usize = 1;

pub(super) struct Service(pub(super) Exchange);

#[tonic::async_trait]
impl Events for Service {
    async fn publish(&self, request: Request<PublishRequest>) -> Answer<()> {
        let namespace = caller(&request)?.namespace;
        let PublishRequest { topic, event } = request.into_inner();
        let event = convert::opaque(event.unwrap_or_default());
        let envelope = Envelope::new(Timestamp::now(), namespace, topic, event).map_err(status)?;
        self.0.publish(envelope);
        Ok(Response::new(()))
    }

    async fn forward(&self, request: Request<ForwardRequest>) -> Answer<()> {
        let envelope = required(request.into_inner().envelope, "envelope")?;
        let timestamp = convert::own_timestamp(envelope.timestamp.ok_or_else(untimed)?);
        let namespace = identifier("event envelope has invalid namespace: ", &envelope.namespace)?;
        let event = convert::opaque(envelope.event.unwrap_or_default());
        self.0.publish(Envelope::new(timestamp, namespace, envelope.topic, event).map_err(status)?);
        Ok(Response::new(()))
    }

    type SubscribeStream = Answers<Wire>;

    /// Events of all namespaces, unless a filter selects one.
    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Answer<Self::SubscribeStream> {
        let filters = Filters::parse(&request.into_inner().filters).map_err(status)?;
        let mut subscription = self.0.subscribe_where(move |envelope| filters.matches(&Opened(envelope)));
        let (send, receive) = mpsc::channel(EVENTS_WAITING);
        tokio::spawn(async move {
            loop {
                let received = tokio::select! {
                    received = subscription.receive() => received,
                    () = send.closed() => return,
                };
                let message = match received {
                    Some(Received::Event(envelope)) => Ok(wire(&envelope)),
                    // Continuing would hide the gap.
                    Some(Received::Lagged(lost)) => Err(Status::data_loss(format!(
                        "the listener was too slow and lost {lost} events: subscribe again, then list anew"
                    ))),
                    None => return,
                };
                let ends = message.is_err();
                if send.send(message).await.is_err() || ends {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }
}

fn wire(envelope: &Envelope) -> Wire {
    Wire {
        timestamp: convert::timestamp(envelope.timestamp),
        namespace: envelope.namespace.to_string(),
        topic: envelope.topic.clone(),
        event: Some(convert::any(envelope.event.clone())),
    }
}

/// An envelope whose event is decoded as well, for filters on `event.<field>`.
struct Opened<'a>(&'a Envelope);

impl Fields for Opened<'_> {
    fn field(&self, path: &FieldPath) -> Option<Cow<'_, str>> {
        match path.names() {
            [first, rest @ ..] if first == "event" => {
                let Opaque { type_url, value } = &self.0.event;
                decoded(type_url, value, rest, 0).map(Cow::Owned)
            }
            _ => self.0.field(path),
        }
    }
}

/// Messages inside of messages, each in an `Any`, that a path leads through at most. Real events have one; a crafted
/// one could have thousands, and would take the stack.
const DEPTH_MAX: u32 = 4;

/// A part of an event in which a filter looks for the rest of its path. Which paths have a value is as in containerd's
/// `api/events/*_fieldpath.pb.go`, where names behind that of a text are ignored.
trait At {
    /// `None` if there is no such field, or if its text is empty. `depth` is the number of `Any` around this part.
    fn at(&self, path: &[String], depth: u32) -> Option<String>;
}

impl At for String {
    fn at(&self, _: &[String], _: u32) -> Option<String> {
        (!self.is_empty()).then(|| self.clone())
    }
}

impl At for bool {
    fn at(&self, _: &[String], _: u32) -> Option<String> {
        Some(self.to_string())
    }
}

/// Labels, whose keys may have dots.
impl At for BTreeMap<String, String> {
    fn at(&self, path: &[String], _: u32) -> Option<String> {
        self.get(&path.join(".")).cloned()
    }
}

impl<T: At> At for Option<T> {
    fn at(&self, path: &[String], depth: u32) -> Option<String> {
        self.as_ref()?.at(path, depth)
    }
}

impl At for Any {
    fn at(&self, path: &[String], depth: u32) -> Option<String> {
        if depth < DEPTH_MAX { decoded(&self.type_url, &self.value, path, depth + 1) } else { None }
    }
}

/// The name of a field in its message. All but one are the same in filters.
fn spelled(name: &str) -> &str {
    match name {
        "mediaType" => "media_type",
        "media_type" => "",
        _ => name,
    }
}

macro_rules! events {
    ($($message:ident { $($field:ident),+ })+) => {
        $(impl At for $message {
            fn at(&self, path: &[String], depth: u32) -> Option<String> {
                let (name, rest) = path.split_first()?;
                match spelled(name) {
                    $(stringify!($field) => self.$field.at(rest, depth),)+
                    _ => None,
                }
            }
        })+

        /// Looks for a field in a message. `None` also if its type is not known, or if it cannot be decoded.
        fn decoded(type_url: &str, value: &[u8], path: &[String], depth: u32) -> Option<String> {
            match type_url.rsplit('/').next().unwrap_or_default() {
                $(url if url == $message::TYPE_URL => $message::decode(value).ok()?.at(path, depth),)+
                _ => None,
            }
        }
    };
}

events! {
    TaskCreate { container_id, bundle, io, checkpoint }
    TaskIo { stdin, stdout, stderr, terminal }
    TaskStart { container_id }
    TaskDelete { container_id, id }
    TaskExit { container_id, id }
    TaskOom { container_id }
    TaskExecAdded { container_id, exec_id }
    TaskExecStarted { container_id, exec_id }
    TaskPaused { container_id }
    TaskResumed { container_id }
    TaskCheckpointed { container_id, checkpoint }
    ContainerCreate { id, image, runtime }
    ContainerRuntime { name, options }
    ContainerUpdate { id, image, labels, snapshot_key }
    ContainerDelete { id }
    ImageCreate { name, labels }
    ImageUpdate { name, labels }
    ImageDelete { name }
    NamespaceCreate { name, labels }
    NamespaceUpdate { name, labels }
    NamespaceDelete { name }
    ContentCreate { digest, media_type }
    ContentDelete { digest }
    SnapshotPrepare { key, parent, snapshotter }
    SnapshotCommit { key, name, snapshotter }
    SnapshotRemove { key, snapshotter }
    SandboxCreate { sandbox_id }
    SandboxStart { sandbox_id }
    SandboxExit { sandbox_id }
}

#[cfg(test)]
mod tests {
    use api::shim::pack;

    use super::*;

    /// Checks which filters match an event.
    fn check(event: Any, cases: &[(&str, bool)]) {
        let namespace = types::Namespace::new("n").unwrap();
        let event = convert::opaque(event);
        let envelope = Envelope::new(Timestamp::default(), namespace, "/tasks/exit", event).unwrap();
        for (filter, expected) in cases {
            let filters = Filters::parse(&[filter]).unwrap();
            assert_eq!(filters.matches(&Opened(&envelope)), *expected, "{filter}");
        }
    }

    #[test]
    fn filters_look_into_events() {
        let exit = TaskExit { container_id: "web".into(), id: "exec".into(), ..Default::default() };
        check(
            pack(&exit),
            &[
                ("topic==\"/tasks/exit\"", true),
                ("topic.of.it==\"/tasks/exit\"", true),
                ("event.container_id==web", true),
                ("event.container_id.of.it==web", true),
                ("topic~=\"^/tasks/\",event.id==exec,namespace==n", true),
                ("event.container_id==other", false),
                ("event.name==redis:7", false),
                ("event.pid", false),
                ("event", false),
            ],
        );
        let labels = [("a.b".into(), "c".into()), ("empty".into(), String::new())].into();
        let image = pack(&ImageCreate { name: "redis:7".into(), labels });
        let cases = [
            ("event.name==redis:7", true),
            ("event.labels.\"a.b\"==c", true),
            ("event.labels.a.b==c", true),
            ("event.labels.empty", true),
            ("event.labels.a", false),
            ("event.labels", false),
            ("event.container_id==web", false),
        ];
        check(image.clone(), &cases);
        check(Any { type_url: format!("type.googleapis.com/{}", image.type_url), ..image }, &cases);
        let io = TaskIo { stdin: "in".into(), terminal: true, ..TaskIo::default() };
        let begun = TaskCreate { checkpoint: "c".into(), io: Some(io), ..TaskCreate::default() };
        check(
            pack(&begun),
            &[
                ("event.io.stdin==in,event.io.terminal==true,event.checkpoint==c", true),
                ("event.\"io.stdin\"", false),
                ("event.io.stdout", false),
                ("event.io", false),
            ],
        );
        check(pack(&TaskCreate::default()), &[("event.io.terminal", false)]);
        let stored = ContentCreate { media_type: "image".into(), ..ContentCreate::default() };
        check(
            pack(&stored),
            &[
                ("event.mediaType==image,event.mediaType!=layer", true),
                ("event.media_type", false),
                ("event.size", false),
            ],
        );
    }

    /// Options of a runtime have fields only if they are an event themselves, as in containerd.
    #[test]
    fn filters_look_into_the_options_of_a_runtime() {
        let made = |options: Any| {
            let runtime = ContainerRuntime { name: "r.v2".into(), options: Some(options) };
            pack(&ContainerCreate { runtime: Some(runtime), ..ContainerCreate::default() })
        };
        let options = api::shim::runc::Options { binary_name: "runc".into(), ..Default::default() };
        check(
            made(pack(&options)),
            &[("event.runtime.name==r.v2", true), ("event.runtime.options.binary_name", false)],
        );
        let mut event = made(pack(&ImageDelete { name: "redis:7".into() }));
        check(event.clone(), &[("event.runtime.options.name==redis:7", true)]);
        let mut path = "event.runtime.options.name".to_owned();
        for depth in 1..10 {
            check(event.clone(), &[(path.as_str(), depth <= DEPTH_MAX)]);
            event = made(event);
            path = path.replacen("event.", "event.runtime.options.", 1);
        }
    }
}
