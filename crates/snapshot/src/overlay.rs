//! Snapshots as directories stacked by overlayfs.
//!
//! ```text
//! ROOT/ID/
//! ├── fs      what this snapshot adds: upper directory while active, lower layer once committed
//! └── work    overlayfs's own, active ones only
//! ```
//!
//! Recipes are containerd's: a bind mount where there is one directory to show, else an overlay with the
//! nearest parent first. Its number of layers has no limit of ours; see `linux::mount`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use kv::Db;
use types::{Context, Labels, Mount, Result};

use crate::records::{Chain, Records, count};
use crate::{CommitOptions, Kind, Snapshot, Snapshotter, Usage};

/// The overlay snapshotter, which containerd calls `overlayfs`.
pub struct Overlay {
    records: Records,
    /// Whether this kernel's overlayfs knows `index`, which then must be off: a layer is used by many.
    has_index: bool,
}

impl Overlay {
    pub const NAME: &'static str = "overlayfs";

    /// Opens the snapshots below `root`, whose records are in `db`.
    pub fn open(root: &Path, db: Db) -> Result<Overlay> {
        let records = Records::open(Overlay::NAME, root, db)?;
        let has_index = Path::new("/sys/module/overlay/parameters/index").exists();
        Ok(Overlay { records, has_index })
    }

    fn tree(&self, id: u64) -> PathBuf {
        self.records.directory(id).join("fs")
    }

    fn create(&self, key: &str, parent: Option<&str>, kind: Kind, labels: Labels) -> Result<Vec<Mount>> {
        let chain = self.records.create(key, parent, kind, labels, |directory, chain| {
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
                if let Some(nearest) = chain.parents.first() {
                    let metadata = fs::metadata(self.tree(*nearest))?;
                    chown(&tree, Some(metadata.uid()), Some(metadata.gid()))?;
                    fs::set_permissions(&tree, metadata.permissions())?;
                }
                Ok(())
            };
            make().context(|| format!("make {}", directory.display()))
        })?;
        Ok(self.recipe(&chain))
    }

    fn recipe(&self, chain: &Chain) -> Vec<Mount> {
        let path = |id: u64| self.tree(id).display().to_string();
        let bind = |id: u64, access: &str| {
            let options = vec![access.to_owned(), "rbind".to_owned()];
            vec![Mount { kind: "bind".into(), source: path(id), target: String::new(), options }]
        };
        match (chain.kind, &chain.parents[..]) {
            (Kind::Active, []) => bind(chain.id, "rw"),
            (_, []) => bind(chain.id, "ro"),
            (Kind::View, [only]) => bind(*only, "ro"),
            (kind, parents) => {
                let mut options = Vec::new();
                if self.has_index {
                    options.push("index=off".to_owned());
                }
                if kind == Kind::Active {
                    let work = self.records.directory(chain.id).join("work");
                    options.push(format!("workdir={}", work.display()));
                    options.push(format!("upperdir={}", path(chain.id)));
                }
                let layers: Vec<String> = parents.iter().map(|id| path(*id)).collect();
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
        Ok(self.recipe(&self.records.chain(key)?))
    }

    fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        self.create(key, parent, Kind::Active, labels)
    }

    fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        self.create(key, parent, Kind::View, labels)
    }

    fn commit(&self, name: &str, key: &str, options: CommitOptions) -> Result<()> {
        let record = self.records.get(key)?;
        // Counted before any lock is taken: it reads the whole tree.
        let usage = count(&self.tree(record.id))?;
        self.records.commit(name, key, options, usage)
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
        self.records.cleanup()
    }
}
