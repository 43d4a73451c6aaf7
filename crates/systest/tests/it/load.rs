//! Many clients that change records at once, while the daemon is killed again and again.
//!
//! Each client notes which calls were answered. After a kill, the records must be as the answers say; a call without an
//! answer may have had its effect or not. The garbage of such calls is gone after one collection, which is checked
//! halfway and at the end.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api::grpc::containers::containers_client::ContainersClient;
use api::grpc::containers::{
    Container, CreateContainerRequest, DeleteContainerRequest, ListContainersRequest, Runtime,
};
use api::grpc::content::content_client::ContentClient;
use api::grpc::content::{WriteAction, WriteContentRequest};
use api::grpc::images::images_client::ImagesClient;
use api::grpc::images::{CreateImageRequest, DeleteImageRequest, Image, ListImagesRequest};
use api::grpc::leases::leases_client::LeasesClient;
use api::grpc::leases::{CreateRequest, DeleteRequest, ListRequest};
use api::grpc::snapshots::PrepareSnapshotRequest;
use api::grpc::snapshots::snapshots_client::SnapshotsClient;
use api::grpc::types::{Any, Descriptor};
use api::grpc::{LEASE_KEY, NAMESPACE_KEY};
use testkit::Daemon;
use tokio::runtime::Runtime as Executor;
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Request, Status};

const KILLS: u64 = 100;
const CLIENTS: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Image,
    Container,
    Lease,
}

const KINDS: [Kind; 3] = [Kind::Image, Kind::Container, Kind::Lease];

/// The records that the clients know of.
#[derive(Default)]
struct Told {
    /// Created, and not deleted as far as the client knows.
    there: BTreeSet<(Kind, String)>,
    /// Deleted, or perhaps deleted.
    gone: BTreeSet<(Kind, String)>,
    /// The call had no answer: the record may exist or not.
    unknown: BTreeSet<(Kind, String)>,
}

/// Numbers that are the same for the same seed, and look random (SplitMix64).
struct Random(u64);

impl Random {
    /// The seed is printed, and `HOIST_TEST_SEED` sets it again.
    fn new() -> Random {
        let seed = match std::env::var("HOIST_TEST_SEED") {
            Ok(seed) => seed.parse().expect("HOIST_TEST_SEED is a number"),
            Err(_) => RandomState::new().hash_one(()),
        };
        println!("HOIST_TEST_SEED={seed}");
        Random(seed)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

#[test]
fn kills_under_load_lose_no_answered_write() {
    let mut daemon = Daemon::start();
    let mut random = Random::new();
    let told = Arc::new(Mutex::new(Told::default()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for round in 0..KILLS {
        let mut clients = tokio::task::JoinSet::new();
        let (count, mut answered) = watch::channel(0);
        {
            let _inside = runtime.enter();
            let channel = runtime.block_on(client::channel(&daemon.socket())).expect("the daemon listens");
            for number in 0..CLIENTS {
                let (channel, told, count) = (channel.clone(), told.clone(), count.clone());
                clients.spawn(async move { change(channel, round, number, &told, &count).await });
            }
        }
        // The kill may come at the first answers or at full speed, and between answers too.
        let (answers_min, more) = (random.below(600), Duration::from_micros(random.below(2_000)));
        runtime.block_on(async {
            answered.wait_for(|answers| *answers >= answers_min).await.expect("clients count answers");
            let instant = Instant::now() + more;
            // Timers are coarser.
            while Instant::now() < instant {
                tokio::task::yield_now().await;
            }
        });
        daemon.kill();
        runtime.block_on(async { while clients.join_next().await.is_some() {} });
        daemon.start_again();
        let there = runtime.block_on(async {
            let channel = client::channel(&daemon.socket()).await.expect("the daemon listens");
            list(channel).await.expect("records can be listed")
        });
        let mut told = told.lock().unwrap();
        let lost: Vec<_> = told.there.difference(&there).collect();
        assert!(lost.is_empty(), "round {round}: answered and lost: {lost:?}");
        let back: Vec<_> = told.gone.intersection(&there).collect();
        assert!(back.is_empty(), "round {round}: deleted and back: {back:?}");
        // From here on the listing says whether these records exist.
        let unknown = std::mem::take(&mut told.unknown);
        for record in unknown {
            if there.contains(&record) {
                told.there.insert(record)
            } else {
                told.gone.insert(record)
            };
        }
        let invented: Vec<_> = there.difference(&told.there).collect();
        assert!(invented.is_empty(), "round {round}: nobody made {invented:?}");
        if [KILLS / 2, KILLS].contains(&(round + 1)) {
            let is_much = told.there.len() > CLIENTS && told.gone.len() > CLIENTS;
            assert!(is_much, "round {round}: the clients hardly did anything");
            let there = std::mem::take(&mut told.there);
            told.gone.extend(there.iter().cloned());
            nothing_stays(&daemon, &runtime, there);
        }
    }
}

/// Deletes all records, and checks that one collection removes all files, also those of calls without an answer.
fn nothing_stays(daemon: &Daemon, runtime: &Executor, there: BTreeSet<(Kind, String)>) {
    let check = daemon.hoist(["system", "check"]).ok();
    assert!(check.stdout.contains("nothing is left over"), "{check}");
    assert_ne!(files(daemon), [0; 3], "leases keep blobs, ingests and trees");
    runtime.block_on(async {
        let channel = client::channel(&daemon.socket()).await.expect("the daemon listens");
        let mut deleting = tokio::task::JoinSet::new();
        for (kind, name) in there {
            let channel = channel.clone();
            deleting.spawn(async move { delete(&channel, kind, &name).await });
            // The client's HTTP/2 library takes too many answers at once for an attack.
            if deleting.len() == CLIENTS {
                deleting.join_next().await.expect("one").expect("no panic").expect("it is there");
            }
        }
        while let Some(deleted) = deleting.join_next().await {
            deleted.expect("no panic").expect("it is there");
        }
        create(&channel, Kind::Lease, "last").await.expect("a new lease");
        let last = DeleteRequest { id: "last".into(), sync: true };
        LeasesClient::new(channel).delete(ask(last)).await.expect("it is there");
    });
    assert_eq!(files(daemon), [0; 3], "blobs, ingests and trees that one collection left");
}

/// How many files of blobs, files of ingests, and trees there are.
fn files(daemon: &Daemon) -> [usize; 3] {
    let count = |below: &str, is_one: fn(&str) -> bool| {
        let entries = std::fs::read_dir(daemon.root().join(below)).into_iter().flatten().flatten();
        entries.filter(|entry| is_one(&entry.file_name().to_string_lossy())).count()
    };
    let any = |_: &str| true;
    // A snapshot that is being removed has a longer name.
    let is_tree = |name: &str| name.parse::<u64>().is_ok();
    [count("content/blobs/sha256", any), count("content/ingest", any), count("snapshots/native", is_tree)]
}

/// Creates records and deletes every third one, until the daemon is killed.
async fn change(
    channel: Channel,
    round: u64,
    client: usize,
    told: &Mutex<Told>,
    answered: &watch::Sender<u64>,
) {
    for step in 0.. {
        let record = (KINDS[(client + step) % KINDS.len()], format!("r{round}-c{client}-{step}"));
        told.lock().unwrap().unknown.insert(record.clone());
        let Ok(()) = create(&channel, record.0, &record.1).await else { return };
        answered.send_modify(|answers| *answers += 1);
        {
            let mut told = told.lock().unwrap();
            told.unknown.remove(&record);
            told.there.insert(record.clone());
        }
        if step % 3 == 0 {
            {
                let mut told = told.lock().unwrap();
                told.there.remove(&record);
                told.unknown.insert(record.clone());
            }
            let Ok(()) = delete(&channel, record.0, &record.1).await else { return };
            let mut told = told.lock().unwrap();
            told.unknown.remove(&record);
            told.gone.insert(record);
        }
    }
}

fn ask<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(NAMESPACE_KEY, "load".parse().expect("plain text"));
    request
}

async fn create(channel: &Channel, kind: Kind, name: &str) -> Result<(), Status> {
    match kind {
        Kind::Image => {
            let target = Descriptor {
                media_type: "application/vnd.oci.image.manifest.v1+json".into(),
                digest: format!("sha256:{:064x}", 1),
                size: 1,
                ..Descriptor::default()
            };
            let image = Image { name: name.into(), target: Some(target), ..Image::default() };
            let request = CreateImageRequest { image: Some(image), ..CreateImageRequest::default() };
            ImagesClient::new(channel.clone()).create(ask(request)).await.map(drop)
        }
        Kind::Container => {
            let container = Container {
                id: name.into(),
                runtime: Some(Runtime { name: "io.containerd.hoist.v2".into(), options: None }),
                spec: Some(Any { type_url: "spec".into(), value: b"{}".to_vec() }),
                ..Container::default()
            };
            let request = CreateContainerRequest { container: Some(container) };
            ContainersClient::new(channel.clone()).create(ask(request)).await.map(drop)
        }
        Kind::Lease => {
            let request = CreateRequest { id: name.into(), ..CreateRequest::default() };
            LeasesClient::new(channel.clone()).create(ask(request)).await?;
            // Files are slower to make than records: some leases have none.
            if name.ends_with(['0', '4', '8']) { fill(channel, name).await } else { Ok(()) }
        }
    }
}

/// Makes something of each kind that has files, kept by a lease alone.
async fn fill(channel: &Channel, lease: &str) -> Result<(), Status> {
    let whole = WriteContentRequest {
        action: WriteAction::Commit.into(),
        r#ref: lease.into(),
        data: lease.to_owned().into(),
        ..WriteContentRequest::default()
    };
    let half = WriteContentRequest {
        action: WriteAction::Write.into(),
        r#ref: format!("half of {lease}"),
        ..whole.clone()
    };
    for message in [whole, half] {
        let stream = in_lease(lease, tokio_stream::iter([message]));
        let mut answers = ContentClient::new(channel.clone()).write(stream).await?.into_inner();
        while answers.message().await?.is_some() {}
    }
    let tree = PrepareSnapshotRequest {
        snapshotter: "native".into(),
        key: lease.into(),
        ..PrepareSnapshotRequest::default()
    };
    SnapshotsClient::new(channel.clone()).prepare(in_lease(lease, tree)).await.map(drop)
}

fn in_lease<T>(lease: &str, message: T) -> Request<T> {
    let mut request = ask(message);
    request.metadata_mut().insert(LEASE_KEY, lease.parse().expect("plain text"));
    request
}

async fn delete(channel: &Channel, kind: Kind, name: &str) -> Result<(), Status> {
    match kind {
        Kind::Image => {
            let request = DeleteImageRequest { name: name.into(), ..DeleteImageRequest::default() };
            ImagesClient::new(channel.clone()).delete(ask(request)).await.map(drop)
        }
        Kind::Container => {
            let request = DeleteContainerRequest { id: name.into() };
            ContainersClient::new(channel.clone()).delete(ask(request)).await.map(drop)
        }
        Kind::Lease => {
            let request = DeleteRequest { id: name.into(), sync: false };
            LeasesClient::new(channel.clone()).delete(ask(request)).await.map(drop)
        }
    }
}

async fn list(channel: Channel) -> Result<BTreeSet<(Kind, String)>, Status> {
    let images = ImagesClient::new(channel.clone())
        .max_decoding_message_size(api::grpc::MESSAGE_BYTES_MAX)
        .list(ask(ListImagesRequest::default()))
        .await?;
    let containers = ContainersClient::new(channel.clone())
        .max_decoding_message_size(api::grpc::MESSAGE_BYTES_MAX)
        .list(ask(ListContainersRequest::default()))
        .await?;
    let leases = LeasesClient::new(channel)
        .max_decoding_message_size(api::grpc::MESSAGE_BYTES_MAX)
        .list(ask(ListRequest::default()))
        .await?;
    let images = images.into_inner().images.into_iter().map(|image| (Kind::Image, image.name));
    let containers = containers.into_inner().containers.into_iter();
    let leases = leases.into_inner().leases.into_iter().map(|lease| (Kind::Lease, lease.id));
    Ok(images.chain(containers.map(|container| (Kind::Container, container.id))).chain(leases).collect())
}
