//! `manifest.json` of older `docker save` archives, which are no OCI layouts: it references files by path, so
//! manifests are made here.

use std::collections::BTreeMap;
use std::io::Read;

use content::Expected;
use diff::{Compression, Encoder};
use serde::Deserialize;
use types::descriptor::media_type;
use types::spec::image::{ImageConfig, Manifest};
use types::{Context, Descriptor, Digest, Error, ErrorKind, IngestRef, Labels, Reference, Result};

use super::{FULL_NAME, Found, Importer, check_count};
use crate::IngestSink;
use crate::layer::UNCOMPRESSED;
use crate::unpack::read;

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
        for entry in entries {
            let target = self.manifest_of(&entry, found)?;
            let tags = entry.repo_tags.unwrap_or_default();
            for tag in &tags {
                let name = tag.parse::<Reference>()?.to_string();
                let mut named = target.clone();
                named.annotations.insert(FULL_NAME.to_owned(), name);
                manifests.push(named);
            }
            if tags.is_empty() {
                manifests.push(target);
            }
        }
        Ok(manifests)
    }

    fn manifest_of(&self, entry: &Entry, found: &Found) -> Result<Descriptor> {
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
        let mut layers = Vec::new();
        for path in paths {
            let (digest, size) = found.file(path)?;
            let kind = self.layer_type(&digest)?;
            layers.push(match kind {
                media_type::OCI_LAYER if self.compresses => self.compress(&digest)?,
                kind => Descriptor::new(kind, digest, size),
            });
        }
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.into()),
            artifact_type: None,
            config: Descriptor::new(media_type::OCI_CONFIG, config, config_size),
            layers,
            subject: None,
            annotations: BTreeMap::new(),
        };
        self.document("manifest", media_type::OCI_MANIFEST, &manifest)
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
            _ => Ok(Descriptor::new(media_type::OCI_LAYER_GZIP, digest, size)),
        }
    }

    /// The media type of a layer, detected from its bytes.
    pub(super) fn layer_type(&self, digest: &Digest) -> Result<&'static str> {
        let reader = self.metadata.content(self.caller).reader(digest)?;
        let mut prefix = Vec::new();
        reader.take(4).read_to_end(&mut prefix).context(|| format!("read {digest}"))?;
        Ok(match Compression::detect(&prefix) {
            Compression::None => media_type::OCI_LAYER,
            Compression::Gzip => media_type::OCI_LAYER_GZIP,
            Compression::Zstd => media_type::OCI_LAYER_ZSTD,
        })
    }
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
