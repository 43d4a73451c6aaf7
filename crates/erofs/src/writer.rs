//! Writes a tree as an image, in two passes: the first assigns positions, so that parts can refer to each other, and
//! the second writes the bytes from front to back.

use std::collections::HashMap;
use std::io::{self, Write};

use types::{Error, Result};

use crate::attribute::{Attribute, OPAQUE};
use crate::format::{
    ATTRIBUTE_HEADER_LEN, ATTRIBUTES_HEADER_LEN, BLOCK, BLOCK_BITS, CHUNK_BASED, CHUNK_FORMAT,
    CHUNK_INDEX_LEN, COMPATIBLE, DEVICE_SLOT_LEN, DEVICE_SLOTS_AT, DIRENT_LEN, EXTENDED, FLAT_INLINE,
    FLAT_PLAIN, IMPLIED, IMPLIED_AT, INCOMPATIBLE, INODE_LEN, INODE_SLOT_LEN, MAGIC, NO_BLOCK,
    ROOT_NUMBER_MAX, SUPERBLOCK_AT, SUPERBLOCK_LEN, entry_type,
};
use crate::names::Text;
use crate::tree::{Content, Directory, Id, MEMORY_MAX, ROOT, Tree};

/// Most bytes of a directory or symlink target that is inline with its inode. Inline data must be within one block.
const INLINE_LEN_MAX: usize = 384;
/// Most shared attributes of an inode: their count is a byte.
const SHARED_MAX: usize = u8::MAX as usize;
/// Most units of four bytes that an inode's attributes may take.
const ATTRIBUTES_UNITS_MAX: usize = u16::MAX as usize;
/// Most bytes of an image, which is read into memory as a whole to merge layers. A tree within its memory limit is
/// smaller on the disk, except for attributes: beyond 255 of an inode they are written for each inode, but count once
/// in memory.
pub const IMAGE_LEN_MAX: u64 = MEMORY_MAX + MEMORY_MAX / 2;

const BLOCK_LEN: u64 = BLOCK as u64;

impl Tree {
    /// Writes the image and returns its length in bytes. The same tree gives the same bytes.
    ///
    /// `ResourceExhausted` if it would be longer than [`IMAGE_LEN_MAX`], or exceed a limit of the format.
    pub fn write(&self, to: &mut impl Write) -> Result<u64> {
        let plan = Plan::of(self)?;
        let mut image = Image { to, at: 0 };
        let written = image.tree(self, &plan);
        written
            .map_err(|error| Error::new(error.kind().into(), "write a metadata image").with_source(error))?;
        Ok(plan.len)
    }
}

/// The positions of all parts of an image. Offsets and lengths are in bytes.
struct Plan {
    order: Order,
    /// By inode: its number in the image, which is its position in slots; [`UNNAMED`] or, before it has one, [`NAMED`].
    numbers: Vec<u32>,
    /// The count of names of each inode that has several and is no directory.
    links: HashMap<Id, u32>,
    /// Inodes that have a name, and the root.
    count: u64,
    /// Extents of the inodes that have one, in the order of inodes.
    extents: Vec<Extent>,
    /// By attribute: its offset among the shared ones; `None` if it is not shared.
    shared: Vec<Option<u64>>,
    /// The attribute of opaque directories.
    opaque: Attribute,
    shared_at: u64,
    shared_len: u64,
    data_at: u64,
    len: u64,
}

/// In place of the number of an inode: it has no name, or has one and is not placed yet. The superblock is there in an
/// image.
const UNNAMED: u32 = 0;
const NAMED: u32 = 1;

/// The order of inodes in the image: those of a directory are together. Kept as the order of the directories, since a
/// layer may have millions of files.
#[derive(Default)]
struct Order {
    /// Level by level.
    directories: Vec<Id>,
}

impl Order {
    /// The inodes in their order. One with several names comes once for each: its place is that of the first.
    fn names<'a>(&'a self, tree: &'a Tree) -> impl Iterator<Item = Id> {
        let directories = self.directories.iter().filter_map(move |id| tree.directory(*id));
        std::iter::once(ROOT).chain(directories.flat_map(|directory| directory.names.ids()))
    }
}

/// The data of a directory or a symlink.
struct Extent {
    /// The directory that has the inode's name; of a symlink with several, one of them.
    parent: Id,
    /// Bytes.
    len: u32,
    data: Data,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Data {
    Inline,
    /// The first block, counted from [`Plan::data_at`].
    Blocks(u32),
}

impl Plan {
    fn of(tree: &Tree) -> Result<Plan> {
        let mut plan = Plan {
            order: Order::default(),
            numbers: vec![UNNAMED; tree.inodes.len()],
            links: HashMap::new(),
            count: 0,
            extents: Vec::new(),
            shared: vec![None; tree.attributes.len()],
            opaque: Attribute { prefix: OPAQUE.0, name: OPAQUE.1.to_vec(), value: b"y".to_vec() },
            shared_at: 0,
            shared_len: 0,
            data_at: 0,
            len: 0,
        };
        plan.walk(tree);
        plan.share(tree);
        plan.place(tree)?;
        Ok(plan)
    }

    /// Finds the inodes that have a name, level by level, and counts their names.
    fn walk(&mut self, tree: &Tree) {
        self.add(tree, ROOT, ROOT);
        let mut next = 0;
        while let Some(id) = self.order.directories.get(next).copied() {
            next += 1;
            let directory = tree.directory(id).expect("nothing else is in the list");
            for child in directory.names.ids() {
                if self.numbers[child as usize] == UNNAMED {
                    self.add(tree, child, id);
                } else {
                    *self.links.entry(child).or_insert(1) += 1;
                }
            }
        }
    }

    /// Adds an inode, which is in this directory.
    fn add(&mut self, tree: &Tree, id: Id, parent: Id) {
        self.numbers[id as usize] = NAMED;
        self.count += 1;
        if tree.is_directory(id) {
            self.order.directories.push(id);
        }
        if has_extent(&tree.inodes[id as usize].content) {
            self.extents.push(Extent::of_child(parent));
        }
    }

    fn links(&self, tree: &Tree, id: Id) -> u32 {
        match tree.directory(id) {
            Some(directory) => {
                // The name, `.`, and `..` in each directory in it.
                let inside = directory.names.ids().filter(|child| tree.is_directory(*child)).count();
                2 + u32::try_from(inside).expect("inodes are numbered in 32 bits")
            }
            None => self.links.get(&id).copied().unwrap_or(1),
        }
    }

    /// Assigns offsets to attributes that several inodes have, which are written once.
    fn share(&mut self, tree: &Tree) {
        let mut users = vec![0_u32; tree.attributes.len()];
        let named = tree.inodes.iter().zip(&self.numbers).filter(|(_, number)| **number != UNNAMED);
        for number in named.flat_map(|(inode, _)| &tree.commons.find(inode.common).attributes) {
            users[*number as usize] += 1;
        }
        // In the order of the inodes that have them, which does not depend on the history of the tree.
        for number in self.order.names(tree).flat_map(|id| &tree.common(id).attributes) {
            let shared = &mut self.shared[*number as usize];
            if users[*number as usize] > 1 && shared.is_none() {
                *shared = Some(self.shared_len);
                self.shared_len += attribute_len(tree.attributes.find(*number)) as u64;
            }
        }
    }

    /// Assigns positions to inodes and their data.
    fn place(&mut self, tree: &Tree) -> Result<()> {
        let mut at = (DEVICE_SLOTS_AT + tree.devices.len() * DEVICE_SLOT_LEN) as u64;
        let (mut blocks, mut extents) = (0, 0..);
        for id in self.order.names(tree) {
            if self.numbers[id as usize] != NAMED {
                continue; // it is where its first name is
            }
            let inode = &tree.inodes[id as usize];
            let attributes_len = attributes_len(&self.split(tree, id));
            if attributes_len / 4 > ATTRIBUTES_UNITS_MAX {
                return Err(Error::resource_exhausted("a file has more attributes than an image can hold"));
            }
            let before_data = (INODE_LEN + attributes_len) as u64;
            at = at.next_multiple_of(INODE_SLOT_LEN);
            let len = match &inode.content {
                Content::Directory(at) => packed_len(&tree.directories[*at as usize], &tree.text),
                Content::Symlink(target) => target.len() as u64,
                _ => 0,
            };
            let is_inline = len <= INLINE_LEN_MAX as u64;
            while is_inline && (at + before_data) % BLOCK_LEN + len > BLOCK_LEN {
                at += INODE_SLOT_LEN;
            }
            self.numbers[id as usize] = narrow(at / INODE_SLOT_LEN)?;
            at += before_data;
            match &inode.content {
                Content::File { len, .. } if len.get() > 0 => {
                    at = at.next_multiple_of(CHUNK_INDEX_LEN as u64) + CHUNK_INDEX_LEN as u64;
                }
                content if has_extent(content) => {
                    let extent = &mut self.extents[extents.next().expect("it has no end")];
                    extent.len = narrow(len)?;
                    if is_inline {
                        at += len;
                    } else {
                        extent.data = Data::Blocks(narrow(blocks)?);
                        blocks += len.div_ceil(BLOCK_LEN);
                    }
                }
                _ => {}
            }
        }
        if self.number(ROOT) > ROOT_NUMBER_MAX {
            return Err(Error::resource_exhausted(format!("{} layers are too many", tree.devices.len())));
        }
        self.shared_at = at.next_multiple_of(BLOCK_LEN);
        self.data_at = (self.shared_at + self.shared_len).next_multiple_of(BLOCK_LEN);
        self.len = self.data_at + blocks * BLOCK_LEN;
        if self.len > IMAGE_LEN_MAX {
            return Err(Error::resource_exhausted(format!(
                "its metadata takes {} bytes, more than the {IMAGE_LEN_MAX} that an image may have: it needs fewer files, \
                 or fewer attributes on each",
                self.len
            )));
        }
        Ok(())
    }

    fn number(&self, id: Id) -> u64 {
        u64::from(self.numbers[id as usize])
    }

    /// The inodes in the order of the image, each with its extent.
    fn inodes<'a>(&'a self, tree: &'a Tree) -> impl Iterator<Item = (Id, Option<&'a Extent>)> {
        let (mut extents, mut last) = (self.extents.iter(), 0);
        let is_first = move |id: &Id| {
            // Numbers grow in this order.
            let number = self.numbers[*id as usize];
            let is_first = number > last;
            last = last.max(number);
            is_first
        };
        self.order.names(tree).filter(is_first).map(move |id| {
            let has_extent = has_extent(&tree.inodes[id as usize].content);
            (id, has_extent.then(|| extents.next().expect("one for each")))
        })
    }

    /// The attributes that are written with an inode, and the positions of its shared ones, in units of four bytes.
    fn split<'a>(&'a self, tree: &'a Tree, id: Id) -> (Vec<&'a Attribute>, Vec<u32>) {
        let (mut own, mut shared) = (Vec::new(), Vec::new());
        for number in &tree.common(id).attributes {
            match self.shared[*number as usize] {
                Some(at) if shared.len() < SHARED_MAX && at / 4 <= u64::from(u32::MAX) => {
                    shared.push(u32::try_from(at / 4).expect("just compared"));
                }
                _ => own.push(tree.attributes.find(*number)),
            }
        }
        if tree.directory(id).is_some_and(|directory| directory.opaque) {
            own.push(&self.opaque);
        }
        (own, shared)
    }
}

/// The writer of an image, which knows its position.
struct Image<'a, W> {
    to: &'a mut W,
    at: u64,
}

impl<W: Write> Image<'_, W> {
    fn tree(&mut self, tree: &Tree, plan: &Plan) -> io::Result<()> {
        self.pad_to(SUPERBLOCK_AT as u64)?;
        self.put(&superblock(tree, plan))?;
        for device in &tree.devices {
            let mut slot = [0; DEVICE_SLOT_LEN];
            let tag = device.tag.as_bytes();
            let tag = &tag[..tag.len().min(64)];
            slot[..tag.len()].copy_from_slice(tag);
            slot[64..68].copy_from_slice(&low(device.len.div_ceil(BLOCK_LEN)).to_le_bytes());
            self.put(&slot)?;
        }
        for (index, (id, extent)) in plan.inodes(tree).enumerate() {
            self.inode(tree, plan, index, id, extent)?;
        }
        self.pad_to(plan.shared_at)?;
        self.shared(tree, plan)?;
        self.pad_to(plan.data_at)?;
        for (id, extent) in plan.inodes(tree) {
            let Some(Extent { parent, data: Data::Blocks(first), .. }) = extent else { continue };
            self.pad_to(plan.data_at + u64::from(*first) * BLOCK_LEN)?;
            self.data(tree, plan, id, *parent)?;
        }
        self.pad_to(plan.len)?;
        self.to.flush()
    }

    fn inode(
        &mut self,
        tree: &Tree,
        plan: &Plan,
        index: usize,
        id: Id,
        extent: Option<&Extent>,
    ) -> io::Result<()> {
        let inode = &tree.inodes[id as usize];
        let common = tree.common(id);
        self.pad_to(plan.number(id) * INODE_SLOT_LEN)?;
        let (layout, size, word) = match (&inode.content, extent) {
            (Content::File { len, .. }, _) => match len.get() {
                0 => (FLAT_PLAIN, 0, NO_BLOCK),
                len => (CHUNK_BASED, len, CHUNK_FORMAT),
            },
            (Content::Device(number), _) => (FLAT_PLAIN, 0, *number),
            (_, Some(Extent { len, data: Data::Blocks(first), .. })) => {
                (FLAT_PLAIN, u64::from(*len), low(plan.data_at / BLOCK_LEN + u64::from(*first)))
            }
            (_, Some(Extent { len, data: Data::Inline, .. })) => (FLAT_INLINE, u64::from(*len), 0),
            (_, None) => (FLAT_PLAIN, 0, 0),
        };
        let split = plan.split(tree, id);
        let units = match attributes_len(&split) {
            0 => 0,
            len => 1 + (len - ATTRIBUTES_HEADER_LEN) / 4,
        };
        let mut bytes = [0; INODE_LEN];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &(EXTENDED | layout << 1).to_le_bytes());
        put(2, &u16::try_from(units).expect("checked when it was placed").to_le_bytes());
        put(4, &common.mode.to_le_bytes());
        put(8, &size.to_le_bytes());
        put(16, &word.to_le_bytes());
        put(20, &low(index as u64 + 1).to_le_bytes());
        put(24, &common.uid.to_le_bytes());
        put(28, &common.gid.to_le_bytes());
        let (seconds, nanoseconds) = inode.mtime.parts();
        put(32, &seconds.to_le_bytes());
        put(40, &nanoseconds.to_le_bytes());
        put(44, &plan.links(tree, id).to_le_bytes());
        if tree.directory(id).is_some_and(|directory| directory.implied) {
            put(IMPLIED_AT, &[IMPLIED]);
        }
        self.put(&bytes)?;
        let (own, shared) = split;
        if units > 0 {
            let mut header = [0; ATTRIBUTES_HEADER_LEN];
            header[4] = u8::try_from(shared.len()).expect("no more than are shared");
            self.put(&header)?;
            for at in shared {
                self.put(&at.to_le_bytes())?;
            }
            for attribute in own {
                self.attribute(attribute)?;
            }
        }
        match (&inode.content, extent) {
            (Content::File { len, device, block }, _) if len.get() > 0 => {
                self.pad_to(self.at.next_multiple_of(CHUNK_INDEX_LEN as u64))?;
                self.put(&0_u16.to_le_bytes())?;
                // Device 0 is the image itself.
                self.put(&(device + 1).to_le_bytes())?;
                self.put(&block.to_le_bytes())
            }
            (_, Some(Extent { parent, data: Data::Inline, .. })) => self.data(tree, plan, id, *parent),
            _ => Ok(()),
        }
    }

    fn data(&mut self, tree: &Tree, plan: &Plan, id: Id, parent: Id) -> io::Result<()> {
        match &tree.inodes[id as usize].content {
            Content::Directory(at) => {
                let directory = &tree.directories[*at as usize];
                self.directory(tree, plan, listed(directory, &tree.text, id, parent).collect())
            }
            Content::Symlink(target) => self.put(tree.text.of(*target)),
            _ => Ok(()),
        }
    }

    fn directory(&mut self, tree: &Tree, plan: &Plan, names: Vec<(&[u8], Id)>) -> io::Result<()> {
        let mut blocks = Blocks::of(&names).peekable();
        while let Some(block) = blocks.next() {
            let mut bytes = Vec::with_capacity(BLOCK);
            let mut name_at = block.len() * DIRENT_LEN;
            for (name, id) in block {
                bytes.extend_from_slice(&plan.number(*id).to_le_bytes());
                bytes.extend_from_slice(&u16::try_from(name_at).expect("within a block").to_le_bytes());
                bytes.extend_from_slice(&[entry_type(tree.common(*id).mode), 0]);
                name_at += name.len();
            }
            block.iter().for_each(|(name, _)| bytes.extend_from_slice(name));
            if blocks.peek().is_some() {
                bytes.resize(BLOCK, 0);
            }
            self.put(&bytes)?;
        }
        Ok(())
    }

    fn shared(&mut self, tree: &Tree, plan: &Plan) -> io::Result<()> {
        let mut all: Vec<(u64, usize)> =
            plan.shared.iter().enumerate().filter_map(|(number, at)| at.map(|at| (at, number))).collect();
        all.sort_unstable();
        for (at, number) in all {
            debug_assert_eq!(self.at, plan.shared_at + at);
            self.attribute(tree.attributes.find(u32::try_from(number).expect("numbered in 32 bits")))?;
        }
        Ok(())
    }

    fn attribute(&mut self, attribute: &Attribute) -> io::Result<()> {
        let name_len = u8::try_from(attribute.name.len()).expect("checked when it was made");
        let value_len = u16::try_from(attribute.value.len()).expect("checked when it was made");
        self.put(&[name_len, attribute.prefix])?;
        self.put(&value_len.to_le_bytes())?;
        self.put(&attribute.name)?;
        self.put(&attribute.value)?;
        self.pad_to(self.at.next_multiple_of(4))
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len() as u64;
        self.to.write_all(bytes)
    }

    fn pad_to(&mut self, at: u64) -> io::Result<()> {
        const ZEROS: [u8; BLOCK] = [0; BLOCK];
        assert!(at >= self.at, "{at} was passed: at {}", self.at);
        while self.at < at {
            let len = usize::try_from(at - self.at).unwrap_or(BLOCK).min(BLOCK);
            self.put(&ZEROS[..len])?;
        }
        Ok(())
    }
}

fn superblock(tree: &Tree, plan: &Plan) -> [u8; SUPERBLOCK_LEN] {
    let mut bytes = [0; SUPERBLOCK_LEN];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, &MAGIC.to_le_bytes());
    put(8, &COMPATIBLE.to_le_bytes());
    put(12, &[BLOCK_BITS]);
    put(14, &u16::try_from(plan.number(ROOT)).expect("checked when it was placed").to_le_bytes());
    put(16, &plan.count.to_le_bytes());
    put(36, &low(plan.len / BLOCK_LEN).to_le_bytes());
    put(44, &low(plan.shared_at / BLOCK_LEN).to_le_bytes());
    put(80, &INCOMPATIBLE.to_le_bytes());
    put(86, &u16::try_from(tree.devices.len()).expect("fewer than the root's number allows").to_le_bytes());
    put(88, &u16::try_from(DEVICE_SLOTS_AT / DEVICE_SLOT_LEN).expect("a small number").to_le_bytes());
    bytes
}

fn narrow(number: u64) -> Result<u32> {
    u32::try_from(number).map_err(|_| too_large())
}

fn too_large() -> Error {
    Error::resource_exhausted("the metadata is larger than an image can be")
}

/// Narrows a number that [`Plan`] has checked to fit.
fn low(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn attribute_len(attribute: &Attribute) -> usize {
    (ATTRIBUTE_HEADER_LEN + attribute.name.len() + attribute.value.len()).next_multiple_of(4)
}

/// Bytes of an inode's own attributes and of the positions of its shared ones, as [`Plan::split`] returns them.
fn attributes_len((own, shared): &(Vec<&Attribute>, Vec<u32>)) -> usize {
    if own.is_empty() && shared.is_empty() {
        return 0;
    }
    let own: usize = own.iter().map(|attribute| attribute_len(attribute)).sum();
    ATTRIBUTES_HEADER_LEN + 4 * shared.len() + own
}

fn has_extent(content: &Content) -> bool {
    matches!(content, Content::Directory(_) | Content::Symlink(_))
}

impl Extent {
    /// The extent of an inode in this directory, without a position.
    fn of_child(parent: Id) -> Extent {
        Extent { parent, len: 0, data: Data::Inline }
    }
}

/// All names in a directory, with `.` and `..`, sorted by bytes: names such as "-" come before the dots, and ".-"
/// between them.
fn listed<'a>(
    directory: &'a Directory,
    text: &'a Text,
    own: Id,
    parent: Id,
) -> impl Iterator<Item = (&'a [u8], Id)> {
    let dots: [(&[u8], Id); 2] = [(b".", own), (b"..", parent)];
    let (mut dots, mut names) = (dots.into_iter().peekable(), directory.names.iter(text).peekable());
    std::iter::from_fn(move || match (names.peek(), dots.peek()) {
        (Some((name, _)), Some((dot, _))) if dot < name => dots.next(),
        (None, _) => dots.next(),
        _ => names.next(),
    })
}

/// Bytes of a directory's entries, packed into blocks.
fn packed_len(directory: &Directory, text: &Text) -> u64 {
    let (mut full, mut used) = (0, 0);
    for (name, _) in listed(directory, text, ROOT, ROOT) {
        let len = DIRENT_LEN + name.len();
        if used + len > BLOCK {
            (full, used) = (full + 1, 0);
        }
        used += len;
    }
    full * BLOCK_LEN + used as u64
}

/// Splits the entries of a directory into those of each block.
struct Blocks<'a, 'b> {
    left: &'a [(&'b [u8], Id)],
}

impl<'a, 'b> Blocks<'a, 'b> {
    fn of(names: &'a [(&'b [u8], Id)]) -> Blocks<'a, 'b> {
        Blocks { left: names }
    }
}

impl<'a, 'b> Iterator for Blocks<'a, 'b> {
    type Item = &'a [(&'b [u8], Id)];

    fn next(&mut self) -> Option<Self::Item> {
        let mut used = 0;
        let fits = self.left.iter().take_while(|(name, _)| {
            used += DIRENT_LEN + name.len();
            used <= BLOCK
        });
        let (block, left) = self.left.split_at(fits.count());
        self.left = left;
        (!block.is_empty()).then_some(block)
    }
}
