//! Translates containerd's configuration files, versions 1 to 4, to ours.
//!
//! ```text
//! version 1 ─ full plugin names ─▶ 2 ─ CRI plugin divided ─▶ 3 ─ servers become plugins ─▶ 4 ─▶ ours
//! ```
//!
//! A key has a counterpart here ([`COUNTERPARTS`]), or requests what is always true here ([`SAME`]), or is empty; any
//! other key is named in a warning, even one that containerd does not know: containerd starts with it, too.

use std::path::Path;

use serde::Deserialize;
use toml::{Table, Value};
use types::{Error, Result};

use super::Level;
use super::files::merge;
use super::plugins::WALKING;
use super::raw::Raw;
use super::suggest;

/// The version that is written.
const VERSION: i64 = 4;

/// Default paths when the daemon is called by containerd's name.
const ROOT: &str = "/var/lib/containerd";
const STATE: &str = "/run/containerd";
const ADDRESS: &str = "/run/containerd/containerd.sock";

const SCHEDULER: &str = "io.containerd.gc.v1.scheduler";
const TCP: &str = "io.containerd.server.v1.grpc-tcp";
const GRPC: &str = "io.containerd.server.v1.grpc";
const TTRPC: &str = "io.containerd.server.v1.ttrpc";
const OVERLAYFS: &str = "io.containerd.snapshotter.v1.overlayfs";
const OTLP: &str = "io.containerd.tracing.processor.v1.otlp";
const TRACING: &str = "io.containerd.internal.v1.tracing";
const METRICS: &str = "io.containerd.server.v1.metrics";
const DEBUG: &str = "io.containerd.server.v1.debug";
const TRANSFER: &str = "io.containerd.transfer.v1.local";
const VERIFIERS: &str = "io.containerd.image-verifier.v1.bindir";

/// A key as its path of tables.
type Path_ = &'static [&'static str];

/// Keys of version 4, and ours with the same meaning.
const COUNTERPARTS: &[(Path_, Path_)] = &[
    (&["root"], &["root"]),
    (&["state"], &["state"]),
    (&["oom_score"], &["oom_score"]),
    (&["cgroup", "path"], &["cgroup"]),
    (&["debug", "level"], &["log", "level"]),
    (&["debug", "format"], &["log", "format"]),
    (&["plugins", GRPC, "address"], &["grpc", "address"]),
    (&["plugins", GRPC, "uid"], &["grpc", "uid"]),
    (&["plugins", GRPC, "gid"], &["grpc", "gid"]),
    (&["plugins", GRPC, "max_recv_message_size"], &["grpc", "max_recv_message_size"]),
    (&["plugins", GRPC, "max_send_message_size"], &["grpc", "max_send_message_size"]),
    (&["plugins", TTRPC, "address"], &["ttrpc", "address"]),
    (&["plugins", TTRPC, "uid"], &["ttrpc", "uid"]),
    (&["plugins", TTRPC, "gid"], &["ttrpc", "gid"]),
    (&["plugins", TCP, "address"], &["grpc", "tcp_address"]),
    (&["plugins", TCP, "tls_cert"], &["grpc", "tcp_tls_cert"]),
    (&["plugins", TCP, "tls_key"], &["grpc", "tcp_tls_key"]),
    (&["plugins", TCP, "tls_ca"], &["grpc", "tcp_tls_ca"]),
    (&["plugins", TCP, "tls_common_name"], &["grpc", "tcp_tls_common_name"]),
    (&["plugins", METRICS, "address"], &["metrics", "address"]),
    (
        &["plugins", "io.containerd.metrics.v1.grpc-prometheus", "grpc_histogram"],
        &["metrics", "grpc_histogram"],
    ),
    (&["plugins", OTLP, "endpoint"], &["otlp", "endpoint"]),
    (&["plugins", OTLP, "protocol"], &["otlp", "protocol"]),
    (&["plugins", TRACING, "service_name"], &["otlp", "service_name"]),
    (&["plugins", TRACING, "sampling_ratio"], &["otlp", "sampling_ratio"]),
    (&["plugins", DEBUG, "address"], &["debug", "address"]),
    (&["plugins", DEBUG, "uid"], &["debug", "uid"]),
    (&["plugins", DEBUG, "gid"], &["debug", "gid"]),
    (&["plugins", SCHEDULER, "pause_threshold"], &["gc", "pause_threshold"]),
    (&["plugins", SCHEDULER, "deletion_threshold"], &["gc", "deletion_threshold"]),
    (&["plugins", SCHEDULER, "mutation_threshold"], &["gc", "mutation_threshold"]),
    (&["plugins", SCHEDULER, "schedule_delay"], &["gc", "schedule_delay"]),
    (&["plugins", SCHEDULER, "startup_delay"], &["gc", "startup_delay"]),
    (&["plugins", "io.containerd.monitor.container.v1.restart", "interval"], &["restart", "interval"]),
    (&["plugins", "io.containerd.metadata.v1.bolt", "content_sharing_policy"], &["content", "sharing"]),
    (&["plugins", VERIFIERS, "bin_dir"], &["image_verifiers", "bin_dir"]),
    (&["plugins", VERIFIERS, "max_verifiers"], &["image_verifiers", "max_verifiers"]),
    (&["plugins", VERIFIERS, "per_verifier_timeout"], &["image_verifiers", "per_verifier_timeout"]),
    (&["plugins", "io.containerd.cri.v1.images", "registry", "config_path"], &["registry", "config_path"]),
    (&["plugins", TRANSFER, "config_path"], &["registry", "config_path"]),
    (&["plugins", TRANSFER, "max_concurrent_downloads"], &["transfer", "max_concurrent_downloads"]),
    (
        &["plugins", TRANSFER, "max_concurrent_uploaded_layers"],
        &["transfer", "max_concurrent_uploaded_layers"],
    ),
    (&["plugins", "io.containerd.shim.v1.manager", "env"], &["shims", "env"]),
    (&["plugins", OVERLAYFS, "mount_options"], &["snapshots", "mount_options"]),
    (&["timeouts", "io.containerd.timeout.shim.load"], &["shims", "load_timeout"]),
    (&["timeouts", "io.containerd.timeout.shim.cleanup"], &["shims", "cleanup_timeout"]),
    (&["timeouts", "io.containerd.timeout.shim.shutdown"], &["shims", "shutdown_timeout"]),
    (&["timeouts", "io.containerd.timeout.task.state"], &["shims", "state_timeout"]),
    (&["timeouts", "io.containerd.timeout.metrics.shimstats"], &["shims", "stats_timeout"]),
    (&["required_plugins"], &["required_plugins"]),
    (&["disabled_plugins"], &["disabled_plugins"]),
    (&["plugins", "io.containerd.service.v1.diff-service", "default"], &["diff", "default"]),
    (&["proxy_plugins"], &["proxy_plugins"]),
    (&["stream_processors"], &["stream_processors"]),
];

/// Keys of version 4 whose effect is always in place here, with the value (in TOML) that requests it.
const SAME: &[(Path_, &str)] = &[
    (&["version"], "4"),
    (&["plugins", GRPC, "max_recv_message_size"], "0"),
    (&["plugins", GRPC, "max_send_message_size"], "0"),
    (&["plugins", TCP, "max_recv_message_size"], "16777216"),
    (&["plugins", TCP, "max_send_message_size"], "16777216"),
    (&["plugins", "io.containerd.metadata.v1.bolt", "no_sync"], "false"),
    (&["plugins", "io.containerd.monitor.task.v1.cgroups", "no_prometheus"], "false"),
    (&["plugins", "io.containerd.service.v1.diff-service", "sync_fs"], "true"),
    (&["plugins", "io.containerd.service.v1.diff-service", "sync_fs"], "false"),
    (&["plugins", OVERLAYFS, "upperdir_label"], "false"),
    (&["plugins", OVERLAYFS, "slow_chown"], "false"),
    (&["plugins", OVERLAYFS, "slow_chown"], "true"),
    (&["timeouts", "io.containerd.timeout.bolt.open"], "\"0s\""),
];

/// Top-level keys of all versions. Tables are parsed where they are used; other keys cause warnings.
#[derive(Deserialize)]
struct Document {
    version: Option<i64>,
    #[serde(rename = "root")]
    _root: Option<String>,
    #[serde(rename = "state")]
    _state: Option<String>,
    #[serde(rename = "temp")]
    _temp: Option<String>,
    #[serde(rename = "plugin_dir")]
    _plugin_dir: Option<String>,
    #[serde(rename = "oom_score")]
    _oom_score: Option<i64>,
    #[serde(rename = "imports")]
    _imports: Option<Vec<String>>,
    #[serde(rename = "disabled_plugins")]
    _disabled_plugins: Option<Vec<String>>,
    #[serde(rename = "required_plugins")]
    _required_plugins: Option<Vec<String>>,
    #[serde(rename = "grpc")]
    _grpc: Option<Table>,
    #[serde(rename = "ttrpc")]
    _ttrpc: Option<Table>,
    #[serde(rename = "debug")]
    _debug: Option<Table>,
    #[serde(rename = "metrics")]
    _metrics: Option<Table>,
    #[serde(rename = "cgroup")]
    _cgroup: Option<Table>,
    #[serde(rename = "timeouts")]
    _timeouts: Option<Table>,
    #[serde(rename = "plugins")]
    _plugins: Option<Table>,
    #[serde(rename = "proxy_plugins")]
    _proxy_plugins: Option<Table>,
    #[serde(rename = "stream_processors")]
    _stream_processors: Option<Table>,
}

/// Whether a file is containerd's: ours have neither a version nor plugins.
pub(super) fn is_theirs(table: &Table) -> bool {
    table.contains_key("version") || table.contains_key("plugins")
}

/// Migrates a file to version 4. `InvalidArgument`, with the line, for what containerd rejects as well.
pub(super) fn migrated(text: &str, path: &Path) -> Result<Table> {
    let explain = |error: toml::de::Error| suggest::explain(&error, text, path);
    let document: Document = toml::from_str(text).map_err(explain)?;
    let mut table: Table = toml::from_str(text).map_err(explain)?;
    // containerd takes a file without a version for version 1.
    let version = document.version.unwrap_or(1);
    if !(0..=VERSION).contains(&version) {
        return Err(Error::invalid_argument(format!(
            "{}: version = {version}: versions 1 to {VERSION} are known",
            path.display()
        )));
    }
    if version < 2 {
        lengthen_names(&mut table);
    }
    if version < 3 {
        divide_cri(&mut table);
    }
    if version < 4 {
        servers_to_plugins(&mut table);
    }
    table.insert("version".to_owned(), VERSION.into());
    Ok(table)
}

/// Version 1 named plugins by the last part of their name.
fn lengthen_names(table: &mut Table) {
    const NAMES: &[(&str, &str)] = &[
        ("aufs", "io.containerd.snapshotter.v1.aufs"),
        ("bolt", "io.containerd.metadata.v1.bolt"),
        ("btrfs", "io.containerd.snapshotter.v1.btrfs"),
        ("cgroups", "io.containerd.monitor.v1.cgroups"),
        ("cri", "io.containerd.grpc.v1.cri"),
        ("devmapper", "io.containerd.snapshotter.v1.devmapper"),
        ("diff-service", "io.containerd.service.v1.diff-service"),
        ("linux", "io.containerd.runtime.v1.linux"),
        ("native", "io.containerd.snapshotter.v1.native"),
        ("opt", "io.containerd.internal.v1.opt"),
        ("overlayfs", "io.containerd.snapshotter.v1.overlayfs"),
        ("restart", "io.containerd.internal.v1.restart"),
        ("scheduler", SCHEDULER),
        ("task", "io.containerd.runtime.v2.task"),
        ("zfs", "io.containerd.snapshotter.v1.zfs"),
    ];
    let long = |short: &str| NAMES.iter().find(|(name, _)| *name == short).map(|(_, long)| *long);
    for list in ["disabled_plugins", "required_plugins"] {
        for entry in table.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(long) = entry.as_str().and_then(long) {
                *entry = long.into();
            }
        }
    }
    let plugins = plugins(table);
    let short: Vec<String> = plugins.keys().filter(|name| long(name).is_some()).cloned().collect();
    for name in short {
        rename(plugins, &name, long(&name).expect("it was found above"));
    }
}

/// Version 3 divides the CRI plugin and renames two other plugins.
fn divide_cri(table: &mut Table) {
    const CRI: &str = "io.containerd.grpc.v1.cri";
    /// The keys that stayed with the CRI service.
    const OF_SERVICE: [&str; 6] = [
        "disable_tcp_service",
        "enable_tls_streaming",
        "stream_idle_timeout",
        "stream_server_address",
        "stream_server_port",
        "x509_key_pair_streaming",
    ];
    const OF_IMAGES: [&str; 8] = [
        "image_decryption",
        "image_pull_progress_timeout",
        "image_pull_with_sync_fs",
        "max_concurrent_downloads",
        "registry",
        "stats_collect_period",
        "discard_unpacked_layers",
        "disable_snapshot_annotations",
    ];
    let plugins = plugins(table);
    rename(plugins, "io.containerd.internal.v1.restart", "io.containerd.monitor.container.v1.restart");
    rename(plugins, "io.containerd.monitor.v1.cgroups", "io.containerd.monitor.task.v1.cgroups");
    let Some(Value::Table(cri)) = plugins.remove(CRI) else { return };
    let (mut service, mut images, mut runtime) = (Table::new(), Table::new(), Table::new());
    for (key, value) in cri {
        match (key.as_str(), value) {
            ("sandbox_image", image) => {
                images.insert(
                    "pinned_images".to_owned(),
                    Table::from_iter([("sandbox".to_owned(), image)]).into(),
                );
            }
            // Some keys of the runtime section are about images.
            ("containerd", Value::Table(mut containerd)) => {
                for key in ["snapshotter", "disable_snapshot_annotations", "discard_unpacked_layers"] {
                    images.extend(containerd.remove_entry(key));
                }
                runtime.insert(key, containerd.into());
            }
            (name, value) if OF_SERVICE.contains(&name) => drop(service.insert(key, value)),
            (name, value) if OF_IMAGES.contains(&name) => drop(images.insert(key, value)),
            (_, value) => drop(runtime.insert(key, value)),
        }
    }
    for (name, part) in
        [(CRI, service), ("io.containerd.cri.v1.images", images), ("io.containerd.cri.v1.runtime", runtime)]
    {
        if !part.is_empty() {
            merge(plugins, Table::from_iter([(name.to_owned(), part.into())]));
        }
    }
}

/// Version 4 configures the servers as plugins.
fn servers_to_plugins(table: &mut Table) {
    let mut moved = Table::new();
    let mut put = |plugin: &str, key: &str, value: Value| {
        let plugin = moved.entry(plugin).or_insert_with(|| Table::new().into());
        plugin.as_table_mut().expect("made above").insert(key.to_owned(), value);
    };
    for server in ["grpc", "ttrpc", "metrics", "debug"] {
        let Some(Value::Table(keys)) = table.remove(server) else { continue };
        let mut kept = Table::new();
        for (key, value) in keys {
            match (server, key.strip_prefix("tcp_")) {
                ("grpc", Some(rest)) => put(TCP, rest, value),
                ("metrics", _) if key == "grpc_histogram" => {
                    put("io.containerd.metrics.v1.grpc-prometheus", &key, value);
                }
                ("debug", _) if !["address", "uid", "gid"].contains(&key.as_str()) => {
                    kept.insert(key, value);
                }
                _ => put(&format!("io.containerd.server.v1.{server}"), &key, value),
            }
        }
        if !kept.is_empty() {
            table.insert(server.to_owned(), kept.into());
        }
    }
    merge(plugins(table), moved);
}

fn plugins(table: &mut Table) -> &mut Table {
    let plugins = table.entry("plugins").or_insert_with(|| Table::new().into());
    plugins.as_table_mut().expect("the document was read as one with a table there")
}

fn rename(table: &mut Table, from: &str, to: &str) {
    if let Some(value) = table.remove(from) {
        merge(table, Table::from_iter([(to.to_owned(), value)]));
    }
}

/// A containerd file translated to our keys.
pub(super) struct Translated {
    pub(super) ours: Table,
    pub(super) warnings: Vec<String>,
}

/// Translates a document of version 4.
pub(super) fn translate(theirs: &Table, path: &Path) -> Result<Translated> {
    let mut ours = Table::new();
    for (their_key, our_key) in COUNTERPARTS {
        let asks = |value: &&Value| !is_empty(value) && !is_same(their_key, value);
        let Some(value) = find(theirs, their_key).filter(asks) else { continue };
        let single = nested(our_key, spoken(our_key, value));
        // One by one, so that an invalid value is reported under the file's own key.
        if let Err(error) = Raw::deserialize(Value::Table(single.clone())) {
            let key = their_key.join(".");
            return Err(Error::invalid_argument(format!("{}: {key}: {}", path.display(), error.message())));
        }
        merge(&mut ours, single);
    }
    let warnings = Unmatched::of(theirs).warnings(path);
    Ok(Translated { ours, warnings })
}

/// Converts a value to our spelling.
fn spoken(our_key: &[&str], value: &Value) -> Value {
    match (our_key, value.as_str().map(Level::of_logrus)) {
        (["log", "level"], Some(Ok(level))) => String::from(level).into(),
        _ => value.clone(),
    }
}

/// Keys without a counterpart, grouped by the table that the warning names.
#[derive(Default)]
struct Unmatched(Vec<(String, Vec<String>)>);

impl Unmatched {
    fn of(theirs: &Table) -> Unmatched {
        let mut unmatched = Unmatched::default();
        unmatched.look(theirs, &mut Vec::new());
        unmatched
    }

    fn look<'a>(&mut self, table: &'a Table, above: &mut Vec<&'a str>) {
        for (key, value) in table {
            above.push(key);
            match value {
                Value::Table(table) if !table.is_empty() && !is_counterpart(above) => self.look(table, above),
                value if has_effect(above, value) => {}
                _ => self.note(above),
            }
            above.pop();
        }
    }

    fn note(&mut self, path: &[&str]) {
        // One warning per plugin, and one per other top-level table.
        let depth = if path[0] == "plugins" { 2 } else { 1 }.min(path.len() - 1);
        let quoted = |part: &&str| if part.contains('.') { format!("{part:?}") } else { (*part).to_owned() };
        let join = |parts: &[&str]| parts.iter().map(quoted).collect::<Vec<_>>().join(".");
        let (table, key) = (join(&path[..depth]), join(&path[depth..]));
        match self.0.iter_mut().find(|(known, _)| *known == table) {
            Some((_, keys)) => keys.push(key),
            None => self.0.push((table, vec![key])),
        }
    }

    fn warnings(self, path: &Path) -> Vec<String> {
        let warning = |(table, keys): (String, Vec<String>)| {
            let table = if table.is_empty() { String::new() } else { format!(" [{table}]") };
            format!("{}:{table} has no effect here: {}", path.display(), keys.join(", "))
        };
        self.0.into_iter().map(warning).collect()
    }
}

/// Whether a key has an effect here, requests what is always true, or is empty.
fn has_effect(path: &[&str], value: &Value) -> bool {
    match path {
        // Resolved and merged before.
        ["imports"] => return true,
        ["plugins", TRANSFER, "unpack_config"] => {
            // Every snapshotter is unpacked to on request, by our differ.
            let is = |entry: &Value, key: &str, own: &str| {
                entry.get(key).is_none_or(
                    |value| matches!(value.as_str(), Some(text) if text.is_empty() || text == own),
                )
            };
            let is_so = |entry: &Value| is(entry, "snapshotter", "overlayfs") && is(entry, "differ", WALKING);
            return value.as_array().is_some_and(|entries| entries.iter().all(is_so));
        }
        ["plugins", "io.containerd.runtime.v2.task", "platforms"] => {
            let host = format!("linux/{}", types::Platform::host().architecture);
            return value
                .as_array()
                .is_some_and(|list| list.iter().all(|entry| entry.as_str() == Some(&host)));
        }
        _ => {}
    }
    is_empty(value) || is_counterpart(path) || is_same(path, value)
}

fn is_same(path: &[&str], value: &Value) -> bool {
    SAME.iter().any(|(known, text)| *known == path && value.to_string() == *text)
}

fn is_counterpart(path: &[&str]) -> bool {
    COUNTERPARTS.iter().any(|(known, _)| *known == path)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Table(table) => table.is_empty(),
        _ => false,
    }
}

/// Our configuration as a document of version 4.
pub(super) fn of_ours(ours: &Table) -> Table {
    let mut theirs = Table::from_iter([("version".to_owned(), VERSION.into())]);
    for (their_key, our_key) in COUNTERPARTS {
        if let Some(value) = find(ours, our_key) {
            let value = match value {
                // containerd has a string here, where we also accept a list.
                Value::Array(list) if our_key == &["registry", "config_path"] => {
                    list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(":").into()
                }
                value => value.clone(),
            };
            merge(&mut theirs, nested(their_key, value));
        }
    }
    theirs
}

/// The defaults under containerd's name.
pub(super) fn defaults() -> Raw {
    let mut raw = Raw { root: ROOT.into(), state: STATE.into(), ..Raw::default() };
    raw.grpc.address = Some(ADDRESS.into());
    raw
}

fn find<'a>(table: &'a Table, path: &[&str]) -> Option<&'a Value> {
    let (last, tables) = path.split_last()?;
    tables.iter().try_fold(table, |table, key| table.get(*key)?.as_table())?.get(*last)
}

fn nested(path: &[&str], value: Value) -> Table {
    let (last, tables) = path.split_last().expect("a key has a name");
    let innermost = Table::from_iter([((*last).to_owned(), value)]);
    tables.iter().rev().fold(innermost, |inner, key| Table::from_iter([((*key).to_owned(), inner.into())]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(text: &str) -> Result<Translated> {
        let path = Path::new("/etc/containerd/config.toml");
        translate(&migrated(text, path)?, path)
    }

    #[test]
    fn every_version_of_containerds_configuration_translates_the_same() {
        let files = [
            "[grpc]\naddress = \"/a.sock\"\ntcp_address = \"\"\n[debug]\nlevel = \"debug\"\naddress = \"/d.sock\"\n\
             [metrics]\naddress = \"127.0.0.1:1\"\ngrpc_histogram = true\n[plugins.scheduler]\nstartup_delay = \"3s\"\n\
             [plugins.restart]\ninterval = \"5s\"\n[plugins.cri.registry]\nconfig_path = \"/c\"\n",
            "version = 2\n[grpc]\naddress = \"/a.sock\"\n[debug]\nlevel = \"debug\"\naddress = \"/d.sock\"\n\
             [metrics]\naddress = \"127.0.0.1:1\"\ngrpc_histogram = true\n\
             [plugins.\"io.containerd.gc.v1.scheduler\"]\nstartup_delay = \"3s\"\n\
             [plugins.\"io.containerd.internal.v1.restart\"]\ninterval = \"5s\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/c\"\n",
            "version = 3\n[grpc]\naddress = \"/a.sock\"\n[debug]\nlevel = \"debug\"\naddress = \"/d.sock\"\n\
             [metrics]\naddress = \"127.0.0.1:1\"\ngrpc_histogram = true\n\
             [plugins.\"io.containerd.gc.v1.scheduler\"]\nstartup_delay = \"3s\"\n\
             [plugins.\"io.containerd.monitor.container.v1.restart\"]\ninterval = \"5s\"\n\
             [plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/c\"\n",
            "version = 4\n[debug]\nlevel = \"debug\"\n[plugins.\"io.containerd.server.v1.grpc\"]\naddress = \"/a.sock\"\n\
             [plugins.\"io.containerd.server.v1.debug\"]\naddress = \"/d.sock\"\n\
             [plugins.\"io.containerd.server.v1.metrics\"]\naddress = \"127.0.0.1:1\"\n\
             [plugins.\"io.containerd.metrics.v1.grpc-prometheus\"]\ngrpc_histogram = true\n\
             [plugins.\"io.containerd.gc.v1.scheduler\"]\nstartup_delay = \"3s\"\n\
             [plugins.\"io.containerd.monitor.container.v1.restart\"]\ninterval = \"5s\"\n\
             [plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/c\"\n",
        ];
        let path = Path::new("x");
        let newest = migrated(files[3], path).unwrap();
        for file in files {
            let migrated = migrated(file, path).unwrap();
            let without_empty = |mut table: Table| {
                if let Some(plugins) = table.get_mut("plugins").and_then(Value::as_table_mut) {
                    plugins.remove(TCP);
                }
                table
            };
            assert_eq!(without_empty(migrated), newest, "{file}");
            let Translated { ours, warnings } = translated(file).unwrap();
            assert!(warnings.is_empty(), "{warnings:?}");
            let raw = Raw::deserialize(Value::Table(ours)).unwrap();
            assert_eq!(raw.grpc.address.as_deref(), Some(Path::new("/a.sock")));
            assert_eq!((raw.gc.startup_delay.as_str(), raw.restart.interval.as_str()), ("3s", "5s"));
            assert_eq!((raw.metrics.address.as_str(), raw.metrics.grpc_histogram), ("127.0.0.1:1", true));
        }
    }

    #[test]
    fn containerd_keys_without_counterpart_are_warned_of_by_table() {
        let check = |text: &str, expected: &[&str]| {
            let warnings = translated(text).unwrap().warnings;
            let expected: Vec<String> =
                expected.iter().map(|words| format!("/etc/containerd/config.toml:{words}")).collect();
            assert_eq!(warnings, expected, "{text}");
        };
        check("version = 2\ntemp = \"\"\n[cgroup]\npath = \"\"\n", &[]);
        check("version = 2\n[cgroup]\npath = \"/x\"\n", &[]);
        check("version = 2\ntemp = \"/t\"\n", &[" has no effect here: temp"]);
        check(
            "version = 3\noom_scor = 1\n[grcp]\naddress = \"/a\"\n",
            &[" [grcp] has no effect here: address", " has no effect here: oom_scor"],
        );
        check("version = 2\n[proxy_plugins.x]\ntype = \"snapshot\"\naddress = \"/x.sock\"", &[]);
        check("version = 2\ndisabled_plugins = [\"cri\"]", &[]);
        check(
            "version = 2\n[plugins.\"io.containerd.metadata.v1.bolt\"]\ncontent_sharing_policy = \"isolated\"",
            &[],
        );
        check("version = 2\ndisabled_plugins = [\"io.containerd.snapshotter.v1.zfs\"]", &[]);
        check("version = 1\ndisabled_plugins = [\"zfs\", \"linux\"]", &[]);
        let unpack = "version = 3\n[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n\
                      platform = \"linux/amd64\"\nsnapshotter = \"overlayfs\"\n";
        check(unpack, &[]);
        check(
            &format!("{unpack}differ = \"other\"\n"),
            &[" [plugins.\"io.containerd.transfer.v1.local\"] has no effect here: unpack_config"],
        );
        check(
            "version = 3\n[plugins.\"io.containerd.cri.v1.runtime\"]\nenable_selinux = true\n\
             [plugins.\"io.containerd.cri.v1.runtime\".cni]\nmax_conf_num = 1\n\
             [plugins.\"io.containerd.gc.v1.scheduler\"]\npause_treshold = 0.1",
            &[
                " [plugins.\"io.containerd.cri.v1.runtime\"] has no effect here: cni.max_conf_num, enable_selinux",
                " [plugins.\"io.containerd.gc.v1.scheduler\"] has no effect here: pause_treshold",
            ],
        );
    }

    #[test]
    fn limits_are_taken_over_unless_they_ask_for_what_is_so() {
        let text = r#"
            version = 2
            [grpc]
            max_recv_message_size = 1000
            max_send_message_size = 0
            [ttrpc]
            address = "/x.sock"
            [timeouts]
            "io.containerd.timeout.shim.load" = "1s"
            "io.containerd.timeout.shim.cleanup" = "2s"
            "io.containerd.timeout.shim.shutdown" = "3m"
            "io.containerd.timeout.task.state" = "4ms"
            "io.containerd.timeout.metrics.shimstats" = "0s"
            [plugins."io.containerd.transfer.v1.local"]
            max_concurrent_downloads = 7
            max_concurrent_uploaded_layers = 0
        "#;
        let Translated { ours, warnings } = translated(text).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        let raw = Raw::deserialize(Value::Table(ours)).unwrap();
        assert_eq!((raw.grpc.max_recv_message_size, raw.grpc.max_send_message_size), (1000, 16 << 20));
        assert_eq!(raw.ttrpc.address.as_deref(), Some(Path::new("/x.sock")));
        let shims = &raw.shims;
        let limits =
            [&shims.load_timeout, &shims.cleanup_timeout, &shims.shutdown_timeout, &shims.state_timeout];
        assert_eq!(limits, ["1s", "2s", "3m", "4ms"]);
        assert_eq!(
            (raw.transfer.max_concurrent_downloads, raw.transfer.max_concurrent_uploaded_layers),
            (7, 0)
        );
        let config = raw.check().unwrap();
        assert!(config.shim_limits.stats > config.shim_limits.shutdown, "0 is no limit");
        assert_eq!(config.at_once.uploads.get(), transfer::layers_at_once());
    }

    #[test]
    fn levels_of_the_log_are_in_the_words_of_logrus() {
        for (word, level) in [
            ("trace", "trace"),
            ("Debug", "debug"),
            ("INFO", "info"),
            ("warn", "warn"),
            ("warning", "warn"),
            ("WARNING", "warn"),
            ("error", "error"),
            ("fatal", "error"),
            ("panic", "error"),
        ] {
            let file = translated(&format!("version = 2\n[debug]\nlevel = {word:?}"));
            let ours = file.map(|file| find(&file.ours, &["log", "level"]).cloned());
            assert_eq!(ours.ok(), Some(Some(level.into())), "{word}");
        }
    }

    /// The file that `containerd config default` of 2.x writes causes one warning for each unsupported part, and none
    /// for what is always true.
    #[test]
    fn the_default_file_of_containerd_2_has_these_keys_without_effect() {
        let file = r#"
            version = 3
            root = "/var/lib/containerd"
            state = "/run/containerd"
            temp = ""
            disabled_plugins = []
            required_plugins = []
            oom_score = 0
            imports = []
            [grpc]
            address = "/run/containerd/containerd.sock"
            tcp_address = ""
            tcp_tls_ca = ""
            tcp_tls_cert = ""
            tcp_tls_key = ""
            uid = 0
            gid = 0
            max_recv_message_size = 16777216
            max_send_message_size = 16777216
            tcp_tls_common_name = ""
            [ttrpc]
            address = ""
            uid = 0
            gid = 0
            [debug]
            address = ""
            uid = 0
            gid = 0
            level = ""
            format = ""
            [metrics]
            address = ""
            grpc_histogram = false
            [plugins."io.containerd.cri.v1.images"]
            snapshotter = "overlayfs"
            max_concurrent_downloads = 3
            pinned_images = { sandbox = "registry.k8s.io/pause:3.10" }
            registry = { config_path = "" }
            [plugins."io.containerd.cri.v1.runtime"]
            enable_selinux = false
            containerd = { default_runtime_name = "runc", ignore_blockio_not_enabled_errors = false }
            [plugins."io.containerd.gc.v1.scheduler"]
            pause_threshold = 0.02
            deletion_threshold = 0
            mutation_threshold = 100
            schedule_delay = "0s"
            startup_delay = "100ms"
            [plugins."io.containerd.image-verifier.v1.bindir"]
            bin_dir = "/opt/containerd/image-verifier/bin"
            max_verifiers = 10
            per_verifier_timeout = "10s"
            [plugins."io.containerd.internal.v1.opt"]
            path = "/opt/containerd"
            [plugins."io.containerd.internal.v1.tracing"]
            [plugins."io.containerd.metadata.v1.bolt"]
            content_sharing_policy = "shared"
            no_sync = false
            [plugins."io.containerd.monitor.container.v1.restart"]
            interval = "10s"
            [plugins."io.containerd.monitor.task.v1.cgroups"]
            no_prometheus = false
            [plugins."io.containerd.nri.v1.nri"]
            disable = false
            socket_path = "/var/run/nri/nri.sock"
            [plugins."io.containerd.runtime.v2.task"]
            platforms = ["linux/HOST"]
            [plugins."io.containerd.service.v1.diff-service"]
            default = ["walking"]
            sync_fs = false
            [plugins."io.containerd.service.v1.tasks-service"]
            blockio_config_file = ""
            rdt_config_file = ""
            [plugins."io.containerd.shim.v1.manager"]
            env = []
            [plugins."io.containerd.snapshotter.v1.btrfs"]
            root_path = ""
            [plugins."io.containerd.snapshotter.v1.native"]
            root_path = ""
            [plugins."io.containerd.snapshotter.v1.overlayfs"]
            root_path = ""
            upperdir_label = false
            slow_chown = false
            mount_options = []
            [plugins."io.containerd.tracing.processor.v1.otlp"]
            [plugins."io.containerd.transfer.v1.local"]
            max_concurrent_downloads = 3
            concurrent_layer_fetch_buffer = 0
            max_concurrent_uploaded_layers = 3
            check_platform_supported = false
            config_path = ""
            [cgroup]
            path = ""
            [timeouts]
            "io.containerd.timeout.bolt.open" = "0s"
            "io.containerd.timeout.cri.defercleanup" = "1m0s"
            "io.containerd.timeout.metrics.shimstats" = "2s"
            "io.containerd.timeout.shim.cleanup" = "5s"
            "io.containerd.timeout.shim.load" = "5s"
            "io.containerd.timeout.shim.shutdown" = "3s"
            "io.containerd.timeout.task.state" = "2s"
            [stream_processors."io.containerd.ocicrypt.decoder.v1.tar"]
            accepts = ["application/vnd.oci.image.layer.v1.tar+encrypted"]
            returns = "application/vnd.oci.image.layer.v1.tar"
            path = "ctd-decoder"
            args = ["--decryption-keys-path", "/etc/containerd/ocicrypt/keys"]
            env = ["OCICRYPT_KEYPROVIDER_CONFIG=/etc/containerd/ocicrypt/ocicrypt_keyprovider.conf"]
        "#;
        let file = file.replace("HOST", &types::Platform::host().architecture);
        let mut warnings = translated(&file).unwrap().warnings;
        warnings.sort();
        let expected = [
            " [plugins.\"io.containerd.cri.v1.images\"] has no effect here: max_concurrent_downloads, \
             pinned_images.sandbox, snapshotter",
            " [plugins.\"io.containerd.cri.v1.runtime\"] has no effect here: containerd.default_runtime_name, \
             containerd.ignore_blockio_not_enabled_errors, enable_selinux",
            " [plugins.\"io.containerd.internal.v1.opt\"] has no effect here: path",
            " [plugins.\"io.containerd.nri.v1.nri\"] has no effect here: disable, socket_path",
            " [plugins.\"io.containerd.transfer.v1.local\"] has no effect here: check_platform_supported, \
             concurrent_layer_fetch_buffer",
            " [timeouts] has no effect here: \"io.containerd.timeout.cri.defercleanup\"",
        ];
        let expected = expected.map(|words| format!("/etc/containerd/config.toml:{words}"));
        assert_eq!(warnings, expected);
    }

    #[test]
    fn containerd_configuration_errors_name_the_files_own_key() {
        let check = |text: &str, words: &[&str]| {
            let message = translated(text).err().expect("an error").chain();
            for word in words {
                assert!(message.contains(word), "{message:?} has no {word:?}");
            }
        };
        check("version = 2\noom_score = \"x\"", &["config.toml:2", "expected i64"]);
        check("version = 5", &["version = 5", "1 to 4"]);
        check(
            "version = 2\n[grpc]\nuid = \"x\"",
            &["plugins.io.containerd.server.v1.grpc.uid", "expected u32"],
        );
        check("version = 2\n[debug]\nlevel = \"loud\"", &["debug.level", "trace, debug, info"]);
        check(
            "version = 2\n[proxy_plugins.x]\ntype = \"snap\"\naddress = \"/x\"",
            &["proxy_plugins", "snapshot"],
        );
        check("version = 2\nplugins = 3", &["config.toml:2"]);
    }

    #[test]
    fn the_defaults_are_a_file_of_containerds_that_means_the_same() {
        let ours = Table::try_from(defaults()).unwrap();
        let text = toml::to_string(&of_ours(&ours)).unwrap();
        let Translated { ours: again, warnings } = translated(&text).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        let mut raw = Raw::deserialize(Value::Table(again)).unwrap();
        // A list and its colon-separated form are equivalent.
        raw.registry = Raw::default().registry;
        assert_eq!(raw, defaults());
    }
}
