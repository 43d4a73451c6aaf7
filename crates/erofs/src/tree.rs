//! A tree of files, built from the entries of an archive.
//!
//! ```text
//! directory ─name─▶ inode ◀─name─ directory       a name is a link to an inode; an inode may have many
//! ```
//!
//! Inodes, names and directories are in lists of the tree, and refer to each other by their places there: a layer may
//! have millions, and pointers would double their size.
//!
//! An entry has the effect of unpacking it (`diff::apply`): its parents are resolved inside the tree, through its
//! symlinks; an existing name is replaced, with everything below it, except that a directory entry only changes the
//! metadata of an existing directory.

mod paths;

use std::collections::BTreeMap;

use types::{Error, Result};

use crate::attribute::Attribute;
use crate::entry::{Entry, EntryKind, Metadata};
use crate::format::{
    BLOCK_DEVICE, BLOCK_LEN, CHARACTER_DEVICE, DIRECTORY, FIFO, FILE_LEN_MAX, REGULAR, SYMLINK, encode_device,
};
use crate::interned::Interned;
use crate::names::{Names, Span, Text};
use crate::tree::paths::clean;

/// Most bytes of a name and of a path (limits.h).
const NAME_LEN_MAX: usize = 255;
pub(crate) const PATH_LEN_MAX: usize = 4095;
/// Most bytes of memory of a tree until its image is written: bounds archives of very many empty files.
pub(crate) const MEMORY_MAX: u64 = 512 << 20;
/// Bytes that each item takes beside its text, with the spare capacity of lists and the overhead of the allocator: an
/// inode with its place in the image, a directory of few names, a name, a distinct attribute, and a distinct
/// [`Common`].
const INODE_COST: usize = 56;
const DIRECTORY_COST: usize = 224;
const NAME_COST: usize = 20;
const ATTRIBUTE_COST: usize = 160;
const COMMON_COST: usize = 144;

/// A device of the image: the data file of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// For people who inspect an image: the digest of the archive in hexadecimal. At most 64 bytes are written.
    pub tag: String,
    /// Bytes. The file may be longer.
    pub len: u64,
}

/// The index of an inode in [`Tree::inodes`].
pub(crate) type Id = u32;

pub(crate) const ROOT: Id = 0;

/// A file, directory or other inode. It is small, as a layer may have millions.
#[derive(Clone, Copy)]
pub(crate) struct Inode {
    pub(crate) mtime: Time,
    /// The number of its [`Common`].
    pub(crate) common: u32,
    pub(crate) content: Content,
}

/// Nanoseconds since 1970.
#[derive(Clone, Copy, Default)]
pub(crate) struct Time(i64);

/// Metadata that many inodes have in common: a layer has few different ones, so they are interned.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Common {
    /// Permissions and type.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Numbers of attributes, sorted by the attributes themselves.
    pub(crate) attributes: Box<[u32]>,
}

#[derive(Clone, Copy)]
pub(crate) enum Content {
    /// The index of its [`Directory`] in [`Tree::directories`].
    Directory(u32),
    /// Length, index of the device, and first block on it.
    File {
        len: FileLen,
        device: u16,
        block: u32,
    },
    /// The target.
    Symlink(Span),
    /// The encoded number of a character or block device; the mode says which.
    Device(u32),
    Fifo,
    /// Deletes the name from the layers below. In an image: a character device 0:0 (overlayfs.rst).
    Whiteout,
}

/// Bytes of a file, at most [`FILE_LEN_MAX`]: little endian.
#[derive(Clone, Copy)]
pub(crate) struct FileLen([u8; 5]);

#[derive(Default)]
pub(crate) struct Directory {
    pub(crate) names: Names,
    /// Whether no entry gave its metadata: it was created for a name in it.
    pub(crate) implied: bool,
    /// Whether it hides the directory of its path in the layers below.
    pub(crate) opaque: bool,
    /// Of merged layers: what the lower ones have at its path.
    pub(crate) hides: Hidden,
}

/// What a directory of merged layers hides of the lower ones. It has no name in the tree, but implied directories of
/// layers above get the metadata of a hidden one.
#[derive(Clone, Copy, Default)]
pub(crate) enum Hidden {
    #[default]
    Nothing,
    Directory(Id),
    /// A file, or a whiteout.
    Other,
}

/// The position of a file's data on the first device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The file's path, relative to the root.
    pub path: Vec<u8>,
    /// Length of the file in bytes.
    pub len: u64,
    /// Offset of its first byte on the device.
    pub at: u64,
}

/// The files of a layer, or of several merged ones.
pub struct Tree {
    pub(crate) inodes: Vec<Inode>,
    pub(crate) directories: Vec<Directory>,
    /// Names, and targets of symlinks.
    pub(crate) text: Text,
    pub(crate) attributes: Interned<Attribute>,
    pub(crate) commons: Interned<Common>,
    pub(crate) devices: Vec<Device>,
    /// The path and id of the last entry's directory, where the next entry mostly is too.
    recent: Option<(Vec<u8>, Id)>,
    /// Bytes of memory, by the costs above.
    memory: u64,
    /// Counted steps of symlinks so far: see [`paths::DETOURS_LEN_MAX`].
    detour_len: u64,
    /// See [`Tree::keep`]. The last field, so that it is dropped after all others.
    _kept: Option<Box<dyn Send + Sync>>,
}

impl Tree {
    /// A tree with only a root, whose files have their data on `device`.
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
            inodes: vec![Inode::implied_directory(Content::Directory(0))],
            directories: vec![Directory { implied: true, ..Directory::default() }],
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

    /// Replaces the device, whose digest and length are known only once the archive was read to its end.
    pub fn set_device(&mut self, device: Device) {
        self.devices = vec![device];
    }

    /// An upper bound of the bytes of memory that the tree takes until its image is written.
    pub fn memory(&self) -> u64 {
        self.memory
    }

    /// Keeps a value until the tree is dropped, such as a permit for its memory.
    pub fn keep(&mut self, kept: impl Send + Sync + 'static) {
        self._kept = Some(Box::new(kept));
    }

    /// Adds an entry of the archive.
    ///
    /// `InvalidArgument` or `FailedPrecondition` if it cannot be unpacked, `NotFound` if the target of a hard link is
    /// missing, `ResourceExhausted` if a limit is exceeded.
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
                let Some(len) = FileLen::of(len).filter(|_| at.is_multiple_of(BLOCK_LEN)) else {
                    return Err(Error::invalid_argument(format!("{len} bytes at {at} cannot be mapped")));
                };
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

    /// Deletes a path of the layers below. A directory that this layer has there itself becomes opaque instead.
    pub fn white_out(&mut self, path: &[u8]) -> Result<()> {
        let mut path = clean(path)?;
        let name = path.pop().ok_or_else(|| Error::invalid_argument("a whiteout of no name"))?;
        let parent = self.make_parent(&path)?;
        match self.child(parent, name) {
            None => self.white_out_at(parent, name),
            Some(id) => {
                if self.is_directory(id) {
                    self.directory_mut(id).opaque = true;
                }
                Ok(())
            }
        }
    }

    /// Makes a directory opaque: it hides the names that the layers below have in it.
    pub fn make_opaque(&mut self, path: &[u8]) -> Result<()> {
        let id = self.make_parent(&clean(path)?)?;
        self.directory_mut(id).opaque = true;
        Ok(())
    }

    /// Removes the names in the root that have a prefix. Other links to the same inodes stay.
    pub fn remove_from_root(&mut self, prefix: &[u8]) {
        let Some(root) = self.directory(ROOT) else { return };
        let names = root.names.iter(&self.text).map(|(name, _)| name);
        let removed: Vec<Vec<u8>> =
            names.filter(|name| name.starts_with(prefix)).map(<[u8]>::to_vec).collect();
        for name in removed {
            self.unlink(ROOT, &name);
        }
        self.recent = None;
    }

    /// The number of inodes that have a name, the root included.
    pub fn inode_count(&self) -> u64 {
        let mut seen = vec![false; self.inodes.len()];
        let mut count = 0;
        let mut left = vec![ROOT];
        while let Some(id) = left.pop() {
            if std::mem::replace(&mut seen[id as usize], true) {
                continue;
            }
            count += 1;
            if let Some(directory) = self.directory(id) {
                left.extend(directory.names.ids());
            }
        }
        count
    }

    /// The positions of all files on the first device, one for each of a file's names.
    pub fn files(&self) -> Vec<Placed> {
        let mut found = Vec::new();
        let mut left = vec![(Vec::new(), ROOT)];
        while let Some((path, id)) = left.pop() {
            match &self.inodes[id as usize].content {
                Content::Directory(at) => {
                    let names = &self.directories[*at as usize].names;
                    for (name, child) in names.iter(&self.text).rev() {
                        let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
                        left.push(([&path, separator, name].concat(), child));
                    }
                }
                Content::File { len, device: 0, block } => {
                    let at = u64::from(*block) * BLOCK_LEN;
                    found.push(Placed { path, len: len.get(), at });
                }
                _ => {}
            }
        }
        found
    }

    /// Paths of the directories that have no entry, parents first. On top of other layers, they should get the metadata
    /// that these have.
    ///
    /// `ResourceExhausted` if the tree with these paths takes more memory than a tree may: many directories in a deep
    /// one have long paths.
    pub fn implied(&self) -> Result<Vec<Vec<u8>>> {
        let (mut found, mut memory) = (Vec::new(), self.memory);
        // The path of the current directory. Each pending one has the length of its parent's path, which this begins
        // with.
        let mut path = Vec::new();
        let mut left: Vec<(usize, &[u8], Id)> = vec![(0, b"", ROOT)];
        while let Some((way_len, name, id)) = left.pop() {
            path.truncate(way_len);
            if way_len > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            let Some(directory) = self.directory(id) else { continue };
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

    /// Sets the metadata of an implied directory. Does nothing if there is no implied directory of this path.
    pub fn set_implied_metadata(&mut self, path: &[u8], metadata: &Metadata<'_>) -> Result<()> {
        let mut id = ROOT;
        for name in clean(path)? {
            match self.child(id, name) {
                Some(child) => id = child,
                None => return Ok(()),
            }
        }
        match self.directory(id) {
            Some(directory) if directory.implied => self.set_metadata(id, metadata),
            _ => Ok(()),
        }
    }

    /// Creates an inode, replacing the one that has the name.
    fn make(
        &mut self,
        parent: Id,
        name: &[u8],
        kind: u16,
        content: Content,
        metadata: &Metadata<'_>,
    ) -> Result<()> {
        // Symlinks have no permissions of their own (symlink(7)).
        let mode = kind | if kind == SYMLINK { 0o777 } else { metadata.mode & 0o7777 };
        let attributes = self.attributes_of(&[], mode, metadata)?;
        let Metadata { uid, gid, mtime, .. } = *metadata;
        let common = self.common_number(Common { mode, uid, gid, attributes })?;
        let inode = Inode { mtime: Time::of(mtime), common, content };
        self.link_new(parent, name, inode).map(drop)
    }

    fn make_directory(&mut self, parent: Id, name: &[u8], replaced: Option<Id>) -> Result<Id> {
        let replaces_whiteout =
            replaced.is_some_and(|id| matches!(self.inodes[id as usize].content, Content::Whiteout));
        let id = self.link_directory(parent, name)?;
        // The lower directory stays deleted.
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

    fn link_new(&mut self, parent: Id, name: &[u8], inode: Inode) -> Result<Id> {
        let id = self.push(inode)?;
        self.link(parent, name, id)?;
        Ok(id)
    }

    /// Creates an implied directory, replacing the inode that has the name.
    pub(crate) fn link_directory(&mut self, parent: Id, name: &[u8]) -> Result<Id> {
        let id = self.push_directory(Directory { implied: true, ..Directory::default() })?;
        self.link(parent, name, id)?;
        Ok(id)
    }

    /// Adds a directory that has no name yet, with the metadata of an implied one.
    pub(crate) fn push_directory(&mut self, directory: Directory) -> Result<Id> {
        let content = self.add_directory(directory);
        self.push(Inode::implied_directory(content))
    }

    /// Adds a directory that is no inode's yet.
    pub(crate) fn add_directory(&mut self, directory: Directory) -> Content {
        let at = u32::try_from(self.directories.len()).expect("fewer than inodes");
        self.directories.push(directory);
        Content::Directory(at)
    }

    /// Gives an inode a name, replacing the inode that has it.
    pub(crate) fn link(&mut self, parent: Id, name: &[u8], id: Id) -> Result<()> {
        // Checked here, since a name may also come from the target of a symlink.
        if name.len() > NAME_LEN_MAX {
            return Err(Error::invalid_argument(format!("a name of {} bytes is too long", name.len())));
        }
        self.account(NAME_COST + name.len())?;
        let Content::Directory(at) = self.inodes[parent as usize].content else {
            unreachable!("names are made in directories")
        };
        if let Some(replaced) = self.directories[at as usize].names.insert(&mut self.text, name, id)
            && matches!(self.inodes[replaced as usize].content, Content::Directory(_) | Content::Symlink(_))
        {
            self.recent = None;
        }
        Ok(())
    }

    /// Removes a name from a directory.
    pub(crate) fn unlink(&mut self, parent: Id, name: &[u8]) {
        if let Content::Directory(at) = self.inodes[parent as usize].content {
            self.directories[at as usize].names.remove(&self.text, name);
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

    /// Counts bytes of memory. `ResourceExhausted` beyond [`MEMORY_MAX`].
    pub(crate) fn account(&mut self, len: usize) -> Result<()> {
        self.memory += len as u64;
        check_memory(self.memory)
    }

    /// The number of an attribute, which is interned.
    pub(crate) fn number(&mut self, attribute: Attribute) -> Result<u32> {
        let (text, known) = (attribute.name.len() + attribute.value.len(), self.attributes.len());
        let number = self.attributes.number(attribute);
        if self.attributes.len() > known {
            self.account(text + ATTRIBUTE_COST)?;
        }
        Ok(number)
    }

    /// The [`Common`] of an inode.
    pub(crate) fn common(&self, id: Id) -> &Common {
        self.commons.find(self.inodes[id as usize].common)
    }

    /// The number of a [`Common`], which is interned.
    pub(crate) fn common_number(&mut self, common: Common) -> Result<u32> {
        let (attributes_len, known) = (size_of_val(&*common.attributes), self.commons.len());
        let number = self.commons.number(common);
        if self.commons.len() > known {
            self.account(COMMON_COST + attributes_len)?;
        }
        Ok(number)
    }

    /// Sets the metadata of an inode. Attributes that `metadata` does not have are removed, except labels, and except
    /// those of the root, which exists before its entry.
    fn set_metadata(&mut self, id: Id, metadata: &Metadata<'_>) -> Result<()> {
        let before = self.common(id);
        let mode = before.mode & !0o7777 | metadata.mode & 0o7777;
        let stays = |number: &u32| id == ROOT || self.attributes.find(*number).is_label();
        let before: Vec<u32> = before.attributes.iter().copied().filter(stays).collect();
        let attributes = self.attributes_of(&before, mode, metadata)?;
        let common = self.common_number(Common { mode, uid: metadata.uid, gid: metadata.gid, attributes })?;
        let inode = &mut self.inodes[id as usize];
        (inode.common, inode.mtime) = (common, Time::of(metadata.mtime));
        if self.is_directory(id) {
            self.directory_mut(id).implied = false;
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
        self.directory(parent)?.names.get(&self.text, name)
    }

    /// `None` for an inode of another kind.
    pub(crate) fn directory(&self, id: Id) -> Option<&Directory> {
        match self.inodes[id as usize].content {
            Content::Directory(at) => Some(&self.directories[at as usize]),
            _ => None,
        }
    }

    pub(crate) fn directory_mut(&mut self, id: Id) -> &mut Directory {
        match self.inodes[id as usize].content {
            Content::Directory(at) => &mut self.directories[at as usize],
            _ => unreachable!("names are made in directories"),
        }
    }
}

impl Inode {
    /// The numbers of the [`Common`]s of implied directories and of whiteouts, the same in every tree.
    const IMPLIED: u32 = 0;
    const WHITEOUT: u32 = 1;

    fn implied_directory(content: Content) -> Inode {
        Inode { mtime: Time::default(), common: Inode::IMPLIED, content }
    }

    fn whiteout() -> Inode {
        Inode { mtime: Time::default(), common: Inode::WHITEOUT, content: Content::Whiteout }
    }
}

impl Time {
    const SECOND: i64 = 1_000_000_000;

    /// The time of seconds and nanoseconds. One before 1677 or after 2262 becomes the nearest that fits.
    pub(crate) fn of((seconds, nanoseconds): (i64, u32)) -> Time {
        let exact = i128::from(seconds) * i128::from(Time::SECOND) + i128::from(nanoseconds);
        let nearest = exact.clamp(i64::MIN.into(), i64::MAX.into());
        Time(i64::try_from(nearest).expect("it was clamped"))
    }

    /// Seconds, and nanoseconds after these.
    pub(crate) fn parts(self) -> (i64, u32) {
        let nanoseconds = self.0.rem_euclid(Time::SECOND);
        (self.0.div_euclid(Time::SECOND), u32::try_from(nanoseconds).expect("less than a second"))
    }
}

impl FileLen {
    pub(crate) const ZERO: FileLen = FileLen([0; 5]);

    /// `None` beyond [`FILE_LEN_MAX`].
    pub(crate) fn of(len: u64) -> Option<FileLen> {
        let [low @ .., _, _, _] = len.to_le_bytes();
        (len <= FILE_LEN_MAX).then_some(FileLen(low))
    }

    pub(crate) fn get(self) -> u64 {
        let FileLen([a, b, c, d, e]) = self;
        u64::from_le_bytes([a, b, c, d, e, 0, 0, 0])
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

fn device_number(major: u32, minor: u32) -> Result<u32> {
    encode_device(major, minor)
        .ok_or_else(|| Error::invalid_argument(format!("device number {major}:{minor} is too large")))
}

#[cfg(test)]
mod tests {
    use types::ErrorKind;

    use super::*;

    /// A chain of `depth` directories, the last of which has `width` subdirectories.
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

    /// A thousand directories below a megabyte of names would need a gigabyte for their paths.
    #[test]
    fn directories_that_are_not_implied_need_no_memory_for_paths() {
        let mut tree = hostile(4000, 1000);
        tree.directories.iter_mut().for_each(|directory| directory.implied = false);
        // Peak memory of this program in KiB (proc(5)).
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

    /// Inodes and names are nearly all of a tree's memory.
    #[test]
    fn an_inode_is_small() {
        assert_eq!(size_of::<Inode>(), 24);
    }

    #[test]
    fn times_and_lengths_are_those_that_were_stored() {
        let last = (9_223_372_036, 854_775_807);
        for time in [(0, 0), (1, 999_999_999), (-1, 1), (-(1 << 31), 0), last] {
            assert_eq!(Time::of(time).parts(), time);
        }
        for time in [(9_223_372_036, 854_775_808), (i64::MAX, u32::MAX)] {
            assert_eq!(Time::of(time).parts(), last, "the nearest");
        }
        let first = (-9_223_372_037, 145_224_192);
        for time in [first, (i64::MIN, 0), (-9_223_372_037, 0)] {
            assert_eq!(Time::of(time).parts(), first, "the nearest, which is read as it was written");
        }
        for len in [0, 1, 0x01_02_03_04_05, FILE_LEN_MAX] {
            assert_eq!(FileLen::of(len).map(FileLen::get), Some(len));
        }
        assert!([FILE_LEN_MAX + 1, u64::MAX].iter().all(|len| FileLen::of(*len).is_none()));
    }
}
