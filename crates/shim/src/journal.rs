//! The events of one container that no daemon has acknowledged yet, on disk before they are sent.
//!
//! ```text
//! file `events` in the bundle
//!  0          8                                ▼ the first one not acknowledged
//!  +----------+--------+-------+--------+-------+--------+-------+
//!  | position | length | entry | length | entry | length | entry | …   integers are big endian: 64 and 32 bits
//!  +----------+--------+-------+--------+-------+--------+-------+
//! ```
//!
//! The journal of a shim that died is read by the `delete` command, which sends the entries behind the position.
//!
//! Invariants
//! - An entry is written with one call, so a reader finds it whole or at the very end.
//! - The file is empty whenever everything is acknowledged: it grows with what waits, not with time.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use api::shim::types::Envelope;
use prost::Message;

/// The name of the file in a bundle.
pub(crate) const EVENTS: &str = "events";
const POSITION_LEN: u64 = 8;
/// Bytes; larger than any event of the shim.
const ENTRY_LEN_MAX: usize = 1 << 20;

/// An event with its sequence number.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Entry {
    /// Identifies one run of one shim.
    #[prost(string, tag = "1")]
    pub source: String,
    /// Counts the events of a source from 1, without gaps.
    #[prost(uint64, tag = "2")]
    pub sequence: u64,
    #[prost(message, optional, tag = "3")]
    pub envelope: Option<Envelope>,
}

pub(crate) struct Journal {
    file: File,
    position: u64,
    len: u64,
}

impl Journal {
    pub(crate) fn create(bundle: &Path) -> io::Result<Journal> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(bundle.join(EVENTS))?;
        Ok(Journal { file, position: 0, len: 0 })
    }

    pub(crate) fn append(&mut self, entry: &Entry) -> io::Result<()> {
        let mut bytes = Vec::new();
        if self.len == 0 {
            bytes.extend_from_slice(&POSITION_LEN.to_be_bytes());
        }
        bytes.extend_from_slice(&(entry.encoded_len() as u32).to_be_bytes());
        entry.encode(&mut bytes).expect("a vector grows as needed");
        match self.file.write_all_at(&bytes, self.len) {
            Ok(()) => {
                self.position = self.position.max(POSITION_LEN);
                self.len += bytes.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Half an entry would hide later ones; if it cannot be cut off, it is overwritten.
                let _best_effort = self.file.set_len(self.len);
                Err(error)
            }
        }
    }

    /// Marks the oldest unacknowledged entry as acknowledged.
    pub(crate) fn acknowledge(&mut self, entry: &Entry) -> io::Result<()> {
        self.position += 4 + entry.encoded_len() as u64;
        if self.position >= self.len {
            (self.position, self.len) = (0, 0);
            return self.file.set_len(0);
        }
        self.file.write_all_at(&self.position.to_be_bytes(), 0)
    }
}

/// The entries that a shim left unacknowledged, oldest first. Empty if the file is missing or damaged; a
/// half-written last entry is skipped.
pub(crate) fn read(bundle: &Path) -> Vec<Entry> {
    let bytes = std::fs::read(bundle.join(EVENTS)).unwrap_or_default();
    let Some(position) = bytes.first_chunk().map(|position| u64::from_be_bytes(*position)) else {
        return Vec::new();
    };
    let mut rest =
        usize::try_from(position).ok().and_then(|position| bytes.get(position..)).unwrap_or_default();
    let mut entries = Vec::new();
    while let Some((len, tail)) = rest.split_first_chunk::<4>() {
        let len = u32::from_be_bytes(*len) as usize;
        let Some((entry, tail)) = tail.split_at_checked(len).filter(|_| len <= ENTRY_LEN_MAX) else { break };
        let Ok(entry) = Entry::decode(entry) else { break };
        entries.push(entry);
        rest = tail;
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(sequence: u64) -> Entry {
        Entry { source: "s".into(), sequence, envelope: None }
    }

    fn left(bundle: &Path) -> Vec<u64> {
        read(bundle).iter().map(|entry| entry.sequence).collect()
    }

    #[test]
    fn unacknowledged_events_are_read_back() {
        let bundle = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(bundle.path()).unwrap();
        assert!(left(bundle.path()).is_empty());
        for sequence in 1..=3 {
            journal.append(&entry(sequence)).unwrap();
        }
        assert_eq!(left(bundle.path()), [1, 2, 3]);
        journal.acknowledge(&entry(1)).unwrap();
        assert_eq!(left(bundle.path()), [2, 3]);
        journal.acknowledge(&entry(2)).unwrap();
        journal.acknowledge(&entry(3)).unwrap();
        assert_eq!(std::fs::metadata(bundle.path().join(EVENTS)).unwrap().len(), 0);
        journal.append(&entry(4)).unwrap();
        assert_eq!(left(bundle.path()), [4]);
    }

    /// The file cut at every length, as by a crash or a full disk.
    #[test]
    fn a_file_cut_anywhere_gives_the_entries_before_the_cut() {
        let bundle = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(bundle.path()).unwrap();
        let mut ends = Vec::new();
        for sequence in 1..=3 {
            journal.append(&entry(sequence)).unwrap();
            ends.push(journal.len);
        }
        let path = bundle.path().join(EVENTS);
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let expected = ends.iter().filter(|end| **end <= cut as u64).count();
            assert_eq!(left(bundle.path()).len(), expected, "cut at {cut}");
        }
        std::fs::write(&path, [0xff; 64]).unwrap();
        assert!(left(bundle.path()).is_empty());
    }
}
