//! Identity maps of user namespaces (user_namespaces(7)).
//!
//! A caller without privileges may map its own ids only; for more it asks `newuidmap` and `newgidmap`, which
//! know what `/etc/subuid` and `/etc/subgid` grant.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use types::spec::runtime::IdMapping;
use types::{Context, Error, ErrorKind, Result};

/// Writes the maps of a process that is alone in a new user namespace.
pub fn write(pid: u32, uids: &[IdMapping], gids: &[IdMapping]) -> Result<()> {
    write_one(pid, "uid_map", "newuidmap", uids)?;
    match write_one(pid, "gid_map", "newgidmap", gids) {
        // One's own group may be mapped once the namespace cannot drop groups any more: a group may be one
        // that is kept from something.
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

/// The text of a map: inside, outside, count.
pub fn lines(mappings: &[IdMapping]) -> String {
    let mut text = String::new();
    for map in mappings {
        let _ = writeln!(text, "{} {} {}", map.container_id, map.host_id, map.size);
    }
    text
}
