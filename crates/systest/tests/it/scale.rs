//! 100,000 images and 10,000 containers: listed and filtered over the socket, and what is left on disk once they are
//! removed.
//!
//! Prints times and the daemon's memory. A debug build gets fewer records and more time.

use std::time::{Duration, Instant};

use api::grpc::MESSAGE_BYTES_MAX;
use api::grpc::containers::containers_client::ContainersClient;
use api::grpc::containers::{
    Container, CreateContainerRequest, DeleteContainerRequest, ListContainersRequest, Runtime,
};
use api::grpc::images::images_client::ImagesClient;
use api::grpc::images::{CreateImageRequest, Image, ListImagesRequest};
use api::grpc::types::{Any, Descriptor};
use bytes::{Buf, BufMut};
use http::uri::PathAndQuery;
use prost::Message;
use testkit::{Daemon, eventually, memory};
use tokio::task::JoinSet;
use tonic::Status;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;

use crate::typed::ask;

const CLIENTS: usize = 64;
/// The shortest of several measurements counts, since other programs may slow down the rest.
const TRIES: usize = 5;

/// Numbers of images and containers, and the limit on the time of a list.
fn amounts() -> (usize, usize, Duration) {
    let is_optimized = !testkit::hoist_program().to_string_lossy().contains("/debug/");
    if is_optimized {
        (100_000, 10_000, Duration::from_secs(1))
    } else {
        (5_000, 500, Duration::from_secs(5))
    }
}

/// Names of equal length, short enough for a list of all in one message.
fn name(number: usize) -> String {
    format!("n/{number:06}")
}

/// One object in a hundred has the label `tier=gold`.
fn tier(number: usize) -> [(String, String); 1] {
    [("tier".into(), if number.is_multiple_of(100) { "gold" } else { "tin" }.into())]
}

async fn make(channel: Channel, kind: fn(usize) -> Record, from: usize, count: usize) {
    let (mut images, mut containers) = (ImagesClient::new(channel.clone()), ContainersClient::new(channel));
    for number in (from..count).step_by(CLIENTS) {
        match kind(number) {
            Record::Image(image) => {
                let create = CreateImageRequest { image: Some(image), source_date_epoch: None };
                images.create(ask(create)).await.expect("a new image");
            }
            Record::Container(container) => {
                let create = CreateContainerRequest { container: Some(container) };
                containers.create(ask(create)).await.expect("a new container");
            }
        }
    }
}

enum Record {
    Image(Image),
    Container(Container),
}

fn image(number: usize) -> Record {
    let target = Descriptor {
        media_type: "m/i".into(),
        digest: format!("sha256:{number:064x}"),
        size: 1,
        ..Descriptor::default()
    };
    let labels = tier(number).into();
    Record::Image(Image { name: name(number), labels, target: Some(target), ..Image::default() })
}

fn container(number: usize) -> Record {
    Record::Container(Container {
        id: format!("c{number:06}"),
        labels: tier(number).into(),
        image: name(number),
        runtime: Some(Runtime { name: "io.containerd.hoist.v2".into(), options: None }),
        // The size of a usual spec.
        spec: Some(Any { type_url: "spec".into(), value: vec![b' '; 1000] }),
        ..Container::default()
    })
}

#[test]
fn lists_of_many_records_are_quick() {
    let (images, containers, limit) = amounts();
    let daemon = Daemon::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let channel = client::channel(&daemon.socket()).await.expect("the daemon listens");
        let begun = Instant::now();
        for (kind, count) in [(image as fn(usize) -> Record, images), (container, containers)] {
            let mut making = JoinSet::new();
            for client in 0..CLIENTS {
                making.spawn(make(channel.clone(), kind, client, count));
            }
            while let Some(made) = making.join_next().await {
                made.expect("no panic");
            }
        }
        println!("{images} images and {containers} containers made in {:?}", begun.elapsed());
        let rss = || memory::rollup(daemon.pid(), "Rss") / 1024;
        println!("memory: {} KiB before the lists", rss());
        let image_filters = [
            ("", images),
            ("labels.tier==gold", images / 100),
            ("name~=/^n.0000/", 100),
            ("name==\"n/000042\"", 1),
            ("labels.tier==gold,name~=/00$/,target.mediatype!=x", images / 100),
        ];
        for (filter, count) in image_filters {
            let request = ListImagesRequest { filters: vec![filter.to_owned()] };
            let mut client = ImagesClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
            let found = client.list(ask(request.clone())).await.expect("a list").into_inner().images;
            assert_eq!(found.len(), count, "{filter}");
            let best = best_time(&channel, "/containerd.services.images.v1.Images/List", &request).await;
            println!("images {filter:?}: {count} in {best:?}; memory {} KiB", rss());
            assert!(best < limit, "{filter}: {best:?}");
        }
        for (filter, count) in [("", containers), ("labels.tier==gold", containers / 100), ("id==c000042", 1)]
        {
            let request = ListContainersRequest { filters: vec![filter.to_owned()] };
            let mut client =
                ContainersClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
            let found = client.list(ask(request.clone())).await.expect("a list").into_inner().containers;
            assert_eq!(found.len(), count, "{filter}");
            let best =
                best_time(&channel, "/containerd.services.containers.v1.Containers/List", &request).await;
            println!("containers {filter:?}: {count} in {best:?}; memory {} KiB", rss());
            assert!(best < limit, "{filter}: {best:?}");
        }
    });
}

/// An idle daemon's database file gets smaller after removals, and a kill loses no record.
#[test]
fn a_daemon_at_rest_has_a_short_file_of_records() {
    const COUNT: usize = 1500;
    let mut daemon = Daemon::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let large = |number| match container(number) {
        Record::Container(container) => {
            let spec = Some(Any { type_url: "spec".into(), value: vec![b' '; 10_000] });
            Record::Container(Container { spec, ..container })
        }
        image => image,
    };
    runtime.block_on(async {
        let channel = client::channel(&daemon.socket()).await.expect("the daemon listens");
        let mut working = JoinSet::new();
        for client in 0..CLIENTS {
            let channel = channel.clone();
            working.spawn(async move {
                make(channel.clone(), large, client, COUNT).await;
                let mut containers = ContainersClient::new(channel);
                for number in (client..COUNT).step_by(CLIENTS).filter(|number| number % 100 != 0) {
                    let delete = DeleteContainerRequest { id: format!("c{number:06}") };
                    containers.delete(ask(delete)).await.expect("it is there");
                }
            });
        }
        while let Some(worked) = working.join_next().await {
            worked.expect("no panic");
        }
    });
    let file = daemon.root().join("meta.db");
    let bytes = || std::fs::metadata(&file).expect("every root has one").len();
    let full = bytes();
    assert!(full > 8 << 20, "{full} bytes are not many");
    let short = eventually("the file is short", || Some(bytes()).filter(|bytes| *bytes < full / 4));
    println!("{full} bytes became {short}");
    daemon.kill();
    daemon.start_again();
    daemon.hoist(["system", "check"]).ok();
    runtime.block_on(async {
        let channel = client::channel(&daemon.socket()).await.expect("the daemon listens");
        let found = ContainersClient::new(channel).list(ask(ListContainersRequest::default())).await;
        assert_eq!(found.expect("a list").into_inner().containers.len(), COUNT / 100);
    });
}

/// The time until the last byte of the answer is received, without its decoding.
async fn best_time(channel: &Channel, path: &'static str, request: &impl Message) -> Duration {
    let mut best = Duration::MAX;
    for _ in 0..TRIES {
        let begun = Instant::now();
        let mut client = Grpc::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        client.ready().await.expect("a connection");
        let answer = client.unary(ask(request.encode_to_vec()), PathAndQuery::from_static(path), Bytes).await;
        assert!(answer.expect("a list").into_inner() > 0, "{path}");
        best = best.min(begun.elapsed());
    }
    best
}

/// A codec that leaves messages encoded.
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = usize;
    type Encoder = Bytes;
    type Decoder = Bytes;

    fn encoder(&mut self) -> Bytes {
        Bytes
    }

    fn decoder(&mut self) -> Bytes {
        Bytes
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&message);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = usize;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<usize>, Status> {
        let len = from.remaining();
        from.advance(len);
        Ok(Some(len))
    }
}
