//! Chooses the image of an index that runs best on a platform.

use std::collections::BTreeMap;

use types::descriptor::media_type;
use types::spec::image::Index;
use types::{Descriptor, Digest, Error, Platform, Result};

use crate::index::images;
use crate::{DOCUMENT_LEN_MAX, INDEX_DEPTH_MAX, Node, read_config};

/// The image of an index that runs best on a platform. `NotFound` lists the platforms of the index. `known` has the
/// platforms of images whose descriptors have none.
pub fn choose<'a>(index: &'a Index, platform: &Platform, known: &Platforms) -> Result<&'a Descriptor> {
    let fit = |child: &&Descriptor| match known.of(child) {
        // Of unknown platform: chosen only if nothing fits better.
        [] => 1,
        platforms => platforms.iter().map(|own| platform.fit(own)).max().unwrap_or(0),
    };
    // The first of equals, in the author's order.
    let best = images(index).filter(|child| fit(child) > 0).rev().max_by_key(|child| fit(child));
    best.ok_or_else(|| {
        let there: Vec<String> =
            images(index).flat_map(|child| known.of(child)).map(ToString::to_string).collect();
        match there.as_slice() {
            [] => Error::not_found(format!("no image for {platform}; there is none in the index")),
            _ => Error::not_found(format!("no image for {platform}; there is {}", there.join(", "))),
        }
    })
}

/// Platforms of images whose descriptors have none, from their configs, or from the images of a nested index. The
/// platform of a descriptor is optional (image-spec `image-index.md`).
#[derive(Clone, Debug, Default)]
pub struct Platforms(BTreeMap<Digest, Vec<Platform>>);

impl Platforms {
    /// Documents read at most, and platforms of each. Further ones count as without a platform.
    const ASKED_MAX: usize = 256;
    /// Bytes of documents held in memory at most.
    const GATHERED_MAX: u64 = 2 * DOCUMENT_LEN_MAX;

    /// The images of an index whose documents must be read: without a platform, in an index with more than one image.
    fn asked(index: &Index) -> impl Iterator<Item = &Descriptor> {
        let is_choice = images(index).nth(1).is_some();
        images(index).filter(move |child| is_choice && child.platform.is_none())
    }

    /// Reads the platforms of an index's images. `look` returns the bytes of a document, or `None` if it is missing;
    /// that image then counts as of unknown platform, like one whose config names none.
    pub fn ask(index: &Index, mut look: impl FnMut(&Descriptor) -> Option<Vec<u8>>) -> Platforms {
        let mut known = Platforms::default();
        for child in Platforms::asked(index) {
            known.visit(child, 1, &mut look);
        }
        known
    }

    /// As [`Platforms::ask`], for remote documents: `fetch` is called once for each that is needed.
    pub async fn gather<F, E>(index: &Index, mut fetch: impl FnMut(Descriptor) -> F) -> Result<Platforms, E>
    where
        F: Future<Output = Result<Option<Vec<u8>>, E>>,
    {
        let mut documents: BTreeMap<Digest, Option<Vec<u8>>> = BTreeMap::new();
        let mut room = Platforms::GATHERED_MAX;
        loop {
            let mut missing = BTreeMap::new();
            let known = Platforms::ask(index, |descriptor| match documents.get(&descriptor.digest) {
                Some(bytes) => bytes.clone(),
                None => {
                    missing.insert(descriptor.digest.clone(), descriptor.clone());
                    None
                }
            });
            if missing.is_empty() {
                return Ok(known);
            }
            for (digest, descriptor) in missing {
                let document = match room.checked_sub(descriptor.size) {
                    Some(rest) => {
                        room = rest;
                        fetch(descriptor).await?
                    }
                    None => None,
                };
                documents.insert(digest, document);
            }
        }
    }

    fn visit(
        &mut self,
        descriptor: &Descriptor,
        depth: usize,
        look: &mut impl FnMut(&Descriptor) -> Option<Vec<u8>>,
    ) {
        // Several documents may reference the same one; it is read once.
        if depth > INDEX_DEPTH_MAX
            || self.0.len() >= Platforms::ASKED_MAX
            || self.0.contains_key(&descriptor.digest)
        {
            return;
        }
        self.0.insert(descriptor.digest.clone(), Vec::new());
        let document = look(descriptor).and_then(|bytes| Node::parse(&descriptor.media_type, &bytes).ok());
        let mut found: Vec<Platform> = Vec::new();
        match document {
            Some(Node::Manifest(manifest)) if media_type::is_config(&manifest.config.media_type) => {
                let config = look(&manifest.config).and_then(|bytes| read_config(&bytes).ok());
                let platform = config.map(|config| config.platform);
                found.extend(platform.filter(|own| !own.os.is_empty() && !own.architecture.is_empty()));
            }
            Some(Node::Index(index)) => {
                for child in images(&index) {
                    if child.platform.is_none() {
                        self.visit(child, depth + 1, look);
                    }
                    for platform in self.of(child) {
                        if found.len() < Platforms::ASKED_MAX && !found.contains(platform) {
                            found.push(platform.clone());
                        }
                    }
                }
            }
            _ => {}
        }
        self.0.insert(descriptor.digest.clone(), found);
    }

    /// The known platforms of an image.
    fn of<'a>(&'a self, child: &'a Descriptor) -> &'a [Platform] {
        match &child.platform {
            Some(own) => std::slice::from_ref(own),
            None => self.0.get(&child.digest).map_or(&[], Vec::as_slice),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest;

    #[test]
    fn the_image_for_this_machine_is_chosen() {
        let entry = |letter: &str, platform: &str| {
            let mut descriptor = Descriptor::new(media_type::OCI_MANIFEST, digest(letter), 1);
            descriptor.platform = Some(platform.parse().unwrap());
            descriptor
        };
        let index = Index {
            schema_version: 2,
            media_type: None,
            artifact_type: None,
            manifests: vec![
                entry("a", "linux/386"),
                entry("b", "linux/amd64"),
                entry("c", "linux/amd64"),
                entry("d", "linux/arm64"),
            ],
            subject: None,
            annotations: Default::default(),
        };
        let chosen = |platform: &str| {
            choose(&index, &platform.parse().unwrap(), &Platforms::default())
                .map(|found| found.digest.clone())
        };
        assert_eq!(chosen("linux/amd64").unwrap(), digest("b"), "the first of equals");
        assert_eq!(chosen("linux/arm64").unwrap(), digest("d"));
        let error = chosen("linux/s390x").unwrap_err();
        assert!(error.to_string().contains("linux/arm64"), "{error}");
    }

    #[test]
    fn images_without_a_platform_are_asked_for_their_configs() {
        let mut store: BTreeMap<Digest, Vec<u8>> = BTreeMap::new();
        let mut keep = |kind: &str, document: serde_json::Value| {
            let bytes = document.to_string().into_bytes();
            let descriptor = Descriptor::new(kind, Digest::of(&bytes), bytes.len() as u64);
            store.insert(descriptor.digest.clone(), bytes);
            descriptor
        };
        let mut image = |platform: &str| {
            let (os, architecture) = platform.split_once('/').unwrap();
            let config = serde_json::json!({
                "os": os, "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": []},
            });
            let config = keep(media_type::OCI_CONFIG, config);
            let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": []});
            keep(media_type::OCI_MANIFEST, manifest)
        };
        let (arm, s390x, amd, silent) =
            (image("linux/arm64"), image("linux/s390x"), image("linux/amd64"), image("/"));
        let index = |children: &[&Descriptor]| serde_json::json!({"schemaVersion": 2, "manifests": children});
        let inner = keep(media_type::OCI_INDEX, index(&[&s390x, &amd]));
        let lost = Descriptor::new(media_type::OCI_MANIFEST, digest("f"), 1);
        let look = |child: &Descriptor| store.get(&child.digest).cloned();
        let chosen = |children: &[&Descriptor], platform: &str| {
            let index: Index = serde_json::from_value(index(children)).unwrap();
            let gathered = Platforms::gather(&index, |child| std::future::ready(Ok::<_, ()>(look(&child))));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            let std::task::Poll::Ready(Ok(gathered)) = std::pin::pin!(gathered).poll(&mut context) else {
                panic!("nothing has to be waited for")
            };
            let known = Platforms::ask(&index, look);
            let found = choose(&index, &platform.parse().unwrap(), &known).cloned();
            let platform = platform.parse().unwrap();
            assert_eq!(choose(&index, &platform, &gathered).ok(), found.as_ref().ok());
            found.map_err(|error| error.to_string())
        };
        assert_eq!(chosen(&[&arm, &inner], "linux/amd64").as_ref(), Ok(&inner));
        assert_eq!(chosen(&[&s390x, &amd], "linux/amd64").as_ref(), Ok(&amd));
        assert_eq!(chosen(&[&arm, &inner], "linux/arm64").as_ref(), Ok(&arm));
        let error = chosen(&[&arm, &inner], "linux/riscv64").unwrap_err();
        assert!(error.contains("there is linux/arm64, linux/s390x, linux/amd64"), "{error}");
        // An image of unknown platform is chosen if no other fits.
        for unknown in [&silent, &lost] {
            assert_eq!(chosen(&[unknown, &amd], "linux/amd64").as_ref(), Ok(&amd));
            assert_eq!(chosen(&[unknown, &amd], "linux/arm64").as_ref(), Ok(unknown));
        }
        // With a single image, no document is read.
        assert_eq!(chosen(&[&arm], "linux/amd64").as_ref(), Ok(&arm));
    }

    #[test]
    fn documents_read_for_a_hostile_index_are_bounded() {
        // Each document references all, itself included.
        let bytes = |of: usize| {
            let child = |n: usize| {
                let hex = format!("{n:064x}");
                serde_json::json!({"mediaType": media_type::OCI_INDEX, "digest": format!("sha256:{hex}"), "size": 1})
            };
            let children: Vec<_> = (0..of).map(child).collect();
            serde_json::json!({"schemaVersion": 2, "manifests": children}).to_string().into_bytes()
        };
        let index: Index = serde_json::from_slice(&bytes(1000)).unwrap();
        let mut looks = 0;
        let known = Platforms::ask(&index, |_| {
            looks += 1;
            Some(bytes(1000))
        });
        assert_eq!((looks, known.0.len()), (Platforms::ASKED_MAX, Platforms::ASKED_MAX));
    }

    #[test]
    fn blobs_of_an_index_are_no_images() {
        let entry = |kind: &str, letter: &str| {
            let mut descriptor = Descriptor::new(kind, digest(letter), 1);
            descriptor.platform = Some(Platform::host());
            descriptor
        };
        let mut index = Index {
            schema_version: 2,
            media_type: None,
            artifact_type: None,
            manifests: vec![entry("application/x-state", "a"), entry(media_type::OCI_LAYER_GZIP, "b")],
            subject: None,
            annotations: Default::default(),
        };
        let error = choose(&index, &Platform::host(), &Platforms::default()).unwrap_err();
        assert!(error.to_string().contains("none in the index"), "{error}");
        index.manifests.push(entry(media_type::OCI_MANIFEST, "c"));
        assert_eq!(choose(&index, &Platform::host(), &Platforms::default()).unwrap().digest, digest("c"));
    }
}
