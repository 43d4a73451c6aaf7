//! External programs: proxy plugins and stream processors.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use types::Result;

use super::raw::{self, Raw};
use super::{ProxyKind, absolute, interval, invalid, socket};

/// Built-in snapshotters, differs and sandbox controllers, whose names no plugin may have.
const BUILT_IN: &[(ProxyKind, &[&str])] = &[
    (ProxyKind::Snapshot, &[AUTO, "overlayfs", "native", "erofs"]),
    (ProxyKind::Content, &[LOCAL_STORE]),
    (ProxyKind::Diff, &[WALKING]),
    (ProxyKind::Sandbox, &["shim"]),
];

/// Chooses the snapshotter that suits the kernel and the root's file system.
pub(crate) const AUTO: &str = "auto";
/// The built-in content store.
pub(crate) const LOCAL_STORE: &str = "content";
/// The built-in differ.
pub(crate) const WALKING: &str = "walking";

/// A program that serves one of containerd's services on a socket.
#[derive(Clone, Debug, PartialEq)]
pub struct ProxyPlugin {
    pub name: String,
    pub kind: ProxyKind,
    pub address: PathBuf,
    /// The platform it supports, such as `linux/amd64`; empty for the host's.
    pub platform: String,
    /// The values that it exports to clients.
    pub exports: BTreeMap<String, String>,
    pub capabilities: Vec<String>,
    /// Time limit of short calls, such as lookups.
    pub timeout: Duration,
}

/// A program that converts a layer of one media type to another.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamProcessor {
    pub id: String,
    pub accepts: Vec<String>,
    pub returns: String,
    pub path: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<String>,
}

/// All plugins, and which are used by default.
#[derive(Clone, Debug, PartialEq)]
pub struct Plugins {
    pub proxies: Vec<ProxyPlugin>,
    pub processors: Vec<StreamProcessor>,
    /// The name of the content store.
    pub content: String,
    /// The names of the differs, in the order in which they are tried.
    pub differs: Vec<String>,
    /// The default snapshotter, or [`AUTO`].
    pub snapshotter: String,
}

pub(super) fn check(raw: &mut Raw) -> Result<Plugins> {
    let proxies =
        std::mem::take(&mut raw.proxy_plugins).into_iter().map(proxy).collect::<Result<Vec<_>>>()?;
    let processors = std::mem::take(&mut raw.stream_processors).into_iter().map(processor);
    let plugins = Plugins {
        processors: processors.collect::<Result<Vec<_>>>()?,
        content: std::mem::take(&mut raw.content.store),
        differs: std::mem::take(&mut raw.diff.default),
        snapshotter: std::mem::take(&mut raw.snapshotter),
        proxies,
    };
    plugins.known("snapshotter", ProxyKind::Snapshot, &plugins.snapshotter)?;
    plugins.known("content.store", ProxyKind::Content, &plugins.content)?;
    for differ in &plugins.differs {
        plugins.known("diff.default", ProxyKind::Diff, differ)?;
    }
    if plugins.differs.is_empty() {
        return Err(invalid("diff.default", "names no differ; try [\"walking\"]"));
    }
    Ok(plugins)
}

impl Plugins {
    /// The proxy plugins of one type.
    pub(crate) fn of(&self, kind: ProxyKind) -> impl Iterator<Item = &ProxyPlugin> {
        self.proxies.iter().filter(move |proxy| proxy.kind == kind)
    }

    fn known(&self, key: &str, kind: ProxyKind, name: &str) -> Result<()> {
        let proxies = self.of(kind).map(|proxy| proxy.name.as_str());
        let known: Vec<&str> = built_in(kind).iter().copied().chain(proxies).collect();
        if known.contains(&name) {
            return Ok(());
        }
        Err(invalid(key, &format!("{name:?} is not one of {}", known.join(", "))))
    }
}

fn built_in(kind: ProxyKind) -> &'static [&'static str] {
    BUILT_IN.iter().find(|(known, _)| *known == kind).map_or(&[], |(_, names)| names)
}

fn proxy((name, raw): (String, raw::ProxyPlugin)) -> Result<ProxyPlugin> {
    let key = |key: &str| format!("proxy_plugins.{name}.{key}");
    if name.is_empty() || name.contains(|letter: char| letter == '/' || letter.is_whitespace()) {
        return Err(invalid(&format!("proxy_plugins.{name:?}"), "a name has no spaces and no slashes"));
    }
    if built_in(raw.r#type).contains(&name.as_str()) {
        let kind = String::from(raw.r#type);
        return Err(invalid(
            &format!("proxy_plugins.{name}"),
            &format!("there is a {kind} of that name here"),
        ));
    }
    Ok(ProxyPlugin {
        kind: raw.r#type,
        address: socket(&key("address"), &raw.address)?,
        platform: raw.platform,
        exports: raw.exports,
        capabilities: raw.capabilities,
        timeout: interval(&key("timeout"), &raw.timeout)?,
        name,
    })
}

fn processor((id, raw): (String, raw::StreamProcessor)) -> Result<StreamProcessor> {
    let key = |key: &str| format!("stream_processors.{id:?}.{key}");
    if raw.accepts.is_empty() {
        return Err(invalid(&key("accepts"), "names no media type"));
    }
    if raw.returns.is_empty() || raw.accepts.contains(&raw.returns) {
        return Err(invalid(&key("returns"), "must be a media type that the processor does not accept"));
    }
    // As in containerd, a bare program name is looked up in `PATH`.
    let is_name = !raw.path.as_os_str().is_empty() && raw.path.components().count() == 1;
    let path = if is_name && raw.path.is_relative() { raw.path } else { absolute(&key("path"), &raw.path)? };
    Ok(StreamProcessor { id, accepts: raw.accepts, returns: raw.returns, path, args: raw.args, env: raw.env })
}
