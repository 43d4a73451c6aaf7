//! Reads an image back into a tree. Only images of [`Tree::write`] are supported. Damage is detected where it would
//! lead outside of the image; the caller must detect all other damage by a checksum.

use types::{Error, Result};

use crate::attribute::{Attribute, OPAQUE};
use crate::format::{
    ATTRIBUTE_HEADER_LEN, ATTRIBUTES_HEADER_LEN, BLOCK, BLOCK_BITS, BLOCK_DEVICE, CHARACTER_DEVICE,
    CHUNK_BASED, CHUNK_INDEX_LEN, DEVICE_SLOT_LEN, DEVICE_SLOTS_AT, DIRECTORY, DIRENT_LEN, EXTENDED, FIFO,
    FLAT_INLINE, IMPLIED, IMPLIED_AT, INCOMPATIBLE, INODE_LEN, INODE_SLOT_LEN, MAGIC, REGULAR, SUPERBLOCK_AT,
    SUPERBLOCK_LEN, SYMLINK, TYPE_MASK,
};
use crate::tree::{Common, Content, Device, Directory, FileLen, Id, Inode, PATH_LEN_MAX, ROOT, Time, Tree};

impl Tree {
    /// Reads an image that [`Tree::write`] wrote. `DataLoss` if it is damaged, `ResourceExhausted` if it takes more
    /// memory than a tree may.
    pub fn read(image: &[u8]) -> Result<Tree> {
        Image { bytes: image }.tree().unwrap_or_else(|found| Err(damaged(found)))
    }
}

/// Number of bytes from the beginning of an image that [`Head::read`] needs.
pub const HEAD_LEN: usize = DEVICE_SLOTS_AT + DEVICE_SLOT_LEN;

/// Figures from the superblock and the device table.
pub struct Head {
    /// Number of inodes.
    pub inodes: u64,
    /// Bytes of the image.
    pub len: u64,
    /// Bytes of the first device: of the layer's data file, if the image is that of one layer.
    pub data_len: u64,
}

impl Head {
    /// Reads the first [`HEAD_LEN`] bytes of an image. `DataLoss` if they are not those of an image of [`Tree::write`].
    pub fn read(bytes: &[u8]) -> Result<Head> {
        let image = Image { bytes };
        let read = image.superblock().and_then(|superblock| {
            let blocks = |count: u32| u64::from(count) * BLOCK as u64;
            let device = Image { bytes: image.slice(DEVICE_SLOTS_AT as u64, DEVICE_SLOT_LEN)? };
            Ok(Head {
                inodes: superblock.u64(16)?,
                len: blocks(superblock.u32(36)?),
                data_len: blocks(device.u32(64)?),
            })
        });
        read.map_err(damaged)
    }
}

/// Why an image is damaged.
struct Damaged(&'static str);

/// In a table of ids: an inode that was not read yet.
const UNKNOWN: Id = Id::MAX;

/// The place of an inode in a table of ids. It has two slots at least, so no other has the same place.
fn id_slot(known: &mut [Id], number: u64) -> Result<&mut Id, Damaged> {
    let index = usize::try_from(number / 2).ok();
    index.and_then(|index| known.get_mut(index)).ok_or(Damaged("an inode is outside"))
}

fn damaged(Damaged(why): Damaged) -> Error {
    Error::data_loss(format!("the metadata image is damaged: {why}"))
}

#[derive(Clone, Copy)]
struct Image<'a> {
    bytes: &'a [u8],
}

/// A directory whose names are still to be read.
struct Waiting {
    id: Id,
    number: u64,
}

impl<'a> Image<'a> {
    fn superblock(self) -> Result<Image<'a>, Damaged> {
        let superblock = Image { bytes: self.slice(SUPERBLOCK_AT as u64, SUPERBLOCK_LEN)? };
        let is_ours = superblock.u32(0)? == MAGIC
            && superblock.slice(12, 1)? == [BLOCK_BITS]
            && superblock.u32(80)? == INCOMPATIBLE;
        if !is_ours {
            return Err(Damaged("it is no image of ours"));
        }
        Ok(superblock)
    }

    fn tree(self) -> Result<Result<Tree>, Damaged> {
        let superblock = self.superblock()?;
        let root = u64::from(superblock.u16(14)?);
        let shared_at = u64::from(superblock.u32(44)?) * BLOCK as u64;
        let mut tree = Tree::empty();
        for index in 0..superblock.u16(86)? {
            let slot =
                self.slice((DEVICE_SLOTS_AT + usize::from(index) * DEVICE_SLOT_LEN) as u64, DEVICE_SLOT_LEN)?;
            let tag = slot[..64].split(|byte| *byte == 0).next().unwrap_or_default();
            let tag = String::from_utf8(tag.to_vec()).map_err(|_| Damaged("a device has no name"))?;
            let len = u64::from(Image { bytes: slot }.u32(64)?) * BLOCK as u64;
            tree.devices.push(Device { tag, len });
        }
        // The ids of inodes by pairs of slots. Most have more slots, but a map would take several times the memory.
        let mut known = vec![UNKNOWN; self.bytes.len() / (2 * INODE_SLOT_LEN as usize) + 1];
        *id_slot(&mut known, root)? = ROOT;
        tree.inodes[ROOT as usize] = match self.inode(&mut tree, root, shared_at)? {
            Ok(inode) if matches!(inode.content, Content::Directory(_)) => inode,
            Ok(_) => return Err(Damaged("the root is no directory")),
            Err(error) => return Ok(Err(error)),
        };
        let mut waiting = vec![Waiting { id: ROOT, number: root }];
        while let Some(Waiting { id, number }) = waiting.pop() {
            for (name, number) in self.names(number)? {
                let slot = id_slot(&mut known, number)?;
                let child = match *slot {
                    UNKNOWN => {
                        let inode = self.inode(&mut tree, number, shared_at)?;
                        let child = match inode.and_then(|inode| tree.push(inode)) {
                            Ok(child) => child,
                            Err(error) => return Ok(Err(error)),
                        };
                        *slot = child;
                        if tree.is_directory(child) {
                            waiting.push(Waiting { id: child, number });
                        }
                        child
                    }
                    child if tree.is_directory(child) => return Err(Damaged("a directory has two names")),
                    child => child,
                };
                if let Err(error) = tree.link(id, name, child) {
                    return Ok(Err(error));
                }
            }
        }
        Ok(Ok(tree))
    }

    fn inode(self, tree: &mut Tree, number: u64, shared_at: u64) -> Result<Result<Inode>, Damaged> {
        let at = number.checked_mul(INODE_SLOT_LEN).ok_or(Damaged("an inode is outside"))?;
        let own = Image { bytes: self.slice(at, INODE_LEN)? };
        if own.u16(0)? & 1 != EXTENDED {
            return Err(Damaged("an inode is not of the long form"));
        }
        let mode = own.u16(4)?;
        let mut attributes = self.attributes(tree, number, shared_at)?;
        let opaque = attributes.iter().position(|id| {
            let attribute = tree.attributes.find(*id);
            (attribute.prefix, &attribute.name[..]) == OPAQUE
        });
        if let Some(index) = opaque {
            attributes.remove(index);
        }
        let content = match mode & TYPE_MASK {
            DIRECTORY => tree.add_directory(Directory {
                implied: own.slice(IMPLIED_AT as u64, 1)? == [IMPLIED],
                opaque: opaque.is_some(),
                ..Directory::default()
            }),
            REGULAR => match self.file(number)? {
                Content::File { device, .. } if usize::from(device) >= tree.devices.len() => {
                    return Err(Damaged("a file is on a device that there is not"));
                }
                file => file,
            },
            SYMLINK => {
                let target = self.target(tree, number)?;
                Content::Symlink(tree.text.add(target))
            }
            CHARACTER_DEVICE if own.u32(16)? == 0 => Content::Whiteout,
            CHARACTER_DEVICE | BLOCK_DEVICE => Content::Device(own.u32(16)?),
            FIFO => Content::Fifo,
            _ => return Err(Damaged("an inode is of no known type")),
        };
        let mtime = Time::of((own.u64(32)?.cast_signed(), own.u32(40)?));
        let (uid, gid) = (own.u32(24)?, own.u32(28)?);
        let common = tree.common_number(Common { mode, uid, gid, attributes: attributes.into() });
        Ok(common.map(|common| Inode { mtime, common, content }))
    }

    fn file(self, number: u64) -> Result<Content, Damaged> {
        let at = number * INODE_SLOT_LEN;
        let own = Image { bytes: self.slice(at, INODE_LEN)? };
        let len = FileLen::of(own.u64(8)?).ok_or(Damaged("a file is too long"))?;
        if own.u16(0)? >> 1 != CHUNK_BASED {
            return Ok(Content::File { len: FileLen::ZERO, device: 0, block: 0 });
        }
        let end = at + INODE_LEN as u64 + self.attributes_len(number)?;
        let index =
            Image { bytes: self.slice(end.next_multiple_of(CHUNK_INDEX_LEN as u64), CHUNK_INDEX_LEN)? };
        let device = index.u16(2)?.checked_sub(1).ok_or(Damaged("a file is on no device"))?;
        Ok(Content::File { len, device, block: index.u32(4)? })
    }

    fn attributes_len(self, number: u64) -> Result<u64, Damaged> {
        let own = Image { bytes: self.slice(number * INODE_SLOT_LEN, INODE_LEN)? };
        Ok(match u64::from(own.u16(2)?) {
            0 => 0,
            units => ATTRIBUTES_HEADER_LEN as u64 + 4 * (units - 1),
        })
    }

    /// The attributes of an inode, sorted by value as [`Common`] has them.
    fn attributes(self, tree: &mut Tree, number: u64, shared_at: u64) -> Result<Vec<u32>, Damaged> {
        let len =
            usize::try_from(self.attributes_len(number)?).map_err(|_| Damaged("too many attributes"))?;
        if len == 0 {
            return Ok(Vec::new());
        }
        let area = Image { bytes: self.slice(number * INODE_SLOT_LEN + INODE_LEN as u64, len)? };
        let mut found = Vec::new();
        let mut at = ATTRIBUTES_HEADER_LEN as u64;
        for _ in 0..area.slice(4, 1)?[0] {
            found.push(self.attribute(shared_at + 4 * u64::from(area.u32(at)?))?.0);
            at += 4;
        }
        while at < len as u64 {
            let (attribute, attribute_len) = area.attribute(at)?;
            found.push(attribute);
            at += attribute_len;
        }
        found.sort_unstable();
        Ok(found.into_iter().map(|attribute| tree.attributes.number(attribute)).collect())
    }

    fn attribute(self, at: u64) -> Result<(Attribute, u64), Damaged> {
        let header = self.slice(at, ATTRIBUTE_HEADER_LEN)?;
        let (name_len, prefix) = (usize::from(header[0]), header[1]);
        let value_len = usize::from(u16::from_le_bytes([header[2], header[3]]));
        let bytes = self.slice(at + ATTRIBUTE_HEADER_LEN as u64, name_len + value_len)?;
        let attribute =
            Attribute { prefix, name: bytes[..name_len].to_vec(), value: bytes[name_len..].to_vec() };
        let len = (ATTRIBUTE_HEADER_LEN + name_len + value_len).next_multiple_of(4);
        Ok((attribute, len as u64))
    }

    /// The names in a directory, without `.` and `..`.
    fn names(self, number: u64) -> Result<Vec<(&'a [u8], u64)>, Damaged> {
        let wrong = Damaged("a directory is not well-formed");
        let mut found = Vec::new();
        for block in self.data(number)?.chunks(BLOCK) {
            let entries = Image { bytes: block };
            let first = usize::from(entries.u16(8)?);
            if first == 0 || first % DIRENT_LEN != 0 || first > block.len() {
                return Err(wrong);
            }
            for at in (0..first).step_by(DIRENT_LEN) {
                let begin = usize::from(entries.u16(at as u64 + 8)?);
                let next = at + DIRENT_LEN;
                let end = if next < first { usize::from(entries.u16(next as u64 + 8)?) } else { block.len() };
                let name = block.get(begin..end).unwrap_or_default();
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                if name.is_empty() || name.contains(&b'/') {
                    return Err(wrong);
                }
                if name != b"." && name != b".." {
                    found.push((name, entries.u64(at as u64)?));
                }
            }
        }
        Ok(found)
    }

    fn target(self, tree: &mut Tree, number: u64) -> Result<&'a [u8], Damaged> {
        let target = self.data(number)?;
        if target.len() > PATH_LEN_MAX {
            return Err(Damaged("a link is longer than a path"));
        }
        tree.account(target.len()).map_err(|_| Damaged("its links are too long"))?;
        Ok(target)
    }

    /// The data of a directory or symlink.
    fn data(self, number: u64) -> Result<&'a [u8], Damaged> {
        let at = number * INODE_SLOT_LEN;
        let own = Image { bytes: self.slice(at, INODE_LEN)? };
        let len = usize::try_from(own.u64(8)?).map_err(|_| Damaged("a directory is outside"))?;
        if own.u16(0)? >> 1 == FLAT_INLINE {
            return self.slice(at + INODE_LEN as u64 + self.attributes_len(number)?, len);
        }
        self.slice(u64::from(own.u32(16)?) * BLOCK as u64, len)
    }

    fn slice(self, at: u64, len: usize) -> Result<&'a [u8], Damaged> {
        let at = usize::try_from(at).ok();
        let end = at.and_then(|at| at.checked_add(len));
        at.zip(end).and_then(|(at, end)| self.bytes.get(at..end)).ok_or(Damaged("it is cut off"))
    }

    fn u16(self, at: u64) -> Result<u16, Damaged> {
        Ok(u16::from_le_bytes(self.slice(at, 2)?.try_into().expect("two bytes")))
    }

    fn u32(self, at: u64) -> Result<u32, Damaged> {
        Ok(u32::from_le_bytes(self.slice(at, 4)?.try_into().expect("four bytes")))
    }

    fn u64(self, at: u64) -> Result<u64, Damaged> {
        Ok(u64::from_le_bytes(self.slice(at, 8)?.try_into().expect("eight bytes")))
    }
}
