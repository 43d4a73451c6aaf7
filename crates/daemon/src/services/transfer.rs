//! `containerd.services.transfer.v1`: transfers images between registries, the store and streams.
//!
//! | from | to | |
//! |---|---|---|
//! | registry | image store | pull |
//! | image store | registry | push |
//! | image store | image store | tag |
//! | image store | export stream | export |
//! | import stream | image store | import |
//! | import stream | export stream | copy of the bytes |
//!
//! Progress is sent on a stream that the client has opened, in the format of containerd's transfer service.

mod credentials;
mod http_trace;
mod progress;

use api::grpc::transfer::transfer_server::Transfer;
use api::grpc::transfer::{
    ImageExportStream, ImageImportStream, ImageReference, ImageStore, OciRegistry, RegistryResolver,
    TransferRequest, UnpackConfiguration,
};
use api::grpc::types as wire;
use api::shim::{holds, unpack};
use http::{HeaderMap, HeaderName, HeaderValue};
use metadata::{Caller, Image, Metadata};
use prost::Message;
use prost_types::Any;
use registry::{CallerOptions, Connections, Keyring, Remote, Scheme};
use tokio::runtime::Handle;
use tonic::{Request, Response};
use transfer::{
    Admission, BaseName, DigestNames, ExportOptions, Flights, ImportOptions, NameRule, Platforms,
    PullRequest, PushRequest, Retentions, Scope, Slots, Unpack, WantedPlatforms,
};
use types::label::gc;
use types::{Digest, Error, Labels, Platform, Reference, Result, Timestamp};

use self::progress::{Parts, Reporter};
use super::{Answer, caller, required, status};
use crate::blocking::blocking;
use crate::streams::Streams;

pub(super) struct Service {
    pub(super) metadata: Metadata,
    pub(super) streams: Streams,
    pub(super) connections: Connections,
    pub(super) flights: Flights,
    pub(super) slots: Slots,
    pub(super) retentions: Retentions,
    pub(super) admission: Admission,
    /// The default snapshotter.
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
        let progress = Reporter::to(progress.map_err(status)?);
        let moved = self.between(&caller, &from, &to, progress).await;
        moved.map(Response::new).map_err(status)
    }
}

impl Service {
    async fn between(&self, caller: &Caller, from: &Any, to: &Any, progress: Reporter) -> Result<()> {
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
            return self.export(caller, read(from)?, read(to)?, progress).await;
        }
        if holds::<ImageImportStream>(from) && holds::<ImageStore>(to) {
            return self.import(caller, read(from)?, read(to)?, progress).await;
        }
        if holds::<ImageImportStream>(from) && holds::<ImageExportStream>(to) {
            return self.echo(caller, read(from)?, read(to)?).await;
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
        progress: Reporter,
    ) -> Result<()> {
        let (reference, remote) = self.remote(caller, from).await?;
        let place = format!("OCI Registry ({reference})");
        progress.of_all(format!("Resolving from {place}")).await;
        let mut platforms = own_platforms(to.platforms)?;
        let limit = match usize::try_from(to.manifest_limit) {
            Ok(limit @ 1..) => limit,
            _ => usize::MAX,
        };
        platforms.truncate(limit);
        let (name, extra) = pulled_names(&reference, to.name, &to.extra_references);
        let request = PullRequest {
            platforms: if platforms.is_empty() {
                WantedPlatforms::First(limit)
            } else {
                WantedPlatforms::Each(platforms)
            },
            unpacks: self.unpacks(to.unpacks)?,
            all_metadata: to.all_metadata,
            name,
            labels: to.labels.clone(),
            caller: caller.clone(),
            remote: remote.clone(),
            reference,
            slots: self.slots.clone(),
            flights: self.flights.clone(),
            admission: self.admission.clone(),
            retentions: self.retentions.clone(),
        };
        let mut parts = Parts::pulled_from(&place);
        let (report, reporting) = progress.reporting(move |step| parts.pulled(step));
        let pulled = transfer::pull(&self.metadata, request, report).await;
        let progress = reporting.done().await;
        let image = pulled?;
        let mut images = vec![image.clone()];
        for name in extra.into_iter().map(|extra| extra.name(&image.target.digest)) {
            // For each name, the policy may consult the same registry with the same credentials.
            self.admission.check_ahead(&name, &image.target, &remote).await?;
            let image = Image { name, labels: beside(&to.labels, &image.name), ..image.clone() };
            self.name(caller, image.clone()).await?;
            images.push(image);
        }
        progress.saved(images).await;
        progress.of_all(format!("Completed pull from {place}")).await;
        Ok(())
    }

    /// The requested unpack operations; by default for this host's platform, with the default snapshotter.
    fn unpacks(&self, asked: Vec<UnpackConfiguration>) -> Result<Vec<Unpack>> {
        let unpack = |asked: UnpackConfiguration| {
            let platform = asked.platform.map_or_else(|| Ok(Platform::host()), own_platform)?;
            let snapshotter = Some(asked.snapshotter).filter(|name| !name.is_empty());
            Ok(Unpack { platform, snapshotter: snapshotter.unwrap_or_else(|| self.snapshotter.clone()) })
        };
        asked.into_iter().map(unpack).collect()
    }

    async fn push(
        &self,
        caller: &Caller,
        from: ImageStore,
        to: OciRegistry,
        progress: Reporter,
    ) -> Result<()> {
        let (images, name) = (self.metadata.images(caller), from.name);
        let image = blocking(move || images.get(&name)).await?;
        let (reference, remote) = self.remote(caller, to).await?;
        let platforms = own_platforms(from.platforms)?;
        let to = format!("OCI Registry ({reference})");
        progress.of_all(format!("Pushing to {to}")).await;
        progress.of_image("pushing content", &image).await;
        let request = PushRequest {
            target: image.target.clone(),
            reference,
            scope: if platforms.is_empty() { Scope::Present } else { Scope::Only(platforms) },
            referrers: false,
            slots: self.slots.clone(),
            caller: caller.clone(),
            remote,
        };
        let mut parts = Parts::of(&image.name);
        let (report, reporting) = progress.reporting(move |step| parts.pushed(step));
        let pushed = transfer::push(&self.metadata, request, report).await;
        let progress = reporting.done().await;
        pushed?;
        progress.of_image("pushed content", &image).await;
        progress.pushed(format!("Completed push to {to}"), &image).await;
        Ok(())
    }

    /// A client's repository, with the client's credentials and options.
    async fn remote(&self, caller: &Caller, named: OciRegistry) -> Result<(Reference, Remote)> {
        let reference: Reference = named.reference.parse()?;
        let resolver = named.resolver.unwrap_or_default();
        let mut caller_options =
            caller_options(&resolver).map_err(|error| error.context(reference.to_string()))?;
        let connections = match resolver.host_dir.as_str() {
            "" => self.connections.clone(),
            path if path.starts_with('/') => self.connections.with_directories(vec![path.into()]),
            path => {
                return Err(Error::invalid_argument(format!(
                    "{reference}: the directory of hosts {path:?} is not an absolute path"
                )));
            }
        };
        if !resolver.auth_stream.is_empty() {
            let stream = self.streams.take(&caller.namespace, &resolver.auth_stream)?;
            caller_options.credential_source = Some(credentials::source(stream, reference.to_string()));
        }
        if let Some(traced) = http_trace::options(resolver.http_debug)? {
            let stream = match resolver.logs_stream.as_str() {
                "" => None,
                name => Some(self.streams.take(&caller.namespace, name)?),
            };
            caller_options.trace = Some(http_trace::open(traced, stream, reference.to_string()));
        }
        let named = reference.clone();
        let remote =
            blocking(move || connections.remote_with(&named, &Keyring::new(), &caller_options)).await?;
        Ok((reference, remote))
    }

    async fn tag(&self, caller: &Caller, from: ImageStore, to: ImageStore) -> Result<()> {
        let (images, name) = (self.metadata.images(caller), from.name);
        let image = blocking(move || images.get(&name)).await?;
        let extra = to.extra_references.iter().filter_map(Extra::of);
        let extra: Vec<String> = extra.map(|extra| extra.name(&image.target.digest)).collect();
        if to.name.is_empty() && extra.is_empty() {
            return Err(Error::not_found("no image name found: say what to call it"));
        }
        let labels = if to.name.is_empty() { to.labels.clone() } else { beside(&to.labels, &to.name) };
        if !to.name.is_empty() {
            self.name(caller, Image { name: to.name, labels: to.labels, ..image.clone() }).await?;
        }
        for name in extra {
            self.name(caller, Image { name, labels: labels.clone(), ..image.clone() }).await?;
        }
        Ok(())
    }

    /// Copies one stream to another.
    async fn echo(&self, caller: &Caller, from: ImageImportStream, to: ImageExportStream) -> Result<()> {
        let from = self.streams.take(&caller.namespace, &from.stream)?;
        let to = self.streams.take(&caller.namespace, &to.stream)?;
        let handle = Handle::current();
        transfer::with_client(move || {
            let (mut from, mut to) = (from.into_reader(handle.clone()), to.into_writer(handle));
            let copied = std::io::copy(&mut from, &mut to);
            copied.map(drop).map_err(|error| Error::unavailable("copy a stream").with_source(error))
        })
        .await
    }

    async fn import(
        &self,
        caller: &Caller,
        from: ImageImportStream,
        to: ImageStore,
        progress: Reporter,
    ) -> Result<()> {
        progress.of_all("Importing".into()).await;
        let archive = self.streams.take(&caller.namespace, &from.stream)?.into_reader(Handle::current());
        let options = self.import_options(to, from.force_compress)?;
        let (metadata, caller) = (self.metadata.clone(), caller.clone());
        let import = move || transfer::import_stream(&metadata, &caller, &options, archive);
        let images = transfer::with_client(import).await?;
        progress.saved(images).await;
        progress.of_all("Completed import".into()).await;
        Ok(())
    }

    /// How a client wants an archive's images named and stored.
    fn import_options(&self, to: ImageStore, compresses: bool) -> Result<ImportOptions> {
        let (prefixes, whole): (Vec<_>, Vec<_>) =
            to.extra_references.into_iter().partition(|reference| reference.is_prefix);
        let whole = whole.into_iter().filter(|reference| !reference.name.is_empty());
        let (before_digest, whole): (Vec<_>, Vec<_>) = whole.partition(|reference| reference.add_digest);
        let names = |references: Vec<ImageReference>| -> Vec<String> {
            references.into_iter().map(|reference| reference.name).collect()
        };
        let (index_names, index_names_with_digest) = (names(whole), names(before_digest));
        let prefixes = prefixes.into_iter().filter(|reference| !reference.name.is_empty());
        let mut rules: Vec<NameRule> = prefixes.map(name_rule).collect();
        let is_named = !to.name.is_empty() || !index_names.is_empty() || !index_names_with_digest.is_empty();
        if rules.is_empty() && !is_named {
            // By default each image keeps its own name.
            rules.push(NameRule::Own { fallback: None });
        }
        let labels_beside = if to.name.is_empty() { to.labels.clone() } else { beside(&to.labels, &to.name) };
        let index_name = Some(to.name).filter(|name| !name.is_empty());
        let unpacks = self.unpacks(to.unpacks)?;
        // As in containerd, `all_metadata` means all platforms.
        let platforms = if to.all_metadata { Vec::new() } else { own_platforms(to.platforms)? };
        Ok(ImportOptions {
            unpacks,
            platforms,
            rules,
            index_name,
            index_names,
            index_names_with_digest,
            compresses,
            labels: to.labels,
            labels_beside,
        })
    }

    async fn export(
        &self,
        caller: &Caller,
        from: ImageStore,
        to: ImageExportStream,
        progress: Reporter,
    ) -> Result<()> {
        progress.of_all("Exporting".into()).await;
        let channel = self.streams.take(&caller.namespace, &to.stream)?;
        let mut wanted = own_platforms(to.platforms)?;
        let platforms = match wanted.len() {
            _ if to.all_platforms => Platforms::All,
            0 => Platforms::Here(Platform::host()),
            1 => Platforms::Here(wanted.swap_remove(0)),
            _ => Platforms::Only(wanted),
        };
        let options = ExportOptions {
            platforms,
            without_docker: to.skip_compatibility_manifest,
            without_foreign: to.skip_non_distributable,
        };
        let mut names = Vec::from_iter(Some(from.name).filter(|name| !name.is_empty()));
        for reference in from.extra_references {
            if reference.is_prefix {
                let message = format!(
                    "export names that begin with {:?}: only whole names are supported",
                    reference.name
                );
                return Err(Error::unimplemented(message));
            }
            names.push(reference.name);
        }
        let (metadata, caller) = (self.metadata.clone(), caller.clone());
        transfer::with_client(move || {
            let images = metadata.images(&caller);
            let found = names.iter().map(|name| images.get(name)).collect::<Result<Vec<Image>>>()?;
            let mut writer =
                std::io::BufWriter::with_capacity(256 << 10, channel.into_writer(Handle::current()));
            transfer::export(&metadata, &caller, &found, &options, &mut writer)?;
            std::io::Write::flush(&mut writer)
                .map_err(|error| Error::unavailable("send the archive").with_source(error))
        })
        .await?;
        progress.of_all("Completed export".into()).await;
        Ok(())
    }

    /// Gives an image its name and labels. A name that another image has moves to this one.
    async fn name(&self, caller: &Caller, image: Image) -> Result<()> {
        let images = self.metadata.images(caller);
        blocking(move || images.assign(image).map(drop)).await
    }
}

/// An additional name of an image.
#[derive(Debug, PartialEq)]
struct Extra {
    name: String,
    has_digest: bool,
}

impl Extra {
    /// A bare prefix is not a name.
    fn of(reference: &ImageReference) -> Option<Extra> {
        let is_name = !reference.is_prefix || reference.add_digest;
        is_name.then(|| Extra { name: reference.name.clone(), has_digest: reference.add_digest })
    }

    fn name(self, digest: &Digest) -> String {
        if self.has_digest { format!("{}@{digest}", self.name) } else { self.name }
    }
}

/// The first name of a pulled image, and its additional names.
fn pulled_names(reference: &Reference, name: String, extra: &[ImageReference]) -> (String, Vec<Extra>) {
    let mut extra: Vec<Extra> = extra.iter().filter_map(Extra::of).collect();
    if !name.is_empty() {
        return (name, extra);
    }
    // A name with a digest is unknown until the image is resolved.
    match extra.iter().position(|extra| !extra.has_digest) {
        Some(first) => (extra.remove(first).name, extra),
        None => (reference.to_string(), extra),
    }
}

/// Labels of an additional name, which the garbage collector removes with the first.
fn beside(labels: &Labels, name: &str) -> Labels {
    let mut labels = labels.clone();
    labels.insert(gc::OF_IMAGE.to_owned(), name.to_owned());
    labels.insert(gc::EXPIRE.to_owned(), Timestamp::now().to_string());
    labels
}

/// A client's rule for naming an archive's images.
fn name_rule(rule: ImageReference) -> NameRule {
    NameRule::Base(BaseName {
        name: rule.name,
        takes_others: rule.allow_overwrite,
        digests: match (rule.add_digest, rule.skip_named_digest) {
            (false, _) => DigestNames::None,
            (true, true) => DigestNames::Nameless,
            (true, false) => DigestNames::All,
        },
    })
}

/// A client's options for registries.
fn caller_options(resolver: &RegistryResolver) -> Result<CallerOptions> {
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
    Ok(CallerOptions { headers, default_scheme, ..CallerOptions::default() })
}

fn read<M: Message + Default + api::shim::types::TypeUrl>(any: &Any) -> Result<M> {
    let read = unpack::<M>(any).ok_or_else(|| {
        Error::invalid_argument(format!("{} in the place of {}", any.type_url, M::TYPE_URL))
    })?;
    read.map_err(|error| Error::invalid_argument(format!("read {}", any.type_url)).with_source(error))
}

fn own_platforms(platforms: Vec<wire::Platform>) -> Result<Vec<Platform>> {
    platforms.into_iter().map(own_platform).collect()
}

fn own_platform(platform: wire::Platform) -> Result<Platform> {
    let text = [&platform.os, &platform.architecture, &platform.variant];
    let text: Vec<&str> = text.into_iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
    let named: Platform = text.join("/").parse()?;
    Ok(Platform { os_version: platform.os_version, os_features: platform.os_features, ..named })
}
