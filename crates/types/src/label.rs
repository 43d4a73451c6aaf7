//! Labels: small key-value pairs that users and plugins hang on records.

use std::collections::BTreeMap;

use crate::{Error, Result};

pub type Labels = BTreeMap<String, String>;

/// containerd's limit for key and value together (`pkg/labels`).
pub const LABEL_LEN_MAX: usize = 4096;

/// Checks the size of every label.
pub fn check(labels: &Labels) -> Result<()> {
    for (key, value) in labels {
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
}
