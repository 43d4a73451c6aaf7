//! Connection tracking: the flows that the kernel remembers (`nfnetlink_conntrack.h`).
//!
//! The kernel decides on routing and address translation at the first packet of a flow. Later changes of rules do not
//! affect flows that it remembers: a caller that changes rules has it forget them.

use std::net::{Ipv4Addr, SocketAddrV4};

use types::{Error, ErrorKind, Result};

use crate::netlink::{Message, NLA_F_NESTED, NLM_F_DUMP, Protocol, Socket, attribute, errno_of};
use crate::nft::Transport;

const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;

/// Fields of a tuple that a list is filtered by: bits of `CTA_FILTER_*_FLAGS`, in native byte order.
const BY_SOURCE: u32 = 1 << 0;
const BY_PROTOCOL: u32 = 1 << 3;
const BY_DESTINATION_PORT: u32 = 1 << 5;

const NFPROTO_IPV4: u8 = 2;

/// A selection of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flows {
    /// Flows whose first packet went to this port, of any address.
    To(Transport, u16),
    /// Flows in which this address replies.
    AnsweredBy(Ipv4Addr),
}

/// The parts of a flow by which callers tell it from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Number of the transport protocol.
    pub protocol: u8,
    /// The destination of its first packet.
    pub to: SocketAddrV4,
    /// The replying address: another one if the destination was translated.
    pub answered_by: Ipv4Addr,
}

/// The IPv4 connection tracking table of one network namespace.
pub struct Conntrack(Socket);

impl Conntrack {
    /// For the namespace of the calling thread.
    pub fn open() -> Result<Conntrack> {
        Ok(Conntrack(Socket::open(Protocol::Netfilter)?))
    }

    /// Deletes the selected flows that are stale, so that their next packets are handled like first ones. Does nothing
    /// if the kernel cannot list flows.
    pub fn forget(&mut self, flows: Flows, is_stale: impl Fn(&Flow) -> bool) -> Result<()> {
        let listed = match self.0.request("list flows", list(flows)) {
            Err(error) if is_unsupported(&error) => return Ok(()),
            other => other?,
        };
        for answer in listed.iter().filter_map(|answer| answer.get(4..)) {
            // An old kernel lists all flows, unfiltered.
            let Some(flow) = read(answer).filter(|flow| flows.include(flow) && is_stale(flow)) else {
                continue;
            };
            let mut message = message(IPCTNL_MSG_CT_DELETE, 0);
            for (kind, flag) in [(CTA_TUPLE_ORIG, NLA_F_NESTED), (CTA_ID, 0), (CTA_ZONE, 0)] {
                if let Some(value) = attribute(answer, kind) {
                    message.put(kind | flag, value);
                }
            }
            match self.0.request(&format!("forget the flow with {}", flow.to), message) {
                Err(error) if !error.is(ErrorKind::NotFound) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Flows {
    fn include(self, flow: &Flow) -> bool {
        match self {
            Flows::To(transport, port) => (flow.protocol, flow.to.port()) == (transport.number(), port),
            Flows::AnsweredBy(address) => flow.answered_by == address,
        }
    }
}

fn list(flows: Flows) -> Message {
    let mut list = message(IPCTNL_MSG_CT_GET, NLM_F_DUMP);
    match flows {
        Flows::To(transport, port) => {
            list.nest(CTA_TUPLE_ORIG, |tuple| {
                tuple.nest(CTA_TUPLE_PROTO, |protocol| {
                    protocol.put(CTA_PROTO_NUM, &[transport.number()]);
                    protocol.put(CTA_PROTO_DST_PORT, &port.to_be_bytes());
                });
            });
            let flags = BY_PROTOCOL | BY_DESTINATION_PORT;
            list.nest(CTA_FILTER, |filter| filter.put_u32(CTA_FILTER_ORIG_FLAGS, flags));
        }
        Flows::AnsweredBy(address) => {
            list.nest(CTA_TUPLE_REPLY, |tuple| {
                tuple.nest(CTA_TUPLE_IP, |ip| ip.put(CTA_IP_V4_SRC, &address.octets()));
            });
            list.nest(CTA_FILTER, |filter| filter.put_u32(CTA_FILTER_REPLY_FLAGS, BY_SOURCE));
        }
    }
    list
}

fn message(number: u16, flags: u16) -> Message {
    Message::new(NFNL_SUBSYS_CTNETLINK << 8 | number, flags).with(&[NFPROTO_IPV4, 0, 0, 0])
}

fn read(answer: &[u8]) -> Option<Flow> {
    let (first, reply) = (attribute(answer, CTA_TUPLE_ORIG)?, attribute(answer, CTA_TUPLE_REPLY)?);
    let address = |tuple, kind| {
        let octets: [u8; 4] = attribute(attribute(tuple, CTA_TUPLE_IP)?, kind)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets))
    };
    let protocol = attribute(first, CTA_TUPLE_PROTO)?;
    // Some protocols have no ports.
    let port = attribute(protocol, CTA_PROTO_DST_PORT).and_then(|bytes| bytes.try_into().ok());
    Some(Flow {
        protocol: *attribute(protocol, CTA_PROTO_NUM)?.first()?,
        to: SocketAddrV4::new(address(first, CTA_IP_V4_DST)?, port.map_or(0, u16::from_be_bytes)),
        answered_by: address(reply, CTA_IP_V4_SRC)?,
    })
}

/// nfnetlink's errors if the kernel lacks `nf_conntrack_netlink`.
fn is_unsupported(error: &Error) -> bool {
    matches!(errno_of(error), Some(libc::EINVAL | libc::EOPNOTSUPP))
}
