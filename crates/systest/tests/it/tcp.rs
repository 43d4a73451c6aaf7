//! The API over TCP, by containerd's configuration keys: on loopback, or with client certificates.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use testkit::{Daemon, Finished, eventually, run};
use tokio::net::{TcpStream, UnixListener};
use tokio_rustls::TlsConnector;

/// A Unix socket whose connections are forwarded over TCP, with TLS if configured.
struct Carried {
    dir: TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Carried {
    fn to(address: String, tls: Option<ClientConfig>) -> Carried {
        let dir = TempDir::new().expect("a temporary directory");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let _inside = runtime.enter();
        let listener = UnixListener::bind(dir.path().join("sock")).expect("a writable directory");
        let tls = tls.map(|tls| TlsConnector::from(Arc::new(tls)));
        runtime.spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (address, tls) = (address.clone(), tls.clone());
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(address).await?;
                    let Some(tls) = tls else {
                        return tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    };
                    let name = ServerName::try_from("127.0.0.1").expect("an address");
                    let mut far = tls.connect(name, far).await?;
                    tokio::io::copy_bidirectional(&mut near, &mut far).await
                });
            }
            io::Result::Ok(())
        });
        Carried { dir, _runtime: runtime }
    }

    /// The output of Debian's `ctr version` over this socket.
    fn version(&self) -> Finished {
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(self.dir.path().join("sock")).args(["--connect-timeout", "5s", "version"]);
        run(&mut ctr)
    }
}

/// A TLS client that trusts the authority of `trusted`, and presents the certificate of `own`.
fn client(trusted: &Path, own: Option<&Path>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(trusted.join("ca.pem")).expect("openssl wrote it");
    roots.add(authority).expect("an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("versions of the provider").with_root_certificates(roots);
    let mut config = match own {
        None => config.with_no_client_auth(),
        Some(own) => {
            let chain = vec![CertificateDer::from_pem_file(own.join("tls.pem")).expect("openssl wrote it")];
            let key = PrivateKeyDer::from_pem_file(own.join("tls.key")).expect("openssl wrote it");
            config.with_client_auth_cert(chain, key).expect("they belong together")
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// The daemon's TCP address, from its log.
fn address(daemon: &Daemon) -> String {
    eventually("it says where", || {
        let log = daemon.log();
        let line = log.lines().find(|line| line.contains("served over TCP"))?;
        Some(line.split("address=").nth(1)?.split(' ').next()?.to_owned())
    })
}

fn started(keys: &str) -> Daemon {
    Daemon::start_as("containerd", |places| {
        format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n[grpc]\naddress = {:?}\ntcp_address = \"127.0.0.1:0\"\n{keys}",
            places.root, places.state, places.socket
        )
    })
}

#[test]
fn a_daemon_listens_to_tcp_on_its_machine() {
    let daemon = started("");
    assert!(!daemon.log().contains("has no effect"), "{}", daemon.log());
    let carried = Carried::to(address(&daemon), None);
    assert!(carried.version().ok().stdout.contains("2.3.4+hoist."));
    assert!(daemon.ctr(["version"]).ok().stdout.contains("2.3.4+hoist."), "the socket is there too");
}

#[test]
fn a_daemon_listens_to_tcp_for_who_has_a_certificate() {
    let certified = || {
        let dir = TempDir::new().expect("a temporary directory");
        testkit::certify(dir.path());
        dir
    };
    let (own, other) = (certified(), certified());
    let path = |name: &str| -> PathBuf { own.path().join(name) };
    let daemon = started(&format!(
        "tcp_tls_cert = {:?}\ntcp_tls_key = {:?}\ntcp_tls_ca = {:?}\n",
        path("tls.pem"),
        path("tls.key"),
        path("ca.pem")
    ));
    let address = address(&daemon);
    let version = |tls: Option<ClientConfig>| Carried::to(address.clone(), tls).version();
    let known = version(Some(client(own.path(), Some(own.path())))).ok();
    assert!(known.stdout.contains("2.3.4+hoist."), "{known}");
    for (who, tls) in [
        ("no certificate", Some(client(own.path(), None))),
        ("one of another authority", Some(client(own.path(), Some(other.path())))),
        ("no TLS", None),
    ] {
        assert_ne!(version(tls).code, 0, "{who}");
    }
    assert_eq!(version(Some(client(own.path(), Some(own.path())))).code, 0, "the others held up nobody");
}
