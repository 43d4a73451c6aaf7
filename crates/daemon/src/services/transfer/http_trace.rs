//! What is said to a registry, for a client that wants to see it: on the stream that it opened for that, or in our log.
//!
//! The words end when nothing speaks to the registry for the transfer any more, and the stream with them.

use api::grpc::transfer::HttpDebug;
use registry::{HttpTrace, TraceOptions};
use types::{Error, Result};

use crate::streams::Channel;

/// What a client wants traced; none if it is nothing.
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

/// A trace that goes to a client, or to the log.
pub(super) fn open(options: TraceOptions, stream: Option<Channel>, reference: String) -> HttpTrace {
    let (trace, mut texts) = HttpTrace::new(options);
    match stream {
        Some(stream) => {
            let mut sender = stream.into_sender();
            // It ends with the words, or with a client that does not take them.
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
