//! Bundles: one directory per task, below the state directory.
//!
//! ```text
//! <bundles>/<namespace>/<container>/     0700, root's
//!   config.json                          the OCI spec
//!   rootfs/                              where the shim mounts the root file system
//!   work/                                scratch, for foreign shims
//!   log                                  fifo for the shim's log
//!   shim-binary-path                     which program to run `delete` of
//!   bootstrap.json                       how to reach the shim; written once it is up
//!   …                                    what the shim writes
//! <bundles>/<namespace>/.<container>     a bundle on its way out
//! ```
//!
//! Invariants
//! - Only root can reach a container's root file system, whose setuid programs are also root's on the host. The
//!   exception is the group that is root in the container's user namespace: its runtime enters the root by path.
//! - Removing a bundle never descends into a mount: `rootfs` is unmounted and removed only if empty. If the container
//!   never came to be, what its runtime created in a `rootfs` without a mount is removed as well.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use linux::signal::SIGKILL;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use serde::Deserialize;
use types::spec::runtime::{IdMapping, LinuxNamespace};
use types::{ContainerId, Context, Namespace, Result, Timestamp};

use crate::Exit;
use crate::bootstrap::Bootstrap;
use crate::program::Program;

/// Exit status reported when the real one is unknown.
pub(crate) const UNKNOWN_EXIT: u32 = 255;

#[derive(Clone, Debug)]
pub(crate) struct Bundle {
    pub(crate) path: PathBuf,
}

impl Bundle {
    pub(crate) fn at(bundles: &Path, namespace: &Namespace, id: &ContainerId) -> Bundle {
        Bundle { path: bundles.join(namespace.as_str()).join(id.as_str()) }
    }

    /// Creates a new bundle. An existing directory, which has no task, is removed first.
    pub(crate) fn create(&self, spec: &[u8], program: &Program) -> Result<()> {
        let parent = self.path.parent().expect("a bundle is below its namespace");
        make_dir_all(parent, 0o711)?;
        if self.path.exists() {
            self.remove()?;
        }
        make_dir(&self.path, 0o700)?;
        match root_of(spec) {
            Root::Host => {}
            Root::Group(group) => {
                let about = || format!("let group {group} into {}", self.path.display());
                chown(&self.path, None, Some(group)).context(about)?;
                fs::set_permissions(&self.path, Permissions::from_mode(0o710)).context(about)?;
            }
            Root::Unknown => {
                let about = || format!("let others into {}", self.path.display());
                fs::set_permissions(&self.path, Permissions::from_mode(0o711)).context(about)?;
            }
        }
        make_dir(&self.rootfs(), 0o711)?;
        self.write("config.json", spec)?;
        self.write("shim-binary-path", program.path.as_os_str().as_encoded_bytes())?;
        if !program.is_ours() {
            make_dir(&self.path.join("work"), 0o711)?;
        }
        make_fifo(&self.log())
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.path.join("rootfs")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// The shim program of this bundle.
    pub(crate) fn program(&self) -> Result<Program> {
        use std::os::unix::ffi::OsStringExt;
        let path = self.path.join("shim-binary-path");
        let bytes = fs::read(&path).context(|| format!("read {}", path.display()))?;
        Ok(Program { path: OsString::from_vec(bytes).into() })
    }

    /// How to reach the shim; `None` if it has not come up.
    pub(crate) fn bootstrap(&self) -> Result<Option<Bootstrap>> {
        let path = self.path.join("bootstrap.json");
        match fs::read(&path) {
            Ok(text) => Bootstrap::from_json(&text).context(|| format!("read {}", path.display())).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context(|| format!("read {}", path.display())),
        }
    }

    /// Whether our shim has noted a first process, which it does at the end of a creation.
    pub(crate) fn has_process(&self) -> Result<bool> {
        let path = self.path.join("init.pid");
        path.try_exists().context(|| format!("look for {}", path.display()))
    }

    /// Whether our shim has noted what it created or was about to create.
    pub(crate) fn has_notes(&self) -> Result<bool> {
        for name in ["runtime.json", "pod.json"] {
            let path = self.path.join(name);
            if path.try_exists().context(|| format!("look for {}", path.display()))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The container's exit as its shim noted it. Without a note: 128 + SIGKILL for our shim, whose `delete` kills what
    /// it left running; unknown for shims of other makers.
    pub(crate) fn exit(&self, program: &Program) -> Exit {
        self.noted_exit().unwrap_or_else(|| {
            let pid = String::from_utf8_lossy(&self.read("init.pid")).trim().parse().unwrap_or(0);
            let status = if program.is_ours() { 128 + SIGKILL } else { UNKNOWN_EXIT };
            Exit { pid, status, at: Timestamp::now() }
        })
    }

    /// The container's exit, if our shim has noted it.
    pub(crate) fn noted_exit(&self) -> Option<Exit> {
        #[derive(Deserialize)]
        struct Record {
            pid: u32,
            status: u32,
            exited_at: Timestamp,
        }
        let Record { pid, status, exited_at } = serde_json::from_slice(&self.read("exit.json")).ok()?;
        Some(Exit { pid, status, at: exited_at })
    }

    /// See [`Shims::oom_killed`](crate::Shims::oom_killed).
    pub(crate) fn oom_killed(&self) -> bool {
        let record: serde_json::Value = serde_json::from_slice(&self.read("exit.json")).unwrap_or_default();
        record["oom_killed"] == true
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path.join(name)).unwrap_or_default()
    }

    /// Written atomically, because `load` takes the file's presence as proof that the shim came up.
    pub(crate) fn write_bootstrap(&self, bootstrap: &Bootstrap) -> Result<()> {
        self.write_whole("bootstrap.json", &bootstrap.to_json())
    }

    pub(crate) fn write_whole(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let hidden = format!(".{name}");
        self.write(&hidden, bytes)?;
        let (from, to) = (self.path.join(hidden), self.path.join(name));
        fs::rename(&from, &to).context(|| format!("rename {}", from.display()))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .context(|| format!("create {}", path.display()))?;
        io::Write::write_all(&mut file, bytes).context(|| format!("write {}", path.display()))
    }

    /// Removes the bundle. No error if it is gone already.
    pub(crate) fn remove(&self) -> Result<()> {
        unmount(&self.rootfs())?;
        let leaving = hidden(&self.path);
        if leaving.exists() {
            remove_tree(&leaving)?;
        }
        match fs::rename(&self.path, &leaving) {
            Ok(()) => remove_tree(&leaving),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).context(|| format!("rename {}", self.path.display())),
        }
    }

    /// Removes the bundle of a container that was never created. Its runtime may have made mount points and devices in
    /// `rootfs`, if nothing was mounted there.
    pub(crate) fn remove_unborn(&self) -> Result<()> {
        let rootfs = self.rootfs();
        unmount(&rootfs)?;
        self.empty_rootfs().context(|| format!("empty {}", rootfs.display()))?;
        self.remove()
    }

    /// Deletes the contents of `rootfs` itself, but nothing that is mounted on it or below it.
    fn empty_rootfs(&self) -> io::Result<()> {
        use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let rootfs = open(&self.path, flags | OFlags::PATH, Mode::empty()).and_then(|bundle| {
            openat2(&bundle, "rootfs", flags | OFlags::RDONLY, Mode::empty(), ResolveFlags::NO_XDEV)
        });
        match rootfs {
            Ok(rootfs) => linux::removal::empty(rootfs.as_fd(), &|| true).map(drop),
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The host identity that sets up the container's root file system, and so must be able to reach it.
#[derive(Debug, PartialEq)]
enum Root {
    Host,
    /// The host's group that is group 0 in the container's user namespace.
    Group(u32),
    /// Root of a user namespace that the container joins: its mappings are not in the spec.
    Unknown,
}

fn root_of(spec: &[u8]) -> Root {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Spec {
        linux: Linux,
    }
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Linux {
        gid_mappings: Vec<IdMapping>,
        namespaces: Vec<LinuxNamespace>,
    }
    // The shim will refuse a spec that does not parse.
    let Ok(spec) = serde_json::from_slice::<Spec>(spec) else { return Root::Host };
    let linux = spec.linux;
    match linux.gid_mappings.iter().find(|map| map.container_id == 0) {
        Some(map) => Root::Group(map.host_id),
        None if linux.namespaces.iter().any(|namespace| namespace.kind == "user") => Root::Unknown,
        None => Root::Host,
    }
}

/// The bundles below the bundle directory.
pub(crate) fn list(bundles: &Path) -> Result<Vec<(Namespace, ContainerId)>> {
    let mut found = Vec::new();
    for namespace in names(bundles)? {
        let dir = bundles.join(&namespace);
        let Some(namespace) = namespace.to_str().and_then(|name| Namespace::new(name).ok()) else { continue };
        for name in names(&dir)? {
            if name.as_encoded_bytes().starts_with(b".") {
                if let Err(error) = remove_tree(&dir.join(&name)) {
                    tracing::warn!("remove what is left of a bundle: {}", error.chain());
                }
            } else if let Some(id) = name.to_str().and_then(|name| ContainerId::new(name).ok()) {
                found.push((namespace.clone(), id));
            }
        }
    }
    Ok(found)
}

fn names(dir: &Path) -> Result<Vec<OsString>> {
    let about = || format!("list {}", dir.display());
    match fs::read_dir(dir) {
        Ok(entries) => {
            entries.map(|entry| entry.map(|entry| entry.file_name()).context(about)).collect::<Result<_>>()
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).context(about),
    }
}

fn hidden(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or(OsStr::new("")));
    path.with_file_name(name)
}

/// Removes a bundle's directory, but nothing inside a root file system.
fn remove_tree(path: &Path) -> Result<()> {
    let rootfs = path.join("rootfs");
    unmount(&rootfs)?;
    match fs::remove_dir(&rootfs) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).context(|| format!("remove {}", rootfs.display()))
        }
        _ => fs::remove_dir_all(path).context(|| format!("remove {}", path.display())),
    }
}

/// Unmounts everything stacked on `target`, last mount first.
fn unmount(target: &Path) -> Result<()> {
    loop {
        match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Not a mount point, or not there.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(error) => {
                return Err(io::Error::from(error)).context(|| format!("unmount {}", target.display()));
            }
        }
    }
}

fn make_dir(path: &Path, mode: u32) -> Result<()> {
    DirBuilder::new().mode(mode).create(path).context(|| format!("create {}", path.display()))
}

fn make_dir_all(path: &Path, mode: u32) -> Result<()> {
    DirBuilder::new().mode(mode).recursive(true).create(path).context(|| format!("create {}", path.display()))
}

fn make_fifo(path: &Path) -> Result<()> {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
        .map_err(io::Error::from)
        .context(|| format!("create {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(dir: &Path) -> Bundle {
        let (namespace, id) = (Namespace::new("default").unwrap(), ContainerId::new("redis").unwrap());
        Bundle::at(dir, &namespace, &id)
    }

    fn program() -> Program {
        Program { path: "/usr/bin/containerd-shim-runc-v2".into() }
    }

    #[test]
    fn a_bundle_is_found_again_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = bundle(dir.path());
        bundle.create(b"{}", &program()).unwrap();
        assert_eq!(list(dir.path()).unwrap().len(), 1);
        assert_eq!(bundle.program().unwrap(), program());
        assert!(bundle.bootstrap().unwrap().is_none());
        let bootstrap = Bootstrap { version: 3, address: "unix:///x".into(), protocol: "ttrpc".into() };
        bundle.write_bootstrap(&bootstrap).unwrap();
        assert_eq!(bundle.bootstrap().unwrap(), Some(bootstrap));
        bundle.remove().unwrap();
        bundle.remove().unwrap();
        assert!(list(dir.path()).unwrap().is_empty());
        assert_eq!(names(&dir.path().join("default")).unwrap(), Vec::<OsString>::new());
    }

    #[test]
    fn a_bundle_is_open_to_root_of_its_containers_user_namespace_and_to_nobody_else() {
        let map = br#"{"linux": {"gidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}]}}"#;
        assert_eq!(root_of(map), Root::Group(100_000));
        assert_eq!(root_of(br#"{"linux": {}}"#), Root::Host);
        assert_eq!(root_of(br#"{"linux": null}"#), Root::Host);
        let joined =
            br#"{"linux": {"namespaces": [{"type": "pid"}, {"type": "user", "path": "/proc/7/ns/user"}]}}"#;
        assert_eq!(root_of(joined), Root::Unknown);
        let dir = tempfile::tempdir().unwrap();
        let bundle = bundle(dir.path());
        bundle.create(b"{}", &program()).unwrap();
        assert_eq!(fs::metadata(&bundle.path).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn an_exit_is_read_from_the_shims_record() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = bundle(dir.path());
        bundle.create(b"{}", &program()).unwrap();
        let ours = Program { path: "/usr/bin/containerd-shim-hoist-v2".into() };
        let check = |program: &Program, pid: u32, status: u32| {
            let exit = bundle.exit(program);
            assert_eq!((exit.pid, exit.status), (pid, status));
        };
        check(&program(), 0, UNKNOWN_EXIT);
        bundle.write("init.pid", b"77\n").unwrap();
        check(&ours, 77, 137);
        bundle.write("exit.json", b"half a rec").unwrap();
        check(&ours, 77, 137);
        let record = br#"{"version":1,"id":"redis","pid":77,"status":3,"exited_at":"2024-01-02T03:04:05Z","oom_killed":false}   "#;
        bundle.write("exit.json", record).unwrap();
        check(&ours, 77, 3);
    }

    #[test]
    fn a_half_removed_bundle_is_removed_by_the_next_list() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = bundle(dir.path());
        bundle.create(b"{}", &program()).unwrap();
        fs::rename(&bundle.path, hidden(&bundle.path)).unwrap();
        assert!(list(dir.path()).unwrap().is_empty());
        assert_eq!(names(&dir.path().join("default")).unwrap(), Vec::<OsString>::new());
    }

    #[test]
    fn a_failed_creations_rootfs_is_emptied_with_its_bundle() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = bundle(dir.path());
        bundle.create(b"{}", &program()).unwrap();
        fs::create_dir_all(bundle.rootfs().join("dev/pts")).unwrap();
        fs::write(bundle.rootfs().join("dev/null"), b"").unwrap();
        std::os::unix::fs::symlink("/proc/self/fd", bundle.rootfs().join("dev/fd")).unwrap();
        bundle.remove_unborn().unwrap();
        bundle.remove_unborn().unwrap();
        assert_eq!(names(&dir.path().join("default")).unwrap(), Vec::<OsString>::new());
    }

    #[test]
    fn mounts_below_a_failed_creations_rootfs_are_not_emptied() {
        if !testkit::is_root("a mount") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let bundle = bundle(dir.path());
        bundle.create(b"{}", &program()).unwrap();
        let (kept, place) = (dir.path().join("kept"), bundle.rootfs().join("place"));
        fs::create_dir(&kept).unwrap();
        fs::create_dir(&place).unwrap();
        fs::write(kept.join("precious"), b"kept").unwrap();
        rustix::mount::mount_bind(&kept, &place).unwrap();
        let removed = bundle.remove_unborn();
        unmount(&place).unwrap();
        assert_eq!(fs::read(kept.join("precious")).unwrap(), b"kept");
        assert!(removed.is_err() && bundle.path.exists());
        bundle.remove_unborn().unwrap();
    }

    #[test]
    fn removing_a_bundle_never_deletes_files_in_rootfs() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = bundle(dir.path());
        bundle.create(b"{}", &program()).unwrap();
        fs::write(bundle.rootfs().join("precious"), b"").unwrap();
        assert!(bundle.remove().is_err());
        assert!(hidden(&bundle.path).join("rootfs/precious").exists());
    }
}
