//! Attachment records: one JSON file each, below the state directory.
//!
//! Written to a temporary file and renamed, without fsync: they describe kernel state, which a power cut loses as well.
//! A file that cannot be read is reported and left alone: its container may be running. It is removed when its container
//! is detached.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use stdx::{Durable, replace};
use types::id::check_identifier;
use types::{Context, Error, Result};

use crate::attachment::Attachment;

/// Format version of the records; a record of another version is an error.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    id: String,
    attachment: Attachment,
}

/// What the records of an earlier daemon say.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Found {
    pub(crate) attachments: BTreeMap<String, Attachment>,
    /// Containers whose record cannot be read, with their address if that much can be.
    pub(crate) unread: BTreeMap<String, Option<Ipv4Addr>>,
}

pub(crate) struct Records {
    dir: PathBuf,
}

impl Records {
    pub(crate) fn open(dir: PathBuf) -> Result<Records> {
        fs::create_dir_all(&dir).context(|| format!("create {}", dir.display()))?;
        Ok(Records { dir })
    }

    pub(crate) fn read_all(&self) -> Result<Found> {
        let mut found = Found::default();
        for entry in fs::read_dir(&self.dir).context(|| format!("read {}", self.dir.display()))? {
            let path = entry.context(|| format!("read {}", self.dir.display()))?.path();
            if path.extension().and_then(std::ffi::OsStr::to_str) != Some("json") {
                // Left by a crash in the middle of a write.
                remove(&path)?;
                continue;
            }
            match read(&path) {
                Ok(record) => {
                    found.attachments.insert(record.id, record.attachment);
                }
                Err(error) => {
                    tracing::warn!("leave a network record as it is: {}", error.chain());
                    let id = path.file_stem().and_then(std::ffi::OsStr::to_str);
                    if let Some(id) = id.filter(|id| check_identifier("container id", id).is_ok()) {
                        found.unread.insert(id.to_owned(), address_in(&path));
                    }
                }
            }
        }
        Ok(found)
    }

    pub(crate) fn write(&self, id: &str, attachment: &Attachment) -> Result<()> {
        let record = Record { version: VERSION, id: id.to_owned(), attachment: attachment.clone() };
        let bytes = serde_json::to_vec(&record).expect("a record has only strings and numbers");
        let path = self.path(id);
        replace(&path, &bytes, 0o644, Durable::No).context(|| format!("write {}", path.display()))
    }

    pub(crate) fn remove(&self, id: &str) -> Result<()> {
        remove(&self.path(id))
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }
}

fn read(path: &Path) -> Result<Record> {
    let what = || format!("read network record {}", path.display());
    let bytes = fs::read(path).context(what)?;
    let record: Record =
        serde_json::from_slice(&bytes).map_err(|error| Error::data_loss(what()).with_source(error))?;
    if record.version != VERSION {
        let message = format!("{}: version {} is not {VERSION}", what(), record.version);
        return Err(Error::failed_precondition(message));
    }
    Ok(record)
}

/// The address in a record that is JSON, as one of another version is.
fn address_in(path: &Path) -> Option<Ipv4Addr> {
    let record: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    record["attachment"]["address"].as_str()?.parse().ok()
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.context(|| format!("remove {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_records_are_left_alone_and_hide_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path().join("network")).unwrap();
        let attachment = Attachment {
            address: Ipv4Addr::new(10, 88, 0, 2),
            prefix_len: 24,
            gateway: Ipv4Addr::new(10, 88, 0, 1),
            mac: [2, 0x48, 10, 88, 0, 2],
            link: "hv0".to_owned(),
            ports: Vec::new(),
        };
        for id in ["whole", "later"] {
            records.write(id, &attachment).unwrap();
        }
        let later = fs::read_to_string(records.path("later")).unwrap();
        fs::write(records.path("later"), later.replace("\"version\":1", "\"version\":2")).unwrap();
        fs::write(records.path("half"), &later[..later.len() / 2]).unwrap();
        fs::create_dir(records.path("directory")).unwrap();
        fs::write(records.path("no identifier"), "").unwrap();
        let unread = [("later", Some(attachment.address)), ("half", None), ("directory", None)];
        let expected = Found {
            attachments: [("whole".to_owned(), attachment)].into(),
            unread: unread.map(|(id, address)| (id.to_owned(), address)).into(),
        };
        // Twice: what cannot be read is still there for the next daemon.
        for _ in 0..2 {
            assert_eq!(records.read_all().unwrap(), expected);
        }
    }
}
