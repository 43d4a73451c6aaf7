//! `containerd.services.events.v1`

use std::borrow::Cow;

use api::grpc::event::{
    ContainerCreate, ContainerDelete, ContainerUpdate, ContentCreate, ContentDelete, ImageCreate,
    ImageDelete, ImageUpdate, NamespaceCreate, NamespaceDelete, NamespaceUpdate, SandboxCreate, SandboxExit,
    SandboxStart, SnapshotCommit, SnapshotPrepare, SnapshotRemove,
};
use api::grpc::events::events_server::Events;
use api::grpc::events::{ForwardRequest, PublishRequest, SubscribeRequest};
use api::grpc::types::Envelope as Wire;
use api::shim::events::{
    TaskCheckpointed, TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOom, TaskPaused,
    TaskResumed, TaskStart,
};
use api::shim::types::TypeUrl;
use events::{Envelope, Exchange, Received};
use prost::Message;
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
        match path.head() {
            "event" => {
                event_field(&self.0.event, path.rest()).filter(|text| !text.is_empty()).map(Cow::Owned)
            }
            _ => self.0.field(path),
        }
    }
}

/// The text fields of known events; also `labels.<key>`, and `<name>.<field>` of a nested message.
fn event_field(event: &Opaque, path: &str) -> Option<String> {
    // The only field whose name has no underscore.
    let path = if path == "mediaType" { "media_type" } else { path };
    macro_rules! fields {
        ($($message:ident { $($field:ident),+ } $($labels:ident)? $(, $outer:ident { $($inner:ident),+ })?;)+) => {
            match event.type_url.rsplit('/').next().unwrap_or_default() {
                $(url if url == $message::TYPE_URL => {
                    let message = $message::decode(event.value.as_slice()).ok()?;
                    match path {
                        $(stringify!($field) => Some(message.$field),)+
                        $($(path if path == concat!(stringify!($outer), ".", stringify!($inner)) => {
                            message.$outer.map(|outer| outer.$inner.to_string())
                        })+)?
                        _ => {
                            $(if let Some(key) = path.strip_prefix("labels.") {
                                return message.$labels.get(key).cloned();
                            })?
                            None
                        }
                    }
                })+
                _ => None,
            }
        };
    }
    fields! {
        TaskCreate { container_id, bundle, checkpoint }, io { stdin, stdout, stderr, terminal };
        TaskStart { container_id };
        TaskDelete { container_id, id };
        TaskExit { container_id, id };
        TaskOom { container_id };
        TaskExecAdded { container_id, exec_id };
        TaskExecStarted { container_id, exec_id };
        TaskPaused { container_id };
        TaskResumed { container_id };
        TaskCheckpointed { container_id, checkpoint };
        ContainerCreate { id, image }, runtime { name };
        ContainerUpdate { id, image, snapshot_key } labels;
        ContainerDelete { id };
        ImageCreate { name } labels;
        ImageUpdate { name } labels;
        ImageDelete { name };
        NamespaceCreate { name } labels;
        NamespaceUpdate { name } labels;
        NamespaceDelete { name };
        ContentCreate { digest, media_type };
        ContentDelete { digest };
        SnapshotPrepare { key, parent, snapshotter };
        SnapshotCommit { key, name, snapshotter };
        SnapshotRemove { key, snapshotter };
        SandboxCreate { sandbox_id };
        SandboxStart { sandbox_id };
        SandboxExit { sandbox_id };
    }
}

#[cfg(test)]
mod tests {
    use api::grpc::event::ContainerRuntime;
    use api::shim::events::TaskIo;

    use super::*;

    #[test]
    fn filters_look_into_events() {
        let exit = TaskExit { container_id: "web".into(), id: "exec".into(), ..Default::default() };
        let image = ImageCreate { name: "redis:7".into(), labels: [("a.b".into(), "c".into())].into() };
        let envelope = |topic: &str, url: &str, value| {
            let event = Opaque { type_url: url.into(), value };
            Envelope::new(Timestamp::default(), types::Namespace::new("n").unwrap(), topic, event).unwrap()
        };
        let exit = envelope("/tasks/exit", TaskExit::TYPE_URL, exit.encode_to_vec());
        let prefixed = format!("type.googleapis.com/{}", ImageCreate::TYPE_URL);
        let image = envelope("/images/create", &prefixed, image.encode_to_vec());
        let io = TaskIo { stdin: "in".into(), terminal: true, ..TaskIo::default() };
        let begun = TaskCreate { checkpoint: "c".into(), io: Some(io), ..TaskCreate::default() };
        let begun = envelope("/tasks/create", TaskCreate::TYPE_URL, begun.encode_to_vec());
        let runtime = ContainerRuntime { name: "r.v2".into(), ..ContainerRuntime::default() };
        let made = ContainerCreate { runtime: Some(runtime), ..ContainerCreate::default() };
        let made = envelope("/containers/create", ContainerCreate::TYPE_URL, made.encode_to_vec());
        let stored = ContentCreate { media_type: "image".into(), ..ContentCreate::default() };
        let stored = envelope("/content/create", ContentCreate::TYPE_URL, stored.encode_to_vec());
        for (filter, envelope) in [
            ("event.mediaType==image,event.mediaType!=layer", &stored),
            ("event.io.stdin==in,event.io.terminal==true,event.checkpoint==c", &begun),
            ("event.runtime.name==r.v2", &made),
        ] {
            assert!(Filters::parse(&[filter]).unwrap().matches(&Opened(envelope)), "{filter}");
        }
        for (filter, of_exit, of_image) in [
            ("topic==\"/tasks/exit\"", true, false),
            ("event.container_id==web", true, false),
            ("topic~=\"^/tasks/\",event.id==exec,namespace==n", true, false),
            ("event.container_id==other", false, false),
            ("event.name==redis:7", false, true),
            ("event.labels.\"a.b\"==c", false, true),
            ("event.pid", false, false),
        ] {
            let filters = Filters::parse(&[filter]).unwrap();
            assert_eq!(filters.matches(&Opened(&exit)), of_exit, "{filter}");
            assert_eq!(filters.matches(&Opened(&image)), of_image, "{filter}");
        }
    }
}
