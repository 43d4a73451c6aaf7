//! What uses the disk, and how much of it nothing needs that is in use: what `system df` shows; one by one in [`each`].
//!
//! In use are containers that run; the images that containers were made of, whether these run or not, with their blobs
//! and trees; and the volumes of containers. The rest would go with `system prune`, `image prune --all` and
//! `volume prune --all`.

mod each;

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

/// Things of a kind: a row.
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

/// What containers were made of.
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

    /// By whatever name.
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
            // Blobs of an image may be another's too: the images are counted, and the blobs weighed.
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

    /// How many images there are and how many of them containers were made of, and the blobs of the latter.
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

    /// Blobs as they came; those that are made again when somebody asks for them, and what that saves.
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
                // It went meanwhile, or its bytes are lost, which `image verify` tells.
                Err(error) if error.is(ErrorKind::NotFound) || error.is(ErrorKind::DataLoss) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((whole, rebuilt, saved))
    }

    /// The trees of layers, and what containers wrote on them.
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
                // It went meanwhile.
                Err(error) if error.is(ErrorKind::NotFound) => continue,
                Err(error) => return Err(error),
            };
            let key = snapshot.key.as_str();
            match owners.get(key) {
                _ if snapshot.kind == snapshot::Kind::Committed => trees.add(bytes, below.contains(key)),
                Some(owner) => written.add(bytes, alive.contains(*owner)),
                // Others work on it.
                None => written.bytes += bytes,
            }
        }
        // Those that have no tree of ours are containers too.
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
