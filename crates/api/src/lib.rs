//! Everything that goes over a socket: messages, services, and nothing else. No logic, no conversions.
//!
//! - [`engine`]: our own service, for people.
//! - [`grpc`]: containerd's API, served by the daemon.
//! - [`otlp`]: spans for a collector of traces.
//! - [`pprof`]: profiles for `pprof`.
//! - [`shim`]: what containerd and its shims say to each other.
//! - [`services`]: the table of gRPC services and their calls.
//!
//! Clients and servers for gRPC are behind the feature `grpc`, so that a shim, which stays in memory
//! once per container, carries none of tonic.
#![forbid(unsafe_code)]

pub mod engine;
pub mod grpc;
pub mod otlp;
pub mod pprof;
pub mod services;
pub mod shim;
