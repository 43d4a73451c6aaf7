//! `image inspect` and `history`, in Docker's formats.

use serde_json::{Value, json};
use types::spec::image::{ExecConfig, History, ImageConfig};
use types::{Error, Result};

use super::found::Found;
use crate::Engine;
use crate::containers::{familiar, familiar_with_tag};

impl Engine {
    /// Docker's JSON. Without `GraphDriver`: where snapshots are on disk is not part of the interface.
    pub(crate) async fn inspect_image(&self, name: &str) -> Result<Value> {
        let name = name.to_owned();
        self.blocking(move |engine| {
            let found = engine.readable(&name)?;
            let (mut tags, mut digests) = (Vec::new(), Vec::new());
            for other in engine.all_found()? {
                if other.id() != found.id() || other.is_dangling() {
                    continue;
                }
                let Some(reference) = &other.reference else {
                    tags.push(other.image.name.clone());
                    continue;
                };
                if reference.tag().is_some() {
                    tags.push(familiar_with_tag(&other.image.name));
                }
                digests.push(format!("{}@{}", reference.familiar_name(), other.image.target.digest));
            }
            digests.sort();
            digests.dedup();
            let variant = found.variant();
            let config = engine.config(&found)?;
            let config = config.as_ref();
            let platform = variant.and_then(|variant| variant.platform.as_ref());
            let platform =
                |field: fn(&types::Platform) -> &String| platform.map(field).filter(|text| !text.is_empty());
            let comment = config.and_then(|config| config.history.last()?.comment.clone());
            Ok(json!({
                "Id": found.id().to_string(),
                "RepoTags": tags,
                "RepoDigests": digests,
                "Digest": found.image.target.digest.to_string(),
                "Comment": comment.unwrap_or_default(),
                "Created": config.and_then(|config| config.created.as_ref()),
                "Author": config.and_then(|config| config.author.as_deref()).unwrap_or_default(),
                "Architecture": platform(|platform| &platform.architecture),
                "Variant": platform(|platform| &platform.variant),
                "Os": platform(|platform| &platform.os),
                "OsVersion": platform(|platform| &platform.os_version),
                "Size": found.size(),
                "Config": config.map(|config| config_row(config.config.as_ref())),
                "RootFS": config.map(|config| json!({"Type": "layers", "Layers": config.rootfs.diff_ids})),
                "Metadata": {"LastTagTime": found.image.updated.to_string()},
                "Descriptor": found.image.target,
                "ArtifactType": variant.and_then(transfer::Variant::artifact_type),
            }))
        })
        .await
    }

    pub(crate) async fn history(&self, name: &str) -> Result<Value> {
        let name = name.to_owned();
        self.blocking(move |engine| {
            let found = engine.readable(&name)?;
            let config = engine.config(&found)?.ok_or_else(|| {
                let what = found.variant().and_then(transfer::Variant::artifact_type).unwrap_or("unknown");
                Error::invalid_argument(format!("{name} is an artifact of type {what}, which has no history"))
            })?;
            let parts = engine.parts();
            let snapshots = parts.metadata.snapshots(&engine.0.caller, &parts.snapshotter)?;
            let manifest = found.variant().and_then(|variant| variant.manifest.as_ref());
            let chain = image::chain_ids(&config.rootfs.diff_ids);
            // The size of the layer's snapshot if there is one, otherwise of its blob.
            let size = |at: usize| {
                let tree = snapshots.usage(&chain[at].to_string()).map(|usage| usage.bytes).ok();
                tree.or_else(|| manifest?.layers.get(at).map(|layer| layer.size)).unwrap_or(0)
            };
            let mut layers = (0..chain.len()).map(size);
            let mut rows: Vec<Value> = Vec::new();
            for step in &config.history {
                let size = if step.empty_layer { 0 } else { layers.next().unwrap_or(0) };
                rows.push(history_row(step, size));
            }
            // If the history has fewer entries than there are layers, the remaining layers are listed as well.
            rows.extend(layers.map(|size| history_row(&History::default(), size)));
            rows.reverse();
            if let Some(top) = rows.first_mut() {
                top["Id"] = found.id().to_string().into();
                top["Tags"] = json!([familiar(&found.image.name)]);
            }
            Ok(Value::Array(rows))
        })
        .await
    }

    /// Its whole config, if it is an image.
    fn config(&self, found: &Found) -> Result<Option<ImageConfig>> {
        let is_image = |variant: &&transfer::Variant| variant.summary.is_some();
        let manifest = found.variant().filter(is_image).and_then(|variant| variant.manifest.as_ref());
        let read = |manifest| transfer::config(&self.parts().metadata, &self.0.caller, manifest);
        manifest.map(read).transpose()
    }

    /// Finds an image and parses its documents.
    fn readable(&self, name: &str) -> Result<Found> {
        let image = self.find_image(name)?;
        let parts = self.parts();
        let contents = transfer::contents(&parts.metadata, &self.0.caller, &image.target)
            .map_err(|error| error.context(format!("read image {}", image.name)))?;
        Ok(Found { reference: image.name.parse().ok(), image, contents })
    }
}

fn history_row(step: &History, size: u64) -> Value {
    json!({
        "Id": "<missing>",
        "Created": step.created,
        "CreatedBy": step.created_by.as_deref().unwrap_or_default(),
        "Size": size,
        "Comment": step.comment.as_deref().unwrap_or_default(),
        "Tags": null,
    })
}

/// With all fields, even empty ones, so that templates work for any image.
fn config_row(config: Option<&ExecConfig>) -> Value {
    let nothing = ExecConfig::default();
    let config = config.unwrap_or(&nothing);
    json!({
        "User": config.user,
        "ExposedPorts": config.exposed_ports,
        "Env": config.env,
        "Entrypoint": config.entrypoint,
        "Cmd": config.cmd,
        "Volumes": config.volumes,
        "WorkingDir": config.working_dir,
        "Labels": config.labels,
        "StopSignal": config.stop_signal,
        "OnBuild": [],
        "Healthcheck": config.healthcheck,
    })
}
