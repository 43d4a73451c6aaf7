//! Garbage collection in an idle daemon.

use api::grpc::LEASE_KEY;
use api::grpc::content::content_client::ContentClient;
use api::grpc::content::{InfoRequest, WriteAction, WriteContentRequest};
use api::grpc::images::images_client::ImagesClient;
use api::grpc::images::{CreateImageRequest, DeleteImageRequest, Image};
use api::grpc::leases::leases_client::LeasesClient;
use api::grpc::leases::{CreateRequest, DeleteRequest};
use api::grpc::streaming::StreamInit;
use api::grpc::streaming::streaming_client::StreamingClient;
use api::grpc::types::Descriptor;
use api::shim::pack;
use testkit::{Daemon, eventually};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::api::walk::covers;
use crate::typed::{ask, code, on};

/// Writes a blob without references; returns its digest.
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

/// No collection except after an expiry or the end of a lease.
const QUIET: &str = "[gc]\nmutation_threshold = 0\nschedule_delay = \"0s\"\n";

#[test]
fn a_lease_ends_on_time_in_an_idle_daemon() {
    let daemon = Daemon::start_with(&[], QUIET);
    daemon.ctr(["leases", "create", "--id", "short", "--expires", "3s"]).ok();
    daemon.ctr(["leases", "create", "--id", "long", "--expires", "1h"]).ok();
    assert_eq!(daemon.ctr(["leases", "ls", "-q"]).ok().text().lines().count(), 2);
    // This call changes nothing, so only the expiry can start the collection.
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
    // The collection at the start of the daemon may come between the two calls.
    let digest = eventually("the blob is there and labelled", || {
        let digest = blob(&daemon, "held for a moment");
        let label = format!("containerd.io/gc.expire={}", expiry());
        (daemon.ctr(["content", "label", &digest, &label]).code == 0).then_some(digest)
    });
    assert!(has(&daemon, &digest));
    eventually("the blob is collected", || (!has(&daemon, &digest)).then_some(()));
}

/// The daemon becomes idle and frees memory after a collection, without another call.
#[test]
fn a_daemon_comes_to_rest_after_a_collection() {
    let config = "[gc]\nschedule_delay = \"5s\"\n[log]\nlevel = \"debug\"\n";
    let daemon = Daemon::start_with(&[], config);
    eventually("the collection of the start is over", || {
        daemon.log().contains("collected garbage").then_some(())
    });
    let digest = blob(&daemon, "freed while nobody is there");
    daemon.ctr(["content", "rm", &digest]).ok();
    let log = eventually("the blob is collected", || {
        let log = daemon.log();
        log.contains("blobs_swept=1").then_some(log)
    });
    let before = log.find("blobs_swept=1").expect("it is there");
    assert!(log[..before].contains("at rest:"), "it was at rest before\n{log}");
    eventually("it is at rest again", || daemon.log()[before..].contains("at rest:").then_some(()));
}

/// Waits for the end of a stream.
async fn all<T>(mut answers: Streaming<T>) -> Result<(), Status> {
    while answers.message().await?.is_some() {}
    Ok(())
}

#[test]
fn a_synchronous_deletion_is_answered_when_all_is_gone() {
    // No collection for another reason.
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
            // In the second round the blob exists already, and joins the lease.
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

/// As in containerd, a stream opened in a lease ends with the lease.
#[test]
fn a_stream_ends_with_its_lease_unless_something_names_it() {
    covers(&["Streaming.Stream"]);
    let daemon = Daemon::start_with(
        &[],
        "[gc]\nmutation_threshold = 0\nschedule_delay = \"1h\"\nstartup_delay = \"1h\"\n",
    );
    on(&daemon, async |channel| {
        let (mut leases, mut images) =
            (LeasesClient::new(channel.clone()), ImagesClient::new(channel.clone()));
        let open = async |name: &str, lease: &'static str| {
            let (send, receive) = mpsc::channel(1);
            send.send(pack(&StreamInit { id: name.into() })).await.expect("room for one");
            let mut request = ask(ReceiverStream::new(receive));
            request.metadata_mut().insert(LEASE_KEY, lease.parse().unwrap());
            let mut incoming = StreamingClient::new(channel.clone()).stream(request).await?.into_inner();
            incoming.message().await?.expect("an acknowledgement");
            Ok::<_, Status>((send, incoming))
        };
        leases.create(ask(CreateRequest { id: "l".into(), labels: [].into() })).await.unwrap();
        let _free = open("free", "").await.unwrap();
        let (_send, mut held) = open("held", "l").await.unwrap();
        let (_send, mut named) = open("named", "l").await.unwrap();
        let image = Image {
            name: "names a stream".into(),
            labels: [("containerd.io/gc.ref.stream.x".into(), "named".into())].into(),
            target: Some(Descriptor {
                media_type: "application/vnd.oci.image.manifest.v1+json".into(),
                digest: types::Digest::of(b"nothing").to_string(),
                size: 7,
                ..Descriptor::default()
            }),
            ..Image::default()
        };
        images
            .create(ask(CreateImageRequest { image: Some(image), ..CreateImageRequest::default() }))
            .await
            .unwrap();
        leases.delete(ask(DeleteRequest { id: "l".into(), sync: true })).await.unwrap();
        assert!(held.message().await.unwrap().is_none(), "its lease is over");
        for there in ["free", "named"] {
            assert_eq!(code(open(there, "")).await, Code::AlreadyExists, "{there}");
        }
        open("held", "").await.unwrap();

        let delete =
            DeleteImageRequest { name: "names a stream".into(), sync: true, ..DeleteImageRequest::default() };
        images.delete(ask(delete)).await.unwrap();
        assert!(named.message().await.unwrap().is_none(), "nothing names it");
        assert_eq!(code(open("free", "")).await, Code::AlreadyExists, "what is in no lease is its client's");
    });
}
