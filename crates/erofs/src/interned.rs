//! Things of which a tree has many that are the same: each is kept once, and known by its number.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

pub(crate) struct Interned<T> {
    all: Vec<Arc<T>>,
    numbers: HashMap<Arc<T>, u32>,
    /// What was asked for last: most are as the one before.
    recent: u32,
}

impl<T> Default for Interned<T> {
    fn default() -> Interned<T> {
        Interned { all: Vec::new(), numbers: HashMap::new(), recent: 0 }
    }
}

impl<T: Eq + Hash> Interned<T> {
    /// Panics beyond four billion: the tree counts before.
    pub(crate) fn number(&mut self, thing: T) -> u32 {
        if self.all.get(self.recent as usize).is_some_and(|recent| **recent == thing) {
            return self.recent;
        }
        self.recent = match self.numbers.get(&thing) {
            Some(number) => *number,
            None => self.add(thing),
        };
        self.recent
    }

    fn add(&mut self, thing: T) -> u32 {
        let number = u32::try_from(self.all.len()).expect("fewer than bytes of metadata");
        let thing = Arc::new(thing);
        self.all.push(Arc::clone(&thing));
        self.numbers.insert(thing, number);
        number
    }

    pub(crate) fn find(&self, number: u32) -> &T {
        &self.all[number as usize]
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }
}
