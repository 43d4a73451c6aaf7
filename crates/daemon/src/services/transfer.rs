//! `containerd.services.transfer.v1`: images from one place to another, in one call.
//!
//! | from | to | |
//! |---|---|---|
//! | registry | image store | pull |
//! | image store | image store | tag |
//! | image store | export stream | export |
//!
//! Progress goes to a stream that the client has opened, in the words of containerd's transfer service.

use std::collections::BTreeMap;

use api::grpc::transfer::transfer_server::Transfer;
use api::grpc::transfer::{
    AuthRequest, AuthResponse, AuthType, ImageExportStream, ImageStore, OciRegistry,
    Progress as WireProgress, TransferRequest,
};
use api::grpc::types as wire;
use api::shim::{holds, pack, unpack};
use metadata::{Caller, Image, Metadata};
use prost::Message;
use prost_types::Any;
use registry::{Connections, Credentials};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tonic::{Request, Response};
use transfer::{Admission, Flights, Progress, PullRequest, Report};
use types::{Digest, Error, ErrorKind, Platform, Reference, Result};

use super::{Answer, caller, convert, required, status};
use crate::streams::{Channel, Streams};

/// Steps that wait for a slow client. Those beyond are left out.
const STEPS_WAITING: usize = 256;

pub(super) struct Service {
    pub(super) metadata: Metadata,
    pub(super) streams: Streams,
    pub(super) connections: Connections,
    pub(super) flights: Flights,
    pub(super) admission: Admission,
    /// Used where a client names none.
    pub(super) snapshotter: String,
}

#[tonic::async_trait]
impl Transfer for Service {
    async fn transfer(&self, request: Request<TransferRequest>) -> Answer<()> {
        let caller = caller(&request)?;
        let TransferRequest { source, destination, options } = request.into_inner();
        let from = required(source, "source")?;
        let to = required(destination, "destination")?;
        let stream = options.map(|options| options.progress_stream).filter(|name| !name.is_empty());
        let (report, telling) = match stream {
            None => (None, None),
            Some(name) => {
                let channel = self.streams.take(&caller.namespace, &name).map_err(status)?;
                let (report, steps) = mpsc::channel(STEPS_WAITING);
                (Some(report), Some(tokio::spawn(tell(channel, steps))))
            }
        };
        let moved = self.between(&caller, &from, &to, report).await;
        if let Some(telling) = telling {
            // All steps are told before the outcome is.
            let _ = telling.await;
        }
        moved.map(Response::new).map_err(status)
    }
}

impl Service {
    async fn between(&self, caller: &Caller, from: &Any, to: &Any, report: Option<Report>) -> Result<()> {
        if holds::<OciRegistry>(from) && holds::<ImageStore>(to) {
            return self.pull(caller, read(from)?, read(to)?, report).await;
        }
        if holds::<ImageStore>(from) && holds::<ImageStore>(to) {
            return self.tag(caller, read(from)?, read(to)?).await;
        }
        if holds::<ImageStore>(from) && holds::<ImageExportStream>(to) {
            return self.export(caller, read(from)?, read(to)?).await;
        }
        Err(Error::unimplemented(format!(
            "method Transfer not implemented for {} to {}",
            from.type_url, to.type_url
        )))
    }

    async fn pull(
        &self,
        caller: &Caller,
        from: OciRegistry,
        to: ImageStore,
        report: Option<Report>,
    ) -> Result<()> {
        let reference: Reference = from.reference.parse()?;
        let resolver = from.resolver.unwrap_or_default();
        let credentials = match resolver.auth_stream.as_str() {
            "" => None,
            name => ask_credentials(self.streams.take(&caller.namespace, name)?, &reference).await?,
        };
        let connections = match resolver.host_dir.as_str() {
            "" => self.connections.clone(),
            path if path.starts_with('/') => self.connections.with_directories(vec![path.into()]),
            path => {
                return Err(Error::invalid_argument(format!(
                    "pull {reference}: the directory of hosts {path:?} is not an absolute path"
                )));
            }
        };
        let unpack = to.unpacks.first();
        let asked =
            unpack.and_then(|unpack| unpack.platform.clone()).or_else(|| to.platforms.first().cloned());
        if to.platforms.len() > 1 || to.unpacks.len() > 1 {
            return Err(Error::unimplemented(format!(
                "pull {reference}: one platform at a time; {} are asked for",
                to.platforms.len().max(to.unpacks.len())
            )));
        }
        let snapshotter = unpack.map(|unpack| unpack.snapshotter.clone()).filter(|name| !name.is_empty());
        let request = PullRequest {
            platform: asked.map_or_else(|| Ok(Platform::host()), own_platform)?,
            snapshotter: snapshotter.unwrap_or_else(|| self.snapshotter.clone()),
            caller: caller.clone(),
            remote: {
                let reference = reference.clone();
                let keyring = credentials.map(|credentials| (reference.host().to_owned(), credentials));
                let keyring = keyring.into_iter().collect();
                blocking(move || connections.remote(&reference, &keyring)).await?
            },
            reference,
            flights: self.flights.clone(),
            admission: self.admission.clone(),
        };
        let image = transfer::pull(&self.metadata, request, report).await?;
        let name = if to.name.is_empty() { image.name.clone() } else { to.name };
        self.name(caller, Image { name, labels: to.labels, ..image }).await
    }

    async fn tag(&self, caller: &Caller, from: ImageStore, to: ImageStore) -> Result<()> {
        let (images, name) = (self.metadata.images(caller), from.name);
        let image = blocking(move || images.get(&name)).await?;
        self.name(caller, Image { name: to.name, labels: to.labels, ..image }).await
    }

    async fn export(&self, caller: &Caller, from: ImageStore, to: ImageExportStream) -> Result<()> {
        let channel = self.streams.take(&caller.namespace, &to.stream)?;
        let platform = to.platforms.first().cloned();
        let platform = platform.map_or_else(|| Ok(Platform::host()), own_platform)?;
        let names: Vec<String> = match from.name.is_empty() {
            true => from.extra_references.into_iter().map(|reference| reference.name).collect(),
            false => vec![from.name],
        };
        let (metadata, caller) = (self.metadata.clone(), caller.clone());
        blocking(move || {
            let images = metadata.images(&caller);
            let found = names.iter().map(|name| images.get(name)).collect::<Result<Vec<Image>>>()?;
            let mut writer =
                std::io::BufWriter::with_capacity(256 << 10, channel.into_writer(Handle::current()));
            transfer::export(&metadata, &caller, &found, &platform, &mut writer)?;
            std::io::Write::flush(&mut writer)
                .map_err(|error| Error::unavailable("send the archive").with_source(error))
        })
        .await
    }

    /// Gives an image its name and labels. A name that another image has moves to this one.
    async fn name(&self, caller: &Caller, image: Image) -> Result<()> {
        let images = self.metadata.images(caller);
        blocking(move || match images.create(image.clone(), None) {
            Err(error) if error.is(ErrorKind::AlreadyExists) => {
                let mut paths = vec!["target".to_owned()];
                paths.extend(image.labels.keys().map(|key| format!("labels.{key}")));
                images.update(&image, &paths, None).map(drop)
            }
            created => created.map(drop),
        })
        .await
    }
}

/// Asks the client who it is to a registry.
async fn ask_credentials(mut channel: Channel, reference: &Reference) -> Result<Option<Credentials>> {
    let ask = AuthRequest {
        host: reference.host().to_owned(),
        reference: reference.to_string(),
        wwwauthenticate: Vec::new(),
    };
    channel.send(pack(&ask)).await?;
    let Some(answer) = channel.receive().await? else { return Ok(None) };
    let answer: AuthResponse = read(&answer)?;
    match AuthType::try_from(answer.auth_type) {
        Ok(AuthType::None) => Ok(None),
        Ok(AuthType::Credentials) => {
            Ok(Some(Credentials::Password { user: answer.username, password: answer.secret }))
        }
        Ok(AuthType::Refresh) => Ok(Some(Credentials::IdentityToken(answer.secret))),
        Ok(AuthType::Header) => match answer.secret.strip_prefix("Bearer ") {
            Some(token) => Ok(Some(Credentials::RegistryToken(token.to_owned()))),
            None => Err(Error::unimplemented(format!(
                "credentials for {}: of whole headers only those with a bearer token are taken",
                reference.host()
            ))),
        },
        Err(_) => Err(Error::invalid_argument(format!("credentials of kind {}", answer.auth_type))),
    }
}

/// Tells the steps of a transfer to a client, until they end or the client goes.
async fn tell(channel: Channel, mut steps: mpsc::Receiver<Progress>) {
    let mut sizes = BTreeMap::new();
    while let Some(step) = steps.recv().await {
        for step in said(step, &mut sizes) {
            if channel.send(pack(&step)).await.is_err() {
                return;
            }
        }
    }
}

/// A step in the words of containerd's transfer service. `sizes` are those of the layers told so far.
fn said(step: Progress, sizes: &mut BTreeMap<Digest, u64>) -> Vec<WireProgress> {
    if let Progress::Layers(layers) = &step {
        sizes.extend(layers.iter().cloned());
    }
    let layer = |event: &str, digest: &Digest, done: Option<u64>| {
        let total = sizes.get(digest).copied().unwrap_or(0);
        WireProgress {
            event: event.to_owned(),
            name: format!("layer-{digest}"),
            progress: convert::signed(done.unwrap_or(total)),
            total: convert::signed(total),
            ..WireProgress::default()
        }
    };
    match step {
        Progress::Resolved { name, digest } => vec![WireProgress {
            event: "resolved".into(),
            name,
            desc: Some(wire::Descriptor { digest: digest.to_string(), ..wire::Descriptor::default() }),
            ..WireProgress::default()
        }],
        Progress::Layers(layers) => {
            layers.iter().map(|(digest, _)| layer("waiting", digest, Some(0))).collect()
        }
        Progress::Downloading { digest, current } => vec![layer("downloading", &digest, Some(current))],
        Progress::Extracting { digest } => vec![layer("extracting", &digest, None)],
        Progress::Done { digest } => vec![layer("complete", &digest, None)],
        Progress::Exists { digest } => vec![layer("already exists", &digest, None)],
    }
}

fn read<M: Message + Default + api::shim::types::TypeUrl>(any: &Any) -> Result<M> {
    let read = unpack::<M>(any).ok_or_else(|| {
        Error::invalid_argument(format!("{} in the place of {}", any.type_url, M::TYPE_URL))
    })?;
    read.map_err(|error| Error::invalid_argument(format!("read {}", any.type_url)).with_source(error))
}

fn own_platform(platform: wire::Platform) -> Result<Platform> {
    let text = [&platform.os, &platform.architecture, &platform.variant];
    let text: Vec<&str> = text.into_iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
    text.join("/").parse()
}

/// Makes a call that blocks, off the workers.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.unwrap_or_else(|panic| Err(Error::internal("the transfer broke down").with_source(panic)))
}
