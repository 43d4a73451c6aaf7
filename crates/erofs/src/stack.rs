//! Layers on each other, as overlayfs would show them, worked out once: names that a layer deletes are gone,
//! directories that it only adds to have both's names.

use std::collections::HashMap;

use types::{Error, Result};

use crate::attribute::Attribute;
use crate::interned::Interned;
use crate::names::Text;
use crate::tree::{Common, Content, Id, Inode, ROOT, Tree};

/// What lies under a stack of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// Nothing: what a layer deletes is just not there.
    Nothing,
    /// Other layers, in which names that were deleted must stay so.
    Layers,
}

impl Tree {
    /// Layers as one tree, the lowest first. The bytes of the first one's files are on the first device.
    pub fn stack(layers: impl IntoIterator<Item = Result<Tree>>, ground: Ground) -> Result<Tree> {
        let mut layers = layers.into_iter();
        let mut stacked = match layers.next().transpose()? {
            // What is nearly all of most images is not made a second time.
            Some(lowest) => lowest.on(ground),
            None => Tree::empty(),
        };
        for layer in layers {
            stacked.cover(layer?, ground)?;
        }
        Ok(stacked)
    }

    /// Whether names of what lies below are deleted by it, if something does.
    pub fn deletes(&self) -> bool {
        self.inodes.iter().any(|inode| match &inode.content {
            Content::Directory(directory) => directory.opaque,
            content => matches!(content, Content::Whiteout),
        })
    }

    /// A layer that lies on a ground. What it deletes of nothing is not there.
    fn on(mut self, ground: Ground) -> Tree {
        if ground == Ground::Nothing {
            let is_whiteout: Vec<bool> =
                self.inodes.iter().map(|inode| matches!(inode.content, Content::Whiteout)).collect();
            for inode in &mut self.inodes {
                if let Content::Directory(directory) = &mut inode.content {
                    directory.opaque = false;
                    directory.names.retain(|id| !is_whiteout[id as usize]);
                }
            }
        }
        self
    }

    fn cover(&mut self, upper: Tree, ground: Ground) -> Result<()> {
        let devices_before = u16::try_from(self.devices.len())
            .ok()
            .filter(|before| usize::from(*before) + upper.devices.len() < usize::from(u16::MAX))
            .ok_or_else(|| Error::resource_exhausted("a stack of more layers than an image can have"))?;
        let Tree { inodes, text, attributes, commons, devices, .. } = upper;
        self.devices.extend(devices);
        let mut cover = Cover {
            lower: self,
            upper: inodes.into_iter().map(Some).collect(),
            text: &text,
            attributes,
            commons,
            known: HashMap::new(),
            moved: HashMap::new(),
            devices_before,
            ground,
        };
        let mut left = vec![(ROOT, ROOT, false)];
        while let Some((below, above, is_cut_off)) = left.pop() {
            cover.directory(below, above, is_cut_off, &mut left)?;
        }
        Ok(())
    }
}

struct Cover<'a> {
    lower: &'a mut Tree,
    /// Inodes of the upper layer that have not been moved.
    upper: Vec<Option<Inode>>,
    text: &'a Text,
    attributes: Interned<Attribute>,
    commons: Interned<Common>,
    /// Numbers of what inodes above have in common, and what they became below.
    known: HashMap<u32, u32>,
    /// Numbers of inodes above, and what they became below: files may have several names.
    moved: HashMap<Id, Id>,
    devices_before: u16,
    ground: Ground,
}

impl Cover<'_> {
    /// Lays the directory `above` on `below`; directories that have to be laid on each other go to `left`. `is_cut_off`: a
    /// layer between has deleted what the ground has around it.
    fn directory(
        &mut self,
        below: Id,
        above: Id,
        is_cut_off: bool,
        left: &mut Vec<(Id, Id, bool)>,
    ) -> Result<()> {
        let is_cut_off =
            is_cut_off || self.ground == Ground::Layers && self.lower.directory_mut(below).opaque;
        let mut inode = self.upper[above as usize].take().expect("a directory has one name");
        let Content::Directory(directory) = &mut inode.content else {
            unreachable!("only directories are laid on each other")
        };
        let names = std::mem::take(&mut directory.names);
        let (implied, opaque) = (directory.implied, directory.opaque);
        if opaque {
            let below = self.lower.directory_mut(below);
            below.names.clear();
            below.opaque = self.ground == Ground::Layers;
        }
        if !implied {
            self.dress(below, &inode)?;
        }
        for (name, above) in names.iter(self.text) {
            match self.upper[above as usize].as_ref().map(|inode| &inode.content) {
                Some(Content::Directory(_)) => {
                    let existing = self.lower.child(below, name);
                    let id = match existing {
                        Some(id) if self.lower.is_directory(id) => id,
                        _ => {
                            let id = self.lower.link_new(below, name, Inode::implied_directory())?;
                            let made = self.lower.directory_mut(id);
                            // What was there hides what lies below it, and so does what replaces it.
                            made.opaque = existing.is_some() && self.ground == Ground::Layers;
                            // What the ground has of this name was deleted, and is not how it should look.
                            made.implied = !made.opaque && !is_cut_off;
                            id
                        }
                    };
                    left.push((id, above, is_cut_off));
                }
                Some(Content::Whiteout) if self.ground == Ground::Nothing => {
                    self.lower.unlink(below, name);
                }
                _ => {
                    let id = self.move_inode(above)?;
                    self.lower.link(below, name, id)?;
                }
            }
        }
        Ok(())
    }

    /// Looks of the upper directory, names of the lower.
    fn dress(&mut self, below: Id, from: &Inode) -> Result<()> {
        let common = self.renumber(from.common)?;
        let to = &mut self.lower.inodes[below as usize];
        to.common = common;
        (to.mtime, to.mtime_nanos) = (from.mtime, from.mtime_nanos);
        if let Content::Directory(directory) = &mut to.content {
            directory.implied = false;
        }
        Ok(())
    }

    fn move_inode(&mut self, above: Id) -> Result<Id> {
        if let Some(id) = self.moved.get(&above) {
            return Ok(*id);
        }
        let mut inode = self.upper[above as usize].take().expect("moved once");
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
        self.moved.insert(above, id);
        Ok(id)
    }

    fn renumber(&mut self, above: u32) -> Result<u32> {
        if let Some(number) = self.known.get(&above) {
            return Ok(*number);
        }
        let mut common = self.commons.find(above).clone();
        for number in &mut common.attributes {
            *number = self.lower.number(self.attributes.find(*number).clone())?;
        }
        let number = self.lower.common_number(common)?;
        self.known.insert(above, number);
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::tree::{Device, Entry, EntryKind, Looks};

    fn layer(deleted: &[&str], file: &str) -> Tree {
        let mut tree = Tree::new(Device { tag: String::new(), len: 0 });
        deleted.iter().for_each(|path| tree.white_out(path.as_bytes()).unwrap());
        let looks = Looks { mode: 0o644, uid: 0, gid: 0, mtime: (0, 0), attributes: &BTreeMap::new() };
        let entry = Entry { path: file.as_bytes(), kind: EntryKind::Fifo, looks };
        tree.add(&entry).unwrap();
        tree
    }

    /// Of directories that a layer deletes, those that others make there look as new ones.
    #[test]
    fn what_was_deleted_between_says_not_how_a_directory_looks() {
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
}
