//! Progress messages of transfers, in the format of containerd's transfer service.
//!
//! ```text
//! Resolving from …, Pulling from …          of the transfer: no name
//! fetching image content … saved            of the image, by its name
//! waiting ─▶ downloading ─▶ complete        of a blob, by its ingest reference (`layer-sha256:…`); its parents are the
//!    └─▶ already exists    └─▶ extracted    blobs that refer to it, or the image's name for the first
//! ```

use std::collections::BTreeMap;

use api::grpc::transfer::Progress as Step;
use api::shim::pack;
use metadata::Image;
use registry::Sent;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use transfer::{Progress, PushPart, PushProgress, ingest_name};
use types::{Descriptor, Digest};

use super::super::convert;
use crate::streams::Channel;

/// Messages queued for a slow client. Further ones are dropped.
const STEPS_WAITING: usize = 256;

/// Reports to a client, if it opened a stream. A disconnected client does not stop the transfer.
pub(super) struct Reporter(Option<Channel>);

impl Reporter {
    pub(super) fn to(channel: Option<Channel>) -> Reporter {
        Reporter(channel)
    }

    async fn tell(&self, step: Step) {
        if let Some(channel) = &self.0 {
            let _ = channel.send(pack(&step)).await;
        }
    }

    pub(super) async fn of_all(&self, event: String) {
        self.tell(Step { event, ..Step::default() }).await;
    }

    /// The last message of a push, with the pushed descriptor.
    pub(super) async fn pushed(&self, event: String, image: &Image) {
        self.tell(Step { event, desc: Some(convert::descriptor(&image.target)), ..Step::default() }).await;
    }

    pub(super) async fn of_image(&self, event: &str, image: &Image) {
        self.tell(of_image(event, &image.name, &image.target)).await;
    }

    /// Reports the names of the saved images.
    pub(super) async fn saved(&self, images: Vec<Image>) {
        for image in images {
            self.of_image("saved", &image).await;
        }
    }

    /// Forwards progress in the background, until its sender is dropped or the client disconnects.
    pub(super) fn reporting<P: Send + 'static>(
        self,
        mut words: impl FnMut(P) -> Vec<Step> + Send + 'static,
    ) -> (Option<mpsc::Sender<P>>, Reporting) {
        let Some(channel) = self.0 else { return (None, Reporting(None)) };
        let (report, mut steps) = mpsc::channel(STEPS_WAITING);
        let reporting = tokio::spawn(async move {
            while let Some(step) = steps.recv().await {
                for step in words(step) {
                    channel.send(pack(&step)).await.ok()?;
                }
            }
            Some(channel)
        });
        (Some(report), Reporting(Some(reporting)))
    }
}

/// Progress being forwarded.
pub(super) struct Reporting(Option<JoinHandle<Option<Channel>>>);

impl Reporting {
    /// Waits until all progress is sent, so that the outcome comes after it.
    pub(super) async fn done(self) -> Reporter {
        match self.0 {
            // The client has disconnected.
            Some(reporting) => Reporter(reporting.await.ok().flatten()),
            None => Reporter(None),
        }
    }
}

/// The blobs of an image in transfer that were reported so far.
pub(super) struct Parts {
    place: String,
    /// The image's name, parent of the first blob.
    image: String,
    known: BTreeMap<Digest, Part>,
}

struct Part {
    descriptor: Descriptor,
    parents: Vec<String>,
    is_unpacked: bool,
    is_done: bool,
}

impl Parts {
    /// For a pull, whose image name is reported later.
    pub(super) fn pulled_from(place: &str) -> Parts {
        Parts { place: place.to_owned(), ..Parts::of("") }
    }

    pub(super) fn of(image: &str) -> Parts {
        Parts { place: String::new(), image: image.to_owned(), known: BTreeMap::new() }
    }

    /// The messages for a step of a pull.
    pub(super) fn pulled(&mut self, step: Progress) -> Vec<Step> {
        match step {
            Progress::Resolved { name, target } => {
                self.image.clone_from(&name);
                let pulling = Step { event: format!("Pulling from {}", self.place), ..Step::default() };
                vec![pulling, of_image("fetching image content", &name, &target)]
            }
            Progress::Document { document, above } => {
                self.awaited(*document, above.as_deref()).into_iter().collect()
            }
            // As in containerd, unpacked layers are not reported.
            Progress::Layers { layers, of, unpacked } => {
                let missing = layers.into_iter().skip(unpacked);
                missing.filter_map(|layer| self.awaited(layer, Some(&of))).collect()
            }
            Progress::Downloading { digest, current } => self.moving("downloading", &digest, current),
            Progress::Extracting { digest } => {
                let Some(part) = self.known.get_mut(&digest) else { return Vec::new() };
                part.is_unpacked = true;
                let size = part.descriptor.size;
                self.moving("extracting", &digest, size)
            }
            Progress::Stored { digest, existed } => self.done(&digest, existed),
            Progress::Done { digest } => self.done(&digest, false),
            Progress::Exists { digest } => self.done(&digest, true),
        }
    }

    /// The messages for a step of a push.
    pub(super) fn pushed(&mut self, step: PushProgress) -> Vec<Step> {
        match step {
            PushProgress::LeftOut { what } => {
                vec![Step { event: "left out".into(), name: what, ..Step::default() }]
            }
            PushProgress::Parts(parts) => {
                let awaited = |PushPart { part, above }| self.awaited(part, above.as_ref());
                parts.into_iter().filter_map(awaited).collect()
            }
            PushProgress::Sending { digest, current } => self.moving("uploading", &digest, current),
            PushProgress::Sent { digest, how } => self.done(&digest, how == Sent::Existed),
            PushProgress::Document { document, existed } => self.done(&document.digest, existed),
            PushProgress::Referrer { digest } => {
                let name = format!("referrer-{digest}");
                vec![Step { event: "complete".into(), name, ..Step::default() }]
            }
        }
    }

    /// The message for a blob to come, unless it was reported.
    fn awaited(&mut self, descriptor: Descriptor, above: Option<&Descriptor>) -> Option<Step> {
        if self.known.contains_key(&descriptor.digest) {
            return None;
        }
        let parents = vec![above.map_or_else(|| self.image.clone(), ingest_name)];
        let part = Part { descriptor, parents, is_unpacked: false, is_done: false };
        let waiting = part.step("waiting", 0);
        self.known.insert(part.descriptor.digest.clone(), part);
        Some(waiting)
    }

    fn moving(&self, event: &str, digest: &Digest, current: u64) -> Vec<Step> {
        let part = self.known.get(digest).filter(|part| !part.is_done);
        part.map(|part| part.step(event, current)).into_iter().collect()
    }

    /// The messages for a complete blob, sent once.
    fn done(&mut self, digest: &Digest, existed: bool) -> Vec<Step> {
        let Some(part) = self.known.get_mut(digest).filter(|part| !part.is_done) else { return Vec::new() };
        part.is_done = true;
        let size = part.descriptor.size;
        if existed {
            // containerd does not repeat the parents here.
            return vec![Step { parents: Vec::new(), ..part.step("already exists", size) }];
        }
        let events: &[&str] = if part.is_unpacked { &["complete", "extracted"] } else { &["complete"] };
        events.iter().map(|event| part.step(event, size)).collect()
    }
}

impl Part {
    fn step(&self, event: &str, current: u64) -> Step {
        Step {
            event: event.to_owned(),
            name: ingest_name(&self.descriptor),
            parents: self.parents.clone(),
            progress: convert::signed(current),
            total: convert::signed(self.descriptor.size),
            desc: Some(convert::descriptor(&self.descriptor)),
        }
    }
}

/// A message about an image as a whole.
fn of_image(event: &str, name: &str, target: &Descriptor) -> Step {
    let desc = Some(convert::descriptor(target));
    Step { event: event.to_owned(), name: name.to_owned(), desc, ..Step::default() }
}

#[cfg(test)]
mod tests {
    use types::descriptor::media_type;

    use super::*;

    fn part(kind: &str, text: &str) -> Descriptor {
        Descriptor::new(kind, Digest::of(text.as_bytes()), 10)
    }

    /// `EVENT KIND PROGRESS < KIND OF THE PARENT`
    fn told(steps: Vec<Step>) -> Vec<String> {
        let kind = |name: &str| name.split_once("-sha256").map_or(name, |(kind, _)| kind).to_owned();
        let line = |step: Step| {
            let parents: Vec<String> = step.parents.iter().map(|parent| kind(parent)).collect();
            format!("{} {} {} < {}", step.event, kind(&step.name), step.progress, parents.join(" "))
        };
        steps.into_iter().map(line).collect()
    }

    #[test]
    fn a_pull_is_told_part_by_part_below_what_names_it() {
        let (manifest, config) = (part(media_type::OCI_MANIFEST, "m"), part(media_type::OCI_CONFIG, "c"));
        let layers = ["one", "two"].map(|text| part(media_type::OCI_LAYER, text));
        let mut parts = Parts::pulled_from("there");
        let target = Box::new(manifest.clone());
        let mut tell = |step| told(parts.pulled(step));
        let begun = tell(Progress::Resolved { name: "name:1".into(), target });
        assert_eq!(begun, ["Pulling from there  0 < ", "fetching image content name:1 0 < "]);
        let document = |of: &Descriptor, above: Option<&Descriptor>| Progress::Document {
            document: Box::new(of.clone()),
            above: above.cloned().map(Box::new),
        };
        let stored = |of: &Descriptor, existed| Progress::Stored { digest: of.digest.clone(), existed };
        assert_eq!(tell(document(&manifest, None)), ["waiting manifest 0 < name:1"]);
        assert_eq!(tell(stored(&manifest, false)), ["complete manifest 10 < name:1"]);
        assert_eq!(tell(document(&config, Some(&manifest))), ["waiting config 0 < manifest"]);
        assert_eq!(tell(stored(&config, true)), ["already exists config 10 < "]);
        assert!(tell(document(&config, Some(&manifest))).is_empty(), "it was told");
        let of = Box::new(manifest);
        let below = vec![part(media_type::OCI_LAYER, "below")];
        let exists = Progress::Exists { digest: below[0].digest.clone() };
        assert!(tell(Progress::Layers { layers: below, of: of.clone(), unpacked: 1 }).is_empty());
        assert!(tell(exists).is_empty(), "its tree is here");
        let all = Progress::Layers { layers: layers.to_vec(), of, unpacked: 0 };
        assert_eq!(tell(all.clone()), ["waiting layer 0 < manifest", "waiting layer 0 < manifest"]);
        assert!(tell(all).is_empty());
        let digest = layers[0].digest.clone();
        let moving = Progress::Downloading { digest: digest.clone(), current: 5 };
        assert_eq!(tell(moving.clone()), ["downloading layer 5 < manifest"]);
        let extracting = Progress::Extracting { digest: digest.clone() };
        assert_eq!(tell(extracting), ["extracting layer 10 < manifest"]);
        let done = tell(Progress::Done { digest: digest.clone() });
        assert_eq!(done, ["complete layer 10 < manifest", "extracted layer 10 < manifest"]);
        assert!(tell(moving).is_empty() && tell(Progress::Done { digest }).is_empty(), "it is done");
        let plain = Progress::Done { digest: layers[1].digest.clone() };
        assert_eq!(tell(plain), ["complete layer 10 < manifest"]);
    }
}
