//! containerd's gRPC API, with the field numbers of containerd 2.3. Each package is a module.
//!
//! The messages are `prost` structs written by hand, with the names in the package's `.proto` file. The clients and
//! servers are generated from the table in `services.rs`, behind the feature `grpc`.

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

/// The version that `Version` answers, and that programs under containerd's names print. It is the level of
/// containerd's API that is served, as clients decide on it: nerdctl, for one, pulls through the daemon only from 2.0
/// on. Our own version is build metadata, which semantic versioning ignores in comparisons.
pub const VERSION: &str = concat!("2.3.4+hoist.", env!("CARGO_PKG_VERSION"));

/// The Go module whose API is served. containerd's programs print it as the second word of `--version`, before the
/// version that scripts take from the third.
pub const MODULE: &str = "github.com/containerd/containerd/v2";

/// `google.protobuf.Empty`
pub type Empty = ();

/// The largest message, in bytes, that client and server accept: containerd's limit. tonic's default is a quarter of
/// it.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// The largest metadata of a call or an answer, in bytes, that client and server accept: grpc-go's limit. hyper's
/// default is a thousandth of it, and answers larger ones with status 431.
pub const METADATA_BYTES_MAX: u32 = 16 << 20;

/// The metadata key that names the namespace of a call.
pub const NAMESPACE_KEY: &str = "containerd-namespace";
/// The metadata key that names the lease to which a call adds the objects that it creates.
pub const LEASE_KEY: &str = "containerd-lease";

/// Includes the generated client and server of a service in the table `services.rs`.
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
