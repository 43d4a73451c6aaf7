//! Conditional references: a blob or an image keeps a snapshot depending on when that was last used.
//!
//! ```text
//! on the blob or image   containerd.io/gc.cond.snapshot.<snapshotter>[/x] = usedat<24h[,usedat>72h…]|<key>
//! on the snapshot        containerd.io/gc.cond.value-usedat               = RFC 3339
//! ```
//!
//! One of several conditions is enough. An unparsable condition is ignored, and a snapshot without a time of last use
//! meets none.

use std::time::Duration;

use types::{Labels, Timestamp};

use super::graph::Node;
use super::label::below;

const CONDITIONAL: &str = "containerd.io/gc.cond.snapshot";
const USED_AT: &str = "containerd.io/gc.cond.value-usedat";

/// The condition that a snapshot was used more, or less, recently than an age.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Condition {
    pub(super) snapshot: Node,
    pub(super) is_younger: bool,
    pub(super) age: Duration,
}

/// The conditions under which an object with these labels keeps snapshots.
pub(super) fn conditions(labels: &Labels) -> Vec<Condition> {
    let each = below(labels, CONDITIONAL).filter_map(|(what, value)| {
        let snapshotter = what.trim_start_matches(['.', '/']).split('/').next()?;
        let (conditions, key) = value.split_once('|')?;
        Some((Node::snapshot(snapshotter, key), conditions))
    });
    let each = each.flat_map(|(snapshot, conditions)| {
        conditions.split(',').filter_map(move |text| {
            let rest = text.strip_prefix("usedat")?;
            let (is_younger, age) = match (rest.strip_prefix('<'), rest.strip_prefix('>')) {
                (Some(age), _) => (true, age),
                (_, Some(age)) => (false, age),
                _ => return None,
            };
            Some(Condition { snapshot: snapshot.clone(), is_younger, age: stdx::duration(age)? })
        })
    });
    each.collect()
}

/// When a snapshot with these labels was last used.
pub(super) fn used_at(labels: &Labels) -> Option<Timestamp> {
    labels.get(USED_AT)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_read_as_containerd_reads_them() {
        let read = |key: &str, value: &str| {
            let labels = Labels::from([(format!("containerd.io/gc.cond.snapshot{key}"), value.to_owned())]);
            let found = conditions(&labels).into_iter();
            found.map(|one| (one.snapshot, one.is_younger, one.age.as_secs())).collect::<Vec<_>>()
        };
        let of = |key: &str, is_younger, seconds| (Node::snapshot("native", key), is_younger, seconds);
        let none: Vec<(Node, bool, u64)> = Vec::new();
        assert_eq!(read(".native", "usedat<24h|k"), [of("k", true, 86_400)]);
        assert_eq!(read("/native/x", "usedat>1m|a|b"), [of("a|b", false, 60)]);
        assert_eq!(read(".native", "usedat<1s,other<1s,usedat>2s|k"), [of("k", true, 1), of("k", false, 2)]);
        for value in
            ["usedat<24h", "usedat<=24h|k", "usedat=24h|k", "usedat!=24h|k", "usedat<x|k", "used<1h|k", "|k"]
        {
            assert_eq!(read(".native", value), none, "{value}");
        }
    }
}
