//! `system df`: disk usage, and how much of it could be reclaimed. Per object, for `-v`: see [`details`].
//!
//! In use are: running containers; images of which there are containers, running or not, with their blobs and
//! snapshots; volumes of containers. The rest would be removed by `system prune`, `image prune --all` and `volume prune
//! --all`.

mod details;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;

use content::Form;
use metadata::Container;
use serde_json::{Value, json};
use types::filter::Filters;
use types::{Digest, ErrorKind, Result};

use crate::Engine;
use crate::images::Found;
use crate::logs::{self, LOG_FILE};
use crate::record::Extension;

/// A row: totals of one kind of object.
#[derive(Default)]
pub(crate) struct Kind {
    total: usize,
    active: usize,
    bytes: u64,
    reclaimable: u64,
}

impl Kind {
    pub(crate) fn add(&mut self, bytes: u64, is_in_use: bool) {
        self.total += 1;
        self.active += usize::from(is_in_use);
        self.bytes += bytes;
        self.reclaimable += if is_in_use { 0 } else { bytes };
    }

    fn row(&self, name: &str) -> Value {
        json!({
            "Type": name,
            "TotalCount": self.total,
            "Active": self.active,
            "SizeBytes": self.bytes,
            "ReclaimableBytes": self.reclaimable,
        })
    }
}

/// The images that containers were made from, by name and id.
#[derive(Default)]
pub(crate) struct Origins {
    names: BTreeSet<String>,
    ids: BTreeSet<String>,
}

impl Origins {
    pub(crate) fn of(containers: &[Container]) -> Origins {
        let mut origins = Origins::default();
        for extension in containers.iter().filter_map(|container| Extension::of(container).ok()) {
            origins.names.insert(extension.image);
            origins.ids.insert(extension.image_digest);
        }
        origins
    }

    /// Whether containers were made from the image, by any of its names.
    pub(crate) fn include(&self, found: &Found) -> bool {
        self.names.contains(&found.image.name) || self.ids.contains(&found.id().to_string())
    }
}

impl Engine {
    pub(crate) async fn disk_usage(&self, verbose: bool) -> Result<Value> {
        if verbose {
            return self.each_usage().await;
        }
        let listed = self.list_all().await?;
        let alive = listed.iter().filter(|one| one.state.is_alive());
        let alive: BTreeSet<String> = alive.map(|one| one.container.id.to_string()).collect();
        self.blocking(move |engine| {
            let containers = engine.all()?;
            let (images, blobs_in_use) = engine.images_in_use(&containers)?;
            let (blobs, rebuilt, saved) = engine.blobs_usage(&blobs_in_use)?;
            let (trees, written) = engine.trees_usage(&containers, &alive)?;
            // Images may share blobs: their number counts images, their size each blob once.
            let images = Kind { total: images.total, active: images.active, ..blobs };
            let mut by_recipe = rebuilt.row("Blobs by recipe");
            by_recipe["SavedBytes"] = saved.into();
            Ok(json!([
                images.row("Images"),
                by_recipe,
                trees.row("Unpacked layers"),
                written.row("Containers"),
                engine.logs_usage(&containers, &alive).row("Logs"),
                engine.volumes_usage()?.row("Local Volumes"),
            ]))
        })
        .await
    }

    /// Number of images in total and in use, and the blobs of those in use.
    fn images_in_use(&self, containers: &[Container]) -> Result<(Kind, BTreeSet<Digest>)> {
        let origins = Origins::of(containers);
        let (mut images, mut blobs) = (Kind::default(), BTreeSet::new());
        for found in self.all_found()? {
            let is_in_use = origins.include(&found);
            images.add(0, is_in_use);
            if is_in_use {
                blobs.extend(found.contents.parts.into_iter().map(|part| part.descriptor.digest));
            }
        }
        Ok((images, blobs))
    }

    /// Usage of blobs as they were pulled, of blobs that are rebuilt on demand, and the bytes that the latter save.
    fn blobs_usage(&self, in_use: &BTreeSet<Digest>) -> Result<(Kind, Kind, u64)> {
        let content = self.parts().metadata.content(&self.0.caller);
        let (mut whole, mut rebuilt, mut saved) = (Kind::default(), Kind::default(), 0);
        for blob in content.list(&Filters::all())? {
            let is_in_use = in_use.contains(&blob.digest);
            match content.form(&blob.digest) {
                Ok(Form::Whole) => whole.add(blob.size, is_in_use),
                Ok(Form::Recipe { len }) => {
                    rebuilt.add(len, is_in_use);
                    saved += blob.size.saturating_sub(len);
                }
                // The blob was removed meanwhile, or its data is lost, which `image verify` reports.
                Err(error) if error.is(ErrorKind::NotFound) || error.is(ErrorKind::DataLoss) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((whole, rebuilt, saved))
    }

    /// Usage of the layers' snapshots, and of the containers' own.
    fn trees_usage(&self, containers: &[Container], alive: &BTreeSet<String>) -> Result<(Kind, Kind)> {
        let parts = self.parts();
        let snapshots = parts.metadata.snapshots(&self.0.caller, &parts.snapshotter)?;
        let all = snapshots.list(&Filters::all())?;
        let parents: BTreeMap<&str, &str> =
            all.iter().map(|snapshot| (snapshot.key.as_str(), snapshot.parent.as_str())).collect();
        let own = containers.iter().filter(|container| container.snapshotter == parts.snapshotter);
        let owners: BTreeMap<&str, &str> =
            own.map(|container| (container.snapshot_key.as_str(), container.id.as_str())).collect();
        let mut below = BTreeSet::new();
        for key in owners.keys() {
            let mut key = *key;
            while let Some(parent) = parents.get(key).filter(|parent| below.insert(**parent)) {
                key = parent;
            }
        }
        let (mut trees, mut written) = (Kind::default(), Kind::default());
        for snapshot in &all {
            let bytes = match snapshots.usage(&snapshot.key) {
                Ok(usage) => usage.bytes,
                // The snapshot was removed meanwhile.
                Err(error) if error.is(ErrorKind::NotFound) => continue,
                Err(error) => return Err(error),
            };
            let key = snapshot.key.as_str();
            match owners.get(key) {
                _ if snapshot.kind == snapshot::Kind::Committed => trees.add(bytes, below.contains(key)),
                Some(owner) => written.add(bytes, alive.contains(*owner)),
                // A snapshot of another client.
                None => written.bytes += bytes,
            }
        }
        // Counts containers of other clients as well, which have no snapshot of ours.
        written.total = containers.len();
        Ok((trees, written))
    }

    fn logs_usage(&self, containers: &[Container], alive: &BTreeSet<String>) -> Kind {
        let mut logs = Kind::default();
        for id in containers.iter().map(|container| container.id.as_str()) {
            let log = self.files(id).join(LOG_FILE);
            let files = logs::files(&log).filter_map(|file| file.ok()?.metadata().ok());
            let sizes: Vec<u64> = files.map(|file| file.blocks() * 512).collect();
            if !sizes.is_empty() {
                logs.add(sizes.iter().sum(), alive.contains(id));
            }
        }
        logs
    }
}
