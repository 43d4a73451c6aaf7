//! Merges layers into one tree, as overlayfs would show them: names that an upper layer deletes are gone, and
//! directories that both layers have show the names of both.

use types::{Error, Result};

use crate::attribute::Attribute;
use crate::interned::Interned;
use crate::names::Text;
use crate::tree::{Common, Content, Directory, Hidden, Id, Inode, ROOT, Tree};

/// What is below a merged stack of layers when it is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// Nothing: whiteouts and opaque directories are dropped from the merged tree.
    Nothing,
    /// Other layers: whiteouts and opaque directories are kept, as they delete names of these.
    Layers,
}

impl Tree {
    /// Merges layers into one tree, the lowest first. Their devices are numbered in the same order.
    ///
    /// `ResourceExhausted` if the result has more devices than an image can, or takes more memory than a tree may.
    pub fn stack(layers: impl IntoIterator<Item = Result<Tree>>, ground: Ground) -> Result<Tree> {
        let mut layers = layers.into_iter();
        let mut stacked = match layers.next().transpose()? {
            // The lowest layer, the largest of most images, is taken over without a copy.
            Some(lowest) => lowest.drop_deletions(ground),
            None => Tree::empty(),
        };
        for layer in layers {
            stacked.merge(layer?, ground)?;
        }
        Ok(stacked)
    }

    /// Whether the tree has whiteouts or opaque directories.
    pub fn deletes(&self) -> bool {
        self.directories.iter().any(|directory| directory.opaque)
            || self.inodes.iter().any(|inode| matches!(inode.content, Content::Whiteout))
    }

    /// Drops whiteouts and opaque marks if there is nothing below that they could delete.
    fn drop_deletions(mut self, ground: Ground) -> Tree {
        if ground == Ground::Nothing {
            let is_whiteout: Vec<bool> =
                self.inodes.iter().map(|inode| matches!(inode.content, Content::Whiteout)).collect();
            for directory in &mut self.directories {
                directory.opaque = false;
                directory.names.retain(|id| !is_whiteout[id as usize]);
            }
        }
        self
    }

    /// Merges an upper layer into this tree.
    fn merge(&mut self, upper: Tree, ground: Ground) -> Result<()> {
        let devices_before = u16::try_from(self.devices.len())
            .ok()
            .filter(|before| usize::from(*before) + upper.devices.len() < usize::from(u16::MAX))
            .ok_or_else(|| Error::resource_exhausted("a stack of more layers than an image can have"))?;
        let Tree { inodes, directories, text, attributes, commons, devices, .. } = upper;
        self.devices.extend(devices);
        let mut merge = Merge {
            lower: self,
            moved: vec![NONE; inodes.len()],
            upper: inodes,
            directories,
            text: &text,
            attributes,
            known: vec![NONE; commons.len()],
            commons,
            devices_before,
            ground,
        };
        let mut left = vec![Pair { below: ROOT, above: ROOT }];
        while let Some(pair) = left.pop() {
            merge.directory(pair, &mut left)?;
        }
        Ok(())
    }

    /// Moves all names of a directory into a hidden one.
    fn hide_names(&mut self, id: Id) -> Result<()> {
        let Directory { names, hides, .. } = self.directory_mut(id);
        if names.is_empty() {
            return Ok(());
        }
        let hidden = Directory { names: std::mem::take(names), hides: *hides, ..Directory::default() };
        let hidden = self.push_directory(hidden)?;
        self.directory_mut(id).hides = Hidden::Directory(hidden);
        Ok(())
    }

    /// What the layers so far have of a name in a directory: in the topmost layer that has it, hidden or not.
    fn topmost(&self, mut directory: Id, name: &[u8]) -> Hidden {
        loop {
            match (self.child(directory, name), self.directory(directory).map(|found| found.hides)) {
                (Some(id), _) if self.is_directory(id) => return Hidden::Directory(id),
                (Some(_), _) => return Hidden::Other,
                (None, Some(Hidden::Directory(below))) => directory = below,
                (None, hides) => return hides.unwrap_or_default(),
            }
        }
    }

    /// Removes a name from a directory, and from what this hides.
    fn unlink_all(&mut self, mut directory: Id, name: &[u8]) {
        loop {
            self.unlink(directory, name);
            match self.directory_mut(directory).hides {
                Hidden::Directory(below) => directory = below,
                _ => return,
            }
        }
    }
}

/// A directory of the lower tree, and the one of the upper layer that is merged into it.
struct Pair {
    below: Id,
    above: Id,
}

/// In a table of numbers: the value was not moved yet.
const NONE: u32 = u32::MAX;

/// The merge of an upper layer into a lower tree.
struct Merge<'a> {
    lower: &'a mut Tree,
    /// Inodes and directories of the upper layer.
    upper: Vec<Inode>,
    directories: Vec<Directory>,
    /// Text, attributes and [`Common`]s of the upper layer.
    text: &'a Text,
    attributes: Interned<Attribute>,
    commons: Interned<Common>,
    /// The lower tree's number of each of these [`Common`]s.
    known: Vec<u32>,
    /// The lower tree's id of each upper inode: an inode may have several names.
    moved: Vec<Id>,
    /// Number of devices of the lower tree.
    devices_before: u16,
    ground: Ground,
}

impl Merge<'_> {
    /// Merges a pair of directories; pairs of their subdirectories are added to `left`.
    fn directory(&mut self, pair: Pair, left: &mut Vec<Pair>) -> Result<()> {
        let Pair { below, above } = pair;
        let inode = self.upper[above as usize];
        let Content::Directory(at) = inode.content else { unreachable!("only directories are merged") };
        // A directory has one name: it is merged once.
        let Directory { names, implied, opaque, .. } = std::mem::take(&mut self.directories[at as usize]);
        if opaque {
            self.lower.hide_names(below)?;
            self.lower.directory_mut(below).opaque = self.ground == Ground::Layers;
        }
        if !implied {
            self.copy_metadata(below, inode)?;
        }
        for (name, above) in names.iter(self.text) {
            match self.upper[above as usize].content {
                Content::Directory(_) => {
                    let below = self.directory_below(below, name)?;
                    left.push(Pair { below, above });
                }
                Content::Whiteout if self.ground == Ground::Nothing => {
                    self.lower.unlink_all(below, name);
                }
                _ => {
                    let id = self.move_inode(above)?;
                    self.lower.link(below, name, id)?;
                }
            }
        }
        Ok(())
    }

    /// The lower tree's directory of a name, which is made if it shows none.
    fn directory_below(&mut self, parent: Id, name: &[u8]) -> Result<Id> {
        let shown = self.lower.child(parent, name);
        if let Some(id) = shown.filter(|id| self.lower.is_directory(*id)) {
            return Ok(id);
        }
        let hides = self.lower.topmost(parent, name);
        let id = self.lower.link_directory(parent, name)?;
        let made = self.lower.directory_mut(id);
        made.hides = hides;
        // The replaced name hid the ground's, and so must the directory.
        made.opaque = shown.is_some() && self.ground == Ground::Layers;
        match hides {
            Hidden::Directory(hidden) => self.inherit_metadata(id, hidden),
            // A directory of the ground that was deleted gives no metadata.
            Hidden::Other => made.implied = self.ground == Ground::Nothing,
            Hidden::Nothing => {}
        }
        Ok(id)
    }

    /// Gives a new directory the metadata of the lower one that it hides. An entry of the upper layer may override it.
    fn inherit_metadata(&mut self, made: Id, hidden: Id) {
        let Inode { common, mtime, .. } = self.lower.inodes[hidden as usize];
        let implied = self.lower.directory_mut(hidden).implied;
        let inode = &mut self.lower.inodes[made as usize];
        (inode.common, inode.mtime) = (common, mtime);
        self.lower.directory_mut(made).implied = implied;
    }

    /// Gives the lower directory the metadata of the upper one; its names stay.
    fn copy_metadata(&mut self, below: Id, from: Inode) -> Result<()> {
        let common = self.renumber(from.common)?;
        let to = &mut self.lower.inodes[below as usize];
        (to.common, to.mtime) = (common, from.mtime);
        self.lower.directory_mut(below).implied = false;
        Ok(())
    }

    fn move_inode(&mut self, above: Id) -> Result<Id> {
        let id = self.moved[above as usize];
        if id != NONE {
            return Ok(id);
        }
        let mut inode = self.upper[above as usize];
        inode.common = self.renumber(inode.common)?;
        match &mut inode.content {
            Content::File { device, .. } => *device += self.devices_before,
            Content::Symlink(target) => {
                self.lower.account(target.len())?;
                *target = self.lower.text.add(self.text.of(*target));
            }
            _ => {}
        }
        let id = self.lower.push(inode)?;
        self.moved[above as usize] = id;
        Ok(id)
    }

    /// The lower tree's number of an upper [`Common`].
    fn renumber(&mut self, above: u32) -> Result<u32> {
        let number = self.known[above as usize];
        if number != NONE {
            return Ok(number);
        }
        let mut common = self.commons.find(above).clone();
        for number in &mut common.attributes {
            *number = self.lower.number(self.attributes.find(*number).clone())?;
        }
        let number = self.lower.common_number(common)?;
        self.known[above as usize] = number;
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::tree::Device;
    use crate::{Entry, EntryKind, Metadata};

    fn layer(deleted: &[&str], file: &str) -> Tree {
        let mut tree = Tree::new(Device { tag: String::new(), len: 0 });
        deleted.iter().for_each(|path| tree.white_out(path.as_bytes()).unwrap());
        let metadata = Metadata { mode: 0o644, uid: 0, gid: 0, mtime: (0, 0), attributes: &BTreeMap::new() };
        let entry = Entry { path: file.as_bytes(), kind: EntryKind::Fifo, metadata };
        tree.add(&entry).unwrap();
        tree
    }

    /// A directory that a lower layer deletes and an upper one creates again has the metadata of a new one.
    #[test]
    fn a_directory_deleted_by_a_lower_layer_inherits_no_metadata_of_the_ground() {
        let implied = |deleted: &[&str], ground| {
            let layers = [layer(deleted, "other"), layer(&[], "a/d/file")];
            let stacked = Tree::stack(layers.map(Ok), ground).unwrap();
            let paths = stacked.implied().unwrap();
            paths.into_iter().map(|path| String::from_utf8(path).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(implied(&[], Ground::Layers), ["", "a", "a/d"]);
        assert_eq!(implied(&["b"], Ground::Layers), ["", "a", "a/d"]);
        assert_eq!(implied(&["a"], Ground::Layers), [""]);
        assert_eq!(implied(&["a/d"], Ground::Layers), ["", "a"]);
        assert_eq!(implied(&["a"], Ground::Nothing), ["", "a", "a/d"]);
    }

    /// The permissions of the inodes at these paths.
    fn modes(stacked: &Tree, paths: &[&str]) -> Vec<u16> {
        let find =
            |path: &&str| path.split('/').fold(ROOT, |id, name| stacked.child(id, name.as_bytes()).unwrap());
        paths.iter().map(|path| stacked.common(find(path)).mode & 0o7777).collect()
    }

    /// containerd too takes the metadata from the lower layers, even if the layer that implies the directory deletes
    /// it.
    #[test]
    fn an_implied_directory_inherits_metadata_that_its_own_layer_deletes() {
        let lower = || {
            let mut tree = layer(&[], "a/file");
            for (path, mode) in [("a", 0o700), ("a/d", 0o710), ("a/d/e", 0o711), ("a/gone", 0o701)] {
                let metadata = Metadata { mode, uid: 0, gid: 0, mtime: (7, 7), attributes: &BTreeMap::new() };
                tree.add(&Entry { path: path.as_bytes(), kind: EntryKind::Directory, metadata }).unwrap();
            }
            tree
        };
        let mut opaque = layer(&[], "a/d/e/new");
        opaque.make_opaque(b"a").unwrap();
        // Deleted directories in each other, and an opaque directory in the place of a file.
        let mut twice = layer(&["a", "a/d"], "a/d/e/new");
        twice.make_opaque(b"a/file").unwrap();
        for (upper, ground) in [(opaque, Ground::Nothing), (twice, Ground::Layers)] {
            let stacked = Tree::stack([Ok(lower()), Ok(upper)], ground).unwrap();
            assert_eq!(modes(&stacked, &["a", "a/d", "a/d/e"]), [0o700, 0o710, 0o711], "{ground:?}");
            let a = stacked.child(ROOT, b"a").unwrap();
            assert_eq!(stacked.child(a, b"gone"), None, "{ground:?}");
            if let Some(made) = stacked.child(a, b"file") {
                assert_eq!((modes(&stacked, &["a/file"]), stacked.is_directory(made)), (vec![0o755], true));
            }
        }
    }

    #[test]
    fn an_implied_directory_stays_implied_if_its_own_layer_deletes_it_from_the_ground() {
        let implied = |lower: Tree| {
            let mut upper = layer(&[], "a/d/file");
            upper.make_opaque(b"a").unwrap();
            let stacked = Tree::stack([Ok(lower), Ok(upper)], Ground::Layers).unwrap();
            let paths = stacked.implied().unwrap();
            paths.into_iter().map(|path| String::from_utf8(path).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(implied(layer(&[], "other")), ["", "a", "a/d"]);
        assert_eq!(implied(layer(&[], "a/d/other")), ["", "a", "a/d"]);
        // A layer between has deleted it, or another directory around it.
        assert_eq!(implied(layer(&["a/d"], "other")), ["", "a"]);
        let mut opaque = layer(&[], "a/other");
        opaque.make_opaque(b"a").unwrap();
        assert_eq!(implied(opaque), ["", "a", "a/d"]);
    }

    /// containerd looks through the layers one by one: an opaque directory of a layer between hides files, but not what
    /// metadata there was, which only a whiteout or another file in the same place does.
    #[test]
    fn an_implied_directory_inherits_metadata_that_a_layer_between_hides() {
        let entry = |tree: &mut Tree, path: &str, mode: u16, kind: EntryKind<'_>| {
            let metadata = Metadata { mode, uid: 0, gid: 0, mtime: (7, 7), attributes: &BTreeMap::new() };
            tree.add(&Entry { path: path.as_bytes(), kind, metadata }).unwrap();
        };
        let lowest = || {
            let mut tree = layer(&[], "other");
            for (path, mode) in [("a", 0o700), ("a/d", 0o710), ("a/d/e", 0o711), ("a/f", 0o701)] {
                entry(&mut tree, path, mode, EntryKind::Directory);
            }
            tree
        };
        let opaque = |name: &str| {
            let mut tree = layer(&[], &format!("a/{name}"));
            tree.make_opaque(b"a").unwrap();
            tree
        };
        let mut file = opaque("once");
        entry(&mut file, "a/d", 0o640, EntryKind::Fifo);
        let through_file = vec![lowest(), file, layer(&["a/d"], "other")];
        let cases = [
            (vec![lowest(), opaque("once")], [0o700, 0o710, 0o711, 0o701]),
            (vec![lowest(), opaque("once"), opaque("twice")], [0o700, 0o710, 0o711, 0o701]),
            (vec![lowest(), opaque("once"), layer(&["a/d"], "other")], [0o700, 0o755, 0o755, 0o701]),
            (through_file, [0o700, 0o755, 0o755, 0o701]),
            (vec![lowest(), layer(&["a"], "other")], [0o755; 4]),
        ];
        for (at, (layers, expected)) in cases.into_iter().enumerate() {
            for ground in [Ground::Nothing, Ground::Layers] {
                let mut top = layer(&[], "a/d/e/file");
                entry(&mut top, "a/f/file", 0o640, EntryKind::Fifo);
                // A layer is what its image says, so it can be read for both.
                let layers = layers.iter().chain([&top]).map(|layer| {
                    let mut image = Vec::new();
                    layer.write(&mut image)?;
                    Tree::read(&image)
                });
                let stacked = Tree::stack(layers, ground).unwrap();
                let found = modes(&stacked, &["a", "a/d", "a/d/e", "a/f"]);
                assert_eq!(found, expected, "case {at} on {ground:?}");
            }
        }
    }
}
