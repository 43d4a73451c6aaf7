//! Field masks: which fields of a record an update replaces.
//!
//! A mask is a list of paths; `labels` replaces the map, `labels.<key>` one entry of it, where the key is all that
//! follows the first dot. Each record defines what an empty list replaces. An entry that is missing or empty in the
//! update is deleted.

use std::collections::BTreeMap;

use types::{Error, Labels, Result, label};

/// Splits a path: `("labels", Some("a.b"))` for `labels.a.b`; no key for a path without a dot.
pub(crate) fn split(path: &str) -> (&str, Option<&str>) {
    match path.split_once('.') {
        Some((field, key)) => (field, Some(key)),
        None => (path, None),
    }
}

/// The error for a field that cannot be updated, in containerd's words.
pub(crate) fn refused(path: &str, whose: &str) -> Error {
    Error::invalid_argument(format!("cannot update {path:?} field on {whose}"))
}

/// Replaces the map, or the entry at `key`.
pub(crate) fn merge<T: Clone>(
    current: &mut BTreeMap<String, T>,
    update: &BTreeMap<String, T>,
    key: Option<&str>,
) {
    match key {
        None => *current = update.clone(),
        Some(key) => match update.get(key) {
            Some(value) => drop(current.insert(key.to_owned(), value.clone())),
            None => drop(current.remove(key)),
        },
    }
}

/// Updates labels: the entries that `paths` name (`labels`, `labels.<key>`), or all without paths. `whose` is
/// containerd's name for the labels, for errors.
pub(crate) fn labels(
    whose: &str,
    mut current: Labels,
    update: &Labels,
    paths: &[String],
    refused: impl Fn(&str) -> Error,
) -> Result<Labels> {
    if paths.is_empty() {
        current.clone_from(update);
    }
    for path in paths {
        match split(path) {
            ("labels", key) => merge(&mut current, update, key),
            _ => return Err(refused(path)),
        }
    }
    label::check(&current).map_err(|error| error.context(whose))?;
    Ok(without_empty(current))
}

/// Drops labels with an empty value, which are not stored.
pub(crate) fn without_empty(mut labels: Labels) -> Labels {
    labels.retain(|_, value| !value.is_empty());
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_replaces_one_entry_or_all() {
        let map = |entries: &[(&str, &str)]| -> Labels {
            entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let update = map(&[("a.b", "2"), ("c", "3")]);
        for (path, expected) in [
            ("labels", map(&[("a.b", "2"), ("c", "3")])),
            ("labels.a.b", map(&[("a.b", "2"), ("x", "1")])),
            ("labels.x", map(&[])),
        ] {
            let mut current = map(&[("x", "1")]);
            merge(&mut current, &update, split(path).1);
            assert_eq!(current, expected, "{path}");
        }
    }
}
