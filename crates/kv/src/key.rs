//! Keys: tuples of parts, encoded so that the order of the bytes is the order of the parts and the
//! keys below a prefix lie together.
//!
//! ```text
//! text     its bytes, 00 written as 00 FF, then 00 01
//! number   8 bytes, big-endian
//! tuple    its parts one after another
//! ```
//!
//! [`Key`] is the stored, owned form. [`KeyOf`] is anything that encodes to one: `(&namespace, "redis")` looks up in
//! a table of `(Namespace, String)` without a copy. [`PrefixOf`] names a range: `()` is the whole table,
//! `(&namespace,)` all keys of that namespace.

use std::borrow::Cow;

use types::{ContainerId, Digest, IngestRef, LeaseId, Namespace, Result, SandboxId};

use crate::error;

/// A key in its decoded, owned form.
pub trait Key: Sized {
    fn read(from: &mut KeyReader<'_>) -> Result<Self>;
}

/// A borrowed form that encodes to a key of type `K`.
pub trait KeyOf<K> {
    fn write(&self, to: &mut Vec<u8>);
}

/// A borrowed form that encodes to a prefix of keys of type `K`.
pub trait PrefixOf<K> {
    fn write(&self, to: &mut Vec<u8>);
}

/// Decodes the parts of a key from the front.
pub struct KeyReader<'a>(&'a [u8]);

impl<'a> KeyReader<'a> {
    pub fn new(bytes: &'a [u8]) -> KeyReader<'a> {
        KeyReader(bytes)
    }

    pub fn text(&mut self) -> Result<Cow<'a, str>> {
        let len = self.0.iter().position(|byte| *byte == 0).ok_or_else(damaged)?;
        if self.0.get(len + 1) != Some(&0x01) {
            return self.text_with_zeros().map(Cow::Owned);
        }
        let text = std::str::from_utf8(&self.0[..len]).map_err(|_| damaged())?;
        self.0 = &self.0[len + 2..];
        Ok(Cow::Borrowed(text))
    }

    fn text_with_zeros(&mut self) -> Result<String> {
        let mut text = Vec::new();
        loop {
            let at = self.0.iter().position(|byte| *byte == 0).ok_or_else(damaged)?;
            text.extend_from_slice(&self.0[..at]);
            let mark = *self.0.get(at + 1).ok_or_else(damaged)?;
            self.0 = &self.0[at + 2..];
            match mark {
                0x01 => return String::from_utf8(text).map_err(|_| damaged()),
                0xFF => text.push(0),
                _ => return Err(damaged()),
            }
        }
    }

    pub fn number(&mut self) -> Result<u64> {
        let (head, rest) = self.0.split_first_chunk::<8>().ok_or_else(damaged)?;
        self.0 = rest;
        Ok(u64::from_be_bytes(*head))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn damaged() -> types::Error {
    error::damaged("a key is not of the form that its table has")
}

fn write_text(text: &str, to: &mut Vec<u8>) {
    for (index, run) in text.as_bytes().split(|byte| *byte == 0).enumerate() {
        if index > 0 {
            to.extend_from_slice(&[0x00, 0xFF]);
        }
        to.extend_from_slice(run);
    }
    to.extend_from_slice(&[0x00, 0x01]);
}

impl<K, Q: KeyOf<K> + ?Sized> KeyOf<K> for &Q {
    fn write(&self, to: &mut Vec<u8>) {
        (**self).write(to);
    }
}

impl Key for u64 {
    fn read(from: &mut KeyReader<'_>) -> Result<u64> {
        from.number()
    }
}

impl KeyOf<u64> for u64 {
    fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.to_be_bytes());
    }
}

impl Key for String {
    fn read(from: &mut KeyReader<'_>) -> Result<String> {
        from.text().map(Cow::into_owned)
    }
}

impl KeyOf<String> for String {
    fn write(&self, to: &mut Vec<u8>) {
        write_text(self, to);
    }
}

impl KeyOf<String> for str {
    fn write(&self, to: &mut Vec<u8>) {
        write_text(self, to);
    }
}

macro_rules! text_keys {
    ($($id:ty),+) => {
        $(
            impl Key for $id {
                fn read(from: &mut KeyReader<'_>) -> Result<$id> {
                    from.text()?.parse().map_err(|_| damaged())
                }
            }

            impl KeyOf<$id> for $id {
                fn write(&self, to: &mut Vec<u8>) {
                    write_text(self.as_str(), to);
                }
            }
        )+
    };
}

text_keys!(Namespace, ContainerId, SandboxId, LeaseId, IngestRef);

impl Key for Digest {
    fn read(from: &mut KeyReader<'_>) -> Result<Digest> {
        from.text()?.parse().map_err(|_| damaged())
    }
}

impl KeyOf<Digest> for Digest {
    fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(self.algorithm().name().as_bytes());
        to.push(b':');
        to.extend_from_slice(self.hex().as_bytes());
        to.extend_from_slice(&[0x00, 0x01]);
    }
}

macro_rules! tuple_keys {
    ($(($($key:ident $part:ident $index:tt),+))+) => {
        $(
            impl<$($key: Key),+> Key for ($($key,)+) {
                fn read(from: &mut KeyReader<'_>) -> Result<Self> {
                    Ok(($($key::read(from)?,)+))
                }
            }

            impl<$($key, $part: KeyOf<$key>),+> KeyOf<($($key,)+)> for ($($part,)+) {
                fn write(&self, to: &mut Vec<u8>) {
                    $(self.$index.write(to);)+
                }
            }
        )+
    };
}

tuple_keys! {
    (A P 0, B Q 1)
    (A P 0, B Q 1, C R 2)
    (A P 0, B Q 1, C R 2, D S 3)
}

impl<K> PrefixOf<K> for () {
    fn write(&self, _to: &mut Vec<u8>) {}
}

macro_rules! tuple_prefixes {
    ($(($($key:ident $part:ident $index:tt),+) of ($($all:ident),+))+) => {
        $(
            impl<$($all,)+ $($part: KeyOf<$key>),+> PrefixOf<($($all,)+)> for ($($part,)+) {
                fn write(&self, to: &mut Vec<u8>) {
                    $(self.$index.write(to);)+
                }
            }
        )+
    };
}

tuple_prefixes! {
    (A P 0) of (A, B)
    (A P 0) of (A, B, C)
    (A P 0, B Q 1) of (A, B, C)
    (A P 0) of (A, B, C, D)
    (A P 0, B Q 1) of (A, B, C, D)
    (A P 0, B Q 1, C R 2) of (A, B, C, D)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pair = (String, u64);

    fn encode(text: &str, number: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        KeyOf::<Pair>::write(&(text, number), &mut bytes);
        bytes
    }

    #[test]
    fn keys_come_back_as_they_went_in() {
        for text in ["", "a", "\0", "a\0b\0", "ä/ö:1"] {
            let bytes = encode(text, 7);
            let mut reader = KeyReader::new(&bytes);
            assert_eq!(Pair::read(&mut reader).unwrap(), (text.to_owned(), 7));
            assert!(reader.is_empty());
        }
    }

    #[test]
    fn bytes_are_ordered_as_the_parts_are() {
        let mut parts: Vec<(&str, u64)> = Vec::new();
        for text in ["", "\0", "\0\0", "a", "a\0", "a\0b", "ab", "a\u{1}", "b"] {
            parts.extend([(text, 0), (text, 255), (text, 256)]);
        }
        let mut by_bytes = parts.clone();
        parts.sort_unstable();
        by_bytes.sort_unstable_by_key(|(text, number)| encode(text, *number));
        assert_eq!(parts, by_bytes);
    }

    #[test]
    fn damaged_keys_are_errors() {
        for bytes in [&b"a"[..], b"a\0", b"a\0\x02", b"a\0\x01\0\0", b"\xff\0\x01"] {
            assert!(Pair::read(&mut KeyReader::new(bytes)).is_err(), "{bytes:?}");
        }
    }
}
