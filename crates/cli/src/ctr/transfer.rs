//! Transfers of images, by containerd's transfer service: `images pull`, `push`, `import`, `export`, and `content
//! fetch`.
//!
//! ```text
//! Streaming.Stream (name) ──▶ acknowledged ──▶ Transfer.Transfer names it ──▶ bytes, progress, credentials on it
//! ```

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use api::grpc::content::InfoRequest;
use api::grpc::images::{DeleteImageRequest, Image};
use api::grpc::streaming::StreamInit;
use api::grpc::transfer::{
    AuthRequest, AuthResponse, Data, ImageExportStream, ImageImportStream, ImageReference, ImageStore,
    Progress, TransferOptions, TransferRequest, UnpackConfiguration, WindowUpdate,
};
use api::grpc::types::{Descriptor, Platform as WirePlatform};
use api::shim::{pack, unpack};
use prost_types::Any;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use types::descriptor::media_type;
use types::{Context, Error, Platform, Reference, Result, Timestamp};

use super::command::{Call, Flag};
use super::connection::{Answer, Connection, service};
use super::registries::{TransferRegistry, registry_flags};
use super::{images, objects, snapshots, table};

/// Bytes in one message: as many as containerd's clients send.
const CHUNK_LEN_MAX: usize = 32 * 1024;
/// The receive window, in bytes: how much the daemon may send before we acknowledge.
const WINDOW: i32 = 256 * 1024;

const SNAPSHOTTER: Flag = Flag::value("snapshotter", "the snapshotter [$CONTAINERD_SNAPSHOTTER]");
const PLATFORM: Flag = Flag::value("platform", "the image for this platform");
const LABEL: Flag = Flag::value("label", "a label for the image");
const ALL_METADATA: Flag = Flag::switch("all-metadata", "fetch the documents of all platforms");
const SKIP_METADATA: Flag = Flag::switch("skip-metadata", "no effect: this is the default");
const ALL_PLATFORMS: Flag = Flag::switch("all-platforms", "images for all platforms");
/// With containerd's `ctr` the client does the work, with the same result.
pub(super) const LOCAL: Flag = Flag::switch("local", "no effect: the daemon does the work");
pub(super) const SYNC_FS: Flag = Flag::switch("sync-fs", "no effect: unpacked files are synced in any case");

pub(super) const PULL_FLAGS: &[Flag] = registry_flags![
    SNAPSHOTTER,
    LABEL,
    PLATFORM,
    ALL_PLATFORMS,
    ALL_METADATA,
    SKIP_METADATA,
    LOCAL,
    SYNC_FS,
    Flag::switch("print-chainid", "print the chain id of the unpacked image"),
    Flag::value("max-concurrent-downloads", "no effect: the daemon decides"),
];
pub(super) const FETCH_FLAGS: &[Flag] = registry_flags![
    LABEL,
    PLATFORM,
    ALL_PLATFORMS,
    ALL_METADATA,
    SKIP_METADATA,
    Flag::switch("metadata-only", "fetch documents and configs of all platforms, without layers"),
];
pub(super) const PUSH_FLAGS: &[Flag] = registry_flags![
    PLATFORM,
    LOCAL,
    Flag::value("manifest", "the digest of a manifest to push instead of an image"),
    Flag::value("manifest-type", "the manifest's media type [application/vnd.oci.image.manifest.v1+json]"),
    Flag::switch("allow-non-distributable-blobs", "no effect: all local blobs are pushed"),
    Flag::value("max-concurrent-uploaded-layers", "no effect: the daemon decides"),
];
pub(super) const EXPORT_FLAGS: &[Flag] = &[
    Flag::switch("skip-manifest-json", "leave out manifest.json, which Docker reads"),
    Flag::switch("skip-non-distributable", "leave out non-distributable layers"),
    PLATFORM,
    ALL_PLATFORMS,
    LOCAL,
];
pub(super) const IMPORT_FLAGS: &[Flag] = &[
    Flag::value("base-name", "only images with this name; it is added to names that are only a tag"),
    Flag::switch("digests", "also create names with digests"),
    Flag::switch("skip-digest-for-named", "with --digests, only for images without a name"),
    Flag::value("index-name", "a name for the index of the archive"),
    ALL_PLATFORMS,
    PLATFORM,
    Flag::switch("no-unpack", "do not unpack the layers"),
    Flag::switch("compress-blobs", "compress uncompressed layers"),
    SNAPSHOTTER,
    LABEL,
    LOCAL,
    SYNC_FS,
];

/// An open stream to the daemon.
pub(super) struct OpenStream {
    pub(super) name: String,
    send: mpsc::Sender<Any>,
    receive: tonic::Streaming<Any>,
}

impl OpenStream {
    pub(super) async fn new(connection: &Connection, what: &str) -> Result<OpenStream> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ctr-{what}-{}-{number}-{}", std::process::id(), Timestamp::now());
        let (send, outgoing) = mpsc::channel(16);
        let init = pack(&StreamInit { id: name.clone() });
        send.send(init).await.map_err(|_| Error::internal("a new channel has room"))?;
        let request = connection.request(ReceiverStream::new(outgoing))?;
        let mut client = service!(connection, streaming::streaming_client::StreamingClient);
        let mut receive = client.stream(request).await.answer().context(|| "open a stream")?;
        // The daemon has registered the stream's name once it answers.
        next(&mut receive)
            .await?
            .ok_or_else(|| Error::unavailable("the daemon ended a stream that it opened"))?;
        Ok(OpenStream { name, send, receive })
    }

    /// Sends bytes, as the receiver's window allows.
    async fn send_bytes(mut self, mut from: impl AsyncRead + Unpin) -> Result<()> {
        let mut window = 0;
        let mut buffer = vec![0; CHUNK_LEN_MAX];
        loop {
            while window == 0 {
                let Some(message) = next(&mut self.receive).await? else { return Ok(()) };
                if let Some(update) = unpack::<WindowUpdate>(&message) {
                    let update =
                        update.map_err(|error| Error::internal("malformed message").with_source(error))?;
                    window += usize::try_from(update.update).unwrap_or(0);
                }
            }
            let limit = window.min(CHUNK_LEN_MAX);
            let len = from.read(&mut buffer[..limit]).await.context(|| "read the archive")?;
            if len == 0 {
                break;
            }
            window -= len;
            let data = Data { data: bytes::Bytes::copy_from_slice(&buffer[..len]) };
            if self.send.send(pack(&data)).await.is_err() {
                // The daemon's answer to the transfer has the reason.
                return Ok(());
            }
        }
        // The end of our messages marks the end of the bytes. Keep the stream until the daemon ends it: dropping it
        // earlier would discard what the daemon has not read yet.
        drop(self.send);
        while next(&mut self.receive).await?.is_some() {}
        Ok(())
    }

    /// Writes received bytes to a file.
    pub(super) async fn receive_bytes(mut self, mut to: impl Write) -> Result<()> {
        let window = |update| pack(&WindowUpdate { update });
        let _ = self.send.send(window(WINDOW)).await;
        let mut taken = 0;
        while let Some(message) = next(&mut self.receive).await? {
            let Some(data) = unpack::<Data>(&message) else { continue };
            let data = data.map_err(|error| Error::internal("malformed message").with_source(error))?.data;
            to.write_all(&data).context(|| "write the archive")?;
            taken += i32::try_from(data.len()).unwrap_or(0);
            if taken >= WINDOW / 2 {
                let _ = self.send.send(window(taken)).await;
                taken = 0;
            }
        }
        to.flush().context(|| "write the archive")
    }

    /// Answers requests for credentials.
    pub(super) async fn answer(mut self, answer: AuthResponse) -> Result<()> {
        while let Some(message) = next(&mut self.receive).await? {
            if unpack::<AuthRequest>(&message).is_some() {
                let _ = self.send.send(pack(&answer)).await;
            }
        }
        Ok(())
    }

    /// Prints the progress of a transfer.
    async fn show(mut self) -> Result<()> {
        let is_terminal = std::io::stdout().is_terminal();
        let mut shown: BTreeMap<String, String> = BTreeMap::new();
        while let Some(message) = next(&mut self.receive).await? {
            let Some(Ok(step)) = unpack::<Progress>(&message) else { continue };
            let Progress { event, name, .. } = step;
            // Print each change of state once, so that logs stay readable.
            if shown.insert(name.clone(), event.clone()).as_ref() != Some(&event) && is_terminal {
                table::lines([format!("{name}: {event}")]);
            }
        }
        Ok(())
    }
}

async fn next(stream: &mut tonic::Streaming<Any>) -> Result<Option<Any>> {
    match stream.message().await {
        Ok(message) => Ok(message),
        // The daemon drops a stream when the transfer is done.
        Err(status) if status.code() == tonic::Code::Cancelled => Ok(None),
        Err(status) => Err(client::error(&status)),
    }
}

/// Runs a transfer and prints its progress.
async fn transfer(connection: &Connection, from: Any, to: Any) -> Result<()> {
    let progress = OpenStream::new(connection, "progress").await?;
    let options = Some(TransferOptions { progress_stream: progress.name.clone() });
    let showing = tokio::spawn(progress.show());
    let request = TransferRequest { source: Some(from), destination: Some(to), options };
    let mut client = service!(connection, transfer::transfer_client::TransferClient);
    let done = client.transfer(connection.request(request)?).await.answer();
    // The progress ends with the transfer; missing lines are no failure.
    showing.abort();
    done
}

fn wire(platform: Platform) -> WirePlatform {
    let Platform { os, architecture, variant, os_version, os_features, .. } = platform;
    WirePlatform { os, architecture, variant, os_version, os_features }
}

/// The platforms on the command line; empty is this machine's.
fn platforms(call: &Call) -> Result<Vec<WirePlatform>> {
    Ok(match call.value("platform") {
        Some(_) => vec![wire(images::platform(call)?)],
        None => Vec::new(),
    })
}

/// The platforms to fetch: this machine's by default; empty is all.
fn fetched(call: &Call) -> Result<Vec<WirePlatform>> {
    Ok(if call.is("all-platforms") { Vec::new() } else { vec![wire(images::platform(call)?)] })
}

/// Checks a name for a pull, and returns it.
fn full(name: &str) -> Result<String> {
    let _: Reference = name.parse()?;
    Ok(name.to_owned())
}

pub(super) async fn pull(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let reference = full(call.word(0, "image reference")?)?;
    let platform = images::platform(&call)?;
    let store = ImageStore {
        name: reference.clone(),
        labels: Call::labels(call.values("label")),
        platforms: fetched(&call)?,
        all_metadata: call.is("all-metadata"),
        unpacks: vec![UnpackConfiguration {
            platform: Some(wire(platform.clone())),
            snapshotter: snapshots::of_images(&call, &connection).await?,
        }],
        ..ImageStore::default()
    };
    let registry = TransferRegistry::of(&call, &connection, &reference).await?;
    let done = transfer(&connection, registry.message.clone(), pack(&store)).await;
    registry.shown().await;
    done?;
    let image = images::get(&connection, &reference).await?;
    let tree = images::Tree::of(&connection, &image.target.unwrap_or_default(), &platform).await?;
    match tree.chain_id {
        Some(chain_id) if call.is("print-chainid") => table::lines([format!("image chain ID: {chain_id}")]),
        _ => table::lines(["done"]),
    }
    Ok(0)
}

pub(super) async fn fetch(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let reference = full(call.word(0, "image reference")?)?;
    if call.is("metadata-only") {
        objects::fetch_metadata(&call, &connection, &reference).await?;
    } else {
        pull_platforms(&call, &connection, &reference, fetched(&call)?).await?;
    }
    Ok(0)
}

/// Fetches an image with all its content, whatever the platforms are.
pub(super) async fn fetch_whole(call: &Call, connection: &Connection, reference: &str) -> Result<()> {
    pull_platforms(call, connection, &full(reference)?, Vec::new()).await
}

async fn pull_platforms(
    call: &Call,
    connection: &Connection,
    reference: &str,
    platforms: Vec<WirePlatform>,
) -> Result<()> {
    let store = ImageStore {
        name: reference.to_owned(),
        labels: Call::labels(call.values("label")),
        all_metadata: call.is("all-metadata"),
        platforms,
        ..ImageStore::default()
    };
    let registry = TransferRegistry::of(call, connection, reference).await?;
    let done = transfer(connection, registry.message.clone(), pack(&store)).await;
    registry.shown().await;
    done
}

pub(super) async fn push(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let remote = full(call.word(0, "remote reference")?)?;
    let registry = TransferRegistry::of(&call, &connection, &remote).await?;
    let pushed = push_to(&call, &connection, &remote, registry.message.clone()).await;
    registry.shown().await;
    pushed.map(|()| 0)
}

async fn push_to(call: &Call, connection: &Connection, remote: &String, to: Any) -> Result<()> {
    let from = |name: &str| {
        let platforms = platforms(call)?;
        Ok::<_, Error>(pack(&ImageStore { name: name.to_owned(), platforms, ..ImageStore::default() }))
    };
    let Some(digest) = call.value("manifest") else {
        return transfer(connection, from(call.words().get(1).unwrap_or(remote))?, to).await;
    };
    // The transfer service pushes images, so create an image record for the time of the push.
    let name = format!("ctr-push-{}/{digest}", std::process::id());
    let kind = call.value("manifest-type").unwrap_or(media_type::OCI_MANIFEST).to_owned();
    let request = connection.request(InfoRequest { digest: digest.to_owned() })?;
    let mut blobs = service!(connection, content::content_client::ContentClient);
    let size = blobs.info(request).await.answer()?.info.unwrap_or_default().size;
    let target =
        Some(Descriptor { media_type: kind, digest: digest.to_owned(), size, ..Descriptor::default() });
    let image = Image { name: name.clone(), target, ..Image::default() };
    images::put(connection, image, false).await?;
    let pushed = transfer(connection, from(&name)?, to).await;
    let request = connection.request(DeleteImageRequest { name, ..DeleteImageRequest::default() })?;
    let removed = images::client(connection).delete(request).await.answer();
    pushed.and(removed)
}
pub(super) async fn export(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let out = call.word(0, "output")?;
    let names = call.words_from(1, "image")?;
    let stream = OpenStream::new(&connection, "export").await?;
    let reference = |name: &String| ImageReference { name: name.clone(), ..ImageReference::default() };
    let store =
        ImageStore { extra_references: names.iter().map(reference).collect(), ..ImageStore::default() };
    let to = ImageExportStream {
        stream: stream.name.clone(),
        media_type: String::new(),
        platforms: platforms(&call)?,
        all_platforms: call.is("all-platforms"),
        skip_compatibility_manifest: call.is("skip-manifest-json"),
        skip_non_distributable: call.is("skip-non-distributable"),
    };
    let file: Box<dyn Write + Send> = match out {
        "-" => Box::new(std::io::stdout()),
        path => Box::new(std::fs::File::create(path).context(|| format!("create {path}"))?),
    };
    let writing = tokio::spawn(stream.receive_bytes(file));
    let done = ask(&connection, pack(&store), pack(&to)).await;
    if let Err(error) = done {
        // The writer's error is the cause of the daemon's broken stream.
        let cause = if writing.is_finished() { writing.await.ok().and_then(Result::err) } else { None };
        // Remove an incomplete archive, but not a device or a pipe.
        if Path::new(out).symlink_metadata().is_ok_and(|there| there.is_file()) {
            let _ = std::fs::remove_file(out);
        }
        return Err(cause.map_or(error, |cause| cause.context(format!("write {out}"))));
    }
    writing.await.map_err(Error::broke_down("the writer"))??;
    Ok(0)
}

pub(super) async fn import(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let path = call.word(0, "archive")?;
    let before = names(&connection).await?;
    let stream = OpenStream::new(&connection, "import").await?;
    let from = ImageImportStream {
        stream: stream.name.clone(),
        media_type: String::new(),
        force_compress: call.is("compress-blobs"),
    };
    // As with containerd's, names without the prefix are imported too if no base name is given.
    let base_name = call.value("base-name").filter(|name| !name.is_empty());
    let today = || Timestamp::now().to_string().chars().take_while(|char| *char != 'T').collect::<String>();
    let references = ImageReference {
        name: base_name.map_or_else(|| format!("import-{}", today()), str::to_owned),
        is_prefix: true,
        allow_overwrite: base_name.is_none(),
        add_digest: call.is("digests"),
        skip_named_digest: call.is("skip-digest-for-named"),
    };
    let unpack = UnpackConfiguration {
        platform: Some(wire(images::platform(&call)?)),
        snapshotter: snapshots::of_images(&call, &connection).await?,
    };
    let store = ImageStore {
        name: call.value("index-name").unwrap_or_default().to_owned(),
        labels: Call::labels(call.values("label")),
        platforms: if call.is("all-platforms") { Vec::new() } else { platforms(&call)? },
        extra_references: vec![references],
        unpacks: if call.is("no-unpack") { Vec::new() } else { vec![unpack] },
        ..ImageStore::default()
    };
    let sending = match path {
        "-" => tokio::spawn(stream.send_bytes(tokio::io::stdin())),
        path => {
            let file = tokio::fs::File::open(path).await.context(|| format!("open {path}"))?;
            tokio::spawn(stream.send_bytes(file))
        }
    };
    let done = ask(&connection, pack(&from), pack(&store)).await;
    let sent = if done.is_ok() { sending.await } else { Ok(Ok(())) };
    done?;
    sent.map_err(Error::broke_down("the reader"))??;
    let after = names(&connection).await?;
    for (name, digest) in &after {
        if before.get(name) != Some(digest) {
            table::lines([format!("unpacking {name} ({digest})...done")]);
        }
    }
    Ok(0)
}

/// Runs a transfer without printing progress.
async fn ask(connection: &Connection, from: Any, to: Any) -> Result<()> {
    let request = TransferRequest { source: Some(from), destination: Some(to), options: None };
    let mut client = service!(connection, transfer::transfer_client::TransferClient);
    client.transfer(connection.request(request)?).await.answer()
}

/// The image names, with the digests of their targets.
async fn names(connection: &Connection) -> Result<BTreeMap<String, String>> {
    let request = connection.request(api::grpc::images::ListImagesRequest::default())?;
    let images = images::client(connection).list(request).await.answer()?.images;
    let entry = |image: Image| (image.name, image.target.unwrap_or_default().digest);
    Ok(images.into_iter().map(entry).collect())
}
