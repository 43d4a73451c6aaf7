//! Attachment records: one JSON file each, below the state directory.
//!
//! Written to a temporary file and renamed, without fsync: they describe kernel state, which a power cut loses as well.
//! A file that cannot be read is reported and left alone.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stdx::{Durable, replace};
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

pub(crate) struct Records {
    dir: PathBuf,
}

impl Records {
    pub(crate) fn open(dir: PathBuf) -> Result<Records> {
        fs::create_dir_all(&dir).context(|| format!("create {}", dir.display()))?;
        Ok(Records { dir })
    }

    pub(crate) fn read_all(&self) -> Result<BTreeMap<String, Attachment>> {
        let mut all = BTreeMap::new();
        for entry in fs::read_dir(&self.dir).context(|| format!("read {}", self.dir.display()))? {
            let path = entry.context(|| format!("read {}", self.dir.display()))?.path();
            match path.extension().and_then(std::ffi::OsStr::to_str) {
                Some("json") => {
                    let record = read(&path)?;
                    all.insert(record.id, record.attachment);
                }
                // Left by a crash in the middle of a write.
                _ => remove(&path)?,
            }
        }
        Ok(all)
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

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.context(|| format!("remove {}", path.display())),
    }
}
