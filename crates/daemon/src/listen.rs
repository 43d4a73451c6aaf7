//! Listening sockets: of the API, of shims' events, and for debugging.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use types::{Context, Error, Result};

use crate::config::Config;
use crate::config::tcp::{Tcp, Tls};
use crate::server::Listener;

/// Listens on the configured socket of the API, replacing the socket of a dead daemon.
pub(crate) fn listen(config: &Config) -> Result<UnixListener> {
    bind(&config.address, config.socket_mode, (config.socket_uid, config.socket_gid))
}

/// Listens for events of shims. Only the owner can connect.
pub(crate) fn listen_for_events(config: &Config) -> Result<UnixListener> {
    bind(&config.ttrpc_address, 0o600, config.ttrpc_owner)
}

/// Listens on the debugging socket.
pub(crate) fn listen_for_debugging(path: &Path, uid: Option<u32>, gid: Option<u32>) -> Result<UnixListener> {
    bind(path, 0o660, (uid, gid))
}

/// Listens for API calls over TCP.
pub(crate) async fn listen_on_tcp(tcp: &Tcp) -> Result<Listener> {
    let about = || format!("configuration: grpc.tcp_address: listen on {}", tcp.address);
    let acceptor = tcp.tls.as_ref().map(acceptor).transpose()?;
    let listener = TcpListener::bind(tcp.address).await.context(about)?;
    let address = listener.local_addr().context(about)?;
    tracing::info!(%address, tls = acceptor.is_some(), "calls are served over TCP");
    Ok(Listener::Tcp(listener, acceptor))
}

/// The TLS configuration; requires client certificates if the configuration names a CA for them.
fn acceptor(tls: &Tls) -> Result<TlsAcceptor> {
    let certificates = |path: &Path| {
        let read =
            CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
        read.map_err(|error| unread(path).with_source(error))
    };
    let wrong =
        |error: rustls::Error| Error::invalid_argument("configuration: grpc.tcp_tls_cert").with_source(error);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider.clone());
    let config = config.with_safe_default_protocol_versions().map_err(wrong)?;
    let config = match &tls.client_ca {
        None => config.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| unread(path).with_source(error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            config.with_client_cert_verifier(verifier.map_err(|error| unread(path).with_source(error))?)
        }
    };
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|error| unread(&tls.key).with_source(error))?;
    let mut config = config.with_single_cert(certificates(&tls.cert)?, key).map_err(wrong)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn unread(path: &Path) -> Error {
    Error::invalid_argument(format!("configuration: grpc.tcp_tls: read {}", path.display()))
}

/// Binds a socket. `FailedPrecondition` if a process listens on it, or if another kind of file is in the way.
///
/// Until its mode is set, only the owner can connect: the process's umask does not let others write to the new socket.
fn bind(path: &Path, mode: u32, (uid, gid): (Option<u32>, Option<u32>)) -> Result<UnixListener> {
    let about = || format!("listen on {}", path.display());
    if let Some(dir) = path.parent() {
        let made = DirBuilder::new().recursive(true).mode(0o711).create(dir);
        made.context(|| format!("create {}", dir.display()))?;
    }
    remove_stale(path)?;
    let listener = UnixListener::bind(path).context(about)?;
    chown(path, uid, gid).context(about)?;
    fs::set_permissions(path, Permissions::from_mode(mode)).context(about)?;
    listener.set_nonblocking(true).context(about)?;
    Ok(listener)
}

fn remove_stale(path: &Path) -> Result<()> {
    let about = || format!("look at {}", path.display());
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context(about),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(Error::failed_precondition(format!("{} is there and is no socket", path.display())));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(Error::failed_precondition(format!("another program listens on {}", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).context(|| format!("remove {}", path.display()))
        }
        Err(error) => Err(error).context(about),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_dead_daemon_left_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        remove_stale(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        assert!(remove_stale(&path).is_err());
        drop(listener);
        remove_stale(&path).unwrap();
        assert!(!path.exists());
        fs::write(&path, "a file").unwrap();
        assert!(remove_stale(&path).is_err());
    }
}
