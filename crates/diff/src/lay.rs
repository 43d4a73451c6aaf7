//! Laying an archive down in a directory of a tree: files that are copied, by people, into containers and out of them.
//!
//! It is no layer. Names with `.wh.` are names like others; a directory and what is none do not take each other's place;
//! the tree may be changed by others meanwhile, who may be hostile: every name is made in a directory that was resolved
//! beneath the tree's root, and nothing is followed, not even where something was just made.

use std::borrow::Cow;
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use types::Result;

use crate::apply::{ApplyOptions, Limits, Whiteouts, extract};
use crate::decoder::{Helpers, Origin};
use crate::pipeline::read_plain;
use crate::tar::{Entry, Kind};

/// Whose what is laid down is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// As the archive says.
    Archive,
    /// All one's.
    Of { uid: u32, gid: u32 },
    /// Whoever lays it down. What an archive of a stranger could do in that one's name is left out: devices, and bits
    /// and attributes that give a program its owner's rights. Directories that are there stay as they are.
    Maker,
}

impl Owners {
    /// The entry as it is laid down; none if it is not.
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
    /// The directory, by its path in the tree.
    pub folder: PathBuf,
    pub owners: Owners,
}

/// What was laid down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Laid {
    /// Bytes of the plain archive.
    pub size: u64,
    /// What was left out, by its path in the archive.
    pub left_out: Vec<PathBuf>,
}

/// Lays down an archive, plain or compressed, in a directory of the tree that `root` is open on.
///
/// `InvalidArgument` if the bytes are no archive, or something is in the way. What was laid down until an error stays.
pub fn lay_down(source: impl Read + Send, options: LayOptions, root: BorrowedFd<'_>) -> Result<Laid> {
    // The room on the disk decides how much is too much.
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
