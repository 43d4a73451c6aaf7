//! The bridge and its subnet.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::str::FromStr;

use linux::nft::Batch;
use linux::rtnetlink::{Address, Link, Prefix, Route};
use types::{Context, Error, ErrorKind, Result};

use crate::mark::Marks;
use crate::rules;

/// Subnets tried in order if none is configured. Private (RFC 1918), and not those that Docker, Podman and common VPNs
/// choose first.
const SUBNETS: [(u8, u8); 6] = [(172, 30), (172, 29), (172, 28), (10, 201), (10, 202), (10, 203)];

/// `f_type` of statfs(2) for tmpfs, whose files do not survive a reboot.
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;

/// Configuration of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of the bridge and of the nft table. At most 15 letters, digits and `_`.
    pub bridge: String,
    /// `None`: the first subnet of a built-in list that overlaps no route or address of the host.
    pub subnet: Option<Subnet>,
    /// `None`: the kernel's default, 1500 bytes.
    pub mtu: Option<u32>,
}

impl Default for Config {
    fn default() -> Config {
        Config { bridge: "hoist0".into(), subnet: None, mtu: None }
    }
}

impl Config {
    pub(crate) fn check(&self) -> Result<()> {
        let name = &self.bridge;
        let known = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let starts = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
        if known && starts && name.len() <= 15 {
            return Ok(());
        }
        Err(Error::invalid_argument(format!(
            "invalid bridge name {name:?}: up to 15 letters, digits and '_', beginning with a letter"
        )))
    }
}

/// An IPv4 range: `172.30.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    pub network: Ipv4Addr,
    pub len: u8,
}

/// A subnet and its gateway, which is the bridge's own address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub subnet: Subnet,
    pub gateway: Ipv4Addr,
}

impl Subnet {
    /// The subnet with its first host address as gateway.
    fn with_first(self) -> Range {
        Range { subnet: self, gateway: Ipv4Addr::from(u32::from(self.network) + 1) }
    }

    /// The addresses that containers may be given, if they are free. Excludes the first host address, by convention the
    /// gateway, although a bridge that another program made may use a different one.
    pub(crate) fn hosts(self) -> std::ops::Range<u32> {
        let first = u32::from(self.network);
        let size = 1_u32 << (32 - u32::from(self.len));
        first + 2..first + size - 1
    }

    fn containing(address: Ipv4Addr, len: u8) -> Subnet {
        Subnet { network: Ipv4Addr::from(u32::from(address) & bits(len)), len }
    }

    fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & bits(self.len) == u32::from(self.network)
    }

    fn overlaps(self, other: &Prefix) -> bool {
        let IpAddr::V4(address) = other.address else { return false };
        let shorter = bits(self.len.min(other.len));
        u32::from(self.network) & shorter == u32::from(address) & shorter
    }
}

fn bits(len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0)
}

impl FromStr for Subnet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Subnet> {
        let bad = || {
            Error::invalid_argument(format!("invalid subnet {text:?}: expected something like 172.30.0.0/16"))
        };
        let (address, len) = text.split_once('/').ok_or_else(bad)?;
        let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
        let len: u8 = len.parse().ok().filter(|len| (8..=29).contains(len)).ok_or_else(bad)?;
        Ok(Subnet::containing(address, len))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.len)
    }
}

/// A bridge that is up and has its address.
#[derive(Clone, Debug)]
pub(crate) struct Bridge {
    pub(crate) index: u32,
    pub(crate) range: Range,
    /// The host's own addresses in this subnet.
    pub(crate) own: BTreeSet<Ipv4Addr>,
}

impl Bridge {
    fn new(link: &Link, range: Range, addresses: &[Address]) -> Bridge {
        let own = addresses.iter().filter_map(ipv4).filter(|address| range.subnet.contains(*address));
        Bridge { index: link.index, range, own: own.chain([range.gateway]).collect() }
    }
}

/// The bridge, if it exists and neither its address nor any of its rules is missing. `FailedPrecondition` if it is another
/// daemon's: both would give the same addresses to their containers.
pub(crate) fn find(config: &Config, marks: &Marks) -> Result<Option<Bridge>> {
    let mut route = Route::open()?;
    let Some(link) = link(&mut route, config)? else { return Ok(None) };
    if is_used_by_another(&mut route, &link, marks)? {
        return Err(Error::failed_precondition(format!(
            "bridge {} is another daemon's, and has its containers; choose another name for ours with `network.bridge` \
             in the config file",
            config.bridge
        )));
    }
    let addresses = route.addresses()?;
    let Some(range) = range_of(&link, &addresses) else { return Ok(None) };
    silence_ipv6(&config.bridge)?;
    Ok(rules::are_there(&config.bridge)?.then(|| Bridge::new(&link, range, &addresses)))
}

/// Whether another daemon made the bridge and has containers on it. Without containers it is what a daemon left that was
/// killed: one that runs removes it.
pub(crate) fn is_used_by_another(route: &mut Route, link: &Link, marks: &Marks) -> Result<bool> {
    let is_theirs = |port: &Link| port.master == Some(link.index) && marks.is_port_of_another(port);
    Ok(marks.is_bridge_of_another(link) && route.links()?.iter().any(is_theirs))
}

/// Subnet and gateway of the existing bridge, or of the one to be made, if configured.
pub(crate) fn range(config: &Config) -> Result<Option<Range>> {
    let mut route = Route::open()?;
    let of_bridge = match link(&mut route, config)? {
        Some(link) => range_of(&link, &route.addresses()?),
        None => None,
    };
    Ok(of_bridge.or(config.subnet.map(Subnet::with_first)))
}

/// Creates what is missing of the bridge, and all rules: the common ones and those that `publish` adds. The caller must
/// hold the lock: concurrent calls would choose different subnets and overwrite each other's rules. A bridge made here
/// is recognized by its MAC address, set at creation; an existing bridge belongs to another program and keeps its own.
pub(crate) fn make(config: &Config, marks: &Marks, publish: impl FnOnce(&mut Batch)) -> Result<Bridge> {
    let name = &config.bridge;
    let mut route = Route::open()?;
    let link = match link(&mut route, config)? {
        Some(link) => link,
        None => {
            route.create_bridge(name, Some(marks.of_bridge(name)))?;
            let link = link(&mut route, config)?;
            link.ok_or_else(|| Error::aborted(format!("bridge {name} went away")))?
        }
    };
    let addresses = route.addresses()?;
    let own = range_of(&link, &addresses);
    let range = match (own, config.subnet) {
        (Some(own), _) => own,
        (None, Some(subnet)) => subnet.with_first(),
        (None, None) => free_subnet(&mut route, &addresses)?.with_first(),
    };
    silence_ipv6(name)?;
    allow_forwarding(name)?;
    rules::make(name, range.subnet, publish)?;
    route.set_up(link.index)?;
    // The address comes last: a bridge that has one is complete.
    if own.is_none() {
        route.add_address(link.index, Prefix { address: range.gateway.into(), len: range.subnet.len })?;
    }
    Ok(Bridge::new(&link, range, &addresses))
}

/// Whether an earlier version made this bridge. It noted name and interface index in a file. The kernel does not reuse
/// an index until reboot; a note that is not on tmpfs may predate the boot and describe a bridge that is gone.
fn is_noted(link: &Link, note: &Path) -> bool {
    let is_of_this_boot = rustix::fs::statfs(note).is_ok_and(|stat| stat.f_type == TMPFS_MAGIC);
    is_of_this_boot
        && fs::read_to_string(note).is_ok_and(|noted| noted == format!("{} {}\n", link.name, link.index))
}

/// Removes bridge and rules if the bridge was made here and no other program has attached an interface; returns whether
/// it did. All containers must be detached. Rules that users added to the table keep both, except when the daemon ends.
/// Both stay while another daemon uses them.
pub(crate) fn remove(config: &Config, marks: &Marks, note: &Path, is_end: bool) -> Result<bool> {
    let mut route = Route::open()?;
    let link = route.link(&config.bridge)?;
    if let Some(link) = &link
        && is_used_by_another(&mut route, link, marks)?
    {
        return Ok(false);
    }
    let is_own = |link: &Link| marks.is_own_bridge(link) || link.kind == "bridge" && is_noted(link, note);
    let is_kept = link.as_ref().is_some_and(|link| !is_own(link));
    let has_ports = match &link {
        Some(link) => route.links()?.iter().any(|port| port.master == Some(link.index)),
        None => false,
    };
    if !is_end && (is_kept || has_ports || rules::are_others_there(&config.bridge)?) {
        return Ok(false);
    }
    rules::remove(&config.bridge)?;
    if is_kept || has_ports {
        return Ok(false);
    }
    route.delete_link(&config.bridge)?;
    match fs::remove_file(note) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).context(|| format!("remove {}", note.display()))
        }
        _ => Ok(true),
    }
}

fn link(route: &mut Route, config: &Config) -> Result<Option<Link>> {
    let link = route.link(&config.bridge)?;
    // Rules and sysctls know a link by its name alone.
    if let Some(other) = link.as_ref().filter(|link| link.name != config.bridge) {
        return Err(Error::failed_precondition(format!(
            "network interface {} has {} as an alternative name; choose another name for ours with `network.bridge` in the \
             config file",
            other.name, config.bridge
        )));
    }
    if link.as_ref().is_some_and(|link| link.kind != "bridge") {
        return Err(Error::failed_precondition(format!(
            "network interface {} is not a bridge; choose another name for ours with `network.bridge` in the config file",
            config.bridge
        )));
    }
    Ok(link)
}

fn range_of(link: &Link, addresses: &[Address]) -> Option<Range> {
    addresses.iter().filter(|address| address.link == link.index).find_map(|address| {
        let gateway = ipv4(address)?;
        Some(Range { subnet: Subnet::containing(gateway, address.prefix.len), gateway })
    })
}

fn ipv4(address: &Address) -> Option<Ipv4Addr> {
    match address.prefix.address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

fn free_subnet(route: &mut Route, addresses: &[Address]) -> Result<Subnet> {
    let mut taken = route.routes()?;
    taken.extend(addresses.iter().map(|address| address.prefix));
    let candidates = SUBNETS.map(|(a, b)| Subnet { network: Ipv4Addr::new(a, b, 0, 0), len: 16 });
    candidates.into_iter().find(|subnet| !taken.iter().any(|prefix| subnet.overlaps(prefix))).ok_or_else(|| {
        Error::resource_exhausted(
            "no free subnet for the bridge: every range tried is routed elsewhere; set `network.subnet` in the config file",
        )
    })
}

/// Enables routing of packets from containers, and lets packets from the host's own 127.0.0.1 to a published port leave
/// by the bridge (`route_localnet`). The rule in the chain `raw` keeps containers from using the latter to reach
/// services on the host's loopback (CVE-2020-8558).
fn allow_forwarding(bridge: &str) -> Result<()> {
    set("ipv4/ip_forward", "1")?;
    set(&format!("ipv4/conf/{bridge}/route_localnet"), "1")
}

/// Disables IPv6 on an interface and ignores router advertisements. A container could advertise itself as a router to
/// the host (CVE-2020-13401) or to other containers. No IPv6 addresses are assigned, so neither bridge nor veths need
/// it. `default` applies to interfaces that are still to be created in the caller's network namespace.
pub(crate) fn silence_ipv6(link: &str) -> Result<()> {
    for (key, value) in [("accept_ra", "0"), ("disable_ipv6", "1")] {
        match set(&format!("ipv6/conf/{link}/{key}"), value) {
            // The kernel has no IPv6.
            Err(error) if error.is(ErrorKind::NotFound) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Sets a sysctl below `/proc/sys/net` unless it has that value already: the mount may be read-only.
fn set(key: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/{key}");
    let current = fs::read_to_string(&path).context(|| format!("read {path}"))?;
    if current.trim() == value {
        return Ok(());
    }
    fs::write(&path, value).context(|| format!("write {value} to {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_are_read_and_have_a_gateway() {
        let subnet: Subnet = "172.30.9.9/16".parse().unwrap();
        assert_eq!(subnet.to_string(), "172.30.0.0/16");
        assert_eq!(subnet.with_first().gateway, Ipv4Addr::new(172, 30, 0, 1));
        assert_eq!("10.0.0.0/29".parse::<Subnet>().unwrap().hosts().len(), 5);
        for bad in ["", "10.0.0.0", "10.0.0.0/31", "10.0.0/8", "10.0.0.0/x", "::/8"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn subnet_overlap_is_symmetric() {
        let subnet: Subnet = "172.30.0.0/16".parse().unwrap();
        let prefix = |text: &str, len| Prefix { address: text.parse().unwrap(), len };
        assert!(subnet.overlaps(&prefix("172.30.4.0", 24)));
        assert!(subnet.overlaps(&prefix("172.16.0.0", 12)));
        assert!(!subnet.overlaps(&prefix("172.29.0.0", 16)));
        assert!(!subnet.overlaps(&prefix("fe80::", 64)));
    }

    #[test]
    fn bridge_names_are_checked() {
        let config = |name: &str| Config { bridge: name.into(), ..Config::default() };
        assert!(config("hoist0").check().is_ok());
        for bad in ["", "0a", "a-b", "a/b", "sixteen_letters_", ".."] {
            assert!(config(bad).check().is_err(), "{bad}");
        }
    }
}
