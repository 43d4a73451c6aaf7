//! Garbage collection in a daemon to which nothing else happens.

use api::grpc::LEASE_KEY;
use api::grpc::content::content_client::ContentClient;
use api::grpc::content::{InfoRequest, WriteAction, WriteContentRequest};
use api::grpc::leases::leases_client::LeasesClient;
use api::grpc::leases::{CreateRequest, DeleteRequest};
use testkit::{Daemon, eventually};
use tonic::{Code, Status, Streaming};

use crate::typed::{ask, code, on};

/// Writes a blob that nothing holds; gives back its digest.
fn blob(daemon: &Daemon, text: &str) -> String {
    let digest = types::Digest::of(text.as_bytes()).to_string();
    let mut ingest = daemon.ctr_command(["content", "ingest", "--expected-digest", &digest, text]);
    let file = daemon.dir().join("blob");
    std::fs::write(&file, text).expect("a writable directory");
    ingest.stdin(std::fs::File::open(file).expect("it was written"));
    testkit::run(&mut ingest);
    digest
}

fn has(daemon: &Daemon, digest: &str) -> bool {
    daemon.ctr(["content", "ls", "-q"]).ok().stdout.contains(digest)
}

/// Collections that nothing but an expiry or the end of a lease can be the reason of.
const QUIET: &str = "[gc]\nmutation_threshold = 0\nschedule_delay = \"0s\"\n";

#[test]
fn a_lease_ends_on_time_in_an_idle_daemon() {
    let daemon = Daemon::start_with(&[], QUIET);
    daemon.ctr(["leases", "create", "--id", "short", "--expires", "3s"]).ok();
    daemon.ctr(["leases", "create", "--id", "long", "--expires", "1h"]).ok();
    assert_eq!(daemon.ctr(["leases", "ls", "-q"]).ok().text().lines().count(), 2);
    // What is asked changes nothing, so nobody but the clock can be the reason.
    eventually("the lease that ended is collected", || {
        (daemon.ctr(["leases", "ls", "-q"]).ok().text() == "long").then_some(())
    });
}

#[test]
fn a_blob_goes_when_its_label_says() {
    let daemon = Daemon::start_with(&[], QUIET);
    let expiry = || {
        let at = std::time::SystemTime::now() + std::time::Duration::from_secs(3);
        let seconds = at.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
        types::Timestamp { seconds: i64::try_from(seconds).expect("before the end"), nanos: 0 }
    };
    // The collection of the start may come between the two.
    let digest = eventually("the blob is there and labelled", || {
        let digest = blob(&daemon, "held for a moment");
        let label = format!("containerd.io/gc.expire={}", expiry());
        (daemon.ctr(["content", "label", &digest, &label]).code == 0).then_some(digest)
    });
    assert!(has(&daemon, &digest));
    eventually("the blob is collected", || (!has(&daemon, &digest)).then_some(()));
}

/// Waits for the end of a stream.
async fn all<T>(mut answers: Streaming<T>) -> Result<(), Status> {
    while answers.message().await?.is_some() {}
    Ok(())
}

#[test]
fn a_synchronous_deletion_is_answered_when_all_is_gone() {
    // No collection that somebody else is the reason of.
    let daemon = Daemon::start_with(
        &[],
        "[gc]\nmutation_threshold = 0\nschedule_delay = \"1h\"\nstartup_delay = \"1h\"\n",
    );
    let text = "held by a lease alone";
    let digest = types::Digest::of(text.as_bytes());
    let file = daemon.root().join("content/blobs/sha256").join(digest.hex());
    on(&daemon, async |channel| {
        let mut leases = LeasesClient::new(channel.clone());
        let mut content = ContentClient::new(channel);
        for sync in [false, true] {
            leases.create(ask(CreateRequest { id: "l".into(), labels: [].into() })).await.unwrap();
            let commit = WriteContentRequest {
                action: WriteAction::Commit.into(),
                r#ref: "r".into(),
                expected: digest.to_string(),
                data: text.into(),
                ..WriteContentRequest::default()
            };
            let mut request = ask(tokio_stream::iter([commit]));
            request.metadata_mut().insert(LEASE_KEY, "l".parse().unwrap());
            // In the second round it is there still, and joins the lease.
            if let Err(status) = async { all(content.write(request).await?.into_inner()).await }.await {
                assert_eq!((sync, status.code()), (true, Code::AlreadyExists), "{status}");
            }
            assert!(file.exists());
            leases.delete(ask(DeleteRequest { id: "l".into(), sync })).await.unwrap();
            let gone =
                code(content.info(ask(InfoRequest { digest: digest.to_string() }))).await == Code::NotFound;
            assert_eq!((gone, file.exists()), (sync, !sync), "sync={sync}");
        }
    });
}
