//! `containerd publish`: publishes an event for old shims and scripts. Reads the event, a `google.protobuf.Any`, from
//! standard input and sends it to the daemon at an address.

use std::io::Read;
use std::path::Path;

use api::grpc::NAMESPACE_KEY;
use api::grpc::events::PublishRequest;
use api::grpc::events::events_client::EventsClient;
use prost::Message;
use prost_types::Any;
use tonic::Request;
use types::{Context, Error, Result};

/// Longest event in bytes, like the longest message of the API.
const EVENT_LEN_MAX: u64 = 16 << 20;

pub(crate) fn publish(address: &Path, namespace: &str, topic: &str) -> Result<()> {
    if topic.is_empty() {
        return Err(Error::invalid_argument("publish: --topic TOPIC is needed"));
    }
    let mut bytes = Vec::new();
    std::io::stdin()
        .take(EVENT_LEN_MAX)
        .read_to_end(&mut bytes)
        .context(|| "publish: read the event from standard input")?;
    let event = Any::decode(&*bytes).map_err(|error| {
        Error::invalid_argument("publish: standard input is not an encoded google.protobuf.Any")
            .with_source(error)
    })?;
    let namespace = namespace.parse().map_err(|_| {
        Error::invalid_argument(format!("publish: namespace {namespace:?}: only printable ASCII may occur"))
    })?;
    let mut request = Request::new(PublishRequest { topic: topic.to_owned(), event: Some(event) });
    request.metadata_mut().insert(NAMESPACE_KEY, namespace);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context(|| "start the executor")?;
    runtime.block_on(async {
        let channel = client::channel(address).await?;
        let told = EventsClient::new(channel).publish(request).await;
        told.map(drop).map_err(|status| client::error(&status).context(format!("publish {topic}")))
    })
}
