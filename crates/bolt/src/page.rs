//! One page: its header and its elements.

use types::{Error, Result};

pub(crate) const HEADER_LEN: usize = 16;
pub(crate) const ELEMENT_LEN: usize = 16;
const BRANCH_FLAG: u16 = 0x01;
const LEAF_FLAG: u16 = 0x02;
pub(crate) const META_FLAG: u16 = 0x04;
/// Leaf element flag: its value is a bucket.
const BUCKET_FLAG: u32 = 0x01;

pub(crate) struct Page<'a> {
    id: u64,
    bytes: &'a [u8],
    count: usize,
    pub(crate) is_branch: bool,
}

/// An element of a page.
pub(crate) struct Element<'a> {
    pub(crate) key: &'a [u8],
    /// Leaves only.
    pub(crate) value: &'a [u8],
    pub(crate) is_bucket: bool,
    /// Branches only: the child page.
    pub(crate) page: u64,
}

impl<'a> Page<'a> {
    /// `bytes` are the whole page. An inline page has the id 0.
    pub(crate) fn parse(id: u64, bytes: &'a [u8]) -> Result<Page<'a>> {
        let broken = |why: &str| Error::data_loss(format!("page {id} of the database {why}"));
        if bytes.len() < HEADER_LEN {
            return Err(broken("is cut off"));
        }
        let flags = u16::from_le_bytes([bytes[8], bytes[9]]);
        let count = usize::from(u16::from_le_bytes([bytes[10], bytes[11]]));
        let is_branch = match flags & (BRANCH_FLAG | LEAF_FLAG) {
            BRANCH_FLAG => true,
            LEAF_FLAG => false,
            _ => return Err(broken("is neither branch nor leaf")),
        };
        if bytes.len() < HEADER_LEN + count * ELEMENT_LEN {
            return Err(broken("has more elements than it has room for"));
        }
        Ok(Page { id, bytes, count, is_branch })
    }

    pub(crate) fn elements(&self) -> impl Iterator<Item = Result<Element<'a>>> {
        (0..self.count).map(|at| self.element(at))
    }

    fn element(&self, at: usize) -> Result<Element<'a>> {
        let element = &self.bytes[HEADER_LEN + at * ELEMENT_LEN..];
        let number = |offset: usize| u32_at(element, offset).and_then(|number| usize::try_from(number).ok());
        let read = || {
            if self.is_branch {
                let (pos, key_len) = (number(0)?, number(4)?);
                let key = element.get(pos..pos.checked_add(key_len)?)?;
                return Some(Element { key, value: &[], is_bucket: false, page: u64_at(element, 8)? });
            }
            let (pos, key_len, value_len) = (number(4)?, number(8)?, number(12)?);
            let value_start = pos.checked_add(key_len)?;
            let key = element.get(pos..value_start)?;
            let value = element.get(value_start..value_start.checked_add(value_len)?)?;
            Some(Element { key, value, is_bucket: u32_at(element, 0)? & BUCKET_FLAG != 0, page: 0 })
        };
        read().ok_or_else(|| {
            Error::data_loss(format!("element {at} of page {} of the database lies outside of it", self.id))
        })
    }
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}
