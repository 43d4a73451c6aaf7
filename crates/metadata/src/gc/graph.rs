//! The graph of references in one namespace, and marking over it. Pure: no clock, no store.
//!
//! ```text
//! roots        leases, images, ingests and labelled objects that have not expired; all containers and sandboxes;
//!              incomplete mounts
//! edges        image ▶ target · object ▶ objects in its gc.ref labels · snapshot ▶ parent · container ▶ snapshot
//!              ingest ▶ expected blob · lease ▶ resources · object in a gc.bref label ▶ its bearer
//! flat roots   resources of flat leases: kept with their ground, but their other edges do not count
//! ground       image ▶ target · snapshot ▶ parent · ingest ▶ expected blob
//! dead         existing objects that are neither root nor reached
//! ```

use types::{ContainerId, Digest, IngestRef, LeaseId, SandboxId};

use super::names::Names;

/// An object of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Node {
    Content(Digest),
    /// Snapshotter, by its canonical name, and key.
    Snapshot(String, String),
    Image(String),
    Container(ContainerId),
    Ingest(IngestRef),
    Lease(LeaseId),
    Sandbox(SandboxId),
    /// An activation of mounts, by name.
    Mount(String),
    /// A client's stream, by name. Streams without a lease are not collected, and not in the graph.
    Stream(String),
}

impl Node {
    /// A snapshot, by any name of its snapshotter.
    pub fn snapshot(snapshotter: &str, key: impl Into<String>) -> Node {
        Node::Snapshot(snapshot::canonical_name(snapshotter).to_owned(), key.into())
    }
}

#[derive(Default)]
pub struct Graph {
    names: Names,
    /// By number.
    objects: Vec<Object>,
    edges: Vec<Edge>,
    roots: Vec<u32>,
    flat_roots: Vec<u32>,
}

#[derive(Clone, Copy, Default)]
struct Object {
    /// False for objects that are only referred to.
    there: bool,
    /// Index of its last edge.
    last_edge: Option<u32>,
    /// The object that a flat root of this one also keeps ([`Graph::stands_on`]).
    ground: Option<u32>,
}

#[derive(Clone, Copy)]
struct Edge {
    to: u32,
    /// Index of the previous edge of the same object.
    before: Option<u32>,
}

impl Graph {
    /// Adds an existing object.
    pub fn add(&mut self, node: &Node) {
        let number = self.number(node);
        self.objects[number as usize].there = true;
    }

    /// Adds an edge: `from` keeps `to`.
    pub fn edge(&mut self, from: &Node, to: &Node) {
        let (from, to) = (self.number(from), self.number(to));
        let place = u32::try_from(self.edges.len()).expect("there is no memory for so many references");
        let before = self.objects[from as usize].last_edge.replace(place);
        self.edges.push(Edge { to, before });
    }

    /// Sets the ground of `node`: a flat root of `node` keeps it, too.
    pub fn stands_on(&mut self, node: &Node, ground: &Node) {
        let (node, ground) = (self.number(node), self.number(ground));
        self.objects[node as usize].ground = Some(ground);
    }

    pub fn root(&mut self, node: &Node) {
        let number = self.number(node);
        self.roots.push(number);
    }

    pub fn flat_root(&mut self, node: &Node) {
        let number = self.number(node);
        self.flat_roots.push(number);
    }

    pub fn mark(&self) -> Live {
        let mut live = Live(vec![Mark::Dead; self.names.len()]);
        self.reach(&mut live, self.roots.clone());
        for number in &self.flat_roots {
            let mut next = Some(*number);
            // Everything below a kept object is kept already.
            while let Some(number) = next.filter(|number| live.0[*number as usize] == Mark::Dead) {
                live.0[number as usize] = Mark::Kept;
                next = self.objects[number as usize].ground;
            }
        }
        live
    }

    /// Marks `node` and all that it reaches, if it is in the graph.
    pub fn revive(&self, live: &mut Live, node: &Node) {
        if let Some(number) = self.names.find(node) {
            self.reach(live, vec![number]);
        }
    }

    /// Whether `node` is kept with all that it refers to.
    pub fn is_reached(&self, live: &Live, node: &Node) -> bool {
        self.names.find(node).is_some_and(|number| live.0[number as usize] == Mark::Reached)
    }

    /// The dead objects. Each comes before those that it keeps, unless they form a cycle: a removal in this order
    /// that stops in between leaves no object without what it refers to.
    pub fn dead(&self, live: &Live) -> Vec<Node> {
        let mut seen: Vec<bool> = live.0.iter().map(|mark| *mark != Mark::Dead).collect();
        let mut finished = Vec::new();
        for (start, object) in (0..).zip(&self.objects) {
            // The path of the depth-first search, each object with its next edge.
            let mut path = Vec::new();
            if !std::mem::replace(&mut seen[start as usize], true) {
                path.push((start, object.last_edge));
            }
            while let Some((number, next)) = path.last_mut() {
                let Some(place) = *next else {
                    finished.push(*number);
                    path.pop();
                    continue;
                };
                let Edge { to, before } = self.edges[place as usize];
                *next = before;
                if !std::mem::replace(&mut seen[to as usize], true) {
                    path.push((to, self.objects[to as usize].last_edge));
                }
            }
        }
        let dead = finished.into_iter().rev().filter(|number: &u32| self.objects[*number as usize].there);
        dead.map(|number| self.names.node(number)).collect()
    }

    /// Whether `node` is in the graph and dead.
    pub fn is_dead(&self, live: &Live, node: &Node) -> bool {
        self.names.find(node).is_some_and(|number| live.0[number as usize] == Mark::Dead)
    }

    fn reach(&self, live: &mut Live, mut pending: Vec<u32>) {
        while let Some(number) = pending.pop() {
            if std::mem::replace(&mut live.0[number as usize], Mark::Reached) == Mark::Reached {
                continue;
            }
            let mut next = self.objects[number as usize].last_edge;
            while let Some(place) = next {
                let edge = self.edges[place as usize];
                pending.push(edge.to);
                next = edge.before;
            }
        }
    }

    fn number(&mut self, node: &Node) -> u32 {
        let number = self.names.number(node);
        self.objects.resize(self.names.len(), Object::default());
        number
    }
}

/// The marks of all objects of a graph.
pub struct Live(Vec<Mark>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Dead,
    /// Kept with its ground only.
    Kept,
    /// Kept with all that it refers to.
    Reached,
}
