//! PAX records: `LENGTH KEY=VALUE\n`, one after another (POSIX.1-2001, pax interchange format).

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::header::bad;

const ATTRIBUTE: &str = "SCHILY.xattr.";

/// The last value of each key; none where it was taken away.
pub(super) type Values = BTreeMap<String, Option<Vec<u8>>>;

/// What is said of an entry: by its own records, and where they are silent, by those of the whole archive.
pub(super) struct Records {
    pub(super) own: Values,
    pub(super) global: Arc<Values>,
}

impl Records {
    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        self.own.get(key).or_else(|| self.global.get(key))?.as_deref()
    }

    pub(super) fn number(&self, key: &str) -> io::Result<Option<u64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let text = std::str::from_utf8(value).ok();
        text.and_then(|text| text.parse().ok())
            .map(Some)
            .ok_or_else(|| bad(&format!("PAX {key} is not a number")))
    }

    /// `SECONDS[.FRACTION]`, possibly negative, to seconds and nanoseconds counting forward.
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

    /// Extended attributes, as star and GNU tar write them, and as libarchive does (name in URL coding, value in
    /// base 64; where both are there they are the same).
    pub(super) fn attributes(&self) -> io::Result<BTreeMap<String, Vec<u8>>> {
        let mut found = BTreeMap::new();
        for values in [&*self.global, &self.own] {
            for (key, value) in values.range(ATTRIBUTE.to_owned()..) {
                let Some(name) = key.strip_prefix(ATTRIBUTE) else { break };
                let value = value.clone().unwrap_or_default();
                if name.is_empty() || name.len() > 255 || value.len() > 64 * 1024 {
                    return Err(bad("an extended attribute is too large"));
                }
                found.insert(name.to_owned(), value);
            }
        }
        Ok(found)
    }
}

/// Bytes that are kept.
pub(super) fn len(values: &Values) -> usize {
    values.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len)).sum()
}

/// Adds the records of a block to those that are there. An empty value takes a key away; but extended
/// attributes may well be empty.
pub(super) fn parse(mut bytes: &[u8], values: &mut Values) -> io::Result<()> {
    while !bytes.is_empty() {
        let blank = bytes.iter().position(|byte| *byte == b' ').ok_or_else(malformed)?;
        let digits = std::str::from_utf8(&bytes[..blank]).map_err(|_| malformed())?;
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(malformed());
        }
        let len: usize = digits.parse().map_err(|_| malformed())?;
        let record =
            bytes.get(blank + 1..len).and_then(|record| record.strip_suffix(b"\n")).ok_or_else(malformed)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
        let key = std::str::from_utf8(&record[..equals]).map_err(|_| malformed())?;
        let value = &record[equals + 1..];
        if key.is_empty() {
            return Err(malformed());
        }
        // Attributes may hold any bytes; names that end at a zero byte would be seen differently by others.
        if value.contains(&0) && (key == "path" || key == "linkpath") {
            return Err(bad("a PAX name contains a zero byte"));
        }
        // The offsets of sparse form 0.0 come as one key again and again.
        if key == "GNU.sparse.offset" || key == "GNU.sparse.numbytes" {
            let map = values.entry("GNU.sparse.map".into()).or_default().get_or_insert_default();
            if !map.is_empty() {
                map.push(b',');
            }
            map.extend_from_slice(value);
        } else {
            let is_taken_away = value.is_empty() && !key.starts_with(ATTRIBUTE);
            values.insert(key.to_owned(), (!is_taken_away).then(|| value.to_vec()));
        }
        bytes = &bytes[len..];
    }
    Ok(())
}

fn malformed() -> io::Error {
    bad("a PAX record is malformed")
}
