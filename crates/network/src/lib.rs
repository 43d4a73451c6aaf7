//! Container networks: a bridge on the host, an IPv4 address for each container, published ports.
//!
//! ```text
//!  container's namespace            this machine
//!  ┌───────────────┐        ┌─────────────────────────────┐
//!  │ eth0 ─ veth ──┼────────┼─ hv… ─ hoist0 (bridge)      │
//!  │ 172.30.0.2    │        │        172.30.0.1, gateway  │──▶ masquerade ──▶ outside
//!  └───────────────┘        └─────────────────────────────┘◀── published ports (destination NAT)
//! ```
//!
//! An attachment is recorded before the kernel is changed, and its record is deleted last: a crash between any two
//! steps leaves a record by which [`Network::reconcile`] removes the rest. Records live below the state directory and
//! so, like the kernel's state, do not survive a reboot (`docs/design/network.md`).
//!
//! Invariants
//! - All packet filter rules are in one table, named after the bridge. Rules and links of other programs are not
//!   touched.
//! - An address and a host port belong to at most one attachment.
//! - A lock serializes changes to what containers share, the bridge and the table. No other lock is held during calls
//!   to the kernel or the disk.
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
