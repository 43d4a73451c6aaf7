//! Events: an in-memory exchange between publishers and subscribers.
//!
//! ```text
//! publish ──▶ ring of the last CAPACITY events ──▶ subscription ──filters──▶ listener
//!                                             └──▶ subscription ──▶ …
//! ```
//!
//! Invariants
//! - Publishing never waits. The ring bounds memory, however slow a subscriber is.
//! - A subscription yields events in the order of publication, each at most once. If the subscriber lagged, the number
//!   of lost events is reported in their place: a subscriber that derives state from events must then list that state
//!   anew.
//! - Nothing is kept for subscribers that come later.
#![forbid(unsafe_code)]

mod envelope;
mod exchange;

pub use envelope::Envelope;
pub use exchange::{CAPACITY, Exchange, Listening, Received, Subscription};
