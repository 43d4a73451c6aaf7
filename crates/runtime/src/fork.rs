//! Cloning a container's first process into namespaces that only a child can be in.
//!
//! A process that joins a pid namespace stays where it is, only its children are in it; and namespaces that a process
//! makes belong to the user namespace it is in. So both kinds are joined before the clone: a pid namespace by the
//! parent, which goes back; a user namespace, from which there is no way back, by an intermediate process.
//!
//! Namespaces to join need not belong to the container's user namespace. Those that can only be joined from outside of
//! it are joined by the intermediate process first, the rest by the child. Even before, the intermediate process mounts
//! the trees that bind mounts show to a user namespace: see [`MountStage`].
//!
//! ```text
//! parent ─ join pid ─ clone ─ go back
//!             └─▶ child
//!
//! parent ─ clone ─▶ intermediate ─ stage mounts ─ join others, user, pid ─ clone sibling ─▶ child
//!    ▲                                                                          │
//!    └───────────────────────────── pid of the child ───────────────────────────┘
//! ```

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use linux::ns::{self, NsKind};
use linux::process::{self, Cloned, PidFd, clone_process, clone_sibling};
use types::{Context, Error, ErrorKind, Result};

use crate::channel::{Channel, Message};
use crate::rootfs::MountStage;

/// How long the intermediate process may take.
const JOIN_MAX: Duration = Duration::from_secs(5);

/// What a process is cloned into.
pub(crate) struct Fork<'a> {
    /// A user namespace to join: its file, or a pidfd of a process in it.
    pub(crate) user: Option<BorrowedFd<'a>>,
    /// A pid namespace to join, likewise.
    pub(crate) pid: Option<BorrowedFd<'a>>,
    /// All namespaces that the child is to be in; it joins those that the clone did not put it into.
    pub(crate) joined: &'a [(NsKind, OwnedFd)],
    /// Namespaces to make (`CLONE_NEW…`).
    pub(crate) new: u64,
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// Trees of the child's bind mounts, if the kernel is to lock them.
    pub(crate) stage: Option<&'a MountStage>,
}

impl Fork<'_> {
    /// # Safety
    ///
    /// As for [`clone_process`]: a single thread, and the child never returns.
    #[expect(unsafe_code, reason = "the caller's promise is passed on")]
    pub(crate) unsafe fn clone(&self) -> Result<Cloned> {
        // SAFETY: the caller promises the same.
        unsafe {
            match self.user {
                None if self.stage.is_none() && !self.leaves_others_outside() => self.clone_directly(),
                user => self.clone_by_intermediate(user),
            }
        }
    }

    /// Whether the child gets a new user namespace, from which it might not be allowed to join the others.
    fn leaves_others_outside(&self) -> bool {
        self.new & NsKind::User.clone_flag() != 0 && self.others().next().is_some()
    }

    fn others(&self) -> impl Iterator<Item = &(NsKind, OwnedFd)> {
        // The container's files are reached through the host's mounts until the container has its own.
        let is_other = |kind: NsKind| !matches!(kind, NsKind::User | NsKind::Pid | NsKind::Mount);
        self.joined.iter().filter(move |(kind, _)| is_other(*kind))
    }

    /// # Safety
    ///
    /// As for [`clone_process`].
    #[expect(unsafe_code, reason = "the caller's promise is passed on")]
    unsafe fn clone_directly(&self) -> Result<Cloned> {
        let way_back = match self.pid {
            Some(pid) => {
                let own = fs::File::open("/proc/self/ns/pid").context(|| "open our own pid namespace")?;
                ns::join(pid, NsKind::Pid)?;
                Some(own)
            }
            None => None,
        };
        // SAFETY: the caller promises the same.
        let cloned = unsafe { clone_process(self.new, self.cgroup) };
        match (way_back, &cloned) {
            (None, _) | (_, Ok(Cloned::Child)) => {}
            (Some(own), _) => ns::join(own.as_fd(), NsKind::Pid)?,
        }
        cloned
    }

    /// # Safety
    ///
    /// As for [`clone_process`].
    #[expect(unsafe_code, reason = "the caller's promise is passed on")]
    unsafe fn clone_by_intermediate(&self, user: Option<BorrowedFd<'_>>) -> Result<Cloned> {
        let (mut ours, theirs) = Channel::pair()?;
        // SAFETY: the caller promises to have a single thread; the intermediate process exits below, or is the parent
        // of the child, which never returns.
        let (pid, intermediate) = match unsafe { clone_process(0, self.cgroup) }? {
            Cloned::Child => {
                drop(ours);
                // SAFETY: this process is a copy of a single thread, and the child never returns, as the caller promises.
                match unsafe { self.join_and_clone(user) } {
                    Ok(None) => return Ok(Cloned::Child),
                    Ok(Some(pid)) => {
                        // If the message is lost, the end of the channel tells the parent.
                        let _ = theirs.send(&Message::Pid(pid));
                        process::exit_now(0)
                    }
                    Err(error) => {
                        let _ = theirs.send(&Message::Failed(error.kind(), error.chain()));
                        process::exit_now(1)
                    }
                }
            }
            Cloned::Parent { pid, pidfd } => (pid, pidfd),
        };
        drop(theirs);
        // The root of a joined user namespace may stop this process, which must not block the caller.
        ours.limit(JOIN_MAX);
        // A process that sees the child in its pid namespace may have taken its end of the channel.
        ours.accept_only_from(pid);
        let answer = ours.receive();
        intermediate.end();
        match answer? {
            // The intermediate process made it, and only the parent reaps it, so that the pid cannot be reused.
            Some(Message::Pid(pid)) => Ok(Cloned::Parent { pid, pidfd: PidFd::open(pid)? }),
            Some(Message::Failed(kind, words)) => Err(Error::new(kind, words)),
            _ => Err(Error::new(ErrorKind::Internal, "the intermediate process ended early")),
        }
    }

    /// # Safety
    ///
    /// As for [`clone_process`].
    #[expect(unsafe_code, reason = "the caller's promise is passed on")]
    unsafe fn join_and_clone(&self, user: Option<BorrowedFd<'_>>) -> Result<Option<u32>> {
        process::forbid_tracing()?;
        if let Some(stage) = self.stage {
            stage.set_up().context(|| "mount what the container's bind mounts show")?;
        }
        for (kind, file) in self.others() {
            match ns::join(file.as_fd(), *kind) {
                // It belongs to the container's user namespace, or to one inside it.
                Err(error) if error.is(ErrorKind::PermissionDenied) => {}
                other => other?,
            }
        }
        if let Some(user) = user {
            ns::join(user, NsKind::User)?;
        }
        if let Some(pid) = self.pid {
            ns::join(pid, NsKind::Pid)?;
        }
        // SAFETY: the caller promises the same.
        unsafe { clone_sibling(self.new) }
    }
}
