//! The sources of a blob, in labels: `containerd.io/distribution.source.HOST` holds the repositories of that host
//! that have the blob, separated by commas, as containerd and its clients write and read it. A push to the same host
//! asks the registry to mount the blob from there instead of uploading it.
//!
//! HOST has no port, so a label alone cannot lead to a registry on a port other than the default: the names of images
//! supply it. Labels of earlier versions of Hoist include the port, and are read as well.

use std::collections::BTreeSet;

use metadata::{Caller, Metadata};
use types::{Digest, Labels, Reference, Result, UnlessGone};

const LABEL: &str = "containerd.io/distribution.source.";

/// References by digest under which a blob can be fetched: from registries that images are named after, or else from
/// the label's host.
pub(crate) fn references(labels: &Labels, digest: &Digest, registries: &BTreeSet<String>) -> Vec<Reference> {
    let places = labels.iter().filter_map(|(key, value)| Some((key.strip_prefix(LABEL)?, value)));
    let named = places.flat_map(|(host, repositories)| {
        let known = registries.iter().map(String::as_str).filter(move |known| without_port(known) == host);
        let itself = (!registries.contains(host)).then_some(host);
        known.chain(itself).flat_map(move |registry| {
            repositories.split(',').filter_map(move |repository| {
                // Clients write labels, so one may not parse as a name of that registry.
                let named: Reference = format!("{registry}/{repository}@{digest}").parse().ok()?;
                (named.host() == registry).then_some(named)
            })
        })
    });
    named.collect()
}

/// `::1` for `[::1]:5000`.
fn without_port(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    }
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
        format!("{LABEL}{}", without_port(self.host))
    }

    /// The label of a new blob.
    pub(crate) fn label(self) -> Labels {
        Labels::from([(self.key(), self.repository.to_owned())])
    }

    /// Adds the repository to a blob's label, if the blob exists.
    pub(crate) fn note(self, metadata: &Metadata, caller: &Caller, digest: &Digest) -> Result<()> {
        let content = metadata.content(caller);
        let Some(blob) = content.info(digest).unless_gone()? else { return Ok(()) };
        let key = self.key();
        let known = blob.labels.get(&key).map(String::as_str).unwrap_or_default();
        let Some(value) = self.joined(known) else { return Ok(()) };
        let labels = Labels::from([(key.clone(), value)]);
        content.update(digest, &labels, &[format!("labels.{key}")]).unless_gone().map(drop)
    }

    /// The label's value with this repository added, in alphabetical order; `None` if it would not change, or would
    /// exceed the length limit of labels.
    fn joined(self, known: &str) -> Option<String> {
        let all: BTreeSet<&str> = repositories(known).chain([self.repository]).collect();
        let value = all.into_iter().collect::<Vec<_>>().join(",");
        let fits = self.key().len() + value.len() <= types::label::LABEL_LEN_MAX;
        (fits && value != known).then_some(value)
    }

    /// Other repositories of this host that have the blob, those with the longest common path first.
    pub(crate) fn others(self, labels: &Labels) -> Vec<String> {
        let with_port = format!("{LABEL}{}", self.host);
        let known = [self.key(), with_port].into_iter().filter_map(|key| labels.get(&key));
        let others: BTreeSet<&str> = known.flat_map(|known| repositories(known)).collect();
        let mut others: Vec<&str> = others.into_iter().filter(|other| *other != self.repository).collect();
        // Of equals the alphabetically last, as containerd does.
        others.reverse();
        others.sort_by_key(|other| std::cmp::Reverse(self.shared_with(other)));
        others.into_iter().map(str::to_owned).collect()
    }

    /// How many leading path components both repositories share.
    fn shared_with(self, other: &str) -> usize {
        let both = self.repository.split('/').zip(other.split('/'));
        both.take_while(|(own, other)| own == other).count()
    }
}

fn repositories(label: &str) -> impl Iterator<Item = &str> {
    label.split(',').filter(|repository| !repository.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source<'a>(host: &'a str, repository: &'a str) -> Source<'a> {
        Source { host, repository }
    }

    fn labels(entries: &[(&str, &str)]) -> Labels {
        entries.iter().map(|(host, value)| (format!("{LABEL}{host}"), (*value).to_owned())).collect()
    }

    #[test]
    fn the_label_is_named_after_the_host_alone() {
        for (host, named) in [
            ("r.example", "r.example"),
            ("localhost:5000", "localhost"),
            ("[::1]:5000", "::1"),
            ("[::1]", "::1"),
        ] {
            assert_eq!(source(host, "a").label(), labels(&[(named, "a")]), "{host}");
        }
    }

    #[test]
    fn repositories_are_remembered_once_in_order_and_as_long_as_there_is_room() {
        let joined = |known: &str, repository| source("r.example", repository).joined(known);
        assert_eq!(joined("", "a").as_deref(), Some("a"));
        assert_eq!(joined("b", "a").as_deref(), Some("a,b"));
        assert_eq!(joined("a,b", "b"), None);
        assert_eq!(joined("b,a", "b").as_deref(), Some("a,b"), "as earlier versions wrote it");
        let long = "x".repeat(types::label::LABEL_LEN_MAX - LABEL.len() - "r.example".len() - 2);
        assert_eq!(joined(&long, "a"), Some(format!("a,{long}")));
        assert_eq!(joined(&long, "ab"), None);
    }

    #[test]
    fn others_are_told_the_nearest_first() {
        let of = labels(&[("r.example", "a/b/c,a/x,b"), ("r.example:5000", "a/b/old,c"), ("other", "x")]);
        let others = |host, repository| source(host, repository).others(&of);
        assert_eq!(others("r.example", "a/b/d"), ["a/b/c", "a/x", "b"]);
        assert_eq!(others("r.example", "a/b/c"), ["a/x", "b"]);
        assert_eq!(others("r.example", "none"), ["b", "a/x", "a/b/c"]);
        assert_eq!(others("r.example:5000", "a/b/d"), ["a/b/old", "a/b/c", "a/x", "c", "b"]);
        assert!(source("r.example", "a").others(&Labels::new()).is_empty());
    }

    #[test]
    fn a_label_and_the_names_of_images_lead_to_registries() {
        let digest = Digest::of(b"");
        let registries = BTreeSet::from(["localhost:5000", "localhost:5001", "r.example"].map(str::to_owned));
        let found = |entries: &[(&str, &str)]| -> Vec<String> {
            let found = references(&labels(entries), &digest, &registries);
            found.iter().map(Reference::name).collect()
        };
        assert_eq!(found(&[("localhost", "a")]), ["localhost:5000/a", "localhost:5001/a", "localhost/a"]);
        assert_eq!(found(&[("r.example", "a,b")]), ["r.example/a", "r.example/b"]);
        assert_eq!(found(&[("localhost:5002", "a")]), ["localhost:5002/a"], "as earlier versions wrote it");
        assert!(found(&[("other", "a"), ("r.example", "A")]).is_empty());
    }
}
