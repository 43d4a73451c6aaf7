//! Freezing, thawing and killing all processes of a cgroup.
//!
//! Version 2 is used if present, on hybrid hosts too: it reports when the state is reached, and a frozen process can
//! still be killed. The freezer of version 1 can neither.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use types::{Context as _, Error, ErrorKind, Result};

use super::file::{self, has_errno, wait_for_change};
use super::{Cgroup, Member, below};
use crate::process::PidFd;
use crate::signal::SIGKILL;

const PATIENCE: Duration = Duration::from_secs(2);

/// Pidfds held at once: a container may have more processes than this process may have descriptors.
const HELD_MAX: usize = 128;

/// Milliseconds between two reads of a file of version 1.
const STEP_MS: i64 = 1;

enum Freezer<'a> {
    V1(&'a Member),
    V2(&'a Member),
}

pub(super) fn freeze(cgroup: &Cgroup) -> Result<()> {
    let result = match freezer(cgroup)? {
        Freezer::V1(member) => freeze_v1(member),
        Freezer::V2(member) => {
            member.write("cgroup.freeze", "1").and_then(|()| wait_for_event(member, "frozen 1"))
        }
    };
    result.inspect_err(|_| {
        // Processes that did freeze must not stay frozen after an error.
        let _ = thaw(cgroup);
    })
}

pub(super) fn thaw(cgroup: &Cgroup) -> Result<()> {
    match freezer(cgroup)? {
        Freezer::V1(member) => member.write("freezer.state", "THAWED"),
        Freezer::V2(member) => {
            member.write("cgroup.freeze", "0")?;
            wait_for_event(member, "frozen 0")
        }
    }
}

pub(super) fn is_frozen(cgroup: &Cgroup) -> Result<bool> {
    let in_v1 = match cgroup.controller("freezer") {
        // `FREEZING` counts as frozen.
        Some(member) => member.read("freezer.state")? != "THAWED",
        None => false,
    };
    let in_v2 = match freezer(cgroup)? {
        Freezer::V2(member) => member.read("cgroup.freeze")? == "1",
        Freezer::V1(_) => false,
    };
    Ok(in_v1 || in_v2)
}

/// See [`Cgroup::freezes_new_processes`]. Both files include the ancestors' state.
pub(super) fn freezes_new_processes(cgroup: &Cgroup) -> Result<bool> {
    if let Some(member) = cgroup.controller("freezer")
        && member.read("freezer.state")? != "THAWED"
    {
        return Ok(true);
    }
    match cgroup.unified().map(|member| member.read("cgroup.events")) {
        Some(Ok(events)) => Ok(events.lines().any(|line| line == "frozen 1")),
        Some(Err(error)) => Err(error),
        None => Ok(false),
    }
}

pub(super) fn kill(cgroup: &Cgroup) -> Result<()> {
    if let Some(unified) = cgroup.unified() {
        // Linux 5.14.
        match unified.write("cgroup.kill", "1") {
            Ok(()) => return thaw_v1(cgroup),
            Err(error) if error.is(ErrorKind::NotFound) => {}
            Err(error) if has_errno(&error, rustix::io::Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
    }
    kill_each(cgroup)
}

/// Kills until no new process is found, so that one that forks faster than it is found does not escape: frozen
/// processes do not fork.
fn kill_each(cgroup: &Cgroup) -> Result<()> {
    let is_frozen = freeze(cgroup).is_ok();
    let killed = kill_all(cgroup, is_frozen);
    // Thawed also after an error: no one else would.
    let thawed = if is_frozen { thaw(cgroup) } else { Ok(()) };
    killed.and(thawed).and(thaw_v1(cgroup))
}

fn kill_all(cgroup: &Cgroup, is_frozen: bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut seen = BTreeSet::new();
    loop {
        let pids = signal(cgroup, SIGKILL)?;
        let is_done = pids.iter().all(|pid| seen.contains(pid)) || is_frozen;
        if is_done || Instant::now() > deadline {
            return Ok(());
        }
        seen.extend(pids);
    }
}

/// Signals every process, and returns their pids.
///
/// A process may end between the listing and the signal, and its pid be reused. So each is opened as a pidfd first and
/// then looked up again: a process that is in the cgroup while its pidfd is open is one of the cgroup's.
pub(super) fn signal(cgroup: &Cgroup, number: u32) -> Result<Vec<u32>> {
    let pids = cgroup.processes()?;
    for some in pids.chunks(HELD_MAX) {
        let hold = |pid: &u32| Some((*pid, PidFd::open(*pid).ok()?));
        let held: Vec<(u32, PidFd)> = some.iter().filter_map(hold).collect();
        let still_there = cgroup.processes()?;
        for (pid, process) in held {
            if still_there.binary_search(&pid).is_ok() {
                // It may have ended by itself.
                let _ = process.signal(number);
            }
        }
    }
    Ok(pids)
}

/// Processes that the freezer of version 1 holds cannot die, here or in a descendant, which the container may have
/// frozen itself.
pub(super) fn thaw_v1(cgroup: &Cgroup) -> Result<()> {
    let Some(member) = cgroup.controller("freezer") else { return Ok(()) };
    let mut first = Ok(());
    let mut thaw = |dir: BorrowedFd<'_>| {
        // An error does not stop the others from being thawed.
        if let Err(error) = thaw_one(dir)
            && first.is_ok()
        {
            first = Err(error);
        }
        Ok(())
    };
    let seen = thaw(member.dir.as_fd()).and_then(|()| below::for_each(member.dir.as_fd(), thaw));
    first.and(seen).context(|| format!("thaw cgroup {} and those below it", member.path.display()))
}

fn thaw_one(dir: BorrowedFd<'_>) -> io::Result<()> {
    let thaw = || match file::read(dir, "freezer.state")?.as_str() {
        "THAWED" => Ok(()),
        _ => file::write(dir, "freezer.state", "THAWED"),
    };
    thaw().or_else(|error| if file::is_gone(&error) { Ok(()) } else { Err(error) })
}

fn freezer(cgroup: &Cgroup) -> Result<Freezer<'_>> {
    // The file exists since Linux 5.2.
    let unified = cgroup.unified().filter(|member| member.has_file("cgroup.freeze"));
    match (unified, cgroup.controller("freezer")) {
        (Some(member), _) => Ok(Freezer::V2(member)),
        (None, Some(member)) => Ok(Freezer::V1(member)),
        (None, None) => {
            Err(Error::failed_precondition("cgroup controller freezer is not there to pause with"))
        }
    }
}

/// The kernel leaves a cgroup half frozen if a process was forking just then; writing again freezes it.
fn freeze_v1(member: &Member) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        member.write("freezer.state", "FROZEN")?;
        match member.read("freezer.state")?.as_str() {
            "FROZEN" => return Ok(()),
            state if Instant::now() > deadline => return Err(too_slow(member, state)),
            _ => wait_for_change(None, STEP_MS),
        }
    }
}

fn wait_for_event(member: &Member, wanted: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let events = member.open_file("cgroup.events", OFlags::RDONLY)?;
    loop {
        let mut text = [0; 128];
        let len = rustix::io::pread(&events, &mut text, 0)
            .map_err(io::Error::from)
            .context(|| format!("read {}", member.file("cgroup.events").display()))?;
        let has = String::from_utf8_lossy(&text[..len]);
        if has.lines().any(|line| line == wanted) {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(too_slow(member, has.trim_end()));
        }
        wait_for_change(Some(events.as_fd()), i64::try_from(left.as_millis()).unwrap_or(1).max(1));
    }
}

fn too_slow(member: &Member, state: &str) -> Error {
    let path = member.path.display();
    Error::deadline_exceeded(format!("cgroup {path} did not change its state in time; it is {state:?}"))
}
