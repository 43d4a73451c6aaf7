//! Debian's `docker-registry` on loopback.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::{eventually, run};

/// A running registry. Dropping it stops it and deletes what it holds.
pub struct Registry {
    process: Child,
    address: SocketAddr,
    storage: TempDir,
}

impl Registry {
    /// Starts a registry without authentication on a free port.
    pub fn start() -> Registry {
        let storage = TempDir::with_prefix("hoist-registry-").expect("a temporary directory");
        let port = free_port();
        let config = storage.path().join("config.yml");
        fs::write(&config, configuration(storage.path(), port)).expect("a writable temporary directory");
        let log = fs::File::create(storage.path().join("log")).expect("a writable temporary directory");
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("docker-registry starts; try: apt-get install docker-registry");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let registry = Registry { process, address, storage };
        eventually("docker-registry listens", || TcpStream::connect(address).ok());
        registry
    }

    /// `127.0.0.1:PORT`, as it stands in references.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Copies an image of an OCI layout into the registry and returns its reference.
    pub fn push(&self, layout: &Path, tag: &str, name: &str) -> String {
        let reference = format!("{}/{name}", self.host());
        run(Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet", "--all", "--dest-tls-verify=false"])
            .arg(format!("oci:{}:{tag}", layout.display()))
            .arg(format!("docker://{reference}")))
        .ok();
        reference
    }

    /// Where the registry keeps its blobs.
    pub fn storage(&self) -> &Path {
        self.storage.path()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Failing to stop it would only leave a process behind; there is nobody to tell.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}

fn configuration(storage: &Path, port: u16) -> String {
    format!(
        "version: 0.1\n\
         log: {{ level: warn, accesslog: {{ disabled: true }} }}\n\
         storage:\n  filesystem: {{ rootdirectory: {}/data }}\n  delete: {{ enabled: true }}\n\
         http:\n  addr: 127.0.0.1:{port}\n",
        storage.display()
    )
}
