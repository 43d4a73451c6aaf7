//! `manifest.json` of `docker save` from before layouts: it names files by path, so manifests are made here.

use std::collections::BTreeMap;
use std::io::Read;

use serde::Deserialize;
use types::descriptor::media_type;
use types::spec::image::{ImageConfig, Manifest};
use types::{Context, Descriptor, Digest, Error, Reference, Result};

use super::{Found, Importer, unnamed};
use crate::unpack::read;

/// Links that lead to links.
const LINKS_MAX: usize = 8;

/// One image of `manifest.json`.
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
    pub(super) fn named_by_docker(&self, found: &Found) -> Result<Vec<(String, Descriptor)>> {
        let mut named = Vec::new();
        for entry in parse(found.docker_manifest.as_deref().unwrap_or_default())? {
            let target = self.manifest_of(&entry, found)?;
            let tags = entry.repo_tags.unwrap_or_default();
            for tag in &tags {
                named.push((tag.parse::<Reference>()?.to_string(), target.clone()));
            }
            if tags.is_empty() {
                named.push((unnamed(&target.digest), target));
            }
        }
        Ok(named)
    }

    fn manifest_of(&self, entry: &Entry, found: &Found) -> Result<Descriptor> {
        let (config, config_size) = found.file(&entry.config)?;
        let parsed: ImageConfig = serde_json::from_slice(&read(self.metadata, self.caller, &config)?)
            .map_err(|error| {
                Error::invalid_argument("the image's config cannot be read").with_source(error)
            })?;
        let paths = entry.layers.as_deref().unwrap_or_default();
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
            layers.push(Descriptor::new(self.layer_type(&digest)?, digest, size));
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

    /// By its bytes, since nothing else says it.
    pub(super) fn layer_type(&self, digest: &Digest) -> Result<&'static str> {
        let reader = self.metadata.content(self.caller).reader(digest)?;
        let mut prefix = Vec::new();
        reader.take(4).read_to_end(&mut prefix).context(|| format!("read {digest}"))?;
        Ok(match diff::Compression::detect(&prefix) {
            diff::Compression::None => media_type::OCI_LAYER,
            diff::Compression::Gzip => media_type::OCI_LAYER_GZIP,
            diff::Compression::Zstd => media_type::OCI_LAYER_ZSTD,
        })
    }
}

impl Found {
    /// A file by its path, which may be a link to another.
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
