//! Snapshots stacked by overlayfs.
//!
//! ```text
//! ROOT/ID/
//! ├── fs      what this snapshot adds: upper directory while active, lower layer once committed
//! └── work    overlayfs's own, active ones only
//! ```
//!
//! A layer may be an archive and an image of metadata instead; see [`crate::layer`]. Both forms are mixed in
//! one chain as they come, and in one snapshot: what is written after its archive was stored lies in `fs`, on
//! top of it.
//!
//! Mounts are containerd's: a bind mount where there is one directory to show, else an overlay with the
//! nearest parent first. Its number of layers has no limit of ours; see `linux::mount`. Images are mounted
//! when mounts that name them are answered, so that whoever gets them can carry them out.

mod probe;

use std::collections::HashMap;
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

/// Labels by which clients say that owners are to be shown through a map, `INSIDE:OUTSIDE:COUNT`, as containerd's
/// do for containers with a user namespace of their own.
const UID_MAP: &str = "containerd.io/snapshot/uidmapping";
const GID_MAP: &str = "containerd.io/snapshot/gidmapping";

/// How layers are kept that are handed over whole. Those that are there stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerForm {
    /// Unpacked.
    Directories,
    /// As archives with an image of metadata, where [`crate::probe`] says that the kernel mounts such.
    Archives,
}

/// What an [`Overlay`] is to do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub form: LayerForm,
    /// Whether the kernel is to watch over layers that are kept as they came, where [`crate::probe_verity`] says that
    /// it can.
    pub verity: bool,
    /// How the kernel is shown them, where [`crate::probe`] says that it takes them so.
    pub backing: Backing,
}

impl Options {
    pub fn new(form: LayerForm) -> Options {
        Options { form, verity: false, backing: Backing::default() }
    }
}

/// The overlay snapshotter, which containerd calls `overlayfs`.
pub struct Overlay {
    records: Records,
    /// Whether this kernel's overlayfs knows `index`, which then must be off: a layer is used by many.
    has_index: bool,
    options: Options,
    /// Of every overlay, besides ours.
    mount_options: Vec<String>,
    records_spans: bool,
    mounted: Mounted,
    known: Known,
}

/// What committed snapshots are, by id, which they stay until they are mended: it is asked for at each use of each of
/// a chain.
#[derive(Default)]
struct Known(Mutex<Forms>);

#[derive(Default)]
struct Forms {
    by_id: HashMap<u64, Form>,
    /// How often one was forgotten: what was read before that may be wrong by now.
    forgotten: u64,
}

/// Snapshots whose form is remembered, before all are forgotten: more than a machine uses at a time.
const KNOWN_MAX: usize = 4096;

impl Known {
    /// What is remembered, or else what `read` says, which is remembered unless one was forgotten meanwhile.
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

    /// How often one was forgotten.
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

/// What a committed snapshot adds to a chain.
#[derive(Clone, Debug)]
enum Form {
    /// A directory of files.
    Tree,
    /// A layer as it came.
    Archive(Archive),
    /// The same, and what was written after it on top.
    TreeOnArchive(Archive),
}

impl Overlay {
    pub const NAME: &'static str = "overlayfs";
    /// As the snapshotter is called that keeps layers as EROFS images.
    pub const OTHER_NAME: &'static str = "erofs";

    /// Opens the snapshots below `root`, whose records are in `db`.
    pub fn open(root: &Path, db: Db, options: Options) -> Result<Overlay> {
        let records = Records::open(Overlay::NAME, root, db)?;
        let has_index = Path::new("/sys/module/overlay/parameters/index").exists();
        let mounted = Mounted::new(root, options)?;
        let (mount_options, known) = (Vec::new(), Known::default());
        Ok(Overlay { records, has_index, options, mount_options, records_spans: false, mounted, known })
    }

    /// Has a record kept of the spans of the blob of each layer that is stored as an archive.
    pub fn recording_spans(self, records_spans: bool) -> Overlay {
        Overlay { records_spans, ..self }
    }

    /// Has every overlay mounted with these too, such as `volatile`.
    pub fn with_mount_options(self, mount_options: Vec<String>) -> Overlay {
        let has_index = self.has_index && !mount_options.iter().any(|option| option.starts_with("index="));
        Overlay { mount_options, has_index, ..self }
    }

    fn tree(&self, id: u64) -> PathBuf {
        self.records.directory(id).join("fs")
    }

    /// What a snapshot itself holds.
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
            furnish(directory, kind, &lower, owners.as_ref())
        })?;
        Ok(self.mounts_of(&chain, &lower))
    }

    /// The trees that lie under a snapshot, nearest first: a directory of a layer, or where the images of
    /// several are mounted as one.
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
            // What cannot be read is not empty: a chain without it would show deleted files, or old ones.
            let is_alone = is_empty(&directory.join("fs"))?;
            Ok(if is_alone { Form::Archive(archive) } else { Form::TreeOnArchive(archive) })
        })
    }

    /// The layers on top of a chain that are shown as one, and the trees below them, nearest first.
    fn topmost(&self, parts: &[Part]) -> Result<(Vec<Archive>, Vec<PathBuf>)> {
        let layers: Vec<Archive> = parts.iter().map_while(Part::archive).cloned().collect();
        layers.iter().try_for_each(Archive::look)?;
        let below = if layers.is_empty() { Vec::new() } else { self.mount(&parts[layers.len()..])? };
        Ok((layers, below))
    }

    /// Forgets what was made of a layer's files, in its directory and in those of the layers above it.
    fn forget_made_of(&self, id: u64) -> Result<()> {
        self.known.forget(id);
        for above in self.records.on_top_of(id)?.into_iter().chain([id]) {
            self.mounted.forget(&self.records.directory(above))?;
        }
        Ok(())
    }

    /// The trees under an active snapshot, its own archive among them if it has one.
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
            // It was made before the archive came, whose root it covers.
            let owners = owners(&chain.labels)?;
            copy_root_metadata(&upper, lower.first(), owners.as_ref())
                .context(|| format!("copy the metadata of the root to {}", upper.display()))?;
        }
        Ok(lower)
    }

    fn mount(&self, parts: &[Part]) -> Result<Vec<PathBuf>> {
        let mut lower = Vec::new();
        // From the bottom up, because how a stack looks depends on what lies under it.
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

    /// The active snapshot that mounts are of, by its writable tree.
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
                mounts[0].options.extend(owner_words(&chain.labels));
                mounts
            }
            (kind, lower) => {
                let mut options = owner_words(&chain.labels);
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

/// One of what lies on each other in a chain.
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

/// Whether nothing is in a directory, or there is none.
fn is_empty(directory: &Path) -> Result<bool> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        entries => Ok(entries.context(|| format!("read {}", directory.display()))?.next().is_none()),
    }
}

/// Makes the directories of a snapshot that are not there.
fn furnish(directory: &Path, kind: Kind, lower: &[PathBuf], owners: Option<&Owners>) -> Result<()> {
    let make = || -> std::io::Result<()> {
        make_directory(directory, 0o700)?;
        let tree = directory.join("fs");
        if make_directory(&tree, 0o755)? {
            // It covers its parent's, so it must look like it.
            copy_root_metadata(&tree, lower.first(), owners)?;
        }
        if kind == Kind::Active {
            make_directory(&directory.join("work"), 0o755)?;
        }
        Ok(())
    };
    make().context(|| format!("make {}", directory.display()))
}

/// Whether it was not there.
fn make_directory(path: &Path, mode: u32) -> std::io::Result<bool> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        made => {
            made.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode))).map(|()| true)
        }
    }
}

/// Gives a tree's root the mode of what it covers, and the owner that it is shown with there.
fn copy_root_metadata(tree: &Path, other: Option<&PathBuf>, owners: Option<&Owners>) -> std::io::Result<()> {
    let covered = other.map(fs::metadata).transpose()?;
    let own = covered.as_ref().map(|covered| (covered.uid(), covered.gid()));
    let (uid, gid) = own.unwrap_or((0, 0));
    if let Some((uid, gid)) = owners.and_then(|owners| owners.shown(uid, gid)).or(own) {
        chown(tree, Some(uid), Some(gid))?;
    }
    covered.map_or(Ok(()), |covered| fs::set_permissions(tree, covered.permissions()))
}

/// The map that a snapshot's labels ask for.
fn owners(labels: &Labels) -> Result<Option<Owners>> {
    match (labels.get(UID_MAP), labels.get(GID_MAP)) {
        (Some(uids), Some(gids)) => {
            Owners::parse(uids, gids).map(Some).context(|| format!("labels {UID_MAP} and {GID_MAP}"))
        }
        (None, None) => Ok(None),
        _ => Err(Error::invalid_argument(format!("of the labels {UID_MAP} and {GID_MAP} there is only one"))),
    }
}

/// The same in the words of a mount.
fn owner_words(labels: &Labels) -> Vec<String> {
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
        // Nobody waits for the disk to have the directories of a new snapshot, as its record is waited for. Where the power
        // went before, nothing that was written to them is on disk either.
        if !directory.join("fs").exists() || (chain.kind == Kind::Active && !directory.join("work").exists())
        {
            tracing::warn!(snapshot = key, "its directories are not there: they are made anew, empty");
            furnish(&directory, chain.kind, &lower, owners(&chain.labels)?.as_ref())?;
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
            // What was mounted of it stood on nothing.
            self.mounted.forget(&directory)?;
        }
        self.mounted.settle(&directory);
        // Counted before any lock is taken: it may read a whole tree.
        let usage = self.count(record.id)?;
        if self.options.verity && layer::is_archive(&directory) {
            verity::watch(&directory)?;
        }
        let tidy = move || {
            if layer::is_archive(&directory) {
                for empty in ["fs", "work/work", "work"] {
                    // They go with the snapshot otherwise. What is not empty is part of the layer.
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
        self.records.remove(key)
    }

    fn usage(&self, key: &str) -> Result<Usage> {
        let record = self.records.get(key)?;
        let inside = match record.kind {
            Kind::Committed => record.usage,
            Kind::Active => self.count(record.id)?,
            Kind::View => return Ok(Usage::default()),
        };
        if layer::was_archive(&self.records.directory(record.id)) {
            // Its image has the top.
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
        self.records.reclaim(go_on)
    }

    fn relax(&self) {
        self.mounted.relax();
    }
}

impl KeptLayers for Overlay {
    fn files_for(&self, key: &str) -> Result<Option<LayerFiles>> {
        let record = self.records.get(key)?;
        let directory = self.records.directory(record.id);
        let takes = record.kind == Kind::Active
            && self.options.form == LayerForm::Archives
            && !layer::is_archive(&directory)
            && is_empty(&self.tree(record.id))?;
        let files = || self.mounted.new_files(&directory).wanting_record(self.records_spans);
        Ok(takes.then(|| if record.parent.is_some() { files().merged_with_others() } else { files() }))
    }

    fn target(&self, mounts: &[Mount]) -> Result<Option<Target>> {
        let Some((key, chain)) = self.active_of(mounts)? else { return Ok(None) };
        if mounts != self.mounts_of(&chain, &self.lower(&chain.parents)?) {
            return Ok(None); // of the client's own making
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
            // Its image is gone, and is packed when it is made anew, as at first. The lowest may be used alone.
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
            // What it is now is not remembered: it may yet be written to.
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
        let path = self.mounted.merge_ahead(&layers, &below)?;
        Ok(path.map(|path| Merged { path, ids, layers: layers.len(), forgotten }))
    }

    fn make_ready(&self, key: &str, merged: Option<Merged>) -> Result<()> {
        let ids = self.records.ids_of(key)?;
        let (layers, below) = self.topmost(&self.committed(&ids)?)?;
        let merged = merged.filter(|merged| merged.ids == ids && merged.layers == layers.len());
        // A mend that comes later finds this chain, and waits for its image to take it back.
        let is_right = |merged: &&Merged| merged.forgotten == self.known.forgotten();
        let ahead = || merged.as_ref().filter(is_right).map(|merged| merged.path.as_path());
        self.mounted.make_stack(&layers, &below, ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_before_a_mend_is_not_remembered() {
        let known = Known::default();
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
