//! The API: one file per service, which converts the request, calls, and converts the result.
//!
//! Shared parts are here: the caller ([`caller`]), errors ([`status`]), blocking calls ([`blocking`]), and changes of
//! records that wait for the disk ([`changed`]). Conversions of messages: [`convert`].

mod containers;
mod content;
mod controller;
pub(crate) mod convert;
mod diff;
mod disabled_plugins;
mod engine;
mod events;
mod health;
mod images;
mod introspection;
mod leases;
mod mounts;
mod namespaces;
mod reflection;
mod sandbox;
mod snapshots;
mod streaming;
mod tasks;
mod transfer;
mod version;

pub(crate) use self::disabled_plugins::{DisabledPlugins, is_separable};
pub(crate) use self::engine::History;

use std::pin::Pin;
use std::str::FromStr;

use ::metadata::{Caller, Ready};
use api::grpc::encoded::TooLong;
use api::grpc::{LEASE_KEY, NAMESPACE_KEY};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::spawn_blocking;
use tokio_stream::Stream;
use tonic::{Code, Request, Status};
use tracing::Instrument;
use types::{ContainerId, Error, ErrorKind, LeaseId, Result};

use crate::config::Config;
use crate::server::Router;
use crate::wiring::Parts;

type Answer<T> = Result<tonic::Response<T>, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Records per message of a stream, as containerd sends.
const BATCH_LEN: usize = 100;

/// Whether a plugin of this type and id, such as `io.containerd.grpc.v1.tasks`, is built in, disabled or not.
pub(crate) fn has_plugin(name: &str) -> bool {
    introspection::is_built_in(name)
}

/// `FailedPrecondition` if one of these plugins, by type and id, does not exist.
pub(crate) fn check_required(parts: &Parts, plugins: &[String]) -> Result<()> {
    introspection::Service::new(parts).check_required(plugins)
}

/// All services.
pub(crate) fn router(parts: &Parts, history: History, config: &Config) -> Router {
    use api::grpc;
    let limits = config.message_limits;
    macro_rules! sized {
        ($server:path, $service:expr) => {{
            use $server as Server;
            Server::new($service)
                .max_decoding_message_size(limits.received)
                .max_encoding_message_size(limits.sent)
        }};
    }
    let metadata = || parts.metadata.clone();
    if let Err(error) = parts.task_resources.checkpoints().sweep(&parts.shims) {
        tracing::warn!("remove checkpoints that are needed no more: {}", error.chain());
    }
    let (shims, task_resources) = (parts.shims.clone(), parts.task_resources.clone());
    let tasks = tasks::Service { metadata: metadata(), shims, task_resources };
    let list_limit = limits.sent;
    let containers = containers::Service { metadata: metadata(), engine: parts.engine.clone(), list_limit };
    let controller = controller::Service::new(parts);
    let diff = diff::Service::new(parts);
    let introspection = introspection::Service::new(parts);
    let transfer = transfer::Service {
        metadata: metadata(),
        streams: parts.streams.clone(),
        connections: parts.connections.clone(),
        flights: parts.flights.clone(),
        slots: parts.slots.clone(),
        retentions: parts.retainer.retentions(),
        admission: parts.admission.clone(),
        snapshotter: parts.snapshotter.clone(),
    };
    let router = Router::default()
        .add(sized!(grpc::containers::containers_server::ContainersServer, containers))
        .add(sized!(grpc::content::content_server::ContentServer, content::Service(metadata())))
        .add(sized!(grpc::diff::diff_server::DiffServer, diff))
        .add(sized!(grpc::events::events_server::EventsServer, events::Service(parts.exchange.clone())))
        .add(sized!(grpc::health::health_server::HealthServer, health::Service))
        .add(sized!(
            grpc::images::images_server::ImagesServer,
            images::Service { metadata: metadata(), list_limit }
        ))
        .add(sized!(grpc::introspection::introspection_server::IntrospectionServer, introspection))
        .add(sized!(grpc::leases::leases_server::LeasesServer, leases::Service(metadata())))
        .add(sized!(grpc::mounts::mounts_server::MountsServer, mounts::Service(parts.mounts.clone())))
        .add(sized!(grpc::namespaces::namespaces_server::NamespacesServer, namespaces::Service(metadata())))
        .add(sized!(grpc::sandbox::controller::controller_server::ControllerServer, controller))
        .add(sized!(grpc::sandbox::store_server::StoreServer, sandbox::Service(metadata())))
        .add(sized!(grpc::snapshots::snapshots_server::SnapshotsServer, snapshots::Service(metadata())))
        .add(sized!(
            grpc::streaming::streaming_server::StreamingServer,
            streaming::Service(parts.streams.clone())
        ))
        .add(sized!(grpc::tasks::tasks_server::TasksServer, tasks))
        .add(sized!(grpc::transfer::transfer_server::TransferServer, transfer))
        .add(sized!(grpc::version::version_server::VersionServer, version::Service))
        .add(sized!(
            api::engine::engine_server::EngineServer,
            engine::Service(parts.engine.clone(), history)
        ));
    let router = parts.disabled_plugins.services().fold(router, Router::without);
    let reflections = ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];
    let served = router.names().chain(reflections).map(str::to_owned);
    let reflection = reflection::Service::new(served);
    router
        .add(sized!(grpc::reflection::server_reflection_server::ServerReflectionServer, reflection.clone()))
        .add(sized!(grpc::reflection::v1alpha::server_reflection_server::ServerReflectionServer, reflection))
}

/// Converts an error to a status. Kinds and gRPC codes have the same numbers.
fn plain_status(error: &Error) -> Status {
    Status::new(Code::from_i32(error.kind().code()), error.chain())
}

/// As [`plain_status`], with the text of the error's class at the end, as containerd sends it: programs look for it.
/// containerd 1.x's client appends it itself, 2.x's does not.
fn status(error: Error) -> Status {
    let plain = plain_status(&error);
    let words = class(error.kind());
    // Two classes share the code of a third, and only their text tells them apart.
    let ends_with = |words: &str| plain.message().ends_with(words);
    if words.is_empty() || [words, ": conflict", ": not modified"].into_iter().any(ends_with) {
        return plain;
    }
    Status::new(plain.code(), format!("{}: {words}", plain.message()))
}

/// Parses the id of an existing object. An invalid id gives the same `NotFound` as an unknown one, from `absent`.
fn known<T>(id: Result<T>, absent: impl FnOnce() -> String) -> Result<T, Status> {
    id.map_err(|_| status(Error::not_found(absent())))
}

/// Parses the id of an existing container.
fn container_id(caller: &Caller, text: &str) -> Result<ContainerId, Status> {
    known(ContainerId::new(text), || format!("container {text:?} in namespace {:?}", caller.namespace))
}

/// Parses an identifier of a request. `what` is containerd's prefix of the error.
fn identifier<T: FromStr<Err = Error>>(what: &str, text: &str) -> Result<T, Status> {
    types::id::check(text)
        .and_then(|()| text.parse())
        .map_err(|error| status(Error::invalid_argument(format!("{what}{error}"))))
}

/// The text of containerd's error class; empty for kinds without one.
fn class(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidArgument => "invalid argument",
        ErrorKind::NotFound => "not found",
        ErrorKind::AlreadyExists => "already exists",
        ErrorKind::PermissionDenied => "permission denied",
        ErrorKind::ResourceExhausted => "resource exhausted",
        ErrorKind::FailedPrecondition => "failed precondition",
        ErrorKind::Aborted => "aborted",
        ErrorKind::OutOfRange => "out of range",
        ErrorKind::Unimplemented => "not implemented",
        ErrorKind::Unavailable => "unavailable",
        ErrorKind::DataLoss => "data loss",
        ErrorKind::Unauthenticated => "unauthenticated",
        ErrorKind::DeadlineExceeded => "context deadline exceeded",
        ErrorKind::Cancelled => "context canceled",
        ErrorKind::Internal | ErrorKind::Unknown => "",
    }
}

/// The caller: namespace and lease from the call's metadata.
fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let text = |key| match request.metadata().get(key).map(|value| value.to_str()) {
        None => Ok(None),
        Some(Ok(text)) => Ok(Some(text).filter(|text| !text.is_empty())),
        Some(Err(_)) => Err(Status::invalid_argument(format!("{key}: only printable ASCII may occur"))),
    };
    let Some(namespace) = text(NAMESPACE_KEY)? else {
        return Err(Status::failed_precondition("namespace is required: failed precondition"));
    };
    let caller = Caller::new(identifier("namespace validation: ", namespace)?);
    match text(LEASE_KEY)? {
        Some(lease) => Ok(caller.with_lease(LeaseId::new(lease).map_err(status)?)),
        None => Ok(caller),
    }
}

/// Runs blocking work on the blocking pool. The work continues if the client disconnects.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T, Status> {
    match stdx::blocking(work).await {
        Ok(done) => done.map_err(status),
        Err(panic) => Err(Status::internal(format!("the call broke down: {panic}"))),
    }
}

/// Runs a change of several steps, which continues if the client disconnects: no other call would complete it.
async fn unbroken<T: Send + 'static>(
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    match stdx::unbroken(work.in_current_span()).await {
        Ok(done) => done,
        Err(panic) => Err(Status::internal(format!("the call broke down: {panic}"))),
    }
}

/// Changes that wait for the disk at once: enough to fill one batch while another is written. Further calls wait for a
/// permit.
const QUEUED_MAX: usize = 1024;
static QUEUED: Semaphore = Semaphore::const_new(QUEUED_MAX);

/// Makes a change of records, batched with those of other calls. Once it has a permit it continues if the client
/// disconnects.
///
/// Calls that wait for the disk hold no thread: one thread writes for all of them.
async fn changed<T: Send + 'static>(ready: Ready<T>) -> Result<T, Status> {
    // Held by the change, not the call: a client that calls and disconnects repeatedly cannot exceed the limit.
    let place = QUEUED.acquire().await.expect("it is never closed");
    let (tell, told) = oneshot::channel();
    let driver = ready.queue(move |done| {
        drop(place);
        // Fails if the client has disconnected.
        let _ = tell.send(done);
    });
    if let Some(driver) = driver {
        spawn_blocking(|| driver.run());
    }
    match told.await {
        Ok(done) => done.map_err(status),
        Err(_) => Err(Status::internal("the call broke down")),
    }
}

/// A list that exceeds the message limit of any client.
fn too_long(error: TooLong) -> Error {
    Error::resource_exhausted(format!("{error}: filter the list"))
}

/// A stream of these items.
fn stream_of<T: Send + 'static>(items: Vec<T>) -> Answers<T> {
    Box::pin(tokio_stream::iter(items.into_iter().map(Ok)))
}

/// Records as a stream of messages with [`BATCH_LEN`] records each.
fn batches<T, M: Send + 'static>(records: Vec<T>, message: impl Fn(Vec<T>) -> M) -> Answers<M> {
    let mut messages = Vec::with_capacity(records.len().div_ceil(BATCH_LEN));
    let mut records = records.into_iter();
    loop {
        let batch: Vec<T> = records.by_ref().take(BATCH_LEN).collect();
        if batch.is_empty() {
            return stream_of(messages);
        }
        messages.push(message(batch));
    }
}

/// A mandatory field of a request.
fn required<T>(part: Option<T>, what: &str) -> Result<T, Status> {
    part.ok_or_else(|| Status::invalid_argument(format!("{what} is required")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use ::metadata::Metadata;
    use types::Namespace;

    use super::*;

    #[test]
    fn the_caller_is_who_the_metadata_says() {
        let mut request = Request::new(());
        let refused = caller(&request).unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().starts_with("namespace is required"), "{refused}");

        request.metadata_mut().insert(NAMESPACE_KEY, "k8s.io".parse().unwrap());
        assert_eq!(caller(&request).unwrap(), Caller::new(Namespace::new("k8s.io").unwrap()));

        request.metadata_mut().insert(LEASE_KEY, "held".parse().unwrap());
        assert_eq!(caller(&request).unwrap().lease, Some(LeaseId::new("held").unwrap()));

        request.metadata_mut().insert(NAMESPACE_KEY, "../up".parse().unwrap());
        assert_eq!(caller(&request).unwrap_err().code(), Code::InvalidArgument);
    }

    #[test]
    fn batches_hold_a_hundred_and_lose_none() {
        use tokio_stream::StreamExt;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for (records, lengths) in [(0, vec![]), (1, vec![1]), (100, vec![100]), (250, vec![100, 100, 50])] {
            let stream = batches((0..records).collect(), |batch: Vec<i32>| batch.len());
            let seen: Vec<usize> = runtime.block_on(stream.map(Result::unwrap).collect());
            assert_eq!(seen, lengths);
        }
    }

    /// Clients that call and disconnect, repeatedly, while the disk is busy.
    #[test]
    fn changes_of_disconnected_clients_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let db = kv::Db::open(dir.path().join("meta.db"), kv::Options::default()).unwrap();
        let store = Arc::new(::content::LocalStore::open(dir.path().join("content")).unwrap());
        let options = ::metadata::Options::default();
        let metadata = Metadata::open(db.clone(), store, BTreeMap::new(), options).unwrap();
        let caller = Caller::new(Namespace::new("test").unwrap());
        metadata.namespaces().create(&caller.namespace, BTreeMap::new()).unwrap();
        let leases = metadata.leases(caller);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (start, started) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                db.write(|_| {
                    start.send(()).unwrap();
                    ended.recv().map_err(|error| Error::internal(error.to_string()))
                })
            });
            started.recv().unwrap();
            // The sender is dropped should this panic.
            let leases = &leases;
            runtime.block_on(async move {
                for number in 0..QUEUED_MAX * 2 {
                    let id = LeaseId::new(format!("lease-{number}")).unwrap();
                    let mut call = Box::pin(changed(leases.ready_create(id, types::Labels::new()).unwrap()));
                    let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(call.as_mut().poll(cx)));
                    assert!(polled.await.is_pending());
                    // A task without other waits must yield to the runtime.
                    tokio::task::yield_now().await;
                }
                end.send(()).unwrap();
                // Gets its permit once others are released.
                let last = LeaseId::new("last").unwrap();
                changed(leases.ready_create(last, types::Labels::new()).unwrap()).await.unwrap();
            });
        });
        assert_eq!(leases.list(&types::Filters::default()).unwrap().len(), QUEUED_MAX + 1);
    }
}
