//! The sweep: removes objects without a record in any namespace from the stores below.
//!
//! Normally it examines only objects that lost a record. The first sweep after a start compares whole stores with the
//! records, as a crash may have left objects without one.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use ::snapshot::Snapshotter;
use types::{Digest, ErrorKind, IngestRef, Result};

use super::{Collected, Orphans};
use crate::activation;
use crate::content::{BLOBS, INGESTS};
use crate::namespace::NAMESPACES;
use crate::snapshot::SNAPSHOTS;
use crate::store::{Inner, Notice};

pub(super) fn sweep(store: &Inner, compare: bool, collected: &mut Collected) {
    let mut orphans = std::mem::take(&mut *store.gc.orphans.lock());
    if compare {
        orphans.snapshotters.extend(store.snapshotters.keys().cloned());
    }

    // First, since mounts keep files of the stores below in use.
    if orphans.mounts || compare {
        let swept = (store.sweep_mounts)(&|| store.read(activation::numbers));
        if swept.is_err() {
            store.gc.orphan_mounts();
        }
        note(swept, collected);
    }

    for stream in &orphans.streams {
        store.streams.end(stream);
    }

    store.gc.blobs.start_log();
    sweep_blobs(store, orphans.blobs, compare, collected);
    store.gc.blobs.stop_log();

    sweep_ingests(store, orphans.ingests, compare, collected);

    let known = orphans.snapshotters.into_iter().filter_map(|name| {
        let backend = store.snapshotters.get(&name)?;
        Some((name, backend))
    });
    let (elsewhere, own): (Vec<_>, Vec<_>) = known.partition(|(_, backend)| backend.is_elsewhere());
    // Our own snapshotters must not wait for other programs.
    for (name, backend) in own.into_iter().chain(elsewhere) {
        store.gc.snapshots.start_log();
        let swept = sweep_snapshots(store, &name, &**backend, collected);
        store.gc.snapshots.stop_log();
        if swept.is_err() {
            store.gc.orphan_snapshot(&name);
        }
        note(swept, collected);
    }
}

fn note(result: Result<()>, collected: &mut Collected) {
    collected.failures.extend(result.err());
}

fn sweep_blobs(store: &Inner, orphans: HashSet<Digest>, compare: bool, collected: &mut Collected) {
    let mut candidates = orphans;
    if compare {
        match store.content.list() {
            Ok(blobs) => candidates.extend(blobs.into_iter().map(|blob| blob.digest)),
            Err(error) => collected.failures.push(error),
        }
    }
    if candidates.is_empty() {
        return;
    }
    let recorded = store.read(|tx| {
        let mut recorded = HashSet::new();
        for namespace in NAMESPACES.keys(tx, ())? {
            for digest in &candidates {
                if BLOBS.contains(tx, (&namespace, digest))? {
                    recorded.insert(digest.clone());
                }
            }
        }
        Ok(recorded)
    });
    match recorded {
        Ok(recorded) => candidates.retain(|digest| !recorded.contains(digest)),
        Err(error) => {
            store.gc.orphan_all(Orphans { blobs: candidates, ..Orphans::default() });
            collected.failures.push(error);
            return;
        }
    }
    let swept_before = collected.blobs_swept;
    for digest in candidates {
        match store.gc.blobs.remove(&digest, || store.content.delete(&digest)) {
            Some(Ok(())) => collected.blobs_swept += 1,
            Some(Err(error)) if error.is(ErrorKind::NotFound) => {}
            Some(Err(error)) => {
                store.gc.orphan(&digest);
                collected.failures.push(error);
            }
            // A caller is about to record it; if it does not, the next sweep removes the blob.
            None => store.gc.orphan(&digest),
        }
    }
    if collected.blobs_swept > swept_before {
        (store.notice)(Notice::SetAside);
    }
}

fn sweep_ingests(store: &Inner, orphans: HashSet<IngestRef>, compare: bool, collected: &mut Collected) {
    let mut candidates = orphans;
    if compare {
        // An ingest is recorded before it is created, so every live one listed here has a record.
        match store.content.statuses() {
            Ok(statuses) => candidates.extend(statuses.into_iter().map(|status| status.reference)),
            Err(error) => collected.failures.push(error),
        }
    }
    if candidates.is_empty() {
        return;
    }
    match store.read(|tx| INGESTS.list(tx, ())) {
        Ok(records) => {
            let recorded: HashSet<IngestRef> =
                records.into_iter().map(|(_, record)| record.backend).collect();
            candidates.retain(|reference| !recorded.contains(reference));
        }
        Err(error) => {
            store.gc.orphan_all(Orphans { ingests: candidates, ..Orphans::default() });
            collected.failures.push(error);
            return;
        }
    }
    for reference in candidates {
        match store.abort_ingest(&reference) {
            Ok(()) => {}
            Err(error) if error.is(ErrorKind::NotFound) => {}
            // Its writer still has it open, though its record is gone.
            Err(error) if error.is(ErrorKind::Unavailable) => store.gc.orphan_ingest(reference),
            Err(error) => {
                store.gc.orphan_ingest(reference);
                collected.failures.push(error);
            }
        }
    }
}

fn sweep_snapshots(
    store: &Inner,
    name: &str,
    backend: &dyn Snapshotter,
    collected: &mut Collected,
) -> Result<()> {
    let begun = Instant::now();
    let parents: HashMap<String, Option<String>> =
        backend.list_for_collection()?.into_iter().map(|snapshot| (snapshot.key, snapshot.parent)).collect();
    let mut dead: HashSet<&String> = parents.keys().collect();
    for ((_, snapshotter, _), record) in store.read(|tx| SNAPSHOTS.list(tx, ()))? {
        if snapshotter == name {
            dead.remove(&record.backend);
        }
    }
    let dead = children_first(&parents, dead);
    if !backend.is_elsewhere() {
        collected.looking += begun.elapsed();
    }
    for key in dead {
        let pin = (name.to_owned(), key.clone());
        match store.gc.snapshots.remove(&pin, || backend.remove(&key)) {
            Some(Ok(())) => collected.snapshots_swept += 1,
            Some(Err(error)) if error.is(ErrorKind::NotFound) => {}
            Some(Err(error)) => {
                store.gc.orphan_snapshot(name);
                collected.failures.push(error);
            }
            None => store.gc.orphan_snapshot(name),
        }
    }
    let cleaned = backend.cleanup();
    (store.notice)(Notice::SetAside);
    match cleaned {
        Err(error) if error.is(ErrorKind::Unimplemented) => Ok(()),
        result => result,
    }
}

/// Those of `dead` without living descendants, each before its parent.
fn children_first(parents: &HashMap<String, Option<String>>, mut dead: HashSet<&String>) -> Vec<String> {
    let mut children: HashMap<&String, usize> = HashMap::new();
    for parent in parents.values().flatten() {
        *children.entry(parent).or_default() += 1;
    }
    let mut ready: Vec<&String> = dead.iter().copied().filter(|key| !children.contains_key(*key)).collect();
    let mut ordered = Vec::new();
    while let Some(key) = ready.pop() {
        dead.remove(key);
        ordered.push(key.clone());
        let Some(parent) = parents.get(key).and_then(Option::as_ref) else { continue };
        if let Some(count) = children.get_mut(parent) {
            *count -= 1;
            if *count == 0 && dead.contains(parent) {
                ready.push(parent);
            }
        }
    }
    ordered
}
