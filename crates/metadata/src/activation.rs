//! Records of activations: named sets of mounts that stay. The crate `mounts` makes the mounts.
//!
//! ```text
//! begin ──▶ incomplete ──finish──▶ complete ──remove──▶ gone
//!               └───────────remove────────────────────────▲
//! ```
//!
//! Mounts are made under the number of their record. Numbers are never reused, so mounts under a number without a
//! record are orphans. The collector keeps an activation that a lease holds, that has a living object in its back
//! reference labels (`containerd.io/gc.bref.…`), or that is incomplete.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::ControlFlow;

use kv::{Read, Reader, Table, Value, Writer};
use types::{
    Error, FieldPath, Fields, Filters, Labels, LeaseId, Mount, Namespace, Result, Timestamp, filter, label,
};

use crate::gc::graph::Node;
use crate::gc::label as gc_label;
use crate::lease::{LEASE_RESOURCES, Resource};
use crate::mask;
use crate::namespace::NAMESPACES;
use crate::store::{Caller, Change, Metadata};

pub(crate) const ACTIVATIONS: Table<(Namespace, String), Record> = Table::new("activations");
const VERSION: u8 = 1;

/// Bytes of a name at most: some clients use the path at which they show the mounts.
const NAME_LEN_MAX: usize = 4096;

/// A named set of mounts that stays.
#[derive(Clone, Debug, PartialEq)]
pub struct Activation {
    pub name: String,
    /// Unique, and never reused.
    pub number: u64,
    pub labels: Labels,
    /// The mounts that were made, in order.
    pub active: Vec<ActiveMount>,
    /// The mounts that are left to the user of the activation.
    pub system: Vec<Mount>,
    pub created: Timestamp,
    pub updated: Timestamp,
}

/// A mount that was made.
#[derive(Clone, Debug, PartialEq)]
pub struct ActiveMount {
    pub mount: Mount,
    /// Its mount point.
    pub point: String,
    pub mounted: Timestamp,
}

pub(crate) struct Record {
    activation: Activation,
    lease: Option<LeaseId>,
    pub(crate) is_complete: bool,
}

impl Record {
    pub(crate) fn labels(&self) -> &Labels {
        &self.activation.labels
    }
}

impl Value for Record {
    fn encode(&self, to: &mut Writer) {
        let Activation { name, number, labels, active, system, created, updated } = &self.activation;
        to.byte(VERSION);
        to.text(name);
        to.number(*number);
        to.timestamp(*created);
        to.timestamp(*updated);
        to.labels(labels);
        to.option(self.lease.as_ref(), |to, lease| to.text(lease.as_str()));
        to.bool(self.is_complete);
        to.number(active.len() as u64);
        for ActiveMount { mount, point, mounted } in active {
            write_mount(to, mount);
            to.text(point);
            to.timestamp(*mounted);
        }
        to.number(system.len() as u64);
        system.iter().for_each(|mount| write_mount(to, mount));
    }

    fn decode(from: &mut Reader<'_>) -> Result<Record> {
        from.version(VERSION)?;
        let (name, number) = (from.string()?, from.number()?);
        let (created, updated, labels) = (from.timestamp()?, from.timestamp()?, from.labels()?);
        let lease = from.option(Reader::string)?.map(LeaseId::try_from).transpose()?;
        let is_complete = from.bool()?;
        let active = list(from, |from| {
            Ok(ActiveMount { mount: read_mount(from)?, point: from.string()?, mounted: from.timestamp()? })
        })?;
        let system = list(from, read_mount)?;
        let activation = Activation { name, number, labels, active, system, created, updated };
        Ok(Record { activation, lease, is_complete })
    }
}

fn write_mount(to: &mut Writer, mount: &Mount) {
    to.text(&mount.kind);
    to.text(&mount.source);
    to.text(&mount.target);
    to.number(mount.options.len() as u64);
    mount.options.iter().for_each(|option| to.text(option));
}

fn read_mount(from: &mut Reader<'_>) -> Result<Mount> {
    Ok(Mount {
        kind: from.string()?,
        source: from.string()?,
        target: from.string()?,
        options: list(from, Reader::string)?,
    })
}

fn list<'a, T>(from: &mut Reader<'a>, mut read: impl FnMut(&mut Reader<'a>) -> Result<T>) -> Result<Vec<T>> {
    (0..from.number()?).map(|_| read(from)).collect()
}

impl Fields for Activation {
    fn field(&self, path: &FieldPath) -> Option<Cow<'_, str>> {
        match path.head() {
            "name" => filter::present(&self.name),
            "labels" => path.label(&self.labels),
            _ => None,
        }
    }
}

/// The numbers of all activations in all namespaces.
pub(crate) fn numbers(tx: &impl Read) -> Result<HashSet<u64>> {
    let mut numbers = HashSet::new();
    for namespace in NAMESPACES.keys(tx, ())? {
        ACTIVATIONS.scan(tx, (&namespace,), |_, record| {
            numbers.insert(record.activation.number);
            Ok(ControlFlow::Continue(()))
        })?;
    }
    Ok(numbers)
}

pub(crate) fn delete_all(change: &mut Change<'_, '_>, namespace: &Namespace) -> Result<bool> {
    let names = ACTIVATIONS.keys(change.tx, (namespace,))?;
    for key in &names {
        ACTIVATIONS.delete(change.tx, (&key.0, key.1.as_str()))?;
    }
    Ok(!names.is_empty())
}

pub struct Activations {
    store: Metadata,
    caller: Caller,
}

impl Activations {
    pub(crate) fn new(store: Metadata, caller: Caller) -> Activations {
        Activations { store, caller }
    }

    /// A complete activation. `NotFound` also while it is incomplete.
    pub fn get(&self, name: &str) -> Result<Activation> {
        let record = self.store.0.read(|tx| self.find(tx, name))?;
        if record.is_complete { Ok(record.activation) } else { Err(not_found(name)) }
    }

    /// The complete activations that match, by name.
    pub fn list(&self, filters: &Filters) -> Result<Vec<Activation>> {
        let mut found = self.all()?;
        found.retain(|(activation, is_complete)| *is_complete && filters.matches(activation));
        Ok(found.into_iter().map(|(activation, _)| activation).collect())
    }

    /// All activations, each with whether it is complete.
    pub fn all(&self) -> Result<Vec<(Activation, bool)>> {
        let mut found = Vec::new();
        self.store.0.read(|tx| {
            ACTIVATIONS.scan(tx, (&self.caller.namespace,), |_, record| {
                found.push((record.activation, record.is_complete));
                Ok(ControlFlow::Continue(()))
            })
        })?;
        Ok(found)
    }

    /// Records an incomplete activation, and returns the number under which to mount. `AlreadyExists` if there is a
    /// complete one of this name. Replaces an incomplete one: callers must not make the same activation concurrently.
    pub fn begin(&self, name: &str, labels: Labels) -> Result<u64> {
        if name.is_empty() || name.len() > NAME_LEN_MAX {
            let len = name.len();
            let message = format!("the name of an activation has 1 to {NAME_LEN_MAX} bytes, not {len}");
            return Err(Error::invalid_argument(message));
        }
        label::check(&labels)?;
        let labels = mask::without_empty(labels);
        let number = self.store.0.sequence.next()?;
        let Caller { namespace, lease, .. } = &self.caller;
        self.store.0.change(|change| {
            if ACTIVATIONS.get(change.tx, (namespace, name))?.is_some_and(|record| record.is_complete) {
                return Err(Error::already_exists(format!("mount {name:?}")));
            }
            change.admit(&self.caller, Some(Resource::Mount(name.to_owned())))?;
            change.expires(gc_label::expiry(&labels));
            let (created, updated) = (change.now, change.now);
            let (active, system) = (Vec::new(), Vec::new());
            let name = name.to_owned();
            let activation = Activation { name, number, labels, active, system, created, updated };
            let record = Record { activation, lease: lease.clone(), is_complete: false };
            self.put(change, &record)?;
            Ok(number)
        })
    }

    /// Completes an activation with the mounts that were made under `number`. `Aborted` if it was removed meanwhile.
    pub fn finish(
        &self,
        name: &str,
        number: u64,
        active: Vec<ActiveMount>,
        system: Vec<Mount>,
    ) -> Result<Activation> {
        self.store.0.change(|change| {
            let record = ACTIVATIONS.get(change.tx, (&self.caller.namespace, name))?;
            let Some(mut record) = record.filter(|record| record.activation.number == number) else {
                return Err(Error::aborted(format!(
                    "activation {name:?} was removed while its mounts were made"
                )));
            };
            record.is_complete = true;
            record.activation = Activation { active, system, updated: change.now, ..record.activation };
            self.put(change, &record)?;
            Ok(record.activation)
        })
    }

    /// Replaces the labels that `paths` name (`labels`, `labels.<key>`), or all without paths.
    pub fn update(&self, name: &str, labels: &Labels, paths: &[String]) -> Result<Activation> {
        self.store.0.change(|change| {
            let mut record = self.find(change.tx, name)?;
            let activation = &mut record.activation;
            let refused = |path: &str| mask::refused(path, &format!("mount {name:?}"));
            activation.labels =
                mask::labels("mount.Labels", std::mem::take(&mut activation.labels), labels, paths, refused)?;
            activation.updated = change.now;
            change.expires(gc_label::expiry(&activation.labels));
            change.free();
            self.put(change, &record)?;
            Ok(record.activation)
        })
    }

    /// Removes an activation from the records and from its lease. Its mounts are orphans then; the next collection
    /// unmounts them if the caller does not.
    pub fn remove(&self, name: &str) -> Result<Activation> {
        let namespace = &self.caller.namespace;
        let removed = self.store.0.change(|change| {
            let Record { activation, lease, .. } = self.find(change.tx, name)?;
            ACTIVATIONS.delete(change.tx, (namespace, name))?;
            if let Some(lease) = lease {
                let resource = Resource::Mount(name.to_owned());
                LEASE_RESOURCES.delete(change.tx, (namespace, &lease, resource.kind(), resource.id()))?;
            }
            change.free();
            Ok(activation)
        })?;
        // After the commit: a sweep before it would still find the record.
        self.store.0.gc.orphan_mounts();
        Ok(removed)
    }

    fn put(&self, change: &mut Change<'_, '_>, record: &Record) -> Result<()> {
        let (namespace, name) = (&self.caller.namespace, record.activation.name.as_str());
        ACTIVATIONS.put(change.tx, (namespace, name), record)?;
        change.touch(namespace, Node::Mount(name.to_owned()));
        Ok(())
    }

    fn find(&self, tx: &impl Read, name: &str) -> Result<Record> {
        ACTIVATIONS.get(tx, (&self.caller.namespace, name))?.ok_or_else(|| not_found(name))
    }
}

fn not_found(name: &str) -> Error {
    Error::not_found(format!("mount {name:?} not found"))
}
