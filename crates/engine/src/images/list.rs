//! `images`: the list of images.

use std::cmp::Reverse;

use serde_json::{Value, json};
use transfer::Variant;
use types::{ErrorKind, Reference, Result};

use super::filter::{self, Filter};
use super::found::Found;
use crate::Engine;
use crate::usage::Origins;

const FILTERS: &[&str] = &["dangling", "label", "before", "since", "reference", "until"];

impl Engine {
    pub(crate) async fn images(
        &self,
        filters: Vec<String>,
        all: bool,
        tree: bool,
        sizes: bool,
    ) -> Result<Value> {
        self.blocking(move |engine| {
            let origins = Origins::of(&engine.all()?);
            let created = |name: &str| filter::created(&engine.found(engine.find_image(name)?));
            let filter = Filter::parse(&filters, FILTERS, created)?;
            let hides_dangling = !all && filter.dangling.is_none();
            let fits = |found: &Found| filter.fits(found) && !(hides_dangling && found.is_dangling());
            let mut listed: Vec<Found> = engine.all_found()?.filter(fits).collect();
            // Newest first, as in Docker; images of the same time by name.
            listed.sort_by_cached_key(|found| Reverse(found.created()));
            let rows = listed.into_iter().map(|found| {
                let mut row = found.row(tree);
                row["InUse"] = origins.include(&found).into();
                if sizes {
                    let content = found.contents.parts.iter().filter(|part| part.is_here);
                    let content: u64 = content.map(|part| part.descriptor.size).sum();
                    row["ContentBytes"] = content.into();
                    // The images are listed even if a snapshotter fails to report sizes.
                    match engine.unpacked_bytes(&found) {
                        Ok(unpacked) => row["DiskBytes"] = (content + unpacked).into(),
                        Err(error) => {
                            tracing::warn!(image = found.image.name, "measure its size: {}", error.chain());
                        }
                    }
                }
                Ok(row)
            });
            rows.collect()
        })
        .await
    }

    fn unpacked_bytes(&self, found: &Found) -> Result<u64> {
        Ok(self.trees_of(found)?.iter().map(|(_, bytes)| bytes).sum())
    }

    /// The snapshots of an image's layers that exist, with their sizes in bytes.
    pub(crate) fn trees_of(&self, found: &Found) -> Result<Vec<(String, u64)>> {
        let parts = self.parts();
        let Some(manifest) = found.variant().and_then(|variant| variant.manifest.as_ref()) else {
            return Ok(Vec::new());
        };
        // Images of other platforms, or with an unreadable config, are never unpacked.
        let Ok(config) = transfer::config(&parts.metadata, &self.0.caller, manifest) else {
            return Ok(Vec::new());
        };
        let snapshots = parts.metadata.snapshots(&self.0.caller, &parts.snapshotter)?;
        let mut trees = Vec::new();
        for tree in image::chain_ids(&config.rootfs.diff_ids) {
            let tree = tree.to_string();
            match snapshots.usage(&tree) {
                Ok(usage) => trees.push((tree, usage.bytes)),
                Err(error) if error.is(ErrorKind::NotFound) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(trees)
    }
}

impl Found {
    /// A row of the list; with `tree`, with its platforms.
    pub(crate) fn row(&self, tree: bool) -> Value {
        let none = || "<none>".to_owned();
        let reference = self.reference.as_ref();
        let repository = reference.map_or_else(|| self.image.name.clone(), Reference::familiar_name);
        let mut row = json!({
            "Repository": if self.is_dangling() { none() } else { repository },
            "Tag": reference.and_then(|name| name.tag()).map_or_else(none, str::to_owned),
            "Digest": self.image.target.digest.to_string(),
            "ID": self.id().to_string(),
            "CreatedAt": self.summary().and_then(|summary| summary.created.clone()),
            "PulledAt": self.image.updated.to_string(),
            "SizeBytes": self.size(),
            "MediaType": self.image.target.media_type,
            "ArtifactType": self.variant().and_then(Variant::artifact_type),
        });
        if tree {
            row["Platforms"] = self.contents.variants.iter().map(platform).collect();
        }
        row
    }
}

/// The row of a manifest in an image index: its platform, and whether it was pulled.
fn platform(variant: &Variant) -> Value {
    let kind = if image::is_attestation(&variant.descriptor) {
        "attestation"
    } else if variant.artifact_type().is_some() {
        "artifact"
    } else {
        "image"
    };
    let state = match &variant.manifest {
        _ if variant.is_whole() => "here",
        Some(_) => "in part",
        None => "not here",
    };
    json!({
        "Kind": kind,
        "Platform": variant.platform.as_ref().map(ToString::to_string),
        "Digest": variant.descriptor.digest.to_string(),
        "ID": variant.manifest.as_ref().map(|manifest| manifest.config.digest.to_string()),
        "ArtifactType": variant.artifact_type(),
        "SizeBytes": variant.size(),
        "State": state,
    })
}
