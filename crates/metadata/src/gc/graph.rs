//! Who keeps whom: the graph of one namespace, and the mark over it. Pure: no clock, no store.
//!
//! ```text
//! roots        leases, images, ingests and labelled objects that have not expired; all containers and sandboxes;
//!              mounts in the making
//! edges        image ▶ target · object ▶ what its gc.ref labels name · snapshot ▶ parent · container ▶ snapshot
//!              ingest ▶ expected blob · lease ▶ resources · object named by a gc.bref label ▶ its bearer
//! flat roots   what flat leases list: kept, but their edges do not count
//! dead         there, and neither root nor reached
//! ```

use std::collections::HashMap;

use types::{ContainerId, Digest, IngestRef, LeaseId, SandboxId};

/// An object of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Node {
    Content(Digest),
    /// Snapshotter, by its own name, and key.
    Snapshot(String, String),
    Image(String),
    Container(ContainerId),
    Ingest(IngestRef),
    Lease(LeaseId),
    Sandbox(SandboxId),
    /// An activation of mounts, by name.
    Mount(String),
    /// A client's stream, by name. Those that no lease holds are nobody's to collect, and are not in the graph.
    Stream(String),
}

impl Node {
    /// A snapshot by any name of its snapshotter.
    pub fn snapshot(snapshotter: &str, key: impl Into<String>) -> Node {
        Node::Snapshot(snapshot::canonical_name(snapshotter).to_owned(), key.into())
    }
}

#[derive(Default)]
pub struct Graph {
    numbers: HashMap<Node, usize>,
    /// In the order of their numbers.
    objects: Vec<Object>,
    roots: Vec<usize>,
    flat_roots: Vec<usize>,
}

struct Object {
    node: Node,
    /// Objects that are only referred to are in the graph, but not there.
    there: bool,
    edges: Vec<usize>,
}

impl Graph {
    /// Says that `node` is there.
    pub fn add(&mut self, node: Node) {
        let number = self.number(node);
        self.objects[number].there = true;
    }

    /// Says that `from` keeps `to`.
    pub fn edge(&mut self, from: Node, to: Node) {
        let (from, to) = (self.number(from), self.number(to));
        self.objects[from].edges.push(to);
    }

    pub fn root(&mut self, node: Node) {
        let number = self.number(node);
        self.roots.push(number);
    }

    pub fn flat_root(&mut self, node: Node) {
        let number = self.number(node);
        self.flat_roots.push(number);
    }

    pub fn mark(&self) -> Live {
        let mut live = Live(vec![Mark::Dead; self.objects.len()]);
        self.reach(&mut live, self.roots.clone());
        for number in &self.flat_roots {
            live.0[*number] = live.0[*number].max(Mark::Kept);
        }
        live
    }

    /// Marks `node` and all it reaches, if the graph knows it.
    pub fn revive(&self, live: &mut Live, node: &Node) {
        if let Some(number) = self.numbers.get(node) {
            self.reach(live, vec![*number]);
        }
    }

    /// Whether `node` is kept with all that it refers to.
    pub fn is_reached(&self, live: &Live, node: &Node) -> bool {
        self.numbers.get(node).is_some_and(|number| live.0[*number] == Mark::Reached)
    }

    /// The objects that are there and not live. Each comes before those that it keeps, unless they keep each
    /// other: whoever removes them in this order and stops in between leaves nothing that lacks what it needs.
    pub fn dead<'a>(&'a self, live: &Live) -> Vec<&'a Node> {
        let mut seen: Vec<bool> = live.0.iter().map(|mark| *mark != Mark::Dead).collect();
        let mut finished = Vec::new();
        for start in 0..self.objects.len() {
            // Objects on the way down, each with the number of its edges that were followed.
            let mut path = Vec::new();
            if !std::mem::replace(&mut seen[start], true) {
                path.push((start, 0));
            }
            while let Some((number, followed)) = path.last_mut() {
                match self.objects[*number].edges.get(*followed) {
                    Some(next) => {
                        *followed += 1;
                        if !std::mem::replace(&mut seen[*next], true) {
                            path.push((*next, 0));
                        }
                    }
                    None => {
                        finished.push(*number);
                        path.pop();
                    }
                }
            }
        }
        let dead = finished.into_iter().rev().map(|number| &self.objects[number]);
        dead.filter(|object| object.there).map(|object| &object.node).collect()
    }

    /// Whether `node` is one of those that no mark has reached.
    pub fn is_dead(&self, live: &Live, node: &Node) -> bool {
        self.numbers.get(node).is_some_and(|number| live.0[*number] == Mark::Dead)
    }

    fn reach(&self, live: &mut Live, mut pending: Vec<usize>) {
        while let Some(number) = pending.pop() {
            if std::mem::replace(&mut live.0[number], Mark::Reached) != Mark::Reached {
                pending.extend(&self.objects[number].edges);
            }
        }
    }

    fn number(&mut self, node: Node) -> usize {
        if let Some(number) = self.numbers.get(&node) {
            return *number;
        }
        let number = self.objects.len();
        self.numbers.insert(node.clone(), number);
        self.objects.push(Object { node, there: false, edges: Vec::new() });
        number
    }
}

/// Which objects of a graph are kept.
pub struct Live(Vec<Mark>);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mark {
    Dead,
    /// Kept alone.
    Kept,
    /// Kept with all it refers to.
    Reached,
}
