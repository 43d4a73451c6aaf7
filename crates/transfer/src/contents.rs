//! The blobs of an image, and which of them are in the content store.
//!
//! An image is a tree of documents with blobs as leaves. Several parents may share a child, and a hostile index may
//! reference the same index many times, so every blob is visited once, and their number is bounded. Many manifests
//! may reference one config, too: the bytes of all documents read are bounded, counting each read.
//!
//! An index may reference blobs itself. In a checkpoint, or an index without any image, they belong to every
//! platform. Others stand beside the images, and are parts if they are in the store.

use std::collections::{BTreeMap, BTreeSet};

use metadata::{Caller, Metadata};
use types::descriptor::media_type;
use types::spec::image::{ImageConfig, Manifest};
use types::{Descriptor, Digest, Error, Platform, Result, UnlessGone};

use crate::unpack::{artifact_type, read};

/// Blobs of one image at most: many more than real images have.
const PARTS_MAX: usize = 1 << 16;
/// Bytes of its indexes, manifests and configs at most: many times what images for all platforms have.
const DOCUMENTS_LEN_MAX: u64 = 32 << 20;

/// One blob of an image.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    pub descriptor: Descriptor,
    pub is_here: bool,
}

/// A manifest of an image: the image for one platform, or an artifact.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    pub descriptor: Descriptor,
    /// From the index, or else from the config.
    pub platform: Option<Platform>,
    /// `None` if it is not in the store.
    pub manifest: Option<Manifest>,
    /// `None` for artifacts too.
    pub summary: Option<Summary>,
    /// Blobs that the manifest references and the store does not have.
    pub missing: Vec<Digest>,
    pub(crate) artifact_type: Option<String>,
}

/// Some fields of a config; [`config`] reads all of it, which may be large.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    pub created: Option<String>,
    pub labels: BTreeMap<String, String>,
}

impl Variant {
    /// Whether the store has the manifest and all its blobs.
    pub fn is_whole(&self) -> bool {
        self.manifest.is_some() && self.missing.is_empty()
    }

    /// The type of an artifact, which cannot be run; `None` for an image.
    pub fn artifact_type(&self) -> Option<&str> {
        self.artifact_type.as_deref()
    }

    /// Bytes of the blobs that the manifest references; 0 if the manifest is not in the store.
    pub fn size(&self) -> u64 {
        let blobs = |manifest: &Manifest| {
            let layers = manifest.layers.iter().map(|layer| layer.size);
            layers.fold(manifest.config.size, u64::saturating_add)
        };
        self.manifest.as_ref().map_or(0, blobs)
    }
}

/// The blobs of an image; see [`contents()`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    /// Every blob once, parents before their children.
    pub parts: Vec<Part>,
    /// The manifests, in the order of the indexes.
    pub variants: Vec<Variant>,
    /// Blobs that belong to the index itself, for every platform.
    pub loose: Vec<Part>,
}

impl Contents {
    pub fn missing(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(|part| !part.is_here)
    }

    /// The documents in the store that reference other blobs.
    pub fn documents(&self) -> impl Iterator<Item = &Descriptor> {
        let here = self.parts.iter().filter(|part| part.is_here).map(|part| &part.descriptor);
        here.filter(|found| media_type::is_document(&found.media_type))
    }

    pub fn is_whole(&self) -> bool {
        self.missing().next().is_none()
    }

    /// The first missing blob that every platform needs.
    pub fn missing_loose(&self) -> Option<&Descriptor> {
        self.loose.iter().find(|part| !part.is_here).map(|part| &part.descriptor)
    }

    /// Whether the store has something usable: one complete image, or all blobs of an index that consists of blobs.
    pub fn is_of_use(&self) -> bool {
        let is_there = !self.loose.is_empty() || self.variants.iter().any(Variant::is_whole);
        is_there && self.missing_loose().is_none()
    }

    /// The image that runs best on a platform, among the complete ones.
    pub fn best(&self, platform: &Platform) -> Option<&Variant> {
        let fit = |variant: &Variant| match &variant.platform {
            Some(own) => platform.fit(own),
            None => 1,
        };
        let here = self.variants.iter().filter(|variant| {
            variant.is_whole()
                && variant.artifact_type().is_none()
                && !image::is_attestation(&variant.descriptor)
        });
        // The first of equals, in the author's order.
        here.filter(|variant| fit(variant) > 0).rev().max_by_key(|variant| fit(variant))
    }
}

/// Reads those documents of an image that the store has; the result lists the missing ones. A document that is
/// malformed is `InvalidArgument` or `Unimplemented`; a blob that differs in size from its descriptor is `DataLoss`.
pub fn contents(metadata: &Metadata, caller: &Caller, target: &Descriptor) -> Result<Contents> {
    let mut walk = Walk {
        metadata,
        caller,
        seen: BTreeSet::new(),
        left: DOCUMENTS_LEN_MAX,
        contents: Contents::default(),
    };
    walk.visit(target, 0)?;
    Ok(walk.contents)
}

/// The config of an image. Its manifest must be in the store.
pub fn config(metadata: &Metadata, caller: &Caller, manifest: &Manifest) -> Result<ImageConfig> {
    let bytes = read(metadata, caller, &manifest.config.digest)?;
    image::parse_config(&bytes, manifest.layers.len())
}

struct Walk<'a> {
    metadata: &'a Metadata,
    caller: &'a Caller,
    /// With the media type: the same bytes may be referenced as two types, and both must be valid.
    seen: BTreeSet<(Digest, String)>,
    /// Bytes of documents that may still be read.
    left: u64,
    contents: Contents,
}

impl Walk<'_> {
    fn visit(&mut self, descriptor: &Descriptor, depth: usize) -> Result<()> {
        if !self.is_new(descriptor)? {
            return Ok(());
        }
        let is_here = self.look(descriptor)?;
        if !media_type::is_index(&descriptor.media_type) {
            return self.manifest(descriptor, is_here);
        }
        if depth >= image::INDEX_DEPTH_MAX {
            let message = format!("{}: indexes inside indexes, more than {depth} deep", descriptor.digest);
            return Err(Error::invalid_argument(message));
        }
        if !is_here {
            return Ok(());
        }
        let image::Node::Index(index) = self.node(descriptor)? else {
            unreachable!("a document is what its type says");
        };
        let is_made_of_blobs = image::is_made_of_blobs(&index);
        for child in &index.manifests {
            match media_type::is_document(&child.media_type) {
                true => self.visit(child, depth + 1)?,
                false => self.blob(child, is_made_of_blobs && image::is_blob(child))?,
            }
        }
        Ok(())
    }

    /// Visits a child of an index that is not a document.
    fn blob(&mut self, blob: &Descriptor, is_needed: bool) -> Result<()> {
        if !self.is_new(blob)? || !is_needed && !self.check(blob)? {
            return Ok(());
        }
        let is_here = self.look(blob)?;
        if is_needed {
            self.contents.loose.push(Part { descriptor: blob.clone(), is_here });
        }
        Ok(())
    }

    fn manifest(&mut self, descriptor: &Descriptor, is_here: bool) -> Result<()> {
        let mut variant = Variant {
            descriptor: descriptor.clone(),
            platform: descriptor.platform.clone(),
            manifest: None,
            summary: None,
            missing: Vec::new(),
            artifact_type: None,
        };
        if is_here {
            let image::Node::Manifest(manifest) = self.node(descriptor)? else {
                unreachable!("an index was led elsewhere, and a document is what its type says");
            };
            variant.artifact_type = artifact_type(self.metadata, &manifest).map(str::to_owned);
            self.leaves(&manifest, &mut variant)?;
            variant.manifest = Some(*manifest);
        }
        self.contents.variants.push(variant);
        Ok(())
    }

    /// Visits the config and layers of a manifest.
    fn leaves(&mut self, manifest: &Manifest, variant: &mut Variant) -> Result<()> {
        for child in std::iter::once(&manifest.config).chain(&manifest.layers) {
            let is_here = if self.is_new(child)? { self.look(child)? } else { self.check(child)? };
            if !is_here {
                variant.missing.push(child.digest.clone());
            }
        }
        let has_config = !variant.missing.contains(&manifest.config.digest);
        if has_config && variant.artifact_type.is_none() {
            self.count(&manifest.config)?;
            // Whether its layers match the manifest's is checked when they are unpacked.
            let config = image::read_config(&read(self.metadata, self.caller, &manifest.config.digest)?)?;
            variant.platform.get_or_insert(config.platform);
            let labels = config.config.map(|config| config.labels).unwrap_or_default();
            variant.summary = Some(Summary { created: config.created, labels });
        }
        Ok(())
    }

    fn is_new(&mut self, descriptor: &Descriptor) -> Result<bool> {
        if self.seen.len() >= PARTS_MAX {
            return Err(Error::invalid_argument(format!("an image of more than {PARTS_MAX} blobs")));
        }
        Ok(self.seen.insert((descriptor.digest.clone(), descriptor.media_type.clone())))
    }

    /// Counts a document that is about to be read. Its size has been checked.
    fn count(&mut self, document: &Descriptor) -> Result<()> {
        let left = self.left.checked_sub(document.size);
        self.left = left.ok_or_else(|| {
            Error::invalid_argument(format!("an image with documents of more than {DOCUMENTS_LEN_MAX} bytes"))
        })?;
        Ok(())
    }

    /// Records a blob as a part. Returns whether the store has it.
    fn look(&mut self, descriptor: &Descriptor) -> Result<bool> {
        let is_here = self.check(descriptor)?;
        self.contents.parts.push(Part { descriptor: descriptor.clone(), is_here });
        Ok(is_here)
    }

    fn check(&self, descriptor: &Descriptor) -> Result<bool> {
        let blob = self.metadata.content(self.caller).info(&descriptor.digest).unless_gone()?;
        let Some(blob) = blob else { return Ok(false) };
        if blob.size != descriptor.size {
            return Err(Error::data_loss(format!(
                "blob {} has {} bytes, what names it says {}",
                descriptor.digest, blob.size, descriptor.size
            )));
        }
        Ok(true)
    }

    fn node(&mut self, descriptor: &Descriptor) -> Result<image::Node> {
        self.count(descriptor)?;
        let bytes = read(self.metadata, self.caller, &descriptor.digest)?;
        image::Node::parse(&descriptor.media_type, &bytes)
            .map_err(|error| error.context(format!("read {}", descriptor.digest)))
    }
}
