//! `containerd.services.introspection.v1`: the plugins, under the names that clients look for.

use std::borrow::Cow;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use api::grpc::introspection::introspection_server::Introspection;
use api::grpc::introspection::{
    Plugin, PluginInfoRequest, PluginInfoResponse, PluginsRequest, PluginsResponse, ServerResponse,
};
use api::grpc::types::RpcStatus;
use api::shim::introspection::{RuntimeInfo, RuntimeRequest, RuntimeVersion};
use prost_types::Any;
use task::Shims;
use tonic::{Request, Response, Status};
use types::filter::present;
use types::{Context, Error, FieldPath, Fields, Filters, Platform};

use super::{Answer, blocking, convert, plain_status, status};
use crate::config::ProxyKind;
use crate::wiring::Parts;

/// The plugin through which clients query a runtime.
const RUNTIMES: (&str, &str) = ("io.containerd.runtime.v2", "task");
pub(super) const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1";
/// The restart monitor. nerdctl refuses restart policies that this plugin does not list.
pub(super) const RESTART: (&str, &str) = ("io.containerd.monitor.container.v1", "restart");
const POLICIES: [&str; 4] = ["no", "always", "on-failure", "unless-stopped"];

/// All built-in plugins except snapshotters, by type and ids. Every listed plugin is implemented; the differ, for
/// `Apply`.
pub(super) const PLUGINS: &[(&str, &[&str])] = &[
    ("io.containerd.content.v1", &["content"]),
    ("io.containerd.differ.v1", &["walking"]),
    ("io.containerd.event.v1", &["exchange"]),
    ("io.containerd.gc.v1", &["scheduler"]),
    (RESTART.0, &[RESTART.1]),
    ("io.containerd.lease.v1", &["manager"]),
    ("io.containerd.mount-handler.v1", &["erofs", "loop"]),
    ("io.containerd.mount-manager.v1", &["bolt"]),
    ("io.containerd.runtime.v2", &["task"]),
    ("io.containerd.sandbox.controller.v1", &[super::controller::SHIM]),
    ("io.containerd.sandbox.store.v1", &["local"]),
    ("io.containerd.streaming.v1", &["manager"]),
    ("io.containerd.transfer.v1", &["local"]),
    (
        "io.containerd.grpc.v1",
        &[
            "containers",
            "content",
            "diff",
            "events",
            "healthcheck",
            "images",
            "introspection",
            "leases",
            "mounts",
            "namespaces",
            "sandbox-controllers",
            "sandboxes",
            "snapshots",
            "streaming",
            "tasks",
            "transfer",
            "version",
        ],
    ),
];

/// Capabilities of snapshotters, by the names that clients look for: setting a snapshot's parent at commit, and id
/// mapped views (labels `containerd.io/snapshot/uidmapping`, `…/gidmapping`).
const REBASE: &str = "rebase";
const REMAP: &str = "remap-ids";

/// The requirements that containerd 2.3's plugins of these names report, by type. Plugins not listed report none.
pub(super) const REQUIRES: &[(&str, &[&str], &[&str])] = &[
    ("io.containerd.differ.v1", &["walking"], &[METADATA, MOUNT_MANAGER]),
    ("io.containerd.gc.v1", &["scheduler"], &[METADATA]),
    (RESTART.0, &[RESTART.1], &[EVENT, SERVICE]),
    ("io.containerd.lease.v1", &["manager"], &[METADATA, "io.containerd.gc.v1"]),
    (MOUNT_MANAGER, &["bolt"], &[METADATA, "io.containerd.mount-handler.v1"]),
    (RUNTIMES.0, &[RUNTIMES.1], &[SHIM, MOUNT_MANAGER, WARNING]),
    (SANDBOX_CONTROLLER, &[super::controller::SHIM], &[SHIM, EVENT]),
    (SANDBOX_STORE, &["local"], &[METADATA]),
    (STREAMING, &["manager"], &[METADATA]),
    (
        TRANSFER,
        &["local"],
        &[
            "io.containerd.lease.v1",
            METADATA,
            "io.containerd.differ.v1",
            "io.containerd.image-verifier.v1",
            SNAPSHOTTER,
        ],
    ),
    (
        GRPC,
        &["containers", "content", "diff", "images", "introspection", "namespaces", "snapshots", "tasks"],
        &[SERVICE],
    ),
    (GRPC, &["events"], &[EVENT]),
    (GRPC, &["leases"], &["io.containerd.lease.v1"]),
    (GRPC, &["mounts"], &[MOUNT_MANAGER]),
    (GRPC, &["sandboxes"], &[SANDBOX_STORE]),
    (GRPC, &["sandbox-controllers"], &["io.containerd.podsandbox.controller.v1", SANDBOX_CONTROLLER, EVENT]),
    (GRPC, &["streaming"], &[STREAMING]),
    (GRPC, &["transfer"], &[TRANSFER, STREAMING]),
];
const EVENT: &str = "io.containerd.event.v1";
pub(super) const GRPC: &str = "io.containerd.grpc.v1";
const METADATA: &str = "io.containerd.metadata.v1";
const MOUNT_MANAGER: &str = "io.containerd.mount-manager.v1";
const SANDBOX_CONTROLLER: &str = "io.containerd.sandbox.controller.v1";
pub(super) const SANDBOX_STORE: &str = "io.containerd.sandbox.store.v1";
const SERVICE: &str = "io.containerd.service.v1";
const SHIM: &str = "io.containerd.shim.v1";
pub(super) const STREAMING: &str = "io.containerd.streaming.v1";
pub(super) const TRANSFER: &str = "io.containerd.transfer.v1";
const WARNING: &str = "io.containerd.warning.v1";

/// The URI schemes for output that containerd 2.3 reports with its runtime. Our shim supports one more.
const LOG_SCHEMES: (&str, &str) = ("log-uri-schemes", "fifo,binary,binary-v2,file");

/// Types of plugins that run or store programs and so report a platform.
const WITH_PLATFORM: [&str; 4] =
    ["io.containerd.differ.v1", "io.containerd.mount-handler.v1", "io.containerd.runtime.v2", SNAPSHOTTER];

pub(super) struct Service {
    uuid: String,
    plugins: Arc<[Listed]>,
    shims: Shims,
}

/// A plugin as of the start, and the proxy whose current state it has.
struct Listed {
    plugin: Plugin,
    proxy: Option<crate::proxy::Plugin>,
}

impl Listed {
    /// A stuck proxy is reported like a plugin that failed to start, so that clients choose another.
    fn now(&self) -> Plugin {
        let refusal = self.proxy.as_ref().and_then(crate::proxy::Plugin::refusal);
        Plugin { init_err: refusal.map(wire_error), ..self.plugin.clone() }
    }
}

impl Service {
    pub(super) fn new(parts: &Parts) -> Service {
        let listed = PLUGINS.iter().flat_map(|(kind, ids)| ids.iter().map(|id| (*kind, (*id).to_owned())));
        let is_ours = |name: &&str| parts.proxy(ProxyKind::Snapshot, name).is_none();
        let snapshotters = parts.metadata.snapshotters().filter(is_ours).chain(parts.other_snapshotter_name);
        let snapshotters = snapshotters.map(|name| (SNAPSHOTTER, name.to_owned()));
        let listed = listed.filter(|(kind, id)| !parts.disabled_plugins.has(kind, id));
        let mut plugins: Vec<Plugin> = listed.chain(snapshotters).map(plugin).collect();
        for plugin in plugins.iter_mut().filter(|plugin| plugin.r#type == SNAPSHOTTER) {
            let root = parts.root.join("snapshots").join(snapshot::canonical_name(&plugin.id));
            plugin.exports.insert("root".to_owned(), root.display().to_string());
            if snapshot::canonical_name(&plugin.id) == snapshot::Overlay::NAME {
                let remap = linux::mount::maps_owners().then_some(REMAP);
                plugin.capabilities.extend([REBASE].into_iter().chain(remap).map(str::to_owned));
            }
        }
        for runtime in
            plugins.iter_mut().filter(|plugin| (plugin.r#type.as_str(), plugin.id.as_str()) == RUNTIMES)
        {
            runtime.exports.insert(LOG_SCHEMES.0.to_owned(), LOG_SCHEMES.1.to_owned());
        }
        for restart in
            plugins.iter_mut().filter(|plugin| (plugin.r#type.as_str(), plugin.id.as_str()) == RESTART)
        {
            restart.capabilities.extend(POLICIES.map(str::to_owned));
        }
        let plugins = plugins.into_iter().map(|plugin| Listed { plugin, proxy: None });
        let proxies = parts.proxies.iter().map(proxied);
        let mut plugins: Vec<Listed> = plugins.chain(proxies).collect();
        plugins.sort_by(|Listed { plugin: a, .. }, Listed { plugin: b, .. }| {
            (&a.r#type, &a.id).cmp(&(&b.r#type, &b.id))
        });
        Service { uuid: parts.uuid.clone(), plugins: plugins.into(), shims: parts.shims.clone() }
    }
}

/// Whether a plugin, by type and id, is built in.
pub(super) fn is_built_in(name: &str) -> bool {
    let is_listed = |(kind, id): (&str, &str)| match kind {
        SNAPSHOTTER => {
            snapshot::canonical_name(id) == snapshot::Overlay::NAME || id == snapshot::Native::NAME
        }
        _ => PLUGINS.iter().any(|(known, ids)| *known == kind && ids.contains(&id)),
    };
    name.rsplit_once('.').is_some_and(is_listed)
}

impl Service {
    /// `FailedPrecondition` if one of these plugins does not exist. A stuck one may recover.
    pub(super) fn check_required(&self, names: &[String]) -> types::Result<()> {
        let is_here = |name: &str| {
            self.plugins
                .iter()
                .any(|Listed { plugin, .. }| name == format!("{}.{}", plugin.r#type, plugin.id))
        };
        match names.iter().find(|name| !is_here(name)) {
            Some(missing) => Err(Error::failed_precondition(format!(
                "configuration: required_plugins: required plugin {missing} not included: name one as `ctr plugins ls` \
                 does, TYPE.ID, or leave it out"
            ))),
            None => Ok(()),
        }
    }

    /// Runtime information from a shim.
    async fn runtime_info(&self, options: &Any) -> Result<Any, Status> {
        let Some(asked) = api::shim::unpack::<RuntimeRequest>(options) else {
            return Err(Status::unimplemented(format!(
                "a runtime is asked for with a RuntimeRequest: unknown request type {}: not implemented",
                options.type_url
            )));
        };
        let asked = asked.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let options = asked.options.map(convert::opaque);
        let info = self.shims.runtime_info(&asked.runtime_path, options).await.map_err(status)?;
        Ok(api::shim::pack(&RuntimeInfo {
            name: info.name,
            version: Some(RuntimeVersion { version: info.version, revision: info.revision }),
            options: info.options.map(convert::any),
            features: info.features.map(convert::any),
            annotations: info.annotations.into_iter().collect(),
        }))
    }
}

#[tonic::async_trait]
impl Introspection for Service {
    async fn plugins(&self, request: Request<PluginsRequest>) -> Answer<PluginsResponse> {
        let filters = Filters::parse(&request.into_inner().filters).map_err(status)?;
        let wanted = |listed: &&Listed| filters.matches(&Named(&listed.plugin));
        let plugins = self.plugins.iter().filter(wanted).map(Listed::now).collect();
        Ok(Response::new(PluginsResponse { plugins }))
    }

    async fn server(&self, _: Request<()>) -> Answer<ServerResponse> {
        let pid_namespace = blocking(|| {
            let file = "/proc/self/ns/pid";
            std::fs::metadata(file).context(|| format!("look at {file}"))
        });
        Ok(Response::new(ServerResponse {
            uuid: self.uuid.clone(),
            pid: std::process::id().into(),
            pidns: pid_namespace.await?.ino(),
            deprecations: Vec::new(),
        }))
    }

    async fn plugin_info(&self, request: Request<PluginInfoRequest>) -> Answer<PluginInfoResponse> {
        let PluginInfoRequest { r#type, id, options } = request.into_inner();
        let is_it = |listed: &&Listed| listed.plugin.r#type == r#type && listed.plugin.id == id;
        let Some(listed) = self.plugins.iter().find(is_it) else {
            return Err(Status::not_found(format!("plugin {type}.{id} not found: not found")));
        };
        let plugin = listed.now();
        let extra = match options {
            None => None,
            Some(_) if plugin.init_err.is_some() => {
                let words = "cannot get extra info, plugin not successfully loaded: failed precondition";
                return Err(Status::failed_precondition(words));
            }
            Some(options) if (r#type.as_str(), id.as_str()) == RUNTIMES => {
                Some(self.runtime_info(&options).await?)
            }
            Some(_) => {
                let words = "plugin does not provided extra information: not implemented";
                return Err(Status::unimplemented(format!("plugin {type}.{id} takes no options: {words}")));
            }
        };
        Ok(Response::new(PluginInfoResponse { plugin: Some(plugin), extra }))
    }
}

/// A proxy plugin with its configured properties.
fn proxied(proxy: &crate::proxy::Plugin) -> Listed {
    let config = proxy.config();
    let kind = match config.kind {
        ProxyKind::Snapshot => SNAPSHOTTER,
        ProxyKind::Content => "io.containerd.content.v1",
        ProxyKind::Diff => "io.containerd.differ.v1",
        ProxyKind::Sandbox => "io.containerd.sandbox.controller.v1",
    };
    let platform = match config.platform.split_once('/') {
        Some((os, architecture)) => {
            Platform { os: os.into(), architecture: architecture.into(), ..Platform::default() }
        }
        None => Platform::host(),
    };
    let mut exports = config.exports.clone();
    exports.insert("address".to_owned(), config.address.display().to_string());
    let plugin = Plugin {
        r#type: kind.to_owned(),
        id: config.name.clone(),
        platforms: vec![convert::platform(platform)],
        exports,
        capabilities: config.capabilities.clone(),
        ..Plugin::default()
    };
    Listed { plugin, proxy: Some(proxy.clone()) }
}

fn wire_error(error: Error) -> RpcStatus {
    let status = plain_status(&error);
    RpcStatus { code: status.code().into(), message: status.message().to_owned(), details: Vec::new() }
}

fn plugin((kind, id): (&str, String)) -> Plugin {
    let platforms =
        if WITH_PLATFORM.contains(&kind) { vec![convert::platform(Platform::host())] } else { vec![] };
    let required = REQUIRES.iter().find(|(of, ids, _)| *of == kind && ids.contains(&id.as_str()));
    let requires = required.into_iter().flat_map(|(.., types)| *types).map(ToString::to_string).collect();
    Plugin { r#type: kind.to_owned(), id, platforms, requires, ..Plugin::default() }
}

/// A plugin's fields for filters.
struct Named<'a>(&'a Plugin);

impl Fields for Named<'_> {
    fn field(&self, path: &FieldPath) -> Option<Cow<'_, str>> {
        match path.head() {
            "type" => present(&self.0.r#type),
            "id" => present(&self.0.id),
            _ => None,
        }
    }
}
