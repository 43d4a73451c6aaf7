//! Snapshots as full copies: `ROOT/ID/` is the tree. For file systems that overlayfs cannot use.

use std::fs;
use std::path::Path;

use kv::Db;
use types::{Context, Error, Labels, Mount, Result};

use crate::records::{Chain, Records, count, with_top};
use crate::{Barrier, CommitOptions, Kind, ReadyCommit, Snapshot, Snapshotter, Usage};

/// The copying snapshotter, which containerd calls `native`.
pub struct Native {
    records: Records,
}

impl Native {
    pub const NAME: &'static str = "native";

    /// Opens the snapshots below `root`, whose records are in `db`.
    pub fn open(root: &Path, db: Db) -> Result<Native> {
        Ok(Native { records: Records::open(Native::NAME, root, db)? })
    }

    fn create(&self, key: &str, parent: Option<&str>, kind: Kind, labels: Labels) -> Result<Vec<Mount>> {
        let chain = self.records.create(key, parent, kind, labels, |directory, chain| {
            let what = || format!("make {}", directory.display());
            match chain.parents.first() {
                // A view is read-only, so it shows the parent's tree without a copy.
                Some(nearest) if kind == Kind::Active => {
                    // After a power cut there must be no record of an incomplete copy.
                    let barrier = self.records.barrier()?;
                    linux::tree::copy(&self.records.directory(*nearest), directory).context(what)?;
                    barrier.wait()
                }
                _ => fs::create_dir(directory).context(what),
            }
        })?;
        Ok(self.mounts_of(&chain))
    }

    fn mounts_of(&self, chain: &Chain) -> Vec<Mount> {
        let (id, access) = match (chain.kind, chain.parents.first()) {
            (Kind::View, Some(nearest)) => (*nearest, "ro"),
            (Kind::View, None) => (chain.id, "ro"),
            _ => (chain.id, "rw"),
        };
        let source = self.records.directory(id).display().to_string();
        let options = vec![access.to_owned(), "rbind".to_owned()];
        vec![Mount { kind: "bind".into(), source, target: String::new(), options }]
    }
}

impl Snapshotter for Native {
    fn stat(&self, key: &str) -> Result<Snapshot> {
        self.records.stat(key)
    }

    fn update(&self, key: &str, labels: Labels) -> Result<()> {
        self.records.update(key, labels)
    }

    fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let chain = self.records.chain(key)?;
        let directory = self.records.directory(chain.id);
        // The empty directory of a new snapshot is not synced, while its record may be on disk. If a power cut lost the
        // directory, it also lost the files in it.
        if chain.parents.is_empty() && !directory.exists() {
            tracing::warn!(snapshot = key, "its directory is not there: it is made anew, empty");
            fs::create_dir(&directory).context(|| format!("make {}", directory.display()))?;
        }
        Ok(self.mounts_of(&chain))
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
        if options.parent.is_some() && options.parent != record.parent {
            // A copy that was made without its parent lacks the parent's files.
            return Err(Error::unimplemented("the native snapshotter gives no parent at commit"));
        }
        let usage = count(&self.records.directory(record.id))?;
        let step = self.records.commit_step(name, key, options, usage);
        Ok(Some(ReadyCommit::new(self.records.db(), step, || {})))
    }

    fn remove(&self, key: &str) -> Result<()> {
        self.records.remove(key)
    }

    fn usage(&self, key: &str) -> Result<Usage> {
        let record = self.records.get(key)?;
        let tree = self.records.directory(record.id);
        match record.kind {
            Kind::Committed => with_top(&tree, record.usage),
            Kind::Active => with_top(&tree, count(&tree)?),
            Kind::View => Ok(Usage::default()),
        }
    }

    fn recount(&self, key: &str) -> Result<Option<Usage>> {
        let record = self.records.get(key)?;
        let is_committed = record.kind == Kind::Committed;
        let tree = self.records.directory(record.id);
        is_committed.then(|| with_top(&tree, count(&tree)?)).transpose()
    }

    fn list(&self) -> Result<Vec<Snapshot>> {
        self.records.list()
    }

    fn barrier(&self) -> Result<Barrier> {
        self.records.barrier()
    }

    fn cleanup(&self) -> Result<()> {
        self.records.cleanup(|_| Ok(()))
    }

    fn reclaim(&self, go_on: &dyn Fn() -> bool) -> Result<bool> {
        self.records.reclaim(|_| Ok(()), go_on)
    }
}
