//! Where blobs came from, as a label of theirs says: `containerd.io/distribution.source.HOST` holds the
//! repositories of that host that have the blob, with commas between them. containerd's clients write and read
//! it too. A push to the same host asks for the blob to be mounted from there, and sends nothing.

use metadata::{Caller, Metadata};
use types::{Digest, ErrorKind, Labels, Reference, Result};

const LABEL: &str = "containerd.io/distribution.source.";

/// Repositories of one host that a blob remembers. The last one that had it is as good as those before.
const REPOSITORIES_MAX: usize = 16;

/// Where a blob can be had by its digest, the place that had it last first.
pub(crate) fn references(labels: &Labels, digest: &Digest) -> Vec<Reference> {
    let places = labels.iter().filter_map(|(key, value)| Some((key.strip_prefix(LABEL)?, value)));
    let named = places.flat_map(|(host, repositories)| {
        let repositories = repositories.rsplit(',');
        repositories.map(move |repository| format!("{host}/{repository}@{digest}"))
    });
    // Labels are what clients write; what is no name leads nowhere.
    named.filter_map(|name| name.parse().ok()).collect()
}

/// A repository of a registry.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    host: &'a str,
    repository: &'a str,
}

impl<'a> Source<'a> {
    pub(crate) fn of(reference: &'a Reference) -> Source<'a> {
        Source { host: reference.host(), repository: reference.repository() }
    }

    fn key(self) -> String {
        format!("{LABEL}{}", self.host)
    }

    /// For a blob that is new.
    pub(crate) fn label(self) -> Labels {
        Labels::from([(self.key(), self.repository.to_owned())])
    }

    /// Adds the repository to those that a blob remembers. A blob that is gone remembers nothing.
    pub(crate) fn note(self, metadata: &Metadata, caller: &Caller, digest: &Digest) -> Result<()> {
        let content = metadata.content(caller);
        let labels = match content.info(digest) {
            Err(error) if error.is(ErrorKind::NotFound) => return Ok(()),
            info => info?.labels,
        };
        let key = self.key();
        let known = labels.get(&key).map(String::as_str).unwrap_or_default();
        let Some(value) = self.joined(known) else { return Ok(()) };
        let labels = Labels::from([(key.clone(), value)]);
        match content.update(digest, &labels, &[format!("labels.{key}")]) {
            Err(error) if error.is(ErrorKind::NotFound) => Ok(()),
            other => other.map(drop),
        }
    }

    /// The label with this repository in it; none if it is there already.
    fn joined(self, known: &str) -> Option<String> {
        let known: Vec<&str> = known.split(',').filter(|known| !known.is_empty()).collect();
        if known.contains(&self.repository) {
            return None;
        }
        let oldest = known.len().saturating_sub(REPOSITORIES_MAX - 1);
        let kept = known[oldest..].iter().copied().chain([self.repository]);
        Some(kept.collect::<Vec<_>>().join(","))
    }

    /// Other repositories of this host that have the blob, the last one first.
    pub(crate) fn others(self, labels: &Labels) -> Vec<String> {
        let known = labels.get(&self.key()).map(String::as_str).unwrap_or_default();
        let others = known.rsplit(',').filter(|known| !known.is_empty() && *known != self.repository);
        others.map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_remembered_once_and_not_without_end() {
        let source = |repository| Source { host: "r.example", repository };
        assert_eq!(source("a").joined("").as_deref(), Some("a"));
        assert_eq!(source("b").joined("a").as_deref(), Some("a,b"));
        assert_eq!(source("b").joined("a,b"), None);
        let names: Vec<String> = (0..40).map(|at| at.to_string()).collect();
        let many = names.iter().fold(String::new(), |known, name| source(name).joined(&known).unwrap());
        assert_eq!(many.split(',').count(), REPOSITORIES_MAX);
        assert!(many.ends_with(",39"), "{many}");
    }

    #[test]
    fn others_are_told_last_first() {
        let source = Source { host: "r.example", repository: "b" };
        let labels = Labels::from([
            ("containerd.io/distribution.source.r.example".to_owned(), "a,b,c".to_owned()),
            ("containerd.io/distribution.source.other".to_owned(), "x".to_owned()),
        ]);
        assert_eq!(source.others(&labels), ["c", "a"]);
        assert!(source.others(&Labels::new()).is_empty());
    }
}
