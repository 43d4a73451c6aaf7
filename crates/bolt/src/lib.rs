//! Reads the files of bbolt, the database of containerd and many other Go programs. Read-only, and from memory.
//!
//! ```text
//! file     page 0: meta │ page 1: meta │ pages …             the meta with the higher transaction id counts
//! page     id u64 │ flags u16 │ count u16 │ overflow u32 │ elements │ keys and values
//! branch   pos u32 │ ksize u32 │ page u64                    pos counts from the element itself
//! leaf     flags u32 │ pos u32 │ ksize u32 │ vsize u32       flag 1: the value is a bucket
//! bucket   root page u64 │ sequence u64 │ a leaf page, if the root is 0
//! meta     magic u32 │ version u32 │ page size u32 │ flags u32 │ bucket │ freelist u64 │ pages u64 │ txid u64 │ fnv64a u64
//! ```
//!
//! All numbers are little-endian, as on the machines that wrote them.
//!
//! Invariants
//! - The bytes are untrusted: nothing is read outside of its page, branches nest to a bounded depth, and the contents
//!   of all buckets together take no more room than the file, so opening a file refuses pages or values that are
//!   referenced again and again. A violation is `DataLoss` and names the page.
//! - Nothing is copied: keys and values are slices of the file.
#![forbid(unsafe_code)]

mod bucket;
mod page;

pub use bucket::{Bucket, Entry};

use page::{HEADER_LEN, META_FLAG, Page, u32_at, u64_at};
use types::{Error, Result};

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
/// Valid page sizes: the OS page size of the writing machine.
const PAGE_SIZES: std::ops::RangeInclusive<usize> = 512..=65_536;
/// Bytes of a meta that its checksum covers.
const META_LEN: usize = 56;

/// A database, as of its last committed transaction.
#[derive(Clone, Copy)]
pub struct Database<'a> {
    bytes: &'a [u8],
    page_size: usize,
    root: u64,
}

impl<'a> Database<'a> {
    /// Opens a file's bytes. `InvalidArgument` if it is not a bbolt file, `DataLoss` if neither of its two metas is
    /// intact, or if its contents take more room than the file has.
    pub fn open(bytes: &'a [u8]) -> Result<Database<'a>> {
        let newest = metas(bytes).into_iter().max_by_key(|meta| meta.transaction);
        let Some(meta) = newest else {
            return Err(match u32_at(bytes, HEADER_LEN) {
                Some(MAGIC) => Error::data_loss("both metas of the database are broken"),
                _ => Error::invalid_argument("this is no database of bbolt's"),
            });
        };
        let database = Database { bytes, page_size: meta.page_size, root: meta.root };
        database.root().check_room(bytes.len())?;
        Ok(database)
    }

    /// The bucket that holds all others.
    pub fn root(self) -> Bucket<'a> {
        Bucket::at_page(self, self.root)
    }

    /// A page with its overflow pages.
    fn page(self, id: u64) -> Result<Page<'a>> {
        let broken = |why: &str| Error::data_loss(format!("page {id} of the database {why}"));
        let start = usize::try_from(id).ok().and_then(|id| id.checked_mul(self.page_size));
        let start =
            start.filter(|start| *start < self.bytes.len()).ok_or_else(|| broken("is not in the file"))?;
        let header = self.bytes.get(start..start + HEADER_LEN).ok_or_else(|| broken("is cut off"))?;
        if u64_at(header, 0) != Some(id) {
            return Err(broken("is another page"));
        }
        let overflow = u32_at(header, 12).and_then(|overflow| usize::try_from(overflow).ok());
        let len = overflow.and_then(|overflow| overflow.checked_add(1)?.checked_mul(self.page_size));
        let end = len.and_then(|len| start.checked_add(len)).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| broken("flows over the end of the file"))?;
        Page::parse(id, &self.bytes[start..end])
    }
}

struct Meta {
    page_size: usize,
    root: u64,
    transaction: u64,
}

/// The intact metas. The second is one page after the first; if the first is broken, every usual page size is tried.
fn metas(bytes: &[u8]) -> Vec<Meta> {
    let first = meta_at(bytes, 0);
    let sizes: Vec<usize> = match &first {
        Some(meta) => vec![meta.page_size],
        None => (9..=16).map(|shift| 1 << shift).collect(),
    };
    let second =
        sizes.into_iter().find_map(|size| meta_at(bytes, size).filter(|meta| meta.page_size == size));
    first.into_iter().chain(second).collect()
}

fn meta_at(bytes: &[u8], start: usize) -> Option<Meta> {
    let page = bytes.get(start..)?;
    let flags = u16::from_le_bytes(page.get(8..10)?.try_into().ok()?);
    let meta = page.get(HEADER_LEN..HEADER_LEN + META_LEN + 8)?;
    let known = flags & META_FLAG != 0 && u32_at(meta, 0)? == MAGIC && u32_at(meta, 4)? == VERSION;
    let page_size = usize::try_from(u32_at(meta, 8)?).ok()?;
    let whole = u64_at(meta, META_LEN)? == fnv64a(&meta[..META_LEN]);
    let sane = PAGE_SIZES.contains(&page_size) && page_size.is_power_of_two();
    (known && whole && sane).then_some(())?;
    Some(Meta { page_size, root: u64_at(meta, 16)?, transaction: u64_at(meta, 48)? })
}

/// The 64-bit FNV-1a hash.
fn fnv64a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::ErrorKind;

    const INLINE: &[u8] = include_bytes!("../../../fuzz/seeds/bolt/inline");
    const BRANCH: &[u8] = include_bytes!("../../../fuzz/seeds/bolt/branch");
    const PAGE_SIZE: usize = 512;

    #[test]
    fn buckets_lie_in_values_and_on_pages() {
        let root = Database::open(INLINE).unwrap().root();
        let schema = root.bucket("v1").unwrap().unwrap();
        assert_eq!(schema.value("version").unwrap(), Some(&[8][..]));
        let namespaces = schema.buckets().unwrap();
        assert_eq!(namespaces.len(), 1);
        assert_eq!(namespaces[0].0, b"default");
        let labels = namespaces[0].1.bucket("labels").unwrap().unwrap();
        assert_eq!(labels.values().unwrap(), [(&b"a"[..], &b"b"[..])]);
        assert!(root.bucket("v2").unwrap().is_none() && root.value("v1").unwrap().is_none());

        let root = Database::open(BRANCH).unwrap().root();
        let keys: Vec<&[u8]> = root.values().unwrap().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, [b"a", b"b", b"z"]);
        let long = root.bucket("m").unwrap().unwrap().value("k").unwrap().unwrap();
        assert_eq!(long, [b'v'; 600], "it flows over its page");
    }

    #[test]
    fn the_meta_that_is_whole_and_newest_counts() {
        let broken = |at: &[usize]| {
            let mut bytes = BRANCH.to_vec();
            at.iter().for_each(|at| bytes[*at] ^= 1);
            bytes
        };
        let (first, second) = (HEADER_LEN + 50, PAGE_SIZE + HEADER_LEN + 50);
        for at in [&[first][..], &[second]] {
            let bytes = broken(at);
            assert_eq!(Database::open(&bytes).unwrap().root().values().unwrap().len(), 3, "{at:?}");
        }
        let kind = |bytes: &[u8]| Database::open(bytes).err().unwrap().kind();
        assert_eq!(kind(&broken(&[first, second])), ErrorKind::DataLoss);
        assert_eq!(kind(b""), ErrorKind::InvalidArgument);
        assert_eq!(kind(&[0; 4096]), ErrorKind::InvalidArgument);
    }

    #[test]
    fn a_malformed_page_is_reported_by_number() {
        let check = |at: usize, value: &[u8], words: &str| {
            let mut bytes = BRANCH.to_vec();
            bytes[at..at + value.len()].copy_from_slice(value);
            let read = Database::open(&bytes).and_then(|database| database.root().values());
            let message = read.unwrap_err().chain();
            assert!(message.contains(words), "{message:?} has no {words:?}");
        };
        let root = 3 * PAGE_SIZE;
        check(root + HEADER_LEN + 8, &[3], "again and again");
        check(root + HEADER_LEN + 8, &[200], "page 200 of the database is not in the file");
        check(root + 8, &[0], "neither branch nor leaf");
        check(root, &[9], "page 3 of the database is another page");
        check(root + 10, &[0xff, 0xff], "more elements");
        check(root + 12, &[0xff, 0xff], "flows over the end");
        check(4 * PAGE_SIZE + HEADER_LEN + 8, &[0xff, 0xff, 0xff, 0xff], "element 0 of page 4");
    }

    /// Callers keep what they read, so a file of some megabytes must not expand to many gigabytes.
    #[test]
    fn pages_referenced_again_and_again_are_refused() {
        /// A leaf that fills the root's page and the next, with the same key and value bytes for every element.
        fn leaf(count: u16, flags: u32, key: &[u8], value: &[u8]) -> Vec<u8> {
            let mut page = [&3_u64.to_le_bytes()[..], &[2, 0], &count.to_le_bytes(), &[1, 0, 0, 0]].concat();
            for at in 0..u32::from(count) {
                let pos = (u32::from(count) - at) * 16;
                let (key_len, value_len) = (key.len().try_into().unwrap(), value.len().try_into().unwrap());
                page.extend([flags, pos, key_len, value_len].map(u32::to_le_bytes).concat());
            }
            let mut bytes = BRANCH.to_vec();
            let page = [&page[..], key, value].concat();
            bytes[3 * PAGE_SIZE..3 * PAGE_SIZE + page.len()].copy_from_slice(&page);
            bytes
        }
        let check = |bytes: &[u8], expected: Option<usize>| {
            let found = Database::open(bytes).map(|database| database.root().values().unwrap().len());
            assert_eq!(found.map_err(|error| error.kind()), expected.ok_or(ErrorKind::DataLoss));
        };
        check(&leaf(2, 0, &[b'k'; 100], &[b'v'; 100]), Some(2));
        check(&leaf(16, 0, &[b'k'; 700], b""), None);
        check(&leaf(16, 0, b"k", &[b'v'; 700]), None);
        // A bucket that contains itself.
        let root = [&3_u64.to_le_bytes()[..], &[0; 8]].concat();
        check(&leaf(1, 1, b"k", &root), None);
    }
}
