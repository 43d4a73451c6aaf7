//! containerd's gRPC API, one module a package, with the field numbers of containerd 2.3.
//!
//! The messages are `prost` structs written by hand, named as in the `.proto` file of their package;
//! the clients and servers around them come from the table in `services.rs`, behind the feature `grpc`.

pub mod containers;
pub mod content;
pub mod diff;
#[cfg(feature = "grpc")]
pub mod encoded;
pub mod event;
pub mod events;
pub mod health;
pub mod images;
pub mod introspection;
pub mod leases;
pub mod mounts;
pub mod namespaces;
pub mod reflection;
pub mod sandbox;
pub mod snapshots;
pub mod streaming;
pub mod tasks;
pub mod transfer;
pub mod types;
pub mod version;

/// The version that `Version` answers, and that programs under containerd's names print: the level of containerd's API that
/// is served, which is what clients decide on, with our own version as build metadata, which semantic versioning lets them
/// ignore. nerdctl, for one, pulls through the daemon only from 2.0 on.
pub const VERSION: &str = concat!("2.3.4+hoist.", env!("CARGO_PKG_VERSION"));

/// The module whose API is served at [`VERSION`]: the second word of what containerd's programs say with `--version`, of
/// which scripts take the third.
pub const MODULE: &str = "github.com/containerd/containerd/v2";

/// `google.protobuf.Empty`
pub type Empty = ();

/// The largest message either side takes. tonic's own limit is a quarter of containerd's.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// The most metadata of a call or an answer that either side takes, as grpc-go does: hyper's own limit is a thousandth
/// of it, and answers with a bare 431.
pub const METADATA_BYTES_MAX: u32 = 16 << 20;

/// The metadata key that names the namespace of a call.
pub const NAMESPACE_KEY: &str = "containerd-namespace";
/// The metadata key that names the lease to which a call adds what it makes.
pub const LEASE_KEY: &str = "containerd-lease";

/// Includes client and server of one service of the table in `services.rs`.
#[cfg(feature = "grpc")]
macro_rules! service {
    ($name:literal) => {
        #[allow(unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
        mod service {
            include!(concat!(env!("OUT_DIR"), "/client/", $name, ".rs"));
            include!(concat!(env!("OUT_DIR"), "/server/", $name, ".rs"));
        }
        pub use service::*;
    };
}
#[cfg(feature = "grpc")]
pub(crate) use service;
