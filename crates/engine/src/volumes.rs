//! Volumes: named directories that outlive the containers that use them.
//!
//! ```text
//! ROOT/volumes/NAME/_data        what containers see
//! ROOT/volumes/NAME/.draft       being filled, and .ready: see `fill`
//! ROOT/volumes/NAME/anonymous    marks a volume that no client named
//! ROOT/volumes/NAME/labels.json  the labels of `create --label`, if any
//! ```
//!
//! A new volume is filled from the image: it gets the contents, owner and mode of the directory where it is first
//! mounted, so that a program without root can write there. `_data` appears complete, by a rename; a directory without
//! it counts as an anonymous volume. Only containers' records tell which containers use a volume (or, for a running
//! container without a record, a file beside its log), and which anonymous volumes are removed with them: a volume that
//! a client mounts by name is kept, even if the name is a generated one. Labels are written before `_data` and never
//! change.

mod fill;
mod labels;
mod locks;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, ErrorKind as IoErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use api::engine::{Create, Mount, VolumeCall};
use linux::beneath::Root;
use serde_json::{Value, json};
use stdx::{Durable, replace};
use types::spec::runtime::Spec;
use types::{ContainerId, Context, Error, ErrorKind, Result, Timestamp};

use self::fill::{end_filling, fill, sync_directory, wants_filling};
use self::labels::{Filter, VolumeLabels};
pub(crate) use self::locks::VolumeLocks;
use self::locks::{Filling, VolumeLock};
use crate::docker_events::Subject;
use crate::names::short;
use crate::record::Extension;
use crate::usage::Kind;
use crate::{Engine, remove_folder};

pub(crate) const VOLUME: &str = "volume";
const DATA: &str = "_data";
const ANONYMOUS: &str = "anonymous";
/// Beside the log of a container without a record: the names of its volumes, as a JSON list.
const NOTE: &str = "volumes.json";

/// The most volumes that an image may declare.
const IMAGE_VOLUMES_MAX: usize = 128;

impl Engine {
    pub(crate) async fn answer_about_volumes(&self, call: VolumeCall) -> Result<Value> {
        self.blocking(move |engine| match call {
            VolumeCall::Create { name, labels } => engine.create_volume(name, &labels),
            VolumeCall::List { filters } => engine.list_volumes(&filters),
            VolumeCall::Inspect { name } => engine.inspect_volume(&name),
            VolumeCall::Remove { name, force } => engine.remove_volume(&name, force),
            VolumeCall::Prune { all, filters } => engine.prune_volumes(all, &filters),
        })
        .await
    }

    /// Adds the mounts of the containers in `--volumes-from`, volumes and bind mounts, except where the request has a
    /// mount. Read-only mounts stay read-only. If several containers have the same destination, the last one counts.
    /// Returns the anonymous volumes, which are removed with the last container that has them.
    pub(crate) fn take_volumes(&self, create: &mut Create) -> Result<Vec<String>> {
        let mut nameless = Vec::new();
        for text in create.extras.volumes_from.iter().rev() {
            let (name, mode) = text.rsplit_once(':').unwrap_or((text, "rw"));
            if !matches!(mode, "ro" | "rw") {
                let message = format!("--volumes-from {text}: invalid mode {mode:?}, there are ro and rw");
                return Err(Error::invalid_argument(message));
            }
            let container = self.find(name).map_err(|error| error.context("--volumes-from"))?;
            let Extension { create: theirs, own_volumes, .. } = Extension::of(&container)?;
            for mount in theirs.mounts {
                let is_covered = create.mounts.iter().any(|own| same_place(&own.target, &mount.target));
                if mount.kind != "tmpfs" && !is_covered {
                    nameless.extend(own_volumes.iter().find(|own| **own == mount.source).cloned());
                    create.mounts.push(Mount { read_only: mount.read_only || mode == "ro", ..mount });
                }
            }
        }
        Ok(nameless)
    }

    /// Generates names for anonymous volumes, and adds the volumes that the image declares where nothing is mounted.
    /// Returns the names; the volumes are not created yet.
    pub(crate) fn name_volumes(
        &self,
        create: &mut Create,
        image: &BTreeMap<String, Value>,
    ) -> Result<Vec<String>> {
        if image.len() > IMAGE_VOLUMES_MAX {
            return Err(Error::invalid_argument(format!(
                "image {} declares {} volumes, of which {IMAGE_VOLUMES_MAX} are taken",
                create.image,
                image.len()
            )));
        }
        for target in image.keys().map(|target| format!("/{}", target.trim_start_matches('/'))) {
            let is_covered = create.mounts.iter().any(|mount| same_place(&mount.target, &target));
            if !is_covered {
                create.mounts.push(Mount { kind: VOLUME.into(), target, ..Mount::default() });
            }
        }
        let mut named = Vec::new();
        let is_nameless = |mount: &&mut Mount| mount.kind == VOLUME && mount.source.is_empty();
        for mount in create.mounts.iter_mut().filter(is_nameless) {
            mount.source = linux::random::hex(32)?;
            named.push(mount.source.clone());
        }
        Ok(named)
    }

    /// Creates anonymous volumes. The caller must hold them: no container uses them yet, so `prune` would remove them.
    pub(crate) fn make_anonymous(&self, names: &[String]) -> Result<()> {
        for name in names {
            let directory = self.volume(name)?;
            fs::create_dir_all(&directory)
                .and_then(|()| fs::write(directory.join(ANONYMOUS), b""))
                .context(|| format!("create {}", directory.display()))?;
        }
        Ok(())
    }

    /// Protects the volumes of a container from removal until its record refers to them. `Unavailable` while one is
    /// being removed.
    pub(crate) fn lock_volumes(&self, mounts: &[Mount]) -> Result<VolumeLock<'_>> {
        let wanted = mounts.iter().filter(|mount| mount.kind == VOLUME);
        self.0.volumes.lock(wanted.map(|mount| mount.source.clone()).collect(), false)
    }

    /// The directory of a volume that a container mounts at `target`. Created if it does not exist, and filled from the
    /// snapshot, if one is given.
    pub(crate) fn open_volume(
        &self,
        name: &str,
        target: &str,
        tree: impl FnOnce() -> Result<Option<OwnedFd>>,
    ) -> Result<PathBuf> {
        let directory = self.volume(name)?;
        let _filling = self.0.volumes.lock_filling(name)?;
        let is_new = !directory.join(DATA).exists();
        // An empty volume is filled too, as in Docker: it was created by name and is not used yet.
        let lock_unused_data = || self.lock_unused_data(name, None);
        let fill = || -> Result<()> {
            end_filling(&directory, &lock_unused_data)?;
            if !wants_filling(&directory)? {
                return Ok(());
            }
            let root = tree()?.map(|tree| Root::from_fd(tree, Path::new("the image's root")));
            fill(root.as_ref(), target, &directory, &lock_unused_data)
        };
        fill().map_err(|error| error.context(format!("fill volume {name}")))?;
        if is_new {
            self.tell_volume(name, "create");
        }
        Ok(directory.join(DATA))
    }

    /// Completes interrupted fills of the volumes of a container that is being started, as
    /// [`VolumeLocks::note_start`] has noted. Waits for fills in progress.
    pub(crate) fn settle_volumes(&self, id: &ContainerId, mounts: &[Mount]) -> Result<()> {
        for mount in mounts.iter().filter(|mount| mount.kind == VOLUME) {
            let name = &mount.source;
            let lock_unused_data = || self.lock_unused_data(name, Some(id));
            // Wait for a fill in progress, even if nothing is left to do afterwards.
            drop(self.0.volumes.lock_data(name)?);
            end_filling(&self.volume(name)?, &lock_unused_data)
                .map_err(|error| error.context(format!("fill volume {name}")))?;
        }
        Ok(())
    }

    /// The right to move files into a volume, while no container begins to use it; `None` if a container other than
    /// `own` may be running with it.
    fn lock_unused_data(&self, name: &str, own: Option<&ContainerId>) -> Result<Option<Filling<'_>>> {
        let lock = self.0.volumes.lock_data(name)?;
        let has_it = |mount: &Mount| mount.kind == VOLUME && mount.source == name;
        let mut others = self.all()?.into_iter().filter(|one| Some(&one.id) != own);
        let is_in_use = others.any(|container| {
            let of_ours = Extension::of(&container);
            of_ours.is_ok_and(|extension| extension.create.mounts.iter().any(has_it))
                && (self.0.volumes.is_starting(container.id.as_str())
                    || self.parts().shims.has(&self.0.caller.namespace, &container.id))
        });
        let is_in_use = is_in_use
            || match self.unrecorded_users() {
                // A container with unknown volumes may use this one.
                Err(error) if error.is(ErrorKind::Unavailable) => true,
                users => users?.contains_key(name),
            };
        Ok((!is_in_use).then_some(lock))
    }

    /// Removes volumes that were created for a container, unless other containers use them by now.
    pub(crate) fn remove_volumes(&self, names: &[String]) -> Result<()> {
        names.iter().try_for_each(|name| self.remove_unused(name).map(drop))
    }

    /// Removes a volume unless containers use it; returns the names of those that do.
    fn remove_unused(&self, name: &str) -> Result<Vec<String>> {
        // From here on no container begins to use it.
        let _alone = self.0.volumes.lock(vec![name.to_owned()], true)?;
        let mut users = self.volume_users()?.remove(name).unwrap_or_default();
        users.extend(self.unrecorded_users()?.remove(name).unwrap_or_default());
        if users.is_empty() {
            let directory = self.volume(name)?;
            let was_there = directory.join(DATA).exists();
            remove_folder(&directory)?;
            if was_there {
                self.tell_volume(name, "destroy");
            }
        }
        Ok(users)
    }

    fn create_volume(&self, name: Option<String>, labels: &VolumeLabels) -> Result<Value> {
        labels::check(labels)?;
        let is_anonymous = name.is_none();
        let name = name.map_or_else(|| linux::random::hex(32), Ok)?;
        let directory = self.volume(&name)?;
        let _held = self.0.volumes.lock(vec![name.clone()], false)?;
        let _filling = self.0.volumes.lock_filling(&name)?;
        let data = directory.join(DATA);
        let is_new = !data.try_exists().context(|| format!("look for {}", data.display()))?;
        let make = || -> io::Result<()> {
            fs::create_dir_all(&directory)?;
            if is_new {
                labels::write(&directory, labels)?;
                fs::create_dir(directory.join(DATA))?;
            }
            if is_anonymous { fs::write(directory.join(ANONYMOUS), b"") } else { Ok(()) }
        };
        make().context(|| format!("create {}", directory.display()))?;
        sync_directory(&directory)?;
        sync_directory(&self.volumes())?;
        if is_new {
            self.tell_volume(&name, "create");
        }
        Ok(json!({"Name": name}))
    }

    fn list_volumes(&self, filters: &[String]) -> Result<Value> {
        let filter = Filter::parse(filters, Filter::OF_A_LIST)?;
        let (mut rows, users) = (Vec::new(), self.volume_users()?);
        for name in self.volume_names()? {
            if filter.fits(&name, &labels::read(&self.volume(&name)?)?, users.contains_key(&name)) {
                rows.push(self.row_of_volume(&name, &users)?);
            }
        }
        Ok(Value::Array(rows))
    }

    fn inspect_volume(&self, name: &str) -> Result<Value> {
        self.known_volume(name)?;
        self.row_of_volume(name, &self.volume_users()?)
    }

    fn row_of_volume(&self, name: &str, users: &Users) -> Result<Value> {
        let directory = self.volume(name)?;
        let created = fs::metadata(&directory).and_then(|metadata| metadata.created());
        let created = created.map(Timestamp::from).ok();
        Ok(json!({
            "Name": name,
            "Driver": "local",
            "Scope": "local",
            "Mountpoint": directory.join(DATA),
            "CreatedAt": created.map(|created| created.to_string()),
            "Labels": labels::read(&directory)?,
            "Options": {},
            "Anonymous": is_anonymous(&directory),
            "UsedBy": users.get(name).unwrap_or(&Vec::new()),
        }))
    }

    fn remove_volume(&self, name: &str, force: bool) -> Result<Value> {
        match self.known_volume(name) {
            Err(error) if force && error.is(ErrorKind::NotFound) => return Ok(json!({"Name": name})),
            other => other?,
        };
        let users = self.remove_unused(name)?;
        if !users.is_empty() {
            return Err(Error::failed_precondition(format!(
                "volume {name} is used by {}: remove the containers first",
                users.join(", ")
            )));
        }
        Ok(json!({"Name": name}))
    }

    /// Removes unused volumes: the anonymous ones, or all.
    fn prune_volumes(&self, all: bool, filters: &[String]) -> Result<Value> {
        let filter = Filter::parse(filters, Filter::OF_A_PRUNE)?;
        let (mut removed, mut bytes) = (Vec::new(), 0);
        for name in self.volume_names()? {
            let directory = self.volume(&name)?;
            // `remove_unused` checks for users.
            if (!all && !is_anonymous(&directory)) || !filter.fits(&name, &labels::read(&directory)?, false) {
                continue;
            }
            let size = size_of(&directory)?;
            match self.remove_unused(&name) {
                Ok(users) if users.is_empty() => {
                    bytes += size;
                    removed.push(name);
                }
                // In use, or about to be.
                Ok(_) => {}
                Err(error) if error.is(ErrorKind::Unavailable) => {}
                Err(error) => return Err(error),
            }
        }
        self.tell_prune(Subject::Volume, bytes);
        Ok(json!({"VolumesDeleted": removed, "SpaceReclaimed": bytes}))
    }

    /// Totals for `system df`.
    pub(crate) fn volumes_usage(&self) -> Result<Kind> {
        let (users, mut volumes) = (self.volume_users()?, Kind::default());
        for name in self.volume_names()? {
            volumes.add(size_of(&self.volume(&name)?)?, users.contains_key(&name));
        }
        Ok(volumes)
    }

    fn known_volume(&self, name: &str) -> Result<()> {
        if self.volume(name)?.is_dir() {
            return Ok(());
        }
        Err(Error::not_found(format!("no such volume: {name}; `hoist volume ls` lists the volumes")))
    }

    pub(crate) fn volume_names(&self) -> Result<Vec<String>> {
        let directory = self.volumes();
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == IoErrorKind::NotFound => return Ok(Vec::new()),
            other => other.context(|| format!("read {}", directory.display()))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.context(|| format!("read {}", directory.display()))?;
            names.extend(entry.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    pub(crate) fn volume_users(&self) -> Result<Users> {
        let mut users = Users::new();
        for container in self.all()? {
            // Containers of other clients have no volumes of ours.
            let Ok(extension) = Extension::of(&container) else { continue };
            let mounts = extension.create.mounts.iter().filter(|mount| mount.kind == VOLUME);
            // A container may mount one volume twice.
            for name in mounts.map(|mount| &mount.source).collect::<BTreeSet<_>>() {
                users.entry(name.clone()).or_default().push(extension.name.clone());
            }
        }
        Ok(users)
    }

    /// Records the volumes of a running container that loses its record.
    pub(crate) fn note_volumes(&self, id: &ContainerId, mounts: &[Mount]) -> Result<()> {
        let names: BTreeSet<&str> =
            mounts.iter().filter(|mount| mount.kind == VOLUME).map(|mount| mount.source.as_str()).collect();
        let note = self.files(id.as_str()).join(NOTE);
        let text = serde_json::to_vec(&names).expect("plain data");
        // Not durable: after a power cut the container does not run.
        replace(&note, &text, 0o644, Durable::No).context(|| format!("write {}", note.display()))
    }

    /// As [`Engine::volume_users`], for containers that run, or may run, without a record; by id. `Unavailable` names a
    /// container whose volumes cannot be determined: it may use any.
    fn unrecorded_users(&self) -> Result<Users> {
        let mut users = Users::new();
        for id in self.unrecorded()? {
            match self.volumes_of_unrecorded(&id) {
                Ok(names) => {
                    names
                        .into_iter()
                        .for_each(|name| users.entry(name).or_default().push(short(&id).to_owned()));
                }
                // It has ended meanwhile.
                Err(_) if !self.parts().shims.has(&self.0.caller.namespace, &id) => {}
                Err(error) => {
                    return Err(Error::unavailable(format!(
                        "container {} has no record any more and may be running, and which volumes it has cannot be \
                         told: {}; end it, and try again",
                        short(&id),
                        error.chain()
                    )));
                }
            }
        }
        Ok(users)
    }

    /// From the file written when its record was deleted; earlier versions did not write it, then from its bundle.
    fn volumes_of_unrecorded(&self, id: &ContainerId) -> Result<BTreeSet<String>> {
        let note = self.files(id.as_str()).join(NOTE);
        match read_json(&note) {
            Err(error) if error.is(ErrorKind::NotFound) => {}
            noted => return noted,
        }
        let volumes = self.volumes();
        let spec: Spec = read_json(&self.tasks().join(id.as_str()).join("config.json"))?;
        let sources = spec.mounts.iter().filter_map(|mount| {
            let name = Path::new(&mount.source).strip_prefix(&volumes).ok()?.components().next()?;
            name.as_os_str().to_str().map(str::to_owned)
        });
        Ok(sources.collect())
    }

    /// The directory that containers see.
    pub(crate) fn data_of_volume(&self, name: &str) -> PathBuf {
        self.volumes().join(name).join(DATA)
    }

    /// The directory of a volume, whether it exists or not. `InvalidArgument` for an invalid name.
    pub(crate) fn volume(&self, name: &str) -> Result<PathBuf> {
        types::id::check_identifier("volume name", name)?;
        Ok(self.volumes().join(name))
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let what = || format!("read {}", path.display());
    let text = fs::read(path).context(what)?;
    serde_json::from_slice(&text).map_err(io::Error::other).context(what)
}

/// The names of the containers that use a volume, running or not, by volume.
pub(crate) type Users = BTreeMap<String, Vec<String>>;

/// Whether no client named the volume. True if its creation was cut off before there was data; false if that cannot be
/// determined.
fn is_anonymous(directory: &Path) -> bool {
    let has = |name: &str| directory.join(name).try_exists().ok();
    has(ANONYMOUS) == Some(true) || has(DATA) == Some(false)
}

fn same_place(a: &str, b: &str) -> bool {
    Path::new(a).components().eq(Path::new(b).components())
}

/// Disk usage of a directory tree, in bytes.
pub(crate) fn size_of(directory: &Path) -> Result<u64> {
    let usage = linux::tree::usage(directory).context(|| format!("measure {}", directory.display()))?;
    Ok(usage.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_without_data_counts_as_anonymous() {
        let dir = tempfile::tempdir().unwrap();
        assert!(is_anonymous(dir.path()));
        fs::create_dir(dir.path().join(DATA)).unwrap();
        assert!(!is_anonymous(dir.path()));
        fs::write(dir.path().join(ANONYMOUS), "").unwrap();
        assert!(is_anonymous(dir.path()));
        // A symlink to itself: whether it exists cannot be determined.
        let other = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(DATA, other.path().join(DATA)).unwrap();
        assert!(!is_anonymous(other.path()));
    }

    #[test]
    fn mount_targets_are_compared_as_paths() {
        assert!(same_place("/data", "/data/") && same_place("/a//b", "/a/./b"));
        assert!(!same_place("/data", "/data2"));
    }
}
