//! Indexes and manifests: parsed by their media types, and refused if the content does not match.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use types::descriptor::media_type;
use types::label::gc::CONTENT;
use types::spec::image::{Index, Manifest};
use types::{Descriptor, Error, Labels, Result};

use crate::{CHILDREN_MAX, DOCUMENT_LEN_MAX};

/// A document that names other blobs.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    Index(Box<Index>),
    Manifest(Box<Manifest>),
}

impl Node {
    /// Parses a document by its media type. `InvalidArgument` if it is malformed, too large or of another type;
    /// `Unimplemented` for Docker's schema 1 and media types that are neither index nor manifest.
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
                    "the image is in Docker's schema 1, which no current client writes; push it again with a current client",
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
        // A document that is both can be interpreted as either (CVE-2021-41190).
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

    /// The garbage collection labels by which the document's blob references its children, as containerd's clients
    /// set them.
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
            (format!("{CONTENT}.{suffix}"), child.digest.to_string())
        });
        labels.collect()
    }
}

/// Kinds of children in label names. Other children have only a number.
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

/// The fields that tell indexes from manifests, whatever the media type.
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

#[cfg(test)]
mod tests {
    use types::spec::image::ImageConfig;

    use super::*;
    use crate::{digest, parse_config};

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

    /// CVE-2026-95839: the digest of a child with a subject was cut, however short it was.
    #[test]
    fn an_invalid_digest_references_no_child() {
        for digest in ["", "f", "sha256:", "sha256:f", "sha256:../../f"] {
            let annotations = serde_json::json!({"io.containerd.manifest.subject": "it"});
            let child = serde_json::json!({
                "mediaType": media_type::OCI_MANIFEST, "digest": digest, "size": 1, "annotations": annotations,
            });
            let index = serde_json::json!({"schemaVersion": 2, "manifests": [child]});
            Node::parse(media_type::OCI_INDEX, index.to_string().as_bytes()).unwrap_err();
        }
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
        // It references nothing, so it cannot be mistaken for the other kind.
        parse(manifest, serde_json::json!({"manifests": null})).unwrap();
    }

    /// Go programs write null for empty lists. Docker and containerd accept such images.
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
