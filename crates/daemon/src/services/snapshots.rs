//! `containerd.services.snapshots.v1`

use api::grpc::snapshots::snapshots_server::Snapshots as SnapshotsService;
use api::grpc::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, Kind as WireKind, ListSnapshotsRequest,
    ListSnapshotsResponse, MountsRequest, MountsResponse, PrepareSnapshotRequest, PrepareSnapshotResponse,
    RemoveSnapshotRequest, StatSnapshotRequest, StatSnapshotResponse, UpdateSnapshotRequest,
    UpdateSnapshotResponse, UsageRequest, UsageResponse, ViewSnapshotRequest, ViewSnapshotResponse,
};
use metadata::{Metadata, Snapshot, Snapshots};
use snapshot::Kind;
use tonic::{Request, Response, Status};
use types::{ErrorKind, Filters, Result};

use super::{Answer, Answers, batches, blocking, caller, convert, required, status};

pub(super) struct Service(pub(super) Metadata);

impl Service {
    /// Calls `answer` with the request's snapshotter in the caller's namespace.
    async fn ask<M, T: Send + 'static>(
        &self,
        request: Request<M>,
        snapshotter: impl Fn(&M) -> &str,
        answer: impl FnOnce(Snapshots, M) -> Result<T> + Send + 'static,
    ) -> Result<T, Status>
    where
        M: Send + 'static,
    {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let name = snapshotter(&request);
        if name.is_empty() {
            return Err(Status::invalid_argument("snapshotter argument missing: invalid argument"));
        }
        let snapshots = self.0.snapshots(caller, name).map_err(|error| match error.kind() {
            // Not to be taken for a missing snapshot.
            ErrorKind::NotFound => status(error.with_kind(ErrorKind::InvalidArgument)),
            _ => status(error),
        })?;
        blocking(move || answer(snapshots, request)).await
    }
}

#[tonic::async_trait]
impl SnapshotsService for Service {
    async fn prepare(&self, request: Request<PrepareSnapshotRequest>) -> Answer<PrepareSnapshotResponse> {
        let prepare = |snapshots: Snapshots, asked: PrepareSnapshotRequest| {
            snapshots.prepare(&asked.key, parent(&asked.parent), asked.labels)
        };
        let mounts = self.ask(request, |asked| &asked.snapshotter, prepare).await?;
        Ok(Response::new(PrepareSnapshotResponse { mounts: convert::mounts(mounts) }))
    }

    async fn view(&self, request: Request<ViewSnapshotRequest>) -> Answer<ViewSnapshotResponse> {
        let view = |snapshots: Snapshots, asked: ViewSnapshotRequest| {
            snapshots.view(&asked.key, parent(&asked.parent), asked.labels)
        };
        let mounts = self.ask(request, |asked| &asked.snapshotter, view).await?;
        Ok(Response::new(ViewSnapshotResponse { mounts: convert::mounts(mounts) }))
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> Answer<MountsResponse> {
        let mounts = |snapshots: Snapshots, asked: MountsRequest| snapshots.mounts(&asked.key);
        let mounts = self.ask(request, |asked| &asked.snapshotter, mounts).await?;
        Ok(Response::new(MountsResponse { mounts: convert::mounts(mounts) }))
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> Answer<()> {
        let commit = |snapshots: Snapshots, asked: CommitSnapshotRequest| {
            snapshots.commit(&asked.name, &asked.key, asked.labels, parent(&asked.parent))
        };
        self.ask(request, |asked| &asked.snapshotter, commit).await.map(Response::new)
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> Answer<()> {
        let remove = |snapshots: Snapshots, asked: RemoveSnapshotRequest| snapshots.remove(&asked.key);
        self.ask(request, |asked| &asked.snapshotter, remove).await.map(Response::new)
    }

    async fn stat(&self, request: Request<StatSnapshotRequest>) -> Answer<StatSnapshotResponse> {
        let stat = |snapshots: Snapshots, asked: StatSnapshotRequest| snapshots.stat(&asked.key);
        let found = self.ask(request, |asked| &asked.snapshotter, stat).await?;
        Ok(Response::new(StatSnapshotResponse { info: Some(wire(found)) }))
    }

    async fn update(&self, request: Request<UpdateSnapshotRequest>) -> Answer<UpdateSnapshotResponse> {
        required(request.get_ref().info.as_ref(), "info")?;
        let update = |snapshots: Snapshots, asked: UpdateSnapshotRequest| {
            let info = asked.info.unwrap_or_default();
            snapshots.update(&info.name, &info.labels, &convert::paths(asked.update_mask))
        };
        let updated = self.ask(request, |asked| &asked.snapshotter, update).await?;
        Ok(Response::new(UpdateSnapshotResponse { info: Some(wire(updated)) }))
    }

    type ListStream = Answers<ListSnapshotsResponse>;

    async fn list(&self, request: Request<ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let list = |snapshots: Snapshots, asked: ListSnapshotsRequest| {
            snapshots.list(&Filters::parse(&asked.filters)?)
        };
        let found = self.ask(request, |asked| &asked.snapshotter, list).await?;
        let found = found.into_iter().map(wire).collect();
        Ok(Response::new(batches(found, |info| ListSnapshotsResponse { info })))
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Answer<UsageResponse> {
        let usage = |snapshots: Snapshots, asked: UsageRequest| snapshots.usage(&asked.key);
        let usage = self.ask(request, |asked| &asked.snapshotter, usage).await?;
        let (size, inodes) = (convert::signed(usage.bytes), convert::signed(usage.inodes));
        Ok(Response::new(UsageResponse { size, inodes }))
    }

    async fn cleanup(&self, request: Request<CleanupRequest>) -> Answer<()> {
        let cleanup = |snapshots: Snapshots, _| snapshots.cleanup();
        self.ask(request, |asked| &asked.snapshotter, cleanup).await.map(Response::new)
    }
}

fn parent(parent: &str) -> Option<&str> {
    (!parent.is_empty()).then_some(parent)
}

fn wire(snapshot: Snapshot) -> Info {
    let kind = match snapshot.kind {
        Kind::View => WireKind::View,
        Kind::Active => WireKind::Active,
        Kind::Committed => WireKind::Committed,
    };
    Info {
        name: snapshot.key,
        parent: snapshot.parent,
        kind: kind.into(),
        created_at: convert::timestamp(snapshot.created),
        updated_at: convert::timestamp(snapshot.updated),
        labels: snapshot.labels,
    }
}
