//! What is said to a registry, for a client that wants to see it: on the stream that it opened for that, or in our log.
//!
//! The words end when nothing speaks to the registry for the transfer any more, and the stream with them.

use api::grpc::transfer::HttpDebug;
use registry::{Seen, Witness};
use types::{Error, Result};

use crate::streams::Channel;

/// What a client wants to see; none if it wants to see nothing.
pub(super) fn seen(wanted: i32) -> Result<Option<Seen>> {
    let wanted = HttpDebug::try_from(wanted)
        .map_err(|_| Error::invalid_argument(format!("http_debug {wanted} is not known: it is 0 to 3")))?;
    let seen = |messages, connections| Some(Seen { messages, connections });
    Ok(match wanted {
        HttpDebug::Disabled => None,
        HttpDebug::Debug => seen(true, false),
        HttpDebug::Trace => seen(false, true),
        HttpDebug::Both => seen(true, true),
    })
}

/// One that tells a client, or the log.
pub(super) fn witness(seen: Seen, stream: Option<Channel>, reference: String) -> Witness {
    let (witness, mut texts) = Witness::new(seen);
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
    witness
}
