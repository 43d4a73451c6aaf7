//! Transfers between the stores and a real registry behind a proxy that misbehaves. They need root, as layers
//! are unpacked with their owners.

mod fixture;
mod hostile;
mod mirrors;
mod push;
mod single_flight;
mod slow;
