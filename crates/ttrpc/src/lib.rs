//! ttrpc: containerd's small RPC between daemon and shims, wire compatible with the Go package.
//!
//! The core knows no sockets: bytes go in, frames come out, and whoever owns the socket moves them.
//! So one loop can drive any number of connections, and the asynchronous face is thin.
//!
//! - [`frame`]: the ten-byte header and the buffers for bytes on their way.
//! - [`message`]: request, response and status.
//! - [`Server`]: the serving end of one connection. Answers may come in any order, at any time.
//! - [`Client`]: the calling end of one connection, many calls at once.
//! - [`Blocking`]: a client for programs that wait: one call at a time over a unix socket.
//! - `asynchronous`, behind the feature `tokio`: client and server for the daemon.
//!
//! Only unary calls: containerd's shim API has no others. A stream's data frame is passed over.
#![forbid(unsafe_code)]

pub mod frame;
pub mod message;

mod blocking;
mod client;
mod server;

#[cfg(feature = "tokio")]
pub mod asynchronous;

pub use blocking::Blocking;
pub use client::{Answer, Client};
pub use frame::{Kind, StreamId};
pub use message::{Request, Response, Status};
pub use server::{CALLS_MAX, Call, PENDING_MAX, Server};

/// Metadata key that carries containerd's namespace.
pub const NAMESPACE_KEY: &str = "containerd-namespace-ttrpc";

/// The path in an address such as `unix:///run/x`, `ttrpc+unix:///run/x` or `/run/x`.
pub fn socket_path(address: &str) -> types::Result<&std::path::Path> {
    let path = ["unix://", "ttrpc+unix://"]
        .iter()
        .find_map(|scheme| address.strip_prefix(scheme))
        .unwrap_or(address);
    if path.starts_with(['/', '@']) {
        Ok(std::path::Path::new(path))
    } else {
        Err(types::Error::invalid_argument(format!(
            "ttrpc address {address:?}: expected unix:///path, ttrpc+unix:///path or /path"
        )))
    }
}
