//! What images there are.

use serde_json::{Value, json};
use types::filter::Filters;
use types::{Platform, Reference, Result};

use crate::Engine;

impl Engine {
    pub(crate) async fn images(&self) -> Result<Value> {
        self.blocking(|engine| {
            let parts = engine.parts();
            let mut rows = Vec::new();
            for image in parts.metadata.images(&engine.0.caller).list(&Filters::all())? {
                let described = transfer::describe(&parts.metadata, &engine.0.caller, &image.target, &Platform::host());
                let (id, size, created) = match &described {
                    Ok(described) => {
                        let layers: u64 = described.manifest.layers.iter().map(|layer| layer.size).sum();
                        (described.manifest.config.digest.to_string(), layers, described.config.created.clone())
                    }
                    Err(_) => (image.target.digest.to_string(), image.target.size, None),
                };
                let reference = image.name.parse::<Reference>().ok();
                rows.push(json!({
                    "Repository": reference.as_ref().map_or_else(|| image.name.clone(), Reference::familiar_name),
                    "Tag": reference.as_ref().and_then(|reference| reference.tag()).unwrap_or("<none>"),
                    "Digest": image.target.digest.to_string(),
                    "ID": id,
                    "CreatedAt": created,
                    "PulledAt": image.updated.to_string(),
                    "SizeBytes": size,
                }));
            }
            Ok(Value::Array(rows))
        })
        .await
    }
}
