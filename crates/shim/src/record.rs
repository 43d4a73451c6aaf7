//! Records in a bundle, for a daemon or a `delete` command that finds no live shim.
//!
//! | file | when | content |
//! |---|---|---|
//! | `init.pid` | after create | the pid, decimal |
//! | `runtime.json` | before create | [`RuntimeRecord`] |
//! | `pod.json` | the cgroup of a sandbox was made | [`PodRecord`] |
//! | `exit.json` | the first process ended, before the event leaves | [`ExitRecord`] |
//!
//! Each is written to a temporary name and renamed, so that a reader sees all or nothing. They are not synced: their
//! content has no meaning after a reboot. Space for `exit.json` is allocated when the container is created
//! ([`reserve`]), so that its end is recorded on a full disk too.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use types::{Context, Error, Result, Timestamp};

pub(crate) const EXIT: &str = "exit.json";
pub(crate) const RUNTIME: &str = "runtime.json";
pub(crate) const POD: &str = "pod.json";
pub(crate) const INIT_PID: &str = "init.pid";

/// How a container's first process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExitRecord {
    pub version: u32,
    pub id: String,
    pub pid: u32,
    /// The exit code, or 128 plus the signal that killed it.
    pub status: u32,
    pub exited_at: Timestamp,
    /// The kernel's OOM killer killed a process of the container.
    pub oom_killed: bool,
    /// How many processes it killed.
    #[serde(default)]
    pub oom_kills: u64,
    /// How often memory ran out.
    #[serde(default)]
    pub oom_events: u64,
}

/// The runtime of the container, and its state directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RuntimeRecord {
    pub version: u32,
    /// Empty for the built-in runtime.
    pub binary: String,
    pub root: PathBuf,
    pub systemd_cgroup: bool,
    /// Whether the shim mounts the root file system.
    pub rootfs_mounted: bool,
}

/// The host resources of a sandbox, besides its shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PodRecord {
    pub version: u32,
    pub id: String,
    /// The cgroup's directories, by hierarchy.
    pub cgroup: BTreeMap<String, PathBuf>,
    /// The process that holds its namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<HolderRecord>,
}

/// A process, identified by its pid and its mount namespace, which no other process is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HolderRecord {
    pub pid: u32,
    pub mount_namespace: PathBuf,
}

impl HolderRecord {
    pub(crate) fn of(pid: u32) -> Result<HolderRecord> {
        let path = format!("/proc/{pid}/ns/mnt");
        let mount_namespace = std::fs::read_link(&path).context(|| format!("read {path}"))?;
        Ok(HolderRecord { pid, mount_namespace })
    }
}

pub(crate) fn write<T: Serialize>(bundle: &Path, name: &str, record: &T) -> Result<()> {
    write_bytes(bundle, name, &encode(name, record)?)
}

pub(crate) fn write_bytes(directory: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = directory.join(name);
    let temporary = draft(directory, name);
    std::fs::write(&temporary, bytes).context(|| format!("write {}", temporary.display()))?;
    std::fs::rename(&temporary, &path).context(|| format!("write {}", path.display()))
}

/// Bytes that are reserved for a record: more than an exit record has.
const RESERVED_LEN: usize = 1024;

/// Allocates the space that [`write_reserved`] needs. A record of an earlier run is removed.
pub(crate) fn reserve(bundle: &Path, name: &str) -> Result<()> {
    let old = bundle.join(name);
    match std::fs::remove_file(&old) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).context(|| format!("remove {}", old.display()));
        }
        _ => {}
    }
    let path = draft(bundle, name);
    std::fs::write(&path, [b' '; RESERVED_LEN]).context(|| format!("write {}", path.display()))
}

/// Overwrites the reserved space with a record, padded with white space.
pub(crate) fn write_reserved<T: Serialize>(bundle: &Path, name: &str, record: &T) -> Result<()> {
    let text = encode(name, record)?;
    let path = draft(bundle, name);
    let overwrite = || -> std::io::Result<()> {
        OpenOptions::new().write(true).open(&path)?.write_all(&text)?;
        std::fs::rename(&path, bundle.join(name))
    };
    if text.len() <= RESERVED_LEN && overwrite().is_ok() {
        return Ok(());
    }
    write_bytes(bundle, name, &text)
}

fn draft(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!(".{name}.new"))
}

fn encode<T: Serialize>(name: &str, record: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(record).map_err(|error| Error::internal(format!("encode {name}")).with_source(error))
}

/// `None` if the record was never written.
pub(crate) fn read<T: DeserializeOwned>(bundle: &Path, name: &str) -> Result<Option<T>> {
    let path = bundle.join(name);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context(|| format!("read {}", path.display())),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| Error::data_loss(format!("{} is damaged", path.display())).with_source(error))
}

/// As [`read`], of a record that [`write_reserved`] wrote. A shim that was killed before it renamed the record has left it
/// in the reserved space: then it is renamed here. White space alone, or half a record, is none.
pub(crate) fn read_reserved<T: DeserializeOwned>(bundle: &Path, name: &str) -> Result<Option<T>> {
    if let Some(record) = read(bundle, name)? {
        return Ok(Some(record));
    }
    let draft = draft(bundle, name);
    let record = std::fs::read(&draft).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let Some(record) = record else { return Ok(None) };
    // For the daemon, which reads it as well. What it says holds even if that fails.
    let _renamed = std::fs::rename(&draft, bundle.join(name));
    Ok(Some(record))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: String) -> PodRecord {
        PodRecord { version: 1, id, cgroup: BTreeMap::new(), holder: None }
    }

    #[test]
    fn reserved_space_is_overwritten_by_the_record() {
        let bundle = tempfile::tempdir().unwrap();
        let reads = || read::<PodRecord>(bundle.path(), POD).unwrap();
        for id in ["short".to_owned(), "i".repeat(2 * RESERVED_LEN)] {
            reserve(bundle.path(), POD).unwrap();
            assert_eq!(reads(), None, "that of an earlier life is gone");
            write_reserved(bundle.path(), POD, &record(id.clone())).unwrap();
            assert_eq!(reads(), Some(record(id)));
        }
        // The reservation is used up.
        write_reserved(bundle.path(), POD, &record("again".to_owned())).unwrap();
        assert_eq!(reads(), Some(record("again".to_owned())));
    }

    #[test]
    fn a_record_whose_writer_was_killed_before_it_renamed_it_is_found() {
        let bundle = tempfile::tempdir().unwrap();
        let reads = || read_reserved::<PodRecord>(bundle.path(), POD).unwrap();
        assert_eq!(reads(), None);
        reserve(bundle.path(), POD).unwrap();
        assert_eq!(reads(), None, "reserved space is no record");
        let text = encode(POD, &record("a".to_owned())).unwrap();
        let space = draft(bundle.path(), POD);
        for (len, expected) in [(text.len() - 1, None), (text.len(), Some(record("a".to_owned())))] {
            OpenOptions::new().write(true).open(&space).unwrap().write_all(&text[..len]).unwrap();
            assert_eq!(reads(), expected, "{len} bytes were written");
        }
        assert!(!space.exists(), "the daemon finds it at its name");
        assert_eq!(read::<PodRecord>(bundle.path(), POD).unwrap(), Some(record("a".to_owned())));
        // The next life does not see it.
        reserve(bundle.path(), POD).unwrap();
        assert_eq!(reads(), None);
    }
}
