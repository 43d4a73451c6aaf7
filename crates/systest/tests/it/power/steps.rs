//! A power cut after each step of a client that pulls through the API by itself.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use api::grpc::content::content_client::ContentClient;
use api::grpc::content::{InfoRequest, WriteAction, WriteContentRequest};
use api::grpc::diff::ApplyRequest;
use api::grpc::diff::diff_client::DiffClient;
use api::grpc::images::images_client::ImagesClient;
use api::grpc::images::{CreateImageRequest, GetImageRequest, Image as ImageRecord};
use api::grpc::snapshots::snapshots_client::SnapshotsClient;
use api::grpc::snapshots::{
    CommitSnapshotRequest, MountsRequest, PrepareSnapshotRequest, StatSnapshotRequest,
};
use api::grpc::types::Descriptor;
use serde_json::Value;
use testkit::disk::{RecordedDisk, mount_image};
use testkit::{Daemon, MountsBelow, digest_of, run};
use tonic::transport::Channel;
use tonic::{Code, Status};
use types::Digest;

use super::{DISK_LEN, Image, check_whole, cut_at, image, lose_power};
use crate::typed::{ask, code, on};

/// A step of a client that pulls by itself, which waits for the answer before it takes the next.
#[derive(Clone, Debug)]
enum Step {
    Write(Descriptor),
    /// Of a layer by its place, as the next two.
    Prepare(usize),
    Apply(usize),
    Commit(usize),
    Name,
}

struct Client<'a> {
    image: &'a Image,
    target: Descriptor,
    config: Descriptor,
    layers: Vec<Descriptor>,
    chain: Vec<String>,
}

impl Client<'_> {
    fn new(image: &Image) -> Client<'_> {
        let document = |descriptor: &Value| -> Value {
            let bytes = fs::read(image.layout.blob_path(descriptor)).expect("a file of ours");
            serde_json::from_slice(&bytes).expect("a document")
        };
        let manifest = document(&image.manifest);
        let diff_ids = document(&manifest["config"])["rootfs"]["diff_ids"].clone();
        let diff_ids: Vec<Digest> = serde_json::from_value(diff_ids).expect("digests");
        Client {
            image,
            target: descriptor(&image.manifest),
            config: descriptor(&manifest["config"]),
            layers: manifest["layers"].as_array().expect("layers").iter().map(descriptor).collect(),
            chain: chain_ids(&diff_ids),
        }
    }

    fn steps(&self) -> Vec<Step> {
        let blobs = self.layers.iter().chain([&self.config, &self.target]).cloned().map(Step::Write);
        let trees =
            (0..self.layers.len()).flat_map(|at| [Step::Prepare(at), Step::Apply(at), Step::Commit(at)]);
        blobs.chain(trees).chain([Step::Name]).collect()
    }

    fn parent(&self, at: usize) -> String {
        at.checked_sub(1).map(|below| self.chain[below].clone()).unwrap_or_default()
    }

    async fn take(&self, channel: &Channel, step: &Step) -> Result<(), Status> {
        let snapshotter = || "overlayfs".to_owned();
        // Of a client without a lease.
        let labels: BTreeMap<String, String> =
            [("containerd.io/gc.root".to_owned(), "now".to_owned())].into();
        let mut snapshots = SnapshotsClient::new(channel.clone());
        match step {
            Step::Write(blob) => {
                let path = self.image.layout.path().join("blobs").join(blob.digest.replace(':', "/"));
                let whole = WriteContentRequest {
                    action: WriteAction::Commit.into(),
                    r#ref: blob.digest.clone(),
                    expected: blob.digest.clone(),
                    data: fs::read(path).expect("a file of ours").into(),
                    labels,
                    ..WriteContentRequest::default()
                };
                let mut content = ContentClient::new(channel.clone());
                let mut answers = content.write(ask(tokio_stream::iter([whole]))).await?.into_inner();
                while answers.message().await?.is_some() {}
            }
            Step::Prepare(at) => {
                let (key, parent) = (active(*at), self.parent(*at));
                let request = PrepareSnapshotRequest { snapshotter: snapshotter(), key, parent, labels };
                snapshots.prepare(ask(request)).await?;
            }
            Step::Apply(at) => {
                let request = MountsRequest { snapshotter: snapshotter(), key: active(*at) };
                let mounts = snapshots.mounts(ask(request)).await?.into_inner().mounts;
                let diff = Some(self.layers[*at].clone());
                let request = ApplyRequest { diff, mounts, ..ApplyRequest::default() };
                DiffClient::new(channel.clone()).apply(ask(request)).await?;
            }
            Step::Commit(at) => {
                let request = CommitSnapshotRequest {
                    snapshotter: snapshotter(),
                    name: self.chain[*at].clone(),
                    key: active(*at),
                    labels,
                    ..CommitSnapshotRequest::default()
                };
                snapshots.commit(ask(request)).await?;
            }
            Step::Name => {
                let target = Some(self.target.clone());
                let image = ImageRecord { name: self.image.pushed.clone(), target, ..ImageRecord::default() };
                let request = CreateImageRequest { image: Some(image), ..CreateImageRequest::default() };
                ImagesClient::new(channel.clone()).create(ask(request)).await?;
            }
        }
        Ok(())
    }

    /// Whether what a step made is there.
    async fn shows(&self, channel: &Channel, step: &Step) -> bool {
        let stat = |key: String| StatSnapshotRequest { snapshotter: "overlayfs".into(), key };
        let mut snapshots = SnapshotsClient::new(channel.clone());
        let asked = match step {
            Step::Write(blob) => {
                let request = InfoRequest { digest: blob.digest.clone() };
                code(ContentClient::new(channel.clone()).info(ask(request))).await
            }
            Step::Prepare(at) | Step::Apply(at) => match code(snapshots.stat(ask(stat(active(*at))))).await {
                Code::NotFound => code(snapshots.stat(ask(stat(self.chain[*at].clone())))).await,
                found => found,
            },
            Step::Commit(at) => code(snapshots.stat(ask(stat(self.chain[*at].clone())))).await,
            Step::Name => {
                let request = GetImageRequest { name: self.image.pushed.clone() };
                code(ImagesClient::new(channel.clone()).get(ask(request))).await
            }
        };
        asked == Code::Ok
    }
}

/// The names of trees that have these layers (OCI image specification, "Layer ChainID").
fn chain_ids(diff_ids: &[Digest]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::new();
    for diff_id in diff_ids {
        chain.push(match chain.last() {
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()).to_string(),
            None => diff_id.to_string(),
        });
    }
    chain
}

/// The key of a layer's snapshot until it is committed.
fn active(at: usize) -> String {
    format!("layer-{at}")
}

fn descriptor(of: &Value) -> Descriptor {
    Descriptor {
        media_type: of["mediaType"].as_str().expect("a type").to_owned(),
        digest: digest_of(of),
        size: of["size"].as_i64().expect("a size"),
        ..Descriptor::default()
    }
}

/// The power goes at each answer, with nothing of what the disk had not been made to keep. The client goes on where it was: it
/// repeats nothing.
#[test]
fn a_client_goes_on_after_each_step_that_was_answered() {
    let image = image();
    let client = Client::new(&image);
    let steps = client.steps();
    let mut daemon = Daemon::start_with(&[], "[snapshots]\nlayers = \"archives\"\n");
    daemon.terminate();
    let disk = RecordedDisk::new(DISK_LEN);
    let _mounts = MountsBelow(daemon.root());
    run(Command::new("mount").arg("--bind").arg(disk.path()).arg(daemon.root())).ok();
    daemon.start_again();
    let answered: Vec<usize> = on(&daemon, async |channel| {
        let mut answered = Vec::new();
        for step in &steps {
            client.take(&channel, step).await.unwrap_or_else(|error| panic!("{step:?}: {error}"));
            answered.push(disk.now());
        }
        answered
    });
    lose_power(&mut daemon);
    let recording = disk.end();
    for (number, at) in answered.into_iter().enumerate() {
        let left = daemon.dir().join(format!("disk-{number}"));
        cut_at(&recording, at, 0, &left);
        mount_image(&left, &daemon.root());
        daemon.start_again();
        let (taken, next) = steps.split_at(number + 1);
        let shown = format!("after {:?}", steps[number]);
        on(&daemon, async |channel| {
            for step in taken {
                assert!(client.shows(&channel, step).await, "{shown}: {step:?} was answered");
            }
            for step in next {
                client
                    .take(&channel, step)
                    .await
                    .unwrap_or_else(|error| panic!("{shown}: {step:?}: {error}"));
            }
        });
        check_whole(&daemon, &image.pushed, &image.listing, &shown);
        lose_power(&mut daemon);
        fs::remove_file(&left).expect("a file of ours");
    }
}
