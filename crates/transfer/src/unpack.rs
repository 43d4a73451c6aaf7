//! From layers to trees.
//!
//! A layer is extracted into a snapshot without a parent, side by side with others, and gets its parent when
//! it is committed. Snapshotters that cannot do that get layer upon layer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard};

use diff::spans::Record;
use diff::{ApplyOptions, Limits, Origin, Whiteouts, apply, store};
use linux::beneath::Root;
use linux::mount::open_mounts;
use linux::tree_mounts::durable;
use metadata::{Caller, LayerSource, Metadata, Snapshots};
use rustix::fs::{
    Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, fchmod, fchown, fgetxattr, flistxattr,
    fsetxattr, fstat, futimens,
};
use rustix::io::Errno;
use snapshot::{Barrier, LayerFiles, Merged};
use stdx::Mutex;
use types::label::gc::SNAPSHOT;
use types::spec::image::{Index, Manifest};
use types::{Context, Descriptor, Digest, Error, ErrorKind, Labels, Mount, Platform, Result};

use crate::kept::Kept;
use crate::layer::UNCOMPRESSED;
use crate::layers::Layers;
use crate::{Lease, Progress, Report, add_labels, tell};

/// Bytes of an attribute, and of the names of all of a file's (xattr(7)).
const XATTRS_LEN_MAX: usize = 64 * 1024;

/// Labels of a layer's tree: its name, the digest of what it is made of, and the name of the tree below.
const REF: &str = "containerd.io/snapshot.ref";
const DIFF_ID: &str = "containerd.io/snapshot/diff-id";
const PARENT_CHAIN_ID: &str = "containerd.io/snapshot/parent-chain-id";

/// How often a snapshotter is asked again that has something by a tree's name which is gone when it is looked for.
const PREPARE_TRIES: u32 = 3;

/// Makes the trees of an image whose blobs are all there, and returns the name of the topmost.
pub fn unpack(
    metadata: &Metadata,
    caller: &Caller,
    snapshotter: &str,
    target: &Descriptor,
    platform: &Platform,
    report: Option<&Report>,
) -> Result<Option<String>> {
    Lease::hold(metadata, caller, |caller| {
        let manifest = find_manifest(metadata, caller, target, platform)?;
        let trees = Trees::of(metadata, caller, snapshotter, &manifest)?;
        let digest = |at: usize| manifest.layers[at].digest.clone();
        let first = trees.offer(trees.first_missing()?)?;
        trees.make(
            first..manifest.layers.len(),
            |at| {
                tell(report, Progress::Extracting { digest: digest(at) });
                trees.extract_stored(at, &digest(at))
            },
            |at| tell(report, Progress::Done { digest: digest(at) }),
        )?;
        trees.keep_by_config(&manifest.config.digest)?;
        Ok(trees.chain.last().map(ToString::to_string))
    })
}

/// What an image is, as its documents in the store say.
pub struct Described {
    pub manifest: Manifest,
    pub config: types::spec::image::ImageConfig,
    /// The name of its topmost tree; none for an image without layers.
    pub top: Option<String>,
}

/// Reads the documents of an image.
pub fn describe(
    metadata: &Metadata,
    caller: &Caller,
    target: &Descriptor,
    platform: &Platform,
) -> Result<Described> {
    let manifest = find_manifest(metadata, caller, target, platform)?;
    if let Some(kind) = artifact_type(metadata, &manifest) {
        return Err(Error::failed_precondition(format!(
            "it is an artifact of type {kind}, not an image to run"
        )));
    }
    let bytes = read(metadata, caller, &manifest.config.digest)?;
    let config = image::parse_config(&bytes, manifest.layers.len())?;
    let top = image::chain_ids(&config.rootfs.diff_ids).last().map(ToString::to_string);
    Ok(Described { manifest, config, top })
}

/// What a manifest is if it is no image to run.
pub(crate) fn artifact_type<'m>(metadata: &Metadata, manifest: &'m Manifest) -> Option<&'m str> {
    image::artifact_type(manifest, |kind| is_known(metadata, kind))
}

/// Whether layers of a media type go through stream processors.
fn is_processed(metadata: &Metadata, media_type: &str) -> bool {
    metadata.processors().names(media_type).is_some()
}

/// Whether somebody else makes file systems of layers of a media type.
fn is_known(metadata: &Metadata, media_type: &str) -> bool {
    is_processed(metadata, media_type) || metadata.differs().are_asked(media_type)
}

/// The bytes of a layer whose blob is here, as they are to be unpacked.
pub(crate) fn open_layer(metadata: &Metadata, caller: &Caller, layer: &Descriptor) -> Result<LayerSource> {
    let blob = metadata.content(caller).reader(&layer.digest)?;
    metadata.processors().open(layer, Box::new(blob))
}

/// Follows an index to the image for a platform.
pub(crate) fn find_manifest(
    metadata: &Metadata,
    caller: &Caller,
    target: &Descriptor,
    platform: &Platform,
) -> Result<Manifest> {
    let mut descriptor = target.clone();
    for _ in 0..=image::INDEX_DEPTH_MAX {
        let bytes = read(metadata, caller, &descriptor.digest)?;
        match image::Node::parse(&descriptor.media_type, &bytes)? {
            image::Node::Manifest(manifest) => return Ok(*manifest),
            image::Node::Index(index) => {
                let known = known_platforms(metadata, caller, &index);
                descriptor = image::choose(&index, platform, &known)?.clone();
            }
        }
    }
    Err(Error::invalid_argument(format!("{}: indexes inside indexes, too deep", target.digest)))
}

/// What images of an index are for that do not say it there, as far as they are here.
pub(crate) fn known_platforms(metadata: &Metadata, caller: &Caller, index: &Index) -> image::Platforms {
    image::Platforms::ask(index, |child| read(metadata, caller, &child.digest).ok())
}

/// A small blob.
pub(crate) fn read(metadata: &Metadata, caller: &Caller, digest: &Digest) -> Result<Vec<u8>> {
    let what = || format!("read {digest}");
    let reader = metadata.content(caller).reader(digest).context(what)?;
    let bytes = stdx::read_at_most(reader, image::DOCUMENT_LEN_MAX).context(what)?;
    let too_large = || Error::invalid_argument(format!("{digest} is too large for a manifest or config"));
    bytes.ok_or_else(too_large)
}

/// What became of a layer that was to be extracted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extracted {
    /// It is to be committed.
    Here,
    /// The snapshotter had its tree already.
    Taken,
}

/// The trees of one image, lowest first.
#[derive(Clone)]
pub(crate) struct Trees {
    metadata: Metadata,
    caller: Caller,
    snapshotter: String,
    /// Another program has them, which may have layers that nobody gave it.
    is_elsewhere: bool,
    layers: Arc<Layers>,
    /// Others are asked for its layers, who have to see those below.
    has_differs: bool,
    diff_ids: Vec<Digest>,
    pub(crate) chain: Vec<Digest>,
    /// Distinguishes the work of this call from others on the same layers.
    nonce: String,
    /// For the layers of this call. Opened before the first of them is written.
    barrier: Arc<Barrier>,
    /// Where the snapshotter has none: by layer, for the file system on which it is.
    barriers: Arc<Mutex<BTreeMap<usize, Barrier>>>,
    /// Directories that a layer has without saying how they look, by layer.
    implied: Arc<Mutex<BTreeMap<usize, Vec<PathBuf>>>>,
    ahead: Arc<Mutex<Ahead>>,
}

/// Layers that are merged as soon as the last of them is extracted.
#[derive(Default)]
struct Ahead {
    layers: Range<usize>,
    /// Those of them that are still to come.
    left: BTreeSet<usize>,
    /// What became of it, once it was tried.
    merged: Option<Option<Merged>>,
}

impl Trees {
    /// Reads the config, which must be there.
    pub(crate) fn of(
        metadata: &Metadata,
        caller: &Caller,
        snapshotter: &str,
        manifest: &Manifest,
    ) -> Result<Trees> {
        let check = |layer| image::check_layer(layer, |kind| is_known(metadata, kind));
        manifest.layers.iter().try_for_each(check)?;
        let bytes = read(metadata, caller, &manifest.config.digest)?;
        let config = image::parse_config(&bytes, manifest.layers.len())?;
        let chain = image::chain_ids(&config.rootfs.diff_ids);
        let nonce = caller.lease.as_ref().map(ToString::to_string).unwrap_or_default();
        let snapshotter = snapshot::canonical_name(snapshotter).to_owned();
        let snapshots = metadata.snapshots(caller, &snapshotter)?;
        Ok(Trees {
            metadata: metadata.clone(),
            caller: caller.clone(),
            is_elsewhere: snapshots.is_elsewhere(),
            barrier: Arc::new(snapshots.barrier()?),
            barriers: Arc::default(),
            snapshotter,
            layers: Arc::new(Layers::of(manifest)),
            has_differs: manifest.layers.iter().any(|layer| metadata.differs().are_asked(&layer.media_type)),
            diff_ids: config.rootfs.diff_ids,
            chain,
            nonce,
            implied: Arc::default(),
            ahead: Arc::default(),
        })
    }

    /// Has the snapshotter told of which image the layers are, if it wants to know.
    pub(crate) fn of_image(mut self, name: &str, manifest: &Digest) -> Result<Trees> {
        if self.metadata.snapshots(&self.caller, &self.snapshotter)?.wants_origin() {
            self.layers = Arc::new(self.layers.of_image(name, manifest));
        }
        Ok(self)
    }

    /// Whether the snapshotter may have layers that nobody gave it: what it has need not be fetched.
    pub(crate) fn is_elsewhere(&self) -> bool {
        self.is_elsewhere
    }

    /// Asks a snapshotter of others for layers from one on, until there is one that it has not. Layers below that
    /// have their trees, and its own is prepared.
    pub(crate) fn offer(&self, from: usize) -> Result<usize> {
        if self.is_elsewhere {
            for at in from..self.chain.len() {
                if self.prepare(at)?.is_some() {
                    return Ok(at);
                }
            }
            return Ok(self.chain.len());
        }
        Ok(from)
    }

    /// Layers below this one have their trees, which the caller's lease holds from now on: what once kept them may
    /// be gone.
    pub(crate) fn first_missing(&self) -> Result<usize> {
        let snapshots = self.metadata.snapshots(&self.caller, &self.snapshotter)?;
        for (at, name) in self.chain.iter().enumerate().rev() {
            match snapshots.hold(&name.to_string()) {
                Ok(()) => return Ok(at + 1),
                Err(error) if error.is(ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(0)
    }

    /// Of the layers below a place, those whose trees are visibly damaged.
    pub(crate) fn damaged_below(&self, first: usize) -> Result<Vec<(usize, Kept)>> {
        let mut damaged = Vec::new();
        for at in 0..first {
            let kept = Kept::find(
                &self.metadata,
                &self.caller,
                &self.snapshotter,
                &self.chain[at],
                &self.diff_ids[at],
            )?;
            let Some(kept) = kept else { continue };
            match kept.files().look() {
                Err(error) if error.is(ErrorKind::DataLoss) => damaged.push((at, kept)),
                looked => looked?,
            }
        }
        Ok(damaged)
    }

    /// The bytes of a layer whose blob is here, as they are to be unpacked.
    pub(crate) fn open(&self, at: usize) -> Result<LayerSource> {
        open_layer(&self.metadata, &self.caller, self.layers.layer(at))
    }

    /// Whether a layer goes through stream processors. It is extracted from the store then: they get no bytes before
    /// those were found right, and no host waits for them.
    pub(crate) fn is_processed(&self, at: usize) -> bool {
        is_processed(&self.metadata, &self.layers.layer(at).media_type)
    }

    /// Whether others decide how fast some layers are made.
    pub(crate) fn wait_for_others(&self, mut layers: Range<usize>) -> bool {
        self.has_differs || layers.any(|at| self.is_processed(at))
    }

    /// Whether layers may be extracted side by side.
    pub(crate) fn can_rebase(&self) -> bool {
        self.snapshotter == snapshot::Overlay::NAME && !self.has_differs
    }

    fn key(&self, at: usize) -> String {
        format!("extract-{}-{at} {}", self.nonce, self.chain[at])
    }

    /// Where a layer is to be extracted to; none if its tree is there, which the caller's lease holds then.
    ///
    /// A snapshotter of others is told which tree it is going to be: it may have that, or get it by itself.
    fn prepare(&self, at: usize) -> Result<Option<Vec<Mount>>> {
        let (key, name) = (self.key(at), self.chain[at].to_string());
        let snapshots = self.metadata.snapshots(&self.caller, &self.snapshotter)?;
        let below = at.checked_sub(1).filter(|_| !self.can_rebase());
        let parent = below.map(|below| self.chain[below].to_string());
        if !self.is_elsewhere {
            return snapshots.prepare(&key, parent.as_deref(), Labels::new()).map(Some);
        }
        let mut tries = PREPARE_TRIES;
        loop {
            tries -= 1;
            let taken = match snapshots.prepare(&key, parent.as_deref(), self.labels(at)) {
                Err(error) if error.is(ErrorKind::AlreadyExists) => error,
                prepared => return prepared.map(Some),
            };
            match snapshots.hold(&name) {
                Ok(()) => return Ok(None),
                Err(error) if error.is(ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
            // It was offered before.
            match snapshots.mounts(&key) {
                Ok(mounts) => return Ok(Some(mounts)),
                Err(error) if error.is(ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
            if tries == 0 {
                return Err(taken.context(format!("prepare layer {at} as {name}")));
            }
        }
    }

    /// Extracts a layer from its blob and checks its diff id. The tree is not visible before [`Trees::commit`].
    /// `Unavailable` if it would have to wait for others, and the blob's origin does not let it.
    pub(crate) fn extract(
        &self,
        at: usize,
        digest: &Digest,
        source: impl Read + Send,
        origin: Origin,
    ) -> Result<Extracted> {
        self.extract_from(at, digest, || Ok(source), origin)
    }

    /// Extracts a layer from a source that is asked for only if it is needed.
    fn extract_from<R: Read + Send>(
        &self,
        at: usize,
        digest: &Digest,
        source: impl FnOnce() -> Result<R>,
        origin: Origin,
    ) -> Result<Extracted> {
        let Some(mounts) = self.prepare(at)? else { return Ok(Extracted::Taken) };
        if !self.can_rebase() {
            self.barriers().insert(at, barrier_of(&mounts)?);
        }
        let limits = Limits { origin, ..Limits::default() };
        let extracted = self.apply_elsewhere(at, &mounts).and_then(|is_applied| match is_applied {
            true => Ok(()),
            false => {
                source().and_then(|source| self.extract_to(at, Blob { digest, source, limits }, &mounts))
            }
        });
        if extracted.is_err() {
            // The error that counts is the first; the lease lets go of it otherwise.
            let _ = self.discard(at);
        }
        extracted.map(|()| Extracted::Here)
    }

    /// Has a layer applied by a differ of others, if one knows how.
    fn apply_elsewhere(&self, at: usize, mounts: &[Mount]) -> Result<bool> {
        if !self.has_differs {
            return Ok(false);
        }
        match self.metadata.differs().apply(&self.caller, self.layers.layer(at), mounts)? {
            Some(applied) => {
                let checked = self.check_diff_id(at, &applied.diff_id);
                checked.map(|()| true).map_err(|error| error.context(format!("differ {}", applied.by)))
            }
            None => Ok(false),
        }
    }

    fn extract_to(&self, at: usize, blob: Blob<'_, impl Read + Send>, mounts: &[Mount]) -> Result<()> {
        let snapshots = self.metadata.snapshots(&self.caller, &self.snapshotter)?;
        match snapshots.layer_files(&self.key(at))? {
            Some(files) => {
                let files = if self.chain.len() > 1 { files.merged_with_others() } else { files };
                self.store_into(at, blob, &files)
            }
            None => self.extract_into(at, blob, mounts),
        }
    }

    /// Extracts a layer whose blob is there.
    pub(crate) fn extract_stored(&self, at: usize, digest: &Digest) -> Result<Extracted> {
        let kind = &self.layers.layer(at).media_type;
        let extracted = match self.metadata.processors().names(kind) {
            None => self.extract_from(at, digest, || self.open(at), Origin::Stored)?,
            // They may keep it waiting as a host may, and what they make of it is what they are to answer for.
            Some(names) => {
                self.extract_from(at, digest, || self.open(at), Origin::Coming).map_err(|error| {
                    error.context(format!("layer of type {kind}, by stream processor {names}"))
                })?
            }
        };
        if extracted == Extracted::Taken {
            return Ok(extracted);
        }
        match add_labels(&self.metadata.content(&self.caller), digest, &self.label_of_blob(at)) {
            // Taken away meanwhile: its tree is right without.
            Err(error) if !error.is(ErrorKind::NotFound) => Err(error),
            _ => Ok(extracted),
        }
    }

    /// What a layer's blob says once it was extracted.
    pub(crate) fn label_of_blob(&self, at: usize) -> Labels {
        Labels::from([(UNCOMPRESSED.to_owned(), self.diff_ids[at].to_string())])
    }

    /// Takes back what was extracted of a layer whose own bytes turned out to be wrong.
    pub(crate) fn discard(&self, at: usize) -> Result<()> {
        self.implied.lock().remove(&at);
        self.metadata.snapshots(&self.caller, &self.snapshotter)?.remove(&self.key(at))
    }

    /// Keeps a layer as it came. Directories without an entry of their own are the snapshotter's care.
    fn store_into(&self, at: usize, blob: Blob<'_, impl Read + Send>, files: &LayerFiles) -> Result<()> {
        files.write(|new| {
            // What a program makes of it has other spans than the blob.
            let record = new.record.filter(|_| !self.is_processed(at));
            let record = record.map(|to| Record { blob: blob.digest, to });
            let stored = store(blob.source, blob.limits, new.data, record)?;
            self.check_diff_id(at, &stored.diff_id)?;
            let (bytes, helped) = (stored.size, stored.helped_len);
            tracing::debug!(layer = %blob.digest, bytes, helped, "unpacked");
            Ok(stored.tree)
        })
    }

    fn check_diff_id(&self, at: usize, found: &Digest) -> Result<()> {
        if *found == self.diff_ids[at] {
            return Ok(());
        }
        Err(Error::data_loss(format!(
            "layer {at} unpacks to {found}, the image's config says {}",
            self.diff_ids[at]
        )))
    }

    fn extract_into(&self, at: usize, blob: Blob<'_, impl Read + Send>, mounts: &[Mount]) -> Result<()> {
        let whiteouts = if self.can_rebase() { Whiteouts::Overlay } else { Whiteouts::Remove };
        let is_bind =
            |mount: &Mount| mount.options.iter().any(|option| option == "rbind" || option == "bind");
        let root = match mounts {
            [only] if is_bind(only) => {
                File::open(&only.source).context(|| format!("open {}", only.source))?.into()
            }
            // Mounted where nobody sees it.
            _ => open_mounts(&durable(mounts.to_vec()))?,
        };
        let applied = apply(blob.source, ApplyOptions { whiteouts, limits: blob.limits }, root.as_fd())?;
        self.check_diff_id(at, &applied.diff_id)?;
        if self.can_rebase() && at > 0 && !applied.implied.is_empty() {
            self.implied.lock().insert(at, applied.implied);
        }
        Ok(())
    }

    /// Gives the directories that layers have without an entry of their own, and their roots, the metadata that they have in the
    /// layers below, which they cover.
    fn fill_implied(&self, layers: Range<usize>, snapshots: &Snapshots) -> Result<()> {
        let implied: Vec<(usize, Vec<PathBuf>)> = {
            let mut implied = self.implied.lock();
            layers.clone().filter_map(|at| Some((at, implied.remove(&at)?))).collect()
        };
        if implied.is_empty() {
            return Ok(());
        }
        let key = format!("below-{}", self.key(layers.start));
        let committed = layers.start.checked_sub(1).map(|below| self.chain[below].to_string());
        let committed = match &committed {
            Some(below) => snapshots.view(&key, Some(below), Labels::new())?,
            None => Vec::new(),
        };
        // The lowest first: those above look at it.
        let filled = implied.iter().try_for_each(|(at, paths)| {
            // The root looks as the one right below, which is filled by now: nearly all layers have no entry of theirs.
            let is_root_alone = paths.iter().all(|path| path.as_os_str().is_empty());
            let depth = if is_root_alone { 1 } else { usize::MAX };
            let own = (layers.start..*at).rev().take(depth).map(|below| snapshots.mounts(&self.key(below)));
            let own = own.collect::<Result<Vec<_>>>()?.concat();
            let below = own.into_iter().chain(committed.clone()).take(depth).collect();
            self.copy_metadata(*at, paths, &stacked(below), snapshots)
        });
        if !committed.is_empty() {
            snapshots.remove(&key)?;
        }
        filled
    }

    fn copy_metadata(
        &self,
        at: usize,
        paths: &[PathBuf],
        below: &[Mount],
        snapshots: &Snapshots,
    ) -> Result<()> {
        let from = Root::from_fd(open_mounts(below)?, Path::new("the layers below"));
        let to = Root::from_fd(open_mounts(&snapshots.mounts(&self.key(at))?)?, Path::new("the layer"));
        for path in paths {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            // Where a link is below, the layer has put a directory in its place, whose metadata nobody gave.
            let found = (from.find_without_links(path, flags)?, to.find_without_links(path, flags)?);
            let (Some(from), Some(to)) = found else { continue };
            copy_directory_metadata(from.as_fd(), to.as_fd())
                .context(|| format!("directory {}", path.display()))?;
        }
        Ok(())
    }

    /// Extracts layers by `extract`, and makes their trees visible once they are on disk: all with one barrier
    /// where they need no parents, one by one where they do. `done` is told of each.
    pub(crate) fn make(
        &self,
        layers: Range<usize>,
        mut extract: impl FnMut(usize) -> Result<Extracted>,
        mut done: impl FnMut(usize),
    ) -> Result<()> {
        if self.can_rebase() {
            layers.clone().try_for_each(|at| extract(at).map(drop))?;
            return self.commit_all(layers, done);
        }
        for at in layers {
            if extract(at)? == Extracted::Here {
                self.sync(at)?;
                self.commit(at)?;
            }
            done(at);
        }
        Ok(())
    }

    /// Makes trees visible that were extracted without parents, and the topmost ready for its first use: one barrier has
    /// all of it on disk.
    pub(crate) fn commit_all(&self, layers: Range<usize>, mut done: impl FnMut(usize)) -> Result<()> {
        let snapshots = self.metadata.snapshots(&self.caller, &self.snapshotter)?;
        let mut merged = None;
        if !layers.is_empty() {
            self.fill_implied(layers.clone(), &snapshots)?;
            let tried = self.ahead.lock().merged.take();
            merged = tried.unwrap_or_else(|| self.merge_ahead(layers.clone(), &snapshots));
            self.barrier.wait()?;
        }
        for at in layers {
            self.commit(at)?;
            done(at);
        }
        self.chain.last().map_or(Ok(()), |top| snapshots.make_ready(&top.to_string(), merged))
    }

    /// Says which layers are going to be extracted and then made visible by [`Trees::commit_all`].
    pub(crate) fn expect(&self, layers: Range<usize>) {
        *self.ahead.lock() = Ahead { left: layers.clone().collect(), layers, merged: None };
    }

    /// Says that a layer of these was extracted for good. Whether it was the last: [`Trees::merge`] can be called.
    pub(crate) fn is_last(&self, at: usize) -> bool {
        let mut ahead = self.ahead.lock();
        ahead.left.remove(&at) && ahead.left.is_empty()
    }

    /// Merges these layers, so that [`Trees::commit_all`] does not have to.
    pub(crate) fn merge(&self) {
        let layers = self.ahead.lock().layers.clone();
        // Who cannot have them is told so when they are committed.
        if let Ok(snapshots) = self.metadata.snapshots(&self.caller, &self.snapshotter) {
            let merged = self.merge_ahead(layers, &snapshots);
            self.ahead.lock().merged = Some(merged);
        }
    }

    /// Merges trees that were extracted, and are not visible yet, with those below them. What fails is tried again once they
    /// are committed, and is an error then: the next pull has them, and need not extract them onto a disk that is full.
    fn merge_ahead(&self, layers: Range<usize>, snapshots: &Snapshots) -> Option<Merged> {
        let below = layers.start.checked_sub(1).map(|below| self.chain[below].to_string());
        let keys: Vec<String> = layers.map(|at| self.key(at)).collect();
        snapshots.merge_ahead(&keys, below.as_deref()).unwrap_or_else(|error| {
            tracing::debug!("merge layers ahead: {}", error.chain());
            None
        })
    }

    /// Makes a tree visible. One that somebody else finished meanwhile is as good, and is in our lease then.
    fn commit(&self, at: usize) -> Result<()> {
        let snapshots = self.metadata.snapshots(&self.caller, &self.snapshotter)?;
        let (key, name) = (self.key(at), self.chain[at].to_string());
        let parent = at.checked_sub(1).map(|below| self.chain[below].to_string());
        let parent = parent.as_deref().filter(|_| self.can_rebase());
        match snapshots.commit(&name, &key, self.labels(at), parent) {
            Err(error) if error.is(ErrorKind::AlreadyExists) => snapshots.remove(&key),
            other => other,
        }
    }

    /// What containerd's clients label trees of layers with.
    fn labels(&self, at: usize) -> Labels {
        let below = at.checked_sub(1).map(|below| (PARENT_CHAIN_ID, self.chain[below].to_string()));
        let labels = [(REF, self.chain[at].to_string()), (DIFF_ID, self.diff_ids[at].to_string())];
        let own = labels.into_iter().chain(below).map(|(key, value)| (key.to_owned(), value));
        self.layers.labels(at).into_iter().chain(own).collect()
    }

    /// Files before records: a tree that was extracted is on disk when this returns, whoever keeps it.
    fn sync(&self, at: usize) -> Result<()> {
        let barrier = self.barriers().remove(&at);
        barrier.expect("it was extracted").wait()
    }

    fn barriers(&self) -> MutexGuard<'_, BTreeMap<usize, Barrier>> {
        self.barriers.lock()
    }

    /// As long as the config is there, so are the trees.
    pub(crate) fn keep_by_config(&self, config: &Digest) -> Result<()> {
        let Some(top) = self.chain.last() else { return Ok(()) };
        let key = format!("{SNAPSHOT}{}", self.snapshotter);
        let labels = Labels::from([(key.clone(), top.to_string())]);
        self.metadata.content(&self.caller).update(config, &labels, &[format!("labels.{key}")]).map(drop)
    }
}

/// A layer's blob, to be read.
struct Blob<'a, R> {
    digest: &'a Digest,
    source: R,
    limits: Limits,
}

/// Trees on each other, the uppermost first, each of which is a directory or already several.
fn stacked(trees: Vec<Mount>) -> Vec<Mount> {
    if trees.len() <= 1 {
        return trees;
    }
    let several = |tree: &Mount| {
        tree.options.iter().find_map(|option| option.strip_prefix("lowerdir=").map(str::to_owned))
    };
    let lower: Vec<String> =
        trees.iter().map(|tree| several(tree).unwrap_or_else(|| tree.source.clone())).collect();
    vec![Mount {
        kind: "overlay".into(),
        source: "overlay".into(),
        target: String::new(),
        options: vec![format!("lowerdir={}", lower.join(":"))],
    }]
}

/// Owner, mode, attributes and time of a directory. Overlayfs's own attributes say what one layer hides of those below
/// it, and stay with that layer.
fn copy_directory_metadata(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> std::io::Result<()> {
    let stat = fstat(from)?;
    fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let mut names = vec![0; XATTRS_LEN_MAX];
    let len = match flistxattr(from, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        listed => listed?,
    };
    let is_overlays =
        |name: &&[u8]| name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty() && !is_overlays(name)) {
        let name = std::ffi::CString::new(name).expect("split at zeros");
        let mut value = vec![0; XATTRS_LEN_MAX];
        let len = fgetxattr(from, &name, &mut value[..])?;
        match fsetxattr(to, &name, &value[..len], XattrFlags::empty()) {
            // Labels of a security module are its own to give.
            Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            set => set?,
        }
    }
    let mtime = Timespec { tv_sec: stat.st_mtime, tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0) };
    Ok(futimens(to, &Timestamps { last_access: mtime, last_modification: mtime })?)
}

/// For all files of the file system on which a tree is.
fn barrier_of(mounts: &[Mount]) -> Result<Barrier> {
    let path = mounts.iter().find_map(|mount| {
        let lower = mount.options.iter().find_map(|option| option.strip_prefix("lowerdir="));
        lower.map_or(Some(mount.source.as_str()), |lower| lower.split(':').next())
    });
    // The one around it: a tree may be mounted, and then it is a file system of its own that has nothing to
    // sync.
    path.and_then(|path| Path::new(path).parent()).map_or(Ok(Barrier::default()), Barrier::open)
}
