//! Large stores: the time to list 100,000 images and 10,000 containers, filtered and whole; the daemon's memory
//! meanwhile; and the longest wait of a writer while garbage among these records is collected.
//!
//! Two times are measured: until the last byte of the answer has arrived, which has a target, and until this program
//! has decoded the answer element by element ([`client::parts`]), which costs it the same for both daemons.

use std::path::Path;
use std::time::{Duration, Instant};

use api::grpc::containers::containers_client::ContainersClient;
use api::grpc::containers::{
    Container, CreateContainerRequest, ListContainersRequest, Runtime as ContainerRuntime,
};
use api::grpc::images::images_client::ImagesClient;
use api::grpc::images::{CreateImageRequest, Image, ListImagesRequest};
use api::grpc::leases::leases_client::LeasesClient;
use api::grpc::leases::{CreateRequest, DeleteRequest};
use api::grpc::types::{Any, Descriptor};
use tonic::Status;
use tonic::transport::Channel;
use types::Timestamp;
use types::label::gc::EXPIRE;

use crate::marks::at_most;
use crate::memory::rollup;
use crate::records::ask;
use crate::row;
use crate::side::Side;

const IMAGES: usize = 100_000;
const CONTAINERS: usize = 10_000;
const CLIENTS: usize = 64;
const ROUNDS: usize = 5;
/// The number of expired leases that one collection removes.
const GARBAGE: usize = 5_000;
/// The number of leases whose creation is timed without a collection.
const ALONE: usize = 200;
/// From now to the leases' expiry: creating them must take less.
const SET_UP: Duration = Duration::from_secs(60);
/// How long before the leases expire the writer begins.
const LEAD: Duration = Duration::from_millis(100);

/// The name of each list in the table, and its filter.
const LISTS: [(&str, &str); 4] = [
    ("list 100,000 images", ""),
    ("list 1,000 of them by a label", "labels.tier==gold"),
    ("list 10,000 containers", ""),
    ("list 100 of them by a label", "labels.tier==gold"),
];
/// The target for the last byte of each list, in milliseconds.
const LIST_MARK_MS: f64 = 100.0;
/// The target for a writer's extra wait during a collection, in milliseconds.
const WAIT_MARK_MS: f64 = 10.0;

pub(crate) fn lists(sides: &[&dyn Side]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for side in sides {
        runtime.block_on(fill(&side.socket()));
    }
    for (at, (what, filter)) in LISTS.into_iter().enumerate() {
        let is_of_images = at < 2;
        let figures = sides.iter().map(|side| {
            let socket = side.socket();
            let times = (0..ROUNDS).map(|_| {
                runtime.block_on(async {
                    let channel = client::channel(&socket).await.expect("the daemon listens");
                    match is_of_images {
                        true => time(channel, ListImagesRequest { filters: filters(filter) }).await,
                        false => time(channel, ListContainersRequest { filters: filters(filter) }).await,
                    }
                })
            });
            let (came, read) = times.unzip();
            (crate::median(came), crate::median(read))
        });
        let (came, read): (Vec<f64>, Vec<f64>) = figures.unzip();
        row(&format!("{what} (ms)"), &came);
        at_most("milliseconds until it is here", came[0], LIST_MARK_MS);
        row("  and read", &read);
    }
    let figures: Vec<f64> = sides.iter().map(|side| rollup(side.daemon_pid(), "Rss")).collect();
    row("daemon RSS with all of them (MB)", &figures);
    let waits = sides.iter().map(|side| runtime.block_on(longest_waits(&side.socket())));
    let (alone, collecting): (Vec<f64>, Vec<f64>) = waits.unzip();
    row("longest wait of a writer (ms)", &alone);
    row("longest wait of a writer in a collection (ms)", &collecting);
    at_most("milliseconds more in a collection", collecting[0] - alone[0], WAIT_MARK_MS);
}

fn filters(filter: &str) -> Vec<String> {
    if filter.is_empty() { Vec::new() } else { vec![filter.to_owned()] }
}

/// Milliseconds until the last byte of a list has arrived, and until all of it is decoded.
async fn time<L: client::parts::List>(channel: Channel, question: L) -> (f64, f64) {
    let begun = Instant::now();
    let parts = client::parts::list(channel, ask(question)).await.expect("a list");
    let came = begun.elapsed();
    let count = parts.map(|part| part.map(drop).expect("a part")).count();
    assert!(count > 0, "somebody made them");
    (came.as_secs_f64() * 1e3, begun.elapsed().as_secs_f64() * 1e3)
}

async fn fill(socket: &Path) {
    let channel = client::channel(socket).await.expect("the daemon listens");
    let mut working = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        working.spawn(fill_part(channel.clone(), client));
    }
    while let Some(done) = working.join_next().await {
        done.expect("no panic").expect("the daemon takes records");
    }
}

async fn fill_part(channel: Channel, client: usize) -> Result<(), Status> {
    let mut images = ImagesClient::new(channel.clone());
    let mut containers = ContainersClient::new(channel);
    // One record in a hundred is gold.
    let tier = |number: usize| {
        let tier = if number.is_multiple_of(100) { "gold" } else { "tin" };
        [("tier".to_owned(), tier.to_owned())].into()
    };
    for number in (client..IMAGES).step_by(CLIENTS) {
        let target = Descriptor {
            media_type: "m/i".into(),
            digest: format!("sha256:{number:064x}"),
            size: 1,
            ..Descriptor::default()
        };
        // Short names, as the whole list must fit into one message.
        let name = format!("n/{number:06}");
        let image = Image { name, labels: tier(number), target: Some(target), ..Image::default() };
        let create = CreateImageRequest { image: Some(image), ..CreateImageRequest::default() };
        images.create(ask(create)).await?;
    }
    for number in (client..CONTAINERS).step_by(CLIENTS) {
        let container = Container {
            id: format!("c{number:06}"),
            labels: tier(number),
            runtime: Some(ContainerRuntime { name: "io.containerd.runc.v2".into(), options: None }),
            // The size of a usual spec.
            spec: Some(Any { type_url: "spec".into(), value: vec![b' '; 1000] }),
            ..Container::default()
        };
        containers.create(ask(CreateContainerRequest { container: Some(container) })).await?;
    }
    Ok(())
}

/// The longest time, in milliseconds, that creating a lease took: without other work, for an fsync, and during a
/// collection. The garbage is leases that expire together, after all of them have been created, as the daemon may
/// collect expired leases on its own.
#[expect(
    clippy::disallowed_methods,
    reason = "a benchmark; there is no event for the time that leases end at"
)]
async fn longest_waits(socket: &Path) -> (f64, f64) {
    let channel = client::channel(socket).await.expect("the daemon listens");
    let mut leases = LeasesClient::new(channel);
    let end = Timestamp::now().plus(SET_UP);
    let expires = [(EXPIRE.to_owned(), end.to_string())];
    for number in 0..GARBAGE {
        let garbage = CreateRequest { id: format!("over{number}"), labels: expires.clone().into() };
        leases.create(ask(garbage)).await.expect("a lease");
    }
    leases
        .create(ask(CreateRequest { id: "last".into(), ..CreateRequest::default() }))
        .await
        .expect("a lease");
    let mut alone = 0f64;
    for number in 0..ALONE {
        let made = CreateRequest { id: format!("alone{number}"), ..CreateRequest::default() };
        let begun = Instant::now();
        leases.create(ask(made)).await.expect("a lease");
        alone = alone.max(begun.elapsed().as_secs_f64() * 1e3);
    }
    let left = Timestamp::now().until(end);
    assert!(left > LEAD, "{GARBAGE} leases are made in less than {SET_UP:?}");
    // This program must not compete with the daemon for the processor.
    std::thread::sleep(left - LEAD);
    let mut collecting = leases.clone();
    let mut collecting = std::pin::pin!(async move {
        collecting.delete(ask(DeleteRequest { id: "last".into(), sync: true })).await.expect("it is there");
    });
    let (mut longest, mut number) = (0f64, 0);
    loop {
        let is_time = Timestamp::now().until(end).is_zero();
        let begun = Instant::now();
        let made = CreateRequest { id: format!("made{number}"), ..CreateRequest::default() };
        let mut writer = leases.clone();
        let mut writing = std::pin::pin!(writer.create(ask(made)));
        let is_over = tokio::select! {
            made = &mut writing => {
                made.expect("a lease");
                false
            }
            () = &mut collecting, if is_time => {
                writing.await.expect("a lease");
                true
            }
        };
        longest = longest.max(begun.elapsed().as_secs_f64() * 1e3);
        if is_over {
            return (alone, longest);
        }
        number += 1;
    }
}
