//! Sandbox records: groups of containers. Sandbox controllers run them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use kv::{Read, Reader, Table, Value, Writer};
use types::{
    Error, FieldPath, Fields, Filters, Labels, Namespace, Opaque, Result, SandboxId, Timestamp, filter, label,
};

use crate::container::Runtime;
use crate::gc::graph::Node;
use crate::gc::label as gc_label;
use crate::mask;
use crate::store::{Caller, Change, Metadata};

pub(crate) const SANDBOXES: Table<(Namespace, SandboxId), Record> = Table::new("sandboxes");
const VERSION: u8 = 1;

#[derive(Clone, Debug, PartialEq)]
pub struct Sandbox {
    pub id: SandboxId,
    pub labels: Labels,
    pub runtime: Runtime,
    pub spec: Option<Opaque>,
    /// The name of the sandbox controller.
    pub sandboxer: String,
    pub extensions: BTreeMap<String, Opaque>,
    pub created: Timestamp,
    pub updated: Timestamp,
}

pub(crate) struct Record(Sandbox);

impl Value for Record {
    fn encode(&self, to: &mut Writer) {
        let sandbox = &self.0;
        to.byte(VERSION);
        to.text(sandbox.id.as_str());
        to.timestamp(sandbox.created);
        to.timestamp(sandbox.updated);
        to.labels(&sandbox.labels);
        sandbox.runtime.encode(to);
        to.option(sandbox.spec.as_ref(), Writer::opaque);
        to.text(&sandbox.sandboxer);
        to.map(&sandbox.extensions, Writer::opaque);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Record> {
        from.version(VERSION)?;
        Ok(Record(Sandbox {
            id: from.text()?.parse()?,
            created: from.timestamp()?,
            updated: from.timestamp()?,
            labels: from.labels()?,
            runtime: Runtime::decode(from)?,
            spec: from.option(Reader::opaque)?,
            sandboxer: from.string()?,
            extensions: from.map(Reader::opaque)?,
        }))
    }
}

impl Record {
    pub(crate) fn references(&self) -> Vec<Node> {
        gc_label::references(&self.0.labels)
    }
}

impl Fields for Sandbox {
    fn field(&self, path: &FieldPath) -> Option<Cow<'_, str>> {
        match path.head() {
            "id" => filter::present(self.id.as_str()),
            "labels" => path.label(&self.labels),
            _ => None,
        }
    }
}

pub(crate) fn delete_all(change: &mut Change<'_, '_>, namespace: &Namespace) -> Result<()> {
    for key in SANDBOXES.keys(change.tx, (namespace,))? {
        SANDBOXES.delete(change.tx, key)?;
    }
    Ok(())
}

pub struct Sandboxes {
    store: Metadata,
    caller: Caller,
}

impl Sandboxes {
    pub(crate) fn new(store: Metadata, caller: Caller) -> Sandboxes {
        Sandboxes { store, caller }
    }

    pub fn get(&self, id: &SandboxId) -> Result<Sandbox> {
        self.store.0.read(|tx| self.find(tx, id))
    }

    /// The sandboxes that match, by id.
    pub fn list(&self, filters: &Filters) -> Result<Vec<Sandbox>> {
        let mut found = Vec::new();
        self.store.0.read(|tx| {
            SANDBOXES.scan(tx, (&self.caller.namespace,), |_, Record(sandbox)| {
                if filters.matches(&sandbox) {
                    found.push(sandbox);
                }
                Ok(ControlFlow::Continue(()))
            })
        })?;
        Ok(found)
    }

    /// Adds a sandbox, and sets its times. `AlreadyExists` if the id is taken.
    pub fn create(&self, sandbox: Sandbox) -> Result<Sandbox> {
        let sandbox = checked(sandbox)?;
        let namespace = &self.caller.namespace;
        self.store.0.change(|change| {
            if SANDBOXES.contains(change.tx, (namespace, &sandbox.id))? {
                return Err(Error::already_exists(format!("sandbox {:?}", sandbox.id)));
            }
            change.admit(&self.caller, None)?;
            let sandbox = Sandbox { created: change.now, updated: change.now, ..sandbox };
            SANDBOXES.put(change.tx, (namespace, &sandbox.id), &Record(sandbox.clone()))?;
            change.touch(namespace, Node::Sandbox(sandbox.id.clone()));
            Ok(sandbox)
        })
    }

    /// Replaces the fields that `paths` name (`labels`, `labels.<key>`, `extensions`, `extensions.<key>`, `runtime`,
    /// `spec`), or all of these without paths. As in containerd, the name of the runtime changes only by its path.
    pub fn update(&self, update: &Sandbox, paths: &[String]) -> Result<Sandbox> {
        const ALL: [&str; 4] = ["labels", "extensions", "runtime", "spec"];
        let namespace = &self.caller.namespace;
        self.store.0.change(|change| {
            let mut sandbox = self.find(change.tx, &update.id)?;
            if paths.is_empty() {
                if sandbox.runtime.name != update.runtime.name {
                    return Err(Error::invalid_argument(format!(
                        "sandbox {:?} runs on {}: the sandbox.Runtime.Name field is immutable without a mask",
                        sandbox.id, sandbox.runtime.name
                    )));
                }
                for path in ALL {
                    replace(&mut sandbox, update, path)?;
                }
            }
            for path in paths {
                replace(&mut sandbox, update, path)?;
            }
            let sandbox = checked(Sandbox { updated: change.now, ..sandbox })?;
            SANDBOXES.put(change.tx, (namespace, &sandbox.id), &Record(sandbox.clone()))?;
            change.touch(namespace, Node::Sandbox(sandbox.id.clone()));
            Ok(sandbox)
        })
    }

    pub fn delete(&self, id: &SandboxId) -> Result<()> {
        self.store.0.change(|change| {
            if SANDBOXES.delete(change.tx, (&self.caller.namespace, id))? {
                change.free();
                Ok(())
            } else {
                Err(Error::not_found(format!("failed to delete sandbox {id:?}")))
            }
        })
    }

    fn find(&self, tx: &impl Read, id: &SandboxId) -> Result<Sandbox> {
        let record = SANDBOXES.get(tx, (&self.caller.namespace, id))?;
        record.map(|record| record.0).ok_or_else(|| not_found(id))
    }
}

fn not_found(id: &SandboxId) -> Error {
    Error::not_found(format!("sandbox {id:?}"))
}

fn replace(sandbox: &mut Sandbox, update: &Sandbox, path: &str) -> Result<()> {
    match mask::split(path) {
        ("labels", key) => mask::merge(&mut sandbox.labels, &update.labels, key),
        ("extensions", key) => mask::merge(&mut sandbox.extensions, &update.extensions, key),
        ("spec", None) => sandbox.spec.clone_from(&update.spec),
        ("runtime", None) => sandbox.runtime.clone_from(&update.runtime),
        _ => return Err(mask::refused(path, &format!("sandbox {:?}", sandbox.id))),
    }
    Ok(())
}

fn checked(mut sandbox: Sandbox) -> Result<Sandbox> {
    if sandbox.runtime.name.is_empty() {
        return Err(Error::invalid_argument("sandbox.Runtime.Name must be set"));
    }
    if sandbox.extensions.contains_key("") {
        return Err(Error::invalid_argument("extension keys must not be zero-length"));
    }
    label::check(&sandbox.labels)?;
    sandbox.labels = mask::without_empty(sandbox.labels);
    Ok(sandbox)
}
