//! Futures as spans of a trace.

use std::fmt::Display;
use std::future::Future;

use tracing::Span;
use tracing::instrument::Instrument;

/// The target of spans that belong to traces and not to the log.
pub const TRACE: &str = "trace";

/// Runs work inside a span, and records its error in the span's field `error`. A disabled span, where no tracing is
/// configured, costs nothing.
pub async fn traced<T, E: Display>(span: Span, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    if span.is_disabled() {
        return work.await;
    }
    let done = work.instrument(span.clone()).await;
    if let Err(error) = &done {
        span.record("error", error.to_string().as_str());
    }
    done
}
