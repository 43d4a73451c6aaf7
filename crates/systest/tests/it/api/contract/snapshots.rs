//! A snapshotter that is an adapter of a daemon's snapshots service.

use api::grpc::snapshots::snapshots_client::SnapshotsClient;
use api::grpc::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, Kind as WireKind, ListSnapshotsRequest, MountsRequest,
    PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest, UpdateSnapshotRequest, UsageRequest,
    ViewSnapshotRequest,
};
use api::grpc::types as wire;
use snapshot::{CommitOptions, Kind, Snapshot, Snapshotter, Usage};
use tonic::transport::Channel;
use types::{Labels, Mount, Result, Timestamp};

use super::super::walk::{all, mask};
use super::Wire;

pub(super) struct WireSnapshotter {
    wire: Wire,
    name: String,
}

impl WireSnapshotter {
    pub(super) fn new(wire: Wire, name: &str) -> WireSnapshotter {
        WireSnapshotter { wire, name: name.to_owned() }
    }

    fn client(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.wire.channel.clone())
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

impl Snapshotter for WireSnapshotter {
    fn stat(&self, key: &str) -> Result<Snapshot> {
        let request = StatSnapshotRequest { snapshotter: self.name(), key: key.into() };
        let found = self.wire.ask(self.client().stat(self.wire.request(request)))?;
        Ok(own(found.info.unwrap_or_default()))
    }

    fn update(&self, key: &str, labels: Labels) -> Result<()> {
        let info = Some(Info { name: key.into(), labels, ..Info::default() });
        let request =
            UpdateSnapshotRequest { snapshotter: self.name(), info, update_mask: mask(&["labels"]) };
        self.wire.ask(self.client().update(self.wire.request(request))).map(drop)
    }

    fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let request = MountsRequest { snapshotter: self.name(), key: key.into() };
        self.wire.ask(self.client().mounts(self.wire.request(request))).map(|found| own_mounts(found.mounts))
    }

    fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        let parent = parent.unwrap_or_default().into();
        let request = PrepareSnapshotRequest { snapshotter: self.name(), key: key.into(), parent, labels };
        self.wire.ask(self.client().prepare(self.wire.request(request))).map(|made| own_mounts(made.mounts))
    }

    fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        let parent = parent.unwrap_or_default().into();
        let request = ViewSnapshotRequest { snapshotter: self.name(), key: key.into(), parent, labels };
        self.wire.ask(self.client().view(self.wire.request(request))).map(|made| own_mounts(made.mounts))
    }

    fn commit(&self, name: &str, key: &str, options: CommitOptions) -> Result<()> {
        let request = CommitSnapshotRequest {
            snapshotter: self.name(),
            name: name.into(),
            key: key.into(),
            labels: options.labels,
            parent: options.parent.unwrap_or_default(),
        };
        self.wire.ask(self.client().commit(self.wire.request(request)))
    }

    fn remove(&self, key: &str) -> Result<()> {
        let request = RemoveSnapshotRequest { snapshotter: self.name(), key: key.into() };
        self.wire.ask(self.client().remove(self.wire.request(request)))
    }

    fn usage(&self, key: &str) -> Result<Usage> {
        let request = UsageRequest { snapshotter: self.name(), key: key.into() };
        let usage = self.wire.ask(self.client().usage(self.wire.request(request)))?;
        let unsigned = |number| u64::try_from(number).expect("a count");
        Ok(Usage { bytes: unsigned(usage.size), inodes: unsigned(usage.inodes) })
    }

    fn list(&self) -> Result<Vec<Snapshot>> {
        let request = ListSnapshotsRequest { snapshotter: self.name(), ..ListSnapshotsRequest::default() };
        let found = self.wire.ask(all(self.client().list(self.wire.request(request))))?;
        Ok(found.into_iter().flat_map(|message| message.info).map(own).collect())
    }

    fn cleanup(&self) -> Result<()> {
        let request = CleanupRequest { snapshotter: self.name() };
        self.wire.ask(self.client().cleanup(self.wire.request(request)))
    }
}

fn own(info: Info) -> Snapshot {
    let time = |time: Option<prost_types::Timestamp>| {
        let time = time.expect("the daemon tells times");
        Timestamp { seconds: time.seconds, nanos: time.nanos.unsigned_abs() }
    };
    Snapshot {
        kind: match info.kind() {
            WireKind::View => Kind::View,
            WireKind::Active => Kind::Active,
            WireKind::Committed => Kind::Committed,
            WireKind::Unknown => panic!("snapshot {} has no kind", info.name),
        },
        key: info.name,
        parent: Some(info.parent).filter(|parent| !parent.is_empty()),
        labels: info.labels,
        created: time(info.created_at),
        updated: time(info.updated_at),
    }
}

fn own_mounts(mounts: Vec<wire::Mount>) -> Vec<Mount> {
    let own = |mount: wire::Mount| Mount {
        kind: mount.r#type,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    };
    mounts.into_iter().map(own).collect()
}
