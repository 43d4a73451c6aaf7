//! Snapshots stacked by overlayfs.
//!
//! ```text
//! ROOT/ID/
//! ├── fs      what this snapshot adds: upper directory while active, lower layer once committed
//! └── work    overlayfs's own, active ones only
//! ```
//!
//! A committed layer may be an archive and an image of metadata instead; see [`crate::layer`]. Both forms are
//! mixed in one chain as they come.
//!
//! Recipes are containerd's: a bind mount where there is one directory to show, else an overlay with the
//! nearest parent first. Its number of layers has no limit of ours; see `linux::mount`. Images are mounted
//! when a recipe that names them is answered, so that whoever gets it can carry it out.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use kv::Db;
use types::{Context, Labels, Mount, Result};

use crate::layer::{self, LayerFiles, Mounted};
use crate::records::{Chain, Records, count};
use crate::{CommitOptions, Kind, Snapshot, Snapshotter, Usage};

/// How layers are kept that are handed over whole. Those that are there stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerForm {
    /// Unpacked.
    Directories,
    /// As archives with an image of metadata, where [`crate::probe`] says that the kernel mounts such.
    Archives,
}

/// The overlay snapshotter, which containerd calls `overlayfs`.
pub struct Overlay {
    records: Records,
    /// Whether this kernel's overlayfs knows `index`, which then must be off: a layer is used by many.
    has_index: bool,
    form: LayerForm,
    mounted: Mounted,
}

impl Overlay {
    pub const NAME: &'static str = "overlayfs";

    /// Opens the snapshots below `root`, whose records are in `db`.
    pub fn open(root: &Path, db: Db, form: LayerForm) -> Result<Overlay> {
        let records = Records::open(Overlay::NAME, root, db)?;
        let has_index = Path::new("/sys/module/overlay/parameters/index").exists();
        Ok(Overlay { records, has_index, form, mounted: Mounted::default() })
    }

    fn tree(&self, id: u64) -> PathBuf {
        self.records.directory(id).join("fs")
    }

    fn create(&self, key: &str, parent: Option<&str>, kind: Kind, labels: Labels) -> Result<Vec<Mount>> {
        let mut lower = Vec::new();
        let chain = self.records.create(key, parent, kind, labels, |directory, chain| {
            lower = self.lower(&chain.parents)?;
            let make = || -> std::io::Result<()> {
                fs::create_dir(directory)?;
                fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
                let tree = directory.join("fs");
                fs::create_dir(&tree)?;
                fs::set_permissions(&tree, fs::Permissions::from_mode(0o755))?;
                if kind == Kind::Active {
                    fs::create_dir(directory.join("work"))?;
                }
                // The root of the new tree covers its parent's, so it must look like it.
                if let Some(nearest) = lower.first() {
                    let metadata = fs::metadata(nearest)?;
                    chown(&tree, Some(metadata.uid()), Some(metadata.gid()))?;
                    fs::set_permissions(&tree, metadata.permissions())?;
                }
                Ok(())
            };
            make().context(|| format!("make {}", directory.display()))
        })?;
        Ok(self.recipe(&chain, &lower))
    }

    /// The trees that lie under a snapshot, nearest first: a directory of a layer, or where the images of
    /// several are mounted as one.
    fn lower(&self, parents: &[u64]) -> Result<Vec<PathBuf>> {
        let directories: Vec<PathBuf> = parents.iter().map(|id| self.records.directory(*id)).collect();
        let mut lower = Vec::new();
        // From the bottom up, because how a stack looks depends on what lies under it.
        for run in directories.chunk_by(|one, other| layer::is_archive(one) == layer::is_archive(other)).rev()
        {
            if layer::is_archive(&run[0]) {
                lower.insert(0, self.mounted.mount(run, &lower)?);
            } else {
                lower.splice(0..0, run.iter().map(|directory| directory.join("fs")));
            }
        }
        Ok(lower)
    }

    fn recipe(&self, chain: &Chain, lower: &[PathBuf]) -> Vec<Mount> {
        let bind = |path: &Path, access: &str| {
            let options = vec![access.to_owned(), "rbind".to_owned()];
            let source = path.display().to_string();
            vec![Mount { kind: "bind".into(), source, target: String::new(), options }]
        };
        match (chain.kind, lower) {
            (Kind::Active, []) => bind(&self.tree(chain.id), "rw"),
            (_, []) => bind(&self.tree(chain.id), "ro"),
            (Kind::View, [only]) => bind(only, "ro"),
            (kind, lower) => {
                let mut options = Vec::new();
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

impl Snapshotter for Overlay {
    fn stat(&self, key: &str) -> Result<Snapshot> {
        self.records.stat(key)
    }

    fn update(&self, key: &str, labels: Labels) -> Result<()> {
        self.records.update(key, labels)
    }

    fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let chain = self.records.chain(key)?;
        Ok(self.recipe(&chain, &self.lower(&chain.parents)?))
    }

    fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        self.create(key, parent, Kind::Active, labels)
    }

    fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        self.create(key, parent, Kind::View, labels)
    }

    fn commit(&self, name: &str, key: &str, options: CommitOptions) -> Result<()> {
        let record = self.records.get(key)?;
        let directory = self.records.directory(record.id);
        let is_archive = layer::is_archive(&directory);
        // Counted before any lock is taken: it may read a whole tree.
        let usage = if is_archive { layer::usage(&directory)? } else { count(&self.tree(record.id))? };
        self.records.commit(name, key, options, usage)?;
        if is_archive {
            for empty in ["fs", "work"] {
                // Only tidiness: they go with the snapshot otherwise.
                let _ = fs::remove_dir(directory.join(empty));
            }
        }
        Ok(())
    }

    fn layer_files(&self, key: &str) -> Result<Option<LayerFiles>> {
        let record = self.records.get(key)?;
        let takes =
            record.kind == Kind::Active && record.parent.is_none() && self.form == LayerForm::Archives;
        Ok(takes.then(|| LayerFiles::of(&self.records.directory(record.id))))
    }

    fn remove(&self, key: &str) -> Result<()> {
        self.records.remove(key)
    }

    fn usage(&self, key: &str) -> Result<Usage> {
        let record = self.records.get(key)?;
        match record.kind {
            Kind::Committed => Ok(record.usage),
            _ => count(&self.tree(record.id)),
        }
    }

    fn list(&self) -> Result<Vec<Snapshot>> {
        self.records.list()
    }

    fn cleanup(&self) -> Result<()> {
        self.records.cleanup(layer::unmount)
    }
}
