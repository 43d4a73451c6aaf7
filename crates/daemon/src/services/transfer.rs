//! `containerd.services.transfer.v1`: images from one place to another, in one call.
//!
//! | from | to | |
//! |---|---|---|
//! | registry | image store | pull |
//! | image store | registry | push |
//! | image store | image store | tag |
//! | image store | export stream | export |
//! | import stream | image store | import |
//!
//! Progress goes to a stream that the client has opened, in the words of containerd's transfer service.

use std::collections::BTreeMap;

use api::grpc::transfer::transfer_server::Transfer;
use api::grpc::transfer::{
    AuthRequest, AuthResponse, AuthType, ImageExportStream, ImageImportStream, ImageStore, OciRegistry,
    Progress as WireProgress, RegistryResolver, TransferRequest,
};
use api::grpc::types as wire;
use api::shim::{holds, pack, unpack};
use http::{HeaderMap, HeaderName, HeaderValue};
use metadata::{Caller, Image, Metadata};
use prost::Message;
use prost_types::Any;
use registry::{Connections, Credentials, Manner, Remote, Scheme, Sent};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::{Request, Response};
use transfer::{
    Admission, DigestNames, Flights, ImportOptions, Platforms, Progress, PullRequest, PushProgress,
    PushRequest, Scope,
};
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
        let progress = stream.map(|name| self.streams.take(&caller.namespace, &name)).transpose();
        let moved = self.between(&caller, &from, &to, progress.map_err(status)?).await;
        moved.map(Response::new).map_err(status)
    }
}

impl Service {
    async fn between(&self, caller: &Caller, from: &Any, to: &Any, progress: Option<Channel>) -> Result<()> {
        if holds::<OciRegistry>(from) && holds::<ImageStore>(to) {
            return self.pull(caller, read(from)?, read(to)?, progress).await;
        }
        if holds::<ImageStore>(from) && holds::<OciRegistry>(to) {
            return self.push(caller, read(from)?, read(to)?, progress).await;
        }
        if holds::<ImageStore>(from) && holds::<ImageStore>(to) {
            return self.tag(caller, read(from)?, read(to)?).await;
        }
        if holds::<ImageStore>(from) && holds::<ImageExportStream>(to) {
            return self.export(caller, read(from)?, read(to)?).await;
        }
        if holds::<ImageImportStream>(from) && holds::<ImageStore>(to) {
            return self.import(caller, read(from)?, read(to)?, progress).await;
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
        progress: Option<Channel>,
    ) -> Result<()> {
        let (reference, remote) = self.remote(caller, from).await?;
        if to.platforms.len() > 1 || to.unpacks.len() > 1 {
            return Err(Error::unimplemented(format!(
                "pull {reference}: one platform at a time; {} are asked for",
                to.platforms.len().max(to.unpacks.len())
            )));
        }
        let unpack = to.unpacks.into_iter().next().unwrap_or_default();
        let platform = unpack.platform.or_else(|| to.platforms.into_iter().next());
        let snapshotter = Some(unpack.snapshotter).filter(|name| !name.is_empty());
        let request = PullRequest {
            platform: platform.map_or_else(|| Ok(Platform::host()), own_platform)?,
            snapshotter: snapshotter.unwrap_or_else(|| self.snapshotter.clone()),
            caller: caller.clone(),
            remote,
            reference,
            flights: self.flights.clone(),
            admission: self.admission.clone(),
        };
        let mut sizes = BTreeMap::new();
        let (report, telling) = telling(progress, move |step| pulled(step, &mut sizes));
        let pulled = transfer::pull(&self.metadata, request, report).await;
        told(telling).await;
        let image = pulled?;
        let name = if to.name.is_empty() { image.name.clone() } else { to.name };
        self.name(caller, Image { name, labels: to.labels, ..image }).await
    }

    async fn push(
        &self,
        caller: &Caller,
        from: ImageStore,
        to: OciRegistry,
        progress: Option<Channel>,
    ) -> Result<()> {
        let (images, name) = (self.metadata.images(caller), from.name);
        let image = blocking(move || images.get(&name)).await?;
        let (reference, remote) = self.remote(caller, to).await?;
        if let [platform, ..] = &from.platforms[..] {
            return Err(Error::unimplemented(format!(
                "push {reference}: what is here is pushed; of {}/{} alone it cannot be yet",
                platform.os, platform.architecture
            )));
        }
        let request = PushRequest {
            target: image.target,
            reference,
            scope: Scope::Present,
            referrers: false,
            caller: caller.clone(),
            remote,
        };
        let mut sizes = BTreeMap::new();
        let (report, telling) = telling(progress, move |step| pushed(step, &mut sizes));
        let pushed = transfer::push(&self.metadata, request, report).await;
        told(telling).await;
        pushed.map(drop)
    }

    /// A repository as a client names it, spoken to as whom the client says.
    async fn remote(&self, caller: &Caller, named: OciRegistry) -> Result<(Reference, Remote)> {
        let reference: Reference = named.reference.parse()?;
        let resolver = named.resolver.unwrap_or_default();
        let manner = manner(&resolver).map_err(|error| error.context(reference.to_string()))?;
        let connections = match resolver.host_dir.as_str() {
            "" => self.connections.clone(),
            path if path.starts_with('/') => self.connections.with_directories(vec![path.into()]),
            path => {
                return Err(Error::invalid_argument(format!(
                    "{reference}: the directory of hosts {path:?} is not an absolute path"
                )));
            }
        };
        let credentials = match resolver.auth_stream.as_str() {
            "" => None,
            name => ask_credentials(self.streams.take(&caller.namespace, name)?, &reference).await?,
        };
        let keyring = credentials.map(|credentials| (reference.host().to_owned(), credentials));
        let keyring = keyring.into_iter().collect();
        let named = reference.clone();
        let remote = blocking(move || connections.remote_in(&named, &keyring, &manner)).await?;
        Ok((reference, remote))
    }

    async fn tag(&self, caller: &Caller, from: ImageStore, to: ImageStore) -> Result<()> {
        let (images, name) = (self.metadata.images(caller), from.name);
        let image = blocking(move || images.get(&name)).await?;
        self.name(caller, Image { name: to.name, labels: to.labels, ..image }).await
    }

    async fn import(
        &self,
        caller: &Caller,
        from: ImageImportStream,
        to: ImageStore,
        progress: Option<Channel>,
    ) -> Result<()> {
        if from.force_compress {
            return Err(Error::unimplemented(
                "import an archive: its layers are kept as they are, not compressed",
            ));
        }
        let archive = self.streams.take(&caller.namespace, &from.stream)?.into_reader(Handle::current());
        let options = self.import_options(to)?;
        let (metadata, caller) = (self.metadata.clone(), caller.clone());
        let images = blocking(move || transfer::import_stream(&metadata, &caller, &options, archive)).await?;
        if let Some(progress) = progress {
            for image in images {
                let name = image.name;
                // A client that is gone has its images all the same.
                let saved = WireProgress { event: "saved".to_owned(), name, ..WireProgress::default() };
                let _ = progress.send(pack(&saved)).await;
            }
        }
        Ok(())
    }

    /// How a client wants the images of an archive to be named and kept. Content of other platforms than those
    /// it names is kept too.
    fn import_options(&self, to: ImageStore) -> Result<ImportOptions> {
        let ([] | [_]) = &to.extra_references[..] else {
            return Err(Error::unimplemented(
                "import an archive: one rule for names is followed, not several",
            ));
        };
        let rule = to.extra_references.into_iter().next().unwrap_or_default();
        let host = Platform::host();
        let ([] | [_]) = &to.unpacks[..] else {
            return Err(Error::unimplemented("import an archive: one platform is unpacked, not several"));
        };
        let unpack = to.unpacks.into_iter().next();
        let platform =
            unpack.as_ref().and_then(|unpack| unpack.platform.clone()).map(own_platform).transpose()?;
        if platform.as_ref().is_some_and(|platform| host.fit(platform) == 0) {
            return Err(Error::unimplemented(format!(
                "import an archive: only images for {host} are unpacked"
            )));
        }
        let snapshotter = unpack.map(|unpack| match unpack.snapshotter.as_str() {
            "" => self.snapshotter.clone(),
            name => name.to_owned(),
        });
        Ok(ImportOptions {
            snapshotter,
            fallback: Some(rule.name.as_str()).filter(|name| !name.is_empty()).map(str::parse).transpose()?,
            prefix: if rule.is_prefix { rule.name } else { String::new() },
            digests: match rule.add_digest && !rule.skip_named_digest {
                true => DigestNames::All,
                false => DigestNames::Nameless,
            },
            index_name: Some(to.name).filter(|name| !name.is_empty()),
            labels: to.labels,
        })
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
            transfer::export(&metadata, &caller, &found, &Platforms::Here(platform), &mut writer)?;
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

/// How a client wants its registry spoken to.
fn manner(resolver: &RegistryResolver) -> Result<Manner> {
    let mut headers = HeaderMap::new();
    for (name, value) in &resolver.headers {
        let bad = || Error::invalid_argument(format!("{name:?} cannot be sent as a header"));
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?;
        let mut value = HeaderValue::from_str(value).map_err(|_| bad())?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    let default_scheme = match resolver.default_scheme.as_str() {
        "" => None,
        "http" => Some(Scheme::Http),
        "https" => Some(Scheme::Https),
        other => {
            return Err(Error::invalid_argument(format!(
                "default_scheme {other:?} is not supported, http and https are"
            )));
        }
    };
    Ok(Manner { headers, default_scheme })
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

/// Tells a client the steps that are reported, until they end or the client goes.
fn telling<P: Send + 'static>(
    channel: Option<Channel>,
    mut words: impl FnMut(P) -> Vec<WireProgress> + Send + 'static,
) -> (Option<mpsc::Sender<P>>, Option<JoinHandle<()>>) {
    let Some(channel) = channel else { return (None, None) };
    let (report, mut steps) = mpsc::channel(STEPS_WAITING);
    let telling = tokio::spawn(async move {
        while let Some(step) = steps.recv().await {
            for step in words(step) {
                if channel.send(pack(&step)).await.is_err() {
                    return;
                }
            }
        }
    });
    (Some(report), Some(telling))
}

/// All steps are told before the outcome is.
async fn told(telling: Option<JoinHandle<()>>) {
    if let Some(telling) = telling {
        // A client that cannot be told has gone, and its transfer is done all the same.
        let _ = telling.await;
    }
}

/// Sizes of blobs, as far as they were told.
type Sizes = BTreeMap<Digest, u64>;

/// A step of a pull in the words of containerd's transfer service.
fn pulled(step: Progress, sizes: &mut Sizes) -> Vec<WireProgress> {
    let told = |event, digest: &Digest, done, sizes: &Sizes| vec![blob("layer", event, digest, done, sizes)];
    match step {
        Progress::Resolved { name, digest } => vec![WireProgress {
            event: "resolved".into(),
            name,
            desc: Some(wire::Descriptor { digest: digest.to_string(), ..wire::Descriptor::default() }),
            ..WireProgress::default()
        }],
        Progress::Layers(layers) => {
            sizes.extend(layers.iter().cloned());
            layers.iter().map(|(digest, _)| blob("layer", "waiting", digest, Some(0), sizes)).collect()
        }
        Progress::Downloading { digest, current } => told("downloading", &digest, Some(current), sizes),
        Progress::Extracting { digest } => told("extracting", &digest, None, sizes),
        Progress::Done { digest } => told("complete", &digest, None, sizes),
        Progress::Exists { digest } => told("already exists", &digest, None, sizes),
    }
}

/// A step of a push in the words of containerd's transfer service.
fn pushed(step: PushProgress, sizes: &mut Sizes) -> Vec<WireProgress> {
    match step {
        PushProgress::LeftOut { what } => {
            vec![WireProgress { event: "left out".into(), name: what, ..WireProgress::default() }]
        }
        PushProgress::Blobs(blobs) => {
            sizes.extend(blobs.iter().cloned());
            blobs.iter().map(|(digest, _)| blob("blob", "waiting", digest, Some(0), sizes)).collect()
        }
        PushProgress::Sending { digest, current } => {
            vec![blob("blob", "uploading", &digest, Some(current), sizes)]
        }
        PushProgress::Sent { digest, how } => {
            let event = if how == Sent::Existed { "already exists" } else { "complete" };
            vec![blob("blob", event, &digest, None, sizes)]
        }
        PushProgress::Referrer { digest } => vec![blob("referrer", "complete", &digest, None, sizes)],
    }
}

/// What happens to a blob, of which so much is done; all of it, if nothing is said.
fn blob(kind: &str, event: &str, digest: &Digest, done: Option<u64>, sizes: &Sizes) -> WireProgress {
    let total = sizes.get(digest).copied().unwrap_or(0);
    WireProgress {
        event: event.to_owned(),
        name: format!("{kind}-{digest}"),
        progress: convert::signed(done.unwrap_or(total)),
        total: convert::signed(total),
        ..WireProgress::default()
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
