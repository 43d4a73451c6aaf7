//! Retention of the blobs of unpacked layers: their contents are on disk twice.
//!
//! ```text
//! unpacked, and held by no lease ─┬▶ keep
//!                                 ├▶ recipe   the blob is replaced by a recipe, and rebuilt when it is read
//!                                 └▶ drop     the record is deleted, and the blob with it at the next collection
//! ```
//!
//! Namespaces share the bytes of a blob. Dropping deletes the record of one namespace only; a recipe replaces the
//! bytes if every namespace that has the blob allows it, and none has it leased.
//!
//! Retention runs in the background, some time after a layer was unpacked, and may be stopped at any point: the next
//! run does the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::sync::Arc;

use content::Form;
use metadata::{Caller, Content, Image, Metadata};
use stdx::Mutex;
use types::filter::Filters;
use types::label::gc::ROOT;
use types::{Digest, Error, ErrorKind, Labels, Namespace, Result, UnlessGone};

use crate::contents::contents;
use crate::kept::{Kept, unpacked};

/// Label of a namespace: its own retention, overriding the daemon's.
pub const RETENTION_LABEL: &str = "hoist.content/unpacked";
/// Label of a blob: `none` if no recipe for it would be small enough.
const RECIPE_LABEL: &str = "hoist.content/recipe";
const NO_RECIPE: &str = "none";

/// What happens to the blob of an unpacked layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    Keep,
    /// It is deleted, as with containerd's `discard_unpacked_layers`.
    Drop,
    /// It is replaced by a recipe, which is much smaller, and rebuilt from the layer whenever it is read. A blob that
    /// cannot be rebuilt is kept.
    Recipe,
}

impl FromStr for Retention {
    type Err = Error;

    fn from_str(text: &str) -> Result<Retention> {
        match text {
            "keep" => Ok(Retention::Keep),
            "drop" => Ok(Retention::Drop),
            "recipe" => Ok(Retention::Recipe),
            _ => Err(Error::invalid_argument(format!(
                "invalid retention of unpacked layers {text:?}: expected one of keep, drop, recipe"
            ))),
        }
    }
}

/// The retention of each namespace. Clones share it.
#[derive(Clone)]
pub struct Retentions(Arc<Mutex<Retention>>);

impl Default for Retentions {
    fn default() -> Retentions {
        Retentions::new(Retention::Keep)
    }
}

impl Retentions {
    /// With the retention of namespaces without one of their own.
    pub fn new(own: Retention) -> Retentions {
        Retentions(Arc::new(Mutex::new(own)))
    }

    /// Changes the default from now on. Deleted blobs stay deleted.
    pub fn reconfigure(&self, own: Retention) {
        *self.0.lock() = own;
    }

    /// The retention of a namespace. `InvalidArgument` if its label is not a retention.
    pub fn of(&self, metadata: &Metadata, namespace: &Namespace) -> Result<Retention> {
        let labels = metadata.namespaces().get(namespace).unless_gone()?.unwrap_or_default();
        let own = *self.0.lock();
        let of_label = labels.get(RETENTION_LABEL).map_or(Ok(own), |text| text.parse());
        of_label.map_err(|error| error.context(format!("label {RETENTION_LABEL} of namespace {namespace}")))
    }
}

/// Counts of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retained {
    pub dropped: u64,
    pub recipes: u64,
    /// Blobs kept whole because their layers are directories, so that there is no archive to rebuild them from.
    pub without_archive: u64,
}

/// Applies a namespace's retention to the blobs of its unpacked layers, until `go_on`, which is called before each,
/// returns false.
pub fn retain(
    metadata: &Metadata,
    caller: &Caller,
    retentions: &Retentions,
    go_on: &dyn Fn() -> bool,
) -> Result<Retained> {
    let mut retained = Retained::default();
    let retention = retentions.of(metadata, &caller.namespace)?;
    if retention == Retention::Keep {
        return Ok(retained);
    }
    let others = match retention {
        Retention::Recipe => others(metadata, &caller.namespace, retentions)?,
        Retention::Keep | Retention::Drop => Vec::new(),
    };
    let images = metadata.images(caller).list(&Filters::all())?;
    let (layers, all_are_known) = uses(metadata, caller, &images)?;
    let images = images.into_iter().map(|image| (image.name, image.target.digest)).collect();
    let leased = metadata.leases(caller).content()?;
    let content = metadata.content(caller);
    for (digest, uses) in layers {
        if !go_on() {
            break;
        }
        let Some(blob) = content.info(&digest).unless_gone()? else { continue };
        if !uses.all_unpacked || leased.contains(&digest) {
            continue;
        }
        let done = match retention {
            Retention::Keep => Ok(()),
            Retention::Drop if blob.labels.contains_key(ROOT) || !all_are_known => Ok(()),
            Retention::Drop => match content.discard(&digest, &uses.manifests, &images) {
                // Images were recorded meanwhile: the next run sees which layers they use.
                Err(error) if error.is(ErrorKind::Aborted) => break,
                discarded => discarded.map(|is_discarded| retained.dropped += u64::from(is_discarded)),
            },
            Retention::Recipe if blob.labels.get(RECIPE_LABEL).is_some_and(|value| value == NO_RECIPE) => {
                Ok(())
            }
            Retention::Recipe => match (&uses.kept, content.form(&digest)) {
                (Some(_), Ok(Form::Whole)) if is_wanted_whole(&others, &digest)? => Ok(()),
                (Some(kept), Ok(Form::Whole)) => {
                    keep_recipe(&content, &digest, kept).map(|is_kept| retained.recipes += u64::from(is_kept))
                }
                (None, Ok(Form::Whole)) => {
                    retained.without_archive += 1;
                    Ok(())
                }
                (_, form) => form.map(drop),
            },
        };
        match done {
            // It was removed meanwhile, or is damaged, which is reported when it is used.
            Err(error) if error.is(ErrorKind::NotFound) || error.is(ErrorKind::DataLoss) => {}
            done => done.map_err(|error| error.context(format!("layer {digest}")))?,
        }
    }
    Ok(retained)
}

/// A namespace other than the one being processed.
struct Other {
    content: Content,
    keeps: bool,
    leased: BTreeSet<Digest>,
}

/// All namespaces but one.
fn others(metadata: &Metadata, but: &Namespace, retentions: &Retentions) -> Result<Vec<Other>> {
    let all = metadata.namespaces().list()?.into_iter().map(|(namespace, _)| namespace);
    let other = |namespace: Namespace| {
        // An invalid label is reported when its own namespace is processed; until then the namespace loses nothing.
        let keeps = !matches!(retentions.of(metadata, &namespace), Ok(Retention::Recipe | Retention::Drop));
        let leased = metadata.leases(&namespace).content()?;
        Ok(Other { content: metadata.content(&namespace), keeps, leased })
    };
    all.filter(|namespace| namespace != but).map(other).collect()
}

/// Whether another namespace has a blob and must keep its bytes.
fn is_wanted_whole(others: &[Other], digest: &Digest) -> Result<bool> {
    for Other { content, keeps, leased } in others {
        if leased.contains(digest) {
            return Ok(true);
        }
        match content.info(digest) {
            Err(error) if error.is(ErrorKind::NotFound) => {}
            found if *keeps => return found.map(|_| true),
            found => drop(found?),
        }
    }
    Ok(false)
}

/// Replaces a blob by a recipe. If none is small enough, labels the blob so and returns false.
fn keep_recipe(content: &Content, digest: &Digest, kept: &Kept) -> Result<bool> {
    if content.keep_recipe(digest, &kept.files().data, kept.archive_len())? {
        return Ok(true);
    }
    let labels = Labels::from([(RECIPE_LABEL.to_owned(), NO_RECIPE.to_owned())]);
    content.update(digest, &labels, &[format!("labels.{RECIPE_LABEL}")]).map(|_| false)
}

/// How the images of a namespace use a layer.
#[derive(Default)]
struct Uses {
    all_unpacked: bool,
    /// A kept archive of the layer.
    kept: Option<Kept>,
    manifests: BTreeSet<Digest>,
}

/// Uses by layer, and whether all images could be read: an unreadable image may use any layer.
fn uses(metadata: &Metadata, caller: &Caller, images: &[Image]) -> Result<(BTreeMap<Digest, Uses>, bool)> {
    let mut layers: BTreeMap<Digest, Uses> = BTreeMap::new();
    let mut all_are_known = true;
    let mut seen = BTreeSet::new();
    for image in images {
        let contents = match contents(metadata, caller, &image.target) {
            // Its error is reported when the image is used.
            Err(error) => {
                let is_none = error.is(ErrorKind::InvalidArgument) || error.is(ErrorKind::Unimplemented);
                if is_none || error.is(ErrorKind::DataLoss) {
                    all_are_known &= !error.is(ErrorKind::DataLoss);
                    continue;
                }
                return Err(error.context(format!("image {}", image.name)));
            }
            contents => contents?,
        };
        for variant in contents.variants {
            let Some(manifest) = variant.manifest else { continue };
            if !seen.insert(variant.descriptor.digest.clone()) {
                continue;
            }
            let found = unpacked(metadata, caller, &manifest)?;
            for (at, layer) in manifest.layers.iter().enumerate() {
                let uses = layers
                    .entry(layer.digest.clone())
                    .or_insert_with(|| Uses { all_unpacked: true, ..Uses::default() });
                let mut own = found.iter().filter(|unpacked| unpacked.at == at).peekable();
                uses.all_unpacked &= own.peek().is_some();
                uses.manifests.insert(variant.descriptor.digest.clone());
                uses.kept = uses.kept.take().or(own.find_map(|unpacked| unpacked.kept.clone()));
            }
        }
    }
    Ok((layers, all_are_known))
}
