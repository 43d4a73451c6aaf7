//! Traces: spans of calls, pulls and starts, sent to a collector by OpenTelemetry's protocol (OTLP).
//!
//! ```text
//! spans of `tracing` with the target TRACE ──▶ Spans (a layer) ──▶ a bounded queue ──▶ Exporter ──▶ collector
//! ```
//!
//! Without a configured collector the layer does not exist, and a span costs a check of one flag.
//!
//! Invariants
//! - No call waits for the collector: spans that do not fit into the queue or cannot be sent are counted and dropped.
//! - Without spans to send there are no wake-ups.
//!
//! Fields of spans become attributes, except `otel.name` (the span's name, if not fixed), `traceparent` (the caller's
//! span, <https://www.w3.org/TR/trace-context/>), and `error`, which marks the span as failed.

mod export;

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use api::otlp::{AnyValue, KeyValue, Span, SpanKind, SpanStatus, StatusCode, Value};
use http::{HeaderMap, Response};
use stdx::TRACE;
use tokio::sync::mpsc;
use tonic::Code;
use tonic::body::Body;
use tracing::field::{Empty, Field, Visit};
use tracing::instrument::Instrument;
use tracing::span::{Attributes, Id, Record};
use tracing::{Subscriber, info_span};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

pub(crate) use self::export::Exporter;
use crate::config::Otlp;
use crate::telemetry::ends::{End, until_end};

/// Spans that wait to be sent.
const WAITING_MAX: usize = 4096;

/// The layer that converts spans of `tracing`, and the exporter that sends them.
pub(crate) fn start(config: &Otlp) -> (Spans, Exporter) {
    let (send, receive) = mpsc::channel(WAITING_MAX);
    let lost = Arc::new(AtomicU64::new(0));
    let layer = Spans { send, lost: lost.clone(), ratio: config.sampling_ratio, random: RandomState::new() };
    (layer, Exporter::new(config.clone(), receive, lost))
}

pub(crate) struct Spans {
    send: mpsc::Sender<Span>,
    /// Number of dropped spans.
    lost: Arc<AtomicU64>,
    ratio: f64,
    random: RandomState,
}

/// A span in progress.
struct Open {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    parent_id: Vec<u8>,
    is_told: bool,
    begun: (SystemTime, Instant),
    fields: Fields,
}

impl Spans {
    /// An unpredictable number other than 0.
    fn number(&self) -> u64 {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let mut hasher = self.random.build_hasher();
        hasher.write_u64(COUNT.fetch_add(1, Ordering::Relaxed));
        hasher.finish().max(1)
    }

    /// Trace id, parent and sampling decision of a root span: the caller's if it sent a `traceparent`, or new ones.
    fn root(&self, fields: &Fields) -> ([u8; 16], Vec<u8>, bool) {
        if let Some((trace_id, parent_id, is_told)) = fields.parent.as_deref().and_then(parse_parent) {
            return (trace_id, parent_id.to_vec(), is_told);
        }
        let (high, low) = (self.number(), self.number());
        let mut trace_id = [0; 16];
        trace_id[..8].copy_from_slice(&high.to_be_bytes());
        trace_id[8..].copy_from_slice(&low.to_be_bytes());
        let is_told = self.ratio >= 1.0 || (low as f64) < self.ratio * u64::MAX as f64;
        (trace_id, Vec::new(), is_told)
    }
}

impl<S: Subscriber + for<'l> LookupSpan<'l>> Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let parent = span.parent().and_then(|parent| {
            let extensions = parent.extensions();
            let open = extensions.get::<Open>()?;
            Some((open.trace_id, open.span_id.to_vec(), open.is_told))
        });
        let (trace_id, parent_id, is_told) = parent.unwrap_or_else(|| self.root(&fields));
        let (span_id, begun) = (self.number().to_be_bytes(), (SystemTime::now(), Instant::now()));
        span.extensions_mut().insert(Open { trace_id, span_id, parent_id, is_told, begun, fields });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(open) = span.extensions_mut().get_mut::<Open>() {
            values.record(&mut open.fields);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let Some(open) = span.extensions_mut().remove::<Open>() else { return };
        if !open.is_told {
            return;
        }
        if self.send.try_send(open.end(span.name())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Open {
    fn end(self, name: &str) -> Span {
        let Fields { name: own_name, attributes, error, is_call, .. } = self.fields;
        let (clock, begun) = self.begun;
        let start = clock.duration_since(UNIX_EPOCH).unwrap_or_default();
        let nanos = |time: std::time::Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let kind = if is_call { SpanKind::Server } else { SpanKind::Internal };
        let failed = |message| SpanStatus { message, code: StatusCode::Error.into() };
        Span {
            trace_id: self.trace_id.to_vec(),
            span_id: self.span_id.to_vec(),
            parent_span_id: self.parent_id,
            name: own_name.unwrap_or_else(|| name.to_owned()),
            kind: kind.into(),
            start_time_unix_nano: nanos(start),
            // Computed from elapsed time, because the clock may be set meanwhile.
            end_time_unix_nano: nanos(start + begun.elapsed()),
            attributes,
            status: error.map(failed),
        }
    }
}

/// The fields of a span.
#[derive(Default)]
struct Fields {
    name: Option<String>,
    parent: Option<String>,
    error: Option<String>,
    is_call: bool,
    attributes: Vec<KeyValue>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: Value) {
        self.is_call |= field.name() == "rpc.system";
        let value = Some(AnyValue { value: Some(value) });
        self.attributes.push(KeyValue { key: field.name().to_owned(), value });
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "otel.name" => self.name = Some(value.to_owned()),
            "traceparent" => self.parent = Some(value.to_owned()),
            "error" => self.error = Some(value.to_owned()),
            _ => self.add(field, Value::Text(value.to_owned())),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, Value::Int(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, Value::Int(i64::try_from(value).unwrap_or(i64::MAX)));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, Value::Bool(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, Value::Double(value));
    }
}

/// Parses `00-TRACE-SPAN-FLAGS`; later versions may append more.
fn parse_parent(text: &str) -> Option<([u8; 16], [u8; 8], bool)> {
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_version = version.len() == 2 && version != "ff" && (version != "00" || parts.next().is_none());
    if !is_version || trace.len() != 32 || span.len() != 16 || flags.len() != 2 {
        return None;
    }
    let is_hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if ![version, trace, span, flags].into_iter().all(is_hex) {
        return None;
    }
    let trace = u128::from_str_radix(trace, 16).ok().filter(|trace| *trace != 0)?;
    let span = u64::from_str_radix(span, 16).ok().filter(|span| *span != 0)?;
    let flags = u8::from_str_radix(flags, 16).ok()?;
    Some((trace.to_be_bytes(), span.to_be_bytes(), flags & 1 == 1))
}

/// The span of a gRPC call; disabled if tracing is off.
pub(crate) fn call(service: &str, method: &str, headers: &HeaderMap) -> tracing::Span {
    let span = info_span!(
        target: TRACE,
        "call",
        otel.name = %format_args!("{service}/{method}"),
        rpc.system = "grpc",
        rpc.service = service,
        rpc.method = method,
        containerd.namespace = Empty,
        rpc.grpc.status_code = Empty,
        error = Empty,
        traceparent = headers.get("traceparent").and_then(|value| value.to_str().ok()),
    );
    if !span.is_disabled()
        && let Some(namespace) = headers.get(api::grpc::NAMESPACE_KEY).and_then(|value| value.to_str().ok())
    {
        span.record("containerd.namespace", namespace);
    }
    span
}

/// Runs a call inside its span, which ends with the response's end.
pub(crate) async fn within(
    span: tracing::Span,
    answer: impl Future<Output = Response<Body>>,
) -> Response<Body> {
    let response = answer.instrument(span.clone()).await;
    until_end(response, Call(Some(span)))
}

struct Call(Option<tracing::Span>);

impl End for Call {
    fn end(&mut self, code: Code) {
        let Some(span) = self.0.take() else { return };
        span.record("rpc.grpc.status_code", i64::from(i32::from(code)));
        if is_failure(code) {
            span.record("error", format!("{code:?}").as_str());
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // The client has disconnected.
        self.end(Code::Cancelled);
    }
}

/// Whether a status counts as the server's error, by OpenTelemetry's conventions for servers.
fn is_failure(code: Code) -> bool {
    use Code::{DataLoss, DeadlineExceeded, Internal, Unavailable, Unimplemented, Unknown};
    matches!(code, Unknown | DeadlineExceeded | Unimplemented | Internal | Unavailable | DataLoss)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_read_as_the_recommendation_has_them() {
        let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let parent = |text: &str| parse_parent(text).map(|(trace, span, told)| (trace[0], span[0], told));
        assert_eq!(parent(&format!("00-{trace}-{span}-01")), Some((0x0a, 0xb7, true)));
        assert_eq!(parent(&format!("00-{trace}-{span}-00")), Some((0x0a, 0xb7, false)));
        assert_eq!(parent(&format!("01-{trace}-{span}-01-more")), Some((0x0a, 0xb7, true)));
        let zeros = "0".repeat(32);
        for bad in [
            String::new(),
            format!("00-{trace}-{span}"),
            format!("00-{trace}-{span}-01-more"),
            format!("ff-{trace}-{span}-01"),
            format!("00-{zeros}-{span}-01"),
            format!("00-{trace}-{}-01", &zeros[..16]),
            format!("00-{}-{span}-01", trace.to_uppercase()),
            format!("00-{}-{span}-01", &trace[1..]),
        ] {
            assert_eq!(parent(&bad), None, "{bad}");
        }
    }

    #[test]
    fn a_full_span_queue_drops_spans_without_blocking() {
        use tracing_subscriber::layer::SubscriberExt;
        let config = Otlp {
            endpoint: "http://127.0.0.1:1/v1/traces".parse().unwrap(),
            protocol: crate::config::Protocol::HttpProtobuf,
            ca: None,
            headers: Vec::new(),
            service_name: "test".into(),
            sampling_ratio: 1.0,
            delay: std::time::Duration::from_secs(1),
        };
        let (layer, mut exporter) = start(&config);
        let lost = layer.lost.clone();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let outer = info_span!(target: TRACE, "outer", number = 7_u64);
            outer.in_scope(|| drop(info_span!(target: TRACE, "inner", error = "broken")));
            drop(outer);
            for _ in 0..WAITING_MAX {
                drop(info_span!(target: TRACE, "more"));
            }
        });
        assert_eq!(lost.load(Ordering::Relaxed), 2);
        let spans = exporter.waiting();
        let (inner, outer) = (&spans[0], &spans[1]);
        assert_eq!((inner.name.as_str(), outer.name.as_str()), ("inner", "outer"));
        assert_eq!((&inner.trace_id, &inner.parent_span_id), (&outer.trace_id, &outer.span_id));
        assert_eq!(inner.status.as_ref().map(|status| status.code), Some(StatusCode::Error.into()));
        assert!(outer.status.is_none() && outer.parent_span_id.is_empty() && outer.attributes.len() == 1);
        assert!(outer.start_time_unix_nano <= inner.start_time_unix_nano);
        assert!(outer.end_time_unix_nano >= inner.end_time_unix_nano);
        assert_ne!(spans[2].trace_id, outer.trace_id);
    }
}
