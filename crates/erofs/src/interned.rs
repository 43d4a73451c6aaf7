//! Interning: equal values of a tree are kept once, and referred to by a number.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

pub(crate) struct Interned<T> {
    all: Vec<Arc<T>>,
    numbers: HashMap<Arc<T>, u32>,
    /// The last result of [`Interned::number`]: consecutive inodes mostly have equal values.
    recent: u32,
}

impl<T> Default for Interned<T> {
    fn default() -> Interned<T> {
        Interned { all: Vec::new(), numbers: HashMap::new(), recent: 0 }
    }
}

impl<T: Eq + Hash> Interned<T> {
    /// The number of a value, which is added if it is new. Cannot exceed 32 bits: the tree's memory limit is reached
    /// first.
    pub(crate) fn number(&mut self, value: T) -> u32 {
        if self.all.get(self.recent as usize).is_some_and(|recent| **recent == value) {
            return self.recent;
        }
        self.recent = match self.numbers.get(&value) {
            Some(number) => *number,
            None => self.add(value),
        };
        self.recent
    }

    fn add(&mut self, value: T) -> u32 {
        let number = u32::try_from(self.all.len()).expect("fewer than bytes of metadata");
        let value = Arc::new(value);
        self.all.push(Arc::clone(&value));
        self.numbers.insert(value, number);
        number
    }

    pub(crate) fn find(&self, number: u32) -> &T {
        &self.all[number as usize]
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }
}
