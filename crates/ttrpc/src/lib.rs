//! ttrpc: containerd's small RPC between daemon and shims, wire compatible with the Go package.
//!
//! The core does no IO: the owner of the socket feeds received bytes and writes pending ones. So one loop can drive
//! any number of connections, and the asynchronous client and server are thin.
//!
//! - [`frame`]: the ten-byte header, and the buffers in both directions.
//! - [`message`]: request, response and status.
//! - [`Server`]: the server side of one connection. Calls may be answered in any order, at any time.
//! - [`Client`]: the client side of one connection, with any number of open calls.
//! - [`Blocking`]: a blocking client: one call at a time over a unix socket.
//! - `asynchronous`, behind the feature `tokio`: the client and server of the daemon.
//!
//! Only unary calls: containerd's shim API has no streaming ones. Data frames are ignored.
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

/// The socket path in an address such as `unix:///run/x`, `ttrpc+unix:///run/x` or `/run/x`. Any other form is
/// `InvalidArgument`.
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
