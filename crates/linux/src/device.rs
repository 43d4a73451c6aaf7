//! Device nodes, single or in a directory.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};
use types::spec::runtime::LinuxDevice;
use types::{Context, Error, Result};

/// A character or block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Path below the requested directory; empty for the requested device itself.
    pub below: PathBuf,
    /// `c` or `b`, as the OCI calls them.
    pub kind: &'static str,
    pub major: u32,
    pub minor: u32,
    /// Permissions.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

impl Node {
    /// The container's device (runtime-spec `config-linux.md`, "Devices"), with the requested path at `place`.
    pub fn placed(self, place: &Path) -> LinuxDevice {
        // Without a trailing slash for the device itself.
        let path = match self.below.as_os_str().is_empty() {
            true => place.to_owned(),
            false => place.join(&self.below),
        };
        LinuxDevice {
            path: path.display().to_string(),
            kind: self.kind.into(),
            major: self.major.into(),
            minor: self.minor.into(),
            file_mode: Some(self.mode),
            uid: Some(self.uid),
            gid: Some(self.gid),
        }
    }
}

/// Names that containerd and Docker skip in device directories: each container has its own of these, or other runtimes
/// and udev keep files there.
const DIRECTORIES_LEFT_OUT: [&str; 7] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];
const LEFT_OUT: &str = "console";

/// The maximal depth; `/dev/mapper` and the like have one level.
const DEPTH_MAX: usize = 16;

/// The device at `path`, which may be a link, or all devices in a directory, recursively and sorted by name; links and
/// other files in it are skipped.
///
/// `NotFound` if the path does not exist; `InvalidArgument` if it is neither.
pub fn nodes(path: &Path) -> Result<Vec<Node>> {
    let found = fs::metadata(path).context(|| format!("find device {}", path.display()))?;
    if !found.is_dir() {
        let node = node(&found, PathBuf::new());
        return node
            .map(|node| vec![node])
            .ok_or_else(|| Error::invalid_argument(format!("{} is not a device", path.display())));
    }
    let mut nodes = Vec::new();
    below(path, Path::new(""), DEPTH_MAX, &mut nodes)
        .context(|| format!("look for devices in {}", path.display()))?;
    Ok(nodes)
}

fn below(directory: &Path, at: &Path, depth: usize, nodes: &mut Vec<Node>) -> io::Result<()> {
    let mut entries = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (name, at) = (entry.file_name(), at.join(entry.file_name()));
        let found = match entry.metadata() {
            Ok(found) => found,
            // Devices may vanish at any time.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if !found.is_dir() {
            nodes.extend(node(&found, at).filter(|_| name != LEFT_OUT));
        } else if depth > 0 && !DIRECTORIES_LEFT_OUT.iter().any(|left_out| name == *left_out) {
            below(&entry.path(), &at, depth - 1, nodes)?;
        }
    }
    Ok(())
}

fn node(found: &fs::Metadata, below: PathBuf) -> Option<Node> {
    let kind = match found.file_type() {
        kind if kind.is_char_device() => "c",
        kind if kind.is_block_device() => "b",
        _ => return None,
    };
    let (major, minor) = (major(found.rdev()), minor(found.rdev()));
    let mode = found.mode() & 0o7777;
    Some(Node { below, kind, major, minor, mode, uid: found.uid(), gid: found.gid() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_alone_and_in_its_directory() {
        let null = nodes(Path::new("/dev/null")).unwrap();
        assert_eq!(null.len(), 1);
        assert_eq!((null[0].kind, null[0].major, null[0].minor), ("c", 1, 3));
        let all = nodes(Path::new("/dev")).unwrap();
        let is_there = |name: &str| all.iter().any(|node| node.below == Path::new(name));
        assert!(is_there("null") && is_there("zero"), "{all:?}");
        assert!(!is_there("console") && !all.iter().any(|node| node.below.starts_with("pts")), "{all:?}");
        assert!(nodes(Path::new("/etc/hostname")).unwrap_err().to_string().contains("is not a device"));
        assert!(nodes(Path::new("/nonesuch")).is_err());
    }
}
