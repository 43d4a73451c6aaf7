//! `pull`: images from registries.

use api::engine::{Keyring, PullStep};
use metadata::Image;
use tokio::sync::mpsc;
use transfer::{Progress, PullRequest, Unpack, WantedPlatforms};
use types::{Labels, Platform, Reference, Result};

use crate::Engine;

/// Progress messages queued for a slow client. Further ones are dropped.
const STEPS_WAITING: usize = 256;

impl Engine {
    /// Pulls an image and streams its progress.
    pub async fn pull(
        &self,
        reference: &str,
        platform: Option<&str>,
        credentials: Keyring,
        to: mpsc::Sender<PullStep>,
    ) -> Result<Image> {
        let reference: Reference = reference.parse()?;
        let platform = platform.filter(|platform| !platform.is_empty());
        let platform = platform.map_or_else(|| Ok(Platform::host()), str::parse)?;
        let remote = self.remote(&reference, credentials).await?;
        let (send, mut receive) = mpsc::channel(STEPS_WAITING);
        let request = PullRequest {
            name: reference.to_string(),
            reference,
            platforms: WantedPlatforms::Each(vec![platform.clone()]),
            unpacks: vec![Unpack { platform, snapshotter: self.parts().snapshotter.clone() }],
            all_metadata: false,
            labels: Labels::new(),
            caller: self.0.caller.clone(),
            remote,
            slots: self.parts().slots.clone(),
            flights: self.parts().flights.clone(),
            admission: self.parts().admission.clone(),
            retentions: self.parts().retentions.clone(),
        };
        let steps = tokio::spawn(async move {
            while let Some(progress) = receive.recv().await {
                let Some(step) = step(progress) else { continue };
                if to.send(step).await.is_err() {
                    return;
                }
            }
        });
        let pulled = transfer::pull(&self.parts().metadata, request, Some(send)).await;
        // Forward all progress before returning the outcome.
        let _ = steps.await;
        if let Ok(image) = &pulled {
            self.tell_image(None, "pull", &image.name);
        }
        pulled
    }
}

/// `None` for documents, which are too small to report.
fn step(progress: Progress) -> Option<PullStep> {
    Some(match progress {
        Progress::Document { .. } | Progress::Stored { .. } => return None,
        Progress::Resolved { name, target } => PullStep::Resolved { name, digest: target.digest.to_string() },
        Progress::Layers { layers, .. } => PullStep::Layers {
            layers: layers.into_iter().map(|layer| (layer.digest.to_string(), layer.size)).collect(),
        },
        Progress::Downloading { digest, current } => {
            PullStep::Downloading { digest: digest.to_string(), current }
        }
        Progress::Extracting { digest } => PullStep::Extracting { digest: digest.to_string() },
        Progress::Done { digest } => PullStep::LayerDone { digest: digest.to_string() },
        Progress::Exists { digest } => PullStep::LayerExists { digest: digest.to_string() },
    })
}
