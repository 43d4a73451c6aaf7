//! Trees of layers that were just stored, kept in memory until the layers are merged: their images would have to be
//! unpacked and read for that, while whoever pulls waits.

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};

use erofs::Tree;
use stdx::Mutex;

/// Bytes of memory that they take together, as trees count it. A tree that is not here any more is read from its image.
const MEMORY_MAX: u64 = 16 << 20;

/// Trees by the directories of their layers, in the order in which they came. None of a snapshot that is committed, whose
/// image may be mended.
#[derive(Default)]
pub(crate) struct Fresh(Mutex<VecDeque<(PathBuf, Tree)>>);

impl Fresh {
    /// Keeps the tree of a layer whose image was written. Those that came first make room.
    pub(crate) fn keep(&self, directory: &Path, mut tree: Tree) {
        if tree.memory() > MEMORY_MAX {
            return; // the others would go in vain
        }
        // It has its room here, and takes none of what layers share that are being stored.
        tree.keep(());
        let mut trees = self.0.lock();
        trees.push_back((directory.to_owned(), tree));
        while trees.iter().map(|(_, tree)| tree.memory()).sum::<u64>() > MEMORY_MAX {
            trees.pop_front();
        }
    }

    /// The tree of the layer in a directory, if it is here, which it is not afterwards.
    pub(crate) fn take(&self, directory: &Path) -> Option<Tree> {
        let mut trees = self.0.lock();
        let at = trees.iter().position(|(of, _)| of == directory)?;
        trees.remove(at).map(|(_, tree)| tree)
    }

    /// Lets go of what snapshots left that were never committed.
    pub(crate) fn clear(&self) {
        self.0.lock().clear();
    }
}

impl fmt::Debug for Fresh {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Fresh").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use erofs::{Device, Entry, EntryKind, Metadata};

    use super::*;

    /// A tree that takes at least so many bytes.
    fn tree(memory: u64) -> Tree {
        let mut tree = Tree::new(Device { tag: "x".into(), len: 0 });
        let metadata = Metadata { mode: 0o644, uid: 0, gid: 0, mtime: (0, 0), attributes: &BTreeMap::new() };
        for number in 0.. {
            if tree.memory() >= memory {
                break;
            }
            let path = format!("{number:0200}");
            let entry = Entry { path: path.as_bytes(), kind: EntryKind::Fifo, metadata: metadata.clone() };
            tree.add(&entry).unwrap();
        }
        tree
    }

    #[test]
    fn trees_are_kept_while_there_is_room() {
        let fresh = Fresh::default();
        let has = |name: &str| fresh.take(Path::new(name)).is_some();
        for name in ["one", "two", "three"] {
            fresh.keep(Path::new(name), tree(MEMORY_MAX / 5 * 2));
        }
        assert!(!has("one") && has("two") && has("three"), "the first made room");
        assert!(!has("two"), "it was taken");
        fresh.keep(Path::new("small"), tree(1));
        fresh.keep(Path::new("large"), tree(MEMORY_MAX + 1));
        assert!(has("small") && !has("large"), "one that does not fit alone takes no room from others");
        fresh.keep(Path::new("left"), tree(1));
        fresh.clear();
        assert!(!has("left"));
    }
}
