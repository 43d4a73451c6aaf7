//! The local store: the contract of all stores, and what it does on a disk that fails or loses power.

mod crash;
mod fault;
mod local;
