//! Marking, compared with a slow and simple implementation.

use std::collections::BTreeSet;

use metadata::graph::{Graph, Node};
use proptest::prelude::*;

const NODES: usize = 12;

fn node(number: usize) -> Node {
    Node::Image(number.to_string())
}

#[derive(Clone, Debug)]
struct Case {
    there: BTreeSet<usize>,
    edges: BTreeSet<(usize, usize)>,
    roots: BTreeSet<usize>,
    flat_roots: BTreeSet<usize>,
    /// Each object's ground is the first object that it keeps.
    standing: BTreeSet<usize>,
    revived: BTreeSet<usize>,
}

fn case() -> impl Strategy<Value = Case> {
    let number = 0..NODES;
    let set = |len| proptest::collection::btree_set(number.clone(), 0..len);
    let edges = proptest::collection::btree_set((number.clone(), number.clone()), 0..24);
    (set(NODES), edges, set(3), set(3), set(NODES), set(3)).prop_map(
        |(there, edges, roots, flat_roots, standing, revived)| Case {
            there,
            edges,
            roots,
            flat_roots,
            standing,
            revived,
        },
    )
}

/// Everything reachable from the seeds, by iterating over all edges until nothing changes.
fn closure(seeds: &BTreeSet<usize>, edges: &BTreeSet<(usize, usize)>) -> BTreeSet<usize> {
    let mut reached = seeds.clone();
    loop {
        let next: BTreeSet<usize> =
            edges.iter().filter(|(from, _)| reached.contains(from)).map(|(_, to)| *to).collect();
        let before = reached.len();
        reached.extend(next);
        if reached.len() == before {
            return reached;
        }
    }
}

proptest! {
    #[test]
    fn objects_are_dead_unless_reached_or_kept_flat(case in case()) {
        let mut graph = Graph::default();
        case.there.iter().for_each(|number| graph.add(&node(*number)));
        case.edges.iter().for_each(|(from, to)| graph.edge(&node(*from), &node(*to)));
        case.roots.iter().for_each(|number| graph.root(&node(*number)));
        case.flat_roots.iter().for_each(|number| graph.flat_root(&node(*number)));
        let ground = |from: &usize| case.edges.range((*from, 0)..(from + 1, 0)).next().copied();
        let grounds: BTreeSet<_> = case.standing.iter().filter_map(ground).collect();
        grounds.iter().for_each(|(from, to)| graph.stands_on(&node(*from), &node(*to)));
        let flat = closure(&case.flat_roots, &grounds);

        let mut live = graph.mark();
        let dead = |kept: &BTreeSet<usize>| -> BTreeSet<Node> {
            let dead = case.there.iter().filter(|number| !kept.contains(number));
            dead.map(|number| node(*number)).collect()
        };
        let reached = closure(&case.roots, &case.edges);
        let kept = &reached | &flat;
        prop_assert_eq!(graph.dead(&live).into_iter().collect::<BTreeSet<_>>(), dead(&kept));

        // A removal in this order never leaves an object without one that it keeps, except in cycles.
        let order: Vec<Node> = graph.dead(&live).into_iter().collect();
        let position = |number: usize| order.iter().position(|other| *other == node(number));
        for (from, to) in &case.edges {
            let keeps_back = closure(&BTreeSet::from([*to]), &case.edges).contains(from);
            if let (Some(from), Some(to), false) = (position(*from), position(*to), keeps_back) {
                prop_assert!(from < to, "{case:?}");
            }
        }

        for number in &case.revived {
            graph.revive(&mut live, &node(*number));
        }
        let kept = &closure(&(&case.roots | &case.revived), &case.edges) | &flat;
        prop_assert_eq!(graph.dead(&live).into_iter().collect::<BTreeSet<_>>(), dead(&kept));
    }
}
