//! Networks of containers: a bridge on this machine, an address for each container, published ports.
//!
//! ```text
//!  container's namespace            this machine
//!  ┌───────────────┐        ┌─────────────────────────────┐
//!  │ eth0 ─ veth ──┼────────┼─ hv… ─ hoist0 (bridge)      │
//!  │ 172.30.0.2    │        │        172.30.0.1, gateway  │──▶ masquerade ──▶ outside
//!  └───────────────┘        └─────────────────────────────┘◀── published ports (destination NAT)
//! ```
//!
//! What an attachment consists of is written to a record first and taken from the kernel last, so a
//! crash between any two steps leaves a record by which [`Network::reconcile`] removes the rest. The
//! records live and die with the kernel's state, below the state directory (`docs/design/network.md`).
//!
//! Invariants
//! - Packet filter rules stand in one table, named like the bridge. No rule or link of others is touched.
//! - One address and one host port belong to one attachment.
//! - What containers share, the bridge and the table, changes in turns. No other lock is held while the kernel or
//!   the disk is asked.
#![forbid(unsafe_code)]

mod attachment;
mod bridge;
mod mark;
mod namespace;
mod ports;
mod records;
mod rules;

pub use attachment::{Attachment, Leftover, Network, Request};
pub use bridge::{Config, Range, Subnet};
pub use linux::nft::Transport;
pub use ports::{PortRequest, PublishedPort};
