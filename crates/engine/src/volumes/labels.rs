//! Labels of volumes, and the filters of volume lists.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind as IoErrorKind};
use std::path::Path;

use stdx::{Durable, replace};
use types::{Context, Error, Result};

use super::read_json;
use crate::filter::{FilterWord, LabelFilter};

/// File beside the volume's data.
const LABELS: &str = "labels.json";

/// Longest labels of one volume, in bytes.
const LABELS_LEN_MAX: usize = 64 << 10;

pub(super) type VolumeLabels = BTreeMap<String, String>;

/// Validates the requested labels of a volume.
pub(super) fn check(labels: &VolumeLabels) -> Result<()> {
    let len: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    if len > LABELS_LEN_MAX {
        return Err(Error::invalid_argument(format!(
            "labels of {len} bytes are too many for a volume, which may have {LABELS_LEN_MAX}"
        )));
    }
    Ok(())
}

/// Writes the labels of a volume that has no data yet.
pub(super) fn write(directory: &Path, labels: &VolumeLabels) -> io::Result<()> {
    let path = directory.join(LABELS);
    if labels.is_empty() {
        // Left by a creation that was cut off.
        return match fs::remove_file(path) {
            Err(error) if error.kind() != IoErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    }
    replace(&path, &serde_json::to_vec(labels).expect("plain data"), 0o644, Durable::Now)
}

pub(super) fn read(directory: &Path) -> Result<VolumeLabels> {
    let path = directory.join(LABELS);
    match path.try_exists().context(|| format!("look for {}", path.display()))? {
        true => read_json(&path),
        false => Ok(VolumeLabels::new()),
    }
}

/// The parsed filters of one call. Values of the same key are alternatives, except labels, which must all match.
#[derive(Default)]
pub(super) struct Filter {
    dangling: Option<bool>,
    drivers: Vec<String>,
    labels: LabelFilter,
    names: Vec<String>,
}

impl Filter {
    pub(super) const OF_A_LIST: &[&str] = &["dangling", "driver", "label", "label!", "name"];
    pub(super) const OF_A_PRUNE: &[&str] = &["label", "label!"];

    pub(super) fn parse(texts: &[String], known: &[&str]) -> Result<Filter> {
        let mut filter = Filter::default();
        for text in texts {
            let word = FilterWord::read(text, known)?;
            match (word.key, word.value) {
                ("dangling", "true" | "1") => filter.dangling = Some(true),
                ("dangling", "false" | "0") => filter.dangling = Some(false),
                ("dangling", _) => return Err(word.bad("expected true or false")),
                ("driver", name) => filter.drivers.push(name.to_owned()),
                ("name", part) => filter.names.push(part.to_owned()),
                _ => filter.labels.add(&word),
            }
        }
        Ok(filter)
    }

    pub(super) fn fits(&self, name: &str, labels: &VolumeLabels, is_used: bool) -> bool {
        self.dangling.is_none_or(|wanted| wanted != is_used)
            && (self.drivers.is_empty() || self.drivers.iter().any(|driver| driver == "local"))
            && (self.names.is_empty() || self.names.iter().any(|part| name.contains(part.as_str())))
            && self.labels.fits(labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> VolumeLabels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn filters_look_at_names_labels_and_users() {
        let fits = |filters: &[&str]| {
            let filters: Vec<String> = filters.iter().map(ToString::to_string).collect();
            let filter = Filter::parse(&filters, Filter::OF_A_LIST).unwrap();
            (filter.fits("data", &labels(&[("tier", "db")]), true), filter.fits("old", &labels(&[]), false))
        };
        assert_eq!(fits(&["dangling=true"]), (false, true));
        assert_eq!(fits(&["dangling=false"]), (true, false));
        assert_eq!(fits(&["name=at"]), (true, false));
        assert_eq!(fits(&["name=at", "name=ol"]), (true, true));
        assert_eq!(fits(&["label=tier"]), (true, false));
        assert_eq!(fits(&["label!=tier=db"]), (false, true));
        assert_eq!(fits(&["driver=local"]), (true, true));
        assert_eq!(fits(&["driver=nfs"]), (false, false));
        for bad in ["size=1", "dangling", "dangling=x"] {
            assert!(Filter::parse(&[bad.to_owned()], Filter::OF_A_LIST).is_err(), "{bad}");
        }
        assert!(Filter::parse(&["name=x".to_owned()], Filter::OF_A_PRUNE).is_err());
    }

    #[test]
    fn labels_are_kept_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), labels(&[]));
        let some = labels(&[("tier", "db"), ("quoted", "a \"b\"")]);
        write(dir.path(), &some).unwrap();
        assert_eq!(read(dir.path()).unwrap(), some);
        write(dir.path(), &labels(&[])).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        check(&some).unwrap();
        assert!(check(&labels(&[("large", &"x".repeat(LABELS_LEN_MAX))])).is_err());
    }
}
