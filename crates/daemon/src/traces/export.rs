//! Sends queued spans to the collector in batches, over HTTP or gRPC.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::otlp::trace_service_client::TraceServiceClient;
use api::otlp::{
    AnyValue, ExportTraceServiceRequest, ExportTraceServiceResponse, InstrumentationScope, KeyValue,
    Resource, ResourceSpans, ScopeSpans, Span, Value,
};
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use prost::Message;
use registry::Tls;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::body::Body;
use types::{Context, Error, Result};

use crate::config::{Otlp, Protocol};

/// Spans per request.
const BATCH_LEN: usize = 512;
/// Time limit of a request.
const LIMIT: Duration = Duration::from_secs(10);
/// Time limit of the last request when the daemon stops.
const LAST_LIMIT: Duration = Duration::from_secs(1);
/// The most bytes read of a response.
const ANSWER_LEN_MAX: usize = 64 * 1024;

type Connection = Client<HttpsConnector<HttpConnector>, Body>;

/// Sends queued spans.
pub(crate) struct Exporter {
    config: Otlp,
    receive: mpsc::Receiver<Span>,
    lost: Arc<AtomicU64>,
}

impl Exporter {
    pub(super) fn new(config: Otlp, receive: mpsc::Receiver<Span>, lost: Arc<AtomicU64>) -> Exporter {
        Exporter { config, receive, lost }
    }

    /// Sends until told to stop, or `stop`'s sender is dropped; then sends the rest with a short time limit.
    pub(crate) async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let collector = match Collector::new(&self.config) {
            Ok(collector) => collector,
            Err(error) => return tracing::warn!("traces are not sent: {}", error.chain()),
        };
        tracing::info!(endpoint = %self.config.endpoint, "traces are sent");
        let mut is_well = true;
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                () = gather(&mut self.receive, self.config.delay, &mut batch) => {}
                _ = &mut stop => break,
            }
            let len = batch.len() as u64;
            let mut sending = std::pin::pin!(collector.send(std::mem::take(&mut batch), LIMIT));
            let sent = tokio::select! {
                sent = sending.as_mut() => sent,
                _ = &mut stop => {
                    // Stopping the daemon must not take long.
                    let _ = timeout(LAST_LIMIT, sending).await;
                    break;
                }
            };
            match sent {
                Ok(()) if is_well => {}
                Ok(()) => {
                    let lost = self.lost.swap(0, Ordering::Relaxed);
                    tracing::info!(lost, "traces are sent again");
                    is_well = true;
                }
                Err(error) => {
                    self.lost.fetch_add(len, Ordering::Relaxed);
                    // Logged once until it works again.
                    if std::mem::take(&mut is_well) {
                        tracing::warn!("traces are lost: {}", error.chain());
                    }
                }
            }
        }
        batch.extend(self.waiting());
        if is_well && !batch.is_empty() {
            let _ = collector.send(batch, LAST_LIMIT).await;
        }
    }

    /// The spans that are in the queue now.
    pub(super) fn waiting(&mut self) -> Vec<Span> {
        std::iter::from_fn(|| self.receive.try_recv().ok()).collect()
    }
}

/// Waits for a span, without a limit, and collects further ones until the batch is full or `delay` has passed.
async fn gather(receive: &mut mpsc::Receiver<Span>, delay: Duration, batch: &mut Vec<Span>) {
    let Some(first) = receive.recv().await else { return std::future::pending().await };
    batch.push(first);
    let end = Instant::now() + delay;
    while batch.len() < BATCH_LEN
        && let Ok(Some(span)) = timeout_at(end, receive.recv()).await
    {
        batch.push(span);
    }
}

struct Collector {
    config: Otlp,
    connection: Connection,
}

impl Collector {
    fn new(config: &Otlp) -> Result<Collector> {
        // Without TLS the CA file is not needed, and may belong to another endpoint.
        let ca = config.ca.as_deref().filter(|_| config.endpoint.scheme_str() == Some("https"));
        let tls = ca.map_or_else(|| Ok(Tls::default()), Tls::trusting);
        let tls = tls.and_then(|tls| tls.config()).context(|| "speak to a collector")?;
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
        let connector = match config.protocol {
            Protocol::HttpProtobuf => connector.enable_http1().build(),
            Protocol::Grpc => connector.enable_http2().build(),
        };
        let connection = Client::builder(TokioExecutor::new())
            .http2_only(config.protocol == Protocol::Grpc)
            .build(connector);
        Ok(Collector { config: config.clone(), connection })
    }

    async fn send(&self, spans: Vec<Span>, limit: Duration) -> Result<()> {
        let request = self.request(spans);
        let sending = async {
            match self.config.protocol {
                Protocol::HttpProtobuf => self.post(request).await,
                Protocol::Grpc => self.call(request).await,
            }
        };
        let sent = timeout(limit, sending).await;
        let sent =
            sent.unwrap_or_else(|_| Err(Error::deadline_exceeded(format!("no answer within {limit:?}"))));
        sent.context(|| format!("send traces to {}", self.config.endpoint))
    }

    fn request(&self, spans: Vec<Span>) -> ExportTraceServiceRequest {
        let text = |key: &str, value: &str| KeyValue {
            key: key.to_owned(),
            value: Some(AnyValue { value: Some(Value::Text(value.to_owned())) }),
        };
        let (name, version) = ("hoist", crate::identity::OWN_VERSION);
        let attributes =
            vec![text("service.name", &self.config.service_name), text("service.version", version)];
        let scope = InstrumentationScope { name: name.to_owned(), version: version.to_owned() };
        let scope_spans = vec![ScopeSpans { scope: Some(scope), spans }];
        let resource_spans = vec![ResourceSpans { resource: Some(Resource { attributes }), scope_spans }];
        ExportTraceServiceRequest { resource_spans }
    }

    async fn post(&self, message: ExportTraceServiceRequest) -> Result<()> {
        let body = Body::new(Full::from(message.encode_to_vec()));
        let mut request = http::Request::post(&self.config.endpoint)
            .header(CONTENT_TYPE, "application/x-protobuf")
            .body(body)
            .map_err(|error| Error::internal("a request is put together").with_source(error))?;
        request.headers_mut().extend(self.config.headers.iter().cloned());
        let answer = self.connection.request(request).await;
        let answer = answer.map_err(|error| Error::unavailable("no answer").with_source(error))?;
        let status = answer.status();
        // Read to the end, so that the connection can be reused.
        let body = Limited::new(answer.into_body(), ANSWER_LEN_MAX).collect().await;
        if !status.is_success() {
            return Err(Error::unavailable(format!("it answers {status}")));
        }
        let body = body.map_err(|error| Error::unavailable(format!("its answer broke off: {error}")))?;
        // A malformed response is ignored: the collector has received the spans.
        accepted(&ExportTraceServiceResponse::decode(body.to_bytes()).unwrap_or_default())
    }

    async fn call(&self, message: ExportTraceServiceRequest) -> Result<()> {
        let mut client =
            TraceServiceClient::with_origin(self.connection.clone(), self.config.endpoint.clone());
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() =
            tonic::metadata::MetadataMap::from_headers(self.config.headers.iter().cloned().collect());
        let answer = client.export(request).await;
        let answer = answer.map_err(|status| {
            // The innermost cause tells why a connection failed.
            let mut why = status.source();
            while let Some(next) = why.and_then(|cause| cause.source()) {
                why = Some(next);
            }
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            Error::unavailable(format!("it answers {:?}: {}{why}", status.code(), status.message()))
        })?;
        accepted(answer.get_ref())
    }
}

fn accepted(answer: &ExportTraceServiceResponse) -> Result<()> {
    match &answer.partial_success {
        Some(partial) if partial.rejected_spans > 0 => Err(Error::invalid_argument(format!(
            "it rejects {} spans: {}",
            partial.rejected_spans, partial.error_message
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_read_for_a_collector_that_is_vouched_for() {
        let collector = |endpoint: &str| {
            Collector::new(&Otlp {
                endpoint: endpoint.parse().unwrap(),
                protocol: Protocol::HttpProtobuf,
                ca: Some("/not/there.pem".into()),
                headers: Vec::new(),
                service_name: "test".into(),
                sampling_ratio: 1.0,
                delay: Duration::from_secs(1),
            })
        };
        assert!(collector("http://127.0.0.1:1/v1/traces").is_ok());
        let error = collector("https://127.0.0.1:1/v1/traces").err().expect("there is no such file");
        assert!(error.chain().contains("/not/there.pem"), "{}", error.chain());
    }
}
