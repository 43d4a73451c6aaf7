//! The persistent state of containers: one directory for each below the state root.
//!
//! ```text
//! ROOT/ID/
//! ├── cgroup         the cgroup that was made for it (cgroup_note.rs)
//! ├── state.json     written once, by create (docs/design/runtime-state.md)
//! ├── seccomp.bpf    the compiled filter, for exec
//! ├── notify/        the socket for sd_notify(3), if the container was created with one
//! ├── paused         of a container that was paused before its start
//! └── start, start.answer   fifos that the first process waits on, until the container is started (start.rs)
//! ```
//!
//! Whether a container runs is never read from a file, but asked of the kernel.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use linux::beneath::proc_path;
use linux::cgroup::Inode;
use serde::{Deserialize, Serialize};
use types::spec::runtime::{Capabilities, Hooks, MemoryPolicy, Personality, Process, Spec};
use types::{Context, Error, Result, Timestamp, UnlessGone};

use crate::plan::read_hooks;
use crate::supervisor::Supervisor;

/// The format of state files; others are refused.
const VERSION: u32 = 1;

const STATE: &str = "state.json";
pub(crate) const FILTER: &str = "seccomp.bpf";
/// Marks a container that was paused before its start; its cgroup tells whether it is paused now.
pub(crate) const PAUSED: &str = "paused";
pub(crate) const NOTICES: &str = "notify";
pub(crate) const NOTICES_SOCKET: &str = "notify.sock";

/// The status of a container (runtime-spec `runtime.md`, "State"), and `paused`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

/// The content of `state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub version: u32,
    pub id: String,
    /// Of the first process, in the pid namespace of the container's creator.
    pub pid: u32,
    /// Clock ticks since boot at which that process started (proc_pid_stat(5), field 22): tells it from a later process
    /// of the same pid.
    pub started_at_ticks: u64,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    pub created: Timestamp,
    pub owner_uid: u32,
    /// Directory of the cgroup by hierarchy.
    pub cgroups: BTreeMap<String, PathBuf>,
    /// Device and inode of each, which tell it from a later one at the same path. Empty in files of earlier versions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cgroup_inodes: BTreeMap<String, Inode>,
    /// Whether all its processes are in a pid namespace of its own. None in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub has_own_pids: Option<bool>,
    /// The scope that systemd made for it, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub systemd_scope: Option<String>,
    /// Where that systemd may listen, if it is a user's instance.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub systemd_sockets: Vec<PathBuf>,
    pub annotations: BTreeMap<String, String>,
    /// The hooks at creation: later changes of the bundle have no effect (`runtime.md`, "Lifecycle"). None in files of
    /// earlier versions, for which they are read from the bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    /// Further processes get it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub personality: Option<Personality>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_policy: Option<MemoryPolicy>,
    /// Defaults for further processes. None in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_process: Option<FirstProcess>,
    /// The supervisor that the filter of each process asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supervisor: Option<Supervisor>,
    /// Further processes keep their caller's session keyring, as the first process did.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_new_keyring: bool,
    /// Name of the session keyring. None in files of earlier versions: see [`State::keyring`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyring_name: Option<String>,
    /// Directory in resctrl that was made for the container, and is removed with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resctrl: Option<PathBuf>,
    /// Directories in resctrl that every further process is put into too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resctrl_groups: Vec<PathBuf>,
}

/// The parts of the first process's description that are defaults for further processes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FirstProcess {
    capabilities: Option<Capabilities>,
    apparmor_profile: String,
    selinux_label: String,
}

impl FirstProcess {
    fn of(process: &Process) -> FirstProcess {
        FirstProcess {
            capabilities: process.capabilities.clone(),
            apparmor_profile: process.apparmor_profile.clone(),
            selinux_label: process.selinux_label.clone(),
        }
    }

    /// Fills in what another process's description leaves out.
    fn complete(&self, process: &mut Process) {
        let text = |own: &mut String, first: &String| {
            if own.is_empty() {
                own.clone_from(first);
            }
        };
        text(&mut process.apparmor_profile, &self.apparmor_profile);
        text(&mut process.selinux_label, &self.selinux_label);
        if process.capabilities.is_none() {
            process.capabilities.clone_from(&self.capabilities);
        }
    }
}

/// The state directory of one container.
#[derive(Clone, Debug)]
pub(crate) struct StateDir(PathBuf);

impl StateDir {
    /// Makes the directory. `AlreadyExists` if the id is taken.
    ///
    /// Its mode is 0700 whatever the caller's umask. An existing state root stays as it is.
    pub(crate) fn create(root: &Path, id: &str) -> Result<StateDir> {
        check_id(id)?;
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700);
        builder.recursive(true).create(root).context(|| format!("create {}", root.display()))?;
        let dir = root.join(id);
        match builder.recursive(false).create(&dir) {
            Ok(()) => Ok(StateDir(dir)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Err(Error::already_exists(
                format!("container with id {id} already exists ({})", dir.display()),
            )),
            Err(error) => Err(error).context(|| format!("create {}", dir.display())),
        }
    }

    /// `NotFound` only if there is no container of this id: a failing disk is another error.
    pub(crate) fn open(root: &Path, id: &str) -> Result<StateDir> {
        check_id(id)?;
        let dir = root.join(id);
        let none = || Error::not_found(format!("container {id} does not exist"));
        match fs::metadata(&dir) {
            Ok(found) if found.is_dir() => Ok(StateDir(dir)),
            Ok(_) => Err(none()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(none()),
            Err(error) => Err(error).context(|| format!("look for container {id} in {}", root.display())),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Makes the directory of the notification socket, which the container will see. Returns its absolute path.
    pub(crate) fn make_notices(&self) -> Result<PathBuf> {
        let path = self.path(NOTICES);
        let make = || {
            fs::create_dir(&path)?;
            // Whatever the caller's umask.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
            path.canonicalize()
        };
        make().context(|| format!("make {}", path.display()))
    }

    /// Binds that socket, writable for every user of the container. None if the directory was not made.
    pub(crate) fn bind_notices(&self) -> Result<Option<UnixDatagram>> {
        let path = self.path(NOTICES);
        let bind = || -> std::io::Result<UnixDatagram> {
            // Relative to the directory's descriptor, as the path may be longer than a socket address allows.
            let folder = fs::File::open(&path)?;
            let short = proc_path(folder.as_fd()).join(NOTICES_SOCKET);
            let socket = UnixDatagram::bind(&short)?;
            fs::set_permissions(&short, fs::Permissions::from_mode(0o777))?;
            Ok(socket)
        };
        match bind() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some).context(|| format!("listen in {}", path.display())),
        }
    }

    pub(crate) fn write(&self, state: &State) -> Result<()> {
        self.draft(state)?;
        self.publish(STATE)
    }

    /// Writes the state to a draft, which [`StateDir::publish_state`] renames.
    pub(crate) fn draft(&self, state: &State) -> Result<()> {
        let bytes = serde_json::to_vec(state).expect("a state has only strings and numbers");
        self.write_draft(STATE, &bytes)
    }

    /// Publishes the drafted state: the container is complete from here on.
    pub(crate) fn publish_state(&self) -> Result<()> {
        self.publish(STATE)
    }

    /// Writes a file atomically. Without fsync: after a power cut there is no process left for it to describe.
    pub(crate) fn write_file(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.write_draft(name, bytes)?;
        self.publish(name)
    }

    fn write_draft(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let draft = self.path(&draft(name));
        let mut options = fs::File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        let write = || options.open(&draft)?.write_all(bytes);
        write().context(|| format!("write {}", draft.display()))
    }

    fn publish(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        fs::rename(self.path(&draft(name)), &path).context(|| format!("write {}", path.display()))
    }

    pub(crate) fn read(&self) -> Result<State> {
        let path = self.path(STATE);
        let bytes = fs::read(&path).context(|| format!("read {}", path.display()))?;
        let state: State = serde_json::from_slice(&bytes)
            .map_err(|error| Error::data_loss(format!("read {}", path.display())).with_source(error))?;
        if state.version != VERSION {
            let message =
                format!("{} has version {}, this program knows {VERSION}", path.display(), state.version);
            return Err(Error::failed_precondition(message));
        }
        Ok(state)
    }

    /// The state; None if create has not got that far.
    pub(crate) fn try_read(&self) -> Result<Option<State>> {
        self.read().unless_gone()
    }

    pub(crate) fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.context(|| format!("remove {}", self.0.display())),
        }
    }
}

/// Checks an id against runc's rule (`[A-Za-z0-9_+.-]+`); it is a file name. The daemon's rule is stricter.
pub(crate) fn check_id(id: &str) -> Result<()> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+.-".contains(&byte);
    let why = match id {
        "" => "it is empty",
        "." | ".." => "it is a directory's name",
        _ if !id.bytes().all(is_allowed) => "only letters, digits, '_', '+', '-' and '.' may occur",
        _ => return Ok(()),
    };
    Err(Error::invalid_argument(format!("container id {id:?}: {why}")))
}

fn draft(name: &str) -> String {
    format!("{name}.draft")
}

impl State {
    /// A new record, whose process is not identified yet.
    pub(crate) fn new(id: &str, pid: u32, bundle: &Path, rootfs: &Path) -> State {
        State {
            version: VERSION,
            id: id.to_owned(),
            pid,
            started_at_ticks: 0,
            bundle: bundle.to_owned(),
            rootfs: rootfs.to_owned(),
            created: Timestamp::now(),
            owner_uid: rustix::process::getuid().as_raw(),
            cgroups: BTreeMap::new(),
            cgroup_inodes: BTreeMap::new(),
            has_own_pids: None,
            systemd_scope: None,
            systemd_sockets: Vec::new(),
            annotations: BTreeMap::new(),
            hooks: None,
            personality: None,
            memory_policy: None,
            first_process: None,
            supervisor: None,
            no_new_keyring: false,
            keyring_name: None,
            resctrl: None,
            resctrl_groups: Vec::new(),
        }
    }

    /// Records what the spec says about the container's later life.
    pub(crate) fn note(&mut self, spec: &Spec) {
        self.annotations.clone_from(&spec.annotations);
        self.hooks = Some(spec.hooks.clone().unwrap_or_default());
        self.first_process = spec.process.as_ref().map(FirstProcess::of);
        if let Some(linux) = &spec.linux {
            self.personality.clone_from(&linux.personality);
            self.memory_policy.clone_from(&linux.memory_policy);
        }
    }

    /// The container's hooks; none if a state file of an earlier version has lost its bundle.
    pub(crate) fn hooks(&self) -> Result<Cow<'_, Hooks>> {
        match &self.hooks {
            Some(hooks) => Ok(Cow::Borrowed(hooks)),
            None => read_hooks(&self.bundle).map(|hooks| Cow::Owned(hooks.unwrap_or_default())),
        }
    }

    /// The session keyring that further processes join; None if they keep their caller's.
    pub(crate) fn keyring(&self) -> Option<String> {
        let earlier = || format!("_ses.{}", self.id);
        (!self.no_new_keyring).then(|| self.keyring_name.clone().unwrap_or_else(earlier))
    }

    /// A further process with the first one's defaults filled in, so that it is not less confined if its description
    /// leaves labels out.
    pub(crate) fn complete(&self, process: &Process) -> Process {
        let mut whole = process.clone();
        if let Some(first) = &self.first_process {
            first.complete(&mut whole);
        }
        whole
    }

    /// Reads the start time of the process.
    pub(crate) fn identify(&mut self) -> Result<()> {
        self.started_at_ticks = started_at_ticks(self.pid)?.unwrap_or(0);
        Ok(())
    }

    /// Whether the container's first process is still running.
    pub(crate) fn is_alive(&self) -> Result<bool> {
        Ok(started_at_ticks(self.pid)? == Some(self.started_at_ticks))
    }

    /// The state document for hooks and `runc state` (runtime-spec `runtime.md`, "State").
    pub fn document(&self, status: Status) -> serde_json::Value {
        serde_json::json!({
            "ociVersion": types::spec::runtime::VERSION,
            "id": self.id,
            "pid": if status == Status::Stopped { 0 } else { self.pid },
            "status": status.name(),
            "bundle": self.bundle,
            "rootfs": self.rootfs,
            "created": self.created.to_string(),
            "owner": owner(self.owner_uid),
            "annotations": self.annotations,
        })
    }
}

/// The name of a user on this host, or `#UID`.
fn owner(uid: u32) -> String {
    owner_in(&fs::read("/etc/passwd").unwrap_or_default(), uid)
}

/// Parses a list of users (passwd(5)), whose other lines may not be UTF-8.
fn owner_in(users: &[u8], uid: u32) -> String {
    let users = String::from_utf8_lossy(users);
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    });
    name.map_or_else(|| format!("#{uid}"), str::to_owned)
}

/// The start time of a process; None if there is none, or only a zombie.
fn started_at_ticks(pid: u32) -> Result<Option<u64>> {
    let path = format!("/proc/{pid}/stat");
    let text = match linux::procfs::read_own(&path) {
        Ok(text) => text,
        Err(error)
            if error.kind() == std::io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error).context(|| format!("read {path}")),
    };
    // The command name in parentheses may contain anything, so fields are counted behind the last parenthesis.
    let fields: Vec<&str> = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    match (fields.first(), fields.get(19).and_then(|ticks| ticks.parse().ok())) {
        (Some(&("Z" | "X" | "x")), _) => Ok(None),
        (Some(_), Some(ticks)) => Ok(Some(ticks)),
        _ => Err(Error::internal(format!("{path} is not as proc(5) says"))),
    }
}

#[cfg(test)]
mod tests {
    use types::ErrorKind;

    use super::*;

    #[test]
    fn ids_are_names_of_directories() {
        for id in ["a", "_a", "-a", ".a", "a+b", "a.", "..."] {
            check_id(id).unwrap();
        }
        for id in ["", ".", "..", "a/b", "a b", "a\n", "\u{e4}", "a:b", "a\0"] {
            assert!(check_id(id).unwrap_err().is(ErrorKind::InvalidArgument), "{id:?}");
        }
    }

    #[test]
    fn a_process_may_have_any_name() {
        use std::io::Read as _;
        use std::process::{Command, Stdio};

        let script = r"printf '\377) Z \377' > /proc/$$/comm && echo named && read -r line";
        let mut process = Command::new("sh");
        process.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = process.spawn().unwrap();
        process.stdout.take().unwrap().read_exact(&mut [0; 6]).unwrap();
        let stat = fs::read(format!("/proc/{}/stat", process.id())).unwrap();
        let began = started_at_ticks(process.id());
        drop(process.stdin.take());
        process.wait().unwrap();
        assert!(stat.contains(&0xff), "it has that name");
        assert!(began.unwrap().is_some_and(|ticks| ticks > 0));
        assert_eq!(started_at_ticks(process.id()).unwrap(), None);
    }

    #[test]
    fn state_directories_are_readable_for_their_owner_only() {
        let parent = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let root = parent.path().join("root");
        let dir = StateDir::create(&root, "one").unwrap();
        dir.write_file("file", b"").unwrap();
        assert_eq!([mode(&root), mode(&dir.path("")), mode(&dir.path("file"))], [0o700, 0o700, 0o600]);
        fs::set_permissions(&root, fs::Permissions::from_mode(0o711)).unwrap();
        StateDir::create(&root, "two").unwrap();
        assert_eq!(mode(&root), 0o711, "one that is there stays as it is");
    }

    #[test]
    fn owners_are_found_in_a_passwd_file_that_is_not_utf_8() {
        let users = b"\xff:x:7:7:::\nroot:x:0:0:r\xfft:/root:\n";
        assert_eq!(owner_in(users, 0), "root");
        assert_eq!(owner_in(users, 8), "#8");
    }

    #[test]
    fn a_state_directory_that_cannot_be_read_is_not_taken_for_missing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(StateDir::open(dir.path(), "one").unwrap_err().is(ErrorKind::NotFound));
        fs::write(dir.path().join("file"), "").unwrap();
        let error = StateDir::open(&dir.path().join("file"), "one").unwrap_err();
        assert!(!error.is(ErrorKind::NotFound) && error.message().contains("one"), "{}", error.chain());
    }
}
