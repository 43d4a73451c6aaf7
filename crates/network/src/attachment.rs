//! Attachments: everything that connects one container to the bridge, from the record to its packet filter rules.
//!
//! ```text
//! attach   claim address and ports (memory) ─▶ record ─▶ veth ─▶ address, route ─▶ rules
//! detach   rules, ports ─▶ veth ─▶ namespace ─▶ record ─▶ claims
//!          (unpublish: fast)  (the kernel waits for all that may still look at the link: tens of milliseconds)
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::MutexGuard;

use linux::nft::{Batch, Nft};
use linux::rtnetlink::{Prefix, Route, Veth};
use serde::{Deserialize, Serialize};
use stdx::Mutex;
use types::id::check_identifier;
use types::{Context, Digest, Error, ErrorKind, Result};

use crate::bridge::{self, Bridge, Config, Range};
use crate::mark::Marks;
use crate::namespace;
use crate::ports::{self, PortRequest, PublishedPort, Reservation, protocol_name, reserve};
use crate::records::{Found, Records};

/// Name of the interface inside the container.
const INSIDE: &str = "eth0";

/// The network settings that a container requests.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub ports: Vec<PortRequest>,
    /// MAC address of the container's interface; derived from its IP address if `None`.
    pub mac: Option<[u8; 6]>,
}

/// The network settings that a container was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub address: Ipv4Addr,
    /// Prefix length of the subnet.
    pub prefix_len: u8,
    pub gateway: Ipv4Addr,
    pub mac: [u8; 6],
    /// Name of the host's end of the veth pair.
    pub link: String,
    pub ports: Vec<PublishedPort>,
}

impl Attachment {
    /// The MAC address in the usual notation, `02:48:ac:1e:00:02`.
    pub fn mac_text(&self) -> String {
        self.mac.map(|byte| format!("{byte:02x}")).join(":")
    }
}

/// A record or kernel object of this daemon that belongs to no living container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leftover {
    Record(String),
    Link(String),
    /// The comment of a rule, which is the container's id.
    Rule(String),
    Namespace(PathBuf),
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Leftover::Record(id) => write!(f, "network attachment of {id}"),
            Leftover::Link(name) => write!(f, "network interface {name}"),
            Leftover::Rule(id) => write!(f, "packet filter rule of {id}"),
            Leftover::Namespace(path) => write!(f, "network namespace {}", path.display()),
        }
    }
}

/// One bridge and the containers on it.
pub struct Network {
    config: Config,
    namespaces: PathBuf,
    marks: Marks,
    /// File in which an earlier version noted the bridge it made.
    note: PathBuf,
    records: Records,
    claims: Mutex<Claims>,
    /// Serializes changes to bridge and rules. Recreating the rules includes the ports of all attachments, so none may
    /// be added or removed meanwhile. Taken before `claims`.
    turn: Mutex<()>,
}

/// The address and ports of each container. In memory only; rebuilt from the records.
#[derive(Default)]
struct Claims {
    attachments: BTreeMap<String, Attachment>,
    /// Containers that an earlier daemon attached, and whose records cannot be read: no other container gets their
    /// address, if that is known.
    unread: BTreeMap<String, Option<Ipv4Addr>>,
    reservations: BTreeMap<String, Vec<Reservation>>,
    /// The last address assigned. The search for a free one starts after it, so that a released address is not reused
    /// at once.
    last: u32,
}

impl Claims {
    fn is_empty(&self) -> bool {
        self.attachments.is_empty() && self.unread.is_empty()
    }

    fn ids(&self) -> BTreeSet<String> {
        self.attachments.keys().chain(self.unread.keys()).cloned().collect()
    }

    fn address(&self, id: &str) -> Option<Ipv4Addr> {
        let read = self.attachments.get(id).map(|attachment| attachment.address);
        read.or_else(|| self.unread.get(id).copied().flatten())
    }
}

impl Network {
    /// Reads the records below `state` and reserves the published ports again. Does not change the kernel's state. A
    /// record that cannot be read is left for [`Network::detach`], which takes down what does not depend on it.
    pub fn open(state: &Path, config: Config) -> Result<Network> {
        config.check()?;
        let namespaces = state.join("netns");
        fs::create_dir_all(&namespaces).context(|| format!("create {}", namespaces.display()))?;
        let records = Records::open(state.join("network"))?;
        let Found { attachments, unread } = records.read_all()?;
        // Another program may have bound a port while no daemon ran. The rules still lead to the container, so failing
        // to reserve it again is harmless.
        let reservations = attachments.iter().map(|(id, attachment)| {
            let again = attachment
                .ports
                .iter()
                .filter_map(|port| reserve(&request_of(port), Some(port.host_port)).ok());
            (id.clone(), again.collect())
        });
        let reservations = reservations.collect();
        let claims = Mutex::new(Claims { attachments, unread, reservations, last: 0 });
        let (marks, note) = (Marks::of(state)?, state.join("bridge"));
        Ok(Network { config, namespaces, marks, note, records, claims, turn: Mutex::default() })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The subnet and gateway of the bridge, or the configured ones if there is no bridge yet.
    pub fn range(&self) -> Result<Option<Range>> {
        bridge::range(&self.config)
    }

    /// Creates a network namespace for a container and returns the file it is pinned to.
    pub fn create_namespace(&self, id: &str) -> Result<PathBuf> {
        check_identifier("container id", id)?;
        let path = self.namespaces.join(id);
        namespace::create(&path)?;
        Ok(path)
    }

    pub fn namespace_path(&self, id: &str) -> PathBuf {
        self.namespaces.join(id)
    }

    /// Removes the network namespace of a container that was never attached or has been detached.
    pub fn remove_namespace(&self, id: &str) -> Result<()> {
        check_identifier("container id", id)?;
        namespace::remove(&self.namespaces.join(id)).map(drop)
    }

    /// Connects a container's namespace, which [`Network::create_namespace`] made, to the bridge.
    ///
    /// `AlreadyExists` if it is attached; `FailedPrecondition` if a port is taken. After an error only the namespace
    /// remains.
    pub fn attach(&self, id: &str, request: &Request) -> Result<Attachment> {
        let what = || format!("attach {id} to bridge {}", self.config.bridge);
        check_identifier("container id", id)?;
        let bridge = self.bridge().context(what)?;
        let attachment = self.claim(id, &bridge, request).context(what)?;
        match self.connect(id, &bridge, &attachment) {
            Ok(()) => Ok(attachment),
            Err(error) => {
                let error = error.context(what());
                match self.disconnect(id, &attachment).and_then(|()| self.records.remove(id)) {
                    Ok(()) => {
                        self.release(id);
                        Err(error)
                    }
                    // The record remains, and `reconcile` tries again.
                    Err(second) => Err(error.context(format!("(undoing it failed too: {})", second.chain()))),
                }
            }
        }
    }

    /// The first half of [`Network::detach`]: releases the published ports, so that other containers can have them.
    pub fn unpublish(&self, id: &str) -> Result<()> {
        check_identifier("container id", id)?;
        if self.attachment(id).is_none_or(|attachment| attachment.ports.is_empty()) {
            return Ok(());
        }
        self.delete_rules(id).context(|| format!("take back the published ports of {id}"))
    }

    /// Removes everything that [`Network::attach`] and [`Network::create_namespace`] made. No error if there is
    /// nothing.
    pub fn detach(&self, id: &str) -> Result<()> {
        let what = || format!("detach {id} from bridge {}", self.config.bridge);
        check_identifier("container id", id)?;
        if let Some(attachment) = self.attachment(id) {
            self.disconnect(id, &attachment).context(what)?;
        } else if self.claims().unread.contains_key(id) {
            self.delete_rules(id).context(what)?;
            Route::open()?.delete_link(&link_name(id)).context(what)?;
        }
        namespace::remove(&self.namespaces.join(id)).context(what)?;
        self.records.remove(id).context(what)?;
        self.release(id);
        Ok(())
    }

    pub fn attachment(&self, id: &str) -> Option<Attachment> {
        self.claims().attachments.get(id).cloned()
    }

    /// Recreates bridge and rules if they are missing: an administrator may have flushed them while no daemon ran.
    pub fn restore(&self) -> Result<()> {
        if self.claims().is_empty() {
            return Ok(());
        }
        self.bridge().map(drop).context(|| format!("restore bridge {}", self.config.bridge))
    }

    /// Finds what belongs to no container in `live`.
    pub fn check(&self, live: &BTreeSet<String>) -> Result<Vec<Leftover>> {
        let mut leftovers = Vec::new();
        let known = self.claims().ids();
        leftovers.extend(known.difference(live).cloned().map(Leftover::Record));

        let names: BTreeSet<String> = live.iter().map(|id| link_name(id)).collect();
        let mut route = Route::open()?;
        let bridge = route.link(&self.config.bridge)?;
        let is_of_another = match &bridge {
            Some(bridge) => bridge::is_used_by_another(&mut route, bridge, &self.marks)?,
            None => false,
        };
        if let Some(bridge) = bridge {
            // Links made by an earlier version have no mark: they are removed with their records.
            let ours = route
                .links()?
                .into_iter()
                .filter(|link| link.master == Some(bridge.index) && self.marks.is_own_port(link));
            leftovers.extend(
                ours.filter(|link| !names.contains(&link.name)).map(|link| Leftover::Link(link.name)),
            );
        }
        let rules = if is_of_another { Vec::new() } else { Nft::open()?.rules(&self.config.bridge)? };
        // The comments of our rules are container ids and nothing else. nft keeps its users' comments in the same
        // field.
        let notes: BTreeSet<String> = rules
            .into_iter()
            .filter_map(|rule| String::from_utf8(rule.note).ok())
            .filter(|note| check_identifier("container id", note).is_ok())
            .collect();
        leftovers.extend(notes.difference(live).cloned().map(Leftover::Rule));

        for entry in
            fs::read_dir(&self.namespaces).context(|| format!("read {}", self.namespaces.display()))?
        {
            let entry = entry.context(|| format!("read {}", self.namespaces.display()))?;
            if !live.contains(&*entry.file_name().to_string_lossy()) {
                leftovers.push(Leftover::Namespace(entry.path()));
            }
        }
        Ok(leftovers)
    }

    /// Removes everything that belongs to no container in `live`, and returns what it found. Continues after an error
    /// and returns the first.
    pub fn reconcile(&self, live: &BTreeSet<String>) -> Result<Vec<Leftover>> {
        let leftovers = self.check(live)?;
        let mut first_error = None;
        for leftover in &leftovers {
            if let Err(error) = self.remove(leftover) {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(leftovers), Err)
    }

    /// Removes one leftover. No error if it is gone already.
    pub fn remove(&self, leftover: &Leftover) -> Result<()> {
        let removed = match leftover {
            Leftover::Record(id) => self.detach(id),
            Leftover::Link(name) => Route::open().and_then(|mut route| route.delete_link(name)).map(drop),
            Leftover::Rule(id) => self.delete_rules(id),
            Leftover::Namespace(path) => namespace::remove(path).map(drop),
        };
        removed.context(|| format!("remove {leftover}"))
    }

    /// Removes the bridge and its table if no container is attached and no other program uses them; returns whether it
    /// did. When the daemon ends (`is_end`), the table goes even if users have added rules to it.
    pub fn remove_if_unused(&self, is_end: bool) -> Result<bool> {
        let _turn = self.turn();
        if !self.claims().is_empty() {
            return Ok(false);
        }
        bridge::remove(&self.config, &self.marks, &self.note, is_end)
            .context(|| format!("remove bridge {}", self.config.bridge))
    }

    fn claims(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock()
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock()
    }

    /// Finds the bridge with its rules, or creates them. Several threads may call this at once.
    fn bridge(&self) -> Result<Bridge> {
        if let Some(bridge) = bridge::find(&self.config, &self.marks)? {
            return Ok(bridge);
        }
        let _turn = self.turn();
        // Another thread may have created it while this one waited for the lock.
        if let Some(bridge) = bridge::find(&self.config, &self.marks)? {
            return Ok(bridge);
        }
        let attachments = self.claims().attachments.clone();
        bridge::make(&self.config, &self.marks, |batch| {
            for (id, attachment) in &attachments {
                self.publish(batch, id, attachment);
            }
        })
    }

    fn publish(&self, batch: &mut Batch, id: &str, attachment: &Attachment) {
        for port in &attachment.ports {
            port.publish(batch, &self.config.bridge, attachment.address, id.as_bytes());
        }
    }

    /// Reserves a free address and the requested ports for this container.
    fn claim(&self, id: &str, bridge: &Bridge, request: &Request) -> Result<Attachment> {
        let reservations = request.ports.iter().map(|port| self.reserve(port)).collect::<Result<Vec<_>>>()?;
        let ports: Vec<PublishedPort> =
            request.ports.iter().zip(&reservations).map(|(port, held)| published(port, held.port)).collect();

        let mut claims = self.claims();
        if claims.attachments.contains_key(id) || claims.unread.contains_key(id) {
            return Err(Error::already_exists("it is attached already"));
        }
        for port in &ports {
            if let Some(owner) = owner_of(&claims, port) {
                return Err(taken(port, owner));
            }
        }
        let address = free_address(&claims, bridge)?;
        let [_, second, third, fourth] = address.octets();
        let attachment = Attachment {
            address,
            prefix_len: bridge.range.subnet.len,
            gateway: bridge.range.gateway,
            // Locally administered, and as unique as the IP address.
            mac: request.mac.unwrap_or([0x02, 0x48, address.octets()[0], second, third, fourth]),
            link: link_name(id),
            ports,
        };
        claims.last = u32::from(address);
        claims.attachments.insert(id.to_owned(), attachment.clone());
        claims.reservations.insert(id.to_owned(), reservations);
        Ok(attachment)
    }

    /// Reserves a host port: the first free one of the requested range.
    fn reserve(&self, request: &PortRequest) -> Result<Reservation> {
        let Some((first, last)) = request.host_ports else { return reserve(request, None) };
        let mut taken = None;
        for host_port in first..=last {
            match self.reserve_one(request, host_port) {
                Err(error) if error.is(ErrorKind::FailedPrecondition) => {
                    taken.get_or_insert(error);
                }
                other => return other,
            }
        }
        let taken =
            taken.unwrap_or_else(|| Error::invalid_argument(format!("ports {first}-{last} are none")));
        Err(if first < last { taken.context(format!("no port of {first}-{last} is free")) } else { taken })
    }

    /// The error names the container that has the port, if one does.
    fn reserve_one(&self, request: &PortRequest, host_port: u16) -> Result<Reservation> {
        let wanted = published(request, host_port);
        if let Some(owner) = owner_of(&self.claims(), &wanted) {
            return Err(taken(&wanted, owner));
        }
        reserve(request, Some(host_port))
    }

    fn release(&self, id: &str) {
        let mut claims = self.claims();
        claims.attachments.remove(id);
        claims.unread.remove(id);
        claims.reservations.remove(id);
    }

    fn connect(&self, id: &str, bridge: &Bridge, attachment: &Attachment) -> Result<()> {
        self.records.write(id, attachment)?;
        let path = self.namespaces.join(id);
        let namespace =
            fs::File::open(&path).context(|| format!("open network namespace {}", path.display()))?;
        let mut route = Route::open()?;
        route.create_veth(&Veth {
            name: &attachment.link,
            address: Some(self.marks.of_port(&attachment.link)),
            master: Some(bridge.index),
            peer: INSIDE,
            peer_namespace: namespace.as_fd(),
            peer_address: Some(attachment.mac),
            mtu: self.config.mtu,
        })?;
        configure_inside(&mut Route::open_in(namespace.as_fd())?, attachment)?;
        if attachment.ports.is_empty() {
            return Ok(());
        }
        if let Some(link) = route.link(&attachment.link)? {
            route.set_hairpin(link.index)?;
        }
        let mut batch = Batch::new();
        self.publish(&mut batch, id, attachment);
        let _turn = self.turn();
        Nft::open()?.apply("publish ports", batch)?;
        ports::forget_others(&attachment.ports, attachment.address)
    }

    /// Removes rules and links but keeps the record. Any of them may be gone already.
    fn disconnect(&self, id: &str, attachment: &Attachment) -> Result<()> {
        if !attachment.ports.is_empty() {
            self.delete_rules(id)?;
        }
        Route::open()?.delete_link(&attachment.link).map(drop)
    }

    /// Deletes the rules of a container and releases its ports under one lock, because recreated rules are derived from
    /// the claimed ports.
    fn delete_rules(&self, id: &str) -> Result<()> {
        let table = &self.config.bridge;
        let _turn = self.turn();
        let mut nft = Nft::open()?;
        let mut batch = Batch::new();
        for rule in nft.rules(table)?.iter().filter(|rule| rule.note == id.as_bytes()) {
            batch.delete_rule(table, rule);
        }
        nft.apply(&format!("delete the packet filter rules of {id}"), batch)?;
        // First, so that it is tried again after a failure: the ports are still claimed then.
        let address = self.claims().address(id);
        address.map_or(Ok(()), ports::forget_translated)?;
        let mut claims = self.claims();
        claims.reservations.remove(id);
        if let Some(attachment) = claims.attachments.get_mut(id) {
            attachment.ports.clear();
        }
        Ok(())
    }
}

fn configure_inside(route: &mut Route, attachment: &Attachment) -> Result<()> {
    let link =
        route.link(INSIDE)?.ok_or_else(|| Error::internal(format!("{INSIDE} is not in the container")))?;
    route
        .add_address(link.index, Prefix { address: attachment.address.into(), len: attachment.prefix_len })?;
    route.set_up(link.index)?;
    route.add_default_route(attachment.gateway.into())
}

/// The veth name derived from the container's id: `hv` and a hash short enough for the kernel's limit of 15 bytes.
fn link_name(id: &str) -> String {
    format!("hv{}", Digest::of(id.as_bytes()).short())
}

fn free_address(claims: &Claims, bridge: &Bridge) -> Result<Ipv4Addr> {
    let subnet = bridge.range.subnet;
    let of_containers = claims.attachments.values().map(|attachment| attachment.address);
    let of_unread = claims.unread.values().copied().flatten();
    let used = of_containers.chain(of_unread).chain(bridge.own.iter().copied());
    let used: BTreeSet<u32> = used.map(u32::from).collect();
    let hosts = subnet.hosts();
    let begin = if hosts.contains(&claims.last) { claims.last + 1 } else { hosts.start };
    let mut candidates = (begin..hosts.end).chain(hosts.start..begin);
    candidates
        .find(|address| !used.contains(address))
        .map(Ipv4Addr::from)
        .ok_or_else(|| Error::resource_exhausted(format!("all addresses of {subnet} are in use")))
}

fn owner_of<'a>(claims: &'a Claims, port: &PublishedPort) -> Option<&'a str> {
    let owner = claims
        .attachments
        .iter()
        .find(|(_, attachment)| attachment.ports.iter().any(|other| other.collides(port)));
    owner.map(|(id, _)| id.as_str())
}

fn taken(port: &PublishedPort, owner: &str) -> Error {
    Error::failed_precondition(format!(
        "publish port {}:{}/{}: port is already allocated by container {owner}",
        port.host_address,
        port.host_port,
        protocol_name(port.transport)
    ))
}

fn published(request: &PortRequest, host_port: u16) -> PublishedPort {
    PublishedPort {
        host_address: request.host_address,
        host_port,
        container_port: request.container_port,
        transport: request.transport,
    }
}

fn request_of(port: &PublishedPort) -> PortRequest {
    PortRequest {
        host_address: port.host_address,
        host_ports: Some((port.host_port, port.host_port)),
        container_port: port.container_port,
        transport: port.transport,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_in_an_unread_record_is_given_to_no_other() {
        let range = Range { subnet: "10.88.0.0/29".parse().unwrap(), gateway: Ipv4Addr::new(10, 88, 0, 1) };
        let bridge = Bridge { index: 1, range, own: [range.gateway].into() };
        let mut claims = Claims::default();
        assert_eq!(free_address(&claims, &bridge).unwrap(), Ipv4Addr::new(10, 88, 0, 2));
        claims.unread.insert("a".to_owned(), Some(Ipv4Addr::new(10, 88, 0, 2)));
        claims.unread.insert("b".to_owned(), None);
        assert_eq!(free_address(&claims, &bridge).unwrap(), Ipv4Addr::new(10, 88, 0, 3));
        assert_eq!((claims.address("a"), claims.address("b")), (Some(Ipv4Addr::new(10, 88, 0, 2)), None));
        assert!(!claims.is_empty() && claims.ids() == ["a".to_owned(), "b".to_owned()].into());
    }
}
