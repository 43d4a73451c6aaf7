//! Creates all components and connects them: [`build`] lists them, and the functions below open each. No other place
//! knows all of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use content::LocalStore;
use engine::Engine;
use events::Exchange;
use metadata::Metadata;
use mounts::{Mounts, Places};
use network::Network;
use registry::Connections;
use snapshot::{LayerForm, Native, Overlay, Snapshotter};
use stdx::Mutex;
use task::Shims;
use tokio::sync::Notify;
use transfer::{Admission, Flights, Retentions, Slots};
use types::{Context, Error, Result};

use crate::checkpoint::Checkpoints;
use crate::collector::{Collector, Trigger};
use crate::config::{Config, ProxyKind, Sharing};
use crate::differs;
use crate::probes::{self, Probes};
use crate::processors::Processors;
use crate::programs::{self, Embedded, Programs};
use crate::proxy::{Plugin, ProxySnapshotter, ProxyStore};
use crate::restart_monitor::RestartMonitor;
use crate::retainer::Retainer;
use crate::services::DisabledPlugins;
use crate::streams::Streams;
use crate::task_resources::TaskResources;

/// The file name by which containerd finds the runtime `io.containerd.hoist.v2`.
pub(crate) const SHIM: &str = "containerd-shim-hoist-v2";
/// Name under which the program `hello` acts as init.
const INIT: &str = "hoist-init";

/// The components, connected but not running.
pub(crate) struct Parts {
    pub(crate) root: PathBuf,
    /// The UUID of the root directory.
    pub(crate) uuid: String,
    pub(crate) metadata: Metadata,
    pub(crate) exchange: Exchange,
    /// Notified when events wait for the disk.
    pub(crate) held: Arc<Notify>,
    pub(crate) shims: Shims,
    pub(crate) mounts: Mounts,
    pub(crate) task_resources: TaskResources,
    pub(crate) engine: Engine,
    pub(crate) collector: Collector,
    pub(crate) restart_monitor: RestartMonitor,
    pub(crate) retainer: Retainer,
    /// Connections to registries, shared by all transfers.
    pub(crate) connections: Connections,
    pub(crate) flights: Flights,
    pub(crate) slots: Slots,
    /// The streams that clients have opened.
    pub(crate) streams: Streams,
    /// The policy for images that enter the store.
    pub(crate) admission: Admission,
    /// The default snapshotter.
    pub(crate) snapshotter: String,
    /// Proxy plugins: external stores, snapshotters, differs and sandbox controllers.
    pub(crate) proxies: Vec<Plugin>,
    /// Names of differs, in the order in which they are tried.
    pub(crate) differs: Vec<String>,
    pub(crate) processors: Processors,
    /// An alias of the overlay snapshotter, listed if it stores layers as archives.
    pub(crate) other_snapshotter_name: Option<&'static str>,
    /// Plugins that the configuration disables.
    pub(crate) disabled_plugins: DisabledPlugins,
}

impl Parts {
    /// The proxy plugin of this type and name.
    pub(crate) fn proxy(&self, kind: ProxyKind, name: &str) -> Option<&Plugin> {
        find_proxy(&self.proxies, kind, name)
    }

    /// Applies the reloadable part of a new configuration.
    pub(crate) fn reconfigure(&self, config: Config) {
        let Config { registry, policy, image_verifiers, collector, restart_interval, unpacked, .. } = config;
        self.connections.reconfigure(registry.directories, registry.mirror_timeout);
        self.admission.reconfigure(policy, image_verifiers);
        self.collector.reconfigure(collector);
        self.restart_monitor.reconfigure(restart_interval);
        self.retainer.reconfigure(unpacked.into());
    }
}

/// Builds all components, on the runtime that is to run them. Blocks: opens and repairs stores.
pub(crate) fn build(config: &Config, embedded: Programs) -> Result<Parts> {
    let (root, state, plugins) = (&config.root, &config.state, &config.plugins);
    let db = open_database(config)?;
    let proxies: Vec<Plugin> = plugins.proxies.iter().cloned().map(Plugin::new).collect();
    let disabled_plugins = DisabledPlugins::of(&config.disabled_plugins);
    let content = open_content(config, &proxies)?;
    let snapshotters = open_snapshotters(config, &db, &proxies, &disabled_plugins)?;

    let (exchange, trigger) = (Exchange::default(), Trigger::default());
    let connections = connections(config);
    let (flights, slots) = (Flights::default(), Slots::new(config.at_once));
    let retentions = Retentions::new(config.unpacked.into());
    let admission =
        Admission::new(config.policy.clone(), config.image_verifiers.clone(), connections.clone());
    let places = Places::open(&state.join("mounts"))?;
    let streams = Streams::default();
    let processors = Processors::new(&plugins.processors);
    let options = metadata::Options {
        sink: crate::events::sink(exchange.clone()),
        is_heard: crate::events::hearing(exchange.clone()),
        gate: Box::new(admission.clone()),
        notice: trigger.notices(),
        sweep_mounts: mount_sweep(places.clone()),
        streams: Box::new(streams.clone()),
        isolates_content: config.sharing == Sharing::Isolated,
        processors: Box::new(processors.clone()),
        differs: Box::new(differ_chain(config, &proxies, &processors)),
        ..metadata::Options::default()
    };
    let metadata = Metadata::open(db, content, snapshotters.all, options)?;
    let mounts = open_mounts(&metadata, places, root)?;

    let shims = Shims::new(task_config(config, embedded.shim)?, exchange.clone());
    let network = Arc::new(Network::open(state, config.network.clone())?);
    let engine = Engine::open(engine::Parts {
        metadata: metadata.clone(),
        exchange: exchange.clone(),
        connections: connections.clone(),
        flights: flights.clone(),
        slots: slots.clone(),
        admission: admission.clone(),
        retentions: retentions.clone(),
        shims: shims.clone(),
        network,
        snapshotter: snapshotters.default.clone(),
        root: root.clone(),
        state: state.clone(),
        hello: embedded.hello.map(|hello| hello.bytes),
        cdi: cdi::FOLDERS.map(PathBuf::from).to_vec(),
        init: init(root.clone(), embedded.hello),
    })?;

    let checkpoints = Checkpoints::new(metadata.clone(), root);
    let task_resources = TaskResources::new(shims.clone(), mounts.clone(), checkpoints);
    let restart_monitor = RestartMonitor::new(
        metadata.clone(),
        shims.clone(),
        task_resources.clone(),
        exchange.clone(),
        config.restart_interval,
    );
    Ok(Parts {
        root: root.clone(),
        uuid: crate::identity::uuid(root)?,
        held: trigger.held(),
        retainer: Retainer::new(metadata.clone(), trigger.settled(), retentions),
        collector: Collector::new(metadata.clone(), trigger, config.collector),
        metadata,
        exchange,
        shims,
        mounts,
        task_resources,
        engine,
        restart_monitor,
        connections,
        flights,
        slots,
        streams,
        admission,
        snapshotter: snapshotters.default,
        other_snapshotter_name: snapshotters.other_name,
        processors,
        differs: plugins.differs.clone(),
        proxies,
        disabled_plugins,
    })
}

/// Opens the database, which records and snapshotters share.
fn open_database(config: &Config) -> Result<kv::Db> {
    let options = kv::Options { cache_bytes: config.cache_bytes, verify: false };
    kv::Db::open_reserved(config.root.join("meta.db"), &config.root.join("reserve"), options)
}

/// Opens the configured content store: ours, or a proxy plugin.
fn open_content(config: &Config, proxies: &[Plugin]) -> Result<Arc<dyn content::Store>> {
    Ok(match find_proxy(proxies, ProxyKind::Content, &config.plugins.content) {
        Some(plugin) => Arc::new(ProxyStore::new(plugin.clone())),
        None => Arc::new(LocalStore::open(config.root.join("content"))?),
    })
}

/// All snapshotters.
struct Snapshotters {
    all: BTreeMap<String, Arc<dyn Snapshotter>>,
    /// Name of the default snapshotter.
    default: String,
    /// See [`Parts::other_snapshotter_name`].
    other_name: Option<&'static str>,
}

/// Opens the snapshotters that kernel and file system support, and those of proxy plugins.
fn open_snapshotters(
    config: &Config,
    db: &kv::Db,
    proxies: &[Plugin],
    disabled_plugins: &DisabledPlugins,
) -> Result<Snapshotters> {
    let folder = config.root.join("snapshots");
    let wanted = probes::Request {
        layers: config.layers,
        backing: config.backing,
        verity: config.verity,
        snapshotter: &config.plugins.snapshotter,
    };
    let probes::Choice { options, snapshotter: default } = Probes::new(&config.root).choose(&wanted)?;
    let other_name = (options.form == LayerForm::Archives).then_some(Overlay::OTHER_NAME);
    let overlay = Overlay::open(&folder.join(Overlay::NAME), db.clone(), options)?
        .recording_spans(config.spans)
        .with_mount_options(config.mount_options.clone());
    let mut all: BTreeMap<String, Arc<dyn Snapshotter>> = BTreeMap::new();
    all.insert(Overlay::NAME.into(), Arc::new(overlay));
    if !disabled_plugins.native_snapshotter() {
        let native = Native::open(&folder.join(Native::NAME), db.clone())?;
        all.insert(Native::NAME.into(), Arc::new(native));
    } else if default == Native::NAME {
        return Err(Error::failed_precondition(
            "configuration: disabled_plugins leaves out the snapshotter native, which is the one for calls that name none \
             here: take it out of that list, or name another with `snapshotter`",
        ));
    }
    for plugin in proxies.iter().filter(|plugin| plugin.config().kind == ProxyKind::Snapshot) {
        all.insert(plugin.config().name.clone(), Arc::new(ProxySnapshotter::new(plugin.clone())));
    }
    Ok(Snapshotters { all, default, other_name })
}

fn connections(config: &Config) -> Connections {
    Connections::new(registry::Options {
        directories: config.registry.directories.clone(),
        proxies: config.registry.proxies.clone(),
        mirror_timeout: config.registry.mirror_timeout,
    })
}

fn mount_sweep(places: Places) -> metadata::MountSweep {
    Box::new(move |live: &dyn Fn() -> _| places.sweep(live))
}

/// The configured differs, in order.
fn differ_chain(config: &Config, proxies: &[Plugin], processors: &Processors) -> differs::Chain {
    let names = config.plugins.differs.iter();
    let differs = names.map(|name| find_proxy(proxies, ProxyKind::Diff, name).cloned()).collect();
    differs::Chain { differs, processors: processors.clone() }
}

/// Opens the mount manager and reconciles it with existing mounts.
fn open_mounts(metadata: &Metadata, places: Places, root: &Path) -> Result<Mounts> {
    let mounts = Mounts::new(metadata.clone(), places, root)?;
    if let Err(error) = mounts.reconcile() {
        // A later garbage collection unmounts what is in use now.
        tracing::warn!("find mounts again: {}", error.chain());
    }
    Ok(mounts)
}

/// The configuration of tasks: programs, directories, limits. Unpacks the shim.
fn task_config(config: &Config, shim: Option<Embedded>) -> Result<task::Config> {
    let state = &config.state;
    Ok(task::Config {
        bundles: task_folder(state)?,
        sandboxes: state.join("sandboxes"),
        sockets: state.join("s"),
        grpc_address: config.address.clone(),
        ttrpc_address: config.ttrpc_address.clone(),
        publisher: std::env::current_exe().context(|| "find our own program")?,
        shim: program(&config.root, SHIM, shim)?,
        version: crate::identity::VERSION.into(),
        env: config.shim_env.clone(),
        limits: config.shim_limits,
        debug: false,
    })
}

/// The directory of bundles. A symlink leads to it from where programs expect it in containerd's state directory.
fn task_folder(state: &Path) -> Result<PathBuf> {
    let known = state.join("io.containerd.runtime.v2.task");
    match std::os::unix::fs::symlink("tasks", &known) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(error).context(|| format!("make {}", known.display()))
        }
        _ => Ok(state.join("tasks")),
    }
}

fn find_proxy<'a>(proxies: &'a [Plugin], kind: ProxyKind, name: &str) -> Option<&'a Plugin> {
    proxies.iter().find(|plugin| plugin.config().kind == kind && plugin.config().name == name)
}

/// Unpacks the program `hello` as init. It is only bind mounted into containers.
fn init(root: PathBuf, hello: Option<Embedded>) -> Box<dyn Fn() -> Result<PathBuf> + Send + Sync> {
    // Two starts may need it at the same time after an upgrade, but only one may write the file.
    let turn = Mutex::new(());
    Box::new(move || {
        let _alone = turn.lock();
        program(&root, INIT, hello)?.ok_or_else(|| {
            Error::failed_precondition(
                "this hoist was built without the program that is init; take one built by `cargo xtask build`, or give \
                 the image an init of its own",
            )
        })
    })
}

/// Unpacks an embedded program; `None` if it is not embedded.
fn program(root: &Path, name: &str, program: Option<Embedded>) -> Result<Option<PathBuf>> {
    program.map(|program| programs::unpack(root, name, program)).transpose()
}
