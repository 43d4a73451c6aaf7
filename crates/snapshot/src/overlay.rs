//! Snapshots stacked by overlayfs.
//!
//! ```text
//! ROOT/ID/
//! ├── fs      the snapshot's own files: upper directory while active, lower layer once committed
//! └── work    the work directory of overlayfs, only of active snapshots
//! ```
//!
//! A layer may be an archive and an image of metadata instead; see [`crate::layer`]. A chain may mix both forms, and so
//! may a snapshot: files that are written after its archive was stored are in `fs`, on top of it.
//!
//! Mounts are like containerd's: a bind mount of a single directory, else an overlay with the nearest parent first, of
//! any number of layers (see `linux::mount`). Images are mounted before mounts that refer to them are returned, so that
//! the client can perform these.

mod probe;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use kv::Db;
use linux::idmap::Owners;
use stdx::Mutex;
use types::{Context, Error, ErrorKind, Labels, Mount, Result};

use crate::layer::{self, Archive, Backing, LayerFiles, Merged, Mounted};
use crate::records::{Chain, Records, count, with_top};
use crate::{
    Barrier, CommitOptions, KeptLayers, Kind, ReadyCommit, Snapshot, Snapshotter, Target, Usage, verity,
};

pub use self::probe::probe;

/// Labels with which clients of containerd ask for idmapped owners, `INSIDE:OUTSIDE:COUNT`, for containers in a user
/// namespace.
const UID_MAP: &str = "containerd.io/snapshot/uidmapping";
const GID_MAP: &str = "containerd.io/snapshot/gidmapping";

/// How new layers are kept. Existing ones stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerForm {
    /// Unpacked.
    Directories,
    /// As archives with an image of metadata. The caller has checked with [`crate::probe`] that the kernel mounts
    /// these.
    Archives,
}

/// Settings of an [`Overlay`].
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub form: LayerForm,
    /// Whether layers that are kept as archives are protected by fs-verity. The caller has checked it with
    /// [`crate::probe_verity`].
    pub verity: bool,
    /// How the kernel gets images and archives. The caller has checked it with [`crate::probe`].
    pub backing: Backing,
}

impl Options {
    /// Without fs-verity, and with the default backing.
    pub fn new(form: LayerForm) -> Options {
        Options { form, verity: false, backing: Backing::default() }
    }
}

/// The overlay snapshotter, which containerd calls `overlayfs`.
pub struct Overlay {
    records: Records,
    /// Whether this kernel's overlayfs has the option `index`. It must be off, since several overlays share a layer.
    has_index: bool,
    options: Options,
    /// Additional options of every overlay.
    mount_options: Vec<String>,
    records_spans: bool,
    mounted: Mounted,
    known: FormCache,
    /// Keys of snapshots that take no layers of others: see [`KeptLayers::claim`].
    claimed: Mutex<BTreeSet<String>>,
}

/// The forms of committed snapshots, by id, which only change if a layer is mended. Each use of a chain needs the forms
/// of all its snapshots.
#[derive(Default)]
struct FormCache(Mutex<Forms>);

#[derive(Default)]
struct Forms {
    by_id: HashMap<u64, Form>,
    /// The number of calls of [`FormCache::forget`]: a form that was read before one may be outdated.
    forgotten: u64,
}

/// Most cached forms, before all are forgotten: more than a machine uses at a time.
const KNOWN_MAX: usize = 4096;

impl FormCache {
    /// The cached form, or the result of `read`, which is cached unless a form was forgotten meanwhile.
    fn find(&self, id: u64, read: impl FnOnce() -> Result<Form>) -> Result<Form> {
        let forgotten = {
            let forms = self.lock();
            if let Some(known) = forms.by_id.get(&id) {
                return Ok(known.clone());
            }
            forms.forgotten
        };
        let form = read()?;
        let mut forms = self.lock();
        if forms.forgotten == forgotten {
            if forms.by_id.len() >= KNOWN_MAX {
                forms.by_id.clear();
            }
            forms.by_id.insert(id, form.clone());
        }
        Ok(form)
    }

    /// The number of calls of [`FormCache::forget`].
    fn forgotten(&self) -> u64 {
        self.lock().forgotten
    }

    fn forget(&self, id: u64) {
        let mut forms = self.lock();
        forms.by_id.remove(&id);
        forms.forgotten += 1;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Forms> {
        self.0.lock()
    }
}

/// The form of a committed snapshot.
#[derive(Clone, Debug)]
enum Form {
    /// A directory of files.
    Tree,
    /// An archive.
    Archive(Archive),
    /// An archive, with a directory of files that were written later on top.
    TreeOnArchive(Archive),
}

impl Overlay {
    pub const NAME: &'static str = "overlayfs";
    /// The name of containerd's snapshotter for EROFS images, which clients may use for this one too.
    pub const OTHER_NAME: &'static str = "erofs";

    /// Opens the snapshots below `root`, whose records are in `db`.
    pub fn open(root: &Path, db: Db, options: Options) -> Result<Overlay> {
        let records = Records::open(Overlay::NAME, root, db)?;
        let has_index = Path::new("/sys/module/overlay/parameters/index").exists();
        let mounted = Mounted::new(root, options)?;
        Ok(Overlay {
            records,
            has_index,
            options,
            mount_options: Vec::new(),
            records_spans: false,
            mounted,
            known: FormCache::default(),
            claimed: Mutex::default(),
        })
    }

    /// Sets whether each layer that is stored as an archive gets a record of its blob's spans.
    pub fn recording_spans(self, records_spans: bool) -> Overlay {
        Overlay { records_spans, ..self }
    }

    /// Adds options to the mounts of all overlays, such as `volatile`.
    pub fn with_mount_options(self, mount_options: Vec<String>) -> Overlay {
        let has_index = self.has_index && !mount_options.iter().any(|option| option.starts_with("index="));
        Overlay { mount_options, has_index, ..self }
    }

    fn tree(&self, id: u64) -> PathBuf {
        self.records.directory(id).join("fs")
    }

    /// The disk usage of a snapshot without its parents.
    fn count(&self, id: u64) -> Result<Usage> {
        let directory = self.records.directory(id);
        if !layer::is_archive(&directory) {
            return count(&self.tree(id));
        }
        let mut usage = layer::usage(&directory)?;
        if !is_empty(&self.tree(id))? {
            let tree = count(&self.tree(id))?;
            usage = Usage { bytes: usage.bytes + tree.bytes, inodes: usage.inodes + tree.inodes };
        }
        Ok(usage)
    }

    fn create(&self, key: &str, parent: Option<&str>, kind: Kind, labels: Labels) -> Result<Vec<Mount>> {
        let mut lower = Vec::new();
        let owners = owners(&labels)?;
        let chain = self.records.create(key, parent, kind, labels, |directory, chain| {
            lower = self.lower(&chain.parents)?;
            make_directories(directory, kind, &lower, owners.as_ref())
        })?;
        Ok(self.mounts_of(&chain, &lower))
    }

    /// The lower directories of a snapshot, nearest first: the directory of a layer, or the mount point of the image of
    /// several layers.
    fn lower(&self, parents: &[u64]) -> Result<Vec<PathBuf>> {
        self.mount(&self.committed(parents)?)
    }

    fn committed(&self, ids: &[u64]) -> Result<Vec<Part>> {
        let mut parts = Vec::new();
        for id in ids {
            match self.form(*id)? {
                Form::Tree => parts.push(Part::Tree(self.tree(*id))),
                Form::Archive(archive) => parts.push(Part::Archive(archive)),
                Form::TreeOnArchive(archive) => {
                    parts.extend([Part::Tree(self.tree(*id)), Part::Archive(archive)]);
                }
            }
        }
        Ok(parts)
    }

    fn form(&self, id: u64) -> Result<Form> {
        self.known.find(id, || {
            let directory = self.records.directory(id);
            if !layer::was_archive(&directory) {
                return Ok(Form::Tree);
            }
            let archive = Archive::find(&directory)?;
            // If the directory cannot be read, this fails: a chain without it would show deleted or old files.
            let is_alone = is_empty(&directory.join("fs"))?;
            Ok(if is_alone { Form::Archive(archive) } else { Form::TreeOnArchive(archive) })
        })
    }

    /// The topmost layers of a chain that are archives, and the directories below them, both nearest first.
    fn topmost(&self, parts: &[Part]) -> Result<(Vec<Archive>, Vec<PathBuf>)> {
        let layers: Vec<Archive> = parts.iter().map_while(Part::archive).cloned().collect();
        layers.iter().try_for_each(Archive::look)?;
        let below = if layers.is_empty() { Vec::new() } else { self.mount(&parts[layers.len()..])? };
        Ok((layers, below))
    }

    /// Drops the merged images that were made of a layer's files: its own, and those of the layers above it.
    fn forget_made_of(&self, id: u64) -> Result<()> {
        self.known.forget(id);
        for above in self.records.on_top_of(id)?.into_iter().chain([id]) {
            self.mounted.forget(&self.records.directory(above))?;
        }
        Ok(())
    }

    /// The lower directories of an active snapshot or view, its own archive among them if it has one.
    fn lower_of(&self, chain: &Chain) -> Result<Vec<PathBuf>> {
        let own = self.records.directory(chain.id);
        if chain.kind != Kind::Active || !layer::is_archive(&own) {
            return self.lower(&chain.parents);
        }
        let mut parts = vec![Part::Archive(Archive::find(&own)?)];
        parts.extend(self.committed(&chain.parents)?);
        let lower = self.mount(&parts)?;
        let upper = self.tree(chain.id);
        if is_empty(&upper)? {
            // The directory is older than the archive, whose root it covers.
            let owners = owners(&chain.labels)?;
            copy_root_metadata(&upper, lower.first(), owners.as_ref())
                .context(|| format!("copy the metadata of the root to {}", upper.display()))?;
        }
        Ok(lower)
    }

    fn mount(&self, parts: &[Part]) -> Result<Vec<PathBuf>> {
        let mut lower = Vec::new();
        // From the bottom up, because a merged image takes metadata of implied directories from what is below it.
        for run in parts.chunk_by(|one, other| one.archive().is_some() && other.archive().is_some()).rev() {
            match &run[0] {
                Part::Tree(tree) => lower.insert(0, tree.clone()),
                Part::Archive(_) => {
                    let layers: Vec<Archive> = run.iter().filter_map(Part::archive).cloned().collect();
                    lower.insert(0, self.mounted.mount(&layers, &lower)?);
                }
            }
        }
        Ok(lower)
    }

    /// Finds the active snapshot of some mounts, by its writable directory.
    fn active_of(&self, mounts: &[Mount]) -> Result<Option<(String, Chain)>> {
        let [mount] = mounts else { return Ok(None) };
        let upper = mount.options.iter().find_map(|option| option.strip_prefix("upperdir="));
        let tree = Path::new(upper.unwrap_or(&mount.source));
        let id = tree.parent().and_then(Path::file_name).and_then(|name| name.to_str()?.parse().ok());
        let Some(id) = id.filter(|id| tree == self.tree(*id)) else { return Ok(None) };
        let Some(key) = self.records.key_of(id)? else { return Ok(None) };
        match self.records.chain(&key) {
            Ok(chain) if chain.kind == Kind::Active => Ok(Some((key, chain))),
            Err(error) if !error.is(ErrorKind::NotFound) && !error.is(ErrorKind::FailedPrecondition) => {
                Err(error)
            }
            _ => Ok(None),
        }
    }

    fn mounts_of(&self, chain: &Chain, lower: &[PathBuf]) -> Vec<Mount> {
        let bind = |path: &Path, access: &str| {
            let options = vec![access.to_owned(), "rbind".to_owned()];
            let source = path.display().to_string();
            vec![Mount { kind: "bind".into(), source, target: String::new(), options }]
        };
        match (chain.kind, lower) {
            (Kind::Active, []) => bind(&self.tree(chain.id), "rw"),
            (_, []) => bind(&self.tree(chain.id), "ro"),
            (Kind::View, [only]) => {
                let mut mounts = bind(only, "ro");
                mounts[0].options.extend(owner_options(&chain.labels));
                mounts
            }
            (kind, lower) => {
                let mut options = owner_options(&chain.labels);
                options.extend_from_slice(&self.mount_options);
                if self.has_index {
                    options.push("index=off".to_owned());
                }
                if kind == Kind::Active {
                    let work = self.records.directory(chain.id).join("work");
                    options.push(format!("workdir={}", work.display()));
                    options.push(format!("upperdir={}", self.tree(chain.id).display()));
                }
                let layers: Vec<String> = lower.iter().map(|path| path.display().to_string()).collect();
                options.push(format!("lowerdir={}", layers.join(":")));
                vec![Mount {
                    kind: "overlay".into(),
                    source: "overlay".into(),
                    target: String::new(),
                    options,
                }]
            }
        }
    }
}

/// One of the parts that are stacked in a chain.
enum Part {
    Archive(Archive),
    /// A directory of files.
    Tree(PathBuf),
}

impl Part {
    fn archive(&self) -> Option<&Archive> {
        match self {
            Part::Archive(archive) => Some(archive),
            Part::Tree(_) => None,
        }
    }
}

/// Whether a directory is empty or missing.
fn is_empty(directory: &Path) -> Result<bool> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        entries => Ok(entries.context(|| format!("read {}", directory.display()))?.next().is_none()),
    }
}

/// Creates the directories of a snapshot that are missing.
fn make_directories(directory: &Path, kind: Kind, lower: &[PathBuf], owners: Option<&Owners>) -> Result<()> {
    let make = || -> std::io::Result<()> {
        make_directory(directory, 0o700)?;
        let tree = directory.join("fs");
        if make_directory(&tree, 0o755)? {
            // It covers the root of the parent, so it gets the same metadata.
            copy_root_metadata(&tree, lower.first(), owners)?;
        }
        if kind == Kind::Active {
            make_directory(&directory.join("work"), 0o755)?;
        }
        Ok(())
    };
    make().context(|| format!("make {}", directory.display()))
}

/// Creates a directory. False if it exists.
fn make_directory(path: &Path, mode: u32) -> std::io::Result<bool> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        made => {
            made.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode))).map(|()| true)
        }
    }
}

/// Gives the root of a tree the mode of the directory that it covers, and its owner, idmapped if owners are.
fn copy_root_metadata(tree: &Path, other: Option<&PathBuf>, owners: Option<&Owners>) -> std::io::Result<()> {
    let covered = other.map(fs::metadata).transpose()?;
    let own = covered.as_ref().map(|covered| (covered.uid(), covered.gid()));
    let (uid, gid) = own.unwrap_or((0, 0));
    if let Some((uid, gid)) = owners.and_then(|owners| owners.shown(uid, gid)).or(own) {
        chown(tree, Some(uid), Some(gid))?;
    }
    covered.map_or(Ok(()), |covered| fs::set_permissions(tree, covered.permissions()))
}

/// The idmap that a snapshot's labels ask for. `InvalidArgument` if it is malformed.
fn owners(labels: &Labels) -> Result<Option<Owners>> {
    match (labels.get(UID_MAP), labels.get(GID_MAP)) {
        (Some(uids), Some(gids)) => {
            Owners::parse(uids, gids).map(Some).context(|| format!("labels {UID_MAP} and {GID_MAP}"))
        }
        (None, None) => Ok(None),
        _ => Err(Error::invalid_argument(format!("of the labels {UID_MAP} and {GID_MAP} there is only one"))),
    }
}

/// The mount options for the idmap that a snapshot's labels ask for.
fn owner_options(labels: &Labels) -> Vec<String> {
    match (labels.get(UID_MAP), labels.get(GID_MAP)) {
        (Some(uids), Some(gids)) => vec![format!("uidmap={uids}"), format!("gidmap={gids}")],
        _ => Vec::new(),
    }
}

impl Snapshotter for Overlay {
    fn stat(&self, key: &str) -> Result<Snapshot> {
        self.records.stat(key)
    }

    fn update(&self, key: &str, labels: Labels) -> Result<()> {
        self.records.update(key, labels)
    }

    fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let chain = self.records.chain(key)?;
        let lower = self.lower_of(&chain)?;
        let directory = self.records.directory(chain.id);
        // The directories of a new snapshot are not synced, while its record may be on disk. If a power cut lost the
        // directories, it also lost the files in them.
        if !directory.join("fs").exists() || (chain.kind == Kind::Active && !directory.join("work").exists())
        {
            tracing::warn!(snapshot = key, "its directories are not there: they are made anew, empty");
            make_directories(&directory, chain.kind, &lower, owners(&chain.labels)?.as_ref())?;
        }
        Ok(self.mounts_of(&chain, &lower))
    }

    fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        self.create(key, parent, Kind::Active, labels)
    }

    fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        self.create(key, parent, Kind::View, labels)
    }

    fn ready_commit<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        options: CommitOptions,
    ) -> Result<Option<ReadyCommit<'a>>> {
        let record = self.records.get(key)?;
        let directory = self.records.directory(record.id);
        if layer::is_archive(&directory) && options.parent.is_some() && options.parent != record.parent {
            // An image that was mounted so far was made without this parent.
            self.mounted.forget(&directory)?;
        }
        self.mounted.forget_tree(&directory);
        // Counted outside of the transaction, since it may read a whole tree.
        let usage = self.count(record.id)?;
        if self.options.verity && layer::is_archive(&directory) {
            verity::watch(&directory)?;
        }
        let tidy = move || {
            self.claimed.lock().remove(key);
            if layer::is_archive(&directory) {
                for empty in ["fs", "work/work", "work"] {
                    // A directory that is not empty is part of the layer, or is removed with the snapshot.
                    let _ = fs::remove_dir(directory.join(empty));
                }
            }
        };
        let step = self.records.commit_step(name, key, options, usage);
        Ok(Some(ReadyCommit::new(self.records.db(), step, tidy)))
    }

    fn kept_layers(&self) -> Option<&dyn KeptLayers> {
        Some(self)
    }

    fn remove(&self, key: &str) -> Result<()> {
        self.records.remove(key)?;
        self.claimed.lock().remove(key);
        Ok(())
    }

    fn usage(&self, key: &str) -> Result<Usage> {
        let record = self.records.get(key)?;
        let inside = match record.kind {
            Kind::Committed => record.usage,
            Kind::Active => self.count(record.id)?,
            Kind::View => return Ok(Usage::default()),
        };
        if layer::was_archive(&self.records.directory(record.id)) {
            // The usage of an image includes its root.
            return Ok(inside);
        }
        with_top(&self.tree(record.id), inside)
    }

    fn recount(&self, key: &str) -> Result<Option<Usage>> {
        let record = self.records.get(key)?;
        let is_tree = record.kind == Kind::Committed && matches!(self.form(record.id)?, Form::Tree);
        is_tree.then(|| with_top(&self.tree(record.id), self.count(record.id)?)).transpose()
    }

    fn list(&self) -> Result<Vec<Snapshot>> {
        self.records.list()
    }

    fn barrier(&self) -> Result<Barrier> {
        self.records.barrier()
    }

    fn cleanup(&self) -> Result<()> {
        self.records.cleanup(layer::unmount)
    }

    fn reclaim(&self, go_on: &dyn Fn() -> bool) -> Result<bool> {
        // A call that prepared a snapshot on a removed one may have mounted its image after `cleanup` unmounted it.
        // Replaced archives, which are files, have no mounts.
        let before = |path: &Path| if path.is_dir() { layer::unmount(path) } else { Ok(()) };
        self.records.reclaim(before, go_on)
    }

    fn relax(&self) {
        self.mounted.relax();
    }
}

impl KeptLayers for Overlay {
    fn claim(&self, key: &str) -> Result<()> {
        self.records.get(key)?;
        // Before the look at it, so that nothing is applied after that.
        self.claimed.lock().insert(key.to_owned());
        self.files_for(key).map(drop)
    }

    fn files_for(&self, key: &str) -> Result<Option<LayerFiles>> {
        let record = self.records.get(key)?;
        let directory = self.records.directory(record.id);
        let is_new = !layer::is_archive(&directory) && is_empty(&self.tree(record.id))?;
        if !is_new && self.claimed.lock().contains(key) {
            return Err(Error::failed_precondition(format!("somebody else has written to snapshot {key}")));
        }
        let takes = record.kind == Kind::Active && self.options.form == LayerForm::Archives && is_new;
        let files = || self.mounted.new_files(&directory).wanting_record(self.records_spans);
        Ok(takes.then(|| if record.parent.is_some() { files().merged_with_others() } else { files() }))
    }

    fn target(&self, mounts: &[Mount]) -> Result<Option<Target>> {
        let Some((key, chain)) = self.active_of(mounts)? else { return Ok(None) };
        if self.claimed.lock().contains(&key) {
            return Err(Error::failed_precondition(
                "the daemon unpacks a layer of its own into this snapshot",
            ));
        }
        if mounts != self.mounts_of(&chain, &self.lower(&chain.parents)?) {
            return Ok(None); // the client changed them
        }
        if layer::is_archive(&self.records.directory(chain.id)) {
            return self.mounts(&key).map(Target::Tree).map(Some);
        }
        Ok(Some(match self.files_for(&key)? {
            Some(files) => Target::Layer(files),
            None => Target::Tree(mounts.to_vec()),
        }))
    }

    fn files_of(&self, key: &str) -> Result<Option<LayerFiles>> {
        let record = self.records.get(key)?;
        let directory = self.records.directory(record.id);
        let is_kept = record.kind == Kind::Committed && layer::was_archive(&directory);
        let mut files = LayerFiles::of(&directory).wanting_record(self.records_spans);
        if record.parent.is_some() && !layer::is_archive(&directory) {
            // A lost image is made anew as it was: packed, except for the lowest layer, which may be mounted alone.
            files = files.merged_with_others();
        }
        Ok(is_kept.then_some(files))
    }

    fn mended(&self, key: &str) -> Result<()> {
        let id = self.records.get(key)?.id;
        self.forget_made_of(id)?;
        let directory = self.records.directory(id);
        match verity::is_watched(&directory) {
            true => verity::watch(&directory),
            false => Ok(()),
        }
    }

    fn mend_derived(&self, key: &str) -> Result<bool> {
        let (layers, below) = self.topmost(&self.committed(&self.records.ids_of(key)?)?)?;
        match layers.first() {
            Some(top) if !self.mounted.is_stack_right(&layers, &below)? => {
                self.mounted.forget(top.directory()).map(|()| true)
            }
            _ => Ok(false),
        }
    }

    fn merge_ahead(&self, keys: &[String], parent: Option<&str>) -> Result<Option<Merged>> {
        let forgotten = self.known.forgotten();
        let (mut ids, mut parts) = (Vec::new(), Vec::new());
        for key in keys.iter().rev() {
            let record = self.records.get(key)?;
            let directory = self.records.directory(record.id);
            let is_alone = layer::is_archive(&directory) && is_empty(&self.tree(record.id))?;
            if record.kind != Kind::Active || record.parent.is_some() || !is_alone {
                return Ok(None);
            }
            ids.push(record.id);
            // Not cached: the snapshot may still be written to.
            parts.push(Part::Archive(Archive::find(&directory)?));
        }
        if ids.is_empty() {
            return Ok(None);
        }
        if let Some(parent) = parent {
            let below = self.records.ids_of(parent)?;
            parts.extend(self.committed(&below)?);
            ids.extend(below);
        }
        let (layers, below) = self.topmost(&parts)?;
        let image = self.mounted.merge_ahead(&layers, &below)?;
        Ok(image.map(|image| Merged { image, ids, layers: layers.len(), forgotten }))
    }

    fn make_ready(&self, key: &str, merged: Option<Merged>) -> Result<()> {
        let ids = self.records.ids_of(key)?;
        let (layers, below) = self.topmost(&self.committed(&ids)?)?;
        let merged = merged.filter(|merged| merged.ids == ids && merged.layers == layers.len());
        // A layer that is mended later finds this chain in the records, and waits for the image to drop it.
        let is_right = |merged: &Merged| merged.forgotten == self.known.forgotten();
        let ahead = || merged.filter(is_right).map(|merged| merged.image);
        self.mounted.make_stack(&layers, &below, ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_that_was_read_before_a_layer_was_mended_is_not_cached() {
        let known = FormCache::default();
        let late = known.find(1, || {
            known.forget(1);
            Ok(Form::Tree)
        });
        late.unwrap();
        let mut reads = 0;
        for _ in 0..2 {
            known
                .find(1, || {
                    reads += 1;
                    Ok(Form::Tree)
                })
                .unwrap();
        }
        assert_eq!(reads, 1, "once more, and then it is known");
    }
}
