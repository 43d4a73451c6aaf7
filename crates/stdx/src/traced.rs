//! Work as a span of a trace.

use std::fmt::Display;
use std::future::Future;

use tracing::Span;
use tracing::instrument::Instrument;

/// The target of spans that belong to traces and not to the log.
pub const TRACE: &str = "trace";

/// Does work inside a span, and says in its field `error` what became of it, if that is bad. Where nobody traces, the
/// span is a disabled one, and this is nothing but the work.
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
