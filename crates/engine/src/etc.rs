//! What a container sees in `/etc` that no image can know: its name, its hosts, and who resolves other names.
//!
//! ```text
//! ROOT/containers/NAMESPACE/ID/{hosts,hostname,resolv.conf}    bound over the files of the same names
//! ROOT/ground/etc/{hosts,hostname,resolv.conf}                 empty: what to bind over where an image has none
//! ```
//!
//! A container may write to its files, so they are on the disk, where they are no danger to the machine's memory. Who
//! resolves names may change while a container does not run, as when the machine comes into another network: its
//! `resolv.conf` is brought up to date as it starts, unless it was changed by others than us.
//!
//! The ground is the lowest layer of each container's tree ([`linux::tree_mounts::grounded`]), and nobody writes to it.
//! Without it the three files, and a copy of the image's `/etc`, would be made in the container's own layer: they
//! would show in what it has changed and be committed with it, and four files on a disk cost a short life more than
//! all of its mounts.
//!
//! It is where the trees are: layers of two file systems would have overlayfs give directories and files of a tree
//! different devices.

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

/// Bytes of a `resolv.conf` that may be ours.
const RESOLV_CONF_LEN_MAX: u64 = 64 << 10;

/// The names in `/etc`.
pub(crate) const NAMES: [&str; 3] = ["hosts", "hostname", RESOLV_CONF];

/// Where systemd-resolved names those that it asks itself. `/etc/resolv.conf` names only 127.0.0.53 then.
const BEHIND_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// Writes the files of a container that has no network yet.
pub(crate) fn write(files: &Path, hostname: &str, create: &Create, resolv_conf: &str) -> Result<()> {
    write_one(files, "hostname", &format!("{hostname}\n"))?;
    match NetworkMode::of(create) {
        NetworkMode::Host => write_hosts_of_host(files, create)?,
        _ => write_hosts(files, "127.0.1.1", hostname, create, "127.0.0.1")?,
    }
    write_one(files, RESOLV_CONF, resolv_conf)
}

/// What a container's `resolv.conf` is to say now.
pub(crate) fn resolv_conf(create: &Create) -> String {
    let host = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    // With the machine's network it reaches whom the machine does.
    let text = match NetworkMode::of(create) {
        NetworkMode::Host => host,
        _ => reachable(&host, || fs::read_to_string(BEHIND_RESOLVED).unwrap_or_default()),
    };
    with_own(&text, &create.extras.dns)
}

/// What a container asks for takes the place of what the machine says of the same.
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

/// Brings a container's `resolv.conf` up to date, unless others have changed what we wrote last, of which `written` is
/// the digest. Returns whether another digest is to be noted.
pub(crate) fn renew_resolv_conf(files: &Path, written: &str, text: &str) -> Result<bool> {
    let path = files.join(RESOLV_CONF);
    let Some(before) = read_written(&path).context(|| format!("read {}", path.display()))? else {
        return Ok(false);
    };
    if before == text.as_bytes() {
        // The digest may differ nevertheless: a daemon may have died after it wrote the file and before it noted that.
        return Ok(digest(&before) != written);
    }
    if digest(&before) != written {
        return Ok(false);
    }
    write_one(files, RESOLV_CONF, text).map(|()| true)
}

/// What a file says that we have written, or none if it cannot be: the container may have made it as large as a disk.
fn read_written(path: &Path) -> io::Result<Option<Vec<u8>>> {
    // Non-blocking, because the path may be a FIFO.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = fs::File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    stdx::read_at_most(file, RESOLV_CONF_LEN_MAX)
}

/// The digest by which a text that we wrote is known again.
pub(crate) fn digest(text: &[u8]) -> String {
    Digest::of(text).to_string()
}

pub(crate) fn names_resolver(text: &str) -> bool {
    text.lines().any(is_resolver)
}

fn is_resolver(line: &str) -> bool {
    line.split_whitespace().next() == Some("nameserver")
}

/// What of the machine's `resolv.conf` is of use on the bridge, where neither the machine's loopback nor IPv6 is: if
/// no resolver is left of it, of the one behind it.
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

/// Says by which address the container knows itself, and others by theirs. The machine's is `gateway`.
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

/// With the machine's network a container knows whom the machine knows, and those that it is told of.
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

/// Whole or not at all: half a file would be taken for one that others have changed. Of a container that does not run,
/// and that a power cut, too, may take back to how it was before.
fn write_one(files: &Path, name: &str, text: &str) -> Result<()> {
    let path = files.join(name);
    replace(&path, text.as_bytes(), 0o644, Durable::No).context(|| format!("write {}", path.display()))
}

/// Makes the ground that the trees of all containers stand on, unless it is there, and says where it is.
pub(crate) fn lay_ground(root: &Path) -> Result<PathBuf> {
    let ground = root.join("ground");
    let etc = ground.join("etc");
    fs::create_dir_all(&etc).context(|| format!("create {}", etc.display()))?;
    for name in NAMES {
        let path = etc.join(name);
        // Not emptied: containers that run may show it.
        let made = fs::File::options().write(true).create(true).truncate(false).open(&path);
        made.context(|| format!("create {}", path.display()))?;
    }
    for directory in [&ground, &etc] {
        // As any image has them, whatever the daemon's umask is.
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
    fn what_a_container_asks_for_replaces_what_the_machine_says() {
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
    fn what_a_daemon_wrote_and_could_not_note_is_ours() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = ("nameserver 192.0.2.1\n", "nameserver 192.0.2.2\n");
        write(dir.path(), "name", &Create::default(), old).unwrap();
        assert!(renew_resolv_conf(dir.path(), &digest(old.as_bytes()), new).unwrap());
        assert_eq!(fs::read_to_string(dir.path().join(RESOLV_CONF)).unwrap(), new);
        // It died before the digest of that was noted.
        assert!(renew_resolv_conf(dir.path(), &digest(old.as_bytes()), new).unwrap(), "it is noted now");
        assert!(!renew_resolv_conf(dir.path(), &digest(new.as_bytes()), new).unwrap());
        fs::write(dir.path().join(RESOLV_CONF), "of somebody else").unwrap();
        assert!(!renew_resolv_conf(dir.path(), &digest(new.as_bytes()), old).unwrap());
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert_eq!(left.len(), 3, "no draft: {left:?}");
    }

    #[test]
    fn what_cannot_be_ours_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = ("nameserver 192.0.2.1\n", "nameserver 192.0.2.2\n");
        write(dir.path(), "box", &Create::default(), old).unwrap();
        let path = dir.path().join(RESOLV_CONF);
        let renew = || renew_resolv_conf(dir.path(), &digest(old.as_bytes()), new).unwrap();
        // More than there is memory, and next to nothing on the disk.
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
    fn the_ground_has_what_is_bound_over_and_is_laid_once() {
        let root = tempfile::tempdir().unwrap();
        let ground = lay_ground(root.path()).unwrap();
        assert_eq!(lay_ground(root.path()).unwrap(), ground);
        let etc = ground.join("etc");
        assert!(NAMES.iter().all(|name| fs::metadata(etc.join(name)).unwrap().len() == 0));
        assert_eq!(fs::metadata(&etc).unwrap().permissions().mode() & 0o7777, 0o755);
    }
}
