//! Transactions: what a closure sees.
//!
//! A [`WriteTxn`] keeps a closure's changes beside the engine's transaction, which the closures of a batch share, and
//! hands them over only when the closure has succeeded:
//!
//! ```text
//! reads ──▶ changes of this closure ──(no such key)──▶ engine: earlier closures of the batch, then the file
//! Ok    ──▶ changes go into the engine
//! Err   ──▶ changes are dropped
//! ```

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ops::{Bound, ControlFlow};
use std::rc::Rc;

use redb::{ReadableTable as _, TableDefinition, TableError};
use types::Result;

use crate::error::engine;

pub(crate) type Definition<'a> = TableDefinition<'a, &'static [u8], &'static [u8]>;
type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>>;

/// What reading and writing transactions have in common. Use it through [`Table`](crate::Table).
pub trait Read {
    #[doc(hidden)]
    fn get_bytes(
        &self,
        table: &'static str,
        key: &[u8],
        visit: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()>;

    #[doc(hidden)]
    fn scan_bytes(&self, table: &'static str, prefix: &[u8], visit: Visit<'_>) -> Result<()>;
}

/// A snapshot of the last commit.
pub struct ReadTxn {
    engine: redb::ReadTransaction,
    /// Tables opened so far; `None` for those that do not exist.
    tables: RefCell<HashMap<&'static str, Option<Rc<ReadTable>>>>,
}

type ReadTable = redb::ReadOnlyTable<&'static [u8], &'static [u8]>;

impl ReadTxn {
    pub(crate) fn new(engine: redb::ReadTransaction) -> ReadTxn {
        ReadTxn { engine, tables: RefCell::default() }
    }

    fn table(&self, name: &'static str) -> Result<Option<Rc<ReadTable>>> {
        if let Some(table) = self.tables.borrow().get(name) {
            return Ok(table.clone());
        }
        let table = match self.engine.open_table(Definition::new(name)) {
            Ok(table) => Some(Rc::new(table)),
            Err(TableError::TableDoesNotExist(_)) => None,
            Err(error) => return Err(engine(error)),
        };
        self.tables.borrow_mut().insert(name, table.clone());
        Ok(table)
    }
}

impl Read for ReadTxn {
    fn get_bytes(
        &self,
        table: &'static str,
        key: &[u8],
        visit: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let Some(table) = self.table(table)? else { return Ok(()) };
        match table.get(key).map_err(engine)? {
            Some(value) => visit(value.value()),
            None => Ok(()),
        }
    }

    fn scan_bytes(&self, table: &'static str, prefix: &[u8], visit: Visit<'_>) -> Result<()> {
        let Some(table) = self.table(table)? else { return Ok(()) };
        for entry in table.range::<&[u8]>(prefix..).map_err(engine)? {
            let (key, value) = entry.map_err(engine)?;
            if !key.value().starts_with(prefix) || visit(key.value(), value.value())?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// A write transaction, shared by the closures of a batch. Each closure sees its own changes and those of all before
/// it.
pub struct WriteTxn<'a> {
    engine: &'a redb::WriteTransaction,
    /// Tables opened so far.
    tables: RefCell<HashMap<&'static str, Rc<WriteTable<'a>>>>,
    /// Changes of the running closure.
    changes: Journal,
}

type WriteTable<'a> = redb::Table<'a, &'static [u8], &'static [u8]>;
/// `None` is a deletion.
type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;
/// Changes by table.
pub(crate) type Journal = BTreeMap<&'static str, Changes>;

impl<'a> WriteTxn<'a> {
    pub(crate) fn new(engine: &'a redb::WriteTransaction) -> WriteTxn<'a> {
        WriteTxn { engine, tables: RefCell::default(), changes: BTreeMap::new() }
    }

    /// Whether the running closure has changed anything.
    pub fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    pub(crate) fn put_bytes(&mut self, table: &'static str, key: Vec<u8>, value: Vec<u8>) {
        self.changes.entry(table).or_default().insert(key, Some(value));
    }

    pub(crate) fn delete_bytes(&mut self, table: &'static str, key: Vec<u8>) {
        self.changes.entry(table).or_default().insert(key, None);
    }

    /// Takes the changes of the closure that has finished.
    pub(crate) fn take_changes(&mut self) -> Journal {
        std::mem::take(&mut self.changes)
    }

    /// Whether these changes add to the stored data: more records, or as many but more bytes than an updated
    /// timestamp and counter account for.
    pub(crate) fn adds(&self, changes: &Journal) -> Result<bool> {
        const SLACK: usize = 64;
        let (mut before, mut after) = ((0, 0), (0, 0));
        for (name, changes) in changes {
            let table = self.table(name)?;
            for (key, value) in changes {
                if let Some(stored) = table.get(&**key).map_err(engine)? {
                    before = (before.0 + 1, before.1 + key.len() + stored.value().len());
                }
                if let Some(value) = value {
                    after = (after.0 + 1, after.1 + key.len() + value.len());
                }
            }
        }
        Ok(after.0 > before.0 || after.1 > before.1 + SLACK)
    }

    /// Applies changes to the engine. If this fails the whole batch has failed.
    pub(crate) fn apply(&mut self, changes: Journal) -> Result<()> {
        for (name, changes) in changes {
            self.table(name)?;
            let table = self.tables.get_mut().get_mut(name).and_then(Rc::get_mut);
            change(table.expect("a table that is open, and that no closure reads any more"), changes)?;
        }
        Ok(())
    }

    fn table(&self, name: &'static str) -> Result<Rc<WriteTable<'a>>> {
        if let Some(table) = self.tables.borrow().get(name) {
            return Ok(Rc::clone(table));
        }
        let table = Rc::new(self.engine.open_table(Definition::new(name)).map_err(engine)?);
        self.tables.borrow_mut().insert(name, Rc::clone(&table));
        Ok(table)
    }
}

fn change(table: &mut WriteTable<'_>, changes: Changes) -> Result<()> {
    for (key, value) in changes {
        match value {
            Some(value) => table.insert(&*key, &*value).map(drop),
            None => table.remove(&*key).map(drop),
        }
        .map_err(engine)?;
    }
    Ok(())
}

impl Read for WriteTxn<'_> {
    fn get_bytes(
        &self,
        table: &'static str,
        key: &[u8],
        visit: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        if let Some(change) = self.changes.get(table).and_then(|changes| changes.get(key)) {
            return change.as_deref().map_or(Ok(()), visit);
        }
        match self.table(table)?.get(key).map_err(engine)? {
            Some(value) => visit(value.value()),
            None => Ok(()),
        }
    }

    /// Merges two ordered runs: on equal keys the change wins.
    fn scan_bytes(&self, table: &'static str, prefix: &[u8], visit: Visit<'_>) -> Result<()> {
        let below = (Bound::Included(prefix), Bound::Unbounded);
        let mut changed = self
            .changes
            .get(table)
            .map(|changes| changes.range::<[u8], _>(below))
            .into_iter()
            .flatten()
            .take_while(|(key, _)| key.starts_with(prefix))
            .peekable();
        let stored = self.table(table)?;
        for entry in stored.range::<&[u8]>(prefix..).map_err(engine)? {
            let (key, value) = entry.map_err(engine)?;
            let key = key.value();
            if !key.starts_with(prefix) {
                break;
            }
            while let Some((earlier, change)) = changed.next_if(|(changed, _)| changed.as_slice() < key) {
                if let Some(change) = change
                    && visit(earlier, change)?.is_break()
                {
                    return Ok(());
                }
            }
            let flow = match changed.next_if(|(changed, _)| changed.as_slice() == key) {
                Some((_, Some(change))) => visit(key, change)?,
                Some((_, None)) => ControlFlow::Continue(()),
                None => visit(key, value.value())?,
            };
            if flow.is_break() {
                return Ok(());
            }
        }
        for (key, change) in changed {
            if let Some(change) = change
                && visit(key, change)?.is_break()
            {
                break;
            }
        }
        Ok(())
    }
}
