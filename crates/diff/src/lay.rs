//! Extracts an archive into a directory of a tree, for copies into and out of containers.
//!
//! The archive is no layer: names with `.wh.` are ordinary names, and a directory never replaces a file nor a file a
//! directory. Hostile processes may change the tree meanwhile: each name is created in a directory that was resolved
//! beneath the tree's root, and no symlink is followed, not even at a name that was just created.

use std::borrow::Cow;
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use types::Result;

use crate::apply::{ApplyOptions, Limits, Whiteouts, extract};
use crate::decoder::{Helpers, Origin};
use crate::pipeline::read_plain;
use crate::tar::{Entry, Kind};

/// The owners of extracted files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// Those in the archive.
    Archive,
    /// One owner for all files.
    Of { uid: u32, gid: u32 },
    /// The user of this process. An untrusted archive must not gain this user's rights: devices, setuid and setgid
    /// bits, and attributes except `user.` ones are left out. Existing directories keep their metadata.
    Maker,
}

impl Owners {
    /// The entry with this owner; `None` if it must not be extracted.
    pub(crate) fn adapt(self, entry: &Entry) -> Option<Cow<'_, Entry>> {
        match self {
            Owners::Archive => Some(Cow::Borrowed(entry)),
            Owners::Of { uid, gid } => Some(Cow::Owned(Entry { uid, gid, ..entry.clone() })),
            Owners::Maker => match entry.kind {
                Kind::CharacterDevice { .. } | Kind::BlockDevice { .. } => None,
                _ => {
                    let mut own = Entry { mode: entry.mode & 0o1777, ..entry.clone() };
                    own.attributes.retain(|name, _| name.starts_with("user."));
                    Some(Cow::Owned(own))
                }
            },
        }
    }
}

#[derive(Clone, Debug)]
pub struct LayOptions {
    /// The target directory, by its path in the tree.
    pub folder: PathBuf,
    pub owners: Owners,
}

/// The result of [`lay_down`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Laid {
    /// Bytes of the plain archive.
    pub size: u64,
    /// Paths of entries that were left out, as in the archive.
    pub left_out: Vec<PathBuf>,
}

/// Extracts an archive, plain or compressed, into a directory of the tree that `root` is open on.
///
/// `InvalidArgument` if the bytes are no archive, or an existing name cannot be replaced. Files that were extracted
/// before an error remain.
pub fn lay_down(source: impl Read + Send, options: LayOptions, root: BorrowedFd<'_>) -> Result<Laid> {
    // The archive is as large as the user makes it; the disk is the limit.
    let limits = Limits {
        entries: u64::MAX,
        bytes: u64::MAX,
        origin: Origin::Coming,
        helpers: Helpers::Fixed(0),
        ..Limits::default()
    };
    let apply = ApplyOptions { whiteouts: Whiteouts::Remove, limits };
    let lay = |chunks, memory| extract(chunks, memory, apply, Some(options), root);
    let (plain, tree) = read_plain(source, limits, None, lay)?;
    Ok(Laid { size: plain.size, left_out: tree.left_out })
}
