//! Traces of HTTP exchanges with a registry, sent to the client on a stream that it opened for that, or logged.
//!
//! The trace and its stream end with the last use of the registry connection for the transfer.

use api::grpc::transfer::HttpDebug;
use registry::{HttpTrace, TraceOptions};
use types::{Error, Result};

use crate::streams::Channel;

/// What to trace; `None` for nothing.
pub(super) fn options(wanted: i32) -> Result<Option<TraceOptions>> {
    let wanted = HttpDebug::try_from(wanted)
        .map_err(|_| Error::invalid_argument(format!("http_debug {wanted} is not known: it is 0 to 3")))?;
    let traced = |messages, connections| Some(TraceOptions { messages, connections });
    Ok(match wanted {
        HttpDebug::Disabled => None,
        HttpDebug::Debug => traced(true, false),
        HttpDebug::Trace => traced(false, true),
        HttpDebug::Both => traced(true, true),
    })
}

/// A trace that is sent to a client, or logged.
pub(super) fn open(options: TraceOptions, stream: Option<Channel>, reference: String) -> HttpTrace {
    let (trace, mut texts) = HttpTrace::new(options);
    match stream {
        Some(stream) => {
            let mut sender = stream.into_sender();
            // Ends with the trace, or when the client stops reading.
            tokio::spawn(async move {
                while let Some(text) = texts.recv().await {
                    if sender.send_all(text.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
        None => {
            tokio::spawn(async move {
                while let Some(text) = texts.recv().await {
                    for line in text.lines() {
                        tracing::info!(%reference, "{line}");
                    }
                }
            });
        }
    }
    trace
}
