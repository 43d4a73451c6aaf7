//! An epoll set whose events carry their [`Source`].
//!
//! A source is packed into the 64 bits of user data that epoll stores, so that no table is needed. Ids are never
//! reused: an event of a removed source finds nothing and is dropped.
//!
//! Copies between descriptors are armed for one event at a time ([`Poll::arm`]): a pipe whose other end hung up would
//! report that again and again otherwise.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use crate::process::ProcessKey;
use crate::stdio::Stream;

/// The owner of a descriptor in the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The socket that daemons connect to.
    Listener,
    /// A daemon's connection.
    Connection(u32),
    /// SIGCHLD: a child may have ended.
    Children,
    /// The connection to the daemon's event service.
    Publisher,
    /// A container ran out of memory.
    Oom(u32),
    /// A worker has reported, or ended.
    Worker(u32),
    /// One end of a copy.
    Copy(ProcessKey, Stream),
}

impl Source {
    fn pack(self) -> u64 {
        let (kind, id, part) = match self {
            Source::Listener => (0, 0, 0),
            Source::Connection(id) => (1, id, 0),
            Source::Children => (2, 0, 0),
            Source::Publisher => (3, 0, 0),
            Source::Oom(id) => (4, id, 0),
            Source::Worker(id) => (5, id, 0),
            Source::Copy(ProcessKey(id), stream) => (6, id, stream as u8),
        };
        kind << 56 | u64::from(id) << 8 | u64::from(part)
    }

    fn unpack(data: u64) -> Source {
        let id = (data >> 8) as u32;
        match data >> 56 {
            0 => Source::Listener,
            1 => Source::Connection(id),
            2 => Source::Children,
            3 => Source::Publisher,
            4 => Source::Oom(id),
            5 => Source::Worker(id),
            _ => Source::Copy(ProcessKey(id), Stream::ALL[(data & 3) as usize % 3]),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    Read,
    Write,
    ReadAndWrite,
}

impl Interest {
    fn flags(self) -> EventFlags {
        match self {
            Interest::Read => EventFlags::IN,
            Interest::Write => EventFlags::OUT,
            Interest::ReadAndWrite => EventFlags::IN | EventFlags::OUT,
        }
    }
}

pub(crate) struct Poll {
    epoll: OwnedFd,
}

/// Events of one epoll_wait(2).
const BATCH: usize = 32;

impl Poll {
    pub(crate) fn new() -> io::Result<Poll> {
        Ok(Poll { epoll: epoll::create(CreateFlags::CLOEXEC)? })
    }

    /// Reports `source` whenever and as long as `fd` is ready.
    pub(crate) fn add(&self, fd: impl AsFd, source: Source, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(source.pack()), interest.flags())?)
    }

    pub(crate) fn change(&self, fd: impl AsFd, source: Source, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, fd, EventData::new_u64(source.pack()), interest.flags())?)
    }

    pub(crate) fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, fd)?)
    }

    /// Reports `source` once, the next time `fd` is ready.
    ///
    /// `PermissionDenied` for descriptors that are always ready, such as regular files.
    pub(crate) fn arm(&self, fd: impl AsFd, source: Source, interest: Interest) -> io::Result<()> {
        let data = EventData::new_u64(source.pack());
        let flags = interest.flags() | EventFlags::ONESHOT;
        match epoll::modify(&self.epoll, &fd, data, flags) {
            Err(rustix::io::Errno::NOENT) => Ok(epoll::add(&self.epoll, &fd, data, flags)?),
            other => Ok(other?),
        }
    }

    /// Waits for events, and appends their sources. `None` waits for ever.
    pub(crate) fn wait(&self, timeout: Option<Duration>, ready: &mut Vec<Source>) -> io::Result<()> {
        let timeout = timeout.map(|timeout| {
            rustix::event::Timespec::try_from(timeout)
                .unwrap_or(rustix::event::Timespec { tv_sec: 3600, tv_nsec: 0 })
        });
        let mut events = [const { std::mem::MaybeUninit::<Event>::uninit() }; BATCH];
        match epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()) {
            Ok((events, _)) => {
                ready.extend(events.iter().map(|event| Source::unpack(event.data.u64())));
                Ok(())
            }
            Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_survives_the_kernel() {
        for source in [
            Source::Listener,
            Source::Connection(u32::MAX),
            Source::Children,
            Source::Publisher,
            Source::Oom(7),
            Source::Worker(8),
            Source::Copy(ProcessKey(u32::MAX), Stream::Stdin),
            Source::Copy(ProcessKey(9), Stream::Stdout),
            Source::Copy(ProcessKey(0), Stream::Stderr),
        ] {
            assert_eq!(Source::unpack(source.pack()), source);
        }
    }
}
