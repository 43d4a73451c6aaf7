//! Kernel namespaces (namespaces(7)): their kinds, and joining them.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};
use types::{Context, Error, Result};

/// A kind of namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NsKind {
    User,
    Mount,
    Pid,
    Network,
    Ipc,
    Uts,
    Cgroup,
    Time,
}

impl NsKind {
    pub const ALL: [NsKind; 8] = [
        NsKind::User,
        NsKind::Mount,
        NsKind::Pid,
        NsKind::Network,
        NsKind::Ipc,
        NsKind::Uts,
        NsKind::Cgroup,
        NsKind::Time,
    ];

    /// The name in the OCI runtime spec.
    pub fn name(self) -> &'static str {
        match self {
            NsKind::User => "user",
            NsKind::Mount => "mount",
            NsKind::Pid => "pid",
            NsKind::Network => "network",
            NsKind::Ipc => "ipc",
            NsKind::Uts => "uts",
            NsKind::Cgroup => "cgroup",
            NsKind::Time => "time",
        }
    }

    /// By the name in the OCI runtime spec; `InvalidArgument` for others.
    pub fn from_name(name: &str) -> Result<NsKind> {
        NsKind::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| Error::invalid_argument(format!("unknown namespace type {name:?}")))
    }

    /// Opens a namespace of this kind by its path, without blocking on other kinds of files; [`join`] checks what it
    /// is.
    pub fn open(self, path: &Path) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty())
            .map_err(io::Error::from)
            .context(|| format!("open {} namespace {}", self.name(), path.display()))
    }

    /// The name below `/proc/PID/ns`.
    pub fn file_name(self) -> &'static str {
        match self {
            NsKind::Mount => "mnt",
            NsKind::Network => "net",
            other => other.name(),
        }
    }

    /// The `CLONE_NEW…` flag.
    pub fn clone_flag(self) -> u64 {
        let flag = match self {
            NsKind::User => libc::CLONE_NEWUSER,
            NsKind::Mount => libc::CLONE_NEWNS,
            NsKind::Pid => libc::CLONE_NEWPID,
            NsKind::Network => libc::CLONE_NEWNET,
            NsKind::Ipc => libc::CLONE_NEWIPC,
            NsKind::Uts => libc::CLONE_NEWUTS,
            NsKind::Cgroup => libc::CLONE_NEWCGROUP,
            NsKind::Time => 0x80,
        };
        u64::from(flag.cast_unsigned())
    }
}

/// Whether `file` is the calling process's namespace of this kind.
pub fn is_current(file: BorrowedFd<'_>, kind: NsKind) -> Result<bool> {
    let path = format!("/proc/self/ns/{}", kind.file_name());
    let current = rustix::fs::stat(&path).map_err(io::Error::from).context(|| path)?;
    let file = rustix::fs::fstat(file).map_err(io::Error::from).context(|| "look at a namespace")?;
    // ioctl_ns(2): device and inode identify a namespace.
    Ok((file.st_dev, file.st_ino) == (current.st_dev, current.st_ino))
}

/// Moves the calling thread into the namespace of `file`. Only children enter a pid namespace.
pub fn join(file: BorrowedFd<'_>, kind: NsKind) -> Result<()> {
    let link_type = match kind {
        NsKind::User => LinkNameSpaceType::User,
        NsKind::Mount => LinkNameSpaceType::Mount,
        NsKind::Pid => LinkNameSpaceType::ProcessID,
        NsKind::Network => LinkNameSpaceType::Network,
        NsKind::Ipc => LinkNameSpaceType::InterProcessCommunication,
        NsKind::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
        NsKind::Cgroup => LinkNameSpaceType::ControlGroup,
        NsKind::Time => LinkNameSpaceType::Time,
    };
    move_into_link_name_space(file, Some(link_type))
        .map_err(io::Error::from)
        .context(|| format!("join {} namespace", kind.name()))
}

/// Moves the calling thread into several namespaces of the process of `pidfd`, in one step (setns(2) since Linux 5.8).
pub fn join_process(pidfd: BorrowedFd<'_>, kinds: &[NsKind]) -> Result<()> {
    let flags = kinds.iter().fold(0, |flags, kind| flags | kind.clone_flag());
    let flags = ThreadNameSpaceType::from_bits_retain(u32::try_from(flags).expect("flags have 32 bits"));
    move_into_thread_name_spaces(pidfd, flags)
        .map_err(io::Error::from)
        .context(|| "join the namespaces of the container's first process")
}

/// Moves the calling thread, and no other, into new namespaces (unshare(2)). A process with more threads calls this in
/// a thread that ends afterwards.
#[expect(unsafe_code, reason = "rustix marks unshare as unsafe for the sake of the table of open files")]
pub fn unshare(kinds: &[NsKind]) -> Result<()> {
    let flags = kinds.iter().fold(0, |flags, kind| flags | kind.clone_flag());
    let flags =
        rustix::thread::UnshareFlags::from_bits_retain(u32::try_from(flags).expect("flags have 32 bits"));
    // SAFETY: only namespaces are left; the table of open files stays shared.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(io::Error::from).context(|| "make namespaces")
}
