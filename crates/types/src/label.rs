//! Labels: small key-value pairs that clients and plugins attach to records.

use std::collections::BTreeMap;

use crate::{Error, Result};

pub type Labels = BTreeMap<String, String>;

/// The most bytes of key and value together (containerd's `pkg/labels`).
pub const LABEL_LEN_MAX: usize = 4096;

/// containerd's labels for garbage collection. They are names on disk and on the wire: a misspelt label retains
/// nothing, and the collector deletes what it was to retain. The module documentation of the collector in `metadata`
/// explains them.
pub mod gc {
    /// The labelled object is a root: it is never collected. By custom the value is a time. The key may have a suffix.
    pub const ROOT: &str = "containerd.io/gc.root";
    /// The labelled object is a root until this time (RFC 3339), and none from then on.
    pub const EXPIRE: &str = "containerd.io/gc.expire";
    /// On a lease: it retains its resources, but not what their labels reference.
    pub const FLAT: &str = "containerd.io/gc.flat";

    /// The prefix of reference labels; the kind of the referenced object follows. The labelled object retains the
    /// object that the value names.
    pub const REFERENCE: &str = "containerd.io/gc.ref.";
    /// References the blob whose digest is the value. The key may have a suffix that begins with `.` or `/`.
    pub const CONTENT: &str = "containerd.io/gc.ref.content";
    /// References the snapshot whose key is the value. The name of the snapshotter follows in the label's key.
    pub const SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.";

    /// The prefix of back references; the kind of the referenced object follows. The labelled object is retained by the
    /// object that the value names.
    pub const BACK_REFERENCE: &str = "containerd.io/gc.bref.";
    /// The labelled object is retained by the container that the value names.
    pub const OF_CONTAINER: &str = "containerd.io/gc.bref.container";
    /// The labelled object is retained by the image that the value names.
    pub const OF_IMAGE: &str = "containerd.io/gc.bref.image";
}

/// Checks that every label has a key, and the length of each. `InvalidArgument` otherwise, with containerd's text.
pub fn check(labels: &Labels) -> Result<()> {
    for (key, value) in labels {
        if key.is_empty() {
            return Err(Error::invalid_argument(format!("label with value {value:?}: it must have a key")));
        }
        let len = key.len() + value.len();
        if len > LABEL_LEN_MAX {
            let start: String = key.chars().take(64).collect();
            return Err(Error::invalid_argument(format!(
                "label key and value length ({len} bytes) greater than maximum size ({LABEL_LEN_MAX} bytes), key: {start}"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_may_fill_the_limit_but_not_pass_it() {
        let label = |len: usize| Labels::from([("k".to_owned(), "v".repeat(len - 1))]);
        assert!(check(&label(LABEL_LEN_MAX)).is_ok());
        assert!(check(&label(LABEL_LEN_MAX + 1)).is_err());
    }

    #[test]
    fn gc_reference_labels_begin_with_their_prefix() {
        assert!([gc::CONTENT, gc::SNAPSHOT].iter().all(|key| key.starts_with(gc::REFERENCE)));
        assert!([gc::OF_CONTAINER, gc::OF_IMAGE].iter().all(|key| key.starts_with(gc::BACK_REFERENCE)));
    }

    #[test]
    fn a_label_has_a_key() {
        assert!(check(&Labels::from([(String::new(), "v".to_owned())])).is_err());
        assert!(check(&Labels::from([("k".to_owned(), String::new())])).is_ok());
    }
}
