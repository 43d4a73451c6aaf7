//! Labels: small key-value pairs that users and plugins hang on records.

use std::collections::BTreeMap;

use crate::{Error, Result};

pub type Labels = BTreeMap<String, String>;

/// containerd's limit for key and value together (`pkg/labels`).
pub const LABEL_LEN_MAX: usize = 4096;

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
    fn a_label_has_a_key() {
        assert!(check(&Labels::from([(String::new(), "v".to_owned())])).is_err());
        assert!(check(&Labels::from([("k".to_owned(), String::new())])).is_ok());
    }
}
