//! `ctr events`.

use api::grpc::events::SubscribeRequest;
use serde_json::Value;
use types::{Result, Timestamp};

use super::command::{Call, Command};
use super::connection::{Answer, service};
use super::{schema, table};

pub(super) const COMMAND: Command =
    Command::new("events|event", "[<filter>, ...]", "print events as they happen", &[], |call| {
        Box::pin(events(call))
    });

async fn events(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let request = SubscribeRequest { filters: call.words().to_vec() };
    let mut stream =
        service!(connection, events::events_client::EventsClient).subscribe(request).await.answer()?;
    while let Some(envelope) = stream.message().await.map_err(|status| client::error(&status))? {
        let event = envelope.event.as_ref().map_or(Value::Null, schema::any);
        let time = go_time(envelope.timestamp.as_ref());
        table::lines([format!("{time} {} {} {event}", envelope.namespace, envelope.topic)]);
    }
    Ok(0)
}

/// `2026-11-26 02:29:09.97750039 +0000 UTC`
pub(super) fn go_time(wire: Option<&prost_types::Timestamp>) -> String {
    let wire = wire.copied().unwrap_or_default();
    let time = Timestamp { seconds: wire.seconds, nanos: u32::try_from(wire.nanos).unwrap_or(0) };
    format!("{} +0000 UTC", table::shortest(&time.to_string()).trim_end_matches('Z').replace('T', " "))
}
