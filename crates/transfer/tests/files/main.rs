//! Images in and out of real stores, without a daemon.
//!
//! What is hostile here was written by hand: an archive is refused with a sentence that names what is wrong
//! with it, and nothing of it stays.

mod barrier;
mod collected;
mod convert;
mod export;
mod fixture;
mod hostile;
mod import;
mod listing;
mod spied;
mod verify;
