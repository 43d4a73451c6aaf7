//! Imports and exports with real stores, without a daemon.
//!
//! Malicious archives are written by hand: an archive must be refused with an error that names the problem, and leave
//! nothing behind.

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
