//! Values: fields one after another, without names.
//!
//! ```text
//! number      unsigned LEB128, at most 10 bytes
//! bool        00 or 01
//! bytes, text length (number), then the bytes
//! option      bool, then the value if 01
//! map, list   count (number), then the entries; maps sorted by key
//! timestamp   seconds (zigzag number), nanoseconds (number)
//! opaque      type URL (text), value (bytes)
//! record      version (one byte), then fields
//! ```
//!
//! A reader that meets a version above the one it knows refuses the record; one that meets a lower
//! version fills the fields that came later with their defaults.

use std::collections::BTreeMap;

use types::{Digest, Labels, Opaque, Result, Timestamp};

use crate::error;

/// A value that a table can store.
pub trait Value: Sized {
    fn encode(&self, to: &mut Writer);
    fn decode(from: &mut Reader<'_>) -> Result<Self>;
}

/// Encodes fields.
#[derive(Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    pub fn new() -> Writer {
        Writer::default()
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    pub fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    pub fn bool(&mut self, value: bool) {
        self.0.push(u8::from(value));
    }

    pub fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value as u8 & 0x7F) | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    pub fn signed(&mut self, value: i64) {
        self.number(((value << 1) ^ (value >> 63)) as u64);
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    pub fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    pub fn digest(&mut self, digest: &Digest) {
        self.number((digest.algorithm().name().len() + 1 + digest.hex().len()) as u64);
        self.0.extend_from_slice(digest.algorithm().name().as_bytes());
        self.0.push(b':');
        self.0.extend_from_slice(digest.hex().as_bytes());
    }

    pub fn option<T>(&mut self, value: Option<&T>, write: impl FnOnce(&mut Writer, &T)) {
        self.bool(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
    }

    pub fn timestamp(&mut self, time: Timestamp) {
        self.signed(time.seconds);
        self.number(u64::from(time.nanos));
    }

    pub fn labels(&mut self, labels: &Labels) {
        self.map(labels, |to, value| to.text(value));
    }

    pub fn opaque(&mut self, opaque: &Opaque) {
        self.text(&opaque.type_url);
        self.bytes(&opaque.value);
    }

    pub fn map<T>(&mut self, map: &BTreeMap<String, T>, mut write: impl FnMut(&mut Writer, &T)) {
        self.number(map.len() as u64);
        for (key, value) in map {
            self.text(key);
            write(self, value);
        }
    }
}

/// Decodes fields from the front.
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader(bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The version byte of a record, which must not be above `newest`.
    pub fn version(&mut self, newest: u8) -> Result<u8> {
        let version = self.byte()?;
        if version == 0 || version > newest {
            return Err(types::Error::failed_precondition(format!(
                "a record has version {version}, this program reads versions 1 to {newest}"
            )));
        }
        Ok(version)
    }

    pub fn byte(&mut self) -> Result<u8> {
        let (byte, rest) = self.0.split_first().ok_or_else(damaged)?;
        self.0 = rest;
        Ok(*byte)
    }

    pub fn bool(&mut self) -> Result<bool> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(damaged()),
        }
    }

    #[inline]
    pub fn number(&mut self) -> Result<u64> {
        // Most numbers are short, and a list has a million of them.
        match self.0.split_first() {
            Some((short @ ..0x80, rest)) => {
                self.0 = rest;
                Ok(u64::from(*short))
            }
            _ => self.long_number(),
        }
    }

    fn long_number(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7F);
            if shift == 63 && bits > 1 {
                return Err(damaged());
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(damaged())
    }

    pub fn signed(&mut self) -> Result<i64> {
        let number = self.number()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    #[inline]
    pub fn bytes(&mut self) -> Result<&'a [u8]> {
        let len = usize::try_from(self.number()?).map_err(|_| damaged())?;
        let (bytes, rest) = self.0.split_at_checked(len).ok_or_else(damaged)?;
        self.0 = rest;
        Ok(bytes)
    }

    #[inline]
    pub fn text(&mut self) -> Result<&'a str> {
        std::str::from_utf8(self.bytes()?).map_err(|_| damaged())
    }

    pub fn string(&mut self) -> Result<String> {
        self.text().map(str::to_owned)
    }

    pub fn digest(&mut self) -> Result<Digest> {
        self.text()?.parse().map_err(|_| damaged())
    }

    pub fn option<T>(&mut self, read: impl FnOnce(&mut Reader<'a>) -> Result<T>) -> Result<Option<T>> {
        if self.bool()? { read(self).map(Some) } else { Ok(None) }
    }

    pub fn timestamp(&mut self) -> Result<Timestamp> {
        let seconds = self.signed()?;
        let nanos = u32::try_from(self.number()?).map_err(|_| damaged())?;
        Ok(Timestamp { seconds, nanos })
    }

    pub fn labels(&mut self) -> Result<Labels> {
        self.stored_labels().map(StoredLabels::to_labels)
    }

    /// As [`Reader::labels`], without a copy.
    pub fn stored_labels(&mut self) -> Result<StoredLabels<'a>> {
        let (count, all) = (self.number()?, self.0);
        for _ in 0..count {
            self.text()?;
            self.text()?;
        }
        Ok(StoredLabels(&all[..all.len() - self.0.len()]))
    }

    pub fn opaque(&mut self) -> Result<Opaque> {
        let (type_url, value) = self.stored_opaque()?;
        Ok(Opaque { type_url: type_url.to_owned(), value: value.to_vec() })
    }

    /// As [`Reader::opaque`], without a copy: type URL and value.
    pub fn stored_opaque(&mut self) -> Result<(&'a str, &'a [u8])> {
        Ok((self.text()?, self.bytes()?))
    }

    /// The entries of a map that [`Writer::map`] wrote, one after another, without a copy of their keys.
    pub fn entries<T>(
        &mut self,
        mut read: impl FnMut(&mut Reader<'a>) -> Result<T>,
    ) -> Result<Vec<(&'a str, T)>> {
        let mut entries = Vec::new();
        for _ in 0..self.number()? {
            entries.push((self.text()?, read(self)?));
        }
        Ok(entries)
    }

    pub fn map<T>(
        &mut self,
        mut read: impl FnMut(&mut Reader<'a>) -> Result<T>,
    ) -> Result<BTreeMap<String, T>> {
        let mut map = BTreeMap::new();
        for _ in 0..self.number()? {
            let key = self.string()?;
            map.insert(key, read(self)?);
        }
        Ok(map)
    }
}

/// Labels as they are stored, sorted by key.
#[derive(Clone, Copy, Debug)]
pub struct StoredLabels<'a>(&'a [u8]);

impl<'a> StoredLabels<'a> {
    pub fn iter(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let mut rest = Reader(self.0);
        // The constructor read every label, so none fails here. The end is checked first because making an error
        // allocates.
        std::iter::from_fn(
            move || if rest.is_empty() { None } else { rest.text().ok().zip(rest.text().ok()) },
        )
    }

    /// As [`StoredLabels::iter`], as bytes: skips the second UTF-8 check.
    pub fn bytes(self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let mut rest = Reader(self.0);
        std::iter::from_fn(
            move || if rest.is_empty() { None } else { rest.bytes().ok().zip(rest.bytes().ok()) },
        )
    }

    pub fn get(self, key: &str) -> Option<&'a str> {
        self.iter().find(|(found, _)| *found == key).map(|(_, value)| value)
    }

    pub fn to_labels(self) -> Labels {
        self.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }
}

fn damaged() -> types::Error {
    error::damaged("a value is not of the form that its table has")
}

impl Value for () {
    fn encode(&self, _to: &mut Writer) {}

    fn decode(_from: &mut Reader<'_>) -> Result<()> {
        Ok(())
    }
}

impl Value for u64 {
    fn encode(&self, to: &mut Writer) {
        to.number(*self);
    }

    fn decode(from: &mut Reader<'_>) -> Result<u64> {
        from.number()
    }
}

impl Value for String {
    fn encode(&self, to: &mut Writer) {
        to.text(self);
    }

    fn decode(from: &mut Reader<'_>) -> Result<String> {
        from.string()
    }
}

impl Value for Vec<u8> {
    fn encode(&self, to: &mut Writer) {
        to.bytes(self);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Vec<u8>> {
        from.bytes().map(<[u8]>::to_vec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_as_they_went_in() {
        let time = Timestamp { seconds: -5, nanos: 999_999_999 };
        let labels = Labels::from([("a".into(), "b".into()), (String::new(), "ü".into())]);
        let opaque = Opaque { type_url: "t".into(), value: vec![0, 255] };
        let mut to = Writer::new();
        for number in [0, 127, 128, u64::MAX] {
            to.number(number);
        }
        for number in [0, -1, i64::MIN, i64::MAX] {
            to.signed(number);
        }
        to.timestamp(time);
        to.labels(&labels);
        to.opaque(&opaque);
        to.option(Some(&Digest::of(b"")), Writer::digest);
        to.option(None, Writer::digest);

        let bytes = to.into_bytes();
        let mut from = Reader::new(&bytes);
        for number in [0, 127, 128, u64::MAX] {
            assert_eq!(from.number().unwrap(), number);
        }
        for number in [0, -1, i64::MIN, i64::MAX] {
            assert_eq!(from.signed().unwrap(), number);
        }
        assert_eq!(from.timestamp().unwrap(), time);
        let stored = Reader(from.0).stored_labels().unwrap();
        assert_eq!((stored.get("a"), stored.get(""), stored.get("b")), (Some("b"), Some("ü"), None));
        assert_eq!(from.labels().unwrap(), labels);
        assert_eq!(from.opaque().unwrap(), opaque);
        assert_eq!(from.option(Reader::digest).unwrap(), Some(Digest::of(b"")));
        assert_eq!(from.option(Reader::digest).unwrap(), None);
        assert!(from.is_empty());
    }

    #[test]
    fn damaged_values_are_errors() {
        assert!(Reader::new(&[0xFF; 10]).number().is_err(), "above 64 bits");
        assert!(Reader::new(&[0x80]).number().is_err(), "cut short");
        assert!(Reader::new(&[5, b'a']).text().is_err(), "shorter than its length");
        assert!(Reader::new(&[1, 0xFF]).text().is_err(), "not UTF-8");
        assert!(Reader::new(&[2]).bool().is_err());
        assert!(Reader::new(&[2, 1, b'a', 1, b'b', 1]).stored_labels().is_err(), "fewer than their count");
        assert!(Reader::new(&[9]).version(1).is_err(), "written by a newer program");
    }
}
