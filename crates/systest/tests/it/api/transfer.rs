//! `containerd.services.{streaming,transfer}.v1`: what is refused, and an image on its way from a registry through the
//! store to another, as on containerd. What else a transfer can do: [`super`], `platforms.rs`.

use api::grpc::images::images_client::ImagesClient;
use api::grpc::images::{GetImageRequest, Image};
use api::grpc::streaming::StreamInit;
use api::grpc::streaming::streaming_client::StreamingClient;
use api::grpc::transfer::transfer_client::TransferClient;
use api::grpc::transfer::{Data, OciRegistry, TransferOptions, TransferRequest};
use api::grpc::types::Any;
use api::shim::pack;
use testkit::{Registry, images, is_root, run};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status, Streaming};

use super::store;
use super::walk::{Difference, Side, There, Watched, ask, covers, differs_in, within};

const DIFFERENCES: &[Difference] = &[
    differs_in(2, "a stream without a namespace", There::Code(Code::Ok), "nobody finds it there"),
    differs_in(2, "a name that is taken", There::Code(Code::Unknown), "the same refusal, without a class"),
    differs_in(
        2,
        "a stream that begins with something else",
        There::Code(Code::Unknown),
        "the same refusal, without a class",
    ),
];

/// Says the name of a stream, and waits for the answer.
async fn open(
    side: &Side<'_>,
    namespace: Option<&str>,
    first: Any,
) -> Result<(mpsc::Sender<Any>, Streaming<Any>), Status> {
    let (send, receive) = mpsc::channel(16);
    send.send(first).await.expect("room for one");
    let mut streams = StreamingClient::new(side.channel());
    let mut incoming = streams.stream(within(namespace, ReceiverStream::new(receive))).await?.into_inner();
    incoming.message().await?.ok_or_else(|| Status::unknown("it ended without an answer"))?;
    Ok((send, incoming))
}

fn named(id: &str) -> Any {
    pack(&StreamInit { id: id.into() })
}

async fn transfer(
    mut client: TransferClient<Watched>,
    source: Any,
    destination: Any,
    progress: &str,
) -> Result<Response<()>, Status> {
    let options = (!progress.is_empty()).then(|| TransferOptions { progress_stream: progress.into() });
    let request = TransferRequest { source: Some(source), destination: Some(destination), options };
    client.transfer(ask(request)).await
}

#[test]
fn transfers_walked() {
    if !is_root("snapshots") {
        return;
    }
    let (registry, other) = (Registry::start(), Registry::start());
    let reference = registry.push(&images::busybox(), images::TAG, "busybox:1");
    let copy = format!("{}/copies/busybox:1", other.host());
    covers(&["Streaming.Stream", "Transfer.Transfer"]).walk_since(2, DIFFERENCES, async |side| {
        streams_are_named(side).await;
        an_image_moves(side, &reference, &copy).await;
    });
}

async fn streams_are_named(side: &Side<'_>) {
    let required = "namespace is required";
    let answer = open(side, None, named("one"));
    side.refused("a stream without a namespace", answer, Code::FailedPrecondition, required).await;
    let kept = open(side, Some("default"), named("one")).await;
    side.is("a stream by its name", kept.is_ok(), true);
    let answer = open(side, Some("default"), named("one"));
    side.refused("a name that is taken", answer, Code::AlreadyExists, "").await;
    side.is("the same in another namespace", open(side, Some("other"), named("one")).await.is_ok(), true);
    let answer = open(side, Some("default"), pack(&Data::default()));
    side.refused("a stream that begins with something else", answer, Code::InvalidArgument, "").await;
}

async fn an_image_moves(side: &Side<'_>, reference: &str, copy: &str) {
    let client = TransferClient::new(side.channel());
    let moved = |source: Any, destination: Any, progress: &'static str| {
        transfer(client.clone(), source, destination, progress)
    };
    let far = |reference: &str| pack(&OciRegistry { reference: reference.into(), resolver: None });
    let image = async |case: &'static str, name: &str| -> Image {
        let request = ask(GetImageRequest { name: name.into() });
        side.ok(case, ImagesClient::new(side.channel()).get(request)).await.image.expect("an image")
    };

    let answer = moved(store("none"), store("other"), "");
    side.refused("what is not there", answer, Code::NotFound, "none").await;
    let answer = moved(far(reference), pack(&Data::default()), "");
    side.refused("to what is no place", answer, Code::Unimplemented, "").await;
    let answer = moved(pack(&Data::default()), store("other"), "");
    side.refused("from what is no place", answer, Code::Unimplemented, "").await;
    let answer = moved(far(&format!("{reference}-none")), store("none:1"), "");
    side.refused("from a registry that lacks it", answer, Code::NotFound, "").await;
    let request = TransferRequest { source: Some(store("none")), ..TransferRequest::default() };
    if side.is_ours() {
        let mut client = client.clone();
        let answer = client.transfer(ask(request));
        side.refused("to nowhere", answer, Code::InvalidArgument, "").await;
    }
    let answer = moved(far(reference), store("unheard:1"), "unopened");
    side.refused("with a stream that nobody opened", answer, Code::NotFound, "").await;

    side.ok("pull", moved(far(reference), store(reference), "")).await;
    let pulled = image("it is here", reference).await;
    side.ok("tag", moved(store(reference), store("docker.io/library/tagged:1"), "")).await;
    let tagged = image("by its other name too", "docker.io/library/tagged:1").await;
    side.is("the same image", tagged.target.as_ref(), pulled.target.as_ref());
    side.ok("push", moved(store(reference), far(copy), "")).await;
    let inspect = ["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &format!("docker://{copy}")];
    let found = run(std::process::Command::new("skopeo").args(inspect)).ok();
    side.is("it is there", found.text(), pulled.target.unwrap_or_default().digest.as_str());
}
