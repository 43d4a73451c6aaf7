//! What the standard library lacks for this project. Nothing in it knows of containers.
#![forbid(unsafe_code)]

#[cfg(feature = "aside")]
mod aside;
mod bytes;
mod cancel;
mod duration;
mod laps;
mod lock;
mod nearest;
mod ranges;
mod read;
mod replace;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "trace")]
mod traced;

#[cfg(feature = "aside")]
pub use aside::{blocking, unbroken};
pub use bytes::{bytes, decimal_bytes};
pub use cancel::{CancelOnDrop, CancelToken, Cancelled};
pub use duration::duration;
pub use laps::Laps;
pub use lock::{Condvar, Mutex};
pub use nearest::nearest;
pub use ranges::ranges;
pub use read::{fill, read_at_most};
pub use replace::{Durable, replace};
#[cfg(feature = "trace")]
pub use traced::{TRACE, traced};
