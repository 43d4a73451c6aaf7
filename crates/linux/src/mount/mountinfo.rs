//! The mounts of the calling process (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use types::{Context, Result};

/// A mount as `/proc/self/mountinfo` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    pub path: PathBuf,
    /// The mounted part of the file system.
    pub root: PathBuf,
    pub kind: String,
    pub source: String,
    pub options: String,
    pub superblock_options: String,
    pub is_shared: bool,
    /// Mounts propagate to it from its master.
    pub is_slave: bool,
}

/// The mount that contains a path without links.
pub fn mount_point_of(path: &Path) -> Result<Option<MountPoint>> {
    let is_above = |point: &MountPoint| path.starts_with(&point.path);
    // Of several at one path, the last covers the others.
    let above = mount_points()?.into_iter().filter(is_above);
    Ok(above.max_by_key(|point| point.path.components().count()))
}

/// The mounts of the calling process, outermost first.
pub fn mount_points() -> Result<Vec<MountPoint>> {
    let file = "/proc/self/mountinfo";
    let text = std::fs::read(file).context(|| format!("read {file}"))?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(mount_point).collect())
}

/// Parses a line of mountinfo. Names in it may be any bytes: paths are kept as they are, elsewhere invalid UTF-8 is
/// replaced.
pub(crate) fn mount_point(line: &[u8]) -> Option<MountPoint> {
    let separator = b" - ";
    let at = line.windows(separator.len()).position(|here| here == separator)?;
    let (front, back) = (&line[..at], &line[at + separator.len()..]);
    let is_blank = |byte: &u8| *byte == b' ';
    let mut front = front.split(is_blank).skip(3);
    let (root, path, options) = (front.next()?, front.next()?, front.next()?);
    let fields: Vec<&[u8]> = front.collect();
    let has = |start: &str| fields.iter().any(|field| field.starts_with(start.as_bytes()));
    let (is_shared, is_slave) = (has("shared:"), has("master:"));
    let mut back = back.splitn(3, is_blank);
    let as_path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(unescape(bytes)));
    let as_text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some(MountPoint {
        path: as_path(path),
        root: as_path(root),
        kind: as_text(back.next()?),
        source: as_text(&unescape(back.next()?)),
        options: as_text(options),
        superblock_options: as_text(back.next().unwrap_or_default()),
        is_shared,
        is_slave,
    })
}

/// The kernel writes blanks and backslashes as three octal digits.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let code = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| *first == b'\\') {
            Some(byte) => {
                plain.push(byte);
                rest = &tail[3..];
            }
            None => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn mountinfo_is_read() {
        let line =
            r"36 35 98:0 /mnt1 /mnt\0402 rw,noatime shared:1 master:2 - ext3 /dev/root rw,errors=continue";
        let mount = mount_point(line.as_bytes()).unwrap();
        assert_eq!(
            (mount.path.to_str(), mount.kind.as_str(), mount.is_shared),
            (Some("/mnt 2"), "ext3", true)
        );
        assert_eq!((mount.root.to_str(), mount.is_slave), (Some("/mnt1"), true));
        assert_eq!((&*mount.options, &*mount.superblock_options), ("rw,noatime", "rw,errors=continue"));
        assert_eq!(unescape(br"/a\040b\134c\9"), br"/a b\c\9");
        assert_eq!(mount_point(b""), None);
        assert!(mount_points().unwrap().iter().any(|mount| mount.path == Path::new("/")));
    }

    /// Any user that may mount chooses the names.
    #[test]
    fn mountinfo_with_names_that_are_not_utf_8_is_parsed() {
        let line = b"36 35 0:40 /of\xfe\\012 /mnt/\xff\\040x rw shared:1 - tmp\xc3 \xff\\134 rw,name=\xff";
        let mount = mount_point(line).unwrap();
        let bytes = |path: &Path| path.as_os_str().as_bytes().to_vec();
        assert_eq!(
            (bytes(&mount.path), bytes(&mount.root)),
            (b"/mnt/\xff x".to_vec(), b"/of\xfe\n".to_vec())
        );
        assert_eq!((&*mount.kind, &*mount.source), ("tmp\u{fffd}", "\u{fffd}\\"));
        assert_eq!((&*mount.superblock_options, mount.is_shared), ("rw,name=\u{fffd}", true));
    }
}
