//! The contract suites of the content store and of snapshotters, run against a daemon: adapters implement the ports by
//! calls of its services.

mod content;
mod snapshots;
/// What every snapshotter does.
#[path = "../../../../snapshot/tests/it/suite.rs"]
#[allow(dead_code, reason = "a part of it is for snapshotters at hand")]
mod suite;

use std::future::Future;
use std::sync::Arc;

use ::snapshot::Snapshotter;
use api::grpc::leases::leases_client::LeasesClient;
use api::grpc::leases::{CreateRequest, DeleteRequest};
use api::grpc::{LEASE_KEY, NAMESPACE_KEY};
use testkit::Daemon;
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::walk::covers;

/// What all leases and namespaces of a daemon under test are called.
const LEASE: &str = "held";

/// A daemon as one tenant of it sees it. Everything is made in a lease, so that nothing goes that is not deleted.
#[derive(Clone)]
struct Wire {
    /// Ends with the last who uses it.
    _daemon: Arc<Daemon>,
    runtime: Arc<Runtime>,
    channel: Channel,
    namespace: String,
}

impl Wire {
    fn new(daemon: &Arc<Daemon>, namespace: &str) -> Wire {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = Arc::new(runtime.expect("a runtime"));
        let channel = runtime.block_on(client::channel(&daemon.socket())).expect("the daemon listens");
        let wire = Wire { _daemon: daemon.clone(), runtime, channel, namespace: namespace.to_owned() };
        let mut leases = LeasesClient::new(wire.channel.clone());
        let create = wire.request(CreateRequest { id: LEASE.into(), ..CreateRequest::default() });
        // It is there when the same tenant comes again.
        let _made = wire.runtime.block_on(leases.create(create));
        wire
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(NAMESPACE_KEY, self.namespace.parse().expect("printable text"));
        request.metadata_mut().insert(LEASE_KEY, LEASE.parse().expect("printable text"));
        request
    }

    fn ask<T>(&self, answer: impl Future<Output = Result<Response<T>, Status>>) -> types::Result<T> {
        self.runtime.block_on(answer).map(Response::into_inner).map_err(|status| client::error(&status))
    }

    /// Waits until what was deleted is gone from the store below, which a store does at once and a daemon later.
    fn collect(&self) -> types::Result<()> {
        let mut leases = LeasesClient::new(self.channel.clone());
        let id = || "collected".to_owned();
        self.ask(leases.create(self.request(CreateRequest { id: id(), ..CreateRequest::default() })))?;
        self.ask(leases.delete(self.request(DeleteRequest { id: id(), sync: true })))
    }
}

/// No collection but those that the suites ask for.
const QUIET: &str = "[gc]\nmutation_threshold = 0\nschedule_delay = \"1h\"\nstartup_delay = \"1h\"\n";

#[test]
fn content_keeps_its_contract() {
    covers(&[
        "Content.Info",
        "Content.List",
        "Content.Delete",
        "Content.Read",
        "Content.Status",
        "Content.ListStatuses",
        "Content.Write",
        "Content.Abort",
    ]);
    // Each case has a daemon to itself: bytes that another namespace has would not have to be written.
    ::content::suite::run(|| {
        let daemon = Arc::new(Daemon::start_with(&[], QUIET));
        Box::new(content::WireStore::new(Wire::new(&daemon, "default")))
    });
}

/// Runs the suite against a snapshotter of a daemon with this configuration; a directory of the suite is a tenant.
fn snapshots_keep_their_contract(config: &str, snapshotter: &str, rebases: bool) {
    let daemon = Arc::new(Daemon::start_with(&[], &format!("{QUIET}{config}")));
    let open = |place: &std::path::Path| -> Box<dyn Snapshotter> {
        let name = place.file_name().expect("a directory has a name").to_string_lossy();
        let namespace: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
        Box::new(snapshots::WireSnapshotter::new(Wire::new(&daemon, &namespace), snapshotter))
    };
    suite::run(open, rebases);
}

const SNAPSHOTS: &[&str] = &[
    "Snapshots.Prepare",
    "Snapshots.View",
    "Snapshots.Mounts",
    "Snapshots.Commit",
    "Snapshots.Remove",
    "Snapshots.Stat",
    "Snapshots.Update",
    "Snapshots.List",
    "Snapshots.Usage",
    "Snapshots.Cleanup",
];

#[test]
fn overlay_of_directories_keeps_its_contract() {
    covers(SNAPSHOTS);
    snapshots_keep_their_contract("[snapshots]\nlayers = \"directories\"\n", "overlayfs", true);
}

#[test]
fn overlay_of_archives_keeps_its_contract() {
    covers(SNAPSHOTS);
    snapshots_keep_their_contract("[snapshots]\nlayers = \"archives\"\n", "overlayfs", true);
}

#[test]
fn overlay_by_its_other_name_keeps_its_contract() {
    covers(SNAPSHOTS);
    snapshots_keep_their_contract("[snapshots]\nlayers = \"archives\"\n", "erofs", true);
}

#[test]
fn native_keeps_its_contract() {
    covers(SNAPSHOTS);
    snapshots_keep_their_contract("", "native", false);
}
