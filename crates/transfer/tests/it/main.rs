//! Transfers between the stores and a real registry behind a fault-injecting proxy. They need root, as layers are
//! unpacked with their owners.

mod fixture;
mod held_merge;
mod hostile;
mod import;
mod mirrors;
mod push;
mod reads;
mod retention;
mod single_flight;
mod slow;
