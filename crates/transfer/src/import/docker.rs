//! `manifest.json` of older `docker save` archives, which are no OCI layouts: it references files by path, so
//! manifests are made here.
//!
//! They are byte for byte those that containerd makes (`core/images/archive/importer.go`): an archive is the same image
//! here and there. So their media types are Docker's, and any compressed layer counts as gzip.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use content::Expected;
use diff::{Compression, Encoder};
use metadata::Resource;
use serde::Deserialize;
use types::descriptor::media_type;
use types::spec::image::{ImageConfig, Manifest};
use types::{Context, Descriptor, Digest, Error, ErrorKind, Filters, IngestRef, Labels, Reference, Result};

use super::{FULL_NAME, Found, Importer, REF_NAME, check_count, with_digest};
use crate::IngestSink;
use crate::layer::UNCOMPRESSED;
use crate::unpack::read;
use crate::verify::is_right;

/// Links in a chain at most.
const LINKS_MAX: usize = 8;

/// An image of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

fn parse(bytes: &[u8]) -> Result<Vec<Entry>> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::invalid_argument("manifest.json cannot be read").with_source(error))
}

/// The name of the only image, if there is one image with one name.
pub(super) fn only_tag(bytes: &[u8]) -> Option<String> {
    let [entry] = &parse(bytes).ok()?[..] else { return None };
    match entry.repo_tags.as_deref() {
        Some([tag]) => Some(tag.clone()),
        _ => None,
    }
}

impl Importer<'_> {
    /// Makes the manifests of a `docker save` archive, one for each name.
    pub(super) fn manifests_of_docker(&self, found: &Found) -> Result<Vec<Descriptor>> {
        let mut manifests = Vec::new();
        let entries = parse(found.docker_manifest.as_deref().unwrap_or_default())?;
        let tags = |entry: &Entry| entry.repo_tags.as_ref().map_or(1, |tags| tags.len().max(1));
        check_count("manifest.json", "names", entries.iter().map(tags).sum())?;
        let others = self.other_forms(found)?;
        for entry in entries {
            let target = self.manifest_of(&entry, found, &others)?;
            let tags = entry.repo_tags.unwrap_or_default();
            for tag in &tags {
                let (full, short) = names(tag)?;
                let mut named = target.clone();
                named.annotations.insert(FULL_NAME.to_owned(), full);
                named.annotations.insert(REF_NAME.to_owned(), short);
                manifests.push(named);
            }
            if tags.is_empty() {
                manifests.push(target);
            }
        }
        Ok(manifests)
    }

    fn manifest_of(
        &self,
        entry: &Entry,
        found: &Found,
        others: &BTreeMap<Digest, Descriptor>,
    ) -> Result<Descriptor> {
        let (config, config_size) = found.file(&entry.config)?;
        let parsed: ImageConfig = serde_json::from_slice(&read(self.metadata, self.caller, &config)?)
            .map_err(|error| {
                Error::invalid_argument("the image's config cannot be read").with_source(error)
            })?;
        let paths = entry.layers.as_deref().unwrap_or_default();
        check_count("manifest.json", "layers of an image", paths.len())?;
        if paths.len() != parsed.rootfs.diff_ids.len() {
            return Err(Error::invalid_argument(format!(
                "manifest.json names {} layers, the image's config {}",
                paths.len(),
                parsed.rootfs.diff_ids.len()
            )));
        }
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(media_type::DOCKER_MANIFEST.into()),
            artifact_type: None,
            config: Descriptor::new(media_type::DOCKER_CONFIG, config, config_size),
            layers: self.layers_of(paths, found, others)?,
            subject: None,
            annotations: BTreeMap::new(),
        };
        let manifest = self.document("manifest", media_type::DOCKER_MANIFEST, &manifest)?;
        Ok(Descriptor { platform: Some(parsed.platform.canonical()), ..manifest })
    }

    /// The layers of an image. As in containerd, one that is there twice has its other form only at the upper place.
    fn layers_of(
        &self,
        paths: &[String],
        found: &Found,
        others: &BTreeMap<Digest, Descriptor>,
    ) -> Result<Vec<Descriptor>> {
        let (mut layers, mut seen) = (Vec::new(), BTreeSet::new());
        for path in paths.iter().rev() {
            let (digest, size) = found.file(path)?;
            let other = others.get(&digest).filter(|_| seen.insert(digest.clone()));
            layers.push(match other {
                Some(other) => other.clone(),
                None if self.compresses && self.compression(&digest)? == Compression::None => {
                    self.compress(&digest)?
                }
                None => self.docker_layer(digest, size)?,
            });
        }
        layers.reverse();
        Ok(layers)
    }

    /// Blobs of the namespace whose label says that they unpack to a file of the archive, by that file: a layer that was
    /// pulled is not stored a second time. Of several blobs it is the one with the highest digest, as in containerd.
    fn other_forms(&self, found: &Found) -> Result<BTreeMap<Digest, Descriptor>> {
        let files: BTreeSet<&Digest> = found.files.values().map(|(digest, _)| digest).collect();
        let content = self.metadata.content(self.caller);
        let lease = self.caller.lease.as_ref().expect("imports have a lease");
        let mut others = BTreeMap::new();
        for blob in content.list(&Filters::parse(&[format!("labels.{UNCOMPRESSED:?}")])?)? {
            let plain = blob.labels.get(UNCOMPRESSED).and_then(|plain| plain.parse::<Digest>().ok());
            let Some(plain) = plain.filter(|plain| files.contains(plain)) else { continue };
            // The archive has what a damaged blob lacks.
            if is_right(content.reader(&blob.digest), &blob.digest)? {
                let resource = Resource::Content(blob.digest.clone());
                self.metadata.leases(self.caller).add_resource(lease, &resource)?;
                others.insert(plain, self.docker_layer(blob.digest, blob.size)?);
            }
        }
        Ok(others)
    }

    fn docker_layer(&self, digest: Digest, size: u64) -> Result<Descriptor> {
        let kind = match self.compression(&digest)? {
            Compression::None => media_type::DOCKER_LAYER,
            Compression::Gzip | Compression::Zstd => media_type::DOCKER_LAYER_GZIP,
        };
        Ok(Descriptor::new(kind, digest, size))
    }

    /// Compresses a layer with gzip. The same layer gives the same bytes.
    fn compress(&self, plain: &Digest) -> Result<Descriptor> {
        let what = || format!("compress layer {plain}");
        let content = self.metadata.content(self.caller);
        let mut source = content.reader(plain)?;
        let lease = self.caller.lease.as_ref().map(ToString::to_string).unwrap_or_default();
        let reference = IngestRef::new(format!("compress-{lease}-{plain}"))?;
        let mut writer = content.begin(&reference, Expected::default())?;
        writer.truncate()?;
        let mut encoder = Encoder::new(Compression::Gzip, IngestSink(&mut writer)).context(what)?;
        std::io::copy(&mut source, &mut encoder).context(what)?;
        encoder.finish().context(what)?;
        let (digest, size) = (writer.digest(), writer.offset());
        let labels = Labels::from([(UNCOMPRESSED.to_owned(), plain.to_string())]);
        match writer.commit(Expected::new(digest.clone(), size), labels) {
            Err(error) if !error.is(ErrorKind::AlreadyExists) => Err(error.context(what())),
            _ => Ok(Descriptor::new(media_type::DOCKER_LAYER_GZIP, digest, size)),
        }
    }

    /// The compression of a layer, detected from its bytes.
    pub(super) fn compression(&self, digest: &Digest) -> Result<Compression> {
        let reader = self.metadata.content(self.caller).reader(digest)?;
        let mut prefix = Vec::new();
        reader.take(4).read_to_end(&mut prefix).context(|| format!("read {digest}"))?;
        Ok(Compression::detect(&prefix))
    }
}

/// The full name of an image, and what the image spec calls it in an index: its tag, or the full name of one with a
/// digest. A tag beside a digest says nothing, as in Docker.
fn names(text: &str) -> Result<(String, String)> {
    let name = text.parse::<Reference>()?;
    Ok(match name.digest() {
        Some(digest) => {
            let full = with_digest(&name.name(), digest);
            (full.clone(), full)
        }
        None => (name.to_string(), name.object()),
    })
}

impl Found {
    /// Looks up a file by its path, following links.
    fn file(&self, path: &str) -> Result<(Digest, u64)> {
        let mut meant = path.trim_start_matches("./");
        for _ in 0..LINKS_MAX {
            if let Some(file) = self.files.get(meant) {
                return Ok(file.clone());
            }
            match self.links.get(meant) {
                Some(target) => meant = target,
                None => break,
            }
        }
        Err(Error::not_found(format!("{path}, which manifest.json names, is not in the archive")))
    }
}
