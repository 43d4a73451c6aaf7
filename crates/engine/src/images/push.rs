//! `push` and `referrers`: images to registries, and the artifacts that refer to them there.

use std::collections::BTreeSet;

use api::engine::{Keyring, PushStep};
use registry::Sent;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use transfer::{PushProgress, PushRequest, Scope};
use types::descriptor::media_type;
use types::{Descriptor, Error, ErrorKind, Reference, Result};

use crate::Engine;

/// Progress messages queued for a slow client. Further ones are dropped.
const STEPS_WAITING: usize = 256;

impl Engine {
    /// Pushes an image to the registry that is part of its name, and streams its progress.
    pub async fn push(
        &self,
        reference: &str,
        scope: Scope,
        referrers: bool,
        credentials: Keyring,
        to: mpsc::Sender<PushStep>,
    ) -> Result<Descriptor> {
        let reference: Reference = reference.parse()?;
        let name = reference.to_string();
        let pushed_name = name.clone();
        let image = self
            .blocking(move |engine| {
                let images = engine.parts().metadata.images(&engine.0.caller);
                images.get(&name).map_err(|error| match error.is(ErrorKind::NotFound) {
                    true => Error::not_found(format!(
                        "No such image: {name}; an image is pushed by its full name (hoist tag gives it one)"
                    )),
                    false => error,
                })
            })
            .await?;
        let remote = self.remote(&reference, credentials).await?;
        let (send, mut receive) = mpsc::channel(STEPS_WAITING);
        let request = PushRequest {
            target: image.target,
            reference,
            scope,
            referrers,
            slots: self.parts().slots.clone(),
            caller: self.0.caller.clone(),
            remote,
        };
        let steps = tokio::spawn(async move {
            while let Some(progress) = receive.recv().await {
                let Some(step) = step(progress) else { continue };
                if to.send(step).await.is_err() {
                    return;
                }
            }
        });
        let pushed = transfer::push(&self.parts().metadata, request, Some(send)).await;
        // Forward all progress before returning the outcome.
        let _ = steps.await;
        if pushed.is_ok() {
            self.tell_image(None, "push", &pushed_name);
        }
        pushed
    }

    /// The artifacts that refer to an image in its registry.
    pub(crate) async fn referrers(
        &self,
        reference: &str,
        artifact_type: Option<&str>,
        credentials: Keyring,
    ) -> Result<Value> {
        let reference: Reference = reference.parse()?;
        let remote = self.remote(&reference, credentials).await?;
        let subject = match reference.digest() {
            Some(digest) => digest.clone(),
            None => remote.resolve().await?.descriptor.digest,
        };
        let found = remote.referrers(&subject, artifact_type).await?;
        Ok(found
            .into_iter()
            .map(|referrer| {
                json!({
                    "Digest": referrer.digest.to_string(),
                    "ArtifactType": referrer.artifact_type,
                    "MediaType": referrer.media_type,
                    "Size": referrer.size,
                    "Annotations": referrer.annotations,
                    "Subject": subject.to_string(),
                })
            })
            .collect())
    }
}

/// `None` for what the outcome reports.
fn step(progress: PushProgress) -> Option<PushStep> {
    Some(match progress {
        PushProgress::Document { .. } => return None,
        PushProgress::LeftOut { what } => PushStep::LeftOut { what },
        PushProgress::Parts(parts) => {
            let mut seen = BTreeSet::new();
            let blobs = parts.into_iter().map(|going| going.part);
            let blobs = blobs.filter(|part| !media_type::is_document(&part.media_type));
            let blobs = blobs.map(|blob| (blob.digest.to_string(), blob.size));
            PushStep::Blobs { blobs: blobs.filter(|(digest, _)| seen.insert(digest.clone())).collect() }
        }
        PushProgress::Sending { digest, current } => {
            PushStep::Sending { digest: digest.to_string(), current }
        }
        PushProgress::Sent { digest, how } => {
            let digest = digest.to_string();
            match how {
                Sent::Existed => PushStep::Existed { digest },
                Sent::Mounted(from) => PushStep::Mounted { digest, from },
                Sent::Uploaded => PushStep::Sent { digest },
            }
        }
        PushProgress::Referrer { digest } => PushStep::Referrer { digest: digest.to_string() },
    })
}
