//! Records made and deleted over the API, each answer on disk before it is given: images, by one client and
//! by many at once. One client pays a sync for each change; many share theirs, where the daemon lets them.

use std::path::Path;
use std::time::Instant;

use api::grpc::NAMESPACE_KEY;
use api::grpc::images::images_client::ImagesClient;
use api::grpc::images::{CreateImageRequest, DeleteImageRequest, Image};
use api::grpc::types::Descriptor;
use tokio::runtime::Runtime;
use tonic::{Request, Status};

use crate::side::Side;

/// Clients, and changes that each makes.
const LOADS: [(usize, usize); 2] = [(1, 100), (64, 50)];

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
        }
    }
}

/// Changes a second. Half of them make an image, half delete it.
fn measure(runtime: &Runtime, socket: &Path, clients: usize, changes: usize) -> f64 {
    let start = Instant::now();
    runtime.block_on(async {
        let channel = client::channel(socket).await.expect("the daemon listens");
        let mut working = tokio::task::JoinSet::new();
        for number in 0..clients {
            let images = ImagesClient::new(channel.clone());
            working.spawn(async move { change(images, number, changes).await });
        }
        while let Some(done) = working.join_next().await {
            done.expect("no panic").expect("the daemon takes records");
        }
    });
    (clients * changes) as f64 / start.elapsed().as_secs_f64()
}

async fn change(
    mut images: ImagesClient<tonic::transport::Channel>,
    client: usize,
    changes: usize,
) -> Result<(), Status> {
    for step in 0..changes / 2 {
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
        images.delete(ask(DeleteImageRequest { name, ..DeleteImageRequest::default() })).await?;
    }
    Ok(())
}

fn ask<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(NAMESPACE_KEY, "bench".parse().expect("plain text"));
    request
}
