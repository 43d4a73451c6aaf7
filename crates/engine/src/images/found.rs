//! Images with their parsed documents, and lookup by name, digest or id.

use metadata::Image;
use transfer::{Contents, Summary, Variant};
use types::filter::Filters;
use types::{Digest, Error, ErrorKind, Platform, Reference, Result, Timestamp};

use crate::Engine;
use crate::containers::familiar;

/// Prefix of the name that [`transfer::import`] gives an unnamed image.
const UNNAMED: &str = "docker.io/library/import@";

/// Shortest prefix that is accepted as an abbreviated id.
const ID_PREFIX_LEN_MIN: usize = 4;

/// An image record with its parsed documents.
pub(crate) struct Found {
    pub(crate) image: Image,
    pub(crate) reference: Option<Reference>,
    pub(crate) contents: Contents,
}

impl Found {
    /// The variant for this host's platform; if there is none, the first that was pulled.
    pub(crate) fn variant(&self) -> Option<&Variant> {
        let images = || self.contents.variants.iter().filter(|variant| variant.manifest.is_some());
        self.contents
            .best(&Platform::host())
            .or_else(|| images().find(|variant| variant.summary.is_some()))
            .or_else(|| images().next())
    }

    /// The summary of its config, if it is an image.
    pub(crate) fn summary(&self) -> Option<&Summary> {
        self.variant().and_then(|variant| variant.summary.as_ref())
    }

    /// Docker's image id, the digest of the config; without a config, the digest of the target.
    pub(crate) fn id(&self) -> &Digest {
        let manifest = self.variant().filter(|variant| variant.summary.is_some());
        let manifest = manifest.and_then(|variant| variant.manifest.as_ref());
        manifest.map_or(&self.image.target.digest, |manifest| &manifest.config.digest)
    }

    pub(crate) fn created(&self) -> Option<Timestamp> {
        self.summary()?.created.as_deref()?.parse().ok()
    }

    /// Size of its layers' blobs, in bytes.
    pub(crate) fn size(&self) -> u64 {
        let layers = self.variant().and_then(|variant| variant.manifest.as_ref());
        layers.map_or(self.image.target.size, |manifest| {
            manifest.layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.size))
        })
    }

    /// Whether no name but its own digest refers to it.
    pub(crate) fn is_dangling(&self) -> bool {
        self.image.name.starts_with(UNNAMED)
    }

    /// Whether a digest, or a prefix of one, means this image.
    fn has_digest(&self, hex: &str) -> bool {
        let manifests = self.contents.variants.iter().map(|variant| &variant.descriptor.digest);
        let all = [self.id(), &self.image.target.digest].into_iter().chain(manifests);
        all.into_iter().any(|digest| digest.hex().starts_with(hex))
    }
}

/// The part of [`Found`] that is kept when all images are held at once: their documents would take too much memory.
pub(crate) struct Known {
    pub(crate) image: Image,
    /// See [`Found::id`].
    pub(crate) id: Digest,
}

impl From<Found> for Known {
    fn from(found: Found) -> Known {
        Known { id: found.id().clone(), image: found.image }
    }
}

/// The image names that a word refers to.
pub(crate) enum Meant {
    /// A single image, by name.
    Name(Box<Image>),
    /// All names of the image with this id.
    Id(Vec<Known>),
}

impl Engine {
    pub(crate) fn found(&self, image: Image) -> Found {
        let reference = image.name.parse().ok();
        let parts = self.parts();
        // An image with unreadable documents is listed all the same, and can be removed.
        let contents = transfer::contents(&parts.metadata, &self.0.caller, &image.target).unwrap_or_default();
        Found { image, reference, contents }
    }

    /// All images; the documents of each are read when the iterator reaches it.
    pub(crate) fn all_found(&self) -> Result<impl Iterator<Item = Found>> {
        let images = self.parts().metadata.images(&self.0.caller).list(&Filters::all())?;
        Ok(images.into_iter().map(|image| self.found(image)))
    }

    /// Finds an image by name, digest, id or unique prefix of an id.
    pub(crate) fn find_image(&self, text: &str) -> Result<Image> {
        match self.meant(text)? {
            Meant::Name(image) => Ok(*image),
            // All names of an id mean the same image.
            Meant::Id(mut known) => Ok(known.swap_remove(0).image),
        }
    }

    /// Resolves a word. An id prefix of several images is an error that names them.
    pub(crate) fn meant(&self, text: &str) -> Result<Meant> {
        let images = self.parts().metadata.images(&self.0.caller);
        // Starts like Docker's message, which scripts look for.
        let missing = || {
            Error::not_found(format!(
                "No such image: {text}; `hoist images` lists those that are here, and `hoist pull` fetches others"
            ))
        };
        let reference = text.parse::<Reference>();
        if let Ok(reference) = &reference {
            match images.get(&reference.to_string()) {
                Err(error) if error.is(ErrorKind::NotFound) => {}
                found => return found.map(|image| Meant::Name(Box::new(image))),
            }
            if let Some(digest) = reference.digest() {
                let same = |image: &Image| {
                    let name = image.name.parse::<Reference>();
                    image.target.digest == *digest && name.is_ok_and(|name| name.name() == reference.name())
                };
                let found = images.list(&Filters::all())?.into_iter().find(same);
                return found.map(|image| Meant::Name(Box::new(image))).ok_or_else(missing);
            }
        }
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if hex.len() < ID_PREFIX_LEN_MIN || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            reference?;
            return Err(missing());
        }
        let known: Vec<Known> =
            self.all_found()?.filter(|found| found.has_digest(hex)).map(Known::from).collect();
        let first = known.first().ok_or_else(missing)?;
        if known.iter().any(|other| other.id != first.id) {
            let names: Vec<String> = known
                .iter()
                .map(|known| format!("{} ({})", familiar(&known.image.name), known.id.short()))
                .collect();
            return Err(Error::invalid_argument(format!(
                "the id {text} fits several images: {}; write more of it",
                names.join(", ")
            )));
        }
        Ok(Meant::Id(known))
    }
}
