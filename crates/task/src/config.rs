//! The configuration of tasks: directories, programs and time limits of shims.

use std::path::PathBuf;
use std::time::Duration;

/// Where shims and their bundles are, and how shims are started and called.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of the tasks' bundles. Not kept across a reboot, like the processes.
    pub bundles: PathBuf,
    /// Directory of the sandboxes' bundles.
    pub sandboxes: PathBuf,
    /// Directory for the shims' sockets.
    pub sockets: PathBuf,
    /// The daemon's gRPC socket, as passed to shims.
    pub grpc_address: PathBuf,
    pub ttrpc_address: PathBuf,
    /// The program that shims without ttRPC are told to publish events with.
    pub publisher: PathBuf,
    /// Path of our own shim. `None`: looked up beside the daemon and in `PATH`.
    pub shim: Option<PathBuf>,
    /// The daemon's version, as passed to shims.
    pub version: String,
    /// Environment variables for shims, in addition to the daemon's own.
    pub env: Vec<(String, String)>,
    pub limits: Limits,
    /// Whether shims log at debug level.
    pub debug: bool,
}

/// How long the daemon waits for shims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For a connection, as when a daemon reconnects after a restart.
    pub load: Duration,
    /// For an answer the shim gives from memory.
    pub state: Duration,
    pub stats: Duration,
    /// For the exit of a shim that is no longer needed.
    pub shutdown: Duration,
    /// For the program that cleans up after a dead shim (`delete`).
    pub cleanup: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            load: Duration::from_secs(5),
            state: Duration::from_secs(2),
            stats: Duration::from_secs(2),
            shutdown: Duration::from_secs(3),
            cleanup: Duration::from_secs(10),
        }
    }
}

#[cfg(test)]
impl Config {
    /// The configuration of a daemon that starts no shim.
    pub(crate) fn for_tests() -> Config {
        Config {
            bundles: PathBuf::new(),
            sandboxes: PathBuf::new(),
            sockets: PathBuf::new(),
            grpc_address: PathBuf::new(),
            ttrpc_address: PathBuf::new(),
            publisher: PathBuf::new(),
            shim: None,
            version: String::new(),
            env: Vec::new(),
            limits: Limits::default(),
            debug: false,
        }
    }
}
