//! Makes an image from another image and the changes on top of it.
//!
//! ```text
//! begin: lease ─▶ layer: two trees ─▶ blob ─▶ finish: config, manifest ─▶ trees ─▶ image record ─▶ lease dropped
//! ```
//!
//! The steps are separate because the container need be paused for the first of them only.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use content::Expected;
use diff::{Compression, Trees};
use metadata::{Caller, Image, Metadata};
use serde_json::Value;
use types::descriptor::media_type;
use types::label::gc::EXPIRE;
use types::spec::image::Manifest;
use types::{Context, Descriptor, Digest, ErrorKind, IngestRef, Labels, Mount, Platform, Result, Timestamp};

use crate::layer::{Layer, LayerRequest, store_layer};
use crate::{Lease, random_name, unpack};

/// When an orphaned view expires.
const VIEW_LIFE: Duration = Duration::from_secs(24 * 3600);

/// A commit in progress, under a lease.
pub struct Commit {
    metadata: Metadata,
    lease: Lease,
    snapshotter: String,
}

/// The new image.
pub struct NewImage<'a> {
    /// The image below, whose media types (OCI's or Docker's) the new one gets.
    pub base: &'a Manifest,
    /// `None` if nothing changed.
    pub layer: Option<Layer>,
    /// The whole config, including the layer's diff id.
    pub config: Value,
    /// `None` names it by its digest.
    pub name: Option<String>,
}

impl Commit {
    pub fn begin(metadata: &Metadata, caller: &Caller, snapshotter: &str) -> Result<Commit> {
        let lease = Lease::begin(metadata, caller)?;
        Ok(Commit { metadata: metadata.clone(), lease, snapshotter: snapshotter.to_owned() })
    }

    /// Stores the difference between the snapshot `parent` (or an empty tree) and the mounted `upper`. `None` if
    /// there is none. `places` are the mount points that a runtime created, which the layer leaves out.
    pub fn layer(
        &self,
        base: &Manifest,
        parent: Option<&str>,
        upper: &[Mount],
        places: BTreeSet<PathBuf>,
    ) -> Result<Option<Layer>> {
        let media_type =
            if is_docker(base) { media_type::DOCKER_LAYER_GZIP } else { media_type::OCI_LAYER_GZIP };
        let request = LayerRequest {
            media_type: media_type.into(),
            compression: Compression::Gzip,
            reference: None,
            labels: Labels::new(),
            source_date_epoch: None,
        };
        let (metadata, caller) = (&self.metadata, &self.lease.caller);
        let layer = with_view(metadata, caller, &self.snapshotter, parent, |lower| {
            store_layer(metadata, caller, &Trees::open(lower, upper)?.without_mount_points(places), request)
        })?;
        Ok(Some(layer).filter(|layer| !layer.is_empty()))
    }

    /// Stores config and manifest, unpacks the image, and records it.
    pub fn finish(self, new: NewImage<'_>) -> Result<Image> {
        let (config_type, manifest_type) = if is_docker(new.base) {
            (media_type::DOCKER_CONFIG, media_type::DOCKER_MANIFEST)
        } else {
            (media_type::OCI_CONFIG, media_type::OCI_MANIFEST)
        };
        let config = serde_json::to_vec(&new.config).expect("plain data");
        let config = self.store(config_type, &config, Labels::new())?;
        let layers = new.base.layers.iter().cloned().chain(new.layer.map(|layer| layer.descriptor));
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(manifest_type.into()),
            artifact_type: None,
            config,
            layers: layers.collect(),
            subject: None,
            annotations: Default::default(),
        };
        let bytes = serde_json::to_vec(&manifest).expect("plain data");
        let labels = image::Node::Manifest(Box::new(manifest)).reference_labels();
        let target = self.store(manifest_type, &bytes, labels)?;
        let platform = Platform::host();
        unpack(&self.metadata, &self.lease.caller, &self.snapshotter, &target, &platform, None)?;
        let image = self.record(new.name, target)?;
        self.lease.end()?;
        Ok(image)
    }

    fn store(&self, kind: &str, bytes: &[u8], labels: Labels) -> Result<Descriptor> {
        let descriptor = Descriptor::new(kind, Digest::of(bytes), bytes.len() as u64);
        let expected = Expected::new(descriptor.digest.clone(), descriptor.size);
        let reference = IngestRef::new(random_name("commit")?)?;
        let content = self.metadata.content(&self.lease.caller);
        let stored = content.begin(&reference, expected.clone()).and_then(|mut writer| {
            writer.truncate()?;
            writer.write(bytes)?;
            writer.of_type(kind).commit(expected, labels.clone()).map(drop)
        });
        match stored {
            Err(error) if error.is(ErrorKind::AlreadyExists) => {
                let paths: Vec<String> = labels.keys().map(|key| format!("labels.{key}")).collect();
                if !paths.is_empty() {
                    content.update(&descriptor.digest, &labels, &paths)?;
                }
                Ok(descriptor)
            }
            other => other.map(|()| descriptor).context(|| "store a document"),
        }
    }

    fn record(&self, name: Option<String>, target: Descriptor) -> Result<Image> {
        let images = self.metadata.images(&self.lease.caller);
        let now = Timestamp::now();
        let name = name.unwrap_or_else(|| format!("docker.io/library/commit@{}", target.digest));
        let image = Image { name, labels: Labels::new(), target, created: now, updated: now };
        images.assign(image)
    }
}

/// Calls `work` with the mounts of a view of a committed snapshot, or with none.
pub fn with_view<T>(
    metadata: &Metadata,
    caller: &Caller,
    snapshotter: &str,
    name: Option<&str>,
    work: impl FnOnce(&[Mount]) -> Result<T>,
) -> Result<T> {
    let Some(name) = name else { return work(&[]) };
    let snapshots = metadata.snapshots(caller, snapshotter)?;
    let key = random_name("view")?;
    // If the daemon dies first, the view expires.
    let expiry = Timestamp::now().plus(VIEW_LIFE).to_string();
    let labels = Labels::from([(EXPIRE.to_owned(), expiry)]);
    let mounts = snapshots.view(&key, Some(name), labels)?;
    let done = work(&mounts);
    snapshots.remove(&key)?;
    done
}

fn is_docker(manifest: &Manifest) -> bool {
    manifest.media_type.as_deref() == Some(media_type::DOCKER_MANIFEST)
}
