//! Leases: they keep a client's objects while nothing else refers to them yet.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};
use std::ops::ControlFlow;

use kv::{Read, Reader, Table, Value, Writer};
use stdx::Mutex;
use types::{
    Digest, Error, ErrorKind, FieldPath, Fields, Filters, IngestRef, Labels, LeaseId, Namespace, Result,
    Timestamp, filter, label,
};

use crate::gc;
use crate::gc::graph::Node;
use crate::gc::label as gc_label;
use crate::mask;
use crate::store::{Caller, Change, Inner, Metadata, Notice, OnDisk, Ready};

pub(crate) const LEASES: Table<(Namespace, LeaseId), Record> = Table::new("leases");
/// Key: namespace, lease, kind, id; kind and id as [`Resource`] writes them.
pub(crate) const LEASE_RESOURCES: Table<(Namespace, LeaseId, String, String), ()> =
    Table::new("lease_resources");
const VERSION: u8 = 1;

/// Label of a lease: the holder, if it is a workflow of the daemon.
const HOLDER: &str = "hoist.lease/holder";
const DAEMON: &str = "daemon";

#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    pub id: LeaseId,
    pub labels: Labels,
    pub created: Timestamp,
}

pub(crate) struct Record {
    pub(crate) labels: Labels,
    created: Timestamp,
}

impl Value for Record {
    fn encode(&self, to: &mut Writer) {
        to.byte(VERSION);
        to.timestamp(self.created);
        to.labels(&self.labels);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Record> {
        from.version(VERSION)?;
        Ok(Record { created: from.timestamp()?, labels: from.labels()? })
    }
}

/// The leases of running workflows.
pub(crate) type Workflows = Mutex<HashSet<(Namespace, LeaseId)>>;

/// A running workflow of the daemon, until dropped. If the workflow failed, its lease keeps what it made from being
/// collected, for the next one to resume, but nobody uses it meanwhile.
pub struct Workflow {
    store: Metadata,
    lease: (Namespace, LeaseId),
}

impl Drop for Workflow {
    fn drop(&mut self) {
        self.store.0.workflows.lock().remove(&self.lease);
        (self.store.0.notice)(Notice::Settled);
    }
}

/// Whether a lease's resources may be in use. For leases of clients this is not known, so they always count.
pub(crate) fn is_in_use(store: &Inner, namespace: &Namespace, id: &LeaseId, record: &Record) -> bool {
    record.labels.get(HOLDER).is_none_or(|holder| holder != DAEMON)
        || store.workflows.lock().contains(&(namespace.clone(), id.clone()))
}

/// An object that a lease can hold. It need not exist.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Resource {
    Content(Digest),
    Ingest(IngestRef),
    Image(String),
    Snapshot {
        snapshotter: String,
        key: String,
    },
    /// An activation of mounts, by name.
    Mount(String),
}

impl Resource {
    /// Parses the API's type and id. `InvalidArgument` if the id is empty or invalid, or the type incomplete;
    /// `Unimplemented` for unknown types.
    pub fn parse(kind: &str, id: &str) -> Result<Resource> {
        let parts: Vec<&str> = kind.split('/').collect();
        match parts[..] {
            ["images" | "mounts"] | ["snapshots", _] if id.is_empty() => {
                Err(Error::invalid_argument(format!("a resource of type {kind:?} must have an id")))
            }
            ["snapshots", ""] => {
                Err(Error::invalid_argument(format!("resource type {kind:?} names no snapshotter")))
            }
            ["content"] => {
                let invalid = |error: Error| error.context(format!("invalid content resource id {id}"));
                id.parse().map(Resource::Content).map_err(invalid)
            }
            ["ingests"] => IngestRef::new(id).map(Resource::Ingest),
            ["images"] => Ok(Resource::Image(id.to_owned())),
            ["mounts"] => Ok(Resource::Mount(id.to_owned())),
            // Canonical, since clients use several names of a snapshotter.
            ["snapshots", snapshotter] => Ok(Resource::Snapshot {
                snapshotter: snapshot::canonical_name(snapshotter).to_owned(),
                key: id.to_owned(),
            }),
            ["snapshots", ..] => {
                Err(Error::invalid_argument(format!("invalid snapshot resource type {kind}")))
            }
            ["content" | "ingests" | "images" | "mounts", ..] => {
                Err(Error::invalid_argument(format!("invalid resource type {kind}")))
            }
            _ => Err(Error::unimplemented(format!("resource type {kind} not supported yet"))),
        }
    }

    /// The API's type: `content`, `ingests`, `images`, `mounts`, `snapshots/<snapshotter>`.
    pub fn kind(&self) -> String {
        match self {
            Resource::Content(_) => "content".to_owned(),
            Resource::Ingest(_) => "ingests".to_owned(),
            Resource::Image(_) => "images".to_owned(),
            Resource::Mount(_) => "mounts".to_owned(),
            Resource::Snapshot { snapshotter, .. } => format!("snapshots/{snapshotter}"),
        }
    }

    pub fn id(&self) -> String {
        match self {
            Resource::Content(digest) => digest.to_string(),
            Resource::Ingest(reference) => reference.to_string(),
            Resource::Image(name) | Resource::Mount(name) => name.clone(),
            Resource::Snapshot { key, .. } => key.clone(),
        }
    }

    pub(crate) fn node(&self) -> Node {
        match self.clone() {
            Resource::Content(digest) => Node::Content(digest),
            Resource::Ingest(reference) => Node::Ingest(reference),
            Resource::Image(name) => Node::Image(name),
            Resource::Mount(name) => Node::Mount(name),
            Resource::Snapshot { snapshotter, key } => Node::Snapshot(snapshotter, key),
        }
    }
}

impl Fields for Lease {
    fn field(&self, path: &FieldPath) -> Option<Cow<'_, str>> {
        match path.head() {
            "id" => filter::present(self.id.as_str()),
            "labels" => path.label(&self.labels),
            _ => None,
        }
    }
}

/// Adds a resource to a lease. `NotFound` if the lease does not exist.
pub(crate) fn add(
    change: &mut Change<'_, '_>,
    namespace: &Namespace,
    lease: &LeaseId,
    resource: &Resource,
) -> Result<()> {
    require(change.tx, namespace, lease)?;
    LEASE_RESOURCES.put(change.tx, (namespace, lease, resource.kind(), resource.id()), &())?;
    change.touch(namespace, resource.node());
    Ok(())
}

/// Adds a resource to the caller's lease, if there is one. `NotFound` if it does not exist.
pub(crate) fn join(change: &mut Change<'_, '_>, caller: &Caller, resource: &Resource) -> Result<()> {
    let Some(lease) = &caller.lease else { return Ok(()) };
    add(change, &caller.namespace, lease, resource).map_err(missing)
}

/// The error of a call whose lease does not exist, in containerd's words: the call is not about the lease.
pub(crate) fn missing(error: Error) -> Error {
    match error.kind() {
        ErrorKind::NotFound => Error::not_found(format!("{}: lease does not exist", error.message())),
        _ => error,
    }
}

/// `NotFound` if the lease does not exist.
pub(crate) fn require(tx: &impl Read, namespace: &Namespace, lease: &LeaseId) -> Result<()> {
    if LEASES.contains(tx, (namespace, lease))? { Ok(()) } else { Err(not_found(lease)) }
}

/// Removes a resource from the caller's lease, if there is one that holds it.
pub(crate) fn remove(change: &mut Change<'_, '_>, caller: &Caller, resource: &Resource) -> Result<()> {
    if let Some(lease) = &caller.lease {
        LEASE_RESOURCES.delete(change.tx, (&caller.namespace, lease, resource.kind(), resource.id()))?;
    }
    Ok(())
}

pub(crate) fn resources(tx: &impl Read, namespace: &Namespace, lease: &LeaseId) -> Result<Vec<Resource>> {
    let keys = LEASE_RESOURCES.keys(tx, (namespace, lease))?;
    keys.into_iter().map(|(_, _, kind, id)| Resource::parse(&kind, &id)).collect()
}

pub(crate) fn delete(change: &mut Change<'_, '_>, namespace: &Namespace, lease: &LeaseId) -> Result<bool> {
    for key in LEASE_RESOURCES.keys(change.tx, (namespace, lease))? {
        LEASE_RESOURCES.delete(change.tx, key)?;
    }
    change.free();
    change.settle();
    LEASES.delete(change.tx, (namespace, lease))
}

pub(crate) fn delete_all(change: &mut Change<'_, '_>, namespace: &Namespace) -> Result<()> {
    for (namespace, lease) in LEASES.keys(change.tx, (namespace,))? {
        delete(change, &namespace, &lease)?;
    }
    Ok(())
}

#[derive(Clone)]
pub struct Leases {
    store: Metadata,
    namespace: Namespace,
    on_disk: OnDisk,
}

impl Leases {
    pub(crate) fn new(store: Metadata, caller: Caller) -> Leases {
        Leases { store, namespace: caller.namespace, on_disk: caller.on_disk }
    }

    pub fn get(&self, id: &LeaseId) -> Result<Lease> {
        let record = self.store.0.read(|tx| LEASES.get(tx, (&self.namespace, id)))?;
        let Record { labels, created } = record.ok_or_else(|| not_found(id))?;
        Ok(Lease { id: id.clone(), labels, created })
    }

    /// The blobs that leases keep, directly or through references, except leases of workflows that have ended.
    pub fn content(&self) -> Result<BTreeSet<Digest>> {
        let held = self.store.0.read(|tx| gc::leased(&self.store.0, tx, &self.namespace))?;
        let digests = held.into_iter().filter_map(|node| match node {
            Node::Content(digest) => Some(digest),
            _ => None,
        });
        Ok(digests.collect())
    }

    /// The leases that match, by id, including expired ones that were not collected yet.
    pub fn list(&self, filters: &Filters) -> Result<Vec<Lease>> {
        let mut found = Vec::new();
        self.store.0.read(|tx| {
            LEASES.scan(tx, (&self.namespace,), |(_, id), Record { labels, created }| {
                let lease = Lease { id, labels, created };
                if filters.matches(&lease) {
                    found.push(lease);
                }
                Ok(ControlFlow::Continue(()))
            })
        })?;
        Ok(found)
    }

    /// Creates a lease. `AlreadyExists` if the id is taken.
    ///
    /// With label `containerd.io/gc.expire` it ends at that time. With `containerd.io/gc.flat` it keeps its resources
    /// with targets of images and parents of snapshots, but not what their labels refer to.
    pub fn create(&self, id: &LeaseId, labels: Labels) -> Result<Lease> {
        self.ready_create(id.clone(), labels)?.make_on_disk(self.on_disk)
    }

    /// As [`Leases::create`], for a workflow of the daemon.
    pub fn create_for_workflow(&self, id: &LeaseId, mut labels: Labels) -> Result<Workflow> {
        labels.insert(HOLDER.to_owned(), DAEMON.to_owned());
        let lease = (self.namespace.clone(), id.clone());
        self.store.0.workflows.lock().insert(lease.clone());
        let workflow = Workflow { store: self.store.clone(), lease };
        self.create(id, labels).map(|_| workflow)
    }

    /// As [`Leases::create`], as a change that can be queued.
    pub fn ready_create(&self, id: LeaseId, labels: Labels) -> Result<Ready<Lease>> {
        label::check(&labels)?;
        let labels = mask::without_empty(labels);
        let namespace = self.namespace.clone();
        Ok(Ready::new(&self.store, move |change| {
            if LEASES.contains(change.tx, (&namespace, &id))? {
                return Err(Error::already_exists(format!("lease {id:?}")));
            }
            change.admit(&Caller::new(namespace.clone()), None)?;
            change.expires(gc_label::expiry(&labels));
            let record = Record { labels, created: change.now };
            LEASES.put(change.tx, (&namespace, &id), &record)?;
            change.touch(&namespace, Node::Lease(id.clone()));
            Ok(Lease { id, labels: record.labels, created: record.created })
        }))
    }

    /// Creates a lease of another store with its creation time and all its resources, in one change, so that they are
    /// never without it. If the lease exists, as after an interrupted attempt, adds what it lacks. Returns whether
    /// anything was added.
    pub fn take_over(&self, lease: Lease, resources: &[Resource]) -> Result<bool> {
        let Lease { id, labels, created } = lease;
        label::check(&labels)?;
        let record = Record { labels: mask::without_empty(labels), created };
        self.store.0.change(|change| {
            let mut is_new = !LEASES.contains(change.tx, (&self.namespace, &id))?;
            if is_new {
                change.admit(&Caller::new(self.namespace.clone()), None)?;
                change.expires(gc_label::expiry(&record.labels));
                LEASES.put(change.tx, (&self.namespace, &id), &record)?;
                change.touch(&self.namespace, Node::Lease(id.clone()));
            }
            for resource in resources {
                let key = (&self.namespace, &id, resource.kind(), resource.id());
                if !LEASE_RESOURCES.contains(change.tx, key)? {
                    is_new = true;
                    add(change, &self.namespace, &id, resource)?;
                }
            }
            Ok(is_new)
        })
    }

    /// Ends a lease. The next collection removes what it alone kept.
    pub fn delete(&self, id: &LeaseId) -> Result<()> {
        self.ready_delete(id.clone()).make()
    }

    /// As [`Leases::delete`], as a change that can be queued.
    pub fn ready_delete(&self, id: LeaseId) -> Ready<()> {
        let namespace = self.namespace.clone();
        Ready::new(
            &self.store,
            move |change| {
                if delete(change, &namespace, &id)? { Ok(()) } else { Err(not_found(&id)) }
            },
        )
    }

    pub fn add_resource(&self, id: &LeaseId, resource: &Resource) -> Result<()> {
        self.ready_add(id.clone(), resource.clone()).make_on_disk(self.on_disk)
    }

    /// As [`Leases::add_resource`], as a change that can be queued.
    pub fn ready_add(&self, id: LeaseId, resource: Resource) -> Ready<()> {
        let namespace = self.namespace.clone();
        Ready::new(&self.store, move |change| add(change, &namespace, &id, &resource))
    }

    /// Removes a resource from a lease; no error if the lease does not hold it.
    pub fn delete_resource(&self, id: &LeaseId, resource: &Resource) -> Result<()> {
        self.ready_remove(id.clone(), resource.clone()).make()
    }

    /// As [`Leases::delete_resource`], as a change that can be queued.
    pub fn ready_remove(&self, id: LeaseId, resource: Resource) -> Ready<()> {
        let namespace = self.namespace.clone();
        Ready::new(&self.store, move |change| {
            if !LEASES.contains(change.tx, (&namespace, &id))? {
                return Err(not_found(&id));
            }
            let key = (&namespace, &id, resource.kind(), resource.id());
            change.free();
            change.settle();
            LEASE_RESOURCES.delete(change.tx, key).map(drop)
        })
    }

    pub fn resources(&self, id: &LeaseId) -> Result<Vec<Resource>> {
        self.store.0.read(|tx| {
            if !LEASES.contains(tx, (&self.namespace, id))? {
                return Err(not_found(id));
            }
            resources(tx, &self.namespace, id)
        })
    }
}

fn not_found(id: &LeaseId) -> Error {
    Error::not_found(format!("lease {id:?}"))
}
