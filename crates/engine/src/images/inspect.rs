//! Everything about one image.

use serde_json::{Value, json};
use types::Result;

use crate::Engine;
use crate::containers::familiar;

impl Engine {
    pub(crate) async fn inspect_image(&self, name: &str) -> Result<Value> {
        let name = name.to_owned();
        self.blocking(move |engine| {
            let image = engine.find_image(&name)?;
            let described = engine.described(&image)?;
            Ok(json!({
                "Id": described.manifest.config.digest.to_string(),
                "RepoTags": [familiar(&image.name)],
                "Digest": image.target.digest.to_string(),
                "Created": described.config.created,
                "Architecture": described.config.platform.architecture,
                "Os": described.config.platform.os,
                "Size": described.manifest.layers.iter().map(|layer| layer.size).sum::<u64>(),
                "Config": described.config.config,
                "RootFS": {"Type": "layers", "Layers": described.config.rootfs.diff_ids},
            }))
        })
        .await
    }
}
