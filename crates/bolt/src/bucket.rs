//! Buckets: maps from keys to values and to further buckets.

use types::{Error, Result};

use crate::Database;
use crate::page::{ELEMENT_LEN, HEADER_LEN, Page, u64_at};

/// Branches above a leaf at most: a deeper tree would have more entries than fit on any disk.
const DEPTH_MAX: usize = 32;
/// Length of the header of a bucket's value.
const BUCKET_LEN: usize = 16;

/// A map from keys to values and to further buckets.
#[derive(Clone, Copy)]
pub struct Bucket<'a> {
    database: Database<'a>,
    root: Root<'a>,
}

#[derive(Clone, Copy)]
enum Root<'a> {
    Page(u64),
    /// A small bucket lies in its own value.
    Inline(&'a [u8]),
}

impl<'a> Root<'a> {
    fn page(self, database: Database<'a>) -> Result<Page<'a>> {
        match self {
            Root::Inline(bytes) => Page::parse(0, bytes),
            Root::Page(id) => database.page(id),
        }
    }
}

/// What a key stands for.
#[derive(Clone, Copy)]
pub enum Entry<'a> {
    Value(&'a [u8]),
    Bucket(Bucket<'a>),
}

impl<'a> Bucket<'a> {
    pub(crate) fn at_page(database: Database<'a>, page: u64) -> Bucket<'a> {
        Bucket { database, root: Root::Page(page) }
    }

    fn of_value(database: Database<'a>, value: &'a [u8]) -> Result<Bucket<'a>> {
        let root = match u64_at(value, 0) {
            _ if value.len() < BUCKET_LEN => None,
            Some(0) if value.len() < BUCKET_LEN + HEADER_LEN => None,
            Some(0) => Some(Root::Inline(&value[BUCKET_LEN..])),
            Some(page) => Some(Root::Page(page)),
            None => None,
        };
        let root = root.ok_or_else(|| Error::data_loss("a bucket of the database is cut off"))?;
        Ok(Bucket { database, root })
    }

    /// Calls `each` with the entries, in the order of their keys, until it fails.
    pub fn each(self, mut each: impl FnMut(&'a [u8], Entry<'a>) -> Result<()>) -> Result<()> {
        self.visit(&self.root.page(self.database)?, 0, &mut each)
    }

    fn visit(
        self,
        page: &Page<'a>,
        depth: usize,
        each: &mut impl FnMut(&'a [u8], Entry<'a>) -> Result<()>,
    ) -> Result<()> {
        if depth > DEPTH_MAX {
            return Err(Error::data_loss("pages of the database refer to each other without an end"));
        }
        for element in page.elements() {
            let element = element?;
            if page.is_branch {
                self.visit(&self.database.page(element.page)?, depth + 1, each)?;
            } else if element.is_bucket {
                each(element.key, Entry::Bucket(Bucket::of_value(self.database, element.value)?))?;
            } else {
                each(element.key, Entry::Value(element.value))?;
            }
        }
        Ok(())
    }

    /// Walks this bucket and all in it, and checks that their contents take at most `room` bytes; `DataLoss`
    /// otherwise. Skips malformed pages: reading them reports the error.
    pub(crate) fn check_room(self, mut room: usize) -> Result<()> {
        let mut pending = vec![self.root];
        while let Some(root) = pending.pop() {
            let Ok(page) = root.page(self.database) else { continue };
            for element in page.elements() {
                let len = element.as_ref().map_or(0, |element| match element.is_bucket {
                    true => element.key.len(),
                    false => element.key.len() + element.value.len(),
                });
                room = room.checked_sub(ELEMENT_LEN + len).ok_or_else(|| {
                    Error::data_loss("parts of the database are named again and again: it is no whole one")
                })?;
                let Ok(element) = element else { continue };
                if page.is_branch {
                    pending.push(Root::Page(element.page));
                } else if element.is_bucket
                    && let Ok(bucket) = Bucket::of_value(self.database, element.value)
                {
                    pending.push(bucket.root);
                }
            }
        }
        Ok(())
    }

    /// Looks up a key by a linear scan: for buckets that are records, not for large ones.
    fn find(self, key: &[u8]) -> Result<Option<Entry<'a>>> {
        let mut found = None;
        self.each(|other, entry| {
            if other == key {
                found = Some(entry);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// The nested bucket of this name, if there is one.
    pub fn bucket(self, key: impl AsRef<[u8]>) -> Result<Option<Bucket<'a>>> {
        Ok(match self.find(key.as_ref())? {
            Some(Entry::Bucket(bucket)) => Some(bucket),
            _ => None,
        })
    }

    /// The value of this name, if there is one.
    pub fn value(self, key: impl AsRef<[u8]>) -> Result<Option<&'a [u8]>> {
        Ok(match self.find(key.as_ref())? {
            Some(Entry::Value(value)) => Some(value),
            _ => None,
        })
    }

    /// The buckets in this one, by name.
    pub fn buckets(self) -> Result<Vec<(&'a [u8], Bucket<'a>)>> {
        let mut found = Vec::new();
        self.each(|key, entry| {
            if let Entry::Bucket(bucket) = entry {
                found.push((key, bucket));
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// The values in this one, by name.
    pub fn values(self) -> Result<Vec<(&'a [u8], &'a [u8])>> {
        let mut found = Vec::new();
        self.each(|key, entry| {
            if let Entry::Value(value) = entry {
                found.push((key, value));
            }
            Ok(())
        })?;
        Ok(found)
    }
}
