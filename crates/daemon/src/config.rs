//! The configuration: as written ([`raw`]), and as validated and used ([`Config`]).
//!
//! ```text
//! files ─▶ parse each ─▶ translate containerd's ─▶ merge ─▶ Raw ─▶ command line ─▶ Config
//! ```
//!
//! Files are optional, and so is every key. An unknown key is an error with its line and the most similar known key: a
//! typo must not silently mean the default.

mod containerd;
mod files;
mod glob;
mod otlp;
#[cfg(test)]
mod page;
mod plugins;
mod policy;
mod raw;
mod suggest;
pub(crate) mod tcp;
mod values;
mod words;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ::policy::{Policy, Verifiers};
use serde::Deserialize;
use snapshot::Backing;
use task::Limits;
use toml::{Table, Value};
use transfer::AtOnce;
use types::{Error, Result};

pub use files::Flavor;
pub use otlp::{Otlp, Protocol};
pub(crate) use plugins::AUTO;
pub use plugins::{Plugins, ProxyPlugin, StreamProcessor};
pub use raw::Raw;
pub(crate) use values::strip_scheme;
use values::{
    absolute, at_once, cache, cgroup, debug_socket, directories, duration, environment, interval, invalid,
    limit, message_limit, metrics_address, mode, mount_options, oom_score, pause_threshold, socket,
    verifiers, with_end,
};
pub use words::{DirectReads, Layers, Level, LogFormat, ProxyKind, Sharing, Unpacked};

use crate::args::Args;
use crate::services;

/// The configuration as used, with every value validated.
#[derive(Clone, Debug)]
pub struct Config {
    pub root: PathBuf,
    pub state: PathBuf,
    pub address: PathBuf,
    /// The socket on which shims publish events, and its owner.
    pub ttrpc_address: PathBuf,
    pub ttrpc_owner: (Option<u32>, Option<u32>),
    pub message_limits: MessageLimits,
    pub socket_mode: u32,
    pub socket_uid: Option<u32>,
    pub socket_gid: Option<u32>,
    /// The TCP address on which the API is served as well.
    pub tcp: Option<tcp::Tcp>,
    /// The daemon's `oom_score_adj`; 0 leaves it unchanged.
    pub oom_score: i32,
    /// The cgroup that the daemon's own process moves to.
    pub cgroup: Option<String>,
    pub metrics: Metrics,
    pub debug: Option<DebugSocket>,
    /// Where traces are sent, if anywhere.
    pub otlp: Option<Otlp>,
    /// The restart monitor's interval.
    pub restart_interval: Duration,
    pub log_level: Level,
    pub log_format: LogFormat,
    pub plugins: Plugins,
    /// Plugins without which the daemon does not start, by type and id.
    pub required_plugins: Vec<String>,
    /// Disabled plugins, by type and id. Only some can be disabled: see [`services::DisabledPlugins`].
    pub disabled_plugins: Vec<String>,
    pub layers: Layers,
    /// Whether the spans of layers' blobs are recorded.
    pub spans: bool,
    pub verity: bool,
    pub backing: Backing,
    /// Additional options of overlay mounts.
    pub mount_options: Vec<String>,
    pub unpacked: Unpacked,
    pub sharing: Sharing,
    pub cache_bytes: usize,
    pub network: network::Config,
    pub registry: Registry,
    pub at_once: AtOnce,
    pub shim_env: Vec<(String, String)>,
    pub shim_limits: Limits,
    pub collector: Collector,
    pub policy: Policy,
    pub image_verifiers: Option<Verifiers>,
    /// Warnings about keys that have no effect.
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    /// The address on which metrics are served, if any.
    pub address: Option<SocketAddr>,
    /// Whether the durations of calls are measured.
    pub grpc_histogram: bool,
}

/// Maximum lengths of gRPC messages, in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MessageLimits {
    pub received: usize,
    pub sent: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DebugSocket {
    pub path: PathBuf,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// How registries are located and contacted.
#[derive(Clone, Debug)]
pub struct Registry {
    /// Searched for a directory with the registry's name, in this order.
    pub directories: Vec<PathBuf>,
    pub proxies: registry::Proxies,
    pub mirror_timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Collector {
    pub startup_delay: Duration,
    pub schedule_delay: Duration,
    pub deletion_threshold: u64,
    pub mutation_threshold: u64,
    pub pause_threshold: f64,
}

impl Config {
    /// Reads the files and the command line, which takes precedence.
    pub(crate) fn load(args: &Args) -> Result<Config> {
        let Loaded { raw, warnings, .. } = Loaded::read(args)?;
        let config = raw.check()?;
        let is_needed = |name: &&String| services::has_plugin(name) && !services::is_separable(name);
        let needed = config.disabled_plugins.iter().filter(is_needed);
        let stays = |name| format!("disabled_plugins: {name} stays: other parts of the daemon need it");
        Ok(Config { warnings: warnings.into_iter().chain(needed.map(stays)).collect(), ..config })
    }

    /// The changed keys that a running daemon cannot apply. It can apply `log.level`, `registry`, `policy`,
    /// `image_verifiers`, `gc`, `restart` and `content.unpacked`.
    pub(crate) fn fixed_differences(&self, new: &Config) -> Vec<&'static str> {
        let places = (self.root != new.root, self.state != new.state, self.address != new.address);
        let owner = |config: &Config| (config.socket_mode, config.socket_uid, config.socket_gid);
        [
            ("root", places.0),
            ("state", places.1),
            (
                "grpc",
                places.2
                    || owner(self) != owner(new)
                    || self.tcp != new.tcp
                    || self.message_limits != new.message_limits,
            ),
            (
                "ttrpc",
                (&self.ttrpc_address, self.ttrpc_owner) != (&new.ttrpc_address, new.ttrpc_owner) && !places.2,
            ),
            ("required_plugins", self.required_plugins != new.required_plugins),
            ("disabled_plugins", self.disabled_plugins != new.disabled_plugins),
            ("transfer", self.at_once != new.at_once),
            ("shims", (&self.shim_env, self.shim_limits) != (&new.shim_env, new.shim_limits)),
            ("oom_score", self.oom_score != new.oom_score),
            ("cgroup", self.cgroup != new.cgroup),
            ("metrics", self.metrics != new.metrics),
            ("debug", self.debug != new.debug),
            ("otlp", self.otlp != new.otlp),
            ("log.format", self.log_format != new.log_format),
            ("snapshotter", self.plugins.snapshotter != new.plugins.snapshotter),
            ("proxy_plugins", self.plugins.proxies != new.plugins.proxies),
            ("stream_processors", self.plugins.processors != new.plugins.processors),
            ("content.store", self.plugins.content != new.plugins.content),
            ("content.sharing", self.sharing != new.sharing),
            ("diff", self.plugins.differs != new.plugins.differs),
            (
                "snapshots",
                (self.layers, self.verity, self.backing, self.spans, &self.mount_options)
                    != (new.layers, new.verity, new.backing, new.spans, &new.mount_options),
            ),
            ("metadata", self.cache_bytes != new.cache_bytes),
            ("network", self.network != new.network),
        ]
        .into_iter()
        .filter_map(|(key, differs)| differs.then_some(key))
        .collect()
    }
}

/// The merged files and command line, parsed but not validated as a whole.
pub(crate) struct Loaded {
    raw: Raw,
    /// The files' contents without defaults, in the format of the daemon's flavor.
    written: Table,
    flavor: Flavor,
    pub(crate) warnings: Vec<String>,
}

impl Loaded {
    pub(crate) fn read(args: &Args) -> Result<Loaded> {
        let files::Written { ours, containerd, warnings, files } =
            files::read(args.config.as_deref(), args.flavor)?;
        let mut raw = merged(args.flavor, &ours).map_err(|error| {
            let files = files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ");
            Error::invalid_argument(format!("{files}: {}", error.message()))
        })?;
        raw.overlay(args);
        let written = match args.flavor {
            Flavor::Hoist => ours,
            Flavor::Containerd => containerd.unwrap_or_default(),
        };
        Ok(Loaded { raw, written, flavor: args.flavor, warnings })
    }

    /// The effective configuration.
    pub(crate) fn dump(&self) -> String {
        match self.flavor {
            Flavor::Hoist => self.raw.to_toml(),
            Flavor::Containerd => {
                let mut all = self.written.clone();
                files::merge(&mut all, containerd::of_ours(&table(&self.raw)));
                toml::to_string(&all).expect("it was read from TOML")
            }
        }
    }

    /// The contents of all files as one file in the current format: containerd's under its name, with keys that have no
    /// effect; otherwise ours.
    pub(crate) fn migrate(&self) -> String {
        toml::to_string(&self.written).expect("it was read from TOML")
    }
}

/// The default configuration.
pub(crate) fn defaults(flavor: Flavor) -> String {
    match flavor {
        Flavor::Hoist => Raw::default().to_toml(),
        Flavor::Containerd => {
            let theirs = containerd::of_ours(&table(&containerd::defaults()));
            toml::to_string(&theirs).expect("tables, strings and numbers have a TOML form")
        }
    }
}

/// The defaults, overridden by what is written.
fn merged(flavor: Flavor, written: &Table) -> Result<Raw, toml::de::Error> {
    let mut all = table(&match flavor {
        Flavor::Hoist => Raw::default(),
        Flavor::Containerd => containerd::defaults(),
    });
    files::merge(&mut all, written.clone());
    Raw::deserialize(Value::Table(all))
}

fn table(raw: &Raw) -> Table {
    Table::try_from(raw).expect("tables, strings and numbers have a TOML form")
}

impl Raw {
    fn overlay(&mut self, args: &Args) {
        if let Some(root) = &args.root {
            self.root.clone_from(root);
        }
        if let Some(state) = &args.state {
            self.state.clone_from(state);
        }
        if let Some(address) = &args.address {
            self.grpc.address = Some(address.clone());
        }
        if let Some(level) = args.log_level {
            self.log.level = level;
        }
        if let Some(format) = args.log_format {
            self.log.format = format;
        }
    }

    fn check(mut self) -> Result<Config> {
        let root = absolute("root", &self.root)?;
        let state = absolute("state", &self.state)?;
        if root.starts_with(&state) || state.starts_with(&root) {
            return Err(invalid("state", "root and state must not be one inside the other"));
        }
        let direct_reads = self.snapshots.direct_reads;
        if self.snapshots.verity && direct_reads == DirectReads::Always {
            let message = "conflicts with snapshots.verity: verified files are read through the page cache";
            return Err(invalid("snapshots.direct_reads", message));
        }
        let backing = match (direct_reads, self.snapshots.loop_devices) {
            (DirectReads::Auto, false) => Backing::Files,
            (DirectReads::Never, false) => Backing::FilesThroughMemory,
            (DirectReads::Always, false) => Backing::FilesDirectly,
            (DirectReads::Auto | DirectReads::Never, true) => Backing::LoopDevices,
            (DirectReads::Always, true) => {
                let message = "conflicts with snapshots.loop_devices: only files can be read directly";
                return Err(invalid("snapshots.direct_reads", message));
            }
        };
        let plugins = plugins::check(&mut self)?;
        let tcp = tcp::check(&self.grpc)?;
        let address = self.grpc.address.unwrap_or_else(|| state.join("hoist.sock"));
        let address = socket("grpc.address", &address)?;
        let ttrpc_address = match self.ttrpc.address.filter(|path| !path.as_os_str().is_empty()) {
            Some(path) => socket("ttrpc.address", &path)?,
            None => with_end(&address, ".ttrpc"),
        };
        if ttrpc_address == address {
            return Err(invalid("ttrpc.address", "is that of calls too"));
        }
        Ok(Config {
            root,
            state,
            address,
            ttrpc_address,
            ttrpc_owner: (self.ttrpc.uid, self.ttrpc.gid),
            message_limits: MessageLimits {
                received: message_limit("grpc.max_recv_message_size", self.grpc.max_recv_message_size)?,
                sent: message_limit("grpc.max_send_message_size", self.grpc.max_send_message_size)?,
            },
            socket_mode: mode(&self.grpc.mode)?,
            socket_uid: self.grpc.uid,
            socket_gid: self.grpc.gid,
            tcp,
            oom_score: oom_score(self.oom_score)?,
            cgroup: cgroup(self.cgroup)?,
            metrics: Metrics {
                address: metrics_address(&self.metrics.address)?,
                grpc_histogram: self.metrics.grpc_histogram,
            },
            debug: debug_socket(self.debug)?,
            otlp: otlp::check(&self.otlp, |name| std::env::var(name).ok())?,
            restart_interval: interval("restart.interval", &self.restart.interval)?,
            log_level: self.log.level,
            log_format: self.log.format,
            plugins,
            required_plugins: self.required_plugins,
            disabled_plugins: self.disabled_plugins,
            layers: self.snapshots.layers,
            spans: self.snapshots.spans,
            verity: self.snapshots.verity,
            backing,
            mount_options: mount_options(self.snapshots.mount_options)?,
            unpacked: self.content.unpacked,
            sharing: self.content.sharing,
            cache_bytes: cache(self.metadata.cache_mib)?,
            network: network::Config {
                bridge: self.network.bridge,
                subnet: self.network.subnet.map(|subnet| subnet.parse()).transpose()?,
                mtu: self.network.mtu,
            },
            registry: Registry {
                directories: directories(&self.registry.config_path)?,
                // The daemon's own environment, as for any program.
                proxies: registry::Proxies::from_variables(|name| std::env::var(name).ok())?,
                mirror_timeout: duration("registry.mirror_timeout", &self.registry.mirror_timeout)?,
            },
            at_once: at_once(&self.transfer),
            shim_env: environment("shims.env", &self.shims.env)?,
            shim_limits: Limits {
                load: limit("shims.load_timeout", &self.shims.load_timeout)?,
                state: limit("shims.state_timeout", &self.shims.state_timeout)?,
                stats: limit("shims.stats_timeout", &self.shims.stats_timeout)?,
                shutdown: limit("shims.shutdown_timeout", &self.shims.shutdown_timeout)?,
                cleanup: limit("shims.cleanup_timeout", &self.shims.cleanup_timeout)?,
            },
            collector: Collector {
                startup_delay: duration("gc.startup_delay", &self.gc.startup_delay)?,
                schedule_delay: duration("gc.schedule_delay", &self.gc.schedule_delay)?,
                deletion_threshold: self.gc.deletion_threshold,
                mutation_threshold: self.gc.mutation_threshold,
                pause_threshold: pause_threshold(self.gc.pause_threshold)?,
            },
            policy: match &self.policy {
                Some(path) => policy::read(&absolute("policy", path)?)?,
                None => Policy::default(),
            },
            image_verifiers: verifiers(self.image_verifiers)?,
            warnings: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn parse(text: &str, path: &Path) -> Result<Raw> {
        toml::from_str(text).map_err(|error| suggest::explain(&error, text, path))
    }

    fn parsed(text: &str) -> Result<Config> {
        parse(text, Path::new("/etc/hoist/config.toml")).and_then(Raw::check)
    }

    #[test]
    fn the_defaults_are_a_file_that_means_the_same() {
        let text = Raw::default().to_toml();
        assert_eq!(parse(&text, Path::new("x")).unwrap(), Raw::default());
        let config = parsed(&text).unwrap();
        assert_eq!(config.root, Path::new("/var/lib/hoist"));
        assert_eq!(config.address, Path::new("/run/hoist/hoist.sock"));
        assert_eq!(config.socket_mode, 0o660);
        assert_eq!(parsed("").unwrap().collector, config.collector);
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_nearest_known_key() {
        let check = |text: &str, words: &[&str]| {
            let message = parsed(text).unwrap_err().chain();
            for word in words {
                assert!(message.contains(word), "{message:?} has no {word:?}");
            }
        };
        check("rot = \"/x\"", &["/etc/hoist/config.toml:1", "`rot`", "did you mean `root`"]);
        check("\n[grpc]\nadress = \"/x\"", &["config.toml:3", "`adress`", "did you mean `address`"]);
        check("[gprc]\n", &["config.toml:1", "did you mean `grpc`"]);
        check("[log]\nlevel = \"loud\"", &["config.toml:2", "loud", "trace, debug, info"]);
        check("root = 5", &["config.toml:1"]);
        check("root = \"/x\"\nroot = \"/y\"", &["config.toml:2"]);
    }

    #[test]
    fn values_are_checked() {
        for bad in [
            "root = \"relative\"",
            "root = \"/\"",
            "root = \"/run/hoist/below\"",
            "snapshotter = \"zfs\"",
            "[snapshots]\nlayers = \"squashfs\"",
            "[snapshots]\nmount_options = [\"upperdir=/x\"]",
            "[grpc]\nmax_recv_message_size = 0",
            "[ttrpc]\naddress = \"/run/hoist/hoist.sock\"",
            "[transfer]\nmax_concurrent_downloads = -1",
            "[shims]\nenv = [\"NAME\"]",
            "[shims]\nstate_timeout = \"soon\"",
            "[snapshots]\nverity = true\ndirect_reads = \"always\"",
            "[snapshots]\nloop_devices = true\ndirect_reads = \"always\"",
            "[content]\nunpacked = \"burn\"",
            "[content]\nsharing = \"none\"",
            "[grpc]\nmode = \"9\"",
            "[grpc]\ntcp_address = \"everywhere\"",
            "[grpc]\ntcp_address = \"0.0.0.0:1\"",
            "[grpc]\ntcp_address = \"0.0.0.0:1\"\ntcp_tls_cert = \"/c\"\ntcp_tls_key = \"/k\"",
            "[grpc]\ntcp_address = \"127.0.0.1:1\"\ntcp_tls_ca = \"/c\"",
            "[grpc]\ntcp_address = \"127.0.0.1:1\"\ntcp_tls_common_name = \"n\"",
            "[gc]\npause_threshold = 0.9",
            "[gc]\nschedule_delay = \"soon\"",
            "[metadata]\ncache_mib = 0",
            "[network]\nsubnet = \"x\"",
            "[registry]\nconfig_path = \"certs.d\"",
            "[registry]\nconfig_path = [\"/a\", \"b\"]",
            "[registry]\nmirror_timeout = \"soon\"",
            "policy = \"/nosuch/policy.toml\"",
            "[image_verifiers]\nbin_dir = \"relative\"",
            "[image_verifiers]\nper_verifier_timeout = \"soon\"",
            "[metrics]\naddress = \"everywhere\"",
            "[debug]\naddress = \"debug.sock\"",
            "[restart]\ninterval = \"0\"",
            "oom_score = 1001",
            "cgroup = \"a//b\"",
            "cgroup = \"/\"",
            "cgroup = \"/a/../b\"",
            "[proxy_plugins.x]\ntype = \"snapshot\"",
            "[proxy_plugins.x]\ntype = \"snapshots\"\naddress = \"/x.sock\"",
            "[proxy_plugins.x]\ntype = \"snapshot\"\naddress = \"x.sock\"",
            "[proxy_plugins.native]\ntype = \"snapshot\"\naddress = \"/x.sock\"",
            "[proxy_plugins.\"a b\"]\ntype = \"diff\"\naddress = \"/x.sock\"",
            "[proxy_plugins.x]\ntype = \"diff\"\naddress = \"/x.sock\"\ntimeout = \"0\"",
            "[content]\nstore = \"x\"\n[proxy_plugins.x]\ntype = \"diff\"\naddress = \"/x.sock\"",
            "[diff]\ndefault = []",
            "[diff]\ndefault = [\"walking\", \"x\"]",
            "[stream_processors.x]\naccepts = [\"a\"]\nreturns = \"b\"\npath = \"bin/x\"",
            "[stream_processors.x]\naccepts = [\"a\"]\nreturns = \"a\"\npath = \"/x\"",
            "[stream_processors.x]\nreturns = \"b\"\npath = \"/x\"",
        ] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
        // A relative path is refused: it would depend on the working directory.
        let error = parsed("policy = \"policy.toml\"").unwrap_err();
        assert!(error.message().starts_with("configuration: policy: "), "{error:?}");
        let config = parsed("[grpc]\naddress = \"unix:///x/y.sock\"\n[gc]\nschedule_delay = \"2m\"").unwrap();
        assert_eq!(config.address, Path::new("/x/y.sock"));
        for path in ["/a/b", "a/b"] {
            assert_eq!(parsed(&format!("cgroup = {path:?}")).unwrap().cgroup.as_deref(), Some("/a/b"));
        }
        assert_eq!(config.collector.schedule_delay, Duration::from_secs(120));
        for list in ["\"/a:/b\"", "[\"/a\", \"/b\"]"] {
            let config = parsed(&format!("[registry]\nconfig_path = {list}")).unwrap();
            assert_eq!(config.registry.directories, [Path::new("/a"), Path::new("/b")], "{list}");
        }
        assert!(parsed("[registry]\nconfig_path = \"\"").unwrap().registry.directories.is_empty());
        for (number, count_max) in [(3, Some(3)), (0, Some(0)), (-1, None), (-2, None)] {
            let config = parsed(&format!("[image_verifiers]\nmax_verifiers = {number}")).unwrap();
            assert_eq!(config.image_verifiers.unwrap().count_max, count_max, "{number}");
        }
        let proxy = "[proxy_plugins.x]\ntype = \"snapshot\"\naddress = \"unix:///x.sock\"\n";
        let plugins = parsed(&format!("snapshotter = \"x\"\n{proxy}")).unwrap().plugins;
        assert_eq!(plugins.snapshotter, "x");
        assert_eq!(plugins.proxies[0].address, Path::new("/x.sock"));
        assert_eq!(plugins.proxies[0].timeout, Duration::from_secs(30));
    }
}
