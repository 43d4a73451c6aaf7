//! The configuration: as written ([`raw`]) and as used ([`Config`]).
//!
//! A file is optional and so is every key. What no key stands for is refused, with its line and the
//! key that may have been meant: a typing error must not be a default.

mod policy;
mod raw;
mod suggest;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ::policy::{Policy, Verifiers};
use types::{Context, Error, Result};

pub use raw::Raw;

use crate::args::Args;

/// The file that is read when none is named, if it is there.
pub const DEFAULT_FILE: &str = "/etc/hoist/config.toml";

/// The longest path that a unix socket can have, with room for what is hung on it (`.ttrpc`).
const SOCKET_PATH_LEN_MAX: usize = 100;

/// The configuration as used: every value checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub root: PathBuf,
    pub state: PathBuf,
    pub address: PathBuf,
    pub socket_mode: u32,
    pub socket_uid: Option<u32>,
    pub socket_gid: Option<u32>,
    pub log_level: Level,
    pub log_format: LogFormat,
    pub snapshotter: String,
    pub layers: Layers,
    pub cache_bytes: usize,
    pub network: network::Config,
    pub registry: Registry,
    pub collector: Collector,
    pub policy: Policy,
    pub image_verifiers: Option<Verifiers>,
}

/// How registries are found and reached.
#[derive(Clone, Debug)]
pub struct Registry {
    /// Looked into for a directory with the registry's name, in this order.
    pub directories: Vec<PathBuf>,
    pub proxies: registry::Proxies,
    pub mirror_timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Collector {
    pub startup_delay: Duration,
    pub schedule_delay: Duration,
    pub mutation_threshold: u64,
    pub pause_threshold: f64,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $what:literal, { $($variant:ident => $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub enum $name {
            $($variant),+
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<$name> {
                match text {
                    $($word => Ok($name::$variant),)+
                    _ => Err(Error::invalid_argument(format!(
                        concat!("invalid ", $what, " {:?}: expected one of {}"),
                        text,
                        [$($word),+].join(", ")
                    ))),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<$name> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                match value { $($name::$variant => $word),+ }.to_owned()
            }
        }
    };
}

words!(
    /// How much is logged.
    Level, "log level", {
        Trace => "trace", Debug => "debug", Info => "info", Warn => "warn", Error => "error",
    }
);
words!(
    /// How layers are kept.
    Layers, "form of layers", { Auto => "auto", Archives => "archives", Directories => "directories" }
);
words!(
    /// In which form it is logged.
    LogFormat, "log format", { Text => "text", Json => "json" }
);

impl Config {
    /// The file and the command line, the latter first.
    pub(crate) fn load(args: &Args) -> Result<Config> {
        Raw::load(args)?.check()
    }
}

impl Raw {
    /// What is written: defaults under the file under the command line.
    pub(crate) fn load(args: &Args) -> Result<Raw> {
        let mut raw = match &args.config {
            Some(path) => read(path)?,
            None => match read(Path::new(DEFAULT_FILE)) {
                Err(error) if is_missing(&error) => Raw::default(),
                outcome => outcome?,
            },
        };
        raw.overlay(args);
        Ok(raw)
    }

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

    fn check(self) -> Result<Config> {
        let root = absolute("root", &self.root)?;
        let state = absolute("state", &self.state)?;
        if root.starts_with(&state) || state.starts_with(&root) {
            return Err(invalid("state", "root and state must not be one inside the other"));
        }
        let address = self.grpc.address.unwrap_or_else(|| state.join("hoist.sock"));
        let address = strip_scheme(&address);
        let address = absolute("grpc.address", &address)?;
        if address.as_os_str().len() > SOCKET_PATH_LEN_MAX {
            return Err(invalid("grpc.address", &format!("longer than {SOCKET_PATH_LEN_MAX} bytes")));
        }
        Ok(Config {
            root,
            state,
            address,
            socket_mode: mode(&self.grpc.mode)?,
            socket_uid: self.grpc.uid,
            socket_gid: self.grpc.gid,
            log_level: self.log.level,
            log_format: self.log.format,
            snapshotter: snapshotter(self.snapshotter)?,
            layers: self.snapshots.layers,
            cache_bytes: cache(self.metadata.cache_mib)?,
            network: network::Config {
                bridge: self.network.bridge,
                subnet: self.network.subnet.map(|subnet| subnet.parse()).transpose()?,
                mtu: self.network.mtu,
            },
            registry: Registry {
                directories: directories(&self.registry.config_path)?,
                // The environment is the daemon's, as it is for every program of the machine.
                proxies: registry::Proxies::from_variables(|name| std::env::var(name).ok())?,
                mirror_timeout: duration("registry.mirror_timeout", &self.registry.mirror_timeout)?,
            },
            collector: Collector {
                startup_delay: duration("gc.startup_delay", &self.gc.startup_delay)?,
                schedule_delay: duration("gc.schedule_delay", &self.gc.schedule_delay)?,
                mutation_threshold: self.gc.mutation_threshold,
                pause_threshold: pause_threshold(self.gc.pause_threshold)?,
            },
            policy: self.policy.as_deref().map_or_else(|| Ok(Policy::default()), policy::read)?,
            image_verifiers: verifiers(self.image_verifiers)?,
        })
    }
}

fn read(path: &Path) -> Result<Raw> {
    let text = fs::read_to_string(path).context(|| format!("read {}", path.display()))?;
    parse(&text, path)
}

fn parse(text: &str, path: &Path) -> Result<Raw> {
    toml::from_str(text).map_err(|error| suggest::explain(&error, text, path))
}

fn is_missing(error: &Error) -> bool {
    use std::error::Error as _;
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    source.is_some_and(|source| source.kind() == io::ErrorKind::NotFound)
}

fn invalid(key: &str, why: &str) -> Error {
    Error::invalid_argument(format!("configuration: {key}: {why}"))
}

fn absolute(key: &str, path: &Path) -> Result<PathBuf> {
    if path.is_absolute() && path.parent().is_some() {
        // `components` drops doubled and trailing slashes, so that paths can be compared.
        Ok(path.components().collect())
    } else {
        Err(invalid(key, &format!("{path:?} is not an absolute path below /")))
    }
}

/// Directories, in the form of `PATH` or as a list.
fn directories(list: &raw::Paths) -> Result<Vec<PathBuf>> {
    let paths: Vec<&str> = match list {
        raw::Paths::Joined(text) => text.split(':').filter(|part| !part.is_empty()).collect(),
        raw::Paths::List(list) => list.iter().map(String::as_str).collect(),
    };
    paths.into_iter().map(|path| absolute("registry.config_path", Path::new(path))).collect()
}

fn strip_scheme(path: &Path) -> PathBuf {
    path.to_str().and_then(|text| text.strip_prefix("unix://")).map_or_else(|| path.to_owned(), PathBuf::from)
}

fn mode(text: &str) -> Result<u32> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| invalid("grpc.mode", &format!("{text:?} is no mode such as \"0660\"")))
}

fn snapshotter(name: String) -> Result<String> {
    match name.as_str() {
        "overlayfs" | "native" => Ok(name),
        _ => Err(invalid("snapshotter", &format!("{name:?} is not one of overlayfs, native"))),
    }
}

fn cache(mib: u32) -> Result<usize> {
    match mib {
        1..=1024 => Ok(mib as usize * 1024 * 1024),
        _ => Err(invalid("metadata.cache_mib", "must be from 1 to 1024")),
    }
}

fn pause_threshold(share: f64) -> Result<f64> {
    if share > 0.0 && share <= 0.5 {
        Ok(share)
    } else {
        Err(invalid("gc.pause_threshold", "must be above 0 and at most 0.5"))
    }
}

fn verifiers(raw: raw::ImageVerifiers) -> Result<Option<Verifiers>> {
    if raw.bin_dir.as_os_str().is_empty() {
        return Ok(None);
    }
    let count_max = match raw.max_verifiers {
        -1 => None,
        count => Some(
            usize::try_from(count)
                .map_err(|_| invalid("image_verifiers.max_verifiers", "must be a number, or -1 for all"))?,
        ),
    };
    let timeout = duration("image_verifiers.per_verifier_timeout", &raw.per_verifier_timeout)?;
    Ok(Some(Verifiers { directory: absolute("image_verifiers.bin_dir", &raw.bin_dir)?, count_max, timeout }))
}

/// `100ms`, `2s`, `1m`, `3h`, or plain `0`.
fn duration(key: &str, text: &str) -> Result<Duration> {
    let bad = || invalid(key, &format!("{text:?} is no duration such as 100ms, 2s, 1m or 3h"));
    let digits = text.find(|found: char| !found.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| bad())?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        "h" => Ok(Duration::from_secs(number.saturating_mul(3600))),
        "" if number == 0 => Ok(Duration::ZERO),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            "[grpc]\nmode = \"9\"",
            "[gc]\npause_threshold = 0.9",
            "[gc]\nschedule_delay = \"soon\"",
            "[metadata]\ncache_mib = 0",
            "[network]\nsubnet = \"x\"",
            "[registry]\nconfig_path = \"certs.d\"",
            "[registry]\nconfig_path = [\"/a\", \"b\"]",
            "[registry]\nmirror_timeout = \"soon\"",
            "policy = \"/nosuch/policy.toml\"",
            "[image_verifiers]\nbin_dir = \"relative\"",
            "[image_verifiers]\nmax_verifiers = -2",
            "[image_verifiers]\nper_verifier_timeout = \"soon\"",
        ] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
        let config = parsed("[grpc]\naddress = \"unix:///x/y.sock\"\n[gc]\nschedule_delay = \"2m\"").unwrap();
        assert_eq!(config.address, Path::new("/x/y.sock"));
        assert_eq!(config.collector.schedule_delay, Duration::from_secs(120));
        for list in ["\"/a:/b\"", "[\"/a\", \"/b\"]"] {
            let config = parsed(&format!("[registry]\nconfig_path = {list}")).unwrap();
            assert_eq!(config.registry.directories, [Path::new("/a"), Path::new("/b")], "{list}");
        }
        assert!(parsed("[registry]\nconfig_path = \"\"").unwrap().registry.directories.is_empty());
    }
}
