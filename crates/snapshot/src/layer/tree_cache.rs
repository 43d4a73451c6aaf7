//! A cache of the trees of layers that were just stored, until they are merged: otherwise the puller would wait until
//! their images were decompressed and read again.

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};

use erofs::Tree;
use stdx::Mutex;

/// Most bytes of memory of all cached trees.
const MEMORY_MAX: u64 = 16 << 20;
/// Bytes that each tree takes beside what it counts itself: without them any number of trees of empty layers would fit.
const TREE_COST: u64 = 4096;

/// Trees with the directories of their layers, oldest first. It has no trees of committed snapshots, whose images may
/// be mended.
#[derive(Default)]
pub(crate) struct TreeCache(Mutex<VecDeque<(PathBuf, Tree)>>);

impl TreeCache {
    /// Adds the tree of a layer whose image was written. The oldest trees are dropped to make room.
    pub(crate) fn keep(&self, directory: &Path, mut tree: Tree) {
        if cost(&tree) > MEMORY_MAX {
            return; // dropping the others would not make room
        }
        // Its memory counts here from now on: gives back the permit for memory of layers that are being stored.
        tree.keep(());
        let mut trees = self.0.lock();
        // The files were written again, so that an earlier tree is not theirs.
        trees.retain(|(of, _)| of != directory);
        trees.push_back((directory.to_owned(), tree));
        while trees.iter().map(|(_, tree)| cost(tree)).sum::<u64>() > MEMORY_MAX {
            trees.pop_front();
        }
    }

    /// Removes and returns the tree of the layer in a directory.
    pub(crate) fn take(&self, directory: &Path) -> Option<Tree> {
        let mut trees = self.0.lock();
        let at = trees.iter().position(|(of, _)| of == directory)?;
        trees.remove(at).map(|(_, tree)| tree)
    }

    /// Drops all trees: those left are of snapshots that were not merged.
    pub(crate) fn clear(&self) {
        self.0.lock().clear();
    }
}

/// Bytes of memory of a cached tree.
fn cost(tree: &Tree) -> u64 {
    TREE_COST + tree.memory()
}

impl fmt::Debug for TreeCache {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("TreeCache").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use erofs::{Device, Entry, EntryKind, Metadata};

    use super::*;

    /// A tree that takes at least this many bytes of memory.
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
    fn trees_are_cached_while_there_is_room() {
        let trees = TreeCache::default();
        let has = |name: &str| trees.take(Path::new(name)).is_some();
        for name in ["one", "two", "three"] {
            trees.keep(Path::new(name), tree(MEMORY_MAX / 5 * 2));
        }
        assert!(!has("one") && has("two") && has("three"), "the first made room");
        assert!(!has("two"), "it was taken");
        trees.keep(Path::new("small"), tree(1));
        trees.keep(Path::new("large"), tree(MEMORY_MAX + 1));
        assert!(has("small") && !has("large"), "one that does not fit alone takes no room from others");
        trees.keep(Path::new("left"), tree(1));
        trees.clear();
        assert!(!has("left"));
    }

    #[test]
    fn trees_of_empty_layers_take_room() {
        let trees = TreeCache::default();
        for number in 0..=MEMORY_MAX / TREE_COST {
            trees.keep(Path::new(&number.to_string()), tree(0));
        }
        assert!(trees.take(Path::new("0")).is_none() && trees.take(Path::new("1")).is_some());
    }

    #[test]
    fn a_layer_that_is_written_again_has_its_last_tree() {
        let trees = TreeCache::default();
        for memory in [1, 1000] {
            trees.keep(Path::new("layer"), tree(memory));
        }
        assert!(trees.take(Path::new("layer")).unwrap().memory() >= 1000);
        assert!(trees.take(Path::new("layer")).is_none());
    }
}
