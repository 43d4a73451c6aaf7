//! Names of images: given, moved, taken away.

use metadata::Image;
use serde_json::{Value, json};
use types::{Error, ErrorKind, Reference, Result};

use crate::Engine;
use crate::containers::familiar;
use crate::record::Extension;

impl Engine {
    /// Gives an image another name. A name that another image has moves to this one, as in Docker.
    pub(crate) async fn tag(&self, source: &str, target: &str) -> Result<Value> {
        let source = source.to_owned();
        let target: Reference = target.parse()?;
        if target.digest().is_some() {
            return Err(Error::invalid_argument(format!(
                "{target} names a digest, which belongs to its image alone"
            )));
        }
        self.blocking(move |engine| {
            let images = engine.parts().metadata.images(&engine.0.caller);
            let image = Image { name: target.to_string(), ..engine.find_image(&source)? };
            let tagged = match images.create(image.clone(), None) {
                Err(error) if error.is(ErrorKind::AlreadyExists) => {
                    images.update(&image, &["target".to_owned()], None)?
                }
                created => created?,
            };
            Ok(json!({"Name": familiar(&tagged.name)}))
        })
        .await
    }

    /// Removes an image's name; its bytes go with the next collection if nothing else needs them.
    pub(crate) async fn remove_image(&self, name: &str, force: bool) -> Result<Value> {
        let name = name.to_owned();
        self.blocking(move |engine| {
            let image = engine.find_image(&name)?;
            let users: Vec<String> = engine
                .all()?
                .iter()
                .filter_map(|container| Extension::of(container).ok())
                .filter(|extension| extension.image == image.name)
                .map(|extension| extension.name)
                .collect();
            if !users.is_empty() && !force {
                return Err(Error::failed_precondition(format!(
                    "image {} is used by container {}; remove that first, or force (-f)",
                    familiar(&image.name),
                    users.join(", ")
                )));
            }
            engine.parts().metadata.images(&engine.0.caller).delete(&image.name, None)?;
            Ok(json!({"Untagged": familiar(&image.name)}))
        })
        .await
    }
}
