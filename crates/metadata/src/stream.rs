//! The port for streams of clients. Streams have no records; a lease holds one like a record, and the collector ends
//! those that nothing keeps. The daemon provides it when it opens the records.

use types::{LeaseId, Namespace};

/// A stream that a client opened in a lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LeasedStream {
    pub namespace: Namespace,
    pub name: String,
    pub lease: LeaseId,
}

/// The open streams. Called by collections; both methods must be quick.
pub trait Streams: Send + Sync {
    /// The streams that were opened in leases and are open now.
    fn leased(&self) -> Vec<LeasedStream>;

    /// Ends a stream of [`Streams::leased`] that nothing keeps. Does nothing if it is gone, or if its name is now
    /// used by a stream of another lease.
    fn end(&self, stream: &LeasedStream);
}
