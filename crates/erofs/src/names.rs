//! Compact directories: the bytes of all names of a tree are in one buffer, and directories refer to them.
//!
//! A layer may have a million files, and several layers are read at a time; a map with a boxed string for each name takes
//! four times the memory.

use crate::tree::Id;

/// The bytes of all names and symlink targets of a tree. Replaced ones are not freed, but count for the tree's limit.
#[derive(Default)]
pub(crate) struct Text(Vec<u8>);

/// A symlink target in a [`Text`].
#[derive(Clone, Copy)]
pub(crate) struct Span {
    at: u32,
    len: u16,
}

impl Text {
    /// Adds bytes, of which there must be less than 4 GiB in all: the tree's limit is lower. Each is no longer than a
    /// path.
    pub(crate) fn add(&mut self, bytes: &[u8]) -> Span {
        let at = u32::try_from(self.0.len()).expect("less than a tree may have");
        let len = u16::try_from(bytes.len()).expect("no longer than a path");
        self.0.extend_from_slice(bytes);
        Span { at, len }
    }

    pub(crate) fn of(&self, span: Span) -> &[u8] {
        let at = span.at as usize;
        &self.0[at..at + span.len()]
    }

    /// Adds a name, its length before it, and returns its offset. The limits are those of [`Text::add`].
    fn add_name(&mut self, name: &[u8]) -> u32 {
        let len = u8::try_from(name.len()).expect("no longer than a name");
        let at = self.add(&[len]).at;
        self.0.extend_from_slice(name);
        at
    }

    /// The name at an offset.
    fn name(&self, at: u32) -> &[u8] {
        let at = at as usize;
        let begin = at + 1;
        &self.0[begin..begin + usize::from(self.0[at])]
    }
}

impl Span {
    pub(crate) fn len(self) -> usize {
        usize::from(self.len)
    }
}

/// Most names in a chunk.
const CHUNK_MAX: usize = 256;

/// The names in a directory with their inodes, sorted by bytes. They are in sorted chunks, so that inserting a name
/// moves only those of its chunk.
#[derive(Default)]
pub(crate) struct Names {
    /// No chunk is empty. Names are offsets in the tree's [`Text`].
    chunks: Vec<Vec<(u32, Id)>>,
}

/// The position of a name, or the one where it would be inserted.
enum Place {
    Taken { chunk: usize, at: usize },
    Free { chunk: usize, at: usize },
}

impl Names {
    pub(crate) fn get(&self, text: &Text, name: &[u8]) -> Option<Id> {
        match self.find(text, name) {
            Place::Taken { chunk, at } => Some(self.chunks[chunk][at].1),
            Place::Free { .. } => None,
        }
    }

    /// Sets the inode of a name, and returns the one that it had.
    pub(crate) fn insert(&mut self, text: &mut Text, name: &[u8], id: Id) -> Option<Id> {
        let (mut chunk, mut at) = match self.find(text, name) {
            Place::Taken { chunk, at } => {
                return Some(std::mem::replace(&mut self.chunks[chunk][at].1, id));
            }
            Place::Free { chunk, at } => (chunk, at),
        };
        let is_full = self.chunks.get(chunk).is_none_or(|names| names.len() == CHUNK_MAX);
        if is_full {
            // Most archives are sorted: a chunk that was filled from its end stays full.
            let is_end =
                chunk + 1 >= self.chunks.len() && self.chunks.last().is_none_or(|last| last.len() == at);
            let later = if is_end { Vec::new() } else { self.chunks[chunk].split_off(CHUNK_MAX / 2) };
            let new = if self.chunks.is_empty() { 0 } else { chunk + 1 };
            self.chunks.insert(new, later);
            if is_end {
                (chunk, at) = (new, 0);
            } else if at > CHUNK_MAX / 2 {
                (chunk, at) = (new, at - CHUNK_MAX / 2);
            }
        }
        self.chunks[chunk].insert(at, (text.add_name(name), id));
        None
    }

    pub(crate) fn remove(&mut self, text: &Text, name: &[u8]) {
        if let Place::Taken { chunk, at } = self.find(text, name) {
            self.chunks[chunk].remove(at);
            if self.chunks[chunk].is_empty() {
                self.chunks.remove(chunk);
            }
        }
    }

    pub(crate) fn retain(&mut self, stays: impl Fn(Id) -> bool) {
        for chunk in &mut self.chunks {
            chunk.retain(|(_, id)| stays(*id));
        }
        self.chunks.retain(|chunk| !chunk.is_empty());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = Id> {
        self.chunks.iter().flatten().map(|(_, id)| *id)
    }

    pub(crate) fn iter<'a>(&'a self, text: &'a Text) -> impl DoubleEndedIterator<Item = (&'a [u8], Id)> {
        self.chunks.iter().flatten().map(|(name, id)| (text.name(*name), *id))
    }

    fn find(&self, text: &Text, name: &[u8]) -> Place {
        // Archives and images have most names in order, so that a new one is behind all others.
        if let Some(names) = self.chunks.last()
            && names.last().is_some_and(|(last, _)| text.name(*last) < name)
        {
            return Place::Free { chunk: self.chunks.len() - 1, at: names.len() };
        }
        // The last chunk whose first name is not greater.
        let after = self.chunks.partition_point(|names| text.name(names[0].0) <= name);
        let chunk = after.saturating_sub(1);
        let Some(names) = self.chunks.get(chunk) else { return Place::Free { chunk, at: 0 } };
        match names.binary_search_by(|(other, _)| text.name(*other).cmp(name)) {
            Ok(at) => Place::Taken { chunk, at },
            Err(at) => Place::Free { chunk, at },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Applies the same steps to names and to a map, and compares them.
    fn check(steps: impl IntoIterator<Item = (u16, Option<Id>)>) {
        let (mut text, mut names, mut map) = (Text::default(), Names::default(), BTreeMap::new());
        for (name, id) in steps {
            let name = name.to_string().into_bytes();
            match id {
                Some(id) => {
                    assert_eq!(names.insert(&mut text, &name, id), map.insert(name.clone(), id));
                    assert_eq!(names.get(&text, &name), Some(id));
                }
                None => {
                    names.remove(&text, &name);
                    map.remove(&name);
                    assert_eq!(names.get(&text, &name), None);
                }
            }
        }
        let pairs = map.iter().map(|(name, id)| (&name[..], *id));
        assert!(names.iter(&text).eq(pairs.clone()));
        assert!(names.iter(&text).rev().eq(pairs.rev()));
        assert!(names.chunks.iter().all(|chunk| !chunk.is_empty() && chunk.len() <= CHUNK_MAX));
    }

    #[test]
    fn names_inserted_in_order_fill_their_chunks() {
        let (mut text, mut names) = (Text::default(), Names::default());
        for name in 10_000..10_000 + 10 * CHUNK_MAX {
            names.insert(&mut text, name.to_string().as_bytes(), 0);
        }
        assert_eq!(names.chunks.len(), 10);
        check((0..2000).map(|name| (name, Some(Id::from(name)))));
        check((0..2000).rev().map(|name| (name, Some(Id::from(name)))));
    }

    proptest! {
        #[test]
        fn names_are_a_sorted_map(
            steps in proptest::collection::vec((0..3000_u16, proptest::option::weighted(0.8, 0..100_u32)), 0..4000)
        ) {
            check(steps);
        }
    }
}
