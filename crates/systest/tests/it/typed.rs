//! The typed client: containerd's services asked directly, as a program that was built on them would.

use std::future::Future;

use api::grpc::events::SubscribeRequest;
use api::grpc::events::events_client::EventsClient;
use api::grpc::types::Envelope;
use testkit::Daemon;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

pub(crate) const NAMESPACE: &str = "default";

/// Does work on a connection to the daemon.
pub(crate) fn on<T>(daemon: &Daemon, work: impl AsyncFnOnce(Channel) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime
        .block_on(async { work(client::channel(&daemon.socket()).await.expect("the daemon listens")).await })
}

/// A request in [`NAMESPACE`].
pub(crate) fn ask<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(api::grpc::NAMESPACE_KEY, NAMESPACE.parse().expect("plain text"));
    request
}

pub(crate) async fn code<T>(answer: impl Future<Output = Result<T, Status>>) -> Code {
    answer.await.err().map_or(Code::Ok, |status| status.code())
}

/// Events from now on whose topics begin with one of `topics`.
pub(crate) async fn events(channel: &Channel, topics: &[&str]) -> Streaming<Envelope> {
    let filters = topics.iter().map(|topic| format!("topic~=^{topic}")).collect();
    let mut client = EventsClient::new(channel.clone());
    client.subscribe(ask(SubscribeRequest { filters })).await.expect("a subscription").into_inner()
}

/// The next event's topic.
pub(crate) async fn topic(events: &mut Streaming<Envelope>) -> String {
    events.message().await.expect("the stream lasts").expect("an event").topic
}
