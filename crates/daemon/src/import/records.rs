//! Reads containerd's records from its database (version 4 of the schema `v1`).
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
//! Timestamps are in Go's binary format, numbers signed varints. Unreadable parts are reported and skipped: a record,
//! the records of a kind after a damaged page, or a namespace.

use bolt::{Bucket, Database, Entry};
use metadata::Resource;
use types::{Context, Descriptor, Digest, Error, Labels, LeaseId, Namespace, Result, Timestamp};

/// The top-level bucket.
const SCHEMA: &str = "v1";
/// Seconds from Go's epoch, year 1, to 1970.
const UNIX_EPOCH: i64 = 62_135_596_800;
/// The versions of Go's format: with a zone offset in minutes, or in seconds.
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
    /// The blobs among these.
    pub(super) lost: Vec<Digest>,
}

pub(super) struct ImageRecord {
    pub(super) name: String,
    pub(super) labels: Labels,
    pub(super) target: Descriptor,
    pub(super) times: Times,
}

/// When a record was created and last updated.
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
    /// Number of snapshots, ingests and other references that are not imported.
    pub(super) left: usize,
}

/// Reads all namespaces; returns errors of single namespaces beside them. `FailedPrecondition` if it is not
/// containerd's database.
pub(super) fn read(database: Database<'_>) -> Result<(Vec<NamespaceRecords>, Vec<String>)> {
    let Some(root) = database.root().bucket(SCHEMA)? else {
        return Err(Error::failed_precondition("the database is not containerd's: it has no schema v1"));
    };
    let mut broken = Vec::new();
    let buckets = named(root, "namespace", &mut broken);
    Ok((whole(buckets, "namespace", &mut broken, namespace), broken))
}

fn namespace(name: &str, bucket: Bucket<'_>) -> Result<NamespaceRecords> {
    let name = Namespace::new(name)?;
    let (mut broken, mut lost) = (Vec::new(), Vec::new());
    let mut each = |path: &[&str], what: &str| {
        let found = path.iter().try_fold(Some(bucket), |found, part| {
            Ok::<_, Error>(found.map(|bucket| bucket.bucket(part)).transpose()?.flatten())
        });
        match found {
            Ok(found) => found.map(|bucket| named(bucket, what, &mut broken)).unwrap_or_default(),
            Err(error) => {
                broken.push(format!("all of kind {what}: {}", error.chain()));
                Vec::new()
            }
        }
    };
    let images = each(&["images"], "image");
    let blobs = each(&["content", "blob"], "blob");
    let leases = each(&["leases"], "lease");
    let containers = each(&["containers"], "container").len();
    let labels = labels(bucket, "labels").unwrap_or_else(|error| {
        broken.push(error.chain());
        Labels::new()
    });
    Ok(NamespaceRecords {
        name,
        labels,
        images: whole(images, "image", &mut broken, image),
        blobs: whole(blobs, "blob", &mut broken, |digest, bucket| {
            blob(digest, bucket).inspect_err(|_| lost.extend(digest.parse::<Digest>()))
        }),
        leases: whole(leases, "lease", &mut broken, lease),
        containers,
        broken,
        lost,
    })
}

/// The subbuckets, up to a damaged page, which is reported.
fn named<'a>(bucket: Bucket<'a>, what: &str, broken: &mut Vec<String>) -> Vec<(String, Bucket<'a>)> {
    let mut found = Vec::new();
    let walked = bucket.each(|key, entry| {
        let Entry::Bucket(record) = entry else { return Ok(()) };
        match text(key) {
            Ok(key) => found.push((key.to_owned(), record)),
            Err(error) => broken.push(format!("{what}: {}", error.chain())),
        }
        Ok(())
    });
    if let Err(error) = walked {
        broken.push(format!("all of kind {what} behind the first {}: {}", found.len(), error.chain()));
    }
    found
}

/// The readable records; others are reported.
fn whole<T>(
    records: Vec<(String, Bucket<'_>)>,
    what: &str,
    broken: &mut Vec<String>,
    mut read: impl FnMut(&str, Bucket<'_>) -> Result<T>,
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

/// Without an update time, a record was not updated since its creation.
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

/// Version, seconds since year 1, nanoseconds, zone offset.
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
        // 2026-11-26T02:29:09.585178442Z, in UTC.
        let mut bytes = vec![1];
        bytes.extend((UNIX_EPOCH + 1_795_660_149).to_be_bytes());
        bytes.extend(585_178_442_u32.to_be_bytes());
        bytes.extend((-1_i16).to_be_bytes());
        assert_eq!(time(&bytes).unwrap(), Timestamp { seconds: 1_795_660_149, nanos: 585_178_442 });
        for len in 0..13 {
            assert!(time(&bytes[..len]).is_err(), "{len}");
        }
    }

    /// An inline bucket.
    fn inline(entries: &[Pair]) -> Vec<u8> {
        [&[0; 16][..], &leaf(0, entries)].concat()
    }

    /// Key, value or bucket, and whether it is a bucket.
    type Pair = (&'static [u8], Vec<u8>, bool);

    fn leaf(id: u64, entries: &[Pair]) -> Vec<u8> {
        let count = u16::try_from(entries.len()).unwrap();
        let mut page = [&id.to_le_bytes()[..], &[2, 0], &count.to_le_bytes(), &[0; 4]].concat();
        let mut pos = entries.len() * 16;
        for (key, value, is_bucket) in entries {
            let numbers = [usize::from(*is_bucket), pos, key.len(), value.len()];
            page.extend(numbers.map(|number| u32::try_from(number).unwrap().to_le_bytes()).concat());
            pos = pos + key.len() + value.len() - 16;
        }
        entries.iter().for_each(|(key, value, _)| page.extend([*key, &value[..]].concat()));
        page
    }

    /// A database with one meta page and everything else on one page.
    fn file(entries: &[Pair]) -> Vec<u8> {
        const PAGE_SIZE: usize = 4096;
        let mut meta = [0xED0C_DAED_u32, 2, 4096, 0].map(u32::to_le_bytes).concat();
        meta.extend([1_u64, 0, 0, 2, 1].map(u64::to_le_bytes).concat());
        let sum = meta.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let mut file = [&[0; 8][..], &[4, 0], &[0; 6], &meta, &sum.to_le_bytes()].concat();
        file.resize(PAGE_SIZE, 0);
        file.extend(leaf(1, entries));
        file.resize(2 * PAGE_SIZE, 0);
        file
    }

    #[test]
    fn broken_containerd_records_are_named_and_the_rest_is_read() {
        let nowhere = || [&77_u64.to_le_bytes()[..], &[0; 8]].concat();
        let lease = || inline(&[(b"held", inline(&[]), true)]);
        let digest = "sha256:0000000000000000000000000000000000000000000000000000000000000001";
        let blobs = inline(&[(digest.as_bytes(), inline(&[(b"size", vec![0x80], false)]), true)]);
        let labels = inline(&[(b"key", vec![0xff], false)]);
        let one = inline(&[
            (b"content", inline(&[(b"blob", blobs, true)]), true),
            (b"labels", labels, true),
            (b"leases", lease(), true),
        ]);
        let two = inline(&[(b"images", nowhere(), true), (b"leases", lease(), true)]);
        let namespaces = inline(&[
            (b"a page that is not there", nowhere(), true),
            (b"not a name!", inline(&[]), true),
            (b"one", one, true),
            (b"two", two, true),
            (b"\xff", inline(&[]), true),
        ]);
        let file = file(&[(b"v1", namespaces, true)]);
        let (read, broken) = read(Database::open(&file).unwrap()).unwrap();

        let words = |broken: &[String], expected: &[&str]| {
            assert_eq!(broken.len(), expected.len(), "{broken:?}");
            let has =
                |(told, word): (&String, &&str)| assert!(told.contains(*word), "{told:?} has no {word:?}");
            broken.iter().zip(expected).for_each(has);
        };
        words(&broken, &["[255] is no text", "namespace a page", "namespace not a name!"]);
        let names: Vec<_> = read.iter().map(|namespace| namespace.name.to_string()).collect();
        assert_eq!(names, ["one", "two"]);
        assert!(read.iter().all(|namespace| namespace.leases.len() == 1));
        words(&read[0].broken, &["labels", &format!("blob {digest}: its size is cut off")]);
        assert_eq!(read[0].lost, [digest.parse().unwrap()]);
        words(&read[1].broken, &["all of kind image behind the first 0: page 77 of the database"]);
    }
}
