//! `example-snapshotter SOCKET DIRECTORY LAYERS`: a snapshotter that keeps each snapshot as a copy of its parent, and
//! gets layers by itself.
//!
//! ```text
//! prepare(key, parent) ─▶ DIRECTORY/NUMBER, a copy ─▶ commit(name): the same directory, never written again
//!      └ of a layer that LAYERS/DIGEST.tar has ─▶ unpacked there, committed ─▶ "already exists": nobody fetches it
//! ```
//!
//! A real one would not copy but mount, and get what is read of LAYERS from the registry that the labels name.
//!
//! The simplest that works: records are in memory, so a program that starts again begins anew. A real one keeps them
//! where its trees are. `docs/extend/snapshotter.md` walks through it.

mod serve;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard};
use std::time::SystemTime;

use api::grpc::snapshots::snapshots_server::{Snapshots, SnapshotsServer};
use api::grpc::snapshots::*;
use api::grpc::types::Mount;
use tokio_stream::Iter;
use tonic::{Request, Response, Status};

struct Copies {
    directory: PathBuf,
    layers: PathBuf,
    records: Mutex<Records>,
}

#[derive(Default)]
struct Records {
    snapshots: BTreeMap<String, Record>,
    next: u64,
}

#[derive(Clone)]
struct Record {
    info: Info,
    tree: PathBuf,
}

impl Copies {
    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().expect("no panic holds this lock")
    }

    /// The archive of the layer that the labels name, if the plugin has it.
    fn layer(&self, labels: &BTreeMap<String, String>) -> Option<PathBuf> {
        let digest = labels.get("containerd.io/snapshot/cri.layer-digest")?;
        Some(self.layers.join(format!("{digest}.tar"))).filter(|archive| archive.exists())
    }

    /// Unpacks a layer of the plugin's own into a committed snapshot, under the name that the client would give it, and
    /// answers that it exists: then the client does not fetch the layer.
    fn take(&self, archive: &Path, name: &str, request: &PrepareSnapshotRequest) -> Result<Status, Status> {
        if !self.records().snapshots.contains_key(name) {
            let PrepareSnapshotRequest { parent, labels, .. } = request.clone();
            self.make(name.to_owned(), parent, labels, Kind::Committed)?;
            let tree = self.records().find(name)?.tree.clone();
            let unpacked = Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(tree).status();
            if !unpacked.map_err(internal)?.success() {
                self.forget(name)?;
                return Err(Status::internal(format!("unpack {}", archive.display())));
            }
        }
        Ok(Status::already_exists(format!("snapshot {name}")))
    }

    fn forget(&self, key: &str) -> Result<(), Status> {
        let mut records = self.records();
        let tree = records.find(key)?.tree.clone();
        if records.snapshots.values().any(|record| record.info.parent == key) {
            return Err(Status::failed_precondition(format!("snapshot {key} has children")));
        }
        std::fs::remove_dir_all(tree).map_err(internal)?;
        records.snapshots.remove(key);
        Ok(())
    }

    fn make(
        &self,
        key: String,
        parent: String,
        labels: BTreeMap<String, String>,
        kind: Kind,
    ) -> Result<Vec<Mount>, Status> {
        let mut records = self.records();
        if records.snapshots.contains_key(&key) {
            return Err(Status::already_exists(format!("snapshot {key}")));
        }
        let tree = self.directory.join(records.next.to_string());
        records.next += 1;
        std::fs::create_dir(&tree).map_err(internal)?;
        if !parent.is_empty() {
            let below = records.find(&parent)?;
            if below.info.kind() != Kind::Committed {
                return Err(Status::invalid_argument(format!("parent {parent} is not committed")));
            }
            let copied = Command::new("cp").arg("-a").arg(below.tree.join(".")).arg(&tree).status();
            if !copied.map_err(internal)?.success() {
                return Err(Status::internal(format!("copy {parent}")));
            }
        }
        let now = Some(SystemTime::now().into());
        let info =
            Info { name: key.clone(), parent, kind: kind.into(), created_at: now, updated_at: now, labels };
        let record = Record { info, tree };
        let mounts = record.mounts();
        records.snapshots.insert(key, record);
        Ok(mounts)
    }
}

impl Records {
    fn find(&self, key: &str) -> Result<&Record, Status> {
        self.snapshots.get(key).ok_or_else(|| Status::not_found(format!("snapshot {key}")))
    }
}

impl Record {
    /// The mounts by which the daemon, or a shim, shows the tree.
    fn mounts(&self) -> Vec<Mount> {
        let access = if self.info.kind() == Kind::Active { "rw" } else { "ro" };
        vec![Mount {
            r#type: "bind".into(),
            source: self.tree.display().to_string(),
            target: String::new(),
            options: vec!["rbind".into(), access.into()],
        }]
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Snapshots for Copies {
    async fn prepare(&self, request: Request<PrepareSnapshotRequest>) -> Answer<PrepareSnapshotResponse> {
        let request = request.into_inner();
        if let Some(archive) = self.layer(&request.labels)
            && let Some(name) = request.labels.get("containerd.io/snapshot.ref")
        {
            return Err(self.take(&archive, name, &request)?);
        }
        let PrepareSnapshotRequest { key, parent, labels, .. } = request;
        let mounts = self.make(key, parent, labels, Kind::Active)?;
        Ok(Response::new(PrepareSnapshotResponse { mounts }))
    }

    async fn view(&self, request: Request<ViewSnapshotRequest>) -> Answer<ViewSnapshotResponse> {
        let ViewSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let mounts = self.make(key, parent, labels, Kind::View)?;
        Ok(Response::new(ViewSnapshotResponse { mounts }))
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> Answer<MountsResponse> {
        let records = self.records();
        let record = records.find(&request.get_ref().key)?;
        if record.info.kind() == Kind::Committed {
            return Err(Status::failed_precondition("a committed snapshot is not mounted"));
        }
        Ok(Response::new(MountsResponse { mounts: record.mounts() }))
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> Answer<()> {
        let CommitSnapshotRequest { name, key, labels, .. } = request.into_inner();
        let mut records = self.records();
        if records.snapshots.contains_key(&name) {
            return Err(Status::already_exists(format!("snapshot {name}")));
        }
        let mut record = records.find(&key)?.clone();
        if record.info.kind() != Kind::Active {
            return Err(Status::failed_precondition(format!("snapshot {key} is not active")));
        }
        record.info =
            Info { name: name.clone(), kind: Kind::Committed.into(), labels, ..record.info.clone() };
        records.snapshots.remove(&key);
        records.snapshots.insert(name, record);
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> Answer<()> {
        self.forget(&request.get_ref().key).map(Response::new)
    }

    async fn stat(&self, request: Request<StatSnapshotRequest>) -> Answer<StatSnapshotResponse> {
        let info = self.records().find(&request.get_ref().key)?.info.clone();
        Ok(Response::new(StatSnapshotResponse { info: Some(info) }))
    }

    async fn update(&self, request: Request<UpdateSnapshotRequest>) -> Answer<UpdateSnapshotResponse> {
        let wanted = request.into_inner().info.unwrap_or_default();
        let mut records = self.records();
        records.find(&wanted.name)?;
        let record = records.snapshots.get_mut(&wanted.name).expect("found above");
        record.info.labels = wanted.labels;
        Ok(Response::new(UpdateSnapshotResponse { info: Some(record.info.clone()) }))
    }

    type ListStream = Iter<std::vec::IntoIter<Result<ListSnapshotsResponse, Status>>>;

    async fn list(&self, _: Request<ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let info = self.records().snapshots.values().map(|record| record.info.clone()).collect();
        Ok(Response::new(tokio_stream::iter(vec![Ok(ListSnapshotsResponse { info })])))
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Answer<UsageResponse> {
        let tree = self.records().find(&request.get_ref().key)?.tree.clone();
        let counted =
            Command::new("du").args(["-s", "--block-size=1"]).arg(tree).output().map_err(internal)?;
        let text = String::from_utf8_lossy(&counted.stdout);
        let size = text.split_whitespace().next().and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
        Ok(Response::new(UsageResponse { size, inodes: 0 }))
    }

    /// Nothing to do: `remove` deletes the tree at once.
    async fn cleanup(&self, _: Request<CleanupRequest>) -> Answer<()> {
        Ok(Response::new(()))
    }
}

fn internal(error: std::io::Error) -> Status {
    Status::internal(error.to_string())
}

fn main() -> std::io::Result<()> {
    let [socket, directory, layers] = serve::paths("example-snapshotter SOCKET DIRECTORY LAYERS");
    std::fs::create_dir_all(&directory)?;
    let copies = Copies { directory, layers, records: Mutex::default() };
    serve::serve(&socket, SnapshotsServer::new(copies))
}
