//! containerd's records, as its database has them (version 4 of the schema `v1`).
//!
//! ```text
//! v1/<namespace>/labels/<key>                                      text
//! v1/<namespace>/images/<name>/{createdat, updatedat, labels/, annotations/, target/{digest, mediatype, size}}
//! v1/<namespace>/content/blob/<digest>/{createdat, updatedat, size, labels/}
//! v1/<namespace>/leases/<id>/{createdat, labels/, content/<digest>, images/<name>}
//! v1/<namespace>/leases/<id>/{snapshots/<snapshotter>/<key>, ingests/<ref>}  counted
//! v1/<namespace>/containers/<id>                                   counted
//! ```
//!
//! Times are Go's binary form, numbers are signed varints. A record that cannot be read is named and left.

use bolt::{Bucket, Database};
use metadata::Resource;
use types::{Context, Descriptor, Digest, Error, Labels, LeaseId, Namespace, Result, Timestamp};

/// The bucket that holds everything.
const SCHEMA: &str = "v1";
/// From Go's first second, of the year 1, to the first of 1970.
const UNIX_EPOCH: i64 = 62_135_596_800;
/// The forms of times that there are: with a zone of whole minutes, and of seconds.
const TIME_FORMS: [u8; 2] = [1, 2];

pub(super) struct NamespaceRecords {
    pub(super) name: Namespace,
    pub(super) labels: Labels,
    pub(super) images: Vec<ImageRecord>,
    pub(super) blobs: Vec<BlobRecord>,
    pub(super) leases: Vec<LeaseRecord>,
    pub(super) containers: usize,
    /// What could not be read, and why.
    pub(super) broken: Vec<String>,
}

pub(super) struct ImageRecord {
    pub(super) name: String,
    pub(super) labels: Labels,
    pub(super) target: Descriptor,
    pub(super) times: Times,
}

/// When a record was made and last changed.
#[derive(Clone, Copy)]
pub(super) struct Times {
    pub(super) created: Timestamp,
    pub(super) updated: Timestamp,
}

pub(super) struct BlobRecord {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) labels: Labels,
    pub(super) times: Times,
}

pub(super) struct LeaseRecord {
    pub(super) id: LeaseId,
    pub(super) labels: Labels,
    pub(super) created: Timestamp,
    pub(super) resources: Vec<Resource>,
    /// How many snapshots, ingests and whatever else it holds that is not taken over.
    pub(super) left: usize,
}

/// Reads all namespaces. `FailedPrecondition` for a database of another make.
pub(super) fn read(database: Database<'_>) -> Result<Vec<NamespaceRecords>> {
    let Some(root) = database.root().bucket(SCHEMA)? else {
        return Err(Error::failed_precondition("the database is not containerd's: it has no schema v1"));
    };
    root.buckets()?.into_iter().map(|(name, bucket)| namespace(text(name)?, bucket)).collect()
}

fn namespace(name: &str, bucket: Bucket<'_>) -> Result<NamespaceRecords> {
    let mut broken = Vec::new();
    let mut each = |path: &[&str], what: &str| -> Result<Vec<(String, Bucket<'_>)>> {
        let mut found = Some(bucket);
        for part in path {
            found = found.map(|bucket| bucket.bucket(part)).transpose()?.flatten();
        }
        let entries = found.map(Bucket::buckets).transpose()?.unwrap_or_default();
        let mut named = Vec::new();
        for (key, record) in entries {
            match text(key) {
                Ok(key) => named.push((key.to_owned(), record)),
                Err(error) => broken.push(format!("{what}: {}", error.chain())),
            }
        }
        Ok(named)
    };
    let images = each(&["images"], "image")?;
    let blobs = each(&["content", "blob"], "blob")?;
    let leases = each(&["leases"], "lease")?;
    let containers = each(&["containers"], "container")?.len();
    Ok(NamespaceRecords {
        name: Namespace::new(name)?,
        labels: labels(bucket, "labels")?,
        images: whole(images, "image", &mut broken, image),
        blobs: whole(blobs, "blob", &mut broken, blob),
        leases: whole(leases, "lease", &mut broken, lease),
        containers,
        broken,
    })
}

/// The records that can be read; the others are named.
fn whole<T>(
    records: Vec<(String, Bucket<'_>)>,
    what: &str,
    broken: &mut Vec<String>,
    read: fn(&str, Bucket<'_>) -> Result<T>,
) -> Vec<T> {
    let mut found = Vec::new();
    for (name, bucket) in records {
        match read(&name, bucket) {
            Ok(record) => found.push(record),
            Err(error) => broken.push(format!("{what} {name}: {}", error.chain())),
        }
    }
    found
}

fn image(name: &str, bucket: Bucket<'_>) -> Result<ImageRecord> {
    let target = bucket.bucket("target")?.ok_or_else(|| missing("target"))?;
    let part = |key: &str| target.value(key)?.ok_or_else(|| missing(key));
    let digest = text(part("digest")?)?.parse()?;
    let mut descriptor = Descriptor::new(text(part("mediatype")?)?, digest, size(part("size")?)?);
    descriptor.annotations = labels(bucket, "annotations")?;
    let (labels, times) = (labels(bucket, "labels")?, times(bucket)?);
    Ok(ImageRecord { name: name.to_owned(), labels, target: descriptor, times })
}

fn blob(digest: &str, bucket: Bucket<'_>) -> Result<BlobRecord> {
    let size = size(bucket.value("size")?.ok_or_else(|| missing("size"))?)?;
    Ok(BlobRecord { digest: digest.parse()?, size, labels: labels(bucket, "labels")?, times: times(bucket)? })
}

fn lease(id: &str, bucket: Bucket<'_>) -> Result<LeaseRecord> {
    let (mut resources, mut left) = (Vec::new(), 0);
    for (kind, held) in bucket.buckets()? {
        match text(kind)? {
            "labels" => {}
            kind @ ("content" | "images") => {
                for (key, _) in held.values()? {
                    resources.push(Resource::parse(kind, text(key)?)?);
                }
            }
            _ => {
                left += held.values()?.len();
                for (_, of_snapshotter) in held.buckets()? {
                    left += of_snapshotter.values()?.len();
                }
            }
        }
    }
    let (labels, created) = (labels(bucket, "labels")?, times(bucket)?.created);
    Ok(LeaseRecord { id: LeaseId::new(id)?, labels, created, resources, left })
}

/// What has no time of a change was not changed since it was made.
fn times(bucket: Bucket<'_>) -> Result<Times> {
    let at = |key: &str| bucket.value(key)?.map(time).transpose();
    let created = at("createdat")?.unwrap_or_default();
    Ok(Times { created, updated: at("updatedat")?.unwrap_or(created) })
}

fn labels(bucket: Bucket<'_>, name: &str) -> Result<Labels> {
    let entries = bucket.bucket(name)?.map(Bucket::values).transpose()?.unwrap_or_default();
    let entry = |(key, value)| Ok((text(key)?.to_owned(), text(value)?.to_owned()));
    entries.into_iter().map(entry).collect::<Result<_>>().context(|| name.to_owned())
}

fn missing(key: &str) -> Error {
    Error::data_loss(format!("it has no {key}"))
}

fn text(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| Error::data_loss(format!("{bytes:?} is no text")))
}

/// A signed varint (zigzag), which must not be negative.
fn size(bytes: &[u8]) -> Result<u64> {
    let mut number = 0_u64;
    for (at, byte) in bytes.iter().enumerate() {
        let bits = u64::from(byte & 0x7f).checked_shl(u32::try_from(at * 7).unwrap_or(u32::MAX)).unwrap_or(0);
        number |= bits;
        if byte & 0x80 == 0 {
            return match number & 1 {
                0 => Ok(number >> 1),
                _ => Err(Error::data_loss("its size is negative")),
            };
        }
    }
    Err(Error::data_loss("its size is cut off"))
}

/// Form, seconds since the year 1, nanoseconds, zone.
fn time(bytes: &[u8]) -> Result<Timestamp> {
    let read = || {
        let (form, rest) = bytes.split_first()?;
        TIME_FORMS.contains(form).then_some(())?;
        let seconds = i64::from_be_bytes(rest.get(..8)?.try_into().ok()?);
        let nanos = u32::from_be_bytes(rest.get(8..12)?.try_into().ok()?);
        Some(Timestamp {
            seconds: seconds.checked_sub(UNIX_EPOCH)?,
            nanos: Some(nanos).filter(|nanos| *nanos < 1_000_000_000)?,
        })
    };
    read().ok_or_else(|| Error::data_loss("a time of it cannot be read"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_are_gos() {
        for (bytes, expected) in
            [(&[0][..], Some(0)), (&[2], Some(1)), (&[0x80, 0x10], Some(1024)), (&[1], None), (&[0x80], None)]
        {
            assert_eq!(size(bytes).ok(), expected, "{bytes:?}");
        }
        // 2026-11-26T02:29:09.585178442Z, without a zone.
        let mut bytes = vec![1];
        bytes.extend((UNIX_EPOCH + 1_795_660_149).to_be_bytes());
        bytes.extend(585_178_442_u32.to_be_bytes());
        bytes.extend((-1_i16).to_be_bytes());
        assert_eq!(time(&bytes).unwrap(), Timestamp { seconds: 1_795_660_149, nanos: 585_178_442 });
        for len in 0..13 {
            assert!(time(&bytes[..len]).is_err(), "{len}");
        }
    }
}
