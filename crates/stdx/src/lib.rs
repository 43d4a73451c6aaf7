//! What the standard library lacks for us. No word of the container domain may appear here.
#![forbid(unsafe_code)]

mod duration;
mod laps;
mod nearest;
#[cfg(feature = "trace")]
mod traced;
mod wanted;

pub use duration::duration;
pub use laps::Laps;
pub use nearest::nearest;
#[cfg(feature = "trace")]
pub use traced::{TRACE, traced};
pub use wanted::{Asker, Unwanted, Wanted};
