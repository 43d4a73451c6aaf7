//! Names of the objects of a graph, numbered, in three allocations however many there are: freeing one allocation per
//! object would block other threads in the allocator.
//!
//! ```text
//! text     …│ kind, name │ kind, length of the first name, both names │…
//! ends      where each entry of `text` ends, by number
//! numbers   hash of an entry of `text` ─▶ number
//! ```

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;

use hashbrown::HashTable;
use types::{ContainerId, IngestRef, LeaseId, SandboxId};

use super::graph::Node;

#[derive(Default)]
pub(super) struct Names {
    text: Vec<u8>,
    ends: Vec<usize>,
    numbers: HashTable<u32>,
    /// With a secret key, since clients choose the names and could provoke collisions.
    hasher: RandomState,
}

/// The first byte of an entry in `text`.
mod kind {
    pub(super) const CONTENT: u8 = 0;
    pub(super) const SNAPSHOT: u8 = 1;
    pub(super) const IMAGE: u8 = 2;
    pub(super) const CONTAINER: u8 = 3;
    pub(super) const INGEST: u8 = 4;
    pub(super) const LEASE: u8 = 5;
    pub(super) const SANDBOX: u8 = 6;
    pub(super) const MOUNT: u8 = 7;
    pub(super) const STREAM: u8 = 8;
}

impl Names {
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The number of `node`, if it has one.
    pub(super) fn find(&self, node: &Node) -> Option<u32> {
        let mut text = Vec::new();
        write(node, &mut text);
        self.find_text(&text)
    }

    /// The number of `node`; a new one if it had none.
    pub(super) fn number(&mut self, node: &Node) -> u32 {
        let start = self.text.len();
        write(node, &mut self.text);
        let written = &self.text[start..];
        if let Some(number) = self.find_text(written) {
            self.text.truncate(start);
            return number;
        }
        let (hash, number) = (self.hasher.hash_one(written), u32::try_from(self.ends.len()));
        let number = number.expect("there is no memory for so many records");
        self.ends.push(self.text.len());
        let (text, ends, hasher) = (&self.text, &self.ends, &self.hasher);
        self.numbers.insert_unique(hash, number, |known| hasher.hash_one(part(text, ends, *known)));
        number
    }

    /// The object with this number.
    pub(super) fn node(&self, number: u32) -> Node {
        read(part(&self.text, &self.ends, number))
    }

    fn find_text(&self, written: &[u8]) -> Option<u32> {
        let is_it = |known: &u32| part(&self.text, &self.ends, *known) == written;
        self.numbers.find(self.hasher.hash_one(written), is_it).copied()
    }
}

fn part<'a>(text: &'a [u8], ends: &[usize], number: u32) -> &'a [u8] {
    let number = number as usize;
    let start = number.checked_sub(1).map_or(0, |before| ends[before]);
    &text[start..ends[number]]
}

fn write(node: &Node, to: &mut Vec<u8>) {
    let (kind, name) = match node {
        Node::Content(digest) => {
            to.push(kind::CONTENT);
            to.extend_from_slice(digest.algorithm().name().as_bytes());
            to.push(b':');
            to.extend_from_slice(digest.hex().as_bytes());
            return;
        }
        Node::Snapshot(snapshotter, key) => {
            to.push(kind::SNAPSHOT);
            to.extend_from_slice(&snapshotter.len().to_le_bytes());
            to.extend_from_slice(snapshotter.as_bytes());
            to.extend_from_slice(key.as_bytes());
            return;
        }
        Node::Image(name) => (kind::IMAGE, name.as_str()),
        Node::Container(id) => (kind::CONTAINER, id.as_str()),
        Node::Ingest(reference) => (kind::INGEST, reference.as_str()),
        Node::Lease(id) => (kind::LEASE, id.as_str()),
        Node::Sandbox(id) => (kind::SANDBOX, id.as_str()),
        Node::Mount(name) => (kind::MOUNT, name.as_str()),
        Node::Stream(name) => (kind::STREAM, name.as_str()),
    };
    to.push(kind);
    to.extend_from_slice(name.as_bytes());
}

/// The inverse of [`write`].
fn read(text: &[u8]) -> Node {
    const VALID: &str = "it was a valid name when it was written";
    let (kind, name) = text.split_first().expect("it begins with its kind");
    let own = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect(VALID);
    match *kind {
        kind::CONTENT => Node::Content(own(name).parse().expect(VALID)),
        kind::SNAPSHOT => {
            let (length, names) = name.split_first_chunk().expect("its length is written before it");
            let (snapshotter, key) = names.split_at(usize::from_le_bytes(*length));
            Node::Snapshot(own(snapshotter), own(key))
        }
        kind::IMAGE => Node::Image(own(name)),
        kind::CONTAINER => Node::Container(ContainerId::new(own(name)).expect(VALID)),
        kind::INGEST => Node::Ingest(IngestRef::new(own(name)).expect(VALID)),
        kind::LEASE => Node::Lease(LeaseId::new(own(name)).expect(VALID)),
        kind::SANDBOX => Node::Sandbox(SandboxId::new(own(name)).expect(VALID)),
        kind::MOUNT => Node::Mount(own(name)),
        kind::STREAM => Node::Stream(own(name)),
        other => unreachable!("kind {other} is never written"),
    }
}

#[cfg(test)]
mod tests {
    use types::Digest;

    use super::*;

    #[test]
    fn each_object_has_a_number_of_its_own_and_is_found_by_it() {
        let id = "same";
        let nodes = [
            Node::Content(Digest::of(id.as_bytes())),
            Node::Snapshot("a".into(), "bc".into()),
            Node::Snapshot("ab".into(), "c".into()),
            Node::Snapshot(String::new(), String::new()),
            Node::Image(id.into()),
            Node::Image(String::new()),
            Node::Container(ContainerId::new(id).unwrap()),
            Node::Ingest(IngestRef::new(id).unwrap()),
            Node::Lease(LeaseId::new(id).unwrap()),
            Node::Sandbox(SandboxId::new(id).unwrap()),
            Node::Mount(id.into()),
            Node::Stream(id.into()),
        ];
        let mut names = Names::default();
        for turn in 0..2 {
            for (expected, node) in (0..).zip(&nodes) {
                assert_eq!(names.find(node), (turn > 0).then_some(expected), "{node:?}");
                assert_eq!(names.number(node), expected, "{node:?}");
            }
        }
        assert_eq!(names.len(), nodes.len());
        for (number, node) in (0..).zip(&nodes) {
            assert_eq!((names.node(number), names.find(node)), (node.clone(), Some(number)));
        }
        assert_eq!(names.find(&Node::Image("other".into())), None);
    }
}
