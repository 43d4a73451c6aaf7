//! Which part gets which other part. The one place that knows all of them.

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
use task::Shims;
use tokio::sync::Notify;
use transfer::{Admission, Flights, Retentions, Slots};
use types::{Context, Error, Result};

use crate::belongings::Belongings;
use crate::checkpoint::Checkpoints;
use crate::collector::{Collector, Trigger};
use crate::config::{Config, ProxyKind, Sharing};
use crate::differs;
use crate::probes::{self, Probes};
use crate::processors::Processors;
use crate::programs::{self, Embedded, Programs};
use crate::proxy::{Plugin, ProxySnapshotter, ProxyStore};
use crate::restart::Restarts;
use crate::retainer::Retainer;
use crate::services::LeftOut;
use crate::streams::Streams;

/// The file name by which containerd finds the runtime `io.containerd.hoist.v2`.
pub(crate) const SHIM: &str = "containerd-shim-hoist-v2";
/// What `hello` goes by where it is init.
const INIT: &str = "hoist-init";

/// The parts, put together and not yet running.
pub(crate) struct Parts {
    pub(crate) root: PathBuf,
    /// The name of the root directory.
    pub(crate) uuid: String,
    pub(crate) metadata: Metadata,
    pub(crate) exchange: Exchange,
    /// Told of events that wait for the disk.
    pub(crate) held: Arc<Notify>,
    pub(crate) shims: Shims,
    pub(crate) mounts: Mounts,
    pub(crate) belongings: Belongings,
    pub(crate) engine: Engine,
    pub(crate) collector: Collector,
    pub(crate) restarts: Restarts,
    pub(crate) retainer: Retainer,
    /// To registries, shared by all who speak to them.
    pub(crate) connections: Connections,
    pub(crate) flights: Flights,
    pub(crate) slots: Slots,
    /// Of clients.
    pub(crate) streams: Streams,
    /// Which images may come in.
    pub(crate) admission: Admission,
    /// The one that is used where nobody names one.
    pub(crate) snapshotter: String,
    /// Programs that serve for us.
    pub(crate) proxies: Vec<Plugin>,
    /// Names of differs, in the order in which they are asked.
    pub(crate) differs: Vec<String>,
    pub(crate) processors: Processors,
    /// A further name of a snapshotter, where it is what that name says.
    pub(crate) other_snapshotter_name: Option<&'static str>,
    /// Plugins that the configuration leaves out.
    pub(crate) left_out: LeftOut,
}

impl Parts {
    /// The plugin of a kind and a name.
    pub(crate) fn proxy(&self, kind: ProxyKind, name: &str) -> Option<&Plugin> {
        find_proxy(&self.proxies, kind, name)
    }

    /// Hands on what may change while the daemon runs.
    pub(crate) fn reconfigure(&self, config: Config) {
        let Config { registry, policy, image_verifiers, collector, restart_interval, unpacked, .. } = config;
        self.connections.reconfigure(registry.directories, registry.mirror_timeout);
        self.admission.reconfigure(policy, image_verifiers);
        self.collector.reconfigure(collector);
        self.restarts.reconfigure(restart_interval);
        self.retainer.reconfigure(unpacked.into());
    }
}

/// Builds every part from the ground up, inside the executor that is to run them. Blocks: stores are opened and
/// repaired here.
pub(crate) fn build(config: &Config, embedded: Programs) -> Result<Parts> {
    let (root, state) = (&config.root, &config.state);
    let options = kv::Options { cache_bytes: config.cache_bytes, verify: false };
    let db = kv::Db::open_reserved(root.join("meta.db"), &root.join("reserve"), options)?;
    let plugins = &config.plugins;
    let proxies: Vec<Plugin> = plugins.proxies.iter().cloned().map(Plugin::new).collect();
    let content: Arc<dyn content::Store> = match find_proxy(&proxies, ProxyKind::Content, &plugins.content) {
        Some(plugin) => Arc::new(ProxyStore::new(plugin.clone())),
        None => Arc::new(LocalStore::open(root.join("content"))?),
    };
    let mut snapshotters: BTreeMap<String, Arc<dyn Snapshotter>> = BTreeMap::new();
    let trees = root.join("snapshots/overlayfs");
    let wanted = probes::Wanted {
        layers: config.layers,
        backing: config.backing,
        verity: config.verity,
        snapshotter: &plugins.snapshotter,
    };
    let probes::Choice { options, snapshotter } = Probes::new(root).choose(&wanted)?;
    let form = options.form;
    let overlay = Overlay::open(&trees, db.clone(), options)?.recording_spans(config.spans);
    let overlay = overlay.with_mount_options(config.mount_options.clone());
    snapshotters.insert(Overlay::NAME.into(), Arc::new(overlay));
    let left_out = LeftOut::of(&config.disabled_plugins);
    if !left_out.native_snapshotter() {
        let native = Native::open(&root.join("snapshots/native"), db.clone())?;
        snapshotters.insert(Native::NAME.into(), Arc::new(native));
    } else if snapshotter == Native::NAME {
        return Err(Error::failed_precondition(
            "configuration: disabled_plugins leaves out the snapshotter native, which is the one for calls that name none \
             here: take it out of that list, or name another with `snapshotter`",
        ));
    }
    for plugin in proxies.iter().filter(|plugin| plugin.config().kind == ProxyKind::Snapshot) {
        let proxy = ProxySnapshotter::new(plugin.clone());
        snapshotters.insert(plugin.config().name.clone(), Arc::new(proxy));
    }

    let (exchange, trigger) = (Exchange::default(), Trigger::default());
    let sink = crate::events::sink(exchange.clone());
    let is_heard = {
        let exchange = exchange.clone();
        Box::new(move || exchange.is_heard())
    };
    let (notice, held) = (trigger.notices(), trigger.held());
    let connections = Connections::new(registry::Options {
        directories: config.registry.directories.clone(),
        proxies: config.registry.proxies.clone(),
        mirror_timeout: config.registry.mirror_timeout,
    });
    let (flights, slots) = (Flights::default(), Slots::new(config.at_once));
    let retentions = Retentions::new(config.unpacked.into());
    let admission =
        Admission::new(config.policy.clone(), config.image_verifiers.clone(), connections.clone());
    let places = Places::open(&state.join("mounts"))?;
    let sweep_mounts = {
        let places = places.clone();
        Box::new(move |live: &dyn Fn() -> _| places.sweep(live))
    };
    let streams = Streams::default();
    let processors = Processors::new(&plugins.processors);
    let differs =
        plugins.differs.iter().map(|name| find_proxy(&proxies, ProxyKind::Diff, name).cloned()).collect();
    let options = metadata::Options {
        sink,
        is_heard,
        gate: Box::new(admission.clone()),
        notice,
        sweep_mounts,
        streams: Box::new(streams.clone()),
        isolates_content: config.sharing == Sharing::Isolated,
        processors: Box::new(processors.clone()),
        differs: Box::new(differs::Chain { differs, processors: processors.clone() }),
        ..metadata::Options::default()
    };
    let metadata = Metadata::open(db, content, snapshotters, options)?;
    let mounts = Mounts::new(metadata.clone(), places, root)?;
    if let Err(error) = mounts.reconcile() {
        // What is in use now is taken down by a later collection.
        tracing::warn!("find mounts again: {}", error.chain());
    }
    let shims = Shims::new(
        task::Config {
            bundles: task_folder(state)?,
            sandboxes: state.join("sandboxes"),
            sockets: state.join("s"),
            grpc_address: config.address.clone(),
            ttrpc_address: config.ttrpc_address.clone(),
            publisher: std::env::current_exe().context(|| "find our own program")?,
            shim: program(root, SHIM, embedded.shim)?,
            version: crate::identity::VERSION.into(),
            env: config.shim_env.clone(),
            limits: config.shim_limits,
            debug: false,
        },
        exchange.clone(),
    );
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
        snapshotter: snapshotter.clone(),
        root: root.clone(),
        state: state.clone(),
        hello: embedded.hello.map(|hello| hello.bytes),
        cdi: cdi::FOLDERS.map(PathBuf::from).to_vec(),
        init: init(root.clone(), embedded.hello),
    })?;
    let retainer = Retainer::new(metadata.clone(), trigger.settled(), retentions);
    let collector = Collector::new(metadata.clone(), trigger, config.collector);
    let checkpoints = Checkpoints::new(metadata.clone(), root);
    let belongings = Belongings::new(shims.clone(), mounts.clone(), checkpoints);
    let restarts = Restarts::new(
        metadata.clone(),
        shims.clone(),
        belongings.clone(),
        exchange.clone(),
        config.restart_interval,
    );
    let uuid = crate::identity::uuid(root)?;
    Ok(Parts {
        root: root.clone(),
        uuid,
        metadata,
        exchange,
        held,
        shims,
        mounts,
        belongings,
        engine,
        collector,
        restarts,
        retainer,
        connections,
        flights,
        slots,
        streams,
        admission,
        snapshotter,
        processors,
        differs: plugins.differs.clone(),
        proxies,
        left_out,
        other_snapshotter_name: (form == LayerForm::Archives).then_some(Overlay::OTHER_NAME),
    })
}

/// Where bundles are. Programs look for them in containerd's state, by a name that leads here.
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

/// The program of `hello` by the name by which it is init. Containers have it mounted, and nobody else executes it.
fn init(root: PathBuf, hello: Option<Embedded>) -> Box<dyn Fn() -> Result<PathBuf> + Send + Sync> {
    Box::new(move || {
        program(&root, INIT, hello)?.ok_or_else(|| {
            Error::failed_precondition(
                "this hoist was built without the program that is init; take one built by `cargo xtask build`, or give \
                 the image an init of its own",
            )
        })
    })
}

/// A program that travelled inside ours, on disk; none if it did not.
fn program(root: &Path, name: &str, program: Option<Embedded>) -> Result<Option<PathBuf>> {
    program.map(|program| programs::unpack(root, name, program)).transpose()
}
