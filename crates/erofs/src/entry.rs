//! The entries of an archive, from which a tree is built. They borrow from the archive's headers, and are not checked
//! yet: that is done when an entry is added ([`Tree::add`](crate::Tree::add)).

use std::collections::BTreeMap;

/// One entry of an archive.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// As in the archive: it may be absolute, contain `..`, or be any other bytes.
    pub path: &'a [u8],
    pub kind: EntryKind<'a>,
    pub metadata: Metadata<'a>,
}

#[derive(Clone, Debug)]
pub enum EntryKind<'a> {
    Directory,
    /// The length of the file in bytes, and its offset in the data file: a multiple of [`BLOCK_LEN`](crate::BLOCK_LEN).
    File {
        len: u64,
        at: u64,
    },
    /// A symbolic link, with its target.
    Symlink(&'a [u8]),
    /// Another link to the inode at this path. The entry's own metadata is ignored.
    HardLink(&'a [u8]),
    CharacterDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
}

/// Owner, permissions, time and attributes.
#[derive(Clone, Debug)]
pub struct Metadata<'a> {
    /// The lower twelve bits of `st_mode`.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// Extended attributes (xattr(7)).
    pub attributes: &'a BTreeMap<String, Vec<u8>>,
}
