//! What an image consists of, and which of it is here.
//!
//! An image is a tree of documents with blobs as leaves. Several parents may share a child, and a hostile
//! index names the same index many times over, so every blob is looked at once, and their number is bounded. Many
//! manifests may name one config too: the bytes of all documents that are read have a bound, each time they are read.
//!
//! An index may name blobs itself. Those of a checkpoint, or of an index without any image, are parts of what it is for
//! every platform. Others stand beside the images, and are parts if they are here.

use std::collections::{BTreeMap, BTreeSet};

use metadata::{Caller, Metadata};
use types::descriptor::media_type;
use types::spec::image::{ImageConfig, Manifest};
use types::{Descriptor, Digest, Error, Platform, Result, UnlessGone};

use crate::unpack::{artifact_type, read};

/// Blobs of one image: many more than anybody makes.
const PARTS_MAX: usize = 1 << 16;
/// Bytes of its indexes, manifests and configs: many times what images for all platforms have.
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
    /// What the index says, or the config.
    pub platform: Option<Platform>,
    /// None if it is not here.
    pub manifest: Option<Manifest>,
    /// None for artifacts too.
    pub summary: Option<Summary>,
    /// Blobs that are named and not here.
    pub missing: Vec<Digest>,
    pub(crate) artifact_type: Option<String>,
}

/// What is kept of a config beside what it describes; [`config`] reads the rest, which may be large.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    pub created: Option<String>,
    pub labels: BTreeMap<String, String>,
}

impl Variant {
    /// Everything of it is here.
    pub fn is_whole(&self) -> bool {
        self.manifest.is_some() && self.missing.is_empty()
    }

    /// The type of an artifact, which cannot be run.
    pub fn artifact_type(&self) -> Option<&str> {
        self.artifact_type.as_deref()
    }

    /// Bytes of the blobs that the manifest names; 0 if it is not here.
    pub fn size(&self) -> u64 {
        let blobs = |manifest: &Manifest| {
            let layers = manifest.layers.iter().map(|layer| layer.size);
            layers.fold(manifest.config.size, u64::saturating_add)
        };
        self.manifest.as_ref().map_or(0, blobs)
    }
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    /// Every blob once, documents before what they name.
    pub parts: Vec<Part>,
    /// The manifests in the order of the indexes.
    pub variants: Vec<Variant>,
    /// Blobs that an index is made of, without an image between.
    pub loose: Vec<Part>,
}

impl Contents {
    pub fn missing(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(|part| !part.is_here)
    }

    /// The documents that are here and name other blobs.
    pub fn documents(&self) -> impl Iterator<Item = &Descriptor> {
        let here = self.parts.iter().filter(|part| part.is_here).map(|part| &part.descriptor);
        here.filter(|found| media_type::is_document(&found.media_type))
    }

    pub fn is_whole(&self) -> bool {
        self.missing().next().is_none()
    }

    /// The first of the blobs that are needed for every platform and not here.
    pub fn missing_loose(&self) -> Option<&Descriptor> {
        self.loose.iter().find(|part| !part.is_here).map(|part| &part.descriptor)
    }

    /// Whether something can be done with what is here: one image, or all blobs of what is not an image only.
    pub fn is_of_use(&self) -> bool {
        let is_there = !self.loose.is_empty() || self.variants.iter().any(Variant::is_whole);
        is_there && self.missing_loose().is_none()
    }

    /// The image that runs best on a platform, among those of which everything is here.
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
        // The first of equals, as the author ordered them.
        here.filter(|variant| fit(variant) > 0).rev().max_by_key(|variant| fit(variant))
    }
}

/// Reads the documents of an image that are here. Those that are not are named in the answer; those that
/// cannot be understood, or differ in size from what names them, are an error.
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

/// The config of an image whose manifest is here.
pub fn config(metadata: &Metadata, caller: &Caller, manifest: &Manifest) -> Result<ImageConfig> {
    let bytes = read(metadata, caller, &manifest.config.digest)?;
    image::parse_config(&bytes, manifest.layers.len())
}

struct Walk<'a> {
    metadata: &'a Metadata,
    caller: &'a Caller,
    /// By type too: the same bytes may be taken for two things, and each must hold.
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

    /// What an index names and is no document.
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

    /// Config and layers of a manifest.
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
            // Whether its layers are those of the manifest is asked by whoever unpacks them.
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

    /// Counts a document that is about to be read. Its size was found right.
    fn count(&mut self, document: &Descriptor) -> Result<()> {
        let left = self.left.checked_sub(document.size);
        self.left = left.ok_or_else(|| {
            Error::invalid_argument(format!("an image with documents of more than {DOCUMENTS_LEN_MAX} bytes"))
        })?;
        Ok(())
    }

    /// Notes a blob, and says whether it is here.
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
