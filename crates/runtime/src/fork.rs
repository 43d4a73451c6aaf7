//! Cloning a container's first process into namespaces that only the newborn can be in.
//!
//! A pid namespace is entered by the children of whoever joins it, and what a process makes belongs to the
//! user namespace it is in. So both are joined before the clone: by the parent, which goes back, or, since
//! there is no way back out of a user namespace, by a go-between.
//!
//! Namespaces to join need not belong to the user namespace of the container: those that may be joined only from outside
//! of it are joined by the go-between before. What is left is joined by the newborn. What bind mounts show to a user namespace
//! is mounted by the go-between before that: see [`Shelf`].
//!
//! ```text
//! parent ─ join pid ─ clone ─ go back          parent ─ clone ─▶ go-between ─ shelf ─ join others, user, pid ─ clone sibling
//!             └─▶ child                           ▲                  └─ its pid, then ends                       └─▶ child
//!                                                 └─────────────────────────┘
//! ```

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use linux::ns::{self, NsKind};
use linux::process::{self, Cloned, PidFd, clone_process, clone_sibling};
use types::{Context, Error, ErrorKind, Result};

use crate::channel::{Channel, Message};
use crate::rootfs::Shelf;

/// How long a go-between may take.
const JOIN_MAX: Duration = Duration::from_secs(5);

/// What a process is born into.
pub(crate) struct Fork<'a> {
    /// A user namespace to join: its file, or a pidfd of a process in it.
    pub(crate) user: Option<BorrowedFd<'a>>,
    /// A pid namespace to join, likewise.
    pub(crate) pid: Option<BorrowedFd<'a>>,
    /// All namespaces that the child is to be in, of which it joins what it is not born into.
    pub(crate) joined: &'a [(NsKind, OwnedFd)],
    /// Namespaces to make (`CLONE_NEW…`).
    pub(crate) new: u64,
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// What the child's bind mounts show, where the kernel is to lock it.
    pub(crate) shelf: Option<&'a Shelf>,
}

impl Fork<'_> {
    /// # Safety
    ///
    /// As for [`clone_process`]: a single thread, and the child never returns.
    #[expect(unsafe_code, reason = "the caller's promise is passed on")]
    pub(crate) unsafe fn clone(&self) -> Result<Cloned> {
        // SAFETY: the caller promises what is asked for.
        unsafe {
            match self.user {
                None if self.shelf.is_none() && !self.leaves_others_outside() => self.clone_directly(),
                user => self.clone_by_go_between(user),
            }
        }
    }

    /// Whether the child is born into a user namespace of its own from which it might not join the others.
    fn leaves_others_outside(&self) -> bool {
        self.new & NsKind::User.clone_flag() != 0 && self.others().next().is_some()
    }

    fn others(&self) -> impl Iterator<Item = &(NsKind, OwnedFd)> {
        // The way to files goes through the mounts of the host until the container has its own.
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
        // SAFETY: the caller promises what is asked for.
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
    unsafe fn clone_by_go_between(&self, user: Option<BorrowedFd<'_>>) -> Result<Cloned> {
        let (mut ours, theirs) = Channel::pair()?;
        // SAFETY: the caller promises to have a single thread; the go-between ends below, or is the parent
        // of the child, which never returns.
        let (pid, go_between) = match unsafe { clone_process(0, self.cgroup) }? {
            Cloned::Child => {
                drop(ours);
                // SAFETY: this process is a copy of a single thread, and the child never returns, as the caller promises.
                match unsafe { self.join_and_clone(user) } {
                    Ok(None) => return Ok(Cloned::Child),
                    Ok(Some(pid)) => {
                        // If it cannot be told, the end of the channel tells that something is wrong.
                        let _ = theirs.send(&Message::Born(pid));
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
        // The root of a user namespace that is not new may stop it, and must not hold up the caller.
        ours.limit(JOIN_MAX);
        // Whoever sees the child in its pid namespace may have taken this channel from it.
        ours.listen_only_to(pid);
        let answer = ours.receive();
        go_between.end();
        match answer? {
            // Who says so has made it, and nobody else reaps it: the number is its own.
            Some(Message::Born(pid)) => Ok(Cloned::Parent { pid, pidfd: PidFd::open(pid)? }),
            Some(Message::Failed(kind, words)) => Err(Error::new(kind, words)),
            _ => Err(Error::new(ErrorKind::Internal, "the go-between ended before its time")),
        }
    }

    /// # Safety
    ///
    /// As for [`clone_process`].
    #[expect(unsafe_code, reason = "the caller's promise is passed on")]
    unsafe fn join_and_clone(&self, user: Option<BorrowedFd<'_>>) -> Result<Option<u32>> {
        process::forbid_tracing()?;
        if let Some(shelf) = self.shelf {
            shelf.set_up().context(|| "mount what the container's bind mounts show")?;
        }
        for (kind, file) in self.others() {
            match ns::join(file.as_fd(), *kind) {
                // It belongs to the container's user namespace, or to one in it.
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
        // SAFETY: the caller promises what is asked for.
        unsafe { clone_sibling(self.new) }
    }
}
