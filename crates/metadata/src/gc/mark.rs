//! Builds the graph from the records, and removes the records of dead nodes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;

use kv::{Read, ReadTxn};
use types::label::gc::FLAT;
use types::{Labels, Namespace, Result, Timestamp};

use super::condition::{self, Condition};
use super::graph::{Graph, Live, Node};
use super::{Collected, Orphans, label};
use crate::activation::ACTIVATIONS;
use crate::container::CONTAINERS;
use crate::content::{BLOBS, INGESTS};
use crate::event::Event;
use crate::image::IMAGES;
use crate::lease::{self, LEASES};
use crate::namespace::NAMESPACES;
use crate::sandbox::SANDBOXES;
use crate::snapshot::{self, SNAPSHOTS};
use crate::store::{Change, Inner};
use crate::stream::LeasedStream;

const NEXT: Result<ControlFlow<()>> = Ok(ControlFlow::Continue(()));

pub(super) struct Marks {
    namespaces: BTreeMap<Namespace, (Graph, Live)>,
    streams: Vec<LeasedStream>,
    pub(super) next_expiry: Option<Timestamp>,
}

pub(super) fn mark(tx: &ReadTxn, now: Timestamp, streams: Vec<LeasedStream>) -> Result<Marks> {
    let mut namespaces = BTreeMap::new();
    let mut builder = Builder::new(now);
    // A stream's namespace may have no record any more.
    let named = streams.iter().map(|stream| stream.namespace.clone());
    for namespace in NAMESPACES.keys(tx, ())?.into_iter().chain(named).collect::<BTreeSet<_>>() {
        builder.streams = streams.iter().filter(|stream| stream.namespace == namespace).cloned().collect();
        builder.add_namespace(tx, &namespace)?;
        let graph = std::mem::take(&mut builder.graph);
        let live = graph.mark();
        namespaces.insert(namespace, (graph, live));
    }
    Ok(Marks { namespaces, streams, next_expiry: builder.next_expiry })
}

impl Marks {
    /// Dead objects, each before those that it keeps.
    pub(super) fn dead(&self) -> Vec<(Namespace, Node)> {
        let each = self.namespaces.iter();
        each.flat_map(|(namespace, (graph, live))| {
            graph.dead(live).into_iter().map(|node| (namespace.clone(), node))
        })
        .collect()
    }

    /// Revives touched objects, and all that they reach by the graph or by the records in `tx`.
    pub(super) fn revive(&mut self, tx: &impl Read, touched: Vec<(Namespace, Node)>) -> Result<()> {
        let mut seen = HashSet::new();
        let mut pending = touched;
        while let Some((namespace, node)) = pending.pop() {
            let Some((graph, live)) = self.namespaces.get_mut(&namespace) else { continue };
            if !seen.insert((namespace.clone(), node.clone())) {
                continue;
            }
            graph.revive(live, &node);
            let edges = current_edges(tx, &namespace, &node)?.into_iter();
            let edges = edges.filter(|edge| !graph.is_reached(live, edge));
            pending.extend(edges.map(|edge| (namespace.clone(), edge)));
        }
        Ok(())
    }
}

struct Builder {
    now: Timestamp,
    next_expiry: Option<Timestamp>,
    graph: Graph,
    /// Of the current namespace.
    streams: Vec<LeasedStream>,
    /// Objects with their conditional references; and when snapshots were last used.
    conditions: Vec<(Node, Condition)>,
    used: HashMap<Node, Timestamp>,
}

impl Builder {
    fn new(now: Timestamp) -> Builder {
        let (graph, conditions, used) = (Graph::default(), Vec::new(), HashMap::new());
        Builder { now, next_expiry: None, graph, streams: Vec::new(), conditions, used }
    }

    fn add_namespace(&mut self, tx: &ReadTxn, namespace: &Namespace) -> Result<()> {
        self.add_leases(tx, namespace)?;
        IMAGES.scan(tx, (namespace,), |(_, name), record| {
            let node = Node::Image(name);
            self.add(&node, &record.references());
            self.add_ground(&node, Some(record.ground()));
            self.add_back_references(&node, &record.labels);
            self.add_conditions(&node, &record.labels);
            if !self.is_over(label::expiry(&record.labels)) {
                self.graph.root(&node);
            }
            NEXT
        })?;
        CONTAINERS.scan(tx, (namespace,), |(_, id), record| {
            let node = Node::Container(id);
            self.add(&node, &record.references());
            self.graph.root(&node);
            NEXT
        })?;
        SANDBOXES.scan(tx, (namespace,), |(_, id), record| {
            let node = Node::Sandbox(id);
            self.add(&node, &record.references());
            self.graph.root(&node);
            NEXT
        })?;
        ACTIVATIONS.scan(tx, (namespace,), |(_, name), record| {
            let node = Node::Mount(name);
            if !record.is_complete {
                self.graph.root(&node);
            }
            self.add_labelled(&node, &label::references(record.labels()), record.labels());
            NEXT
        })?;
        INGESTS.scan(tx, (namespace,), |(_, reference), record| {
            let node = Node::Ingest(reference);
            self.add(&node, &record.references());
            self.add_ground(&node, record.ground());
            if record.expires.is_some() && !self.is_over(record.expires) {
                self.graph.root(&node);
            }
            NEXT
        })?;
        BLOBS.scan(tx, (namespace,), |(_, digest), record| {
            let node = Node::Content(digest);
            self.add_conditions(&node, &record.labels);
            self.add_labelled(&node, &record.references(), &record.labels);
            NEXT
        })?;
        SNAPSHOTS.scan(tx, (namespace,), |(_, snapshotter, key), record| {
            let (references, ground) = (record.references(&snapshotter), record.ground(&snapshotter));
            let node = Node::Snapshot(snapshotter, key);
            self.add_ground(&node, ground);
            if let Some(used) = condition::used_at(&record.labels) {
                self.used.insert(node.clone(), used);
            }
            self.add_labelled(&node, &references, &record.labels);
            NEXT
        })?;
        self.evaluate_conditions();
        Ok(())
    }

    fn add_conditions(&mut self, node: &Node, labels: &Labels) {
        let conditions = condition::conditions(labels).into_iter();
        self.conditions.extend(conditions.map(|condition| (node.clone(), condition)));
    }

    /// Adds edges for the conditions that are met.
    fn evaluate_conditions(&mut self) {
        let used = std::mem::take(&mut self.used);
        for (node, condition) in std::mem::take(&mut self.conditions) {
            let Some(used) = used.get(&condition.snapshot) else { continue };
            let turn = used.plus(condition.age);
            let is_met = if condition.is_younger { !self.is_over(Some(turn)) } else { turn < self.now };
            if is_met {
                self.graph.edge(&node, &condition.snapshot);
            }
        }
    }

    fn add_leases(&mut self, tx: &ReadTxn, namespace: &Namespace) -> Result<()> {
        let streams = std::mem::take(&mut self.streams);
        for stream in &streams {
            self.graph.add(&Node::Stream(stream.name.clone()));
        }
        LEASES.scan(tx, (namespace,), |(_, id), record| {
            let node = Node::Lease(id.clone());
            self.add(&node, &label::references(&record.labels));
            if self.is_over(label::expiry(&record.labels)) {
                return NEXT;
            }
            let is_flat = record.labels.contains_key(FLAT);
            let resources = lease::resources(tx, namespace, &id)?;
            let open = streams.iter().filter(|stream| stream.lease == id);
            let open = open.map(|stream| Node::Stream(stream.name.clone()));
            for held in resources.iter().map(lease::Resource::node).chain(open) {
                if is_flat {
                    self.graph.flat_root(&held);
                } else {
                    self.graph.edge(&node, &held);
                }
            }
            self.graph.root(&node);
            NEXT
        })
    }

    fn add(&mut self, node: &Node, references: &[Node]) {
        self.graph.add(node);
        for reference in references {
            self.graph.edge(node, reference);
        }
    }

    fn add_ground(&mut self, node: &Node, ground: Option<Node>) {
        if let Some(ground) = ground {
            self.graph.stands_on(node, &ground);
        }
    }

    fn add_back_references(&mut self, node: &Node, labels: &Labels) {
        for parent in label::back_references(labels) {
            self.graph.edge(&parent, node);
        }
    }

    /// Adds a blob, snapshot or mount, which is a root only by its labels.
    fn add_labelled(&mut self, node: &Node, references: &[Node], labels: &Labels) {
        self.add(node, references);
        self.add_back_references(node, labels);
        let expiry = label::expiry(labels);
        let is_root = label::is_root(labels) || (expiry.is_some() && !self.is_over(expiry));
        if is_root {
            self.graph.root(node);
        }
    }

    /// Whether the time has come. If not, it is a candidate for the next expiry.
    fn is_over(&mut self, expiry: Option<Timestamp>) -> bool {
        let Some(expiry) = expiry else { return false };
        if expiry <= self.now {
            return true;
        }
        self.next_expiry = Some(self.next_expiry.map_or(expiry, |earlier| earlier.min(expiry)));
        false
    }
}

/// Conditional references count as met here: the next collection evaluates them.
fn with_conditional(mut references: Vec<Node>, labels: &Labels) -> Vec<Node> {
    references.extend(condition::conditions(labels).into_iter().map(|condition| condition.snapshot));
    references
}

/// The references of a node's record; empty if there is no record.
fn current_edges(tx: &impl Read, namespace: &Namespace, node: &Node) -> Result<Vec<Node>> {
    Ok(match node {
        Node::Content(digest) => {
            let record = BLOBS.get(tx, (namespace, digest))?;
            record.map(|record| with_conditional(record.references(), &record.labels)).unwrap_or_default()
        }
        Node::Snapshot(snapshotter, key) => {
            let record = SNAPSHOTS.get(tx, (namespace, snapshotter.as_str(), key.as_str()))?;
            record.map(|record| record.references(snapshotter)).unwrap_or_default()
        }
        Node::Image(name) => {
            let record = IMAGES.get(tx, (namespace, name))?;
            record.map(|record| with_conditional(record.references(), &record.labels)).unwrap_or_default()
        }
        Node::Container(id) => {
            CONTAINERS.get(tx, (namespace, id))?.map(|record| record.references()).unwrap_or_default()
        }
        Node::Sandbox(id) => {
            SANDBOXES.get(tx, (namespace, id))?.map(|record| record.references()).unwrap_or_default()
        }
        Node::Ingest(reference) => {
            INGESTS.get(tx, (namespace, reference))?.map(|record| record.references()).unwrap_or_default()
        }
        Node::Mount(name) => {
            let record = ACTIVATIONS.get(tx, (namespace, name.as_str()))?;
            record.map(|record| label::references(record.labels())).unwrap_or_default()
        }
        Node::Lease(id) => {
            let record = LEASES.get(tx, (namespace, id))?;
            let mut nodes = record.map(|record| label::references(&record.labels)).unwrap_or_default();
            nodes.extend(lease::resources(tx, namespace, id)?.iter().map(lease::Resource::node));
            nodes
        }
        Node::Stream(_) => Vec::new(),
    })
}

/// The ground of a node's record, if there is one.
fn current_ground(tx: &impl Read, namespace: &Namespace, node: &Node) -> Result<Option<Node>> {
    Ok(match node {
        Node::Snapshot(snapshotter, key) => {
            let record = SNAPSHOTS.get(tx, (namespace, snapshotter.as_str(), key.as_str()))?;
            record.and_then(|record| record.ground(snapshotter))
        }
        Node::Image(name) => IMAGES.get(tx, (namespace, name))?.map(|record| record.ground()),
        Node::Ingest(reference) => {
            INGESTS.get(tx, (namespace, reference))?.and_then(|record| record.ground())
        }
        _ => None,
    })
}

/// The objects that leases in use keep in a namespace, directly or through references.
pub(crate) fn leased(store: &Inner, tx: &impl Read, namespace: &Namespace) -> Result<HashSet<Node>> {
    let (mut held, mut flat) = (HashSet::new(), HashSet::new());
    let mut pending = Vec::new();
    for ((_, id), record) in LEASES.list(tx, (namespace,))? {
        if !lease::is_in_use(store, namespace, &id, &record) {
            continue;
        }
        if record.labels.contains_key(FLAT) {
            for resource in lease::resources(tx, namespace, &id)? {
                let mut next = Some(resource.node());
                while let Some(node) = next.filter(|node| !flat.contains(node)) {
                    next = current_ground(tx, namespace, &node)?;
                    flat.insert(node);
                }
            }
        } else {
            pending.push(Node::Lease(id));
        }
    }
    while let Some(node) = pending.pop() {
        if !held.contains(&node) {
            pending.extend(current_edges(tx, namespace, &node)?);
            held.insert(node);
        }
    }
    held.extend(flat);
    Ok(held)
}

/// Removes those of `dead` that were not revived.
pub(super) fn remove(
    change: &mut Change<'_, '_>,
    marks: &Marks,
    dead: &[(Namespace, Node)],
    removed: &mut Orphans,
    collected: &mut Collected,
) -> Result<()> {
    for (namespace, node) in dead {
        let is_dead = marks.namespaces.get(namespace).is_some_and(|(graph, live)| graph.is_dead(live, node));
        if let (Node::Stream(name), true) = (node, is_dead) {
            let is_it = |stream: &&LeasedStream| stream.namespace == *namespace && stream.name == *name;
            removed.streams.extend(marks.streams.iter().find(is_it).cloned());
        } else if is_dead {
            remove_node(change, namespace, node, removed, collected)?;
        }
    }
    Ok(())
}

fn remove_node(
    change: &mut Change<'_, '_>,
    namespace: &Namespace,
    node: &Node,
    removed: &mut Orphans,
    collected: &mut Collected,
) -> Result<()> {
    match node {
        Node::Content(digest) => {
            if BLOBS.delete(change.tx, (namespace, digest))? {
                removed.blobs.insert(digest.clone());
                collected.content += 1;
            }
        }
        Node::Snapshot(snapshotter, key) => {
            if snapshot::delete(change, namespace, snapshotter, key)? {
                removed.snapshotters.insert(snapshotter.clone());
                collected.snapshots += 1;
            }
        }
        Node::Image(name) => {
            if IMAGES.delete(change.tx, (namespace, name))? {
                change.emit(namespace, Event::ImageDeleted { name: name.clone() });
                collected.images += 1;
            }
        }
        Node::Ingest(reference) => {
            if let Some(record) = INGESTS.get(change.tx, (namespace, reference))? {
                INGESTS.delete(change.tx, (namespace, reference))?;
                removed.ingests.insert(record.backend);
                collected.ingests += 1;
            }
        }
        Node::Lease(id) => {
            if lease::delete(change, namespace, id)? {
                collected.leases += 1;
            }
        }
        Node::Mount(name) => {
            if ACTIVATIONS.delete(change.tx, (namespace, name.as_str()))? {
                removed.mounts = true;
                collected.mounts += 1;
            }
        }
        // Always roots; a dead one was deleted after the mark.
        Node::Container(_) | Node::Sandbox(_) => {}
        // Streams have no records: the sweep ends them.
        Node::Stream(_) => {}
    }
    Ok(())
}
