//! Netlink: messages to the kernel's network stack and its answers (netlink(7), rtnetlink(7)).
//!
//! ```text
//! ┌───────────── 16 bytes ─────────────┐┌ family's struct ┐┌ attributes ────────────────┐
//! │ length · type · flags · seq · port ││ ifinfomsg, …    ││ length · type · value · pad │ …
//! └────────────────────────────────────┘└─────────────────┘└─────────────────────────────┘
//! ```
//!
//! [`Socket`] sends requests and collects answers, with the kernel's own words (extended
//! acknowledgement) in the error. [`Route`] is the part of rtnetlink that container networks need.
//!
//! A socket belongs to the network namespace in which it was opened, whatever its owner does later.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::netlink as wire;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with, sockopt,
};
use types::{Context, Error, Result};

/// Bytes. The kernel never sends more in one datagram than the page-rounded 32 KiB of a dump.
const ANSWER_LEN_MAX: usize = 64 * 1024;

/// Bytes. Some thousands of rules.
const SEND_BUFFER_LEN: usize = 4 << 20;

/// The kernel answers at once, but for the locks that it waits for itself.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// How often something is listed that always changes before its end is read.
const DUMPS_MAX: usize = 100;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_MULTI: u16 = 0x2;
const NLM_F_ACK: u16 = 0x4;
/// In an answer to a dump: what is listed changed meanwhile, so things are missing or come twice.
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
/// In an error: the request is not repeated. In an error: attributes with the kernel's words follow.
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// An attribute's type with the bit that says "attributes inside".
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// A request being put together.
#[derive(Clone)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A request of this type that the kernel acknowledges.
    pub fn new(kind: u16, flags: u16) -> Message {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&0_u32.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        Message { bytes }
    }

    /// The fixed structure of the message's family.
    #[must_use]
    pub fn with(mut self, family_struct: &[u8]) -> Message {
        self.bytes.extend_from_slice(family_struct);
        self.pad();
        self
    }

    pub fn put(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(value.len() + 4).expect("attributes are written by this crate and are small");
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    pub fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_ne_bytes());
    }

    /// Network byte order, which nfnetlink uses for all its numbers.
    pub fn put_be32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    /// With the zero byte that the kernel expects at the end of names.
    pub fn put_str(&mut self, kind: u16, text: &str) {
        let mut value = Vec::with_capacity(text.len() + 1);
        value.extend_from_slice(text.as_bytes());
        value.push(0);
        self.put(kind, &value);
    }

    /// Attributes inside an attribute.
    pub fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Message)) {
        self.nest_with(kind, &[], inside);
    }

    /// Attributes behind a fixed structure, inside an attribute.
    pub fn nest_with(&mut self, kind: u16, family_struct: &[u8], inside: impl FnOnce(&mut Message)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(family_struct);
        self.pad();
        inside(self);
        let len = u16::try_from(self.bytes.len() - start)
            .expect("attributes are written by this crate and are small");
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.bytes[start + 2..start + 4].copy_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
    }

    fn pad(&mut self) {
        let len = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(len, 0);
    }

    /// Returns all that are set then.
    fn add_flags(&mut self, more: u16) -> u16 {
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | more;
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        flags
    }

    /// The finished message, numbered.
    fn seal(mut self, sequence: u32) -> Vec<u8> {
        let len = u32::try_from(self.bytes.len()).expect("messages are written by this crate and are small");
        self.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// The attributes of an answer: type and value, nested ones as bytes.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & NLA_TYPE_MASK;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of this type.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A netlink socket and its counter of requests.
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    pub fn open(protocol: Protocol) -> Result<Socket> {
        let protocol = match protocol {
            // NETLINK_ROUTE is protocol 0, which is what no protocol means.
            Protocol::Route => None,
            Protocol::Netfilter => Some(wire::NETFILTER),
        };
        let open = || -> io::Result<OwnedFd> {
            let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
            rustix::net::bind(&fd, &wire::SocketAddrNetlink::new(0, 0))?;
            // A transaction of many rules must fit into one datagram, whatever the machine's limit for others is.
            if sockopt::set_socket_send_buffer_size_force(&fd, SEND_BUFFER_LEN).is_err() {
                sockopt::set_socket_send_buffer_size(&fd, SEND_BUFFER_LEN)?;
            }
            sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(ANSWER_LIMIT))?;
            set_extended_acknowledgement(&fd)?;
            Ok(fd)
        };
        Ok(Socket { fd: open().context(|| "open netlink socket")?, sequence: 0 })
    }

    /// Sends one request and returns the bodies of its answers, which exclude the acknowledgement. A list is
    /// that of one moment: it is asked for again if it changed while it was read.
    pub fn request(&mut self, what: &str, message: Message) -> Result<Vec<Vec<u8>>> {
        let mut message = message;
        let is_dump = message.add_flags(NLM_F_ACK) & NLM_F_DUMP == NLM_F_DUMP;
        for _ in 0..DUMPS_MAX {
            self.sequence += 1;
            let sequence = self.sequence;
            self.send(what, &message.clone().seal(sequence))?;
            if let Some(answers) = self.receive(what, sequence..=sequence, is_dump)? {
                return Ok(answers);
            }
        }
        Err(Error::unavailable(format!(
            "{what}: it changed each of the {DUMPS_MAX} times that it was read; try again"
        )))
    }

    /// Sends several messages as one datagram (an nfnetlink batch) and waits until all are carried out, or none. `first`
    /// and `last` frame the batch.
    ///
    /// The last of `inner` alone is acknowledged: each acknowledgement takes room in the socket, which has some for 250. What
    /// fails is answered in any case, in the name of the message; what fails of the batch as a whole in that of `first`.
    pub(crate) fn transaction(
        &mut self,
        what: &str,
        first: Message,
        mut inner: Vec<Message>,
        last: Message,
    ) -> Result<()> {
        let Some(acknowledged) = inner.last_mut() else { return Ok(()) };
        acknowledged.add_flags(NLM_F_ACK);
        let head = self.sequence + 1;
        let mut datagram = Vec::new();
        for message in [first].into_iter().chain(inner).chain([last]) {
            self.sequence += 1;
            datagram.extend_from_slice(&message.seal(self.sequence));
        }
        self.send(what, &datagram)?;
        self.receive(what, head..=self.sequence, false).map(drop)
    }

    fn send(&self, what: &str, bytes: &[u8]) -> Result<()> {
        let sent = send(&self.fd, bytes, SendFlags::empty()).map_err(io::Error::from).context(|| what)?;
        assert_eq!(sent, bytes.len(), "netlink takes whole datagrams");
        Ok(())
    }

    /// None for a dump during which things changed.
    fn receive(
        &self,
        what: &str,
        mine: std::ops::RangeInclusive<u32>,
        is_dump: bool,
    ) -> Result<Option<Vec<Vec<u8>>>> {
        let mut answers = Vec::new();
        let mut is_whole = true;
        let mut buffer = vec![0; ANSWER_LEN_MAX];
        loop {
            let received = recv(&self.fd, &mut buffer[..], RecvFlags::empty()).map_err(io::Error::from);
            let (len, _) = received.context(|| format!("{what}: read the kernel's answer"))?;
            let mut rest = &buffer[..len];
            while let Some((header, body, next)) = split(rest) {
                rest = next;
                // Left over from an earlier request that failed half way.
                if !mine.contains(&header.sequence) {
                    continue;
                }
                is_whole &= !is_dump || header.flags & NLM_F_DUMP_INTR == 0;
                match header.kind {
                    NLMSG_ERROR => match error(what, body, behind_request(header.flags, body)) {
                        Some(error) => return Err(error),
                        None if is_dump => {}
                        None => return Ok(Some(answers)),
                    },
                    // A dump that fails on its way says so at its end.
                    NLMSG_DONE => match error(what, body, body.get(4..)) {
                        Some(error) => return Err(error),
                        None => return Ok(is_whole.then_some(answers)),
                    },
                    _ => {
                        answers.push(body.to_vec());
                        if header.flags & NLM_F_MULTI == 0 && is_dump {
                            return Ok(Some(answers));
                        }
                    }
                }
            }
        }
    }
}

/// Which part of the kernel answers.
#[derive(Clone, Copy, Debug)]
pub enum Protocol {
    Route,
    Netfilter,
}

struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

/// The first message of a datagram, its body, and what follows it.
fn split(bytes: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let number = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let len = usize::try_from(number(0)?).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let flags = u16::from_ne_bytes(bytes.get(6..8)?.try_into().ok()?);
    let header = Header { kind, flags, sequence: number(8)? };
    let body = bytes.get(16..len)?;
    Some((header, body, bytes.get(len.next_multiple_of(4)..).unwrap_or_default()))
}

/// The error whose number a body begins with, or none if that is 0, with the kernel's words if `attributes` have some.
fn error(what: &str, body: &[u8], attributes: Option<&[u8]>) -> Option<Error> {
    let number = body.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes);
    if number == 0 {
        return None;
    }
    let cause = io::Error::from_raw_os_error(-number);
    let mut message = what.to_owned();
    if let Some(words) = attributes.and_then(|attributes| attribute(attributes, NLMSGERR_ATTR_MSG)) {
        message = format!("{what}: the kernel says {:?}", text(words));
    }
    Some(Error::new(cause.kind().into(), message).with_source(cause))
}

/// The attributes of an `NLMSG_ERROR`, which are behind the request that failed, or behind its header.
fn behind_request(flags: u16, body: &[u8]) -> Option<&[u8]> {
    if flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let header_len = 16;
    let request_len = if flags & NLM_F_CAPPED != 0 {
        header_len
    } else {
        body.get(4..8).and_then(|bytes| bytes.try_into().ok()).map_or(header_len, u32::from_ne_bytes)
    };
    let request_len = usize::try_from(request_len).ok()?.checked_next_multiple_of(4)?;
    body.get(request_len.checked_add(4)?..)
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[expect(unsafe_code, reason = "rustix has no setter for netlink options")]
fn set_extended_acknowledgement(fd: &OwnedFd) -> io::Result<()> {
    for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
        let on: libc::c_int = 1;
        let len = libc::socklen_t::try_from(size_of_val(&on)).expect("four");
        // SAFETY: the pointer and length describe `on`, which lives across the call.
        let result = unsafe {
            libc::setsockopt(fd.as_raw_fd(), libc::SOL_NETLINK, option, (&raw const on).cast(), len)
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

// --- rtnetlink ---

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

/// What a veth pair is made with.
pub struct Veth<'a> {
    pub name: &'a str,
    pub address: Option<[u8; 6]>,
    /// The bridge that `name` joins.
    pub master: Option<u32>,
    pub peer: &'a str,
    /// The peer is born in this namespace, so it is never seen in ours.
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
    /// Whether it is for good and good everywhere: neither lent for a time, nor for one link or machine only.
    pub is_lasting: bool,
}

/// The index of loopback, which is the first link of every namespace.
pub const LOOPBACK: u32 = 1;

/// Links, addresses and routes of one network namespace.
pub struct Route(Socket);

impl Route {
    /// For the namespace of the calling thread.
    pub fn open() -> Result<Route> {
        Ok(Route(Socket::open(Protocol::Route)?))
    }

    /// For another namespace, which must be a file of `nsfs`. The calling thread stays where it is.
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

    pub fn links(&mut self) -> Result<Vec<Link>> {
        let message = Message::new(RTM_GETLINK, NLM_F_DUMP).with(&ifinfo(0, 0, 0));
        let answers = self.0.request("list network interfaces", message)?;
        Ok(answers.iter().filter_map(|answer| link(answer)).collect())
    }

    /// The link of this name, if there is one.
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

    pub fn create_bridge(&mut self, name: &str, address: Option<[u8; 6]>) -> Result<()> {
        let mut message = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL).with(&ifinfo(0, 0, 0));
        message.put_str(IFLA_IFNAME, name);
        if let Some(address) = address {
            message.put(IFLA_ADDRESS, &address);
        }
        message.nest(IFLA_LINKINFO, |info| info.put_str(IFLA_INFO_KIND, "bridge"));
        self.0.request(&format!("create bridge {name}"), message).map(drop)
    }

    /// Makes both ends in one step: ours up and on its bridge, the peer in its namespace.
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

    pub fn set_up(&mut self, index: u32) -> Result<()> {
        let message = Message::new(RTM_SETLINK, 0).with(&ifinfo(index, IFF_UP, IFF_UP));
        self.0.request(&format!("bring up network interface {index}"), message).map(drop)
    }

    /// Gives a link to another network namespace, under a name there. It arrives down and without addresses.
    pub fn give_link(&mut self, index: u32, namespace: BorrowedFd<'_>, name: &str) -> Result<()> {
        let mut message = Message::new(RTM_SETLINK, 0).with(&ifinfo(index, 0, IFF_UP));
        message.put_u32(IFLA_NET_NS_FD, u32::try_from(namespace.as_raw_fd()).expect("an open fd"));
        message.put_str(IFLA_IFNAME, name);
        self.0.request(&format!("move network interface {index} to {name} elsewhere"), message).map(drop)
    }

    /// Lets a bridge send a packet back through the port that it came in by, which a container that calls
    /// its own published port needs where the bridge hands packets to the packet filter (br_netfilter).
    pub fn set_hairpin(&mut self, index: u32) -> Result<()> {
        let mut message = Message::new(RTM_NEWLINK, 0).with(&ifinfo(index, 0, 0));
        message.nest(IFLA_LINKINFO, |info| {
            info.put_str(IFLA_INFO_SLAVE_KIND, "bridge");
            info.nest(IFLA_INFO_SLAVE_DATA, |data| data.put(IFLA_BRPORT_MODE, &[1]));
        });
        self.0.request(&format!("set hairpin mode of network interface {index}"), message).map(drop)
    }

    /// Deletes a link, and with one end of a veth pair the other. True if it was there.
    pub fn delete_link(&mut self, name: &str) -> Result<bool> {
        let mut message = Message::new(RTM_DELLINK, 0).with(&ifinfo(0, 0, 0));
        message.put_str(IFLA_IFNAME, name);
        match self.0.request(&format!("delete network interface {name}"), message) {
            Ok(_) => Ok(true),
            Err(error) if is_no_device(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

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

    /// Every address of the namespace.
    pub fn addresses(&mut self) -> Result<Vec<Address>> {
        let message = Message::new(RTM_GETADDR, NLM_F_DUMP).with(&[0; 8]);
        let answers = self.0.request("list network addresses", message)?;
        Ok(answers.iter().filter_map(|answer| address(answer)).collect())
    }

    pub fn add_default_route(&mut self, gateway: IpAddr) -> Result<()> {
        // rtmsg: family, dst_len, src_len, tos, table main, protocol static, scope universe, unicast, flags
        let body = [family(gateway), 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0];
        let mut message = Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL).with(&body);
        message.put(RTA_GATEWAY, &octets(gateway));
        self.0.request(&format!("add default route through {gateway}"), message).map(drop)
    }

    /// The destinations that have a route of their own. Default routes are left out.
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
    let master = attribute(rest, IFLA_MASTER).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    Some(Link {
        index: number(4)?,
        name: text(attribute(rest, IFLA_IFNAME)?),
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

/// The kernel's number for an error that [`Socket::request`] returned.
pub(crate) fn errno_of(error: &Error) -> Option<i32> {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    source.and_then(io::Error::raw_os_error)
}

/// Moves the calling thread into a new network namespace (unshare(2)). Meant for threads that end there.
#[expect(unsafe_code, reason = "rustix marks unshare as unsafe for the sake of the table of open files")]
pub fn enter_new_namespace() -> Result<()> {
    let flags = rustix::thread::UnshareFlags::NEWNET;
    // SAFETY: only the network namespace is left; the table of open files stays shared.
    unsafe { rustix::thread::unshare_unsafe(flags) }
        .map_err(io::Error::from)
        .context(|| "make a network namespace")
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;
    use rustix::net::socketpair;
    use types::ErrorKind;

    use super::*;

    /// A socket whose other end answers the dumps that it is asked for: `interrupted` of them are cut by a change. They
    /// end with `end`.
    fn kernel(interrupted: usize, end: Vec<u8>) -> (Socket, std::thread::JoinHandle<usize>) {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let thread = std::thread::spawn(move || {
            let mut asked = 0;
            let mut buffer = [0; 256];
            while let Ok((len @ 1.., _)) = recv(&theirs, &mut buffer[..], RecvFlags::empty()) {
                let (header, _, _) = split(&buffer[..len]).unwrap();
                let cut = asked < interrupted;
                let answer = |kind: u16, flags: u16, body: &[u8]| {
                    let mut message = Message::new(kind, NLM_F_MULTI | flags).with(body);
                    message.bytes[6..8].copy_from_slice(&(NLM_F_MULTI | flags).to_ne_bytes());
                    message.seal(header.sequence)
                };
                let mut datagram = answer(RTM_NEWLINK, 0, b"one.");
                if cut {
                    datagram.extend(answer(RTM_NEWLINK, NLM_F_DUMP_INTR, b"skip"));
                } else {
                    datagram.extend(answer(RTM_NEWLINK, 0, b"two."));
                }
                send(&theirs, &datagram, SendFlags::empty()).unwrap();
                send(&theirs, &answer(NLMSG_DONE, NLM_F_ACK_TLVS, &end), SendFlags::empty()).unwrap();
                asked += 1;
            }
            asked
        });
        (Socket { fd: ours, sequence: 0 }, thread)
    }

    #[test]
    fn a_list_that_changed_while_it_was_read_is_read_again() {
        let (mut socket, kernel) = kernel(2, vec![0; 4]);
        let answers = socket.request("list", Message::new(RTM_GETLINK, NLM_F_DUMP)).unwrap();
        assert_eq!(answers, [b"one.", b"two."]);
        drop(socket);
        assert_eq!(kernel.join().unwrap(), 3);
    }

    #[test]
    fn a_list_that_fails_on_its_way_is_no_list() {
        let mut end = Message { bytes: (-Errno::NOBUFS.raw_os_error()).to_ne_bytes().to_vec() };
        end.put_str(NLMSGERR_ATTR_MSG, "no room");
        let (mut socket, kernel) = kernel(0, end.bytes);
        let error =
            socket.request("list links", Message::new(RTM_GETLINK, NLM_F_DUMP)).unwrap_err().to_string();
        assert!(error.contains("list links") && error.contains("no room"), "{error}");
        drop(socket);
        assert_eq!(kernel.join().unwrap(), 1);
    }

    /// As the kernel does for a subsystem that it has not, and if it cannot commit what it has read.
    #[test]
    fn what_fails_of_a_whole_batch_is_answered_in_the_name_of_its_first_message() {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let mut socket = Socket { fd: ours, sequence: 6 };
        let answer = |number: Errno, sequence| {
            let number = (-number.raw_os_error()).to_ne_bytes();
            let message = Message::new(NLMSG_ERROR, 0).with(&number).seal(sequence);
            send(&theirs, &message, SendFlags::empty()).unwrap();
        };
        let mut batch = || {
            let message = |kind| Message::new(kind, 0);
            socket.transaction("make rules", message(16), vec![message(20), message(20)], message(17))
        };
        answer(Errno::OPNOTSUPP, 7);
        let error = batch().unwrap_err().to_string();
        assert!(error.contains("make rules"), "{error}");
        // The second, in the name of a message within; and what is left of the one before is nobody's.
        answer(Errno::NOENT, 9);
        answer(Errno::NOENT, 12);
        assert_eq!(batch().unwrap_err().kind(), ErrorKind::NotFound);
        let flags = |sent: &[u8]| {
            let mut rest = sent;
            let next = || split(rest).map(|(header, _, next)| (rest = next, header.flags).1);
            std::iter::from_fn(next).collect::<Vec<u16>>()
        };
        let mut buffer = [0; 256];
        let (len, _) = recv(&theirs, &mut buffer[..], RecvFlags::empty()).unwrap();
        let asked: Vec<bool> = flags(&buffer[..len]).iter().map(|flags| flags & NLM_F_ACK != 0).collect();
        assert_eq!(asked, [false, false, true, false], "one answer for all");
    }

    #[test]
    fn a_list_that_always_changes_is_given_up() {
        let (mut socket, kernel) = kernel(usize::MAX, vec![0; 4]);
        let error = socket.request("list links", Message::new(RTM_GETLINK, NLM_F_DUMP)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("list links"), "{error}");
        drop(socket);
        assert_eq!(kernel.join().unwrap(), DUMPS_MAX);
    }
}
