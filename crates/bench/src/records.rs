//! Records created and deleted over the API: images, containers and leases, by one client and by many at once. Each
//! answer waits until the change is on disk. One client pays an fsync for each change; many share theirs, if the daemon
//! groups commits.

use std::path::Path;
use std::time::Instant;

use api::grpc::NAMESPACE_KEY;
use api::grpc::containers::containers_client::ContainersClient;
use api::grpc::containers::{
    Container, CreateContainerRequest, DeleteContainerRequest, Runtime as ContainerRuntime,
};
use api::grpc::images::images_client::ImagesClient;
use api::grpc::images::{CreateImageRequest, DeleteImageRequest, Image};
use api::grpc::leases::leases_client::LeasesClient;
use api::grpc::leases::{CreateRequest, DeleteRequest};
use api::grpc::types::{Any, Descriptor};
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::marks::at_least;
use crate::side::Side;

/// The number of clients, and of changes by each.
const LOADS: [(usize, usize); 2] = [(1, 600), (64, 180)];
/// The mark: the rate of many clients as a multiple of one client's.
const GAIN_MARK: f64 = 10.0;
/// One step creates and deletes one record of each kind.
const CHANGES_A_STEP: usize = 6;

pub(crate) fn rate(sides: &[&dyn Side]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut alone = Vec::new();
    for (clients, changes) in LOADS {
        let rates: Vec<f64> =
            sides.iter().map(|side| measure(&runtime, &side.socket(), clients, changes)).collect();
        let what = format!("records changed a second, {clients} clients");
        crate::rates(&what, &rates);
        if clients == 1 {
            alone = rates;
        } else {
            let gained: Vec<f64> = rates.iter().zip(&alone).map(|(many, one)| many / one).collect();
            crate::rates(&format!("  times the rate of one, {clients} clients"), &gained);
            at_least("times the rate of one client", gained[0], GAIN_MARK);
        }
    }
}

/// Changes a second. Half of them create a record, half delete it.
fn measure(runtime: &Runtime, socket: &Path, clients: usize, changes: usize) -> f64 {
    let start = Instant::now();
    runtime.block_on(async {
        let channel = client::channel(socket).await.expect("the daemon listens");
        let mut working = tokio::task::JoinSet::new();
        for number in 0..clients {
            working.spawn(change(channel.clone(), number, changes));
        }
        while let Some(done) = working.join_next().await {
            done.expect("no panic").expect("the daemon takes records");
        }
    });
    (clients * changes) as f64 / start.elapsed().as_secs_f64()
}

async fn change(channel: Channel, client: usize, changes: usize) -> Result<(), Status> {
    let mut images = ImagesClient::new(channel.clone());
    let mut containers = ContainersClient::new(channel.clone());
    let mut leases = LeasesClient::new(channel);
    for step in 0..changes / CHANGES_A_STEP {
        let name = format!("example.org/bench/c{client}:s{step}");
        let target = Descriptor {
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            digest: format!("sha256:{step:064x}"),
            size: 1,
            ..Descriptor::default()
        };
        let image = Image { name: name.clone(), target: Some(target), ..Image::default() };
        let create = CreateImageRequest { image: Some(image), ..CreateImageRequest::default() };
        images.create(ask(create)).await?;

        let id = format!("bench-c{client}-s{step}");
        let container = Container {
            id: id.clone(),
            image: name.clone(),
            runtime: Some(ContainerRuntime { name: "io.containerd.runc.v2".into(), options: None }),
            spec: Some(Any { type_url: "spec".into(), value: b"{}".to_vec() }),
            ..Container::default()
        };
        containers.create(ask(CreateContainerRequest { container: Some(container) })).await?;
        leases.create(ask(CreateRequest { id: id.clone(), ..CreateRequest::default() })).await?;

        leases.delete(ask(DeleteRequest { id: id.clone(), ..DeleteRequest::default() })).await?;
        containers.delete(ask(DeleteContainerRequest { id })).await?;
        images.delete(ask(DeleteImageRequest { name, ..DeleteImageRequest::default() })).await?;
    }
    Ok(())
}

pub(crate) fn ask<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(NAMESPACE_KEY, "bench".parse().expect("plain text"));
    request
}
