//! Conversions between the daemon's types and messages of the API.

use api::grpc::encoded::Fields;
use api::grpc::types as wire;
use prost_types::{Any, FieldMask};
use types::{Descriptor, Error, Mount, Opaque, Platform, Result, Timestamp};

pub(crate) fn any(opaque: Opaque) -> Any {
    Any { type_url: opaque.type_url, value: opaque.value }
}

pub(crate) fn opaque(any: Any) -> Opaque {
    Opaque { type_url: any.type_url, value: any.value }
}

/// Always `Some`: clients take a message without a time for damaged.
#[allow(clippy::unnecessary_wraps, reason = "fields of messages are optional")]
pub(crate) fn timestamp(timestamp: Timestamp) -> Option<prost_types::Timestamp> {
    let nanos = i32::try_from(timestamp.nanos).unwrap_or(0);
    Some(prost_types::Timestamp { seconds: timestamp.seconds, nanos })
}

/// Encodes what [`timestamp`] would return.
pub(crate) fn encode_timestamp(timestamp: Timestamp, number: u32, to: &mut Fields<'_>) {
    to.message(number, |to| {
        to.integer(1, timestamp.seconds);
        to.integer(2, i64::from(i32::try_from(timestamp.nanos).unwrap_or(0)));
    });
}

pub(crate) fn own_timestamp(timestamp: prost_types::Timestamp) -> Timestamp {
    Timestamp { seconds: timestamp.seconds, nanos: u32::try_from(timestamp.nanos).unwrap_or(0) }
}

pub(crate) fn paths(mask: Option<FieldMask>) -> Vec<String> {
    mask.map(|mask| mask.paths).unwrap_or_default()
}

/// Sizes and offsets are signed in messages.
pub(crate) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

pub(crate) fn descriptor(descriptor: &Descriptor) -> wire::Descriptor {
    wire::Descriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        size: signed(descriptor.size),
        annotations: descriptor.annotations.clone(),
    }
}

/// `InvalidArgument` for an invalid digest or a negative size.
pub(crate) fn own_descriptor(descriptor: wire::Descriptor) -> Result<Descriptor> {
    let wire::Descriptor { media_type, digest, size, annotations } = descriptor;
    let size = u64::try_from(size)
        .map_err(|_| Error::invalid_argument(format!("descriptor of {digest}: size {size} is below zero")))?;
    Ok(Descriptor { annotations, ..Descriptor::new(media_type, digest.parse()?, size) })
}

pub(crate) fn mounts(mounts: Vec<Mount>) -> Vec<wire::Mount> {
    let mount = |mount: Mount| wire::Mount {
        r#type: mount.kind,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    };
    mounts.into_iter().map(mount).collect()
}

pub(crate) fn own_mounts(mounts: Vec<wire::Mount>) -> Vec<Mount> {
    let mount = |mount: wire::Mount| Mount {
        kind: mount.r#type,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    };
    mounts.into_iter().map(mount).collect()
}

pub(crate) fn platform(platform: Platform) -> wire::Platform {
    let Platform { os, architecture, variant, os_version, os_features, .. } = platform;
    wire::Platform { os, architecture, variant, os_version, os_features }
}

#[cfg(test)]
pub(super) mod tests {
    use kv::{Reader, StoredLabels, Writer};
    use types::Labels;

    /// Labels in the encoding of stored records.
    pub(in crate::services) struct Stored(Vec<u8>);

    impl Stored {
        pub(in crate::services) fn of(labels: &Labels) -> Stored {
            let mut to = Writer::new();
            to.labels(labels);
            Stored(to.into_bytes())
        }

        pub(in crate::services) fn labels(&self) -> StoredLabels<'_> {
            Reader::new(&self.0).stored_labels().unwrap()
        }
    }
}
