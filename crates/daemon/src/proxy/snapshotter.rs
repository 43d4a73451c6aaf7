//! The snapshotter of a proxy plugin, through containerd's snapshots service.
//!
//! Keys have the form `NAMESPACE/NUMBER/KEY`, as the metadata store generates them; the namespace is also sent as
//! metadata.

use api::grpc::snapshots::snapshots_client::SnapshotsClient;
use api::grpc::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, Kind as WireKind, ListSnapshotsRequest, MountsRequest,
    PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest, UpdateSnapshotRequest, UsageRequest,
    ViewSnapshotRequest,
};
use prost_types::FieldMask;
use snapshot::{CommitOptions, Kind, Snapshot, Snapshotter, Usage};
use std::future::Future;
use std::time::Duration;
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::Channel;
use types::{Error, ErrorKind, Labels, Mount, Result};

use super::{LONG, Plugin, client, request};
use crate::services::convert;

/// How long a garbage collection waits for the plugin's list or clean-up, as a multiple of the time limit of short
/// calls. If the plugin is too slow, the next collection tries again.
const SWEEP_SHARE: u32 = 2;

/// The capability to set a snapshot's parent at commit.
const REBASE: &str = "rebase";

/// The export by which a snapshotter requests annotations that tell a layer's image.
const WANTS_ORIGIN: &str = "enable_remote_snapshot_annotations";

pub(crate) struct ProxySnapshotter(Plugin);

impl ProxySnapshotter {
    pub(crate) fn new(plugin: Plugin) -> ProxySnapshotter {
        ProxySnapshotter(plugin)
    }

    fn ask<T, F>(&self, limit: Duration, ask: impl FnOnce(SnapshotsClient<Channel>) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Status>> + Send + 'static,
    {
        self.0.block(limit, ask(client!(SnapshotsClient, self.0.channel())))
    }

    /// How long a garbage collection waits for a response.
    fn sweep_limit(&self) -> Duration {
        self.0.short() * SWEEP_SHARE
    }

    fn name(&self) -> String {
        self.0.config().name.clone()
    }

    fn rebases(&self) -> bool {
        self.0.config().capabilities.iter().any(|capability| capability == REBASE)
    }
}

impl Snapshotter for ProxySnapshotter {
    fn stat(&self, key: &str) -> Result<Snapshot> {
        let message = StatSnapshotRequest { snapshotter: self.name(), key: key.to_owned() };
        let message = request(namespace(key), message);
        let found = self.ask(self.0.short(), async |mut client| client.stat(message).await)?;
        own(found.into_inner().info.unwrap_or_default())
    }

    fn update(&self, key: &str, labels: Labels) -> Result<()> {
        let info = Info { name: key.to_owned(), labels, ..Info::default() };
        let update_mask = Some(FieldMask { paths: vec!["labels".to_owned()] });
        let message = UpdateSnapshotRequest { snapshotter: self.name(), info: Some(info), update_mask };
        let message = request(namespace(key), message);
        self.ask(self.0.short(), async |mut client| client.update(message).await).map(drop)
    }

    fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let message =
            request(namespace(key), MountsRequest { snapshotter: self.name(), key: key.to_owned() });
        let found = self.ask(self.0.short(), async |mut client| client.mounts(message).await)?;
        Ok(convert::own_mounts(found.into_inner().mounts))
    }

    fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        let message = PrepareSnapshotRequest {
            snapshotter: self.name(),
            key: key.to_owned(),
            parent: parent.unwrap_or_default().to_owned(),
            labels,
        };
        let message = request(namespace(key), message);
        let made = self.ask(LONG, async |mut client| client.prepare(message).await)?;
        Ok(convert::own_mounts(made.into_inner().mounts))
    }

    fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        let message = ViewSnapshotRequest {
            snapshotter: self.name(),
            key: key.to_owned(),
            parent: parent.unwrap_or_default().to_owned(),
            labels,
        };
        let message = request(namespace(key), message);
        let made = self.ask(LONG, async |mut client| client.view(message).await)?;
        Ok(convert::own_mounts(made.into_inner().mounts))
    }

    fn commit(&self, name: &str, key: &str, options: CommitOptions) -> Result<()> {
        let CommitOptions { labels, parent } = options;
        let parent = parent.unwrap_or_default();
        // A plugin that does not know the field would lose the layers below.
        if !parent.is_empty() && !self.rebases() {
            return Err(Error::unimplemented(format!(
                "snapshotter {} gives no parent to a snapshot that was made without one: its capabilities \
                 have no {REBASE:?}",
                self.name()
            )));
        }
        let message = CommitSnapshotRequest {
            snapshotter: self.name(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels,
            parent,
        };
        let message = request(namespace(key), message);
        self.ask(LONG, async |mut client| client.commit(message).await).map(drop)
    }

    fn remove(&self, key: &str) -> Result<()> {
        let message = RemoveSnapshotRequest { snapshotter: self.name(), key: key.to_owned() };
        let message = request(namespace(key), message);
        self.ask(self.0.short(), async |mut client| client.remove(message).await).map(drop)
    }

    fn usage(&self, key: &str) -> Result<Usage> {
        let message = request(namespace(key), UsageRequest { snapshotter: self.name(), key: key.to_owned() });
        let usage = self.ask(self.0.short(), async |mut client| client.usage(message).await)?.into_inner();
        let unsigned = |number| u64::try_from(number).unwrap_or(0);
        Ok(Usage { bytes: unsigned(usage.size), inodes: unsigned(usage.inodes) })
    }

    fn list(&self) -> Result<Vec<Snapshot>> {
        let name = self.name();
        let found = self.ask(LONG, async move |client| list(client, name).await)?;
        found.into_iter().map(own).collect()
    }

    fn list_for_collection(&self) -> Result<Vec<Snapshot>> {
        let (limit, name) = (self.sweep_limit(), self.name());
        let found = self
            .ask(LONG, async move |client| in_a_sweep(limit, "list snapshots", list(client, name)).await)?;
        found.into_iter().map(own).collect()
    }

    fn is_elsewhere(&self) -> bool {
        true
    }

    fn wants_origin(&self) -> bool {
        self.0.config().exports.get(WANTS_ORIGIN).is_some_and(|wants| wants == "true")
    }

    /// A plugin need not implement this call.
    fn cleanup(&self) -> Result<()> {
        let message = request(None, CleanupRequest { snapshotter: self.name() });
        let limit = self.sweep_limit();
        let asked = self.ask(LONG, async move |mut client| {
            in_a_sweep(limit, "clean up snapshots", client.cleanup(message)).await
        });
        match asked {
            Err(error) if !error.is(ErrorKind::Unimplemented) => Err(error),
            _ => Ok(()),
        }
    }
}

/// All snapshots of the plugin.
async fn list(mut client: SnapshotsClient<Channel>, name: String) -> Result<Vec<Info>, Status> {
    let message = request(None, ListSnapshotsRequest { snapshotter: name, ..Default::default() });
    let (mut answers, mut found) = (client.list(message).await?.into_inner(), Vec::new());
    while let Some(answer) = answers.message().await? {
        found.extend(answer.info);
    }
    Ok(found)
}

/// The response, if it arrives within the limit. A slow plugin is not considered stuck: other calls continue.
async fn in_a_sweep<T>(
    limit: Duration,
    what: &str,
    ask: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    let late = |_| Status::deadline_exceeded(format!("{what}: no answer within {limit:?}"));
    timeout(limit, ask).await.map_err(late)?
}

fn namespace(key: &str) -> Option<&str> {
    key.split_once('/').map(|(namespace, _)| namespace)
}

fn own(info: Info) -> Result<Snapshot> {
    let kind = match info.kind() {
        WireKind::View => Kind::View,
        WireKind::Active => Kind::Active,
        WireKind::Committed => Kind::Committed,
        WireKind::Unknown => {
            return Err(Error::data_loss(format!("snapshot {}: the plugin gave it no kind", info.name)));
        }
    };
    Ok(Snapshot {
        key: info.name,
        parent: Some(info.parent).filter(|parent| !parent.is_empty()),
        kind,
        labels: info.labels,
        created: info.created_at.map(convert::own_timestamp).unwrap_or_default(),
        updated: info.updated_at.map(convert::own_timestamp).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_sweep_waits_for_a_plugin_no_longer_than_its_limit() {
        let (begun, limit) = (tokio::time::Instant::now(), Duration::from_secs(60));
        let late = in_a_sweep::<()>(limit, "list snapshots", std::future::pending()).await.unwrap_err();
        assert_eq!(late.code(), tonic::Code::DeadlineExceeded);
        assert!(late.message().contains("list snapshots"), "{late}");
        assert_eq!(begun.elapsed().as_secs(), limit.as_secs());
        let answer = in_a_sweep(limit, "list snapshots", async { Ok(7) }).await;
        assert_eq!(answer.unwrap(), 7);
    }
}
