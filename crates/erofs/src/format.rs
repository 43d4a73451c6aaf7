//! The layout of an image (Linux, `fs/erofs/erofs_fs.h`). All numbers are little endian.
//!
//! ```text
//!     0  zeros
//!  1024  superblock, 128 bytes
//!  1152  device slots, 128 bytes each
//!        inodes, at multiples of 32: 64 bytes ─ attributes ─ position of the data, or the data itself if short
//!        shared attributes, from a block's beginning
//!        directories and symlink targets that are too long to be inline with their inode, in blocks
//! ```

/// Bytes of a block: those of a tar block, so that every file of an archive begins at a block.
pub const BLOCK_LEN: u64 = 512;
pub(crate) const BLOCK_BITS: u8 = 9;
pub(crate) const BLOCK: usize = 512;

pub(crate) const SUPERBLOCK_AT: usize = 1024;
pub(crate) const SUPERBLOCK_LEN: usize = 128;
pub(crate) const MAGIC: u32 = 0xE0F5_E1E2;
/// `FEATURE_COMPAT_MTIME`: times of inodes are modification times.
pub(crate) const COMPATIBLE: u32 = 0x2;
/// `FEATURE_INCOMPAT_CHUNKED_FILE`, `FEATURE_INCOMPAT_DEVICE_TABLE`.
pub(crate) const INCOMPATIBLE: u32 = 0x4 | 0x8;

pub(crate) const DEVICE_SLOT_LEN: usize = 128;
pub(crate) const DEVICE_SLOTS_AT: usize = SUPERBLOCK_AT + SUPERBLOCK_LEN;

/// Inode numbers count units of this many bytes from the image's beginning.
pub(crate) const INODE_SLOT_LEN: u64 = 32;
pub(crate) const INODE_LEN: usize = 64;
/// Largest number of the root's inode: the superblock has 16 bits for it.
pub(crate) const ROOT_NUMBER_MAX: u64 = u16::MAX as u64;

/// The extended (64-byte) form of an inode.
pub(crate) const EXTENDED: u16 = 1;
/// Data layouts, in an inode's format field from bit 1 on.
pub(crate) const FLAT_PLAIN: u16 = 0;
pub(crate) const FLAT_INLINE: u16 = 2;
pub(crate) const CHUNK_BASED: u16 = 4;
/// A file is one chunk of 2⁴⁰ bytes: an index entry that names its device and first block.
pub(crate) const CHUNK_FORMAT: u32 = 0x20 | 31;
/// Most bytes of a file: what five bytes can express.
pub(crate) const FILE_LEN_MAX: u64 = (1 << 40) - 1;
pub(crate) const CHUNK_INDEX_LEN: usize = 8;
pub(crate) const NO_BLOCK: u32 = u32::MAX;

pub(crate) const DIRENT_LEN: usize = 12;

/// Bytes of the headers of an inode's attributes, and of each attribute.
pub(crate) const ATTRIBUTES_HEADER_LEN: usize = 12;
pub(crate) const ATTRIBUTE_HEADER_LEN: usize = 4;

/// Marks a directory without an entry in the archive, in a reserved byte of the inode that the kernel ignores. Only
/// [`crate::Tree::read`] reads it.
pub(crate) const IMPLIED: u8 = 1;
pub(crate) const IMPLIED_AT: usize = 48;

/// Types of files, as in `st_mode` (inode(7)).
pub(crate) const TYPE_MASK: u16 = 0o170_000;
pub(crate) const FIFO: u16 = 0o010_000;
pub(crate) const CHARACTER_DEVICE: u16 = 0o020_000;
pub(crate) const DIRECTORY: u16 = 0o040_000;
pub(crate) const BLOCK_DEVICE: u16 = 0o060_000;
pub(crate) const REGULAR: u16 = 0o100_000;
pub(crate) const SYMLINK: u16 = 0o120_000;

/// Types of files, as in directory entries.
pub(crate) fn entry_type(mode: u16) -> u8 {
    match mode & TYPE_MASK {
        REGULAR => 1,
        DIRECTORY => 2,
        CHARACTER_DEVICE => 3,
        BLOCK_DEVICE => 4,
        FIFO => 5,
        SYMLINK => 7,
        _ => 0,
    }
}

/// A device number in 32 bits (`new_encode_dev` of Linux).
pub(crate) fn encode_device(major: u32, minor: u32) -> Option<u32> {
    let fits = major < 1 << 12 && minor < 1 << 20;
    fits.then_some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}
