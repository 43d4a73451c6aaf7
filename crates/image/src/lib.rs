//! The meaning of blobs: which JSON is an index, a manifest or a config, which image of several is meant,
//! and what a blob keeps alive.
//!
//! Everything here is a pure function of bytes that came from a registry or an archive, so sizes and counts
//! are bounded and media types are believed only if the document is one.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use types::descriptor::media_type;
use types::spec::image::{ImageConfig, Index, Manifest};
use types::{Descriptor, Digest, Error, Labels, Platform, Result};

/// Bytes of a manifest, index or config.
pub const DOCUMENT_LEN_MAX: u64 = 8 << 20;

/// Manifests in an index, and layers in a manifest.
pub const CHILDREN_MAX: usize = 4096;

/// Indexes inside indexes.
pub const INDEX_DEPTH_MAX: usize = 4;

/// A document that names other blobs.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    Index(Box<Index>),
    Manifest(Box<Manifest>),
}

impl Node {
    /// Reads a document by its media type. Schema 1 is refused by name.
    pub fn parse(kind: &str, bytes: &[u8]) -> Result<Node> {
        if bytes.len() as u64 > DOCUMENT_LEN_MAX {
            return Err(Error::invalid_argument(format!("a {kind} of {} bytes is too large", bytes.len())));
        }
        let broken = |error: serde_json::Error| {
            Error::invalid_argument(format!("a {kind} cannot be read")).with_source(error)
        };
        let node = match kind {
            _ if media_type::is_index(kind) => {
                Node::Index(Box::new(serde_json::from_slice(bytes).map_err(broken)?))
            }
            _ if media_type::is_manifest(kind) => {
                Node::Manifest(Box::new(serde_json::from_slice(bytes).map_err(broken)?))
            }
            media_type::DOCKER_SCHEMA1 | media_type::DOCKER_SCHEMA1_SIGNED => {
                return Err(Error::unimplemented(
                    "the image is in Docker's schema 1, which nobody writes since 2017; push it again with a current client",
                ));
            }
            other => return Err(Error::unimplemented(format!("media type {other:?} is no image"))),
        };
        let (children, version) = match &node {
            Node::Index(index) => (index.manifests.len(), index.schema_version),
            Node::Manifest(manifest) => (manifest.layers.len(), manifest.schema_version),
        };
        if version != 2 || children > CHILDREN_MAX {
            return Err(Error::invalid_argument(format!(
                "a {kind} of schema version {version} with {children} children is not accepted"
            )));
        }
        // A document that is both can be taken for either (CVE-2021-41190).
        let fields: Fields<'_> = serde_json::from_slice(bytes).map_err(broken)?;
        let both = fields.manifests && (fields.layers || fields.config);
        let own = fields.media_type.filter(|own| own != kind);
        match (both, own) {
            (true, _) => Err(Error::invalid_argument("a document is both an index and a manifest")),
            (_, Some(own)) => {
                Err(Error::invalid_argument(format!("a document served as {kind} says it is {own}")))
            }
            _ => Ok(node),
        }
    }

    pub fn children(&self) -> Vec<&Descriptor> {
        match self {
            Node::Index(index) => index.manifests.iter().collect(),
            Node::Manifest(manifest) => std::iter::once(&manifest.config).chain(&manifest.layers).collect(),
        }
    }

    /// The labels by which the document's blob keeps its children from being collected, as containerd's
    /// clients set them.
    pub fn reference_labels(&self) -> Labels {
        let mut counts = BTreeMap::new();
        let labels = self.children().into_iter().map(|child| {
            let kind = reference_kind(child);
            let count: &mut usize = counts.entry(kind).or_default();
            let suffix = match kind {
                REFERRER => format!("{kind}{}", &child.digest.hex()[..12]),
                CONFIG if *count == 0 => kind.to_owned(),
                _ => format!("{kind}{count}"),
            };
            *count += 1;
            (format!("containerd.io/gc.ref.content.{suffix}"), child.digest.to_string())
        });
        labels.collect()
    }
}

/// Kinds of children, as labels call them. Those that are none of these have only a number.
const CONFIG: &str = "config";
const REFERRER: &str = "referrer.sha256.";

fn reference_kind(child: &Descriptor) -> &'static str {
    match child.media_type.as_str() {
        _ if child.annotations.contains_key("io.containerd.manifest.subject") => REFERRER,
        kind if media_type::is_config(kind) => CONFIG,
        media_type::CHECKPOINT | media_type::CHECKPOINT_CONFIG => CONFIG,
        kind if media_type::is_manifest(kind) => "m.",
        kind if media_type::is_layer(kind) => "l.",
        _ => "",
    }
}

/// What a document has, whatever it is served as.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Fields<'a> {
    #[serde(borrow)]
    media_type: Option<Cow<'a, str>>,
    #[serde(deserialize_with = "is_there")]
    manifests: bool,
    #[serde(deserialize_with = "is_there")]
    layers: bool,
    #[serde(deserialize_with = "is_there")]
    config: bool,
}

fn is_there<'de, D: Deserializer<'de>>(field: D) -> Result<bool, D::Error> {
    Option::<IgnoredAny>::deserialize(field).map(|field| field.is_some())
}

/// The image of an index that runs best on a platform. `NotFound` names what there is. `told` is what those images are
/// for whose descriptors do not say it.
pub fn choose<'a>(index: &'a Index, platform: &Platform, told: &Told) -> Result<&'a Descriptor> {
    let fit = |child: &&Descriptor| match told.platforms(child) {
        // Nothing to choose by: it is taken if nothing is better.
        [] => 1,
        platforms => platforms.iter().map(|own| platform.fit(own)).max().unwrap_or(0),
    };
    // The first of equals, as the author ordered them.
    let best = images(index).filter(|child| fit(child) > 0).rev().max_by_key(|child| fit(child));
    best.ok_or_else(|| {
        let there: Vec<String> =
            images(index).flat_map(|child| told.platforms(child)).map(ToString::to_string).collect();
        match there.as_slice() {
            [] => Error::not_found(format!("no image for {platform}; there is none in the index")),
            _ => Error::not_found(format!("no image for {platform}; there is {}", there.join(", "))),
        }
    })
}

/// The images of an index. Attestations come as manifests for a platform that does not exist. Blobs are no images,
/// whatever platform they are for: they are parts of what the index is, as those of a checkpoint.
fn images(index: &Index) -> impl DoubleEndedIterator<Item = &Descriptor> {
    let is_image = |child: &&Descriptor| media_type::is_document(&child.media_type) && !is_attestation(child);
    index.manifests.iter().filter(is_image)
}

/// What images are for whose descriptors do not say it: their configs do, or what is below, for an index in an index.
/// The platform of a descriptor is optional (image-spec `image-index.md`).
#[derive(Clone, Debug, Default)]
pub struct Told(BTreeMap<Digest, Vec<Platform>>);

impl Told {
    /// Documents that are asked, and platforms of each. What comes after them says nothing.
    const ASKED_MAX: usize = 256;
    /// Bytes of documents that are gathered before they are read.
    const GATHERED_MAX: u64 = 2 * DOCUMENT_LEN_MAX;

    /// Those images of an index that have to be asked: without a platform, and others to choose from.
    fn asked(index: &Index) -> impl Iterator<Item = &Descriptor> {
        let is_choice = images(index).nth(1).is_some();
        images(index).filter(move |child| is_choice && child.platform.is_none())
    }

    /// Asks the images of an index. `look` gives the bytes of a document, and nothing for one that is not there: such an
    /// image could be for every platform, as one whose config says nothing.
    pub fn ask(index: &Index, mut look: impl FnMut(&Descriptor) -> Option<Vec<u8>>) -> Told {
        let mut told = Told::default();
        for child in Told::asked(index) {
            told.visit(child, 1, &mut look);
        }
        told
    }

    /// The same where documents come from afar: `fetch` is asked for each once, and for none if nothing has to be asked.
    pub async fn gather<F, E>(index: &Index, mut fetch: impl FnMut(Descriptor) -> F) -> Result<Told, E>
    where
        F: Future<Output = Result<Option<Vec<u8>>, E>>,
    {
        let mut documents: BTreeMap<Digest, Option<Vec<u8>>> = BTreeMap::new();
        let mut room = Told::GATHERED_MAX;
        loop {
            let mut missing = BTreeMap::new();
            let told = Told::ask(index, |descriptor| match documents.get(&descriptor.digest) {
                Some(bytes) => bytes.clone(),
                None => {
                    missing.insert(descriptor.digest.clone(), descriptor.clone());
                    None
                }
            });
            if missing.is_empty() {
                return Ok(told);
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
        // A document may be named by many, and each is read once.
        if depth > INDEX_DEPTH_MAX
            || self.0.len() >= Told::ASKED_MAX
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
                    for platform in self.platforms(child) {
                        if found.len() < Told::ASKED_MAX && !found.contains(platform) {
                            found.push(platform.clone());
                        }
                    }
                }
            }
            _ => {}
        }
        self.0.insert(descriptor.digest.clone(), found);
    }

    /// All that is known of what an image is for.
    fn platforms<'a>(&'a self, child: &'a Descriptor) -> &'a [Platform] {
        match &child.platform {
            Some(own) => std::slice::from_ref(own),
            None => self.0.get(&child.digest).map_or(&[], Vec::as_slice),
        }
    }
}

/// Whether an entry of an index is a blob and nothing more.
pub fn is_blob(child: &Descriptor) -> bool {
    !media_type::is_document(&child.media_type) && !media_type::is_old_manifest(&child.media_type)
}

/// Whether an index is made of the blobs that it names itself, as that of a checkpoint is. They are for every platform,
/// and each is needed; of images in it there may be a part or none. In other indexes the images are what counts.
pub fn is_made_of_blobs(index: &Index) -> bool {
    const CONTAINER: &str = "application/vnd.containerd.container.";
    let has_image = images(index).next().is_some();
    index
        .manifests
        .iter()
        .any(|child| is_blob(child) && (!has_image || child.media_type.starts_with(CONTAINER)))
}

/// Whether a descriptor of an index is about another image of it, as attestations are.
pub fn is_attestation(descriptor: &Descriptor) -> bool {
    descriptor.annotations.contains_key("vnd.docker.reference.type")
}

/// What a manifest is if it is no image to run: its `artifactType`, the type of its config, or that of its
/// first layer that is no file system (image-spec `manifest.md`, "Guidelines for Artifact Usage"). Of layers of further
/// media types `is_processed` says that somebody makes file systems of them.
pub fn artifact_type(manifest: &Manifest, is_processed: impl Fn(&str) -> bool) -> Option<&str> {
    if !media_type::is_config(&manifest.config.media_type) {
        let config = Some(manifest.config.media_type.as_str()).filter(|kind| *kind != media_type::OCI_EMPTY);
        return manifest.artifact_type.as_deref().or(config).or(Some("unknown"));
    }
    let mut kinds = manifest.layers.iter().map(|layer| layer.media_type.as_str());
    kinds.find(|kind| !media_type::is_layer(kind) && !is_processed(kind))
}

/// Reads a config as it is, for whoever has no use for its layers.
pub fn read_config(bytes: &[u8]) -> Result<ImageConfig> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::invalid_argument("the image's config cannot be read").with_source(error))
}

/// Reads a config and checks that it fits the number of layers.
pub fn parse_config(bytes: &[u8], layers: usize) -> Result<ImageConfig> {
    let config = read_config(bytes)?;
    if config.rootfs.diff_ids.len() != layers {
        return Err(Error::invalid_argument(format!(
            "the image's config names {} layers, its manifest {layers}",
            config.rootfs.diff_ids.len()
        )));
    }
    Ok(config)
}

/// The names of the trees after each layer, lowest first (image-spec `config.md`, "Layer ChainID").
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
            None => diff_id.clone(),
        };
        chain.push(next);
    }
    chain
}

/// Layers that may not be distributed have no bytes here.
pub fn check_distributable(layer: &Descriptor) -> Result<()> {
    let kind = &layer.media_type;
    if kind.contains("foreign") || kind.contains("nondistributable") {
        return Err(Error::unimplemented(format!(
            "layer {} is of type {kind}, which only its vendor may hand out",
            layer.digest
        )));
    }
    Ok(())
}

/// Whether a layer can become part of a tree: as it is, or because somebody makes a file system of it.
pub fn check_layer(layer: &Descriptor, is_processed: impl Fn(&str) -> bool) -> Result<()> {
    check_distributable(layer)?;
    if is_processed(&layer.media_type) {
        return Ok(());
    }
    if media_type::is_encrypted(&layer.media_type) {
        return Err(Error::unimplemented(format!(
            "layer {} of type {} is encrypted, and the daemon's configuration has no stream processor for it",
            layer.digest, layer.media_type
        )));
    }
    if media_type::is_layer(&layer.media_type) {
        return Ok(());
    }
    Err(Error::unimplemented(format!(
        "layer {} of type {} is no file system: this is an artifact, not an image to run",
        layer.digest, layer.media_type
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(letter: &str) -> Digest {
        format!("sha256:{}", letter.repeat(64)).parse().unwrap()
    }

    #[test]
    fn chains_are_made_as_the_specification_says() {
        let ids = [digest("a"), digest("b"), digest("c")];
        let chain = chain_ids(&ids);
        assert_eq!(chain[0], ids[0]);
        assert_eq!(chain[1], Digest::of(format!("{} {}", ids[0], ids[1]).as_bytes()));
        assert_eq!(chain[2], Digest::of(format!("{} {}", chain[1], ids[2]).as_bytes()));
    }

    #[test]
    fn labels_number_the_children_of_each_kind() {
        let child = |kind: &str, letter| Descriptor::new(kind, digest(letter), 1);
        let mut referrer = child(media_type::OCI_MANIFEST, "f");
        referrer.annotations.insert("io.containerd.manifest.subject".into(), digest("a").to_string());
        let index = Index {
            schema_version: 2,
            media_type: None,
            artifact_type: None,
            subject: None,
            annotations: BTreeMap::new(),
            manifests: vec![
                child(media_type::OCI_INDEX, "a"),
                child(media_type::OCI_MANIFEST, "b"),
                child(media_type::CHECKPOINT, "c"),
                child("text/plain", "d"),
                child(media_type::CHECKPOINT_CONFIG, "e"),
                referrer,
                child(media_type::DOCKER_MANIFEST, "0"),
                child(media_type::OCI_LAYER, "1"),
            ],
        };
        let labels = Node::Index(Box::new(index)).reference_labels();
        let expected = [
            ("0", "a"),
            ("1", "d"),
            ("config", "c"),
            ("config1", "e"),
            ("l.0", "1"),
            ("m.0", "b"),
            ("m.1", "0"),
            ("referrer.sha256.ffffffffffff", "f"),
        ];
        let key =
            |(suffix, letter)| (format!("containerd.io/gc.ref.content.{suffix}"), digest(letter).to_string());
        assert_eq!(labels, Labels::from(expected.map(key)));
    }

    #[test]
    fn a_document_is_of_one_kind_and_says_so() {
        let config = Descriptor::new(media_type::OCI_CONFIG, digest("a"), 1);
        let config = serde_json::to_value(&config).unwrap();
        let parse = |kind: &str, more: serde_json::Value| {
            let mut document = serde_json::json!({"schemaVersion": 2, "config": config, "layers": []});
            document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            Node::parse(kind, document.to_string().as_bytes()).map(drop).map_err(|error| error.to_string())
        };
        let (manifest, docker) = (media_type::OCI_MANIFEST, media_type::DOCKER_MANIFEST);
        parse(manifest, serde_json::json!({})).unwrap();
        parse(manifest, serde_json::json!({"mediaType": manifest})).unwrap();
        let other = parse(manifest, serde_json::json!({"mediaType": docker})).unwrap_err();
        assert!(other.contains("says it is"), "{other}");
        for kind in [manifest, media_type::OCI_INDEX] {
            parse(kind, serde_json::json!({"manifests": []})).unwrap_err();
        }
        // It names nothing, so nobody can take it for the other.
        parse(manifest, serde_json::json!({"manifests": null})).unwrap();
    }

    /// Written by programs in Go for what they have none of. Docker and containerd read such images.
    #[test]
    fn null_reads_as_a_field_that_is_left_out() {
        let descriptor = serde_json::json!({
            "mediaType": media_type::OCI_MANIFEST, "digest": digest("a"), "size": 1, "urls": null, "annotations": null,
            "platform": {"architecture": "amd64", "os": "linux", "os.version": null, "os.features": null, "variant": null},
            "artifactType": null, "data": null,
        });
        let plain = |kind| Descriptor::new(kind, digest("a"), 1);
        let parse =
            |kind, document: serde_json::Value| Node::parse(kind, document.to_string().as_bytes()).unwrap();
        let nothing = serde_json::json!({"mediaType": null, "artifactType": null, "subject": null, "annotations": null});
        let with = |more: serde_json::Value| {
            let mut document = nothing.clone();
            document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            document
        };

        let index = with(serde_json::json!({"schemaVersion": 2, "manifests": [descriptor]}));
        let mut child = plain(media_type::OCI_MANIFEST);
        child.platform = Some("linux/amd64".parse().unwrap());
        assert_eq!(parse(media_type::OCI_INDEX, index).children(), [&child]);
        let index = with(serde_json::json!({"schemaVersion": 2, "manifests": null}));
        assert!(parse(media_type::OCI_INDEX, index).children().is_empty());

        let config = serde_json::to_value(plain(media_type::OCI_CONFIG)).unwrap();
        let manifest = with(serde_json::json!({"schemaVersion": 2, "config": config, "layers": null}));
        assert_eq!(parse(media_type::OCI_MANIFEST, manifest).children(), [&plain(media_type::OCI_CONFIG)]);

        let config = serde_json::json!({
            "created": null, "author": null, "architecture": null, "os": "linux", "variant": null, "os.features": null,
            "config": null, "rootfs": {"type": null, "diff_ids": null}, "history": null,
        });
        let read = parse_config(config.to_string().as_bytes(), 0).unwrap();
        assert_eq!((read.platform.os.as_str(), read.platform.architecture.as_str()), ("linux", ""));
        let left_out = parse_config(br#"{"rootfs": {}}"#, 0).unwrap();
        assert_eq!(left_out, ImageConfig::default());
        let index = serde_json::json!({
            "schemaVersion": 2, "manifests": [
                {"mediaType": media_type::OCI_MANIFEST, "digest": digest("a"), "size": 1, "platform": {"os": "linux"}},
            ],
        });
        let index = parse(media_type::OCI_INDEX, index);
        assert_eq!(index.children()[0].platform.as_ref().unwrap().os, "linux");
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest("a")]},
            "config": {"User": null, "Env": null, "Labels": null, "ExposedPorts": null},
            "history": [{"created": null, "created_by": null, "empty_layer": null}],
        });
        assert_eq!(parse_config(config.to_string().as_bytes(), 1).unwrap().history.len(), 1);
    }

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
            choose(&index, &platform.parse().unwrap(), &Told::default()).map(|found| found.digest.clone())
        };
        assert_eq!(chosen("linux/amd64").unwrap(), digest("b"), "the first of equals");
        assert_eq!(chosen("linux/arm64").unwrap(), digest("d"));
        let error = chosen("linux/s390x").unwrap_err();
        assert!(error.to_string().contains("linux/arm64"), "{error}");
    }

    #[test]
    fn images_that_do_not_say_what_they_are_for_are_asked() {
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
            let gathered = Told::gather(&index, |child| std::future::ready(Ok::<_, ()>(look(&child))));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            let std::task::Poll::Ready(Ok(gathered)) = std::pin::pin!(gathered).poll(&mut context) else {
                panic!("nothing has to be waited for")
            };
            let told = Told::ask(&index, look);
            let found = choose(&index, &platform.parse().unwrap(), &told).cloned();
            let platform = platform.parse().unwrap();
            assert_eq!(choose(&index, &platform, &gathered).ok(), found.as_ref().ok());
            found.map_err(|error| error.to_string())
        };
        assert_eq!(chosen(&[&arm, &inner], "linux/amd64").as_ref(), Ok(&inner));
        assert_eq!(chosen(&[&s390x, &amd], "linux/amd64").as_ref(), Ok(&amd));
        assert_eq!(chosen(&[&arm, &inner], "linux/arm64").as_ref(), Ok(&arm));
        let error = chosen(&[&arm, &inner], "linux/riscv64").unwrap_err();
        assert!(error.contains("there is linux/arm64, linux/s390x, linux/amd64"), "{error}");
        // What says nothing may be for anything, if nothing else is.
        for unknown in [&silent, &lost] {
            assert_eq!(chosen(&[unknown, &amd], "linux/amd64").as_ref(), Ok(&amd));
            assert_eq!(chosen(&[unknown, &amd], "linux/arm64").as_ref(), Ok(unknown));
        }
        // There is nothing to choose.
        assert_eq!(chosen(&[&arm], "linux/amd64").as_ref(), Ok(&arm));
    }

    #[test]
    fn what_is_asked_of_a_hostile_index_has_an_end() {
        // Each document is any other's, and names itself as well.
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
        let told = Told::ask(&index, |_| {
            looks += 1;
            Some(bytes(1000))
        });
        assert_eq!((looks, told.0.len()), (Told::ASKED_MAX, Told::ASKED_MAX));
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
        let error = choose(&index, &Platform::host(), &Told::default()).unwrap_err();
        assert!(error.to_string().contains("none in the index"), "{error}");
        index.manifests.push(entry(media_type::OCI_MANIFEST, "c"));
        assert_eq!(choose(&index, &Platform::host(), &Told::default()).unwrap().digest, digest("c"));
    }

    #[test]
    fn an_index_is_made_of_its_blobs_if_it_is_a_checkpoint_or_has_no_image() {
        const STATE: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";
        const DISK: &str = "application/x-disk";
        const OLD: &str = media_type::DOCKER_SCHEMA1_SIGNED;
        const IMAGE: &str = media_type::OCI_MANIFEST;
        let is_made_of_blobs = |kinds: &[&str]| {
            is_made_of_blobs(&Index {
                schema_version: 2,
                media_type: None,
                artifact_type: None,
                manifests: kinds.iter().map(|kind| Descriptor::new(*kind, digest("a"), 1)).collect(),
                subject: None,
                annotations: Default::default(),
            })
        };
        assert!(is_made_of_blobs(&[DISK]));
        assert!(is_made_of_blobs(&[IMAGE, STATE, DISK]));
        assert!(is_made_of_blobs(&[media_type::OCI_INDEX, STATE]));
        assert!(!is_made_of_blobs(&[IMAGE, DISK]));
        assert!(!is_made_of_blobs(&[IMAGE, OLD]));
        assert!(!is_made_of_blobs(&[OLD, media_type::OCI_ARTIFACT]));
        assert!(!is_made_of_blobs(&[]));
    }

    #[test]
    fn documents_that_lie_are_refused() {
        let config = r#"{"mediaType":"x","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":1}"#;
        let manifest = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[]}}"#);
        assert!(Node::parse(media_type::OCI_MANIFEST, manifest.as_bytes()).is_ok());
        let both = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[],"manifests":[]}}"#);
        assert!(Node::parse(media_type::OCI_MANIFEST, both.as_bytes()).is_err());
        let other = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","config":{config},"layers":[]}}"#,
            media_type::DOCKER_MANIFEST
        );
        assert!(Node::parse(media_type::OCI_MANIFEST, other.as_bytes()).is_err());
        let error = Node::parse(media_type::DOCKER_SCHEMA1_SIGNED, b"{}").unwrap_err();
        assert!(error.to_string().contains("schema 1"));
        assert!(Node::parse("text/html", b"<html>").is_err());
        let negative = manifest.replace("\"size\":1", "\"size\":-1");
        assert!(Node::parse(media_type::OCI_MANIFEST, negative.as_bytes()).is_err());
    }
}
