//! OOM events of a cgroup.
//!
//! Version 1 signals an eventfd that is registered for `memory.oom_control`; version 2 changes
//! `memory.events`, which inotify reports. Both are one descriptor to poll.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::event::EventfdFlags;
use rustix::fs::OFlags;
use rustix::fs::inotify;
use types::{Context as _, Error, Result};

use super::{Cgroup, Member};

/// Readable (`POLLIN`) after an event, until [`OomWatch::take`] is called.
pub struct OomWatch {
    event: OwnedFd,
    /// `memory.oom_control` or `memory.events`.
    counter: OwnedFd,
    kind: Kind,
    tally: Tally,
}

/// Totals of a cgroup since it was created.
#[derive(Clone, Copy)]
struct Tally {
    /// Events of the last read whose kills were not counted yet.
    owed: u64,
    kills: u64,
}

impl Tally {
    /// Adds the events since the last read, and the total of killed processes. In version 1 a kill follows its event,
    /// and may be visible at the next read only, where it must not count as another event. Events are not kept for
    /// longer than that: there are more events than kills, and a kill without an event, as when the whole machine runs
    /// out of memory, counts as one.
    fn add(&mut self, signalled: u64, kills: u64) -> Oom {
        let new = kills.saturating_sub(self.kills);
        // The first kills belong to the previous read's events.
        let beyond = new.saturating_sub(self.owed);
        self.kills += new;
        self.owed = signalled.saturating_sub(beyond);
        Oom { events: signalled.max(beyond), kills: new }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Eventfd,
    Inotify,
}

/// Changes since the last read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Oom {
    /// How often memory ran out. In version 1 this comes first, and the kill a moment later, perhaps at the next read.
    pub events: u64,
    /// Processes that the OOM killer killed.
    pub kills: u64,
}

impl OomWatch {
    pub(super) fn new(cgroup: &Cgroup) -> Result<OomWatch> {
        let (member, kind) = match (cgroup.controller("memory"), cgroup.unified()) {
            (Some(member), _) => (member, Kind::Eventfd),
            (None, Some(member)) => (member, Kind::Inotify),
            (None, None) => return Err(missing()),
        };
        let (event, counter) = match kind {
            Kind::Eventfd => register(member)?,
            Kind::Inotify => subscribe(member)?,
        };
        let mut watch = OomWatch { event, counter, kind, tally: Tally { owed: 0, kills: 0 } };
        let kills = watch.kills()?;
        watch.tally = Tally { owed: 0, kills };
        Ok(watch)
    }

    /// The changes since the last call, or since the watch began. Never blocks.
    pub fn take(&mut self) -> Result<Oom> {
        let signalled = self.drain().context(|| "read out-of-memory event")?;
        let signalled = match self.kind {
            // Removing the cgroup signals too; then its counter is gone.
            Kind::Eventfd if self.text().is_err() => 0,
            Kind::Eventfd => signalled,
            Kind::Inotify => 0,
        };
        let kills = self.kills()?;
        Ok(self.tally.add(signalled, kills))
    }

    /// Processes killed by the OOM killer so far; the last known number once the cgroup is gone.
    pub fn kills(&self) -> Result<u64> {
        let Ok(text) = self.text() else { return Ok(self.tally.kills) };
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(line.and_then(|number| number.parse().ok()).unwrap_or(0))
    }

    fn text(&self) -> io::Result<String> {
        let mut bytes = [0; 512];
        let len = rustix::io::pread(&self.counter, &mut bytes, 0)?;
        Ok(String::from_utf8_lossy(&bytes[..len]).into_owned())
    }

    fn drain(&self) -> io::Result<u64> {
        let mut bytes = [0; 4096];
        let read = match rustix::io::read(&self.event, &mut bytes) {
            Ok(read) => read,
            Err(rustix::io::Errno::AGAIN) => 0,
            Err(errno) => return Err(errno.into()),
        };
        let count = bytes.first_chunk().filter(|_| read >= 8).map_or(0, |bytes| u64::from_ne_bytes(*bytes));
        Ok(count)
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// cgroup-v1/memory.rst, "OOM control".
fn register(memory: &Member) -> Result<(OwnedFd, OwnedFd)> {
    let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(io::Error::from)
        .context(|| "create an eventfd")?;
    let control = memory.open_file("memory.oom_control", OFlags::RDONLY)?;
    memory.write("cgroup.event_control", &format!("{} {}", event.as_raw_fd(), control.as_raw_fd()))?;
    Ok((event, control))
}

fn subscribe(member: &Member) -> Result<(OwnedFd, OwnedFd)> {
    let counter = member.open_file("memory.events", OFlags::RDONLY).map_err(|error| {
        if error.is(types::ErrorKind::NotFound) { missing().with_source(error) } else { error }
    })?;
    let watch = || -> io::Result<OwnedFd> {
        let event = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&event, member.file("memory.events"), inotify::WatchFlags::MODIFY)?;
        Ok(event)
    };
    Ok((watch().context(|| format!("watch {}", member.file("memory.events").display()))?, counter))
}

fn missing() -> Error {
    Error::failed_precondition("cgroup controller memory is not there to watch")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_oom_kill_read_after_its_event_is_not_a_second_event() {
        let mut tally = Tally { owed: 0, kills: 2 };
        assert_eq!(tally.add(1, 2), Oom { events: 1, kills: 0 });
        assert_eq!(tally.add(0, 3), Oom { events: 0, kills: 1 });
        assert_eq!(tally.add(0, 3), Oom::default());
        assert_eq!(tally.add(1, 4), Oom { events: 1, kills: 1 }, "both at one look");
        assert_eq!(tally.add(0, 6), Oom { events: 2, kills: 2 }, "without signals, as with version 2");
        assert_eq!(tally.add(2, 6), Oom { events: 2, kills: 0 }, "signals of which nothing comes");
        assert_eq!(tally.add(0, 6), Oom::default());
        assert_eq!(tally.add(0, 7), Oom { events: 1, kills: 1 }, "they excuse no later kill");
        for expected in [Oom { events: 1, kills: 0 }, Oom { events: 1, kills: 1 }] {
            assert_eq!(tally.add(1, 7 + expected.kills), expected, "each before its kill is seen");
        }
        assert_eq!(tally.add(0, 9), Oom { events: 0, kills: 1 }, "the second signal's");
    }
}
