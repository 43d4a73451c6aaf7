//! The configured differs, in order, for layers that the daemon unpacks itself: in pulls, loads and imports.
//!
//! ```text
//! [diff] default = ["notes", "walking", "last"]
//!                     │          │         └ for layers that ours does not support
//!                     │          └ ours: built in
//!                     └ for every layer
//! ```

use api::grpc::diff::ApplyRequest;
use api::grpc::diff::diff_client::DiffClient;
use metadata::{Applied, Caller, Differs, StreamProcessors};
use tonic::Response;
use types::descriptor::media_type;
use types::{Descriptor, Error, ErrorKind, Mount, Result};

use crate::processors::Processors;
use crate::proxy::{self, LONG, Plugin};
use crate::services::convert;

pub(crate) struct Chain {
    /// `None` is our own differ.
    pub(crate) differs: Vec<Option<Plugin>>,
    pub(crate) processors: Processors,
}

impl Chain {
    /// The plugins to try for a media type before our differ, or without it.
    fn asked(&self, kind: &str) -> impl Iterator<Item = &Plugin> {
        let is_ours = media_type::is_layer(kind) && !media_type::is_encrypted(kind);
        let is_ours = is_ours || self.processors.names(kind).is_some();
        self.differs.iter().take_while(move |differ| !is_ours || differ.is_some()).flatten()
    }
}

impl Differs for Chain {
    fn are_asked(&self, kind: &str) -> bool {
        self.asked(kind).next().is_some()
    }

    fn apply(&self, caller: &Caller, layer: &Descriptor, mounts: &[Mount]) -> Result<Option<Applied>> {
        for plugin in self.asked(&layer.media_type) {
            let (channel, caller) = (plugin.channel(), caller.clone());
            let request = ApplyRequest {
                diff: Some(convert::descriptor(layer)),
                mounts: convert::mounts(mounts.to_vec()),
                ..ApplyRequest::default()
            };
            let applied = plugin.block(LONG, async move {
                let mut client = proxy::client!(DiffClient, channel);
                client.apply(proxy::request_of(&caller, request)).await.map(Response::into_inner)
            });
            match applied {
                Err(error) if error.is(ErrorKind::Unimplemented) => {}
                applied => {
                    let applied = applied?.applied.unwrap_or_default();
                    let by = plugin.config().name.clone();
                    return Ok(Some(Applied { diff_id: applied.digest.parse()?, by }));
                }
            }
        }
        if self.differs.iter().any(Option::is_none) {
            return Ok(None);
        }
        let kind = &layer.media_type;
        Err(Error::unimplemented(format!(
            "layer {} of type {kind}: no differ knows how to apply it",
            layer.digest
        )))
    }
}
