//! Published ports: requests, rules, and the reservations that keep other programs from binding them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use linux::conntrack::{Conntrack, Flows};
use linux::nft::{Batch, Expr, Transport};
use linux::rtnetlink::Route;
use serde::{Deserialize, Serialize};
use types::{Error, ErrorKind, Result};

use crate::rules::{OUTPUT, PREROUTING};

/// A container port to be reachable from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRequest {
    /// The host address to publish on; `0.0.0.0` is all of them.
    pub host_address: Ipv4Addr,
    /// First and last port of the range from which the first free one is chosen. `None`: any free port.
    pub host_ports: Option<(u16, u16)>,
    pub container_port: u16,
    pub transport: Transport,
}

/// A port that is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    pub host_address: Ipv4Addr,
    pub host_port: u16,
    pub container_port: u16,
    #[serde(with = "transport")]
    pub transport: Transport,
}

impl PublishedPort {
    pub(crate) fn collides(&self, other: &PublishedPort) -> bool {
        let any = |port: &PublishedPort| port.host_address.is_unspecified();
        let same_address = self.host_address == other.host_address || any(self) || any(other);
        self.transport == other.transport && self.host_port == other.host_port && same_address
    }

    /// Adds the destination NAT rules that lead to the container.
    pub(crate) fn publish(&self, batch: &mut Batch, table: &str, container: Ipv4Addr, note: &[u8]) {
        let to = Expr::TranslateDestination(container, self.container_port);
        let on = if self.host_address.is_unspecified() {
            Expr::DestinationIsLocal
        } else {
            Expr::DestinationIn(self.host_address, 32)
        };
        let rule = [on, Expr::Port(self.transport, self.host_port), to];
        // Packets from outside must not reach loopback, and the host's own do not pass PREROUTING.
        if !self.host_address.is_loopback() {
            batch.add_rule(table, PREROUTING, &rule, note);
        }
        batch.add_rule(table, OUTPUT, &rule, note);
    }
}

/// A bound socket that is never read: it keeps other programs from binding the port, and fails if one has.
pub(crate) struct Reservation {
    pub(crate) port: u16,
    _socket: Socket,
}

enum Socket {
    Tcp { _held: TcpListener },
    Udp { _held: UdpSocket },
}

/// Reserves a host port. If `host_port` is `None`, the kernel chooses one.
pub(crate) fn reserve(request: &PortRequest, host_port: Option<u16>) -> Result<Reservation> {
    let wanted = SocketAddr::new(IpAddr::V4(request.host_address), host_port.unwrap_or(0));
    let bound = match request.transport {
        Transport::Tcp => TcpListener::bind(wanted)
            .and_then(|held| Ok((held.local_addr()?.port(), Socket::Tcp { _held: held }))),
        Transport::Udp => UdpSocket::bind(wanted)
            .and_then(|held| Ok((held.local_addr()?.port(), Socket::Udp { _held: held }))),
    };
    match bound {
        Ok((port, socket)) => Ok(Reservation { port, _socket: socket }),
        Err(error) => {
            let (name, kind) = match error.kind() {
                std::io::ErrorKind::AddrInUse => {
                    ("is already in use on this machine", ErrorKind::FailedPrecondition)
                }
                std::io::ErrorKind::AddrNotAvailable => {
                    ("is on no interface of this machine", ErrorKind::InvalidArgument)
                }
                _ => ("cannot be taken", ErrorKind::Unknown),
            };
            let message =
                format!("publish port {wanted}/{}: the address {name}", protocol_name(request.transport));
            Err(Error::new(kind, message).with_source(error))
        }
    }
}

/// Deletes conntrack entries of UDP flows to these ports that lead to a previous container or to the host itself, so
/// that their next datagram reaches this container. TCP connections end by themselves.
pub(crate) fn forget_others(ports: &[PublishedPort], container: Ipv4Addr) -> Result<()> {
    let mut datagrams = ports.iter().filter(|port| port.transport == Transport::Udp).peekable();
    if datagrams.peek().is_none() {
        return Ok(());
    }
    let addresses = Route::open()?.addresses()?;
    let is_ours = |address: Ipv4Addr| {
        address.is_loopback() || addresses.iter().any(|own| own.prefix.address == IpAddr::V4(address))
    };
    let mut conntrack = Conntrack::open()?;
    for port in datagrams {
        // Flows that this host only forwards to the same port elsewhere are kept.
        let is_to_port = |to: Ipv4Addr| {
            if port.host_address.is_unspecified() { is_ours(to) } else { port.host_address == to }
        };
        conntrack.forget(Flows::To(port.transport, port.host_port), |flow| {
            is_to_port(*flow.to.ip()) && flow.answered_by != container
        })?;
    }
    Ok(())
}

/// Deletes conntrack entries of flows that reach a container through its published ports.
pub(crate) fn forget_translated(container: Ipv4Addr) -> Result<()> {
    Conntrack::open()?.forget(Flows::AnsweredBy(container), |flow| *flow.to.ip() != container)
}

pub(crate) fn protocol_name(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    }
}

/// Serializes a transport as its name.
mod transport {
    use linux::nft::Transport;
    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
    pub(super) fn serialize<S: Serializer>(transport: &Transport, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(super::protocol_name(*transport))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Transport, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "tcp" => Ok(Transport::Tcp),
            "udp" => Ok(Transport::Udp),
            other => Err(serde::de::Error::custom(format!("unknown transport {other:?}"))),
        }
    }
}
