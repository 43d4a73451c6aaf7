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
        let mut left = vec![(ROOT, ROOT)];
        while let Some((below, above)) = left.pop() {
            cover.directory(below, above, &mut left)?;
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
    /// Lays the directory `above` on `below`; directories that have to be laid on each other go to `left`.
    fn directory(&mut self, below: Id, above: Id, left: &mut Vec<(Id, Id)>) -> Result<()> {
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
                            // What was there hides what lies below it, and so does what replaces it.
                            self.lower.directory_mut(id).opaque =
                                existing.is_some() && self.ground == Ground::Layers;
                            id
                        }
                    };
                    left.push((id, above));
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
