//! Validates single values: paths, durations, sizes, addresses. An error names the key.

use std::net::{SocketAddr, ToSocketAddrs};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::policy::Verifiers;
use transfer::AtOnce;
use types::{Error, Result};

use super::{DebugSocket, raw};

/// Longest path of our socket, in bytes: `sun_path` less a suffix such as `.ttrpc`.
const SOCKET_PATH_LEN_MAX: usize = 100;

pub(super) fn invalid(key: &str, why: &str) -> Error {
    Error::invalid_argument(format!("configuration: {key}: {why}"))
}

pub(super) fn absolute(key: &str, path: &Path) -> Result<PathBuf> {
    if path.is_absolute() && path.parent().is_some() {
        // `components` drops doubled and trailing slashes, so that paths can be compared.
        Ok(path.components().collect())
    } else {
        Err(invalid(key, &format!("{path:?} is not an absolute path below /")))
    }
}

/// A list of directories: in the format of `PATH`, or as a TOML list.
pub(super) fn directories(list: &raw::Paths) -> Result<Vec<PathBuf>> {
    let paths: Vec<&str> = match list {
        raw::Paths::Joined(text) => text.split(':').filter(|part| !part.is_empty()).collect(),
        raw::Paths::List(list) => list.iter().map(String::as_str).collect(),
    };
    paths.into_iter().map(|path| absolute("registry.config_path", Path::new(path))).collect()
}

pub(crate) fn strip_scheme(path: &Path) -> PathBuf {
    path.to_str().and_then(|text| text.strip_prefix("unix://")).map_or_else(|| path.to_owned(), PathBuf::from)
}

pub(super) fn socket(key: &str, path: &Path) -> Result<PathBuf> {
    let path = absolute(key, &strip_scheme(path))?;
    if path.as_os_str().len() > SOCKET_PATH_LEN_MAX {
        return Err(invalid(key, &format!("longer than {SOCKET_PATH_LEN_MAX} bytes")));
    }
    Ok(path)
}

/// The path with a suffix appended to its last name.
pub(super) fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// Validates a limit of message lengths. Above 1 GiB, each call could use too much memory.
pub(super) fn message_limit(key: &str, bytes: u32) -> Result<usize> {
    const GIB: u32 = 1 << 30;
    match bytes {
        1..=GIB => Ok(bytes as usize),
        _ => Err(invalid(key, &format!("must be from 1 to {GIB}"))),
    }
}

/// 0 means our own maximum; in containerd, 0 means no limit.
pub(super) fn at_once(raw: &raw::Transfer) -> AtOnce {
    let all = NonZeroUsize::new(transfer::layers_at_once()).unwrap_or(NonZeroUsize::MIN);
    let count = |count: u32| usize::try_from(count).ok().and_then(NonZeroUsize::new).unwrap_or(all);
    AtOnce {
        downloads: count(raw.max_concurrent_downloads),
        uploads: count(raw.max_concurrent_uploaded_layers),
    }
}

/// A timeout; 0 means no limit, as in containerd, represented by ten years.
pub(super) fn limit(key: &str, text: &str) -> Result<Duration> {
    const NONE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
    Ok(Some(duration(key, text)?).filter(|limit| !limit.is_zero()).unwrap_or(NONE))
}

pub(super) fn environment(key: &str, list: &[String]) -> Result<Vec<(String, String)>> {
    let pair = |entry: &String| match entry.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(invalid(key, &format!("{entry:?} is not NAME=VALUE"))),
    };
    list.iter().map(pair).collect()
}

/// Refuses options that set an overlay's directories, which the snapshotter does.
pub(super) fn mount_options(options: Vec<String>) -> Result<Vec<String>> {
    let is_place = |option: &String| {
        let name = option.split_once('=').map_or(option.as_str(), |(name, _)| name).trim_end_matches('+');
        matches!(name, "" | "lowerdir" | "upperdir" | "workdir" | "datadir")
    };
    match options.iter().find(|option| is_place(option)) {
        Some(bad) => {
            Err(invalid("snapshots.mount_options", &format!("{bad:?} is for the snapshotter to say")))
        }
        None => Ok(options),
    }
}

pub(super) fn debug_socket(raw: raw::Debug) -> Result<Option<DebugSocket>> {
    let raw::Debug { address, uid, gid } = raw;
    let Some(address) = address.filter(|path| !path.as_os_str().is_empty()) else { return Ok(None) };
    Ok(Some(DebugSocket { path: socket("debug.address", &address)?, uid, gid }))
}

/// `HOST:PORT`, or `:PORT` for all addresses.
pub(super) fn metrics_address(text: &str) -> Result<Option<SocketAddr>> {
    if text.is_empty() {
        return Ok(None);
    }
    let full = if text.starts_with(':') { format!("0.0.0.0{text}") } else { text.to_owned() };
    let found = full.to_socket_addrs().ok().and_then(|mut found| found.next());
    match found {
        Some(address) => Ok(Some(address)),
        None => Err(invalid("metrics.address", &format!("{text:?} is no address such as 127.0.0.1:1338"))),
    }
}

pub(super) fn oom_score(score: i32) -> Result<i32> {
    match score {
        -1000..=1000 => Ok(score),
        _ => Err(invalid("oom_score", "must be from -1000 to 1000")),
    }
}

/// A path relative to the cgroup root, with or without a leading slash. Empty means none, as in containerd.
pub(super) fn cgroup(path: Option<String>) -> Result<Option<String>> {
    let Some(path) = path.filter(|path| !path.is_empty()) else { return Ok(None) };
    let is_plain = |name: &str| !matches!(name, "" | "." | "..");
    let names = path.strip_prefix('/').unwrap_or(&path);
    if names.split('/').all(is_plain) {
        return Ok(Some(format!("/{names}")));
    }
    Err(invalid("cgroup", &format!("{path:?} is no path from the root of cgroups such as /system/hoist")))
}

pub(super) fn interval(key: &str, text: &str) -> Result<Duration> {
    match duration(key, text)? {
        Duration::ZERO => Err(invalid(key, "must be above 0")),
        interval => Ok(interval),
    }
}

pub(super) fn mode(text: &str) -> Result<u32> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| invalid("grpc.mode", &format!("{text:?} is no mode such as \"0660\"")))
}

pub(super) fn cache(mib: u32) -> Result<usize> {
    match mib {
        1..=1024 => Ok(mib as usize * 1024 * 1024),
        _ => Err(invalid("metadata.cache_mib", "must be from 1 to 1024")),
    }
}

pub(super) fn pause_threshold(share: f64) -> Result<f64> {
    if share > 0.0 && share <= 0.5 {
        Ok(share)
    } else {
        Err(invalid("gc.pause_threshold", "must be above 0 and at most 0.5"))
    }
}

pub(super) fn verifiers(raw: raw::ImageVerifiers) -> Result<Option<Verifiers>> {
    if raw.bin_dir.as_os_str().is_empty() {
        return Ok(None);
    }
    // A negative number means no limit, as in containerd.
    let count_max = usize::try_from(raw.max_verifiers).ok();
    let timeout = duration("image_verifiers.per_verifier_timeout", &raw.per_verifier_timeout)?;
    Ok(Some(Verifiers { directory: absolute("image_verifiers.bin_dir", &raw.bin_dir)?, count_max, timeout }))
}

/// Parses a duration in Go's syntax.
pub(super) fn duration(key: &str, text: &str) -> Result<Duration> {
    let bad = || invalid(key, &format!("{text:?} is no duration such as 100ms, 2s, 1m or 3h"));
    stdx::duration(text).ok_or_else(bad)
}
