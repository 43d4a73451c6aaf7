//! Labels that make references, and labels that bound an object's life.
//!
//! | label | on | meaning |
//! |---|---|---|
//! | `containerd.io/gc.root`, with anything behind it | content, snapshots, mounts | is a root |
//! | `containerd.io/gc.ref.content[.x or /x]` | anything | keeps the blob with this digest |
//! | `containerd.io/gc.ref.snapshot.<snapshotter>[/x]` | anything | keeps the snapshot of this name |
//! | `containerd.io/gc.ref.image[.x or /x]` | anything | keeps the image of this name |
//! | `containerd.io/gc.ref.mount[.x or /x]` | anything | keeps the activation of this name |
//! | `containerd.io/gc.ref.stream[.x or /x]` | anything | keeps the stream of this name open, when its lease is over |
//! | `containerd.io/gc.bref.{container,content,image}[.x or /x]`, `….snapshot.<snapshotter>[/x]` | content, snapshots, images, mounts | is kept by that object |
//! | `containerd.io/gc.expire` | leases, images, content, snapshots, mounts | RFC 3339; until then it is a root, afterwards it is not |
//! | `containerd.io/gc.flat` | leases | keeps what it lists with targets and parents, not what labels of that refer to |
//! | `containerd.io/gc.cond.…` | content, images, snapshots | see [`super::condition`] |

use types::label::gc::{BACK_REFERENCE, EXPIRE, REFERENCE, ROOT};
use types::{ContainerId, Digest, Labels, Timestamp};

use super::graph::Node;

/// The objects that one with these labels keeps.
pub(crate) fn references(labels: &Labels) -> Vec<Node> {
    below(labels, REFERENCE).filter_map(|(what, value)| node(what, value)).collect()
}

/// Whether a label refers to this blob.
pub(crate) fn is_of_content(key: &str, value: &str, digest: &Digest) -> bool {
    let what = key.strip_prefix(REFERENCE).and_then(|what| node(what, value));
    what.is_some_and(|what| what == Node::Content(digest.clone()))
}

/// The objects that keep one with these labels.
pub(crate) fn back_references(labels: &Labels) -> Vec<Node> {
    below(labels, BACK_REFERENCE)
        .filter_map(|(what, value)| match of_kind(what, "container") {
            true => ContainerId::new(value).ok().map(Node::Container),
            false => node(what, value),
        })
        .collect()
}

/// Whether a label makes the object a root. As in containerd 2.x, its key may have a suffix.
pub(crate) fn is_root(labels: &Labels) -> bool {
    below(labels, ROOT).next().is_some()
}

/// When the object expires. `None` without the label, or if its value is not a time.
pub(crate) fn expiry(labels: &Labels) -> Option<Timestamp> {
    labels.get(EXPIRE)?.parse().ok()
}

/// Whether a label bounds the life of its bearer.
pub(crate) fn is_bound(key: &str) -> bool {
    key == EXPIRE || key.starts_with(BACK_REFERENCE)
}

pub(super) fn below<'a>(
    labels: &'a Labels,
    prefix: &'static str,
) -> impl Iterator<Item = (&'a str, &'a str)> {
    labels
        .range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded))
        .map_while(move |(key, value)| Some((key.strip_prefix(prefix)?, value.as_str())))
}

fn node(what: &str, value: &str) -> Option<Node> {
    if let Some(rest) = what.strip_prefix("snapshot.") {
        let snapshotter = rest.split('/').next().filter(|name| !name.is_empty())?;
        return Some(Node::snapshot(snapshotter, value));
    }
    if of_kind(what, "content") {
        return value.parse().ok().map(Node::Content);
    }
    if of_kind(what, "mount") {
        return Some(Node::Mount(value.to_owned()));
    }
    if of_kind(what, "stream") {
        return Some(Node::Stream(value.to_owned()));
    }
    of_kind(what, "image").then(|| Node::Image(value.to_owned()))
}

/// Whether `what` is `kind`, alone or followed by `.` or `/`.
fn of_kind(what: &str, kind: &str) -> bool {
    what.strip_prefix(kind).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '/']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(key: &str, value: &str, expected: Option<Node>) {
        let labels = Labels::from([
            (key.to_owned(), value.to_owned()),
            ("a".to_owned(), "b".to_owned()),
            ("z".to_owned(), "b".to_owned()),
        ]);
        let found = [references(&labels), back_references(&labels)].concat();
        assert_eq!(found, Vec::from_iter(expected), "{key}={value}");
    }

    #[test]
    fn every_family_of_reference_is_read() {
        let digest = Digest::of(b"x");
        let text = digest.to_string();
        let content = || Some(Node::Content(digest.clone()));
        let snapshot = |snapshotter: &str| Some(Node::Snapshot(snapshotter.to_owned(), "k".to_owned()));
        check("containerd.io/gc.ref.content", &text, content());
        check("containerd.io/gc.ref.content.l.0", &text, content());
        check("containerd.io/gc.ref.content/x", &text, content());
        check("containerd.io/gc.ref.contentx", &text, None);
        check("containerd.io/gc.ref.content", "sha256:short", None);
        check("containerd.io/gc.ref.snapshot.overlayfs", "k", snapshot("overlayfs"));
        check("containerd.io/gc.ref.snapshot.overlayfs/2", "k", snapshot("overlayfs"));
        check("containerd.io/gc.ref.snapshot.erofs", "k", snapshot("overlayfs"));
        check("containerd.io/gc.ref.snapshot.a.b", "k", snapshot("a.b"));
        check("containerd.io/gc.ref.snapshot.", "k", None);
        check("containerd.io/gc.ref.image.1", "redis", Some(Node::Image("redis".to_owned())));
        check("containerd.io/gc.ref.mount/root", "m", Some(Node::Mount("m".to_owned())));
        check("containerd.io/gc.ref.stream.io", "s", Some(Node::Stream("s".to_owned())));
        check("containerd.io/gc.ref.mounts", "m", None);
        check("containerd.io/gc.bref.image", "redis", Some(Node::Image("redis".to_owned())));
        check("containerd.io/gc.bref.content.x", &text, content());
        check("containerd.io/gc.bref.snapshot.native/x", "k", snapshot("native"));
        check("containerd.io/gc.bref.container", "c1", Some(Node::Container("c1".parse().unwrap())));
        check("containerd.io/gc.bref.container", "no id!", None);
        check("containerd.io/gc.ref.container", "c1", None);
    }
}
