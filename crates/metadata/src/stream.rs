//! Streams that clients have open. They are of the moment and have no records; a lease holds one as it holds records, and
//! the collector ends those that nothing keeps. Who keeps them, says who opens the records.

use types::{LeaseId, Namespace};

/// A stream that a client opened in a lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LeasedStream {
    pub namespace: Namespace,
    pub name: String,
    pub lease: LeaseId,
}

/// Whoever keeps the streams. Asked and told by collections; both must be quick.
pub trait Streams: Send + Sync {
    /// Those that were opened in leases and are open at this moment.
    fn leased(&self) -> Vec<LeasedStream>;

    /// Ends one that [`Streams::leased`] gave and nothing keeps. If it is gone, or its name is that of a stream of another
    /// lease by now, nothing happens.
    fn end(&self, stream: &LeasedStream);
}

/// There are none.
pub struct NoStreams;

impl Streams for NoStreams {
    fn leased(&self) -> Vec<LeasedStream> {
        Vec::new()
    }

    fn end(&self, _: &LeasedStream) {}
}
