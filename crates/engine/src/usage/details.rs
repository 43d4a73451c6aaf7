//! `system df -v`: disk usage of each image, container and volume.
//!
//! An image takes its blobs that exist and the snapshots of its layers. Parts of several images count as shared; unique
//! parts are what its removal would reclaim. All names of an image count as one.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use types::Result;

use crate::Engine;
use crate::images::Found;
use crate::record::Extension;
use crate::volumes::size_of;

/// Parts of an image: size in bytes, by blob digest or snapshot key.
type Parts = BTreeMap<String, u64>;

impl Engine {
    /// The lists `Images`, `Containers` and `Volumes`, as in `images`, `ps -as` and `volume ls`, with sizes.
    pub(super) async fn each_usage(&self) -> Result<Value> {
        let containers = self.list(true, Vec::new(), None, true).await?;
        self.blocking(move |engine| {
            Ok(json!({
                "Images": engine.each_image()?,
                "Containers": containers,
                "Volumes": engine.each_volume()?,
            }))
        })
        .await
    }

    fn each_image(&self) -> Result<Vec<Value>> {
        let mut made_of: BTreeMap<String, u64> = BTreeMap::new();
        for extension in self.all()?.iter().filter_map(|container| Extension::of(container).ok()) {
            *made_of.entry(extension.image_digest).or_default() += 1;
        }
        let (mut rows, mut parts): (Vec<Value>, BTreeMap<String, Parts>) = Default::default();
        for found in self.all_found()?.filter(|found| !found.is_dangling()) {
            let id = found.id().to_string();
            let mut row = found.row(false);
            row["Containers"] = made_of.get(&id).copied().unwrap_or(0).into();
            rows.push(row);
            parts.entry(id).or_default().extend(self.parts_of(&found)?);
        }
        let shared = shared(&parts);
        for row in &mut rows {
            let own = row["ID"].as_str().and_then(|id| parts.get(id)).into_iter().flatten();
            let (mut all, mut of_others) = (0, 0);
            for (part, bytes) in own {
                all += bytes;
                of_others += if shared.contains(part) { *bytes } else { 0 };
            }
            row["DiskBytes"] = json!(all);
            row["SharedBytes"] = json!(of_others);
            row["UniqueBytes"] = json!(all - of_others);
        }
        Ok(rows)
    }

    fn parts_of(&self, found: &Found) -> Result<Parts> {
        let blobs = found.contents.parts.iter().filter(|part| part.is_here);
        let blobs = blobs.map(|part| (part.descriptor.digest.to_string(), part.descriptor.size));
        let trees = self.trees_of(found)?.into_iter().map(|(tree, bytes)| (format!("tree {tree}"), bytes));
        Ok(blobs.chain(trees).collect())
    }

    fn each_volume(&self) -> Result<Vec<Value>> {
        let users = self.volume_users()?;
        let volume = |name: String| {
            let bytes = size_of(&self.volume(&name)?)?;
            Ok(json!({"Name": name, "Links": users.get(&name).map_or(0, Vec::len), "SizeBytes": bytes}))
        };
        self.volume_names()?.into_iter().map(volume).collect()
    }
}

/// The parts that several images have.
fn shared(images: &BTreeMap<String, Parts>) -> BTreeSet<&String> {
    let (mut seen, mut shared) = (BTreeSet::new(), BTreeSet::new());
    for part in images.values().flat_map(BTreeMap::keys) {
        if !seen.insert(part) {
            shared.insert(part);
        }
    }
    shared
}
