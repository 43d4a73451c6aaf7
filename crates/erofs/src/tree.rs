//! A tree of files, made entry by entry as an archive lists them.
//!
//! ```text
//! directory ─name─▶ inode ◀─name─ directory       a name is a link to an inode; an inode may have many
//! ```
//!
//! What an entry means is what unpacking it would do (`diff::apply`): parents are resolved inside the tree,
//! through its links; what is in the way of an entry is replaced, with all below it; only directories stay
//! and take the new metadata.

use std::collections::BTreeMap;

use types::{Error, Result};

use crate::attribute::Attribute;
use crate::format::{
    BLOCK_DEVICE, BLOCK_LEN, CHARACTER_DEVICE, DIRECTORY, FIFO, FILE_LEN_MAX, REGULAR, SYMLINK, encode_device,
};
use crate::interned::Interned;
use crate::names::{Names, Span, Text};

/// Bytes, of a name and of a path (limits.h), and links followed on the way (path_resolution(7)).
const NAME_LEN_MAX: usize = 255;
pub(crate) const PATH_LEN_MAX: usize = 4095;
const SYMLINKS_MAX: usize = 40;
/// Steps that links may add to the way of one entry for nothing, and those beyond of all entries together: a few links of
/// the longest kind make a hundred thousand steps an entry.
const DETOUR_FROM: usize = 64;
const DETOURS_LEN_MAX: u64 = 1 << 22;

/// Bytes of memory that one tree takes until its image is written, so that an archive of empty files cannot fill it all.
pub(crate) const MEMORY_MAX: u64 = 512 << 20;
/// What each thing takes of them beside its text, with what lists have in reserve and what the allocator adds: an inode and
/// its place in the image, a directory of few names, a name in one, and what no inode had before: an attribute, or what it
/// has in common with others.
const INODE_COST: usize = 72;
const DIRECTORY_COST: usize = 224;
const NAME_COST: usize = 24;
const ATTRIBUTE_COST: usize = 160;
const COMMON_COST: usize = 144;

/// Where the bytes of a layer's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Told to people who look at an image; the digest of the archive in hexadecimal.
    pub tag: String,
    /// Bytes. The file may be longer.
    pub len: u64,
}

/// One entry of an archive.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// May be absolute, contain `..`, or be anything else.
    pub path: &'a [u8],
    pub kind: EntryKind<'a>,
    pub metadata: Metadata<'a>,
}

#[derive(Clone, Debug)]
pub enum EntryKind<'a> {
    Directory,
    /// Bytes of the file, and where they begin in the archive: a multiple of [`BLOCK_LEN`].
    File {
        len: u64,
        at: u64,
    },
    Symlink(&'a [u8]),
    /// Another name of what is at this path; the metadata is that one's.
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
    pub attributes: &'a BTreeMap<String, Vec<u8>>,
}

pub(crate) type Id = u32;

pub(crate) const ROOT: Id = 0;

/// There are as many as a layer has files, so it is small.
pub(crate) struct Inode {
    /// The number of its [`Common`].
    pub(crate) common: u32,
    /// Seconds since 1970, and nanoseconds.
    pub(crate) mtime_nanos: u32,
    pub(crate) mtime: i64,
    pub(crate) content: Content,
}

/// What inodes have in common with others: a layer has few that differ.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Common {
    /// Permissions and type.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Sorted by what they are, not by number.
    pub(crate) attributes: Box<[u32]>,
}

pub(crate) enum Content {
    Directory(Box<Directory>),
    /// Length in bytes, device and its block.
    File {
        len: u64,
        device: u16,
        block: u32,
    },
    Symlink(Span),
    /// Character or block device, by mode.
    Device(u32),
    Fifo,
    /// The name is deleted from the layers below. In an image: a character device 0:0.
    Whiteout,
}

#[derive(Default)]
pub(crate) struct Directory {
    pub(crate) names: Names,
    /// No entry gave its metadata.
    pub(crate) implied: bool,
    /// It hides the directory of its path in the layers below.
    pub(crate) opaque: bool,
}

/// A file whose bytes are on the first device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// From the root, without a slash before it.
    pub path: Vec<u8>,
    /// Bytes.
    pub len: u64,
    /// Where they begin.
    pub at: u64,
}

/// The files of a layer, or of several that lie on each other.
pub struct Tree {
    pub(crate) inodes: Vec<Inode>,
    /// Names and targets of links.
    pub(crate) text: Text,
    pub(crate) attributes: Interned<Attribute>,
    pub(crate) commons: Interned<Common>,
    pub(crate) devices: Vec<Device>,
    /// The directory that the last entry was made in: most are made where the one before was.
    recent: Option<(Vec<u8>, Id)>,
    /// Bytes, by what things cost.
    memory: u64,
    /// What was gone of the long ways that links lead.
    detour_len: u64,
    /// What somebody wants kept until the tree goes: the last field, which goes after all others.
    _kept: Option<Box<dyn Send + Sync>>,
}

impl Tree {
    /// A tree with nothing in it but its root, whose files' bytes will be on `device`.
    pub fn new(device: Device) -> Tree {
        let mut tree = Tree::empty();
        tree.devices.push(device);
        tree
    }

    pub(crate) fn empty() -> Tree {
        let mut commons = Interned::default();
        for (number, mode) in [(Inode::IMPLIED, DIRECTORY | 0o755), (Inode::WHITEOUT, CHARACTER_DEVICE)] {
            let common = Common { mode, uid: 0, gid: 0, attributes: Box::default() };
            assert_eq!(commons.number(common), number);
        }
        Tree {
            inodes: vec![Inode::implied_directory()],
            text: Text::default(),
            attributes: Interned::default(),
            commons,
            devices: Vec::new(),
            recent: None,
            memory: 0,
            detour_len: 0,
            _kept: None,
        }
    }

    /// Says how long the archive was and what it is called, once it has been read to its end.
    pub fn set_device(&mut self, device: Device) {
        self.devices = vec![device];
    }

    /// Bytes of memory that it takes, at most, until its image is written.
    pub fn memory(&self) -> u64 {
        self.memory
    }

    /// Keeps something until the tree is dropped: what it takes of a memory that others share.
    pub fn keep(&mut self, kept: impl Send + Sync + 'static) {
        self._kept = Some(Box::new(kept));
    }

    /// Makes what an entry of the archive says.
    pub fn add(&mut self, entry: &Entry<'_>) -> Result<()> {
        let Some((parent, name)) = self.place_of(entry.path)? else {
            let EntryKind::Directory = entry.kind else {
                return Err(Error::invalid_argument("the root can only be a directory"));
            };
            return self.set_metadata(ROOT, &entry.metadata);
        };
        match entry.kind {
            EntryKind::Directory => {
                let id = match self.child(parent, name) {
                    Some(id) if self.is_directory(id) => id,
                    existing => self.make_directory(parent, name, existing)?,
                };
                self.set_metadata(id, &entry.metadata)
            }
            EntryKind::HardLink(target) => self.hard_link(parent, name, target),
            EntryKind::File { len, at } => {
                if len > FILE_LEN_MAX || at % BLOCK_LEN != 0 {
                    return Err(Error::invalid_argument(format!("{len} bytes at {at} cannot be mapped")));
                }
                let block = u32::try_from(at / BLOCK_LEN).map_err(|_| {
                    Error::resource_exhausted(format!("byte {at} of an archive is beyond what can be mapped"))
                })?;
                self.make(parent, name, REGULAR, Content::File { len, device: 0, block }, &entry.metadata)
            }
            EntryKind::Symlink(target) => {
                if target.is_empty() || target.len() > PATH_LEN_MAX || target.contains(&0) {
                    return Err(Error::invalid_argument("a link that leads nowhere"));
                }
                self.account(target.len())?;
                let target = self.text.add(target);
                self.make(parent, name, SYMLINK, Content::Symlink(target), &entry.metadata)
            }
            EntryKind::CharacterDevice { major: 0, minor: 0 } => self.white_out_at(parent, name),
            EntryKind::CharacterDevice { major, minor } => {
                let content = Content::Device(device_number(major, minor)?);
                self.make(parent, name, CHARACTER_DEVICE, content, &entry.metadata)
            }
            EntryKind::BlockDevice { major, minor } => {
                let content = Content::Device(device_number(major, minor)?);
                self.make(parent, name, BLOCK_DEVICE, content, &entry.metadata)
            }
            EntryKind::Fifo => self.make(parent, name, FIFO, Content::Fifo, &entry.metadata),
        }
    }

    /// Deletes a path of the layers below. What this layer itself has there stays, and hides them.
    pub fn white_out(&mut self, path: &[u8]) -> Result<()> {
        let mut path = clean(path)?;
        let name = path.pop().ok_or_else(|| Error::invalid_argument("a whiteout of no name"))?;
        let parent = self.make_parent(&path)?;
        match self.child(parent, name) {
            None => self.white_out_at(parent, name),
            Some(id) => {
                if let Content::Directory(directory) = &mut self.inodes[id as usize].content {
                    directory.opaque = true;
                }
                Ok(())
            }
        }
    }

    /// Deletes all that the layers below have in a directory.
    pub fn make_opaque(&mut self, path: &[u8]) -> Result<()> {
        let id = self.make_parent(&clean(path)?)?;
        self.directory_mut(id).opaque = true;
        Ok(())
    }

    /// Takes away the names in the root that begin so. What else has names for the same files keeps them.
    pub fn remove_from_root(&mut self, beginning: &[u8]) {
        let Content::Directory(root) = &self.inodes[ROOT as usize].content else { return };
        let names = root.names.iter(&self.text).map(|(name, _)| name);
        let removed: Vec<Vec<u8>> =
            names.filter(|name| name.starts_with(beginning)).map(<[u8]>::to_vec).collect();
        for name in removed {
            self.unlink(ROOT, &name);
        }
        self.recent = None;
    }

    /// Files, directories and everything else that has a name.
    pub fn inode_count(&self) -> u64 {
        let mut seen = vec![false; self.inodes.len()];
        let mut count = 0;
        let mut left = vec![ROOT];
        while let Some(id) = left.pop() {
            if std::mem::replace(&mut seen[id as usize], true) {
                continue;
            }
            count += 1;
            if let Content::Directory(directory) = &self.inodes[id as usize].content {
                left.extend(directory.names.ids());
            }
        }
        count
    }

    /// Where the bytes of the layer's files are, by all their names.
    pub fn files(&self) -> Vec<Placed> {
        let mut found = Vec::new();
        let mut left = vec![(Vec::new(), ROOT)];
        while let Some((path, id)) = left.pop() {
            match &self.inodes[id as usize].content {
                Content::Directory(directory) => {
                    for (name, child) in directory.names.iter(&self.text).rev() {
                        let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
                        left.push(([&path, separator, name].concat(), child));
                    }
                }
                Content::File { len, device: 0, block } => {
                    let at = u64::from(*block) * BLOCK_LEN;
                    found.push(Placed { path, len: *len, at });
                }
                _ => {}
            }
        }
        found
    }

    /// Directories of which no entry said how they look, those above first. Where the layer lies on others,
    /// theirs is how they should look.
    ///
    /// `ResourceExhausted` if their paths and the tree take more memory than a tree may: a few names on each other, and many
    /// in the lowest, make paths without end.
    pub fn implied(&self) -> Result<Vec<Vec<u8>>> {
        let (mut found, mut memory) = (Vec::new(), self.memory);
        // Of the directory at hand; each of those that are left has how much of it is the way to its parent.
        let mut path = Vec::new();
        let mut left: Vec<(usize, &[u8], Id)> = vec![(0, b"", ROOT)];
        while let Some((way_len, name, id)) = left.pop() {
            path.truncate(way_len);
            if way_len > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            let Content::Directory(directory) = &self.inodes[id as usize].content else { continue };
            let children = directory.names.iter(&self.text).rev();
            let children = children.filter(|(_, child)| self.is_directory(*child));
            left.extend(children.map(|(name, child)| (path.len(), name, child)));
            if directory.implied {
                memory += (size_of_val(&path) + path.len()) as u64;
                check_memory(memory)?;
                found.push(path.clone());
            }
        }
        Ok(found)
    }

    /// Gives metadata to a directory that was implied. One that was not, or is not there, stays as it is.
    pub fn set_implied_metadata(&mut self, path: &[u8], metadata: &Metadata<'_>) -> Result<()> {
        let mut id = ROOT;
        for name in clean(path)? {
            match self.child(id, name) {
                Some(child) => id = child,
                None => return Ok(()),
            }
        }
        match &self.inodes[id as usize].content {
            Content::Directory(directory) if directory.implied => self.set_metadata(id, metadata),
            _ => Ok(()),
        }
    }

    /// Makes an inode, in place of what has the name.
    fn make(
        &mut self,
        parent: Id,
        name: &[u8],
        kind: u16,
        content: Content,
        metadata: &Metadata<'_>,
    ) -> Result<()> {
        // Links have no permissions of their own; symlink(7).
        let mode = kind | if kind == SYMLINK { 0o777 } else { metadata.mode & 0o7777 };
        let attributes = self.attributes_of(&[], mode, metadata)?;
        let Metadata { uid, gid, mtime: (mtime, mtime_nanos), .. } = *metadata;
        let common = self.common_number(Common { mode, uid, gid, attributes })?;
        let inode = Inode { common, mtime, mtime_nanos, content };
        self.link_new(parent, name, inode).map(drop)
    }

    fn make_directory(&mut self, parent: Id, name: &[u8], replaced: Option<Id>) -> Result<Id> {
        let replaces_whiteout =
            replaced.is_some_and(|id| matches!(self.inodes[id as usize].content, Content::Whiteout));
        let id = self.link_new(parent, name, Inode::implied_directory())?;
        // Deleted below and made here: nothing of below shows through.
        self.directory_mut(id).opaque = replaces_whiteout;
        Ok(id)
    }

    fn hard_link(&mut self, parent: Id, name: &[u8], target: &[u8]) -> Result<()> {
        let shown = || format!("link to {}", String::from_utf8_lossy(target));
        let missing = || Error::not_found(format!("{}: it is not in the layer", shown()));
        let mut path = clean(target)?;
        let target_name = path.pop();
        let target_name = target_name
            .ok_or_else(|| Error::invalid_argument(format!("{}: a directory cannot be linked", shown())))?;
        let way = self.resolve(&path, false)?.ok_or_else(missing)?;
        let folder = *way.last().expect("the root stays");
        if (folder, target_name) == (parent, name) {
            return Ok(()); // a link to itself
        }
        let id = self.child(folder, target_name).ok_or_else(missing)?;
        if self.is_directory(id) {
            return Err(Error::invalid_argument(format!("{}: a directory cannot be linked", shown())));
        }
        if self.child(parent, name).is_some_and(|replaced| way.contains(&replaced)) {
            return Err(Error::invalid_argument(format!("{}: the link would replace it", shown())));
        }
        self.link(parent, name, id)
    }

    fn white_out_at(&mut self, parent: Id, name: &[u8]) -> Result<()> {
        self.link_new(parent, name, Inode::whiteout()).map(drop)
    }

    pub(crate) fn link_new(&mut self, parent: Id, name: &[u8], inode: Inode) -> Result<Id> {
        let id = self.push(inode)?;
        self.link(parent, name, id)?;
        Ok(id)
    }

    /// Gives an inode a name, in place of what has it.
    pub(crate) fn link(&mut self, parent: Id, name: &[u8], id: Id) -> Result<()> {
        // A name may come from a link's target too.
        if name.len() > NAME_LEN_MAX {
            return Err(Error::invalid_argument(format!("a name of {} bytes is too long", name.len())));
        }
        self.account(NAME_COST + name.len())?;
        let Content::Directory(directory) = &mut self.inodes[parent as usize].content else {
            unreachable!("names are made in directories")
        };
        if let Some(replaced) = directory.names.insert(&mut self.text, name, id)
            && matches!(self.inodes[replaced as usize].content, Content::Directory(_) | Content::Symlink(_))
        {
            self.recent = None;
        }
        Ok(())
    }

    /// Takes a name away from what has it.
    pub(crate) fn unlink(&mut self, parent: Id, name: &[u8]) {
        if let Content::Directory(directory) = &mut self.inodes[parent as usize].content {
            directory.names.remove(&self.text, name);
        }
    }

    pub(crate) fn push(&mut self, inode: Inode) -> Result<Id> {
        let directory = if matches!(inode.content, Content::Directory(_)) { DIRECTORY_COST } else { 0 };
        self.account(INODE_COST + directory)?;
        let id = Id::try_from(self.inodes.len())
            .map_err(|_| Error::resource_exhausted("a layer of more than four billion files"))?;
        self.inodes.push(inode);
        Ok(id)
    }

    pub(crate) fn account(&mut self, len: usize) -> Result<()> {
        self.memory += len as u64;
        check_memory(self.memory)
    }

    /// The number of an attribute that an inode has.
    pub(crate) fn number(&mut self, attribute: Attribute) -> Result<u32> {
        let (text, known) = (attribute.name.len() + attribute.value.len(), self.attributes.len());
        let number = self.attributes.number(attribute);
        if self.attributes.len() > known {
            self.account(text + ATTRIBUTE_COST)?;
        }
        Ok(number)
    }

    /// What an inode has in common with others.
    pub(crate) fn common(&self, id: Id) -> &Common {
        self.commons.find(self.inodes[id as usize].common)
    }

    /// The number of what an inode has in common with others.
    pub(crate) fn common_number(&mut self, common: Common) -> Result<u32> {
        let (attributes_len, known) = (size_of_val(&*common.attributes), self.commons.len());
        let number = self.commons.number(common);
        if self.commons.len() > known {
            self.account(COMMON_COST + attributes_len)?;
        }
        Ok(number)
    }

    /// Gives an inode metadata. Attributes that `metadata` does not name go, but not labels, and not those of the
    /// root, which is there whether a layer describes it or not.
    fn set_metadata(&mut self, id: Id, metadata: &Metadata<'_>) -> Result<()> {
        let before = self.common(id);
        let mode = before.mode & !0o7777 | metadata.mode & 0o7777;
        let stays = |number: &u32| id == ROOT || self.attributes.find(*number).is_label();
        let before: Vec<u32> = before.attributes.iter().copied().filter(stays).collect();
        let attributes = self.attributes_of(&before, mode, metadata)?;
        let common = self.common_number(Common { mode, uid: metadata.uid, gid: metadata.gid, attributes })?;
        let inode = &mut self.inodes[id as usize];
        inode.common = common;
        (inode.mtime, inode.mtime_nanos) = metadata.mtime;
        if let Content::Directory(directory) = &mut inode.content {
            directory.implied = false;
        }
        Ok(())
    }

    fn attributes_of(&mut self, before: &[u32], mode: u16, metadata: &Metadata<'_>) -> Result<Box<[u32]>> {
        let mut all: BTreeMap<(u8, Vec<u8>), u32> = BTreeMap::new();
        for number in before {
            let attribute = self.attributes.find(*number).with_mode(mode);
            let key = (attribute.prefix, attribute.name.clone());
            all.insert(key, self.number(attribute)?);
        }
        for (name, value) in metadata.attributes {
            if name.starts_with("trusted.overlay.") || name.starts_with("user.overlay.") {
                continue; // they could show what is not in the image
            }
            if let Some(attribute) = Attribute::new(name, value, mode)? {
                let key = (attribute.prefix, attribute.name.clone());
                all.insert(key, self.number(attribute)?);
            }
        }
        Ok(all.into_values().collect())
    }

    pub(crate) fn is_directory(&self, id: Id) -> bool {
        matches!(self.inodes[id as usize].content, Content::Directory(_))
    }

    pub(crate) fn child(&self, parent: Id, name: &[u8]) -> Option<Id> {
        match &self.inodes[parent as usize].content {
            Content::Directory(directory) => directory.names.get(&self.text, name),
            _ => None,
        }
    }

    pub(crate) fn directory_mut(&mut self, id: Id) -> &mut Directory {
        match &mut self.inodes[id as usize].content {
            Content::Directory(directory) => directory,
            _ => unreachable!("names are made in directories"),
        }
    }

    /// The directory that an entry goes to, made where it is missing, and its name there. None for the root.
    fn place_of<'p>(&mut self, path: &'p [u8]) -> Result<Option<(Id, &'p [u8])>> {
        // Most are where the one before was.
        if let Some((recent, id)) = &self.recent
            && let Some(name) = path.strip_prefix(&recent[..]).and_then(|rest| rest.strip_prefix(b"/"))
            && path.len() <= PATH_LEN_MAX
            && !matches!(name, b"" | b"." | b"..")
            && !name.iter().any(|byte| matches!(byte, b'/' | 0))
        {
            return Ok(Some((*id, name)));
        }
        let mut path = clean(path)?;
        match path.pop() {
            Some(name) => Ok(Some((self.make_parent(&path)?, name))),
            None => Ok(None),
        }
    }

    /// The directory at a path, made with those above where they are missing.
    fn make_parent(&mut self, path: &[&[u8]]) -> Result<Id> {
        let joined = path.join(&b'/');
        if let Some((recent, id)) = &self.recent
            && *recent == joined
        {
            return Ok(*id);
        }
        let way = self.resolve(path, true)?.expect("made where it was missing");
        let id = *way.last().expect("the root stays");
        self.recent = Some((joined, id));
        Ok(id)
    }

    /// The directory at a path, through links that stay inside: those that it lies in, the root first, and
    /// itself, last. None if it is not there and not to be made; `FailedPrecondition` if something else is.
    fn resolve(&mut self, path: &[&[u8]], make: bool) -> Result<Option<Vec<Id>>> {
        // The directories on the way, and the names that are left, the next one last.
        let mut way = vec![ROOT];
        let mut left: Vec<Vec<u8>> = path.iter().rev().map(|name| name.to_vec()).collect();
        let (mut symlinks, mut steps) = (0, 0);
        while let Some(name) = left.pop() {
            if name == b".." {
                if way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            let here = *way.last().expect("the root stays");
            let Some(child) = self.child(here, &name) else {
                if !make {
                    return Ok(None);
                }
                way.push(self.make_directory(here, &name, None)?);
                continue;
            };
            match &self.inodes[child as usize].content {
                Content::Directory(_) => way.push(child),
                Content::Symlink(target) => {
                    let target = self.text.of(*target);
                    symlinks += 1;
                    if symlinks > SYMLINKS_MAX {
                        return Err(Error::invalid_argument("too many links lead to each other"));
                    }
                    if target.first() == Some(&b'/') {
                        way.truncate(1);
                    }
                    let before = left.len();
                    left.extend(names(target).rev().map(<[u8]>::to_vec));
                    steps += left.len() - before;
                    if steps > DETOUR_FROM {
                        self.detour_len += (left.len() - before) as u64;
                    }
                    if self.detour_len > DETOURS_LEN_MAX {
                        return Err(Error::resource_exhausted(format!(
                            "links lead further round than the {DETOURS_LEN_MAX} steps that they may together"
                        )));
                    }
                }
                // Deleted below, and this layer has something in it.
                Content::Whiteout if make => way.push(self.make_directory(here, &name, Some(child))?),
                _ if make => {
                    let name = String::from_utf8_lossy(&name).into_owned();
                    return Err(Error::failed_precondition(format!("{name} is not a directory")));
                }
                _ => return Ok(None),
            }
        }
        Ok(Some(way))
    }
}

impl Inode {
    /// What implied directories have in common in every tree, and what whiteouts do.
    const IMPLIED: u32 = 0;
    const WHITEOUT: u32 = 1;

    pub(crate) fn implied_directory() -> Inode {
        let directory = Directory { implied: true, ..Directory::default() };
        Inode {
            common: Inode::IMPLIED,
            mtime: 0,
            mtime_nanos: 0,
            content: Content::Directory(Box::new(directory)),
        }
    }

    pub(crate) fn whiteout() -> Inode {
        Inode { common: Inode::WHITEOUT, mtime: 0, mtime_nanos: 0, content: Content::Whiteout }
    }
}

fn check_memory(memory: u64) -> Result<()> {
    if memory > MEMORY_MAX {
        return Err(Error::resource_exhausted(format!(
            "its names, inodes and attributes take more than the {MEMORY_MAX} bytes of memory that those of a layer, \
             and of an image's layers together, may take: it needs fewer files"
        )));
    }
    Ok(())
}

/// The names of a path as an entry writes it: `..` ends at the root, and takes away what stands before it.
fn clean(path: &[u8]) -> Result<Vec<&[u8]>> {
    if path.len() > PATH_LEN_MAX {
        return Err(Error::invalid_argument(format!("a path of {} bytes is too long", path.len())));
    }
    let mut clean = Vec::new();
    for name in names(path) {
        match name {
            b".." => drop(clean.pop()),
            name if name.contains(&0) => return Err(Error::invalid_argument("a name contains a zero byte")),
            name => clean.push(name),
        }
    }
    Ok(clean)
}

fn names(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."))
}

fn device_number(major: u32, minor: u32) -> Result<u32> {
    encode_device(major, minor)
        .ok_or_else(|| Error::invalid_argument(format!("device number {major}:{minor} is too large")))
}

#[cfg(test)]
mod tests {
    use types::ErrorKind;

    use super::*;

    /// Directories in each other, and many next to each other in the lowest.
    fn hostile(depth: usize, width: usize) -> Tree {
        let mut tree = Tree::empty();
        let mut lowest = ROOT;
        for _ in 0..depth {
            lowest = tree.make_directory(lowest, &[b'd'; NAME_LEN_MAX], None).unwrap();
        }
        for name in 0..width {
            let name = format!("{name:06}");
            tree.make_directory(lowest, name.as_bytes(), None).unwrap();
        }
        tree
    }

    #[test]
    fn paths_of_implied_directories_count_as_memory() {
        let (depth, width) = (15, 1000);
        let mut tree = hostile(depth, width);
        let paths = tree.implied().unwrap();
        assert_eq!(paths.len(), 1 + depth + width);
        assert!(paths.is_sorted(), "as a walk by name comes to them");
        let text: usize = paths.iter().map(Vec::len).sum();
        assert!(text > 3_800 * width, "{text}");
        for (left, fits) in [(text / 2, false), (text + 24 * paths.len(), true)] {
            tree.memory = MEMORY_MAX - left as u64;
            let found = tree.implied();
            assert_eq!(found.is_ok(), fits, "{left} of {text}");
            assert!(found.is_ok_and(|again| again == paths) == fits);
        }
        tree.memory = MEMORY_MAX;
        assert_eq!(tree.implied().unwrap_err().kind(), ErrorKind::ResourceExhausted);
    }

    /// A thousand directories that are a megabyte of names down would be a gigabyte, each with its path.
    #[test]
    fn directories_that_are_passed_take_no_paths() {
        let mut tree = hostile(4000, 1000);
        for inode in &mut tree.inodes {
            if let Content::Directory(directory) = &mut inode.content {
                directory.implied = false;
            }
        }
        // The most that this program ever had, in KiB (proc(5)).
        let most = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
            line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap()
        };
        let before = most();
        assert!(tree.implied().unwrap().is_empty());
        let grown = most() - before;
        assert!(grown < 200 << 10, "{grown} KiB");
    }

    /// A tree is in memory as a whole, and what it takes is nearly all this and names.
    #[test]
    fn an_inode_is_small() {
        assert!(size_of::<Inode>() <= 32, "{}", size_of::<Inode>());
    }
}
