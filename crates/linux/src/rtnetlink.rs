//! Links, addresses and routes of network namespaces (rtnetlink(7)), as far as container networks need them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use types::{Context, Error, Result};

use crate::netlink::{
    Message, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, Protocol, Socket, attribute, attributes, errno_of, text,
};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_MODE: u16 = 4;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_PERMANENT: u8 = 0x80;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RTA_DST: u16 = 1;
const RTA_GATEWAY: u16 = 5;
const IFF_UP: u32 = 1;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// Alternative names (`ip link property add … altname`), by which the link is found too. No other link of the
    /// namespace can have one of them as its name.
    pub alternative_names: Vec<String>,
    /// `bridge`, `veth`, …; empty for hardware and loopback.
    pub kind: String,
    /// The bridge it belongs to.
    pub master: Option<u32>,
    pub is_up: bool,
    /// Hardware address; empty where the link has none.
    pub address: Vec<u8>,
}

/// An address range: `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    pub address: IpAddr,
    pub len: u8,
}

/// Parameters of a veth pair.
pub struct Veth<'a> {
    pub name: &'a str,
    pub address: Option<[u8; 6]>,
    /// The bridge that `name` joins.
    pub master: Option<u32>,
    pub peer: &'a str,
    /// The peer is created in this namespace, and never visible in the caller's.
    pub peer_namespace: BorrowedFd<'a>,
    pub peer_address: Option<[u8; 6]>,
    pub mtu: Option<u32>,
}

/// An address of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The link's index.
    pub link: u32,
    pub prefix: Prefix,
    /// Whether it is permanent and of global scope: without a lifetime, and not of one link or host only.
    pub is_lasting: bool,
}

/// The index of loopback, which is the first link of every namespace.
pub const LOOPBACK: u32 = 1;

/// The links, addresses and routes of one network namespace.
pub struct Route(Socket);

impl Route {
    /// In the namespace of the calling thread.
    pub fn open() -> Result<Route> {
        Ok(Route(Socket::open(Protocol::Route)?))
    }

    /// In another namespace, which must be a file of `nsfs`. The calling thread stays where it is.
    pub fn open_in(namespace: BorrowedFd<'_>) -> Result<Route> {
        std::thread::scope(|scope| {
            let opened = scope.spawn(|| {
                rustix::thread::move_into_link_name_space(
                    namespace,
                    Some(rustix::thread::LinkNameSpaceType::Network),
                )
                .map_err(io::Error::from)
                .context(|| "enter network namespace")?;
                Route::open()
            });
            opened.join().expect("the thread does not panic")
        })
    }

    /// All links of the namespace.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let message = Message::new(RTM_GETLINK, NLM_F_DUMP).with(&ifinfo(0, 0, 0));
        let answers = self.0.request("list network interfaces", message)?;
        Ok(answers.iter().filter_map(|answer| link(answer)).collect())
    }

    /// The link of this name or alternative name, if there is one.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>> {
        let mut message = Message::new(RTM_GETLINK, 0).with(&ifinfo(0, 0, 0));
        message.put_str(IFLA_IFNAME, name);
        match self.0.request(&format!("look up network interface {name}"), message) {
            Ok(answers) => Ok(answers.first().and_then(|answer| link(answer))),
            // ENODEV has no io kind of its own.
            Err(error) if is_no_device(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Creates a bridge, down, with this hardware address or a random one. `AlreadyExists` if the name is taken.
    pub fn create_bridge(&mut self, name: &str, address: Option<[u8; 6]>) -> Result<()> {
        let mut message = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL).with(&ifinfo(0, 0, 0));
        message.put_str(IFLA_IFNAME, name);
        if let Some(address) = address {
            message.put(IFLA_ADDRESS, &address);
        }
        message.nest(IFLA_LINKINFO, |info| info.put_str(IFLA_INFO_KIND, "bridge"));
        self.0.request(&format!("create bridge {name}"), message).map(drop)
    }

    /// Creates both ends in one step: `name` up and on its bridge, the peer in its namespace.
    pub fn create_veth(&mut self, veth: &Veth<'_>) -> Result<()> {
        let mut message =
            Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL).with(&ifinfo(0, IFF_UP, IFF_UP));
        message.put_str(IFLA_IFNAME, veth.name);
        if let Some(address) = veth.address {
            message.put(IFLA_ADDRESS, &address);
        }
        if let Some(master) = veth.master {
            message.put_u32(IFLA_MASTER, master);
        }
        if let Some(mtu) = veth.mtu {
            message.put_u32(IFLA_MTU, mtu);
        }
        message.nest(IFLA_LINKINFO, |info| {
            info.put_str(IFLA_INFO_KIND, "veth");
            info.nest(IFLA_INFO_DATA, |data| {
                data.nest_with(VETH_INFO_PEER, &ifinfo(0, 0, 0), |peer| {
                    peer.put_str(IFLA_IFNAME, veth.peer);
                    if let Some(address) = veth.peer_address {
                        peer.put(IFLA_ADDRESS, &address);
                    }
                    if let Some(mtu) = veth.mtu {
                        peer.put_u32(IFLA_MTU, mtu);
                    }
                    let fd = u32::try_from(veth.peer_namespace.as_raw_fd()).expect("an open fd");
                    peer.put_u32(IFLA_NET_NS_FD, fd);
                });
            });
        });
        self.0.request(&format!("create veth pair {} and {}", veth.name, veth.peer), message).map(drop)
    }

    /// Brings a link up.
    pub fn set_up(&mut self, index: u32) -> Result<()> {
        let message = Message::new(RTM_SETLINK, 0).with(&ifinfo(index, IFF_UP, IFF_UP));
        self.0.request(&format!("bring up network interface {index}"), message).map(drop)
    }

    /// Moves a link to another network namespace, with a name there. It arrives down and without addresses.
    pub fn give_link(&mut self, index: u32, namespace: BorrowedFd<'_>, name: &str) -> Result<()> {
        let mut message = Message::new(RTM_SETLINK, 0).with(&ifinfo(index, 0, IFF_UP));
        message.put_u32(IFLA_NET_NS_FD, u32::try_from(namespace.as_raw_fd()).expect("an open fd"));
        message.put_str(IFLA_IFNAME, name);
        self.0.request(&format!("move network interface {index} to {name} elsewhere"), message).map(drop)
    }

    /// Lets a bridge send a packet back through the port that it came in by (hairpin), which a container needs to call
    /// its own published port if the bridge passes packets to netfilter (br_netfilter).
    pub fn set_hairpin(&mut self, index: u32) -> Result<()> {
        let mut message = Message::new(RTM_NEWLINK, 0).with(&ifinfo(index, 0, 0));
        message.nest(IFLA_LINKINFO, |info| {
            info.put_str(IFLA_INFO_SLAVE_KIND, "bridge");
            info.nest(IFLA_INFO_SLAVE_DATA, |data| data.put(IFLA_BRPORT_MODE, &[1]));
        });
        self.0.request(&format!("set hairpin mode of network interface {index}"), message).map(drop)
    }

    /// Deletes a link; with one end of a veth pair the other goes too. True if it existed.
    pub fn delete_link(&mut self, name: &str) -> Result<bool> {
        let mut message = Message::new(RTM_DELLINK, 0).with(&ifinfo(0, 0, 0));
        message.put_str(IFLA_IFNAME, name);
        match self.0.request(&format!("delete network interface {name}"), message) {
            Ok(_) => Ok(true),
            Err(error) if is_no_device(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Adds an address to a link. `AlreadyExists` if the link has it.
    pub fn add_address(&mut self, index: u32, prefix: Prefix) -> Result<()> {
        let family = family(prefix.address);
        let mut body = vec![family, prefix.len, 0, 0];
        body.extend_from_slice(&index.to_ne_bytes());
        let mut message = Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL).with(&body);
        let bytes = octets(prefix.address);
        message.put(IFA_LOCAL, &bytes);
        message.put(IFA_ADDRESS, &bytes);
        let what = format!("give {}/{} to network interface {index}", prefix.address, prefix.len);
        self.0.request(&what, message).map(drop)
    }

    /// All addresses of the namespace.
    pub fn addresses(&mut self) -> Result<Vec<Address>> {
        let message = Message::new(RTM_GETADDR, NLM_F_DUMP).with(&[0; 8]);
        let answers = self.0.request("list network addresses", message)?;
        Ok(answers.iter().filter_map(|answer| address(answer)).collect())
    }

    /// Adds a default route through a gateway. `AlreadyExists` if there is one.
    pub fn add_default_route(&mut self, gateway: IpAddr) -> Result<()> {
        // rtmsg: family, dst_len, src_len, tos, table main, protocol static, scope universe, unicast, flags
        let body = [family(gateway), 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0];
        let mut message = Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL).with(&body);
        message.put(RTA_GATEWAY, &octets(gateway));
        self.0.request(&format!("add default route through {gateway}"), message).map(drop)
    }

    /// The destinations of all routes except default routes.
    pub fn routes(&mut self) -> Result<Vec<Prefix>> {
        let message = Message::new(RTM_GETROUTE, NLM_F_DUMP).with(&[0; 12]);
        let answers = self.0.request("list routes", message)?;
        Ok(answers.iter().filter_map(|answer| destination(answer)).collect())
    }
}

fn ifinfo(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&flags.to_ne_bytes());
    body[12..16].copy_from_slice(&change.to_ne_bytes());
    body
}

fn link(answer: &[u8]) -> Option<Link> {
    let number = |at: usize| Some(u32::from_ne_bytes(answer.get(at..at + 4)?.try_into().ok()?));
    let rest = answer.get(16..)?;
    let info = attribute(rest, IFLA_LINKINFO).unwrap_or_default();
    let properties = attributes(attribute(rest, IFLA_PROP_LIST).unwrap_or_default());
    let alternative_names = properties.filter(|(kind, _)| *kind == IFLA_ALT_IFNAME);
    let master = attribute(rest, IFLA_MASTER).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    Some(Link {
        index: number(4)?,
        name: text(attribute(rest, IFLA_IFNAME)?),
        alternative_names: alternative_names.map(|(_, name)| text(name)).collect(),
        kind: attribute(info, IFLA_INFO_KIND).map(text).unwrap_or_default(),
        master,
        is_up: number(8)? & IFF_UP != 0,
        address: attribute(rest, IFLA_ADDRESS).unwrap_or_default().to_vec(),
    })
}

fn address(answer: &[u8]) -> Option<Address> {
    let [_, len, flags, scope] = *answer.first_chunk()?;
    let link = u32::from_ne_bytes(answer.get(4..8)?.try_into().ok()?);
    let rest = answer.get(8..)?;
    let bytes = attribute(rest, IFA_LOCAL).or_else(|| attribute(rest, IFA_ADDRESS))?;
    let is_lasting = flags & IFA_F_PERMANENT != 0 && scope == RT_SCOPE_UNIVERSE;
    Some(Address { link, prefix: Prefix { address: ip(bytes)?, len }, is_lasting })
}

fn destination(answer: &[u8]) -> Option<Prefix> {
    let len = *answer.get(1)?;
    let address = ip(attribute(answer.get(12..)?, RTA_DST)?)?;
    (len > 0).then_some(Prefix { address, len })
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => AF_INET,
        IpAddr::V6(_) => AF_INET6,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

fn is_no_device(error: &Error) -> bool {
    errno_of(error) == Some(libc::ENODEV)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::NLA_F_NESTED;

    #[test]
    fn a_link_has_its_alternative_names() {
        let attribute = |kind: u16, value: &[u8]| {
            let len = u16::try_from(value.len() + 4).unwrap();
            let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
            bytes.extend_from_slice(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let names = [attribute(IFLA_ALT_IFNAME, b"enp0s3\0"), attribute(IFLA_ALT_IFNAME, b"net0\0")].concat();
        let name = attribute(IFLA_IFNAME, b"eth0\0");
        let answer =
            [&ifinfo(7, IFF_UP, 0)[..], &name, &attribute(IFLA_PROP_LIST | NLA_F_NESTED, &names)].concat();
        let read = link(&answer).unwrap();
        assert_eq!((read.index, read.name.as_str(), read.is_up), (7, "eth0", true));
        assert_eq!(read.alternative_names, ["enp0s3", "net0"]);
        let answer = [&ifinfo(7, 0, 0)[..], &name].concat();
        assert!(link(&answer).unwrap().alternative_names.is_empty());
    }
}
