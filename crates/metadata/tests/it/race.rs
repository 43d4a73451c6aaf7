//! Pulls run while the collector does.

use std::sync::atomic::{AtomicBool, Ordering};

use types::{Digest, ErrorKind};

use crate::fixture::{Fixture, caller, default, labels};

const PULLERS: usize = 4;
const ROUNDS: usize = 12;

/// A pull as the transfer crate does it: lease, layers, chain of snapshots, config, manifest, image, end of the
/// lease. All pullers share half of the layers.
fn pull(fixture: &Fixture, puller: usize, round: usize) -> (String, Vec<Digest>, Vec<String>) {
    let name = format!("image-{puller}-{round}");
    let leased = fixture.lease(&name, labels(&[]));
    let snapshots = fixture.store.snapshots(&leased, "remembering").unwrap();
    let mut digests = Vec::new();
    let mut chain: Vec<String> = Vec::new();
    for layer in 0..4 {
        let text = if layer < 2 { format!("common {layer}") } else { format!("layer {layer} of {name}") };
        digests.push(fixture.blob(&leased, &text, labels(&[])));
        let id = format!("chain {text}");
        let active = format!("extract {layer} {name}");
        match snapshots.hold(&id) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                snapshots.prepare(&active, chain.last().map(String::as_str), labels(&[])).unwrap();
                match snapshots.commit(&id, &active, labels(&[]), None) {
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                    result => result.unwrap(),
                }
            }
            held => held.unwrap(),
        }
        chain.push(id);
    }
    let top = chain.last().unwrap();
    let config = labels(&[("containerd.io/gc.ref.snapshot.remembering", top)]);
    digests.push(fixture.blob(&leased, &format!("config {name}"), config));
    let references: Vec<(String, String)> = digests
        .iter()
        .enumerate()
        .map(|(index, digest)| (format!("containerd.io/gc.ref.content.{index}"), digest.to_string()))
        .collect();
    let manifest = fixture.blob(&leased, &format!("manifest {name}"), references.into_iter().collect());
    digests.push(manifest.clone());
    fixture.image(&caller(), &name, &manifest, labels(&[]));
    fixture.store.leases(default()).delete(leased.lease.as_ref().unwrap()).unwrap();
    (name, digests, chain)
}

#[test]
fn a_pull_that_races_the_collector_loses_nothing() {
    let fixture = Fixture::new();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let collector = scope.spawn(|| {
            let mut rounds = 0;
            while !over.load(Ordering::SeqCst) {
                let collected = fixture.store.collect().unwrap();
                assert!(collected.failures.is_empty(), "{:?}", collected.failures);
                rounds += 1;
            }
            rounds
        });
        let pullers: Vec<_> = (0..PULLERS)
            .map(|puller| {
                let fixture = &fixture;
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let (name, digests, chain) = pull(fixture, puller, round);
                        for digest in &digests {
                            assert!(fixture.has_blob(digest), "{name} lost {digest}");
                        }
                        let snapshots = fixture.store.snapshots(default(), "remembering").unwrap();
                        for id in &chain {
                            snapshots.stat(id).unwrap_or_else(|_| panic!("{name} lost {id}"));
                        }
                        if round % 2 == 0 {
                            fixture.store.images(default()).delete(&name, None).unwrap();
                        }
                    }
                })
            })
            .collect();
        let outcomes: Vec<_> = pullers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        over.store(true, Ordering::SeqCst);
        assert!(collector.join().unwrap() > 3, "the collector hardly ran");
        outcomes.into_iter().for_each(|outcome| outcome.unwrap());
    });

    for image in fixture.store.images(default()).list(&types::Filters::all()).unwrap() {
        fixture.store.images(default()).delete(&image.name, None).unwrap();
    }
    fixture.store.collect().unwrap();
    fixture.store.collect().unwrap();
    assert!(content::Store::list(&*fixture.blobs).unwrap().is_empty(), "nothing is left behind");
    assert!(fixture.snapshotter.keys().is_empty(), "{:?}", fixture.snapshotter.keys());
}
