//! Images as people know them: found by name or by id, which is the digest of the config for this machine.
//!
//! - `pull`, `archive`: in and out;
//! - `list`, `inspect`: looked at;
//! - `names`: named and removed.

mod archive;
mod inspect;
mod list;
mod names;
mod pull;

use api::engine::ImageCall;
use metadata::Image;
use serde_json::Value;
use transfer::Described;
use types::filter::Filters;
use types::{Error, ErrorKind, Platform, Reference, Result};

use crate::Engine;

impl Engine {
    pub(crate) async fn answer_about_images(&self, call: ImageCall) -> Result<Value> {
        match call {
            ImageCall::List => self.images().await,
            ImageCall::Inspect { name } => self.inspect_image(&name).await,
            ImageCall::Tag { source, target } => self.tag(&source, &target).await,
            ImageCall::Remove { name, force } => self.remove_image(&name, force).await,
            ImageCall::Load { path, embedded } => self.load(&path, embedded.as_deref()).await,
            ImageCall::Import { path, name, comment } => {
                self.import_tree(&path, name.as_deref(), comment).await
            }
            ImageCall::Save { names, pipe } => self.save(names, &pipe).await,
        }
    }

    /// Finds an image by name, or by its id or the beginning of it.
    pub(crate) fn find_image(&self, text: &str) -> Result<Image> {
        let images = self.parts().metadata.images(&self.0.caller);
        let missing = || Error::not_found(format!("No such image: {text}"));
        if let Ok(reference) = text.parse::<Reference>() {
            match images.get(&reference.to_string()) {
                Err(error) if error.is(ErrorKind::NotFound) => {}
                other => return other,
            }
        }
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if hex.len() < 4 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            text.parse::<Reference>()?;
            return Err(missing());
        }
        let fitting = images.list(&Filters::all())?.into_iter().find(|image| {
            let own = image.target.digest.hex().starts_with(hex);
            own || self
                .described(image)
                .is_ok_and(|described| described.manifest.config.digest.hex().starts_with(hex))
        });
        fitting.ok_or_else(missing)
    }

    pub(crate) fn described(&self, image: &Image) -> Result<Described> {
        let parts = self.parts();
        let described = transfer::describe(&parts.metadata, &self.0.caller, &image.target, &Platform::host())
            .map_err(|error| error.context(format!("read image {}", image.name)))?;
        // A tree that was collected, or that belongs to another snapshotter, is made again.
        if let Some(top) = &described.top {
            let snapshots = parts.metadata.snapshots(&self.0.caller, &parts.snapshotter)?;
            if snapshots.stat(top).is_err_and(|error| error.is(ErrorKind::NotFound)) {
                transfer::unpack(
                    &parts.metadata,
                    &self.0.caller,
                    &parts.snapshotter,
                    &image.target,
                    &Platform::host(),
                    None,
                )?;
            }
        }
        Ok(described)
    }
}
