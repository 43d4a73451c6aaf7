//! Identity maps of user namespaces (user_namespaces(7)).

use std::fmt::Write as _;
use std::fs;

use types::spec::runtime::IdMapping;
use types::{Context, Result};

/// Writes the maps of a process that is alone in a new user namespace.
///
/// The caller has the capabilities for it; rootless callers write a single line or use `newuidmap`.
pub fn write(pid: u32, uids: &[IdMapping], gids: &[IdMapping]) -> Result<()> {
    for (file, mappings) in [("uid_map", uids), ("gid_map", gids)] {
        if mappings.is_empty() {
            continue;
        }
        let path = format!("/proc/{pid}/{file}");
        fs::write(&path, lines(mappings)).context(|| format!("write {path}"))?;
    }
    Ok(())
}

/// The text of a map: inside, outside, count.
pub fn lines(mappings: &[IdMapping]) -> String {
    let mut text = String::new();
    for map in mappings {
        let _ = writeln!(text, "{} {} {}", map.container_id, map.host_id, map.size);
    }
    text
}
