//! The typed client of `crates/client`: containerd's services called from a Rust program.

use std::future::Future;

use api::grpc::events::events_client::EventsClient;
use api::grpc::events::{PublishRequest, SubscribeRequest};
use api::grpc::types::{Any, Envelope};
use testkit::Daemon;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

pub(crate) const NAMESPACE: &str = "default";

/// Runs `work` with a connection to the daemon.
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

/// Events from now on, whose topics begin with one of `topics`.
pub(crate) async fn events(channel: &Channel, topics: &[&str]) -> Streaming<Envelope> {
    let filters = topics.iter().map(|topic| format!("topic~=^{topic}")).collect();
    let mut client = EventsClient::new(channel.clone());
    client.subscribe(ask(SubscribeRequest { filters })).await.expect("a subscription").into_inner()
}

/// The next event's topic.
pub(crate) async fn topic(events: &mut Streaming<Envelope>) -> String {
    events.message().await.expect("the stream lasts").expect("an event").topic
}

/// Events of a subscriber that does not read are buffered up to a number of bytes, then its stream ends with an error.
#[test]
fn a_listener_that_does_not_read_is_told_before_its_events_are_all_memory() {
    const LEN: usize = 1 << 20;
    let daemon = Daemon::start();
    on(&daemon, async |channel| {
        // On a connection of its own, whose window its unread messages may fill.
        let idle = client::channel(&daemon.socket()).await.expect("the daemon listens");
        let mut idle = events(&idle, &["/large"]).await;
        let mut quick = events(&channel, &["/large"]).await;
        let mut publisher = EventsClient::new(channel);
        let event = Any { type_url: "large".into(), value: vec![0; LEN] };
        let mut published = 0;
        while published < 64 {
            let event = Some(event.clone());
            let request = PublishRequest { topic: "/large".into(), event };
            publisher.publish(ask(request)).await.expect("it is published");
            assert_eq!(topic(&mut quick).await, "/large", "who reads loses nothing");
            published += 1;
        }
        let mut read = 0;
        let refused = loop {
            match idle.message().await {
                Ok(message) => read += usize::from(message.is_some()),
                Err(status) => break status,
            }
        };
        assert_eq!(refused.code(), Code::DataLoss, "{refused}");
        assert!(read < 32, "{read} of {published} were kept for it");
    });
}
