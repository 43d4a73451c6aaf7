//! Images by name or by id, which is the digest of the config for this host's platform.
//!
//! - `pull`, `push`, `archive`: transfer from and to registries and files;
//! - `found`, `filter`: lookup;
//! - `commit`, `instruction`: images made from containers; `changes`: differences between file systems;
//! - `list`, `inspect`, `mounts`: inspection;
//! - `follow`: listing of files, conversion, verification;
//! - `names`: tagging and removal.

mod archive;
mod changes;
mod commit;
mod filter;
mod follow;
mod found;
mod inspect;
mod instruction;
mod list;
mod mounts;
mod names;
mod pull;
mod push;

use api::engine::ImageCall;
use metadata::Image;
use serde_json::Value;
use transfer::{Described, Variant};
use types::{Error, ErrorKind, Platform, Result};

pub(crate) use self::found::Found;
use crate::Engine;
use crate::containers::familiar;

impl Engine {
    pub(crate) async fn answer_about_images(&self, call: ImageCall) -> Result<Value> {
        match call {
            ImageCall::List { filters, all, tree, sizes } => self.images(filters, all, tree, sizes).await,
            ImageCall::History { name } => self.history(&name).await,
            ImageCall::Inspect { name } => self.inspect_image(&name).await,
            ImageCall::Tag { source, target } => self.tag(&source, &target).await,
            ImageCall::Remove { name, force } => self.remove_image(&name, force).await,
            ImageCall::Mount { name, path } => self.mount_image(&name, &path).await,
            ImageCall::Unmount { path } => self.unmount_image(&path).await,
            ImageCall::Mounts => self.list_image_mounts().await,
            ImageCall::Prune { all, filters } => self.prune_images(all, filters).await,
            ImageCall::Referrers { reference, artifact_type, credentials } => {
                self.referrers(&reference, artifact_type.as_deref(), credentials).await
            }
        }
    }

    pub(crate) fn described(&self, image: &Image) -> Result<Described> {
        self.described_for(image, &self.parts().snapshotter, &Platform::host())
    }

    /// The image for a requested platform. `NotFound` if the image has no such platform or it was not pulled
    /// completely.
    pub(crate) fn described_as(
        &self,
        image: &Image,
        snapshotter: &str,
        platform: &Platform,
    ) -> Result<Described> {
        let parts = self.parts();
        let contents = transfer::contents(&parts.metadata, &self.0.caller, &image.target)?;
        let fits = |variant: &Variant| variant.platform.as_ref().is_none_or(|own| platform.fit(own) > 0);
        // An image without any platform gets the error that says so.
        if contents.variants.is_empty() || contents.best(platform).is_some_and(fits) {
            return self.described_for(image, snapshotter, platform);
        }
        let here = contents.variants.iter().filter(|variant| variant.is_whole());
        let here: Vec<String> =
            here.filter_map(|variant| variant.platform.as_ref().map(ToString::to_string)).collect();
        Err(Error::not_found(format!(
            "No such image: {} for {platform}; there is {}",
            familiar(&image.name),
            if here.is_empty() { "none that is whole".to_owned() } else { here.join(", ") }
        )))
    }

    /// Reads an image's documents, and makes sure that its snapshots exist.
    pub(crate) fn described_for(
        &self,
        image: &Image,
        snapshotter: &str,
        platform: &Platform,
    ) -> Result<Described> {
        let parts = self.parts();
        let described = transfer::describe(&parts.metadata, &self.0.caller, &image.target, platform)
            .map_err(|error| error.context(format!("read image {}", image.name)))?;
        // Snapshots that were garbage collected, or that only another snapshotter has, are made again.
        if let Some(top) = &described.top {
            let snapshots = parts.metadata.snapshots(&self.0.caller, snapshotter)?;
            match snapshots.stat(top) {
                Err(error) if error.is(ErrorKind::NotFound) => {
                    transfer::unpack(
                        &parts.metadata,
                        &self.0.caller,
                        snapshotter,
                        &image.target,
                        platform,
                        None,
                    )?;
                }
                found => drop(found?),
            }
        }
        Ok(described)
    }
}
