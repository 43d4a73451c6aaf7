//! `system check`: leftovers on disk and in the kernel that belong to no container.
//!
//! A daemon that dies in the middle of a call leaves a part of what the call makes. Network state, directories,
//! snapshots and cgroups all carry the container's id in their names, so that nothing else need be recorded to
//! recognize them. Only what neither a record nor a task refers to is removed; what cannot be read is an error, never a
//! leftover.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use api::engine::Keyring;
use linux::cgroup::Cgroup;
use serde_json::{Value, json};
use task::Stray;
use transfer::{Damaged, Remotes};
use types::filter::Filters;
use types::{ContainerId, Context, Result, UnlessGone};

use crate::registries::own_keyring;
use crate::{Engine, remove_folder};

/// Label of the snapshot of each engine container: the container's id. Other clients' snapshots are never leftovers.
pub(crate) const TREE_LABEL: &str = "hoist.engine/container";

/// An object that belongs to no container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Leftover {
    Network(network::Leftover),
    Folder(PathBuf),
    /// A snapshot, by its key.
    Tree {
        snapshotter: String,
        key: String,
    },
    /// The lease that kept the snapshot of a container without a record; holds the container's id.
    Hold(String),
    /// A cgroup, by its path below the hierarchies' roots.
    Cgroup(String),
    Mount(PathBuf),
    /// A view of an image whose mount is gone, by its key.
    ImageMount {
        key: String,
        path: PathBuf,
    },
    Shim(Stray),
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Leftover::Network(leftover) => leftover.fmt(f),
            Leftover::Folder(path) => write!(f, "files of a container, {}", path.display()),
            Leftover::Tree { key, .. } => write!(f, "tree of a container, snapshot {key}"),
            Leftover::Hold(id) => write!(f, "lease on the tree of a container, {id}"),
            Leftover::Cgroup(path) => write!(f, "cgroup {path}"),
            Leftover::Mount(path) => write!(f, "mount on {}", path.display()),
            Leftover::ImageMount { path, .. } => {
                write!(f, "view of an image that is no longer mounted on {}", path.display())
            }
            Leftover::Shim(stray) => stray.fmt(f),
        }
    }
}

impl Engine {
    /// Finds leftovers, and layers that are visibly damaged. With `repair`, removes the leftovers and fetches damaged
    /// layers again.
    pub(crate) async fn check(&self, repair: bool) -> Result<Value> {
        let found = if repair {
            self.sweep().await?
        } else {
            let _nobody_starts_or_ends = self.nobody_starts_or_ends().await?;
            self.blocking(Engine::leftovers).await?
        };
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        let mut damaged = self.damaged().await?;
        let mut mended = Vec::new();
        if repair && !damaged.is_empty() {
            let images: BTreeSet<String> = damaged.iter().map(|one| one.image.clone()).collect();
            self.mend(images).await?;
            let left = self.damaged().await?;
            mended = std::mem::replace(&mut damaged, left);
            mended.retain(|one| !damaged.contains(one));
        }
        let shown = |all: &[Damaged]| -> Vec<String> {
            all.iter().map(|one| format!("layer {} of {}: {}", one.layer, one.image, one.why)).collect()
        };
        Ok(json!({
            "Found": found,
            "Damaged": shown(&damaged),
            "Mended": shown(&mended),
            "Repaired": repair,
        }))
    }

    async fn damaged(&self) -> Result<Vec<Damaged>> {
        self.blocking(|engine| {
            let metadata = &engine.parts().metadata;
            let images = metadata.images(&engine.0.caller).list(&Filters::all())?;
            let targets: Vec<_> = images.into_iter().map(|image| (image.name, image.target)).collect();
            transfer::damaged(metadata, &engine.0.caller, &targets)
        })
        .await
    }

    /// Fetches damaged blobs again, as `image verify` does, with anonymous access to registries.
    async fn mend(&self, images: BTreeSet<String>) -> Result<()> {
        let targets = self
            .blocking(move |engine| {
                let records = engine.parts().metadata.images(&engine.0.caller);
                images.into_iter().map(|name| Ok((name.clone(), records.get(&name)?.target))).collect()
            })
            .await?;
        let engine = self.clone();
        let keyring = own_keyring(Keyring::new());
        let remote: Remotes =
            Arc::new(move |reference| engine.parts().connections.remote(reference, &keyring));
        transfer::verify(&self.parts().metadata, &self.0.caller, targets, remote, |_, _| ()).await.map(drop)
    }

    /// Removes leftovers and returns them. Continues after an error and returns the first.
    pub(crate) async fn sweep(&self) -> Result<Vec<Leftover>> {
        let _nobody_starts_or_ends = self.nobody_starts_or_ends().await?;
        self.blocking(|engine| {
            let leftovers = engine.leftovers()?;
            let mut first_error = None;
            for leftover in &leftovers {
                if let Err(error) = engine.remove_leftover(leftover) {
                    first_error.get_or_insert(error.context(format!("remove {leftover}")));
                }
            }
            first_error.map_or(Ok(leftovers), Err)
        })
        .await
    }

    fn leftovers(&self) -> Result<Vec<Leftover>> {
        // Listed before the known containers: whatever appears meanwhile belongs to a container that is known by then.
        let folders = self.folders()?;
        let trees = self.trees()?;
        let held = self.held()?.into_iter().map(|id| (id.clone(), Leftover::Hold(id))).collect();
        let cgroups = self.cgroups()?;
        let mounts = self.mounts_of_tasks()?;

        let (known, live) = (self.known()?, self.live());
        let mut leftovers: Vec<Leftover> =
            self.parts().network.check(&live)?.into_iter().map(Leftover::Network).collect();
        let strangers = |all: Vec<(String, Leftover)>, own: &BTreeSet<String>| -> Vec<Leftover> {
            all.into_iter().filter(|(id, _)| !own.contains(id)).map(|(_, leftover)| leftover).collect()
        };
        leftovers.extend(self.parts().shims.strays()?.into_iter().map(Leftover::Shim));
        let gone = self.image_mounts()?.into_iter().filter(|mount| !mount.is_mounted);
        leftovers.extend(gone.map(|mount| Leftover::ImageMount { key: mount.key, path: mount.path }));
        leftovers.extend(strangers(mounts, &live));
        leftovers.extend(strangers(cgroups, &live));
        leftovers.extend(strangers(folders, &known));
        leftovers.extend(strangers(trees, &known));
        // A container with a record does not need the lease any more.
        leftovers.extend(strangers(held, &live));
        Ok(leftovers)
    }

    fn remove_leftover(&self, leftover: &Leftover) -> Result<()> {
        match leftover {
            Leftover::Network(leftover) => self.parts().network.remove(leftover),
            Leftover::Folder(path) => remove_folder(path),
            // A client may have a reference to it.
            Leftover::Tree { snapshotter, key } => self.leave_tree(key, snapshotter),
            Leftover::Hold(id) => self.let_go_of_tree(id),
            Leftover::Cgroup(path) => {
                let cgroup = Cgroup::open(path)?;
                cgroup.kill()?;
                cgroup.delete()
            }
            Leftover::Mount(path) => linux::mount::unmount_all(path),
            Leftover::ImageMount { key, .. } => self.forget_mount(key),
            Leftover::Shim(stray) => self.parts().shims.end_stray(stray),
        }
    }

    /// Ids of containers that have a record or a task, or are being created.
    fn known(&self) -> Result<BTreeSet<String>> {
        let names = self.0.names.lock();
        let mut known: BTreeSet<String> = names.values().cloned().collect();
        drop(names);
        known.extend(self.all()?.into_iter().map(|container| container.id.to_string()));
        known.extend(self.live());
        Ok(known)
    }

    /// Ids of containers that have a task, or are about to have one, with or without a record: deleting the record of a
    /// running container does not end it.
    fn live(&self) -> BTreeSet<String> {
        self.parts().shims.ids(&self.0.caller.namespace).into_iter().map(String::from).collect()
    }

    /// Engine containers whose records were deleted while they run, or while a dead shim's clean-up is incomplete.
    pub(crate) fn unrecorded(&self) -> Result<Vec<ContainerId>> {
        let tasks = self.parts().shims.ids(&self.0.caller.namespace);
        let recorded: BTreeSet<ContainerId> = self.all()?.into_iter().map(|container| container.id).collect();
        let mut unrecorded = Vec::new();
        for id in tasks.into_iter().filter(|id| !recorded.contains(id)) {
            let files = self.files(id.as_str());
            // Tasks of other clients have no files here.
            if files.try_exists().context(|| format!("look for {}", files.display()))? {
                unrecorded.push(id);
            }
        }
        Ok(unrecorded)
    }

    /// Keeps the snapshots of containers whose records were deleted by a daemon that did not do so.
    pub(crate) fn hold_trees(&self, unrecorded: &[ContainerId]) -> Result<()> {
        for (_, tree) in self.trees()? {
            let Leftover::Tree { snapshotter, key } = tree else { continue };
            if let Some(id) = unrecorded.iter().find(|id| id.as_str() == key) {
                self.hold_tree(id, &snapshotter)?;
            }
        }
        Ok(())
    }

    fn folders(&self) -> Result<Vec<(String, Leftover)>> {
        let parent = self.files("x").parent().map(PathBuf::from).unwrap_or_default();
        names_in(&parent)?
            .into_iter()
            .map(|name| Ok((name.clone(), Leftover::Folder(parent.join(name)))))
            .collect()
    }

    fn trees(&self) -> Result<Vec<(String, Leftover)>> {
        let (metadata, mut trees) = (&self.parts().metadata, Vec::new());
        let ours = Filters::parse(&[format!("labels.{TREE_LABEL:?}")])?;
        for name in metadata.snapshotters() {
            let snapshots = metadata.snapshots(&self.0.caller, name)?.list(&ours)?;
            let active = snapshots.into_iter().filter(|snapshot| snapshot.kind == snapshot::Kind::Active);
            trees.extend(active.map(|snapshot| {
                let (snapshotter, key) = (name.to_owned(), snapshot.key);
                (key.clone(), Leftover::Tree { snapshotter, key })
            }));
        }
        Ok(trees)
    }

    fn cgroups(&self) -> Result<Vec<(String, Leftover)>> {
        let Some(parent) = Cgroup::open(&self.cgroup_parent()).unless_gone()? else { return Ok(Vec::new()) };
        let mut ids = BTreeSet::new();
        for folder in parent.locations().values() {
            // Skips the cgroup's own files, whose names are shorter than an id.
            ids.extend(names_in(folder)?.into_iter().filter(|name| name.len() == 64));
        }
        let path = |id: &str| format!("{}/{id}", self.cgroup_parent());
        Ok(ids.into_iter().map(|id| (id.clone(), Leftover::Cgroup(path(&id)))).collect())
    }

    /// Root file systems that are mounted in bundles.
    fn mounts_of_tasks(&self) -> Result<Vec<(String, Leftover)>> {
        let bundles = self.tasks();
        let points = linux::mount::mount_points()?.into_iter().map(|point| point.path);
        let below = points.filter_map(|path| {
            let id = path.strip_prefix(&bundles).ok()?.components().next()?;
            let id = id.as_os_str().to_str()?.to_owned();
            // Ids of engine containers; other clients choose theirs freely.
            let ours = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
            ours.then_some((id, Leftover::Mount(path)))
        });
        let mut mounts: Vec<_> = below.collect();
        // Innermost first.
        mounts.reverse();
        Ok(mounts)
    }
}

fn names_in(folder: &std::path::Path) -> Result<Vec<String>> {
    let what = || format!("read {}", folder.display());
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context(what)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        // Our names are all valid UTF-8.
        names.extend(entry.context(what)?.file_name().into_string().ok());
    }
    Ok(names)
}
