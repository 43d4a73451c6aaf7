//! Typed handles on the engine's tables.

use std::marker::PhantomData;
use std::ops::ControlFlow;

use types::Result;

use crate::codec::{Reader, Value, Writer};
use crate::key::{Key, KeyOf, KeyReader, PrefixOf};
use crate::scan;
use crate::transaction::{Read, WriteTxn};

/// A named table. Declare it as a `const`; the first `put` creates it.
///
/// ```text
/// const VOLUMES: Table<(Namespace, String), u64> = Table::new("volumes");
/// ```
pub struct Table<K, V> {
    name: &'static str,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: Key, V: Value> Table<K, V> {
    pub const fn new(name: &'static str) -> Table<K, V> {
        Table { name, types: PhantomData }
    }

    pub fn get(&self, tx: &impl Read, key: impl KeyOf<K>) -> Result<Option<V>> {
        let mut value = None;
        tx.get_bytes(self.name, &encode_key(&key), &mut |bytes| {
            value = Some(V::decode(&mut Reader::new(bytes))?);
            Ok(())
        })?;
        Ok(value)
    }

    /// Calls `visit` with the stored form of a record, if it exists.
    pub fn get_stored(
        &self,
        tx: &impl Read,
        key: impl KeyOf<K>,
        mut visit: impl FnMut(Reader<'_>) -> Result<()>,
    ) -> Result<()> {
        tx.get_bytes(self.name, &encode_key(&key), &mut |bytes| visit(Reader::new(bytes)))
    }

    pub fn contains(&self, tx: &impl Read, key: impl KeyOf<K>) -> Result<bool> {
        let mut found = false;
        tx.get_bytes(self.name, &encode_key(&key), &mut |_| {
            found = true;
            Ok(())
        })?;
        Ok(found)
    }

    pub fn put(&self, tx: &mut WriteTxn<'_>, key: impl KeyOf<K>, value: &V) -> Result<()> {
        let mut to = Writer::new();
        value.encode(&mut to);
        tx.put_bytes(self.name, encode_key(&key), to.into_bytes());
        Ok(())
    }

    /// Removes a record. Returns whether it existed.
    pub fn delete(&self, tx: &mut WriteTxn<'_>, key: impl KeyOf<K>) -> Result<bool> {
        let key = encode_key(&key);
        let mut found = false;
        tx.get_bytes(self.name, &key, &mut |_| {
            found = true;
            Ok(())
        })?;
        if found {
            tx.delete_bytes(self.name, key);
        }
        Ok(found)
    }

    /// Calls `visit` with the records below `prefix` in key order, until it breaks or fails.
    pub fn scan(
        &self,
        tx: &impl Read,
        prefix: impl PrefixOf<K>,
        mut visit: impl FnMut(K, V) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        tx.scan_bytes(self.name, &encode_prefix(&prefix), &mut |key, value| {
            visit(K::read(&mut KeyReader::new(key))?, V::decode(&mut Reader::new(value))?)
        })
    }

    /// Calls `visit` with the stored form of each record below `prefix`, in key order, until it fails; keys come
    /// without the prefix. For filtering many records of which few are needed. For more than a batch of them, `visit`
    /// runs on another thread while the engine reads on.
    pub fn scan_stored(
        &self,
        tx: &impl Read,
        prefix: impl PrefixOf<K>,
        mut visit: impl FnMut(KeyReader<'_>, Reader<'_>) -> Result<()> + Send,
    ) -> Result<()> {
        let prefix = encode_prefix(&prefix);
        scan::visit_all(
            |each| tx.scan_bytes(self.name, &prefix, &mut |key, value| each(&key[prefix.len()..], value)),
            |rest, value| visit(KeyReader::new(rest), Reader::new(value)),
        )
    }

    /// Calls `visit` with the keys below `prefix`, in order. Cheaper than [`Table::scan`]: no value
    /// is decoded.
    pub fn scan_keys(
        &self,
        tx: &impl Read,
        prefix: impl PrefixOf<K>,
        mut visit: impl FnMut(K) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        tx.scan_bytes(self.name, &encode_prefix(&prefix), &mut |key, _| {
            visit(K::read(&mut KeyReader::new(key))?)
        })
    }

    /// All records below `prefix`, in key order.
    pub fn list(&self, tx: &impl Read, prefix: impl PrefixOf<K>) -> Result<Vec<(K, V)>> {
        let mut all = Vec::new();
        self.scan(tx, prefix, |key, value| {
            all.push((key, value));
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(all)
    }

    /// All keys below `prefix`, in order.
    pub fn keys(&self, tx: &impl Read, prefix: impl PrefixOf<K>) -> Result<Vec<K>> {
        let mut all = Vec::new();
        self.scan_keys(tx, prefix, |key| {
            all.push(key);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(all)
    }

    /// Whether any key lies below `prefix`.
    pub fn any(&self, tx: &impl Read, prefix: impl PrefixOf<K>) -> Result<bool> {
        let mut found = false;
        tx.scan_bytes(self.name, &encode_prefix(&prefix), &mut |_, _| {
            found = true;
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }
}

fn encode_key<K>(key: &impl KeyOf<K>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(96);
    key.write(&mut bytes);
    bytes
}

fn encode_prefix<K>(prefix: &impl PrefixOf<K>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    prefix.write(&mut bytes);
    bytes
}
