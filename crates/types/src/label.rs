//! Labels: small key-value pairs that users and plugins hang on records.

use std::collections::BTreeMap;

use crate::{Error, Result};

pub type Labels = BTreeMap<String, String>;

/// containerd's limit for key and value together (`pkg/labels`).
pub const LABEL_LEN_MAX: usize = 4096;

/// containerd's labels by which its collector knows what to keep. They are names on disk and on the wire: one that is
/// misspelt keeps nothing, and what it should have kept is deleted. The collector's page of them all is in `metadata`.
pub mod gc {
    /// Is never collected, whatever else is said of it; the value is a time by custom. More may follow in the key.
    pub const ROOT: &str = "containerd.io/gc.root";
    /// RFC 3339: until then it is a root, and afterwards it is not.
    pub const EXPIRE: &str = "containerd.io/gc.expire";
    /// On a lease: what labels of its resources refer to is not kept by it.
    pub const FLAT: &str = "containerd.io/gc.flat";

    /// How the names of references begin: a kind follows. What bears one keeps what its value names.
    pub const REFERENCE: &str = "containerd.io/gc.ref.";
    /// Keeps the blob with the digest that is its value, alone or followed by `.` or `/` and anything.
    pub const CONTENT: &str = "containerd.io/gc.ref.content";
    /// Keeps the snapshot that its value names: the name of a snapshotter follows.
    pub const SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.";

    /// How the names of references the other way begin: a kind follows. What bears one is kept by what its value names.
    pub const BACK_REFERENCE: &str = "containerd.io/gc.bref.";
    /// Is kept by the container that its value names.
    pub const OF_CONTAINER: &str = "containerd.io/gc.bref.container";
    /// Is kept by the image that its value names.
    pub const OF_IMAGE: &str = "containerd.io/gc.bref.image";
}

/// Checks that every label has a key, and the size of each.
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
    fn references_begin_as_their_families_do() {
        assert!([gc::CONTENT, gc::SNAPSHOT].iter().all(|key| key.starts_with(gc::REFERENCE)));
        assert!([gc::OF_CONTAINER, gc::OF_IMAGE].iter().all(|key| key.starts_with(gc::BACK_REFERENCE)));
    }

    #[test]
    fn a_label_has_a_key() {
        assert!(check(&Labels::from([(String::new(), "v".to_owned())])).is_err());
        assert!(check(&Labels::from([("k".to_owned(), String::new())])).is_ok());
    }
}
