//! PAX records: `LENGTH KEY=VALUE\n`, one after another (POSIX.1-2001, pax interchange format).

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;

use super::header::{Regions, bad};

const ATTRIBUTE: &str = "SCHILY.xattr.";

/// The records of an entry: the last value of each key.
#[derive(Default)]
pub(super) struct Records(BTreeMap<String, Vec<u8>>);

impl Records {
    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        self.0.get(key).map(Vec::as_slice)
    }

    pub(super) fn number(&self, key: &str) -> io::Result<Option<u64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let text = std::str::from_utf8(value).ok();
        text.and_then(|text| text.parse().ok())
            .map(Some)
            .ok_or_else(|| bad(&format!("PAX {key} is not a number")))
    }

    /// Parses `SECONDS[.FRACTION]`, possibly negative, into seconds and nanoseconds that count forward.
    pub(super) fn time(&self, key: &str) -> io::Result<Option<(i64, u32)>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let wrong = || bad(&format!("PAX {key} is not a time"));
        let text = std::str::from_utf8(value).map_err(|_| wrong())?;
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let seconds: i64 = whole.parse().map_err(|_| wrong())?;
        if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
        let nanos: u32 = digits.parse().map_err(|_| wrong())?;
        if whole.starts_with('-') && nanos > 0 {
            return Ok(Some((seconds.checked_sub(1).ok_or_else(wrong)?, 1_000_000_000 - nanos)));
        }
        Ok(Some((seconds, nanos)))
    }

    /// Whether the map of a sparse file is before its data (form 1.0) rather than in the records. `None` if the file is
    /// not sparse, or of an unknown form.
    pub(super) fn sparse_map_is_ahead(&self) -> Option<bool> {
        match (self.get("GNU.sparse.major"), self.get("GNU.sparse.minor")) {
            (Some(b"0"), Some(b"0" | b"1")) => Some(false),
            (Some(b"1"), Some(b"0")) => Some(true),
            // Forms 0.0 and 0.1 as GNU tar writes them.
            (None, None) => self.get("GNU.sparse.map").map(|_| false),
            _ => None,
        }
    }

    /// The map of a sparse file of form 0.0 or 0.1, from the records.
    pub(super) fn sparse_map(&self) -> io::Result<Regions> {
        let map = self.get("GNU.sparse.map").unwrap_or_default();
        let text = std::str::from_utf8(map).map_err(|_| bad("a sparse map is no text"))?;
        let no_pairs = || bad("a sparse map is no list of pairs of numbers");
        let numbers: Vec<u64> =
            text.split(',').map(str::parse).collect::<Result<_, _>>().map_err(|_| no_pairs())?;
        if !numbers.len().is_multiple_of(2) {
            return Err(no_pairs());
        }
        Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }

    /// Extended attributes as star and GNU tar write them (`SCHILY.xattr.`). libarchive writes the same attributes
    /// under `LIBARCHIVE.xattr.` as well, which can be ignored.
    pub(super) fn attributes(&self) -> io::Result<BTreeMap<String, Vec<u8>>> {
        let mut found = BTreeMap::new();
        for (key, value) in self.0.range::<str, _>((Bound::Included(ATTRIBUTE), Bound::Unbounded)) {
            let Some(name) = key.strip_prefix(ATTRIBUTE) else { break };
            if name.is_empty() || name.len() > 255 || value.len() > 64 * 1024 {
                return Err(bad("an extended attribute is too large"));
            }
            found.insert(name.to_owned(), value.clone());
        }
        Ok(found)
    }
}

/// Adds the records of a PAX block to `values`. An empty value removes a key, but an extended attribute may be empty.
pub(super) fn parse(mut bytes: &[u8], Records(values): &mut Records) -> io::Result<()> {
    // Sparse form 0.0 repeats two keys in turn: the offset and the length of each region.
    let mut regions: Vec<&[u8]> = Vec::new();
    while !bytes.is_empty() {
        let blank = bytes.iter().position(|byte| *byte == b' ').ok_or_else(malformed)?;
        let digits = std::str::from_utf8(&bytes[..blank]).map_err(|_| malformed())?;
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(malformed());
        }
        let len: usize = digits.parse().map_err(|_| malformed())?;
        let record =
            bytes.get(blank + 1..len).and_then(|record| record.strip_suffix(b"\n")).ok_or_else(malformed)?;
        bytes = &bytes[len..];
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if key.is_empty() {
            return Err(malformed());
        }
        // Keys are UTF-8, except that GNU tar writes the names of attributes unencoded. Such an attribute is ignored.
        let Ok(key) = std::str::from_utf8(key) else { continue };
        // Attributes may hold any bytes. Names with a zero byte would end there for other readers.
        if value.contains(&0) && (key == "path" || key == "linkpath") {
            return Err(bad("a PAX name contains a zero byte"));
        }
        if key == "GNU.sparse.offset" || key == "GNU.sparse.numbytes" {
            let is_next = (key == "GNU.sparse.offset") == regions.len().is_multiple_of(2);
            if !is_next || value.contains(&b',') {
                return Err(malformed());
            }
            regions.push(value);
        } else if value.is_empty() && !key.starts_with(ATTRIBUTE) {
            values.remove(key);
        } else {
            values.insert(key.to_owned(), value.to_vec());
        }
    }
    // A map of form 0.0 overrides one of form 0.1, in any order, as in Go, so that all readers see the same file.
    if !regions.is_empty() {
        values.insert("GNU.sparse.map".to_owned(), regions.join(&b','));
    }
    Ok(())
}

fn malformed() -> io::Error {
    bad("a PAX record is malformed")
}
