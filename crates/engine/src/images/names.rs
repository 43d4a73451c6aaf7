//! `tag`, `rmi` and `image prune`: names of images.

use std::collections::BTreeSet;

use metadata::Image;
use serde_json::{Value, json};
use types::filter::Filters;
use types::{Error, Platform, Reference, Result};

use super::filter::{self, Filter};
use super::found::{Known, Meant};
use crate::Engine;
use crate::containers::familiar;
use crate::docker_events::Subject;
use crate::record::Extension;

const PRUNE_FILTERS: &[&str] = &["dangling", "until", "label", "label!"];

impl Engine {
    /// Adds a name to an image. A name that another image has moves to this one, as in Docker.
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
            let image = engine.find_image(&source)?.renamed(target.to_string());
            let tagged = images.assign(image)?;
            engine.tell_image(Some(&tagged.target.digest), "tag", &tagged.name);
            Ok(json!({"Name": familiar(&tagged.name)}))
        })
        .await
    }

    /// Removes a name or, given an id, all names of the image. The garbage collector then removes unreferenced blobs.
    pub(crate) async fn remove_image(&self, text: &str, force: bool) -> Result<Value> {
        let text = text.to_owned();
        self.blocking(move |engine| {
            let mut removed = Removed::default();
            match engine.meant(&text)? {
                Meant::Name(image) => {
                    let named = engine.found(*image).into();
                    engine.untag(&named, &engine.known_images()?, force, &mut removed)?;
                }
                Meant::Id(named) => {
                    let names: Vec<String> = named.iter().map(|named| familiar(&named.image.name)).collect();
                    if names.len() > 1 && !force {
                        return Err(Error::failed_precondition(format!(
                            "image {text} has several names: {}; remove those one by one, or force (-f) to \
                             remove all of them",
                            names.join(", ")
                        )));
                    }
                    let known = engine.known_images()?;
                    named.iter().try_for_each(|named| engine.untag(named, &known, force, &mut removed))?;
                }
            }
            Ok(removed.answer())
        })
        .await
    }

    /// Removes unused images, and collects garbage.
    pub(crate) async fn prune_images(&self, all: bool, filters: Vec<String>) -> Result<Value> {
        self.blocking(move |engine| {
            let created = |name: &str| filter::created(&engine.found(engine.find_image(name)?));
            let mut filter = Filter::parse(&filters, PRUNE_FILTERS, created)?;
            // Docker's other spelling of `--all`.
            let all = all || filter.dangling.take() == Some(false);
            let mut removed = Removed::default();
            let (mut known, mut chosen) = (Vec::new(), Vec::new());
            for found in engine.all_found()? {
                if (all || found.is_dangling()) && filter.fits(&found) {
                    chosen.push(known.len());
                }
                known.push(Known::from(found));
            }
            for image in chosen.into_iter().map(|at| &known[at]) {
                if engine.users(image)?.is_empty() {
                    engine.untag(image, &known, true, &mut removed)?;
                }
            }
            let before = engine.bytes_held()?;
            engine.parts().metadata.collect()?;
            let bytes = before.saturating_sub(engine.bytes_held()?);
            engine.tell_prune(Subject::Image, bytes);
            let mut answer = removed.answer();
            answer["SpaceReclaimed"] = bytes.into();
            Ok(answer)
        })
        .await
    }

    fn known_images(&self) -> Result<Vec<Known>> {
        Ok(self.all_found()?.map(Known::from).collect())
    }

    /// Removes one name. `known` are all images, of which `removed` are gone.
    fn untag(&self, named: &Known, known: &[Known], force: bool, removed: &mut Removed) -> Result<()> {
        let is_other = |other: &&Known| {
            other.id == named.id
                && other.image.name != named.image.name
                && !removed.names.contains(&other.image.name)
        };
        let others: Vec<&Known> = known.iter().filter(is_other).collect();
        let users = self.users(named)?;
        if others.is_empty() && !users.is_empty() && !force {
            return Err(Error::failed_precondition(format!(
                "image {} is used by container {}; remove that first, or force (-f)",
                familiar(&named.image.name),
                users.join(", ")
            )));
        }
        let images = self.parts().metadata.images(&self.0.caller);
        images.delete(&named.image.name, Some(&named.image.target.digest))?;
        self.tell_image(Some(&named.image.target.digest), "untag", &named.image.name);
        removed.names.insert(named.image.name.clone());
        removed.untagged.push(familiar(&named.image.name));
        if others.is_empty() {
            removed.deleted.push(named.id.to_string());
        }
        removed.held = others.iter().map(|other| familiar(&other.image.name)).collect();
        Ok(())
    }

    /// The containers that were made from an image, by any of its names.
    fn users(&self, named: &Known) -> Result<Vec<String>> {
        let (name, id) = (&named.image.name, named.id.to_string());
        let extensions = self.all()?;
        let extensions = extensions.iter().filter_map(|container| Extension::of(container).ok());
        let from = |extension: &Extension| {
            extension.image_digest == id
                || (extension.image == *name && self.may_be_of(extension, &named.image))
        };
        Ok(extensions.filter(from).map(|extension| extension.name).collect())
    }

    /// Whether a container may be of the image that its image name means now. True if its platform is not this host's,
    /// or if the image cannot be read.
    fn may_be_of(&self, extension: &Extension, image: &Image) -> bool {
        let Ok(platform) = extension.platform.parse::<Platform>() else { return true };
        let described = transfer::describe(&self.parts().metadata, &self.0.caller, &image.target, &platform);
        described.map_or(true, |own| own.manifest.config.digest.to_string() == extension.image_digest)
    }

    /// Total size of blobs and snapshots, in bytes.
    pub(crate) fn bytes_held(&self) -> Result<u64> {
        let parts = self.parts();
        let blobs = parts.metadata.content(&self.0.caller).list(&Filters::all())?;
        let mut bytes: u64 = blobs.iter().map(|blob| blob.size).sum();
        let snapshots = parts.metadata.snapshots(&self.0.caller, &parts.snapshotter)?;
        for snapshot in snapshots.list(&Filters::all())? {
            if snapshot.kind == snapshot::Kind::Committed {
                bytes += snapshots.usage(&snapshot.key)?.bytes;
            }
        }
        Ok(bytes)
    }
}

/// Result of a removal.
#[derive(Default)]
struct Removed {
    /// Removed names, in full.
    names: BTreeSet<String>,
    untagged: Vec<String>,
    deleted: Vec<String>,
    /// Remaining names of an image of which a name was removed.
    held: Vec<String>,
}

impl Removed {
    fn answer(&self) -> Value {
        json!({"Untagged": self.untagged, "Deleted": self.deleted, "StillNamed": self.held})
    }
}
