//! Id maps of user namespaces (user_namespaces(7)), and of mounts, which refer to such a namespace.
//!
//! A caller without privileges may map its own ids only; for others it runs `newuidmap` and `newgidmap`, which check
//! `/etc/subuid` and `/etc/subgid`.

use std::fmt::Write as _;
use std::fs;
use std::os::fd::OwnedFd;
use std::process::Command;

use rustix::process::Signal;
use types::spec::runtime::IdMapping;
use types::{Context, Error, ErrorKind, Result};

use crate::ns::NsKind;
use crate::process::{self, Cloned};

/// The id maps of a mount: ids on disk, and ids as seen through it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Owners {
    pub uids: Vec<IdMapping>,
    pub gids: Vec<IdMapping>,
}

impl Owners {
    /// Parses `INSIDE:OUTSIDE:COUNT`, separated by commas, the format of snapshotters.
    pub fn parse(uids: &str, gids: &str) -> Result<Owners> {
        let maps = |text: &str| -> Result<Vec<IdMapping>> { text.split(',').map(parse_one).collect() };
        Ok(Owners { uids: maps(uids)?, gids: maps(gids)? })
    }

    /// The inverse map.
    pub fn inverse(&self) -> Owners {
        let turn = |maps: &[IdMapping]| {
            let turned = |map: &IdMapping| IdMapping {
                container_id: map.host_id,
                host_id: map.container_id,
                size: map.size,
            };
            maps.iter().map(turned).collect()
        };
        Owners { uids: turn(&self.uids), gids: turn(&self.gids) }
    }

    /// The owner seen for one on disk. None if the map lacks it.
    pub fn shown(&self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        let find = |maps: &[IdMapping], id: u32| {
            maps.iter().find_map(|map| {
                let from = id.checked_sub(map.container_id).filter(|from| *from < map.size)?;
                map.host_id.checked_add(from)
            })
        };
        find(&self.uids, uid).zip(find(&self.gids, gid))
    }
}

fn parse_one(text: &str) -> Result<IdMapping> {
    let wrong =
        || Error::invalid_argument(format!("{text:?} is no id map: INSIDE:OUTSIDE:COUNT is expected"));
    let numbers: Vec<u32> =
        text.split(':').map(|number| number.parse().map_err(|_| wrong())).collect::<Result<_>>()?;
    match numbers[..] {
        [container_id, host_id, size] if size > 0 => Ok(IdMapping { container_id, host_id, size }),
        _ => Err(wrong()),
    }
}

/// Makes a user namespace with these maps and without processes.
pub fn namespace(owners: &Owners) -> Result<OwnedFd> {
    let parent = rustix::process::getpid();
    // SAFETY: threads of the caller may hold locks, but the child takes none: it makes system calls until the
    // parent has taken what it wants and kills it, or until the parent's thread ends.
    #[expect(unsafe_code, reason = "a process is the only way to make a user namespace with a map")]
    let cloned = unsafe { process::clone_process(NsKind::User.clone_flag(), None) }?;
    let (pid, pidfd) = match cloned {
        Cloned::Child => {
            let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
            // A parent that died before the death signal was set would leave this process waiting for ever.
            if rustix::process::getppid() != Some(parent) {
                process::exit_now(1);
            }
            loop {
                let _ = rustix::thread::nanosleep(&rustix::thread::Timespec { tv_sec: 60, tv_nsec: 0 });
            }
        }
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
    };
    let made = write(pid, &owners.uids, &owners.gids).and_then(|()| {
        let path = format!("/proc/{pid}/ns/user");
        fs::File::open(&path).context(|| format!("open {path}"))
    });
    pidfd.kill()?;
    pidfd.wait()?;
    made.map(OwnedFd::from)
}

/// Whether the caller is in a user namespace other than the initial one: its root has no rights outside.
pub fn in_user_namespace() -> bool {
    // A kernel without user namespaces has no such file.
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.is_empty() && !map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// The maps of a process's user namespace, with outside ids as the caller sees them.
pub fn of(pid: u32) -> Result<Owners> {
    let read = |file: &str| -> Result<Vec<IdMapping>> {
        let path = format!("/proc/{pid}/{file}");
        let text = fs::read_to_string(&path).context(|| format!("read {path}"))?;
        text.lines()
            .map(|line| parse_line(line).ok_or_else(|| Error::internal(format!("{path} has {line:?}"))))
            .collect()
    };
    Ok(Owners { uids: read("uid_map")?, gids: read("gid_map")? })
}

/// Parses a line of [`lines`].
fn parse_line(line: &str) -> Option<IdMapping> {
    let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
    let mut next = || numbers.next().flatten();
    Some(IdMapping { container_id: next()?, host_id: next()?, size: next()? })
}

/// Writes the maps of a process that is alone in a new user namespace.
pub fn write(pid: u32, uids: &[IdMapping], gids: &[IdMapping]) -> Result<()> {
    write_one(pid, "uid_map", "newuidmap", uids)?;
    match write_one(pid, "gid_map", "newgidmap", gids) {
        // A caller's own group may be mapped once setgroups(2) is denied in the namespace: otherwise dropping a group
        // could lift a restriction that it means.
        Err(error) if error.is(ErrorKind::PermissionDenied) && gids.len() == 1 => {
            let path = format!("/proc/{pid}/setgroups");
            fs::write(&path, "deny").context(|| format!("write {path}"))?;
            write_directly(pid, "gid_map", gids)
        }
        other => other,
    }
}

fn write_one(pid: u32, file: &str, program: &str, mappings: &[IdMapping]) -> Result<()> {
    if mappings.is_empty() {
        return Ok(());
    }
    match write_directly(pid, file, mappings) {
        Err(error)
            if error.is(ErrorKind::PermissionDenied) && (mappings.len() > 1 || mappings[0].size > 1) =>
        {
            write_by(program, pid, mappings)
        }
        other => other,
    }
}

fn write_directly(pid: u32, file: &str, mappings: &[IdMapping]) -> Result<()> {
    let path = format!("/proc/{pid}/{file}");
    fs::write(&path, lines(mappings)).context(|| format!("write {path}"))
}

fn write_by(program: &str, pid: u32, mappings: &[IdMapping]) -> Result<()> {
    let numbers = lines(mappings);
    let mut command = Command::new(program);
    command.arg(pid.to_string()).args(numbers.split_whitespace());
    let done = match command.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::permission_denied(format!(
                "map more ids than one's own: {program} is not in PATH; try: apt-get install uidmap"
            )));
        }
        other => other.context(|| format!("run {program}"))?,
    };
    if done.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&done.stderr);
    Err(Error::permission_denied(format!("{program} refused: {}", words.trim())))
}

/// The text of a map, a line for each range: inside, outside, count.
pub fn lines(mappings: &[IdMapping]) -> String {
    let mut text = String::new();
    for map in mappings {
        let _ = writeln!(text, "{} {} {}", map.container_id, map.host_id, map.size);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_read_applied_and_undone() {
        let owners = Owners::parse("0:100000:65536", "0:100000:10,10:5:1").unwrap();
        assert_eq!(owners.shown(0, 0), Some((100_000, 100_000)));
        assert_eq!(owners.shown(1, 10), Some((100_001, 5)));
        assert_eq!((owners.shown(65_536, 0), owners.shown(0, 11)), (None, None));
        assert_eq!(owners.inverse().shown(100_001, 5), Some((1, 10)));
        for wrong in ["", "0:1", "0:1:0", "a:1:1", "0:1:1:1", "0:1:1,"] {
            assert!(
                Owners::parse(wrong, "0:0:1").is_err() && Owners::parse("0:0:1", wrong).is_err(),
                "{wrong}"
            );
        }
    }

    #[test]
    fn ones_own_map_is_read() {
        let own = of(std::process::id()).unwrap();
        let written = fs::read_to_string("/proc/self/uid_map").unwrap();
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&lines(&own.uids)), words(&written));
        assert!(!own.gids.is_empty());
    }

    #[test]
    fn a_namespace_is_made_and_outlives_the_process_that_was_in_it() {
        if !stdx::testing::is_root("a map of many users") {
            return;
        }
        let inode = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
        let made = namespace(&Owners::parse("0:100000:65536", "0:200000:65536").unwrap()).unwrap();
        let own = rustix::fs::stat("/proc/self/ns/user").unwrap();
        assert_ne!(inode(rustix::fs::fstat(made).unwrap()), inode(own));
    }
}
