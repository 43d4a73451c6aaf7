//! Checkpoints: the processes of a container, with their memory and kernel state, written into a directory as images by
//! [`criu`](crate::criu).
//!
//! ```text
//! IMAGES/
//! ├── *.img              criu's, one kind of resource each
//! ├── descriptors.json   where standard input, output and error led to: what restore replaces
//! └── notify              empty: the container has a mount for sd_notify(3) that is not in its bundle
//! ```
//!
//! A checkpoint has neither the root file system, nor the content of bind mounts, nor this runtime's state. The caller
//! of restore brings them along, as a bundle.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use linux::beneath::{self, proc_path};
use linux::cgroup::ContainerMounts;
use linux::mount::{self, Attributes, Locked};
use linux::ns::NsKind;
use rustix::fs::{AtFlags, OFlags, StatxAttributes, StatxFlags, statx};
use types::spec::runtime::{Mount, Spec};
use types::{Context, Error, Result};

use crate::container::Container;
use crate::create::NOTICES_INSIDE;
use crate::criu::{
    self, CgroupMode, CloneOptions, Criu, ExternalMount, Features, ImageDirs, Kind, Options, PageServer,
    Request,
};
use crate::rootfs;
use crate::state::{NOTICES, Status};

/// Targets of the standard streams, as `/proc/PID/fd` names them: a JSON list of strings.
pub(crate) const DESCRIPTORS: &str = "descriptors.json";

/// criu's configuration file if the spec names none.
const CONFIG: &str = "/etc/criu/runc.conf";

/// Annotation that names another configuration file, or, empty, none.
pub(crate) const CONFIG_ANNOTATION: &str = "org.criu.config";

const LOG: &str = "dump.log";

/// Options that checkpoint and restore share.
#[derive(Clone, Debug)]
pub struct CriuOptions {
    /// The directory of the images.
    pub images: PathBuf,
    /// The directory of criu's log; beside the images if none.
    pub work: Option<PathBuf>,
    /// Established TCP connections are kept.
    pub tcp_established: bool,
    /// Unix sockets may be connected to processes outside of the container.
    pub external_unix_sockets: bool,
    /// The session, or its terminal, belongs to a process outside of the container.
    pub shell_job: bool,
    /// File locks are kept.
    pub file_locks: bool,
    /// Memory that is written to, or read from, the images is kept there only once.
    pub auto_dedup: bool,
    /// Memory is fetched on demand (userfaultfd(2)).
    pub lazy_pages: bool,
    pub cgroups: CgroupMode,
}

impl CriuOptions {
    /// Options with these images, and defaults otherwise.
    pub fn new(images: impl Into<PathBuf>) -> CriuOptions {
        CriuOptions {
            images: images.into(),
            work: None,
            tcp_established: false,
            external_unix_sockets: false,
            shell_job: false,
            file_locks: false,
            auto_dedup: false,
            lazy_pages: false,
            cgroups: CgroupMode::Default,
        }
    }

    /// The part of criu's request that checkpoint and restore share.
    pub(crate) fn request(&self, dirs: &ImageDirs, log: &str, spec: &Spec) -> Options {
        Options {
            images_dir_fd: dirs.images.as_raw_fd(),
            work_dir_fd: dirs.work.as_ref().map(AsRawFd::as_raw_fd),
            log_level: Some(4),
            log_file: Some(log.to_owned()),
            notify_scripts: Some(true),
            manage_cgroups: Some(true),
            manage_cgroups_mode: Some(self.cgroups.into()),
            shell_job: Some(self.shell_job),
            tcp_established: Some(self.tcp_established),
            ext_unix_sk: Some(self.external_unix_sockets),
            file_locks: Some(self.file_locks),
            auto_dedup: Some(self.auto_dedup),
            lazy_pages: Some(self.lazy_pages),
            // Network devices and addresses are for the caller to make.
            empty_ns: Some(u32::try_from(NsKind::Network.clone_flag()).expect("flags have 32 bits")),
            orphan_pts_master: Some(true),
            config_file: config_file(spec),
            ..Options::default()
        }
    }
}

/// Parses a value of runc's `--manage-cgroups-mode`.
impl std::str::FromStr for CgroupMode {
    type Err = Error;

    fn from_str(word: &str) -> Result<CgroupMode> {
        match word {
            "" => Ok(CgroupMode::Default),
            "soft" => Ok(CgroupMode::Soft),
            "full" => Ok(CgroupMode::Full),
            "strict" => Ok(CgroupMode::Strict),
            "ignore" => Ok(CgroupMode::Ignore),
            other => Err(Error::invalid_argument(format!(
                "{other:?} is no mode to manage cgroups; known are soft, full, strict and ignore"
            ))),
        }
    }
}

/// Refuses a namespace whose content cannot be left out of a checkpoint. Only a network namespace's can, and always is.
pub fn check_empty_namespace(name: &str) -> Result<()> {
    match name {
        "network" => Ok(()),
        other => {
            Err(Error::invalid_argument(format!("namespace {other:?} cannot be left empty; network can")))
        }
    }
}

/// Options of a checkpoint.
#[derive(Debug)]
pub struct CheckpointOptions {
    pub criu: CriuOptions,
    /// The container keeps running afterwards.
    pub leave_running: bool,
    /// Memory alone, as the first part of a later checkpoint; the container keeps running.
    pub pre_dump: bool,
    /// Images of the previous part, relative to this one's.
    pub parent: Option<PathBuf>,
    /// Address and port of the page server that takes the memory, instead of files.
    pub page_server: Option<(String, u16)>,
    /// Receives a zero byte once memory can be fetched lazily.
    pub status: Option<OwnedFd>,
    /// Files that are open but deleted get another name beside the old one, until the restore.
    pub link_remap: bool,
    /// Connections that were not accepted yet are left out.
    pub tcp_skip_in_flight: bool,
}

impl CheckpointOptions {
    pub fn new(criu: CriuOptions) -> CheckpointOptions {
        CheckpointOptions {
            criu,
            leave_running: false,
            pre_dump: false,
            parent: None,
            page_server: None,
            status: None,
            link_remap: false,
            tcp_skip_in_flight: false,
        }
    }
}

pub(crate) fn checkpoint(container: &Container, options: CheckpointOptions) -> Result<()> {
    let status = container.status()?;
    if !matches!(status, Status::Running | Status::Paused) {
        return Err(Error::failed_precondition(format!(
            "container {} cannot be checkpointed in state {}",
            container.id(),
            status.name()
        )));
    }
    let made = Checkpoint { container, options }.make();
    made.map_err(|error| {
        if status == Status::Running {
            // criu may have ended while the cgroup was frozen.
            let _ = container.cgroup().and_then(|cgroup| cgroup.thaw());
        }
        error.context(format!("checkpoint container {}", container.id()))
    })
}

struct Checkpoint<'a> {
    container: &'a Container,
    options: CheckpointOptions,
}

impl Checkpoint<'_> {
    fn make(mut self) -> Result<()> {
        let first = self.container.open_init()?;
        Criu::check()?;
        if self.options.pre_dump || self.options.criu.lazy_pages {
            Criu::check_features(Features {
                mem_track: Some(self.options.pre_dump),
                lazy_pages: Some(self.options.criu.lazy_pages),
            })?;
        }
        criu::make_dir(&self.options.criu.images)?;
        self.check_parent()?;
        let mut dirs = ImageDirs::open(&self.options.criu.images, self.options.criu.work.as_deref(), LOG)?;
        let spec = self.container.spec()?;
        let kind = if self.options.pre_dump { Kind::PreDump } else { Kind::Dump };
        let request = Request { opts: Some(self.request(&dirs, &spec)?), ..Request::new(kind) };
        if !self.options.pre_dump {
            self.note_descriptors()?;
            if self.takes_notices() {
                let path = self.options.criu.images.join(NOTICES);
                fs::write(&path, "").context(|| format!("write {}", path.display()))?;
            }
        }
        // What was read from `/proc` by pid is the first process's only if it is still alive now.
        if first.has_ended() {
            return Err(Error::not_found("process already finished"));
        }
        let status = self.options.status.take();
        let clone_options = CloneOptions { dirs: Some(&mut dirs), ..CloneOptions::default() };
        let criu = Criu::clone(clone_options, || Ok(()))?.execute()?;
        let asked = criu.ask(&request, |notice| match &status {
            Some(status) if notice.step == "status-ready" => {
                rustix::io::write(status, b"\0")
                    .map_err(std::io::Error::from)
                    .context(|| "tell the status")?;
                Ok(())
            }
            _ => Ok(()),
        });
        asked.map_err(|error| dirs.explain(error))?;
        criu.finish().map(drop)
    }

    fn check_parent(&self) -> Result<()> {
        let Some(parent) = &self.options.parent else { return Ok(()) };
        if parent.is_absolute() {
            return Err(Error::invalid_argument(
                "--parent-path: the path of the parent's images must be relative to the images",
            ));
        }
        let path = self.options.criu.images.join(parent);
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() => Ok(()),
            Ok(_) => Err(Error::invalid_argument(format!("{} is not a directory", path.display()))),
            Err(error) => Err(error)
                .context(|| format!("--parent-path: look at the parent's images {}", path.display())),
        }
    }

    fn request(&self, dirs: &ImageDirs, spec: &Spec) -> Result<Options> {
        let state = self.container.state();
        let pid = i32::try_from(state.pid).map_err(|_| Error::internal("a pid out of range"))?;
        let mut request = Options {
            pid: Some(pid),
            root: Some(state.rootfs.to_string_lossy().into_owned()),
            leave_running: Some(self.options.leave_running),
            link_remap: Some(self.options.link_remap),
            tcp_skip_in_flight: Some(self.options.tcp_skip_in_flight),
            freeze_cgroup: self.freezer(),
            external: external_namespaces(spec, state.pid)?,
            ..self.options.criu.request(dirs, LOG, spec)
        };
        if let Some(parent) = &self.options.parent {
            request.parent_img = Some(parent.to_string_lossy().into_owned());
            request.track_mem = Some(true);
        }
        if let Some((address, port)) = &self.options.page_server {
            request.page_server =
                Some(PageServer { address: Some(address.clone()), port: Some(i32::from(*port)) });
        }
        if !self.options.pre_dump {
            request.ext_mnt = self.external_mounts(spec)?;
        }
        Ok(request)
    }

    /// The cgroup directory by which criu freezes all processes at once.
    fn freezer(&self) -> Option<String> {
        let cgroups = &self.container.state().cgroups;
        let freezer = cgroups.iter().find(|(name, _)| name.split(',').any(|name| name == "freezer"));
        let dir = freezer.map(|(_, dir)| dir).or_else(|| cgroups.get(""));
        dir.map(|dir| dir.to_string_lossy().into_owned())
    }

    /// Mounts that show something of the host, under keys that restore computes too.
    fn external_mounts(&self, spec: &Spec) -> Result<Vec<ExternalMount>> {
        let state = self.container.state();
        let root = PathBuf::from(format!("/proc/{}/root", state.pid));
        let root = beneath::Root::open(&root)?;
        let cgroup = self.container.cgroup().ok();
        let mut spec = spec.clone();
        rootfs::strip_root(&mut spec, &state.bundle, &state.rootfs);
        check_attributes(&spec, &root)?;
        let mut found: Vec<ExternalMount> =
            external_mounts_of(&spec, cgroup.map(|cgroup| cgroup.mounts_for_container()))
                .into_iter()
                .map(|(target, _)| {
                    let target = resolved(&root, &target);
                    ExternalMount { key: target.clone(), value: target }
                })
                .collect();
        if self.takes_notices() {
            let target = resolved(&root, Path::new(NOTICES_INSIDE));
            found.push(ExternalMount { key: target.clone(), value: target });
        }
        for path in spec.linux.iter().flat_map(|linux| &linux.masked_paths) {
            let Some(masked) = root.find(Path::new(path), OFlags::PATH)? else { continue };
            if !rootfs::is_directory(&masked)? {
                found.push(ExternalMount { key: path.clone(), value: "/dev/null".to_owned() });
            }
        }
        check_targets(&found)?;
        Ok(found)
    }

    /// Whether the container was created with a socket for sd_notify(3).
    fn takes_notices(&self) -> bool {
        self.container.dir().path(NOTICES).is_dir()
    }

    /// Records where the first process's standard streams lead to. Restore replaces those that are pipes.
    fn note_descriptors(&self) -> Result<()> {
        let pid = self.container.state().pid;
        let names = (0..3).map(|number| {
            let link = fs::read_link(format!("/proc/{pid}/fd/{number}"));
            // A stream that the process has closed has no target.
            link.map_or_else(|_| String::new(), |link| link.to_string_lossy().into_owned())
        });
        let text = serde_json::to_vec(&names.collect::<Vec<_>>()).expect("strings can be written");
        let path = self.options.criu.images.join(DESCRIPTORS);
        fs::write(&path, text).context(|| format!("write {}", path.display()))
    }
}

/// Joined namespaces, of which criu takes no image.
fn external_namespaces(spec: &Spec, pid: u32) -> Result<Vec<String>> {
    let joined = joined_namespaces(spec)?;
    let kinds = joined.into_iter().map(|(kind, _)| kind);
    kinds
        .filter_map(|kind| external_name(kind).map(|name| (kind, name)))
        .map(|(kind, name)| {
            let path = format!("/proc/{pid}/ns/{}", kind.file_name());
            let inode = fs::metadata(&path).context(|| format!("look at {path}"))?;
            let inode = std::os::unix::fs::MetadataExt::ino(&inode);
            Ok(format!("{}[{inode}]:{name}", kind.file_name()))
        })
        .collect()
}

/// Namespaces that the spec names by path.
pub(crate) fn joined_namespaces(spec: &Spec) -> Result<Vec<(NsKind, String)>> {
    let all = spec.linux.iter().flat_map(|linux| &linux.namespaces);
    all.filter(|namespace| !namespace.path.is_empty())
        .map(|namespace| Ok((NsKind::from_name(&namespace.kind)?, namespace.path.clone())))
        .collect()
}

/// The key of a joined namespace in the images; none for kinds that criu joins by path.
pub(crate) fn external_name(kind: NsKind) -> Option<&'static str> {
    match kind {
        NsKind::Network => Some("extRootNetNS"),
        NsKind::Pid => Some("extRootPidNS"),
        _ => None,
    }
}

/// Target and source of each mount that shows something of the host.
pub(crate) fn external_mounts_of(spec: &Spec, cgroups: Option<ContainerMounts>) -> Vec<(PathBuf, PathBuf)> {
    let mut found = Vec::new();
    for mount in &spec.mounts {
        let target = Path::new(&mount.destination);
        if is_bind(mount) {
            found.push((target.to_owned(), PathBuf::from(&mount.source)));
        } else if let ("cgroup" | "cgroup2", Some(cgroups)) = (mount.kind.as_str(), &cgroups) {
            match (mount.kind.as_str(), cgroups) {
                ("cgroup", ContainerMounts::V1(trees)) => {
                    found
                        .extend(trees.iter().map(|tree| (target.join(&tree.directory), tree.source.clone())));
                }
                (_, mounts) if spec.namespace("cgroup").is_none() => {
                    found.extend(mounts.unified().map(|source| (target.to_owned(), source.to_owned())));
                }
                _ => {}
            }
        }
    }
    // Without the right to make device nodes, the runtime binds the host's.
    let devices = rootfs::devices(spec).into_iter().map(|path| (PathBuf::from(&path), PathBuf::from(path)));
    found.extend(devices);
    found
}

/// Refuses a target that criu would parse as a target and a source. It stores both as `mnt[TARGET]:SOURCE`, and looks a
/// source up by that prefix. A link in the image can lead a mount to a directory with `]:` in its name, and criu then
/// mounts the host path behind it in place of another mount (CVE-2026-119101).
pub(crate) fn check_targets(mounts: &[ExternalMount]) -> Result<()> {
    match mounts.iter().find(|mount| mount.key.contains("]:")) {
        Some(mount) => Err(Error::invalid_argument(format!(
            "a mount at {:?}: criu cannot tell the place from a source, as it has \"]:\" in it; mount it elsewhere",
            mount.key
        ))),
        None => Ok(()),
    }
}

/// Refuses bind mounts that lack attributes of the bundle, such as `ro`. The images store a mount as a target with
/// attributes, and restore looks up its source by the target. So a container that renames a parent directory of its
/// mounts could have one restored with another's attributes.
pub(crate) fn check_attributes(spec: &Spec, root: &beneath::Root) -> Result<()> {
    // Of several mounts at one target the last one covers the others, or changes them.
    let last: BTreeMap<String, &Mount> =
        spec.mounts.iter().map(|mount| (resolved(root, Path::new(&mount.destination)), mount)).collect();
    let masked: Vec<&String> = spec.linux.iter().flat_map(|linux| &linux.masked_paths).collect();
    for (place, mount) in last {
        let options = mount::Options::parse(&mount.options);
        let set = options.attributes.set & !options.recursive.clear | options.recursive.set;
        // A file system that does not answer (a dead NFS) is only asked if needed.
        if set == 0 || !is_bind(mount) || masked.contains(&&place) {
            continue;
        }
        let Some(found) = root.find(Path::new(&place), OFlags::PATH)? else { continue };
        let lacking = Locked::of(found.as_fd())?.lacks(Attributes { set, clear: 0 });
        // A path that is no mount point shows nothing of the host.
        if !lacking.is_empty() && is_mount(&found).context(|| format!("look at {place}"))? {
            return Err(Error::failed_precondition(format!(
                "the mount at {place:?} is not {}, as the bundle has it: the container has changed it, or moved another \
                 there; put that right before a checkpoint",
                lacking.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", ")
            )));
        }
    }
    Ok(())
}

fn is_mount(found: &OwnedFd) -> std::io::Result<bool> {
    let told = statx(found, "", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
    Ok(told.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

pub(crate) fn is_bind(mount: &Mount) -> bool {
    mount.kind == "bind" || mount.options.iter().any(|option| option == "bind" || option == "rbind")
}

/// The target with links resolved inside the root; the target as it is if it does not exist.
pub(crate) fn resolved(root: &beneath::Root, target: &Path) -> String {
    let absolute = Path::new("/").join(target);
    let found = root.find(&absolute, OFlags::PATH).ok().flatten();
    let inside = |fd: OwnedFd| {
        let path = fs::read_link(proc_path(fd.as_fd())).ok()?;
        let top = fs::read_link(proc_path(root.as_fd())).ok()?;
        Some(Path::new("/").join(path.strip_prefix(top).ok()?))
    };
    found.and_then(inside).unwrap_or(absolute).to_string_lossy().into_owned()
}

fn config_file(spec: &Spec) -> Option<String> {
    match spec.annotations.get(CONFIG_ANNOTATION).map(String::as_str) {
        Some("") => None,
        Some(path) => Some(path.to_owned()),
        None => Some(CONFIG.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use types::ErrorKind;

    use super::*;

    #[test]
    fn a_mount_target_that_criu_would_parse_as_target_and_source_is_refused() {
        let check = |targets: &[&str]| {
            let mount =
                |place: &&str| ExternalMount { key: (*place).to_owned(), value: "/source".to_owned() };
            check_targets(&targets.iter().map(mount).collect::<Vec<_>>()).map_err(|error| error.kind())
        };
        assert_eq!(check(&["/data", "/a]", "/[a]/:b", "/a:]b"]), Ok(()));
        assert_eq!(check(&["/data", "/data]:/etc"]), Err(ErrorKind::InvalidArgument));
        assert_eq!(check(&["/a]:"]), Err(ErrorKind::InvalidArgument));
    }

    /// The image decides where a mount ends up: by a link at its target.
    #[test]
    fn a_link_in_the_image_leads_to_such_a_mount_target() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("x]:/etc")).unwrap();
        std::os::unix::fs::symlink("/x]:/etc", dir.path().join("data")).unwrap();
        let root = beneath::Root::open(dir.path()).unwrap();
        let place = resolved(&root, Path::new("/data"));
        assert_eq!(place, "/x]:/etc");
        check_targets(&[ExternalMount { key: place, value: "/source".to_owned() }]).unwrap_err();
    }
}
