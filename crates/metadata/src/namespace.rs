//! Namespaces: tenants. One is created explicitly, or by the first record in it.

use kv::{Read, Reader, Table, Value, Writer};
use types::{Error, Labels, Namespace, Result, label};

use crate::event::Event;
use crate::store::{Change, Metadata};
use crate::{activation, container, content, image, lease, mask, sandbox, snapshot};

pub(crate) const NAMESPACES: Table<Namespace, Record> = Table::new("namespaces");
const VERSION: u8 = 1;
/// Label of a namespace that shares its blobs by digest, where namespaces are isolated otherwise.
const SHAREABLE: &str = "containerd.io/namespace.shareable";

#[derive(Default)]
pub(crate) struct Record {
    labels: Labels,
}

impl Value for Record {
    fn encode(&self, to: &mut Writer) {
        to.byte(VERSION);
        to.labels(&self.labels);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Record> {
        from.version(VERSION)?;
        Ok(Record { labels: from.labels()? })
    }
}

/// Creates the namespace of a new record, without an event, unless it exists.
pub(crate) fn ensure(change: &mut Change<'_, '_>, namespace: &Namespace) -> Result<()> {
    if !NAMESPACES.contains(change.tx, namespace)? {
        NAMESPACES.put(change.tx, namespace, &Record::default())?;
    }
    Ok(())
}

/// The namespaces that share their blobs although namespaces are isolated.
pub(crate) fn sharing(tx: &impl Read) -> Result<Vec<Namespace>> {
    let mut all = NAMESPACES.list(tx, ())?;
    all.retain(|(_, record)| record.labels.get(SHAREABLE).is_some_and(|value| value == "true"));
    Ok(all.into_iter().map(|(namespace, _)| namespace).collect())
}

pub struct Namespaces {
    store: Metadata,
}

impl Namespaces {
    pub(crate) fn new(store: Metadata) -> Namespaces {
        Namespaces { store }
    }

    /// The labels of a namespace. `NotFound` if it does not exist.
    pub fn get(&self, namespace: &Namespace) -> Result<Labels> {
        let record = self.store.0.read(|tx| NAMESPACES.get(tx, namespace))?;
        record.map(|record| record.labels).ok_or_else(|| not_found(namespace))
    }

    pub fn list(&self) -> Result<Vec<(Namespace, Labels)>> {
        let records = self.store.0.read(|tx| NAMESPACES.list(tx, ()))?;
        Ok(records.into_iter().map(|(namespace, record)| (namespace, record.labels)).collect())
    }

    pub fn create(&self, namespace: &Namespace, labels: Labels) -> Result<()> {
        label::check(&labels).map_err(|error| error.context("namespace.Labels"))?;
        let labels = mask::without_empty(labels);
        self.store.0.change(|change| {
            if NAMESPACES.contains(change.tx, namespace)? {
                return Err(Error::already_exists(format!("namespace {namespace:?}")));
            }
            NAMESPACES.put(change.tx, namespace, &Record { labels: labels.clone() })?;
            change.settle();
            change.emit(namespace, Event::NamespaceCreated { labels });
            Ok(())
        })
    }

    /// Replaces labels: those that `paths` name (`labels`, `labels.<key>`), or all without paths. A label with an
    /// empty value is deleted. Returns the updated labels. Creates the namespace if it does not exist and there is
    /// anything to set: containerd's clients label a namespace before anything is in it.
    pub fn update(&self, namespace: &Namespace, labels: &Labels, paths: &[String]) -> Result<Labels> {
        self.store.0.change(|change| {
            let found = NAMESPACES.get(change.tx, namespace)?;
            let is_nothing = found.is_none() && labels.is_empty() && paths.is_empty();
            let mut record = found.unwrap_or_default();
            let refused = |path: &str| mask::refused(path, &format!("namespace {namespace:?}"));
            record.labels = mask::labels("namespace.Labels", record.labels, labels, paths, refused)?;
            change.settle();
            if !is_nothing {
                NAMESPACES.put(change.tx, namespace, &record)?;
            }
            // The event has the labels of the request, as in containerd.
            change.emit(namespace, Event::NamespaceUpdated { labels: labels.clone() });
            Ok(record.labels)
        })
    }

    /// Deletes a namespace with its leases, sandbox records, activations of mounts and ingests. `FailedPrecondition` while
    /// it has images, blobs, containers or snapshots.
    pub fn delete(&self, namespace: &Namespace) -> Result<()> {
        let (has_mounts, ingests) = self.store.0.change(|change| {
            if !NAMESPACES.contains(change.tx, namespace)? {
                return Err(not_found(namespace));
            }
            let left = remaining_objects(change.tx, namespace)?;
            if !left.is_empty() {
                return Err(Error::failed_precondition(format!(
                    "namespace {namespace:?} must be empty, but it still has {}",
                    left.join(", ")
                )));
            }
            lease::delete_all(change, namespace)?;
            sandbox::delete_all(change, namespace)?;
            let has_mounts = activation::delete_all(change, namespace)?;
            let ingests = content::delete_all_ingests(change, namespace)?;
            NAMESPACES.delete(change.tx, namespace)?;
            change.free();
            change.emit(namespace, Event::NamespaceDeleted);
            Ok((has_mounts, ingests))
        })?;
        if has_mounts {
            self.store.0.gc.orphan_mounts();
        }
        ingests.into_iter().for_each(|backend| self.store.0.gc.orphan_ingest(backend));
        Ok(())
    }
}

fn remaining_objects(tx: &impl Read, namespace: &Namespace) -> Result<Vec<String>> {
    let mut left = Vec::new();
    if image::IMAGES.any(tx, (namespace,))? {
        left.push("images".to_owned());
    }
    if content::BLOBS.any(tx, (namespace,))? {
        left.push("blobs".to_owned());
    }
    if container::CONTAINERS.any(tx, (namespace,))? {
        left.push("containers".to_owned());
    }
    for snapshotter in snapshot::snapshotters_used(tx, namespace)? {
        left.push(format!("snapshots on {snapshotter:?} snapshotter"));
    }
    Ok(left)
}

fn not_found(namespace: &Namespace) -> Error {
    Error::not_found(format!("namespace {namespace:?}"))
}
