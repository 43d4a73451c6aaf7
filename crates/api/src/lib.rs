//! All wire formats: messages and services, without logic or conversions.
//!
//! - [`engine`]: our own service, for the command line.
//! - [`grpc`]: containerd's API, served by the daemon.
//! - [`otlp`]: trace spans for an OpenTelemetry collector.
//! - [`pprof`]: profiles for `pprof`.
//! - [`shim`]: the protocol between containerd and its shims.
//! - [`services`]: the table of gRPC services and their calls.
//!
//! gRPC clients and servers are behind the feature `grpc`: a shim, which stays in memory once for each container, is
//! built without tonic.
#![forbid(unsafe_code)]

pub mod engine;
pub mod grpc;
pub mod otlp;
pub mod pprof;
pub mod services;
pub mod shim;
