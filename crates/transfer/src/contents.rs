//! What an image consists of, and which of it is here.
//!
//! An image is a tree of documents with blobs as leaves. Several parents may share a child, and a hostile
//! index names the same index many times over, so every blob is looked at once, and their number is bounded.
//!
//! An index may name blobs itself, beside images or without any, as that of a checkpoint does: those are parts of what
//! it is for every platform.

use std::collections::BTreeSet;

use metadata::{Caller, Metadata};
use types::descriptor::media_type;
use types::spec::image::{ImageConfig, Manifest};
use types::{Descriptor, Digest, Error, ErrorKind, Platform, Result};

use crate::unpack::read;

/// Blobs of one image: many more than anybody makes.
const PARTS_MAX: usize = 1 << 16;

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
    pub config: Option<ImageConfig>,
    /// Blobs that are named and not here.
    pub missing: Vec<Digest>,
}

impl Variant {
    /// Everything of it is here.
    pub fn is_whole(&self) -> bool {
        self.manifest.is_some() && self.missing.is_empty()
    }

    /// The type of an artifact, which cannot be run.
    pub fn artifact_type(&self) -> Option<&str> {
        self.manifest.as_ref().and_then(image::artifact_type)
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
    /// Blobs that an index names itself.
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

    /// Whether something can be done with what is here: one image, or what is not an image only, with all its blobs.
    pub fn is_of_use(&self) -> bool {
        let has_image = self.variants.is_empty() || self.variants.iter().any(Variant::is_whole);
        let is_empty = self.variants.is_empty() && self.loose.is_empty();
        has_image && !is_empty && self.loose.iter().all(|part| part.is_here)
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
    let mut walk = Walk { metadata, caller, seen: BTreeSet::new(), contents: Contents::default() };
    walk.visit(target, 0)?;
    Ok(walk.contents)
}

struct Walk<'a> {
    metadata: &'a Metadata,
    caller: &'a Caller,
    /// By type too: the same bytes may be taken for two things, and each must hold.
    seen: BTreeSet<(Digest, String)>,
    contents: Contents,
}

impl Walk<'_> {
    fn visit(&mut self, descriptor: &Descriptor, depth: usize) -> Result<()> {
        if !self.seen.insert((descriptor.digest.clone(), descriptor.media_type.clone())) {
            return Ok(());
        }
        let is_here = self.look(descriptor)?;
        // An index may name anything; what is no document is a blob and nothing more.
        if depth > 0 && !media_type::is_document(&descriptor.media_type) {
            self.contents.loose.push(Part { descriptor: descriptor.clone(), is_here });
            return Ok(());
        }
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
        let node = self.node(descriptor)?;
        node.children().into_iter().try_for_each(|child| self.visit(child, depth + 1))
    }

    fn manifest(&mut self, descriptor: &Descriptor, is_here: bool) -> Result<()> {
        let mut variant = Variant {
            descriptor: descriptor.clone(),
            platform: descriptor.platform.clone(),
            manifest: None,
            config: None,
            missing: Vec::new(),
        };
        if is_here {
            let image::Node::Manifest(manifest) = self.node(descriptor)? else {
                unreachable!("an index was led elsewhere, and a document is what its type says");
            };
            self.leaves(&manifest, &mut variant)?;
            variant.manifest = Some(*manifest);
        }
        self.contents.variants.push(variant);
        Ok(())
    }

    /// Config and layers of a manifest.
    fn leaves(&mut self, manifest: &Manifest, variant: &mut Variant) -> Result<()> {
        for child in std::iter::once(&manifest.config).chain(&manifest.layers) {
            let is_new = self.seen.insert((child.digest.clone(), child.media_type.clone()));
            let is_here = if is_new { self.look(child)? } else { self.check(child)? };
            if !is_here {
                variant.missing.push(child.digest.clone());
            }
        }
        let has_config = !variant.missing.contains(&manifest.config.digest);
        if has_config && image::artifact_type(manifest).is_none() {
            let bytes = read(self.metadata, self.caller, &manifest.config.digest)?;
            let config = image::parse_config(&bytes, manifest.layers.len())?;
            variant.platform.get_or_insert_with(|| config.platform.clone());
            variant.config = Some(config);
        }
        Ok(())
    }

    /// Notes a blob, and says whether it is here.
    fn look(&mut self, descriptor: &Descriptor) -> Result<bool> {
        if self.contents.parts.len() >= PARTS_MAX {
            return Err(Error::invalid_argument(format!("an image of more than {PARTS_MAX} blobs")));
        }
        let is_here = self.check(descriptor)?;
        self.contents.parts.push(Part { descriptor: descriptor.clone(), is_here });
        Ok(is_here)
    }

    fn check(&self, descriptor: &Descriptor) -> Result<bool> {
        let blob = match self.metadata.content(self.caller).info(&descriptor.digest) {
            Err(error) if error.is(ErrorKind::NotFound) => return Ok(false),
            blob => blob?,
        };
        if blob.size != descriptor.size {
            return Err(Error::data_loss(format!(
                "blob {} has {} bytes, what names it says {}",
                descriptor.digest, blob.size, descriptor.size
            )));
        }
        Ok(true)
    }

    fn node(&self, descriptor: &Descriptor) -> Result<image::Node> {
        let bytes = read(self.metadata, self.caller, &descriptor.digest)?;
        image::Node::parse(&descriptor.media_type, &bytes)
            .map_err(|error| error.context(format!("read {}", descriptor.digest)))
    }
}
