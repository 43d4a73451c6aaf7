//! Events: what happened, told to whoever listens.
//!
//! ```text
//! publish ──▶ ring of the last CAPACITY events ──▶ subscription ──filters──▶ listener
//!                                             └──▶ subscription ──▶ …
//! ```
//!
//! Invariants
//! - Publishing never waits. Memory is bounded by the ring, however slow a listener is.
//! - A subscription gets events in the order in which they were published, and each of its kind
//!   once. Where it was too slow for the ring it is told how many it lost, in their place: whoever
//!   follows events to know a state lists that state again.
//! - Nothing is kept for listeners that come later.
#![forbid(unsafe_code)]

mod envelope;
mod exchange;

pub use envelope::Envelope;
pub use exchange::{CAPACITY, Exchange, Listening, Received, Subscription};
