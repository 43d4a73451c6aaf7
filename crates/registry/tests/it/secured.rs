//! A TLS server under the test's own CA, which records how it was contacted.

use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Response, Version};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio_rustls::TlsAcceptor;

/// A certificate authority.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn write(&self, path: PathBuf) -> PathBuf {
        fs::write(&path, self.0.pem()).unwrap();
        path
    }

    /// A certificate for a name, and its key, in PEM.
    pub(crate) fn sign(&self, name: &str) -> (String, String) {
        let (certificate, key) = self.signed(name);
        (certificate.pem(), key.serialize_pem())
    }

    /// As [`Authority::sign`], in files `NAME.cert` and `NAME.key`.
    pub(crate) fn sign_into(&self, directory: &Path, name: &str) {
        let (certificate, key) = self.sign(name);
        fs::write(directory.join(name).with_extension("cert"), certificate).unwrap();
        fs::write(directory.join(name).with_extension("key"), key).unwrap();
    }

    fn signed(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        (params.signed_by(&key, &self.0).unwrap(), key)
    }
}

/// How a request arrived.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spoken {
    pub(crate) version: Version,
    /// The client's certificate, in DER.
    pub(crate) client: Option<Vec<u8>>,
}

pub(crate) struct Secured {
    pub(crate) address: SocketAddr,
    spoken: Arc<Mutex<Vec<Spoken>>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Secured {
    /// Answers everything with an empty manifest. Requests client certificates of `clients`, if given.
    pub(crate) async fn start(
        authority: &Authority,
        protocols: &[&[u8]],
        clients: Option<&Authority>,
    ) -> Secured {
        Secured::start_as(authority, "127.0.0.1", protocols, clients).await
    }

    /// As [`Secured::start`], under another name, for clients that connect through a proxy.
    pub(crate) async fn start_for(authority: &Authority, name: &str, protocols: &[&[u8]]) -> Secured {
        Secured::start_as(authority, name, protocols, None).await
    }

    async fn start_as(
        authority: &Authority,
        name: &str,
        protocols: &[&[u8]],
        clients: Option<&Authority>,
    ) -> Secured {
        let (certificate, key) = authority.signed(name);
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                roots.add(clients.0.der().clone()).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let mut config = builder.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let spoken = Arc::new(Mutex::new(Vec::new()));
        let log = spoken.clone();
        let serving = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(acceptor.clone(), stream, log.clone()));
            }
        });
        Secured { address, spoken, serving }
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn spoken(&self) -> Vec<Spoken> {
        self.spoken.lock().unwrap().clone()
    }
}

impl Drop for Secured {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(acceptor: TlsAcceptor, stream: tokio::net::TcpStream, log: Arc<Mutex<Vec<Spoken>>>) {
    // A client that does not trust the certificate hangs up here.
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let session = stream.get_ref().1;
    let is_h2 = session.alpn_protocol() == Some(b"h2");
    let client = session.peer_certificates().and_then(|chain| chain.first()).map(|first| first.to_vec());
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        log.lock().unwrap().push(Spoken { version: request.version(), client: client.clone() });
        async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(br#"{"schemaVersion":2}"#)))) }
    });
    let io = TokioIo::new(stream);
    // The client may end the connection in any way.
    if is_h2 {
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(io, service)
            .await;
    } else {
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
    }
}

/// Terminates TLS in front of a plain HTTP server.
pub(crate) struct TlsFront {
    pub(crate) address: SocketAddr,
    serving: tokio::task::JoinHandle<()>,
}

impl TlsFront {
    pub(crate) async fn start(authority: &Authority, to: SocketAddr) -> TlsFront {
        let (certificate, key) = authority.signed("127.0.0.1");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate.der().clone()], key)
                .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    // A client that does not trust the certificate hangs up here.
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let Ok(mut onward) = tokio::net::TcpStream::connect(to).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut onward).await;
                });
            }
        });
        TlsFront { address, serving }
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
