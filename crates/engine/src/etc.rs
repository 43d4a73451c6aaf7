//! The files in a container's `/etc` that no image can contain: hostname, hosts and resolv.conf.
//!
//! ```text
//! ROOT/containers/NAMESPACE/ID/{hosts,hostname,resolv.conf}    bind mounted over the files of the same names
//! ROOT/ground/etc/{hosts,hostname,resolv.conf}                 empty: mount points for images that have none
//! ```
//!
//! A container may write to its files, so they are on disk, where they cannot exhaust the host's memory. The host's
//! resolvers may change while a container does not run, for example with another network: its `resolv.conf` is updated
//! when it starts, unless it was changed by other than us.
//!
//! The ground is the lowest layer of each container's root ([`linux::tree_mounts::grounded`]) and never written to.
//! Without it, the three files and a copy of the image's `/etc` would be created in the container's own layer: they
//! would show up in `diff` and `commit`, and creating four files on disk costs a short-lived container more than all of
//! its mounts.
//!
//! It is on the same file system as the snapshots: with layers of two file systems, overlayfs would report different
//! devices for the directories and files of one tree.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use api::engine::{Create, Dns};
use rustix::fs::OFlags;
use stdx::{Durable, replace};
use types::{Context, Digest, Result};

use crate::networks::NetworkMode;
use crate::spec::HOST_GATEWAY;

const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

const RESOLV_CONF: &str = "resolv.conf";

/// Longest `resolv.conf` that may be ours, in bytes.
const RESOLV_CONF_LEN_MAX: u64 = 64 << 10;

/// The files' names in `/etc`.
pub(crate) const NAMES: [&str; 3] = ["hosts", "hostname", RESOLV_CONF];

/// The upstream servers of systemd-resolved. `/etc/resolv.conf` then has only its stub resolver, 127.0.0.53.
const BEHIND_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// Writes the files of a container that has no network yet.
pub(crate) fn write(files: &Path, hostname: &str, create: &Create, resolv_conf: &str) -> Result<()> {
    NAMES.into_iter().try_for_each(|name| write_named(name, files, hostname, create, resolv_conf))
}

/// Writes files that are missing or empty, which are not synced when a container is created: after a power cut its record
/// may be there without them.
pub(crate) fn write_lost(files: &Path, hostname: &str, create: &Create, resolv_conf: &str) -> Result<()> {
    let is_lost = |name: &&str| match fs::symlink_metadata(files.join(name)) {
        Ok(file) => file.is_file() && file.len() == 0,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    let mut lost = NAMES.into_iter().filter(is_lost).peekable();
    if lost.peek().is_some() {
        fs::create_dir_all(files).context(|| format!("create {}", files.display()))?;
    }
    lost.try_for_each(|name| write_named(name, files, hostname, create, resolv_conf))
}

fn write_named(name: &str, files: &Path, hostname: &str, create: &Create, resolv_conf: &str) -> Result<()> {
    match (name, NetworkMode::of(create)) {
        ("hosts", NetworkMode::Host) => write_hosts_of_host(files, create),
        ("hosts", _) => write_hosts(files, "127.0.1.1", hostname, create, "127.0.0.1"),
        (RESOLV_CONF, _) => write_one(files, RESOLV_CONF, resolv_conf),
        _ => write_one(files, name, &format!("{hostname}\n")),
    }
}

/// The current contents for a container's `resolv.conf`.
pub(crate) fn resolv_conf(create: &Create) -> String {
    let host = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    // In the host's network, a container can reach the host's own resolvers.
    let text = match NetworkMode::of(create) {
        NetworkMode::Host => host,
        _ => reachable(&host, || fs::read_to_string(BEHIND_RESOLVED).unwrap_or_default()),
    };
    with_own(&text, &create.extras.dns)
}

/// The container's own DNS options replace the host's.
fn with_own(text: &str, own: &Dns) -> String {
    let is_replaced = |line: &&str| match line.split_whitespace().next() {
        Some("nameserver") => !own.servers.is_empty(),
        Some("search" | "domain") => !own.search.is_empty(),
        Some("options") => !own.options.is_empty(),
        _ => false,
    };
    let kept = text.lines().filter(|line| !is_replaced(line)).map(str::to_owned);
    let servers = own.servers.iter().map(|server| format!("nameserver {server}"));
    let listed =
        |key: &str, words: &[String]| (!words.is_empty()).then(|| format!("{key} {}", words.join(" ")));
    let search: Vec<String> = own.search.iter().filter(|word| *word != ".").cloned().collect();
    let lists = listed("search", &search).into_iter().chain(listed("options", &own.options));
    kept.chain(servers).chain(lists).map(|line| format!("{line}\n")).collect()
}

/// Updates a container's `resolv.conf`, unless it no longer has the digest `written` of what we wrote last. Returns
/// whether a new digest must be recorded.
pub(crate) fn renew_resolv_conf(files: &Path, written: &str, text: &str) -> Result<bool> {
    let path = files.join(RESOLV_CONF);
    let Some(before) = read_written(&path).context(|| format!("read {}", path.display()))? else {
        return Ok(false);
    };
    if before == text.as_bytes() {
        // The digest may differ nevertheless: a daemon may have died after writing the file and before recording the
        // digest.
        return Ok(digest(&before) != written);
    }
    if digest(&before) != written {
        return Ok(false);
    }
    write_one(files, RESOLV_CONF, text).map(|()| true)
}

/// The contents of a file that may be ours; `None` if it is too long or not a regular file, as the container may change
/// it.
fn read_written(path: &Path) -> io::Result<Option<Vec<u8>>> {
    // Non-blocking, because the path may be a FIFO.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = fs::File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    stdx::read_at_most(file, RESOLV_CONF_LEN_MAX)
}

/// The digest by which we recognize a text that we wrote.
pub(crate) fn digest(text: &[u8]) -> String {
    Digest::of(text).to_string()
}

pub(crate) fn names_resolver(text: &str) -> bool {
    text.lines().any(is_resolver)
}

fn is_resolver(line: &str) -> bool {
    line.split_whitespace().next() == Some("nameserver")
}

/// The lines of the host's `resolv.conf` that are useful on the bridge, which reaches neither the host's loopback nor
/// IPv6. If no resolver is left, those of the file behind systemd-resolved's stub.
fn reachable(host: &str, behind: impl FnOnce() -> String) -> String {
    let is_reached = |line: &&str| {
        let address = line.split_whitespace().nth(1).and_then(|text| text.parse::<Ipv4Addr>().ok());
        address.is_some_and(|address| !address.is_loopback())
    };
    let of = |text: &str| -> String {
        let kept = text.lines().filter(|line| !is_resolver(line) || is_reached(line));
        kept.map(|line| format!("{line}\n")).collect()
    };
    let text = of(host);
    if names_resolver(&text) {
        return text;
    }
    let behind = of(&behind());
    if names_resolver(&behind) { behind } else { text }
}

/// Writes the hosts file: the container's own address, and the requested hosts. `gateway` is the host's address.
pub(crate) fn write_hosts(
    files: &Path,
    address: &str,
    hostname: &str,
    create: &Create,
    gateway: &str,
) -> Result<()> {
    let names = match create.extras.domainname.as_str() {
        "" => hostname.to_owned(),
        domain => format!("{hostname}.{domain} {hostname}"),
    };
    let mut text = format!("{HOSTS}{address}\t{names}\n");
    add_hosts(&mut text, &create.extras.hosts, gateway);
    write_one(files, "hosts", &text)
}

/// Writes the hosts file of a container in the host's network: the host's own, and the requested hosts.
pub(crate) fn write_hosts_of_host(files: &Path, create: &Create) -> Result<()> {
    let mut text = fs::read_to_string("/etc/hosts").unwrap_or_else(|_| HOSTS.to_owned());
    if !text.ends_with('\n') {
        text.push('\n');
    }
    add_hosts(&mut text, &create.extras.hosts, "127.0.0.1");
    write_one(files, "hosts", &text)
}

fn add_hosts(text: &mut String, others: &[(String, String)], gateway: &str) {
    for (name, address) in others {
        let address = if address == HOST_GATEWAY { gateway } else { address };
        text.push_str(&format!("{address}\t{name}\n"));
    }
}

/// Atomic, because a partial file would be taken for one that others have changed. Not durable: the container does not
/// run, and after a power cut the old contents are fine.
fn write_one(files: &Path, name: &str, text: &str) -> Result<()> {
    let path = files.join(name);
    replace(&path, text.as_bytes(), 0o644, Durable::No).context(|| format!("write {}", path.display()))
}

/// Creates the ground of all containers, if it does not exist, and returns its path.
pub(crate) fn lay_ground(root: &Path) -> Result<PathBuf> {
    let ground = root.join("ground");
    let etc = ground.join("etc");
    fs::create_dir_all(&etc).context(|| format!("create {}", etc.display()))?;
    for name in NAMES {
        let path = etc.join(name);
        // Not truncated: running containers may have it mounted.
        let made = fs::File::options().write(true).create(true).truncate(false).open(&path);
        made.context(|| format!("create {}", path.display()))?;
    }
    for directory in [&ground, &etc] {
        // The usual mode, independent of the daemon's umask.
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
            .context(|| format!("set the mode of {}", directory.display()))?;
    }
    Ok(ground)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_that_a_container_cannot_reach_are_left_out() {
        let stub = "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch example.org\n";
        let behind = || "nameserver fe80::1%eth0\nnameserver 192.0.2.53\nsearch example.org\n".to_owned();
        assert_eq!(reachable(stub, behind), "nameserver 192.0.2.53\nsearch example.org\n");
        let without = || "nameserver ::1\n".to_owned();
        assert_eq!(reachable(stub, without), "options edns0 trust-ad\nsearch example.org\n");
        let mixed = "nameserver 127.0.1.1\nnameserver 2001:db8::53\nnameserver 192.0.2.1 # ours\n";
        assert_eq!(reachable(mixed, || unreachable!("one is left")), "nameserver 192.0.2.1 # ours\n");
    }

    #[test]
    fn dns_options_replace_the_hosts_resolv_conf() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let machine = "# ours\nnameserver 192.0.2.1\nsearch a b\noptions edns0\n";
        let own = |servers, search, options| {
            let own = Dns { servers: words(servers), search: words(search), options: words(options) };
            with_own(machine, &own)
        };
        assert_eq!(own("", "", ""), machine);
        assert_eq!(
            own("192.0.2.7 ::1", "c", "ndots:2"),
            "# ours\nnameserver 192.0.2.7\nnameserver ::1\nsearch c\noptions ndots:2\n"
        );
        assert_eq!(own("", ".", ""), "# ours\nnameserver 192.0.2.1\noptions edns0\n");
    }

    #[test]
    fn what_others_wrote_into_resolv_conf_stays() {
        let dir = tempfile::tempdir().unwrap();
        let files = dir.path();
        let (old, new, own) = ("nameserver 192.0.2.1\n", "nameserver 192.0.2.2\n", "nameserver 192.0.2.3\n");
        let now = || fs::read_to_string(files.join(RESOLV_CONF)).unwrap();
        write(files, "box", &Create::default(), old).unwrap();
        assert!(!renew_resolv_conf(files, &digest(old.as_bytes()), old).unwrap());
        assert!(renew_resolv_conf(files, &digest(old.as_bytes()), new).unwrap());
        assert_eq!(now(), new);
        fs::write(files.join(RESOLV_CONF), own).unwrap();
        assert!(!renew_resolv_conf(files, &digest(new.as_bytes()), old).unwrap());
        assert_eq!(now(), own);
    }

    #[test]
    fn resolv_conf_written_but_not_recorded_is_ours() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = ("nameserver 192.0.2.1\n", "nameserver 192.0.2.2\n");
        write(dir.path(), "name", &Create::default(), old).unwrap();
        assert!(renew_resolv_conf(dir.path(), &digest(old.as_bytes()), new).unwrap());
        assert_eq!(fs::read_to_string(dir.path().join(RESOLV_CONF)).unwrap(), new);
        // The daemon died before it recorded the digest.
        assert!(renew_resolv_conf(dir.path(), &digest(old.as_bytes()), new).unwrap(), "it is noted now");
        assert!(!renew_resolv_conf(dir.path(), &digest(new.as_bytes()), new).unwrap());
        fs::write(dir.path().join(RESOLV_CONF), "of somebody else").unwrap();
        assert!(!renew_resolv_conf(dir.path(), &digest(new.as_bytes()), old).unwrap());
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert_eq!(left.len(), 3, "no draft: {left:?}");
    }

    #[test]
    fn files_that_a_power_cut_took_are_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let files = dir.path().join("id");
        let write_lost = || write_lost(&files, "box", &Create::default(), "nameserver 192.0.2.1\n").unwrap();
        let read = || NAMES.map(|name| fs::read_to_string(files.join(name)).unwrap());
        write_lost();
        let whole = read();
        assert!(whole.iter().all(|text| !text.is_empty()), "{whole:?}");
        fs::remove_file(files.join("hostname")).unwrap();
        fs::write(files.join("hosts"), "").unwrap();
        fs::write(files.join(RESOLV_CONF), "nameserver 192.0.2.3\n").unwrap();
        write_lost();
        let [hosts, hostname, resolv_conf] = read();
        assert_eq!([&hosts, &hostname], [&whole[0], &whole[1]]);
        assert_eq!(resolv_conf, "nameserver 192.0.2.3\n", "what is there stays");
    }

    #[test]
    fn a_resolv_conf_that_cannot_be_ours_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = ("nameserver 192.0.2.1\n", "nameserver 192.0.2.2\n");
        write(dir.path(), "box", &Create::default(), old).unwrap();
        let path = dir.path().join(RESOLV_CONF);
        let renew = || renew_resolv_conf(dir.path(), &digest(old.as_bytes()), new).unwrap();
        // A sparse file: larger than memory, almost nothing on disk.
        let len = 1 << 42;
        fs::File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
        assert!(!renew());
        assert_eq!(fs::metadata(&path).unwrap().len(), len);
        fs::remove_file(&path).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert!(!renew());
    }

    #[test]
    fn the_ground_has_the_mount_points_and_is_created_once() {
        let root = tempfile::tempdir().unwrap();
        let ground = lay_ground(root.path()).unwrap();
        assert_eq!(lay_ground(root.path()).unwrap(), ground);
        let etc = ground.join("etc");
        assert!(NAMES.iter().all(|name| fs::metadata(etc.join(name)).unwrap().len() == 0));
        assert_eq!(fs::metadata(&etc).unwrap().permissions().mode() & 0o7777, 0o755);
    }
}
