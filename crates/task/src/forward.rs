//! Where shims publish: `containerd.services.events.ttrpc.v1.Events` on a socket beside the API's.

use std::future::ready;

use api::shim::events::{FORWARD, ForwardRequest, SERVICE};
use events::{Envelope, Exchange};
use tokio::net::UnixListener;
use ttrpc::Request;
use types::{Error, Namespace, Result};

use crate::convert;

/// Serves until dropped. Events of one connection are published in the order in which they came.
pub async fn serve(listener: UnixListener, exchange: Exchange) {
    ttrpc::asynchronous::serve(listener, move |request| ready(answer(&request, &exchange))).await;
}

fn answer(request: &Request, exchange: &Exchange) -> Result<Vec<u8>> {
    match (request.service.as_str(), request.method.as_str()) {
        (SERVICE, FORWARD) => {
            exchange.publish(envelope(request.read()?)?);
            Ok(Vec::new())
        }
        (SERVICE, _) => Err(request.unknown_method()),
        _ => Err(request.unknown_service()),
    }
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
    use events::Received;
    use types::Filters;

    fn forward(topic: &str) -> Request {
        let envelope = wire::Envelope {
            timestamp: Some(prost_types::Timestamp { seconds: 1, nanos: 2 }),
            namespace: "default".into(),
            topic: topic.into(),
            event: Some(prost_types::Any { type_url: "x".into(), value: vec![1] }),
        };
        Request::new(SERVICE, FORWARD, &ForwardRequest { envelope: Some(envelope) })
    }

    #[tokio::test]
    async fn what_shims_forward_is_published() {
        let exchange = Exchange::new();
        let mut events = exchange.subscribe(Filters::all());
        answer(&forward("/tasks/exit"), &exchange).unwrap();
        assert!(answer(&forward("no topic"), &exchange).is_err());
        assert!(answer(&Request::new(SERVICE, "Else", &()), &exchange).is_err());
        drop(exchange);
        let Some(Received::Event(event)) = events.receive().await else { panic!("no event") };
        assert_eq!((event.topic.as_str(), event.event.value.as_slice()), ("/tasks/exit", &[1][..]));
        assert_eq!(events.receive().await, None);
    }
}
