//! The last steps of every container process before its program, in create and exec: standard streams, limits, labels,
//! identity, capabilities, filter.
//!
//! The kernel dictates the order: steps that need a privilege come before the one that drops it. The filter comes last,
//! so that it need not allow what the others do. Without `noNewPrivileges` loading it takes `CAP_SYS_ADMIN`, which is
//! permitted until then, and given up by the one call that such a filter must allow, capset(2).

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use linux::cap::{self, CapSet};
use linux::keyring;
use linux::process;
use linux::procfs::Proc;
use linux::seccomp;
use rustix::fs::{Access, AtFlags, FileType, Mode, OFlags, Stat, accessat, makedev};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use types::spec::runtime::{Capabilities, MemoryPolicy, Personality, Process, Rlimit, Spec};
use types::{Context, Error, ErrorKind, Result};

use crate::channel::{Channel, Message};
use crate::labels::Labels;
use crate::scheduling;

/// The umask if the spec has none: the caller's must not leak into the container.
const UMASK_DEFAULT: u32 = 0o022;

/// Bytes of the image's `/etc/passwd` that are read.
const PASSWD_LEN_MAX: u64 = 1 << 20;

/// Makes these the standard streams.
pub(crate) fn set_streams(
    stdin: BorrowedFd<'_>,
    stdout: BorrowedFd<'_>,
    stderr: BorrowedFd<'_>,
) -> Result<()> {
    let set = || -> io::Result<()> {
        rustix::stdio::dup2_stdin(stdin)?;
        rustix::stdio::dup2_stdout(stdout)?;
        rustix::stdio::dup2_stderr(stderr)?;
        Ok(())
    };
    set().context(|| "set standard streams")
}

/// Gives the standard streams to the user, who could otherwise not open pipes of root's by name (`/dev/stdout`). A
/// stream whose owner cannot be changed stays as it is, as with runc.
fn give_streams(uid: u32) -> Result<()> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    for stream in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        let what = || format!("give a standard stream to user {uid}");
        let stat = rustix::fs::fstat(stream).map_err(io::Error::from).context(what)?;
        if stat.st_uid == uid || is_null(&stat) {
            continue;
        }
        match rustix::fs::fchown(stream, Some(Uid::from_raw(uid)), None::<Gid>) {
            // Its owner, or the user, is not mapped in the user namespace, or its file system is read-only.
            Err(Errno::PERM | Errno::ROFS | Errno::INVAL) => {}
            other => other.map_err(io::Error::from).context(what)?,
        }
    }
    Ok(())
}

fn is_null(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == makedev(1, 3)
}

/// Replaces the host's null device by the container's: an open descriptor of the host's would keep its file system
/// busy, and could not be restored from a checkpoint.
pub(crate) fn take_null_from_inside() -> Result<()> {
    let is_null = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).is_ok_and(|stat| is_null(&stat));
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let streams = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()].map(is_null);
    if !streams.contains(&true) {
        return Ok(());
    }
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let root = linux::beneath::Root::open(Path::new("/"))?;
    // A container without such a device keeps the host's.
    let Ok(inside) = root.open_at(Path::new("/dev/null"), flags) else { return Ok(()) };
    if !is_null(inside.as_fd()) {
        return Ok(());
    }
    rustix::fs::fcntl_setfl(&inside, OFlags::empty())
        .map_err(io::Error::from)
        .context(|| "open /dev/null")?;
    let own = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    // The other streams are set to themselves.
    let [first, second, third] = std::array::from_fn(|at| if streams[at] { inside.as_fd() } else { own[at] });
    set_streams(first, second, third)
}

/// The compiled seccomp filter.
pub(crate) struct Filter {
    pub(crate) program: seccomp::Program,
}

impl Filter {
    /// Loads the filter. Before anything else the parent passes its listener on to the supervisor.
    fn load(&self, channel: &Channel) -> Result<()> {
        let listener = seccomp::load(&self.program).context(|| "load the seccomp filter")?;
        if let Some(listener) = listener {
            channel.announce_listener(listener.as_fd()).context(|| "announce the seccomp listener")?;
        }
        Ok(())
    }
}

/// What was opened or looked up for the process while the host was still reachable.
pub(crate) struct ProcessSetup {
    pub(crate) proc: Proc,
    pub(crate) labels: Labels,
    pub(crate) filter: Option<Filter>,
    /// Whether the process becomes dumpable again in the end. Without privileges, its parent has to trace it for the
    /// filter's listener, and later callers of exec for its namespaces, by no other right than that of its user. Only
    /// if no other process of the container can see it.
    pub(crate) is_shown: bool,
    pub(crate) personality: Option<Personality>,
    pub(crate) memory_policy: Option<MemoryPolicy>,
}

impl ProcessSetup {
    /// Whether a filter will give the process a listener, which is one more open file.
    pub(crate) fn has_listener(&self) -> bool {
        self.filter.as_ref().is_some_and(|filter| filter.program.has_listener())
    }
}

/// A process that lacks its filter, if it has one, and is otherwise ready for its program.
#[must_use]
pub(crate) struct Unfiltered {
    filter: Option<Filter>,
    capabilities: cap::Applied,
}

impl Unfiltered {
    /// Loads the filter, with the capability for that, which is then given up.
    pub(crate) fn load_filter(self, channel: &Channel) -> Result<()> {
        let Some(filter) = self.filter else { return Ok(()) };
        self.capabilities.use_kept()?;
        filter.load(channel)?;
        self.capabilities.give_up_kept()
    }
}

/// Sets the limits of the calling process, which still has to make `more` processes: so many more may its user have
/// until [`lower_process_limit`], and it may open the files that it needs until [`lower_file_limit`].
pub(crate) fn set_limits(process: &Process, more: u64, channel: &Channel) -> Result<()> {
    for limit in &process.rlimits {
        if limit.soft > limit.hard {
            return Err(Error::invalid_argument(format!(
                "{}: soft limit {} is above hard limit {}",
                limit.kind, limit.soft, limit.hard
            )));
        }
        set_limit(&until_execution(limit, more), channel)?;
    }
    Ok(())
}

/// A limit as it applies until the program is executed.
fn until_execution(limit: &Rlimit, more: u64) -> Rlimit {
    let (soft, hard) = match limit.kind.as_str() {
        PROCESSES => (limit.soft.saturating_add(more), limit.hard.saturating_add(more)),
        FILES => (limit.soft.max(OWN_FILES), limit.hard.max(OWN_FILES)),
        _ => (limit.soft, limit.hard),
    };
    Rlimit { soft, hard, ..limit.clone() }
}

/// Raises hard limits of a child from outside, as in a user namespace the child may not: for its [`set_limits`] with
/// the same `more`. A limit that cannot be raised is reported by that function.
pub(crate) fn make_room_for_limits(pid: u32, process: &Process, more: u64) {
    for limit in &process.rlimits {
        let Ok(resource) = resource(&limit.kind) else { continue };
        let wanted = until_execution(limit, more).hard;
        if let Ok((soft, hard)) = rlimit(pid, resource)
            && hard < wanted
        {
            let _ = set_rlimit(pid, resource, soft, wanted);
        }
    }
}

/// Lowers the limit of open files to the spec's, for which no privilege is needed, if that was too small for the setup.
pub(crate) fn lower_file_limit(process: &Process) -> Result<()> {
    match process.rlimits.iter().find(|limit| limit.kind == FILES && limit.soft < OWN_FILES) {
        Some(limit) => lower(limit),
        None => Ok(()),
    }
}

/// Lowers the limit of processes to the spec's, for which no privilege is needed.
pub(crate) fn lower_process_limit(process: &Process) -> Result<()> {
    process_limit(process).map_or(Ok(()), lower)
}

fn lower(limit: &Rlimit) -> Result<()> {
    let resource = resource(&limit.kind)?;
    let what = || format!("set {} to {} and {}", limit.kind, limit.soft, limit.hard);
    let (_, hard) = rlimit(OWN, resource).context(what)?;
    set_rlimit(OWN, resource, limit.soft.min(hard), limit.hard.min(hard)).context(what)
}

/// Names the limits of the spec that may be too small for the setup before the program; None if there are none.
pub(crate) fn tight_limits(spec: &Spec) -> Option<String> {
    let resources = spec.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    let memory = resources.and_then(|resources| resources.memory.as_ref()?.limit);
    let memory = memory.filter(|limit| (0..OWN_MEMORY.cast_signed()).contains(limit));
    let mut words: Vec<String> = memory.map(|limit| format!("{limit} bytes of memory")).into_iter().collect();
    let own = spec.process.iter().flat_map(|process| &process.rlimits);
    let tight = own.filter(|limit| match limit.kind.as_str() {
        "RLIMIT_AS" | "RLIMIT_DATA" | "RLIMIT_STACK" => limit.soft < OWN_MEMORY,
        "RLIMIT_CPU" | "RLIMIT_RTTIME" => true,
        _ => false,
    });
    words.extend(tight.map(|limit| format!("{} {}", limit.kind, limit.soft)));
    (!words.is_empty()).then(|| words.join(", "))
}

/// The limit by which a clone can fail.
pub(crate) fn process_limit(process: &Process) -> Option<&Rlimit> {
    process.rlimits.iter().find(|limit| limit.kind == PROCESSES)
}

const PROCESSES: &str = "RLIMIT_NPROC";
const FILES: &str = "RLIMIT_NOFILE";
/// Upper bound of the files that are open before the program is executed.
const OWN_FILES: u64 = 64;
/// Bytes; many times the memory that the setup takes.
const OWN_MEMORY: u64 = 64 << 20;

/// Takes the identity of the spec, with its restrictions, and enters the working directory. Only the filter and the exec
/// are left to do.
pub(crate) fn become_user(process: &Process, setup: ProcessSetup) -> Result<Unfiltered> {
    set_scheduling(process, &setup)?;
    setup.labels.apply(&setup.proc)?;
    if process.no_new_privileges {
        process::forbid_new_privileges()?;
    }
    set_groups(&process.user.additional_gids, &setup.proc)?;
    let none = Capabilities::default();
    let capabilities = process.capabilities.as_ref().unwrap_or(&none);
    give_streams(process.user.uid)?;
    // The last open directory of the host: none may be left when paths of the container are resolved.
    drop(setup.proc);
    // As with runc, root enters the directory for a user that might not be allowed to.
    let is_there = try_directory(&process.cwd)?;
    cap::limit_bounding(CapSet::from_names(&capabilities.bounding))?;
    cap::keep_over_setuid(true)?;
    set_ids(process)?;
    cap::keep_over_setuid(false)?;
    let needs_privilege = setup.filter.is_some() && !process.no_new_privileges;
    let kept = if needs_privilege { CapSet::SYS_ADMIN } else { CapSet::default() };
    let capabilities = cap::apply(capabilities, kept)?;
    let umask = process.user.umask.unwrap_or(UMASK_DEFAULT);
    rustix::process::umask(Mode::from_raw_mode(umask & 0o777));
    if !is_there {
        enter_directory(&process.cwd)?;
    }
    check_directory(&process.cwd)?;
    Ok(Unfiltered { filter: setup.filter, capabilities })
}

fn set_scheduling(process: &Process, setup: &ProcessSetup) -> Result<()> {
    if let Some(priority) = &process.io_priority {
        scheduling::set_io_priority(priority)?;
    }
    if let Some(policy) = &setup.memory_policy {
        scheduling::set_memory_policy(policy)?;
    }
    if let Some(personality) = &setup.personality {
        scheduling::set_personality(personality)?;
    }
    Ok(())
}

/// Becomes uid and gid 0 of a joined user namespace, which has the rights for the following steps.
#[expect(unsafe_code, reason = "the raw system calls, which change this thread only: there is no other")]
pub(crate) fn become_root_of_user_namespace() -> Result<()> {
    // SAFETY: numbers only.
    let failed = unsafe {
        libc::syscall(libc::SYS_setresgid, 0, 0, 0) < 0 || libc::syscall(libc::SYS_setresuid, 0, 0, 0) < 0
    };
    if failed {
        return Err(io::Error::last_os_error()).context(|| "become root of the user namespace");
    }
    Ok(())
}

fn set_limit(limit: &Rlimit, channel: &Channel) -> Result<()> {
    let Rlimit { kind, soft, hard } = limit;
    let resource = resource(kind)?;
    match set_rlimit(OWN, resource, *soft, *hard) {
        // Without CAP_SYS_RESOURCE a hard limit cannot be raised: the current one is kept.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            let (_, most) = rlimit(OWN, resource).context(|| format!("read {kind}"))?;
            if *hard > most {
                let words = format!("{kind} {hard} is above this host's hard limit; {most} is used");
                channel.send(&Message::Warning(words))?;
            }
            set_rlimit(OWN, resource, *soft.min(&most), *hard.min(&most)).context(|| format!("set {kind}"))
        }
        other => other.context(|| format!("set {kind} to {soft} and {hard}")),
    }
}

/// The number of a limit (`asm-generic/resource.h`).
fn resource(name: &str) -> Result<u32> {
    const NAMES: [&str; 16] = [
        "CPU",
        "FSIZE",
        "DATA",
        "STACK",
        "CORE",
        "RSS",
        "NPROC",
        "NOFILE",
        "MEMLOCK",
        "AS",
        "LOCKS",
        "SIGPENDING",
        "MSGQUEUE",
        "NICE",
        "RTPRIO",
        "RTTIME",
    ];
    let bare = name.strip_prefix("RLIMIT_").unwrap_or_default();
    let found = (0..).zip(NAMES).find(|(_, known)| *known == bare);
    found
        .map(|(number, _)| number)
        .ok_or_else(|| Error::invalid_argument(format!("unknown resource limit {name:?}")))
}

/// The calling process, for prlimit(2).
const OWN: u32 = 0;

#[expect(unsafe_code, reason = "prlimit with numbers that rustix does not name")]
fn set_rlimit(pid: u32, resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the kernel reads one structure, which lives across the call.
    let result = unsafe {
        libc::syscall(libc::SYS_prlimit64, pid, resource, &raw const limit, std::ptr::null::<u8>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[expect(unsafe_code, reason = "prlimit with numbers that rustix does not name")]
fn rlimit(pid: u32, resource: u32) -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one structure, which lives across the call.
    let result =
        unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, std::ptr::null::<u8>(), &raw mut limit) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok((limit.rlim_cur, limit.rlim_max)) }
}

/// Sets the oom score of a child from outside: the child itself may no longer be allowed to. Returns a warning.
pub(crate) fn set_oom_score(pid: u32, process: &Process) -> Result<Option<String>> {
    let Some(score) = process.oom_score_adj else { return Ok(None) };
    match Proc::open()?.write(&format!("{pid}/oom_score_adj"), &score.to_string()) {
        Ok(()) => Ok(None),
        // Lowering it needs CAP_SYS_RESOURCE. Without that the container runs all the same.
        Err(error) if error.is(ErrorKind::PermissionDenied) => {
            Ok(Some(format!("oomScoreAdj {score} is not allowed on this host: {}", error.chain())))
        }
        Err(error) => Err(error),
    }
}

#[expect(unsafe_code, reason = "the raw system call, which changes this thread only: there is no other")]
fn set_groups(groups: &[u32], proc: &Proc) -> Result<()> {
    // SAFETY: pointer and length describe a slice that lives across the call.
    if unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) } < 0 {
        let error = io::Error::last_os_error();
        // A user namespace that denies setgroups has no groups to drop either.
        let denied = proc.read("self/setgroups").is_ok_and(|text| text.trim() == "deny");
        if !(denied && groups.is_empty()) {
            return Err(error).context(|| format!("set groups {groups:?}"));
        }
    }
    Ok(())
}

#[expect(unsafe_code, reason = "the raw system calls, which change this thread only: there is no other")]
fn set_ids(process: &Process) -> Result<()> {
    let user = &process.user;
    // SAFETY: numbers only.
    unsafe {
        if libc::syscall(libc::SYS_setresgid, user.gid, user.gid, user.gid) < 0 {
            return Err(io::Error::last_os_error()).context(|| format!("become group {}", user.gid));
        }
        if libc::syscall(libc::SYS_setresuid, user.uid, user.uid, user.uid) < 0 {
            return Err(io::Error::last_os_error()).context(|| format!("become user {}", user.uid));
        }
    }
    Ok(())
}

fn enter_directory(cwd: &str) -> Result<()> {
    rustix::process::chdir(cwd).map_err(io::Error::from).context(|| format!("enter working directory {cwd}"))
}

/// Enters the working directory, and returns whether root was permitted to: a network file system may refuse root, but
/// not the user.
fn try_directory(cwd: &str) -> Result<bool> {
    match enter_directory(cwd) {
        Ok(()) => Ok(true),
        Err(error) if error.is(ErrorKind::PermissionDenied) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes sure that the working directory is inside of the container: one reached through a leaked descriptor would not
/// be (CVE-2024-21626).
fn check_directory(cwd: &str) -> Result<()> {
    match rustix::process::getcwd(Vec::new()) {
        Ok(path) if path.as_bytes().first() == Some(&b'/') => Ok(()),
        _ => Err(Error::permission_denied(format!("working directory {cwd} is outside of the container"))),
    }
}

/// The file to execute: as given if it has a slash, else the first found in the environment's `PATH`.
///
/// `NotFound` and `PermissionDenied` become the exit codes 127 and 126.
pub(crate) fn find(process: &Process) -> Result<CString> {
    let name = &process.args[0];
    if name.is_empty() {
        return Err(Error::not_found("the program's name is empty"));
    }
    let as_c = |path: String| CString::new(path).expect("zero bytes were refused when the spec was read");
    if name.contains('/') {
        return executable(name).map(|()| as_c(name.clone()));
    }
    let path = process.env.iter().rev().find_map(|entry| entry.strip_prefix("PATH="));
    let mut denied = None;
    for folder in path.unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").split(':') {
        let folder = if folder.is_empty() { "." } else { folder };
        let candidate = format!("{folder}/{name}");
        match executable(&candidate) {
            Ok(()) => return Ok(as_c(candidate)),
            Err(error) if error.is(ErrorKind::PermissionDenied) => denied = denied.or(Some(error)),
            Err(_) => {}
        }
    }
    Err(denied
        .unwrap_or_else(|| Error::not_found(format!("exec: {name:?}: executable file not found in $PATH"))))
}

fn executable(path: &str) -> Result<()> {
    let metadata = fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            Error::permission_denied(format!("exec: {path:?}: permission denied"))
        }
        _ => Error::not_found(format!("exec: {path:?}: no such file or directory")),
    })?;
    if metadata.is_dir() {
        // Programs that drive runc match on one of these, by version, and exit with 126.
        return Err(Error::permission_denied(format!("exec: {path:?}: is a directory: permission denied")));
    }
    let is_allowed = |flags| accessat(rustix::fs::CWD, path, Access::EXEC_OK, flags);
    let allowed = match is_allowed(AtFlags::EACCESS) {
        // A filter that the caller is under, and that does not know faccessat2(2), fails so. The older call checks the
        // real user, who is the effective one by now.
        Err(Errno::PERM) => is_allowed(AtFlags::empty()),
        other => other,
    };
    allowed.map_err(|_| Error::permission_denied(format!("exec: {path:?}: permission denied")))
}

/// Each variable once, with its last value: getenv(3) would find the first.
fn variables(all: &[String]) -> Vec<String> {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut seen = BTreeSet::new();
    let mut last: Vec<String> = all.iter().rev().filter(|entry| seen.insert(name(entry))).cloned().collect();
    last.reverse();
    last
}

/// The arguments of execve(2).
pub(crate) struct Execution {
    program: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Execution {
    /// For a program that was found by [`find`].
    pub(crate) fn prepare(program: CString, process: &Process) -> Execution {
        let strings = |list: &[String]| -> Vec<CString> {
            let checked =
                list.iter().map(|text| CString::new(text.as_str()).expect("checked when the spec was read"));
            checked.collect()
        };
        let mut environment = strings(&variables(&process.env));
        // As runc sets `HOME` if it is missing or empty, images rely on it.
        environment.retain(|entry| entry.as_bytes() != b"HOME=");
        if !environment.iter().any(|entry| entry.as_bytes().starts_with(b"HOME=")) {
            let home = format!("HOME={}", home(process.user.uid));
            environment.push(CString::new(home).expect("homes with zero bytes are none"));
        }
        Execution { program, arguments: strings(&process.args), environment }
    }

    /// As entries of `process.env`.
    pub(crate) fn environment(&self) -> Vec<String> {
        self.environment.iter().map(|entry| entry.to_string_lossy().into_owned()).collect()
    }

    /// Executes the program. Returns only on failure.
    pub(crate) fn begin(&self) -> Error {
        let error = process::execute(&self.program, &self.arguments, &self.environment);
        let name = self.program.to_string_lossy();
        match error.raw_os_error() {
            Some(libc::ENOEXEC) => Error::permission_denied(format!(
                "exec: {name:?}: exec format error: the file is made for another architecture, or a script without #!"
            )),
            // Programs that drive runc match on these words, and exit with 127.
            Some(libc::ENOENT) => Error::not_found(format!(
                "exec {name}: no such file or directory: the file is there, but the interpreter or loader that it names \
                 is not in the image"
            )),
            _ => Error::new(error.kind().into(), format!("exec: {name:?}")).with_source(error),
        }
    }
}

/// The home directory of a user in the container's `/etc/passwd` (passwd(5)); `/` if it has none.
///
/// The file is the image's and may be anything: it is opened without blocking, and read up to a limit.
fn home(uid: u32) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = fs::File::from(rustix::fs::open("/etc/passwd", flags, Mode::empty())?);
        let mut bytes = Vec::new();
        if file.metadata()?.is_file() {
            file.take(PASSWD_LEN_MAX).read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    };
    home_in(&read().unwrap_or_default(), uid)
}

/// Parses a list of users, whose other lines may not be UTF-8.
fn home_in(users: &[u8], uid: u32) -> String {
    let users = String::from_utf8_lossy(users);
    let home = users.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let own = fields.next()?.parse() == Ok(uid);
        fields.nth(2).filter(|home| own && home.starts_with('/') && !home.contains('\0'))
    });
    home.unwrap_or("/").to_owned()
}

/// A random name for a container's session keyring. The keyring's owner can join it by name; so the name is a secret,
/// even from a container of the same id and user.
pub(crate) fn keyring_name(id: &str) -> Result<String> {
    let random = linux::random::hex(16).context(|| "name the session keyring")?;
    Ok(format!("_ses.{id}.{random}"))
}

/// All rights for processes that have the keyring (`linux/key.h`). Its owner may search it by name, which exec needs,
/// but not view it, as other containers' users may have the same uid.
const KEYRING_PERMISSIONS: u32 = 0x3f00_0000 | 0x0008_0000;
/// The search permission of user, group and other.
const KEYRING_SEARCH: u32 = 0x0008_0808;

/// Leaves the caller's session keyring for a new one of the container's, which exec joins by name (keyctl(2)).
pub(crate) fn new_keyring(name: &str) -> Result<()> {
    enter_keyring(name)?;
    open_keyring()
}

/// Joins the container's session keyring. It is made anew only if no process had it any more, or yet.
pub(crate) fn join_keyring(name: &str) -> Result<()> {
    enter_keyring(name)?;
    // A keyring found by name has the search permission; a new one has not.
    if keyring::session_permissions().is_some_and(|permissions| permissions & KEYRING_SEARCH == 0) {
        open_keyring()?;
    }
    Ok(())
}

fn enter_keyring(name: &str) -> Result<()> {
    let name = CString::new(name).map_err(|_| Error::data_loss("a keyring's name with a zero byte"))?;
    unless_forbidden(keyring::join_session(&name))
}

fn open_keyring() -> Result<()> {
    unless_forbidden(keyring::set_session_permissions(KEYRING_PERMISSIONS))
}

/// A kernel without keyrings, or a host that forbids them, leaks none.
fn unless_forbidden(done: io::Result<()>) -> Result<()> {
    match done {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => Ok(()),
        done => done.context(|| "join the session keyring of the container"),
    }
}

/// Makes the terminal the standard streams, owned by the user. The session leader will make it the controlling
/// terminal.
pub(crate) fn set_terminal(slave: &OwnedFd, process: &Process, size: Option<(u16, u16)>) -> Result<()> {
    let size = size.or_else(|| process.console_size.as_ref().map(|size| (size.height, size.width)));
    if let Some((rows, columns)) = size {
        linux::tty::resize(slave.as_fd(), rows, columns)?;
    }
    let owner = Some(Uid::from_raw(process.user.uid));
    // A user that is not mapped in the user namespace cannot own it; then root keeps it.
    let _ = rustix::fs::fchown(slave, owner, None::<Gid>);
    set_streams(slave.as_fd(), slave.as_fd(), slave.as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_a_variable_counts() {
        let all = ["A=1", "PATH=/bin", "AB=2", "A=", "PATH=/sbin", "A=b=c"].map(str::to_owned);
        assert_eq!(variables(&all), ["AB=2", "PATH=/sbin", "A=b=c"]);
    }

    #[test]
    fn homes_are_found_in_a_passwd_file_that_is_not_utf_8() {
        let users = b"\xff:x:7:7::/seven:\nuser:x:8:8:u\xffr:/home/user:/bin/sh\n";
        assert_eq!(home_in(users, 8), "/home/user");
        assert_eq!(home_in(users, 9), "/");
    }

    #[test]
    fn limits_that_leave_no_room_are_named() {
        let check = |process: serde_json::Value, resources: serde_json::Value, expected: Option<&str>| {
            let document = serde_json::json!({"process": process, "linux": {"resources": resources}});
            let spec: Spec = serde_json::from_value(document).unwrap();
            assert_eq!(tight_limits(&spec).as_deref(), expected);
        };
        let limits = |kind: &str, soft: u64| serde_json::json!({"rlimits": [{"type": kind, "soft": soft, "hard": soft}]});
        let (none, unlimited) = (serde_json::json!({}), serde_json::json!({"memory": {"limit": -1}}));
        check(none.clone(), none.clone(), None);
        check(limits("RLIMIT_AS", 100_000), unlimited.clone(), Some("RLIMIT_AS 100000"));
        check(limits("RLIMIT_STACK", 8 << 30), unlimited, None);
        check(limits("RLIMIT_NOFILE", 1), none.clone(), None);
        let small = serde_json::json!({"memory": {"limit": 1000}});
        check(limits("RLIMIT_DATA", 7), small, Some("1000 bytes of memory, RLIMIT_DATA 7"));
    }
}
