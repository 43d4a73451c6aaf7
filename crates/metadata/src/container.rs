//! Container records: what to run. Tasks, which run them, are not recorded here.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use kv::{Read, Reader, StoredLabels, Table, Value, Writer};
use types::{
    ContainerId, Error, FieldPath, Fields, Filters, Labels, Namespace, Opaque, Result, Timestamp, filter,
    label,
};

use crate::event::Event;
use crate::gc::graph::Node;
use crate::gc::label as gc_label;
use crate::mask;
use crate::store::{Caller, Change, Metadata, Ready};

pub(crate) const CONTAINERS: Table<(Namespace, ContainerId), Record> = Table::new("containers");
const VERSION: u8 = 1;

#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    pub id: ContainerId,
    pub labels: Labels,
    /// The name of an image, or empty. Does not keep the image from being collected.
    pub image: String,
    pub runtime: Runtime,
    /// The OCI runtime spec. Required.
    pub spec: Option<Opaque>,
    pub snapshotter: String,
    /// The snapshot of the root file system, which this record keeps; or empty.
    pub snapshot_key: String,
    /// The sandbox of the container, or empty.
    pub sandbox_id: String,
    pub extensions: BTreeMap<String, Opaque>,
    pub created: Timestamp,
    pub updated: Timestamp,
}

/// The runtime of a container, and its options.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Runtime {
    pub name: String,
    pub options: Option<Opaque>,
}

/// The stored form of a container.
pub(crate) struct Record(Container);

impl Runtime {
    pub(crate) fn encode(&self, to: &mut Writer) {
        to.text(&self.name);
        to.option(self.options.as_ref(), Writer::opaque);
    }

    pub(crate) fn decode(from: &mut Reader<'_>) -> Result<Runtime> {
        Ok(Runtime { name: from.string()?, options: from.option(Reader::opaque)? })
    }
}

impl Value for Record {
    fn encode(&self, to: &mut Writer) {
        let container = &self.0;
        to.byte(VERSION);
        to.text(container.id.as_str());
        to.timestamp(container.created);
        to.timestamp(container.updated);
        to.labels(&container.labels);
        to.text(&container.image);
        container.runtime.encode(to);
        to.option(container.spec.as_ref(), Writer::opaque);
        to.text(&container.snapshotter);
        to.text(&container.snapshot_key);
        to.text(&container.sandbox_id);
        to.map(&container.extensions, Writer::opaque);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Record> {
        StoredContainer::read(from)?.to_container().map(Record)
    }
}

/// A container as it is stored, without copies: for listing many of them.
#[derive(Clone, Debug)]
pub struct StoredContainer<'a> {
    pub id: &'a str,
    pub created: Timestamp,
    pub updated: Timestamp,
    pub labels: StoredLabels<'a>,
    pub image: &'a str,
    pub runtime: &'a str,
    pub runtime_options: Option<StoredOpaque<'a>>,
    pub spec: Option<StoredOpaque<'a>>,
    pub snapshotter: &'a str,
    pub snapshot_key: &'a str,
    pub sandbox_id: &'a str,
    pub extensions: Vec<(&'a str, StoredOpaque<'a>)>,
}

/// Type URL and value.
type StoredOpaque<'a> = (&'a str, &'a [u8]);

impl<'a> StoredContainer<'a> {
    fn read(from: &mut Reader<'a>) -> Result<StoredContainer<'a>> {
        from.version(VERSION)?;
        Ok(StoredContainer {
            id: from.text()?,
            created: from.timestamp()?,
            updated: from.timestamp()?,
            labels: from.stored_labels()?,
            image: from.text()?,
            runtime: from.text()?,
            runtime_options: from.option(Reader::stored_opaque)?,
            spec: from.option(Reader::stored_opaque)?,
            snapshotter: from.text()?,
            snapshot_key: from.text()?,
            sandbox_id: from.text()?,
            extensions: from.entries(Reader::stored_opaque)?,
        })
    }

    fn to_container(&self) -> Result<Container> {
        let opaque = |(type_url, value): StoredOpaque<'_>| Opaque {
            type_url: type_url.to_owned(),
            value: value.to_vec(),
        };
        let extensions = self.extensions.iter().map(|(name, value)| ((*name).to_owned(), opaque(*value)));
        Ok(Container {
            id: self.id.parse()?,
            labels: self.labels.to_labels(),
            image: self.image.to_owned(),
            runtime: Runtime { name: self.runtime.to_owned(), options: self.runtime_options.map(opaque) },
            spec: self.spec.map(opaque),
            snapshotter: self.snapshotter.to_owned(),
            snapshot_key: self.snapshot_key.to_owned(),
            sandbox_id: self.sandbox_id.to_owned(),
            extensions: extensions.collect(),
            created: self.created,
            updated: self.updated,
        })
    }
}

impl Record {
    pub(crate) fn references(&self) -> Vec<Node> {
        let mut nodes = gc_label::references(&self.0.labels);
        if !self.0.snapshot_key.is_empty() {
            nodes.push(Node::snapshot(&self.0.snapshotter, &*self.0.snapshot_key));
        }
        nodes
    }
}

impl Fields for StoredContainer<'_> {
    fn field(&self, path: &FieldPath) -> Option<Cow<'_, str>> {
        match (path.head(), path.second()) {
            ("id", _) => filter::present(self.id),
            ("runtime", "name") => filter::present(self.runtime),
            ("image", _) => filter::present(self.image),
            ("labels", _) => self.labels.get(path.rest()).map(Cow::Borrowed),
            _ => None,
        }
    }
}

/// Context of errors for updates that would make the record invalid.
const UPDATE: &str = "update failed validation";
const EMPTY_EXTENSION: &str = "container.Extension keys must not be zero-length";

#[derive(Clone)]
pub struct Containers {
    store: Metadata,
    caller: Caller,
}

impl Containers {
    pub(crate) fn new(store: Metadata, caller: Caller) -> Containers {
        Containers { store, caller }
    }

    pub fn get(&self, id: &ContainerId) -> Result<Container> {
        self.store.0.read(|tx| self.find(tx, id))
    }

    /// The ids of all containers, in order. Reads no record.
    pub fn ids(&self) -> Result<Vec<ContainerId>> {
        let mut ids = Vec::new();
        self.store.0.read(|tx| {
            CONTAINERS.scan_keys(tx, (&self.caller.namespace,), |(_, id)| {
                ids.push(id);
                Ok(ControlFlow::Continue(()))
            })
        })?;
        Ok(ids)
    }

    /// The containers that match, by id.
    pub fn list(&self, filters: &Filters) -> Result<Vec<Container>> {
        let mut found = Vec::new();
        self.visit(filters, |container| {
            found.push(container.to_container()?);
            Ok(())
        })?;
        Ok(found)
    }

    /// Calls `visit` with the containers that match, by id, until it fails.
    pub fn visit(
        &self,
        filters: &Filters,
        mut visit: impl FnMut(StoredContainer<'_>) -> Result<()> + Send,
    ) -> Result<()> {
        let namespace = &self.caller.namespace;
        let mut look = |mut value: Reader<'_>| {
            let container = StoredContainer::read(&mut value)?;
            if filters.matches(&container) { visit(container) } else { Ok(()) }
        };
        self.store.0.read(|tx| match filters.values_of("id") {
            // A value that is not a valid id matches nothing.
            Some(ids) => ids
                .into_iter()
                .filter_map(|id| ContainerId::new(id).ok())
                .try_for_each(|id| CONTAINERS.get_stored(tx, (namespace, &id), &mut look)),
            None => CONTAINERS.scan_stored(tx, (namespace,), |_, value| look(value)),
        })
    }

    /// Adds a container, and sets its times. `AlreadyExists` if the id is taken.
    pub fn create(&self, container: Container) -> Result<Container> {
        self.ready_create(container)?.make()
    }

    /// As [`Containers::create`], as a change that can be queued.
    pub fn ready_create(&self, container: Container) -> Result<Ready<Container>> {
        let (containers, container) = (self.clone(), checked(container)?);
        Ok(Ready::new(&self.store, move |change| containers.create_in(change, container)))
    }

    fn create_in(&self, change: &mut Change<'_, '_>, container: Container) -> Result<Container> {
        let namespace = &self.caller.namespace;
        if CONTAINERS.contains(change.tx, (namespace, &container.id))? {
            return Err(Error::already_exists(format!("container {:?}", container.id)));
        }
        change.admit(&self.caller, None)?;
        let record = Record(Container { created: change.now, updated: change.now, ..container });
        CONTAINERS.put(change.tx, (namespace, &record.0.id), &record)?;
        let Record(container) = record;
        change.touch(namespace, Node::Container(container.id.clone()));
        let event = Event::ContainerCreated {
            id: container.id.clone(),
            image: container.image.clone(),
            runtime: container.runtime.clone(),
        };
        change.emit(namespace, event);
        Ok(container)
    }

    /// Replaces the fields that `paths` name (`labels`, `labels.<key>`, `spec`, `extensions`, `extensions.<key>`,
    /// `image`, `snapshotkey`). Without paths replaces all of these; snapshotter and runtime name must then be
    /// unchanged. Returns the updated container.
    pub fn update(&self, update: &Container, paths: &[String]) -> Result<Container> {
        const ALL: [&str; 5] = ["labels", "spec", "extensions", "image", "snapshotkey"];
        self.change(&update.id, |container| {
            if paths.is_empty() {
                refuse_immutable(container, update)?;
                for path in ALL {
                    replace(container, update, path)?;
                }
            }
            for path in paths {
                replace(container, update, path)?;
            }
            Ok(())
        })
    }

    /// Changes a container by `change_it`, in one transaction. Returns the changed container.
    pub fn change(
        &self,
        id: &ContainerId,
        change_it: impl FnOnce(&mut Container) -> Result<()>,
    ) -> Result<Container> {
        let namespace = &self.caller.namespace;
        self.store.0.change(|change| {
            let mut container = self.find(change.tx, id)?;
            change_it(&mut container)?;
            let updated = checked(Container { updated: change.now, ..container });
            let container = updated.map_err(|error| error.context(UPDATE))?;
            CONTAINERS.put(change.tx, (namespace, &container.id), &Record(container.clone()))?;
            change.touch(namespace, Node::Container(container.id.clone()));
            let event = Event::ContainerUpdated {
                id: container.id.clone(),
                image: container.image.clone(),
                labels: container.labels.clone(),
                snapshot_key: container.snapshot_key.clone(),
            };
            change.emit(namespace, event);
            Ok(container)
        })
    }

    /// Deletes the record, whether or not the container has a task.
    pub fn delete(&self, id: &ContainerId) -> Result<()> {
        self.store.0.change(|change| self.delete_in(change, id))
    }

    /// As [`Containers::delete`], as a change that can be queued.
    pub fn ready_delete(&self, id: ContainerId) -> Ready<()> {
        let containers = self.clone();
        Ready::new(&self.store, move |change| containers.delete_in(change, &id))
    }

    /// As [`Containers::delete`], but on disk no later than the next change: for a caller that goes on to remove the
    /// container's resources.
    pub fn delete_relaxed(&self, id: &ContainerId) -> Result<()> {
        self.store.0.change_relaxed(|change| self.delete_in(change, id))
    }

    fn delete_in(&self, change: &mut Change<'_, '_>, id: &ContainerId) -> Result<()> {
        let namespace = &self.caller.namespace;
        if !CONTAINERS.delete(change.tx, (namespace, id))? {
            return Err(Error::not_found(format!("container {id}")));
        }
        change.free();
        change.emit(namespace, Event::ContainerDeleted { id: id.clone() });
        Ok(())
    }

    fn not_found(&self, id: &ContainerId) -> Error {
        Error::not_found(format!("container {id:?} in namespace {:?}", self.caller.namespace))
    }

    fn find(&self, tx: &impl Read, id: &ContainerId) -> Result<Container> {
        let record = CONTAINERS.get(tx, (&self.caller.namespace, id))?;
        record.map(|record| record.0).ok_or_else(|| self.not_found(id))
    }
}

fn refuse_immutable(current: &Container, update: &Container) -> Result<()> {
    if current.snapshotter != update.snapshotter {
        return Err(Error::invalid_argument("container.Snapshotter field is immutable"));
    }
    if current.runtime.name != update.runtime.name {
        return Err(Error::invalid_argument("container.Runtime.Name field is immutable"));
    }
    Ok(())
}

fn replace(container: &mut Container, update: &Container, path: &str) -> Result<()> {
    match mask::split(path) {
        ("labels", key) => mask::merge(&mut container.labels, &update.labels, key),
        ("extensions", Some("")) => {
            return Err(Error::invalid_argument(EMPTY_EXTENSION).context(UPDATE));
        }
        ("extensions", key) => mask::merge(&mut container.extensions, &update.extensions, key),
        ("spec", None) => container.spec.clone_from(&update.spec),
        ("image", None) => container.image.clone_from(&update.image),
        ("snapshotkey", None) => container.snapshot_key.clone_from(&update.snapshot_key),
        _ => return Err(mask::refused(path, &format!("{:?}", container.id))),
    }
    Ok(())
}

fn checked(mut container: Container) -> Result<Container> {
    let refuse = |why: &str| Err(Error::invalid_argument(why));
    if container.extensions.contains_key("") {
        return refuse(EMPTY_EXTENSION);
    }
    label::check(&container.labels).map_err(|error| error.context("containers.Labels"))?;
    if container.runtime.name.is_empty() {
        return refuse("container.Runtime.Name must be set");
    }
    // As in containerd, an empty spec is accepted: the runtime interprets it.
    if container.spec.is_none() {
        return refuse("container.Spec must be set");
    }
    if !container.snapshot_key.is_empty() && container.snapshotter.is_empty() {
        return refuse("container.Snapshotter must be set if container.SnapshotKey is set");
    }
    container.labels = mask::without_empty(container.labels);
    Ok(container)
}
