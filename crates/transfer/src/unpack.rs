//! Unpacks layers into trees.
//!
//! A layer is extracted into a snapshot without a parent, in parallel with others, and gets its parent when it is
//! committed. On snapshotters that cannot do that, layers are extracted one upon the other.

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
use linux::lower_dirs::LowerDirs;
use linux::mount::open_mounts;
use linux::tree_mounts::{durable, overlay_option};
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

/// Bytes of an attribute's value, and of all attribute names of a file, at most (xattr(7)).
const XATTRS_LEN_MAX: usize = 64 * 1024;

/// Labels of a layer's tree: its chain id, its diff id, and the chain id of its parent.
const REF: &str = "containerd.io/snapshot.ref";
const DIFF_ID: &str = "containerd.io/snapshot/diff-id";
const PARENT_CHAIN_ID: &str = "containerd.io/snapshot/parent-chain-id";

/// How often to retry on a remote snapshotter that says a tree exists, and then does not have it.
const PREPARE_TRIES: u32 = 3;

/// Makes the trees of an image, all of whose blobs the store must have. Returns the name of the topmost tree.
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

/// The documents of an image for one platform.
pub struct Described {
    pub manifest: Manifest,
    pub config: types::spec::image::ImageConfig,
    /// The name of its topmost tree; `None` for an image without layers.
    pub top: Option<String>,
}

/// Reads the documents of an image. `FailedPrecondition` if it is an artifact, `NotFound` if a document or the
/// platform is missing.
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

/// The type of an artifact; `None` for an image that can be run.
pub(crate) fn artifact_type<'m>(metadata: &Metadata, manifest: &'m Manifest) -> Option<&'m str> {
    image::artifact_type(manifest, |kind| is_known(metadata, kind))
}

/// Whether layers of a media type go through stream processors.
fn is_processed(metadata: &Metadata, media_type: &str) -> bool {
    metadata.processors().names(media_type).is_some()
}

/// Whether stream processors or other differs unpack layers of a media type.
fn is_known(metadata: &Metadata, media_type: &str) -> bool {
    is_processed(metadata, media_type) || metadata.differs().are_asked(media_type)
}

/// Opens a layer's blob, through stream processors if its type needs them.
pub(crate) fn open_layer(metadata: &Metadata, caller: &Caller, layer: &Descriptor) -> Result<LayerSource> {
    let blob = metadata.content(caller).reader(&layer.digest)?;
    metadata.processors().open(layer, Box::new(blob))
}

/// Follows indexes to the manifest for a platform.
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

/// The platforms of images whose descriptors in the index have none, as far as the store has their documents.
pub(crate) fn known_platforms(metadata: &Metadata, caller: &Caller, index: &Index) -> image::Platforms {
    image::Platforms::ask(index, |child| read(metadata, caller, &child.digest).ok())
}

/// Reads a small blob. `InvalidArgument` if it is too large for a document.
pub(crate) fn read(metadata: &Metadata, caller: &Caller, digest: &Digest) -> Result<Vec<u8>> {
    let what = || format!("read {digest}");
    let reader = metadata.content(caller).reader(digest).context(what)?;
    let bytes = stdx::read_at_most(reader, image::DOCUMENT_LEN_MAX).context(what)?;
    let too_large = || Error::invalid_argument(format!("{digest} is too large for a manifest or config"));
    bytes.ok_or_else(too_large)
}

/// The outcome of extracting a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extracted {
    /// Extracted, and to be committed.
    Here,
    /// The snapshotter has the tree already.
    Taken,
}

/// The trees of one image, lowest first.
#[derive(Clone)]
pub(crate) struct Trees {
    metadata: Metadata,
    caller: Caller,
    snapshotter: String,
    /// A remote snapshotter, which may have layers that no client extracted.
    is_elsewhere: bool,
    layers: Arc<Layers>,
    /// Whether differs of other programs are asked for its layers; they need the layers below mounted.
    has_differs: bool,
    diff_ids: Vec<Digest>,
    pub(crate) chain: Vec<Digest>,
    /// Makes the snapshot keys of this call unique.
    nonce: String,
    /// The barrier for this call's layers, opened before the first write.
    barrier: Arc<Barrier>,
    /// For snapshotters without a barrier: by layer, one for the layer's file system.
    barriers: Arc<Mutex<BTreeMap<usize, Barrier>>>,
    /// By layer, directories that exist only as parents of other entries, so that the layer has no metadata for them.
    implied: Arc<Mutex<BTreeMap<usize, Vec<PathBuf>>>>,
    ahead: Arc<Mutex<Ahead>>,
}

/// Layers that are merged as soon as the last of them is extracted.
#[derive(Default)]
struct Ahead {
    layers: Range<usize>,
    /// Those that are not extracted yet.
    left: BTreeSet<usize>,
    /// The result, once merging was tried.
    merged: Option<Option<Merged>>,
}

impl Trees {
    /// Reads the config, which the store must have.
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

    /// Passes the image's name and manifest to the snapshotter with each layer, if it wants them.
    pub(crate) fn of_image(mut self, name: &str, manifest: &Digest) -> Result<Trees> {
        if self.metadata.snapshots(&self.caller, &self.snapshotter)?.wants_origin() {
            self.layers = Arc::new(self.layers.of_image(name, manifest));
        }
        Ok(self)
    }

    /// Whether the snapshotter is remote: layers that it has need not be fetched.
    pub(crate) fn is_elsewhere(&self) -> bool {
        self.is_elsewhere
    }

    /// Offers a remote snapshotter the layers from an index on, up to the first that it does not have. Returns the
    /// index of that layer, whose snapshot is prepared; layers below it have their trees.
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

    /// The index of the lowest layer without a tree above the topmost existing one. The caller's lease holds that
    /// tree from now on, since its earlier holder may be gone.
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

    /// The layers below an index whose trees are visibly damaged.
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

    /// Opens a layer's blob, through stream processors if its type needs them.
    pub(crate) fn open(&self, at: usize) -> Result<LayerSource> {
        open_layer(&self.metadata, &self.caller, self.layers.layer(at))
    }

    /// Whether a layer goes through stream processors. It is then extracted from the store: processors only get
    /// verified bytes, and no registry waits for them.
    pub(crate) fn is_processed(&self, at: usize) -> bool {
        is_processed(&self.metadata, &self.layers.layer(at).media_type)
    }

    /// Whether stream processors or other differs set the pace of some layers.
    pub(crate) fn waits_for_others(&self, mut layers: Range<usize>) -> bool {
        self.has_differs || layers.any(|at| self.is_processed(at))
    }

    /// Whether layers can be extracted in parallel.
    pub(crate) fn can_rebase(&self) -> bool {
        self.snapshotter == snapshot::Overlay::NAME && !self.has_differs
    }

    fn key(&self, at: usize) -> String {
        format!("extract-{}-{at} {}", self.nonce, self.chain[at])
    }

    /// Prepares the snapshot of a layer, and returns its mounts; `None` if its tree exists, which the caller's lease
    /// then holds.
    ///
    /// A remote snapshotter is told the tree's name: it may have the tree, or fetch it itself.
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
            // `offer` prepared it before.
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
    /// `Unavailable` if it would have to wait for memory that other extractions hold, and `origin` does not allow
    /// waiting.
    pub(crate) fn extract(
        &self,
        at: usize,
        digest: &Digest,
        source: impl Read + Send,
        origin: Origin,
    ) -> Result<Extracted> {
        self.extract_from(at, digest, || Ok(source), origin)
    }

    /// Extracts a layer from a source that is opened only if it is needed.
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
        let claimed = self.metadata.snapshots(&self.caller, &self.snapshotter)?.claim(&self.key(at));
        let applied = claimed.and_then(|()| self.apply_elsewhere(at, &mounts));
        let extracted = applied.and_then(|is_applied| match is_applied {
            true => Ok(()),
            false => {
                source().and_then(|source| self.extract_to(at, Blob { digest, source, limits }, &mounts))
            }
        });
        if extracted.is_err() {
            // The first error counts; if this fails, the lease expires and releases the snapshot.
            let _ = self.discard(at);
        }
        extracted.map(|()| Extracted::Here)
    }

    /// Has another program's differ apply the layer, if one accepts it. Returns whether it did.
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

    /// Extracts a layer from the store.
    pub(crate) fn extract_stored(&self, at: usize, digest: &Digest) -> Result<Extracted> {
        let kind = &self.layers.layer(at).media_type;
        let extracted = match self.metadata.processors().names(kind) {
            None => self.extract_from(at, digest, || self.open(at), Origin::Stored)?,
            // Processors may stall as a registry may, and their output may be anything.
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
            // The blob was removed meanwhile: the tree is right without the label.
            Err(error) if !error.is(ErrorKind::NotFound) => Err(error),
            _ => Ok(extracted),
        }
    }

    /// Labels that a layer's blob gets once it is extracted.
    pub(crate) fn label_of_blob(&self, at: usize) -> Labels {
        Labels::from([(UNCOMPRESSED.to_owned(), self.diff_ids[at].to_string())])
    }

    /// Removes the extracted tree of a layer whose blob turned out to be wrong.
    pub(crate) fn discard(&self, at: usize) -> Result<()> {
        self.implied.lock().remove(&at);
        self.metadata.snapshots(&self.caller, &self.snapshotter)?.remove(&self.key(at))
    }

    /// Keeps a layer as its archive. The snapshotter handles directories without an entry of their own.
    fn store_into(&self, at: usize, blob: Blob<'_, impl Read + Send>, files: &LayerFiles) -> Result<()> {
        files.write(|new| {
            // The spans of a processor's output are not those of the blob.
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
            // A detached mount, invisible to other processes.
            _ => open_mounts(&durable(mounts.to_vec()))?,
        };
        let applied = apply(blob.source, ApplyOptions { whiteouts, limits: blob.limits }, root.as_fd())?;
        self.check_diff_id(at, &applied.diff_id)?;
        if self.can_rebase() && at > 0 && !applied.implied.is_empty() {
            self.implied.lock().insert(at, applied.implied);
        }
        Ok(())
    }

    /// Copies metadata from the layers below to directories that exist in a layer only as parents of other entries,
    /// and to the layer's root: such a directory covers the one below it.
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
        // Lowest first: later layers copy from earlier ones.
        let filled = implied.iter().try_for_each(|(at, paths)| {
            // The root copies from the layer right below, which is complete by now: nearly all layers lack a root
            // entry.
            let is_root_alone = paths.iter().all(|path| path.as_os_str().is_empty());
            let depth = if is_root_alone { 1 } else { usize::MAX };
            let own = (layers.start..*at).rev().take(depth).map(|below| snapshots.mounts(&self.key(below)));
            let own = own.collect::<Result<Vec<_>>>()?.concat();
            let below = own.iter().chain(&committed).take(depth).flat_map(lower_trees).collect();
            self.copy_metadata(*at, paths, LowerDirs::new(below), snapshots)
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
        mut below: LowerDirs,
        snapshots: &Snapshots,
    ) -> Result<()> {
        let to = Root::from_fd(open_mounts(&snapshots.mounts(&self.key(at))?)?, Path::new("the layer"));
        for path in paths {
            // If the path below is a symbolic link, the layer's directory replaced it, and has no metadata to copy.
            let Some(from) = below.nearest_directory(path)? else { continue };
            let to = to.find_without_links(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
            let Some(to) = to else { continue };
            copy_directory_metadata(from.as_fd(), to.as_fd())
                .context(|| format!("directory {}", path.display()))?;
        }
        Ok(())
    }

    /// Extracts layers by `extract`, and commits them once they are on disk: all after one barrier if they need no
    /// parents, else one by one. Calls `done` for each.
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

    /// Commits trees that were extracted without parents, after one barrier for all of them, and makes the topmost
    /// ready for its first use.
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

    /// Sets which layers will be extracted and then committed by [`Trees::commit_all`].
    pub(crate) fn expect(&self, layers: Range<usize>) {
        *self.ahead.lock() = Ahead { left: layers.clone().collect(), layers, merged: None };
    }

    /// Records that an expected layer was extracted. Returns whether it was the last, so that [`Trees::merge`] can be
    /// called.
    pub(crate) fn is_last(&self, at: usize) -> bool {
        let mut ahead = self.ahead.lock();
        ahead.left.remove(&at) && ahead.left.is_empty()
    }

    /// Merges the expected layers, so that [`Trees::commit_all`] need not.
    pub(crate) fn merge(&self) {
        let layers = self.ahead.lock().layers.clone();
        // An error here is reported by `commit_all`.
        if let Ok(snapshots) = self.metadata.snapshots(&self.caller, &self.snapshotter) {
            let merged = self.merge_ahead(layers, &snapshots);
            self.ahead.lock().merged = Some(merged);
        }
    }

    /// Merges extracted trees, before they are committed, with those below them. If this fails, it is retried after
    /// the commit, and an error there: the next pull finds the trees, and need not extract them again onto a full
    /// disk.
    fn merge_ahead(&self, layers: Range<usize>, snapshots: &Snapshots) -> Option<Merged> {
        let below = layers.start.checked_sub(1).map(|below| self.chain[below].to_string());
        let keys: Vec<String> = layers.map(|at| self.key(at)).collect();
        snapshots.merge_ahead(&keys, below.as_deref()).unwrap_or_else(|error| {
            tracing::debug!("merge layers ahead: {}", error.chain());
            None
        })
    }

    /// Commits a tree. If another caller has committed it meanwhile, that tree is used, and our lease holds it.
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

    /// The labels that containerd's clients set on layer snapshots.
    fn labels(&self, at: usize) -> Labels {
        let below = at.checked_sub(1).map(|below| (PARENT_CHAIN_ID, self.chain[below].to_string()));
        let labels = [(REF, self.chain[at].to_string()), (DIFF_ID, self.diff_ids[at].to_string())];
        let own = labels.into_iter().chain(below).map(|(key, value)| (key.to_owned(), value));
        self.layers.labels(at).into_iter().chain(own).collect()
    }

    /// Waits until an extracted tree is on disk: files before records.
    fn sync(&self, at: usize) -> Result<()> {
        let barrier = self.barriers().remove(&at);
        barrier.expect("it was extracted").wait()
    }

    fn barriers(&self) -> MutexGuard<'_, BTreeMap<usize, Barrier>> {
        self.barriers.lock()
    }

    /// Labels the config so that the topmost tree lives as long as it.
    pub(crate) fn keep_by_config(&self, config: &Digest) -> Result<()> {
        let Some(top) = self.chain.last() else { return Ok(()) };
        let key = format!("{SNAPSHOT}{}", self.snapshotter);
        let labels = Labels::from([(key.clone(), top.to_string())]);
        self.metadata.content(&self.caller).update(config, &labels, &[format!("labels.{key}")]).map(drop)
    }
}

/// A layer's blob to read.
struct Blob<'a, R> {
    digest: &'a Digest,
    source: R,
    limits: Limits,
}

/// The directories of layers that a mount shows, the uppermost first.
fn lower_trees(mount: &Mount) -> Vec<PathBuf> {
    match overlay_option(mount, "lowerdir=") {
        Some(lower) => lower.split(':').map(PathBuf::from).collect(),
        None => vec![PathBuf::from(&mount.source)],
    }
}

/// Copies owner, mode, extended attributes and times of a directory, except overlayfs's own attributes, which say
/// what one layer hides of those below it.
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
            // Labels of a security module are set by the module alone.
            Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            set => set?,
        }
    }
    let mtime = Timespec { tv_sec: stat.st_mtime, tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0) };
    Ok(futimens(to, &Timestamps { last_access: mtime, last_modification: mtime })?)
}

/// A barrier for the file system of a tree.
fn barrier_of(mounts: &[Mount]) -> Result<Barrier> {
    let path = mounts.iter().find_map(|mount| {
        let lower = mount.options.iter().find_map(|option| option.strip_prefix("lowerdir="));
        lower.map_or(Some(mount.source.as_str()), |lower| lower.split(':').next())
    });
    // The parent directory: the tree itself may be a mount, a file system with nothing to sync.
    path.and_then(|path| Path::new(path).parent()).map_or(Ok(Barrier::default()), Barrier::open)
}
