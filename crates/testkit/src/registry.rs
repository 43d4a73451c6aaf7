//! Debian's `docker-registry` on loopback.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::tokens::TokenServer;
use crate::{eventually, run};

/// [`Registry::PASSWORD`] as an htpasswd file stores it.
const PASSWORD_BCRYPT: &str = "$2b$04$AoI5yEZNbkzj7saF0.n2c.IuGXQScsNNJip0I9vGMi1QmCf9ttQfi";

/// Writes the certificate of a CA (`ca.pem`), and one that it issued for 127.0.0.1 (`tls.pem`, `tls.key`), into `dir`.
pub fn certify(dir: &Path) {
    let script = "openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 30 -subj /CN=test-ca &&
        openssl req -newkey rsa:2048 -nodes -keyout tls.key -out tls.csr -subj /CN=registry &&
        echo subjectAltName=IP:127.0.0.1 > ext &&
        openssl x509 -req -in tls.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out tls.pem -days 30 -extfile ext";
    run(Command::new("sh").args(["-c", script]).current_dir(dir)).ok();
}

/// A running registry. Dropping it stops it and deletes its blobs.
pub struct Registry {
    process: Child,
    address: SocketAddr,
    /// The server whose tokens the registry accepts.
    tokens: Option<TokenServer>,
    storage: TempDir,
}

impl Registry {
    /// Starts a registry without authentication on a free port.
    pub fn start() -> Registry {
        Registry::start_with(|_| String::new())
    }

    /// Starts a registry with TLS, under its own CA ([`Registry::ca`]), that requires [`Registry::USER`] and
    /// [`Registry::PASSWORD`].
    pub fn start_secured() -> Registry {
        Registry::start_with(|dir| {
            certify(dir);
            fs::write(dir.join("htpasswd"), format!("{}:{PASSWORD_BCRYPT}\n", Registry::USER))
                .expect("a writable temporary directory");
            let at = dir.display();
            format!(
                "  tls: {{ certificate: {at}/tls.pem, key: {at}/tls.key }}\n\
                 auth:\n  htpasswd: {{ realm: tests, path: {at}/htpasswd }}\n"
            )
        })
    }

    /// Starts a registry that accepts tokens of a server beside it. The server gives them to [`Registry::USER`], to a
    /// holder of [`Registry::IDENTITY_TOKEN`], and to anonymous pulls below `public/`.
    pub fn start_with_tokens() -> Registry {
        let mut tokens = None;
        let mut registry =
            Registry::start_with(|dir| tokens.insert(TokenServer::start(dir)).configuration(dir));
        registry.tokens = tokens;
        registry
    }

    pub const IDENTITY_TOKEN: &str = "1dentity";
    pub const USER: &str = "tester";
    pub const PASSWORD: &str = "s3cret";

    /// The CA's certificate of a secured registry.
    pub fn ca(&self) -> std::path::PathBuf {
        self.storage.path().join("ca.pem")
    }

    /// `further` returns more text for the configuration, beginning inside `http`. It gets the registry's directory.
    fn start_with(further: impl FnOnce(&Path) -> String) -> Registry {
        let storage = TempDir::with_prefix("hoist-registry-").expect("a temporary directory");
        let port = free_port();
        let config = storage.path().join("config.yml");
        let text = configuration(storage.path(), port) + &further(storage.path());
        fs::write(&config, text).expect("a writable temporary directory");
        let log = fs::File::create(storage.path().join("log")).expect("a writable temporary directory");
        // A registry that tests share is a static, which is never dropped: it ends when its standard input does, with
        // the test program.
        let process = Command::new("sh")
            .args(["-c", "docker-registry serve \"$0\" & cat; kill $!; wait $!"])
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("a shell starts");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let registry = Registry { process, address, tokens: None, storage };
        eventually("docker-registry listens (if it is not there: apt-get install docker-registry)", || {
            TcpStream::connect(address).ok()
        });
        registry
    }

    /// `127.0.0.1:PORT`, as references name the host.
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
            .args([
                "--insecure-policy",
                "copy",
                "--quiet",
                "--all",
                "--preserve-digests",
                "--dest-tls-verify=false",
            ])
            .args(["--dest-creds", &format!("{}:{}", Registry::USER, Registry::PASSWORD)])
            .arg(format!("oci:{}:{tag}", layout.display()))
            .arg(format!("docker://{reference}")))
        .ok();
        reference
    }

    /// The directory of the registry's blobs.
    pub fn storage(&self) -> &Path {
        self.storage.path()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        // A failure only leaves a process behind.
        let _ = self.process.wait();
        drop(self.tokens.take());
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
