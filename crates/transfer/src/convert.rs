//! Converts images: other layer compression, the other family of media types, fewer platforms. Files, configs and
//! diff ids stay the same, so the trees are shared with the original.
//!
//! Converting the same image gives the same bytes, always and everywhere, for one version of Hoist.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};

use content::Expected;
use diff::{Compression, Decoder, Encoder};
use metadata::{Caller, Image, Metadata};
use serde::Serialize;
use types::descriptor::media_type;
use types::spec::image::Manifest;
use types::{
    Algorithm, Context, Descriptor, Digest, Error, ErrorKind, Hasher, IngestRef, Labels, Platform, Reference,
    Result, Timestamp,
};

use crate::export::{index_over, pick};
use crate::layer::UNCOMPRESSED;
use crate::{Contents, IngestSink, Lease, Platforms, Progress, Report, Variant, contents, tell, unpack};

/// The two families of media types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Oci,
    /// Docker's image manifest version 2, schema 2.
    Docker,
}

/// What to change. Without any change the image stays as it is.
#[derive(Clone, Debug)]
pub struct Conversion {
    pub compression: Option<Compression>,
    pub format: Option<Format>,
    pub platforms: Platforms,
}

/// Makes a converted image and names it. Attestations are dropped, as they are about the original bytes.
pub fn convert(
    metadata: &Metadata,
    caller: &Caller,
    snapshotter: &str,
    (image, name): (&Image, &Reference),
    conversion: &Conversion,
    report: Option<&Report>,
) -> Result<Image> {
    if conversion.format == Some(Format::Docker) && conversion.compression == Some(Compression::Zstd) {
        return Err(Error::invalid_argument(
            "Docker's format has no zstd layers; convert to the OCI format, or to gzip",
        ));
    }
    let converted = Lease::hold(metadata, caller, |caller| {
        let converter = Converter { metadata, caller, conversion, report, layers: HashMap::new() };
        let target = converter.image(&image.target)?;
        let host = Platform::host();
        if contents(metadata, caller, &target)?.best(&host).is_some() {
            unpack(metadata, caller, snapshotter, &target, &host, None)?;
        }
        record(metadata, caller, name, target)
    });
    converted.map_err(|error| error.context(format!("convert {}", image.name)))
}

struct Converter<'a> {
    metadata: &'a Metadata,
    caller: &'a Caller,
    conversion: &'a Conversion,
    report: Option<&'a Report>,
    /// Converted layers by original digest: images of several platforms share them.
    layers: HashMap<Digest, (Digest, u64, Compression)>,
}

impl Converter<'_> {
    fn image(mut self, target: &Descriptor) -> Result<Descriptor> {
        let contents = contents(self.metadata, self.caller, target)?;
        let (chosen, is_index) = self.choose(target, &contents)?;
        let layers = chosen.iter().filter_map(|variant| variant.manifest.as_ref());
        let layers: BTreeMap<&Digest, &Descriptor> =
            layers.flat_map(|manifest| &manifest.layers).map(|layer| (&layer.digest, layer)).collect();
        let layers = layers.into_values().cloned().collect();
        tell(self.report, Progress::Layers { layers, of: Box::new(target.clone()), unpacked: 0 });
        let mut variants = Vec::new();
        for variant in chosen {
            variants.push(Variant { descriptor: self.manifest(variant)?, ..variant.clone() });
        }
        if !is_index {
            let mut only = variants.swap_remove(0).descriptor;
            only.platform = None;
            return Ok(only);
        }
        let is_docker = self.is_for_docker(target.media_type == media_type::DOCKER_MANIFEST_LIST);
        let kind = if is_docker { media_type::DOCKER_MANIFEST_LIST } else { media_type::OCI_INDEX };
        let mut index = index_over(&variants.iter().collect::<Vec<_>>());
        index.media_type = Some(kind.into());
        let labels = image::Node::Index(Box::new(index.clone())).reference_labels();
        self.document(kind, &index, labels)
    }

    /// Whether the converted document has Docker's format. Without a wanted format it stays as it was, except that
    /// Docker's has no zstd layers.
    fn is_for_docker(&self, was_for_docker: bool) -> bool {
        match self.conversion.format {
            Some(format) => format == Format::Docker,
            None => was_for_docker && self.conversion.compression != Some(Compression::Zstd),
        }
    }

    /// The manifests to convert, and whether they go into an index.
    fn choose<'c>(&self, target: &Descriptor, contents: &'c Contents) -> Result<(Vec<&'c Variant>, bool)> {
        let is_index = media_type::is_index(&target.media_type);
        let images = contents.variants.iter().filter(|variant| {
            variant.artifact_type().is_none() && !image::is_attestation(&variant.descriptor)
        });
        let chosen: Vec<&Variant> = match &self.conversion.platforms {
            Platforms::Only(wanted) => {
                let picked: Result<Vec<_>> = wanted.iter().map(|one| pick(contents, one)).collect();
                let picked = picked?;
                let is_index = picked.len() > 1;
                return Ok((picked, is_index));
            }
            Platforms::All => images.collect(),
            Platforms::Here(_) => images.filter(|variant| variant.is_whole()).collect(),
        };
        if let Some(missing) = chosen.iter().find(|variant| !variant.is_whole()) {
            let platform = missing.platform.as_ref().map(ToString::to_string).unwrap_or_default();
            return Err(Error::not_found(format!(
                "{} is not all here; pull it (hoist pull --platform {platform})",
                missing.descriptor.digest
            )));
        }
        if chosen.is_empty() {
            let artifact = contents.variants.iter().find_map(Variant::artifact_type);
            return Err(match artifact {
                Some(kind) => {
                    Error::failed_precondition(format!("it is an artifact of type {kind}, not an image"))
                }
                None => Error::not_found("no part of it is here; pull it"),
            });
        }
        Ok((chosen, is_index))
    }

    fn manifest(&mut self, variant: &Variant) -> Result<Descriptor> {
        let manifest = variant.manifest.as_ref().expect("only whole variants are chosen");
        let config = crate::config(self.metadata, self.caller, manifest)?;
        let is_docker = self.is_for_docker(variant.descriptor.media_type == media_type::DOCKER_MANIFEST);
        let mut layers = Vec::new();
        for (layer, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
            layers.push(self.layer(layer, diff_id, is_docker)?);
        }
        let kind = if is_docker { media_type::DOCKER_MANIFEST } else { media_type::OCI_MANIFEST };
        let config_kind = if is_docker { media_type::DOCKER_CONFIG } else { media_type::OCI_CONFIG };
        let converted = Manifest {
            schema_version: 2,
            media_type: Some(kind.into()),
            artifact_type: None,
            config: Descriptor { media_type: config_kind.into(), ..manifest.config.clone() },
            layers,
            subject: None,
            // Docker manifests have no annotations.
            annotations: if is_docker { BTreeMap::new() } else { manifest.annotations.clone() },
        };
        let labels = image::Node::Manifest(Box::new(converted.clone())).reference_labels();
        let descriptor = self.document(kind, &converted, labels)?;
        Ok(Descriptor { platform: variant.platform.clone(), ..descriptor })
    }

    fn layer(&mut self, layer: &Descriptor, diff_id: &Digest, is_docker: bool) -> Result<Descriptor> {
        // A layer that only a stream processor can read cannot be converted, nor can its image.
        image::check_layer(layer, |_| false)?;
        let (digest, size, compression) = match self.layers.get(&layer.digest) {
            Some(known) => known.clone(),
            None => {
                tell(self.report, Progress::Extracting { digest: layer.digest.clone() });
                let made = self.recompress(layer, diff_id)?;
                self.layers.insert(layer.digest.clone(), made.clone());
                tell(self.report, Progress::Done { digest: layer.digest.clone() });
                made
            }
        };
        if is_docker && compression == Compression::Zstd {
            return Err(Error::failed_precondition(format!(
                "layer {} is zstd, which Docker's format has not; convert to gzip too",
                layer.digest
            )));
        }
        let kind = match (is_docker, compression) {
            (false, Compression::None) => media_type::OCI_LAYER,
            (false, Compression::Gzip) => media_type::OCI_LAYER_GZIP,
            (false, Compression::Zstd) => media_type::OCI_LAYER_ZSTD,
            (true, Compression::None) => media_type::DOCKER_LAYER,
            (true, _) => media_type::DOCKER_LAYER_GZIP,
        };
        // Annotations about the original bytes do not apply to others.
        let is_same = digest == layer.digest && !is_docker;
        let annotations = if is_same { layer.annotations.clone() } else { BTreeMap::new() };
        Ok(Descriptor { annotations, ..Descriptor::new(kind, digest, size) })
    }

    /// Stores a layer in the wanted compression. Returns the original blob if it is in that already.
    fn recompress(&self, layer: &Descriptor, diff_id: &Digest) -> Result<(Digest, u64, Compression)> {
        let what = || format!("convert layer {}", layer.digest);
        let content = self.metadata.content(self.caller);
        let mut plain = Decoder::new(content.reader(&layer.digest)?).context(what)?;
        let current = plain.compression();
        let wanted = self.conversion.compression.unwrap_or(current);
        if wanted == current {
            return Ok((layer.digest.clone(), layer.size, current));
        }
        let lease = self.caller.lease.as_ref().map(ToString::to_string).unwrap_or_default();
        let reference = IngestRef::new(format!("convert-{lease}-{}", layer.digest))?;
        let mut writer = content.begin(&reference, Expected::default())?;
        writer.truncate()?;
        let mut encoder = Encoder::new(wanted, IngestSink(&mut writer)).context(what)?;
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let len = plain.read(&mut buffer).context(what)?;
            if len == 0 {
                break;
            }
            hasher.update(&buffer[..len]);
            encoder.write_all(&buffer[..len]).context(what)?;
        }
        encoder.finish().context(what)?;
        let found = hasher.finish();
        if found != *diff_id {
            return Err(Error::data_loss(format!("{}: it unpacks to {found}, not {diff_id}", what())));
        }
        let (digest, size) = (writer.digest(), writer.offset());
        let labels = Labels::from([(UNCOMPRESSED.to_owned(), diff_id.to_string())]);
        match writer.commit(Expected::new(digest.clone(), size), labels) {
            Err(error) if !error.is(ErrorKind::AlreadyExists) => Err(error.context(what())),
            _ => Ok((digest, size, wanted)),
        }
    }

    fn document(&self, kind: &str, document: &impl Serialize, labels: Labels) -> Result<Descriptor> {
        let bytes = serde_json::to_vec(document).expect("documents of images are plain data");
        let descriptor = Descriptor::new(kind, Digest::of(&bytes), bytes.len() as u64);
        let expected = Expected::new(descriptor.digest.clone(), descriptor.size);
        let content = self.metadata.content(self.caller);
        let reference = IngestRef::new(format!("convert-{}", descriptor.digest))?;
        let written = content.begin(&reference, expected.clone()).and_then(|mut writer| {
            writer.truncate()?;
            writer.write(&bytes)?;
            writer.of_type(kind).commit(expected, labels.clone())
        });
        match written {
            Err(error) if error.is(ErrorKind::AlreadyExists) => {
                let paths: Vec<String> = labels.keys().map(|key| format!("labels.{key}")).collect();
                content.update(&descriptor.digest, &labels, &paths).map(drop)
            }
            other => other.map(drop),
        }?;
        Ok(descriptor)
    }
}

fn record(metadata: &Metadata, caller: &Caller, name: &Reference, target: Descriptor) -> Result<Image> {
    let images = metadata.images(caller);
    let now = Timestamp::now();
    let image = Image { name: name.to_string(), labels: Labels::new(), target, created: now, updated: now };
    images.assign(image)
}
