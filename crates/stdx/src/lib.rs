//! What the standard library lacks for us. No word of the container domain may appear here.
#![forbid(unsafe_code)]

mod laps;
mod nearest;

pub use laps::Laps;
pub use nearest::nearest;
