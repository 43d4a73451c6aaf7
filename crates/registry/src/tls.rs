//! TLS options of a host: certificate authorities and client certificates.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use types::{Context, Error, Result};

/// Bytes of a certificate file, a key, or a `hosts.toml`, at most.
pub(crate) const FILE_LEN_MAX: u64 = 1 << 20;

/// Differences from the system's TLS defaults. Equal ones share connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tls {
    /// Trusted authorities in addition to the system's.
    pub(crate) ca: Vec<Pem>,
    /// Client certificates; the first that the host accepts is sent.
    pub(crate) client: Vec<ClientPem>,
    pub(crate) skip_verify: bool,
}

/// A file's path and content.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Pem {
    file: PathBuf,
    bytes: Vec<u8>,
}

/// A client certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ClientPem {
    certificate: Pem,
    key: Pem,
}

/// The content may be a private key.
impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pem({})", self.file.display())
    }
}

impl Pem {
    pub(crate) fn read(file: &Path) -> Result<Pem> {
        let what = || format!("read {}", file.display());
        let opened = File::open(file).context(what)?;
        let bytes = stdx::read_at_most(opened, FILE_LEN_MAX).context(what)?;
        let too_large = || Error::invalid_argument(format!("{} is larger than 1 MiB", file.display()));
        Ok(Pem { file: file.to_owned(), bytes: bytes.ok_or_else(too_large)? })
    }

    /// Reads a file with at least one CA certificate.
    pub(crate) fn authorities(file: &Path) -> Result<Pem> {
        let pem = Pem::read(file)?;
        let mut roots = RootCertStore::empty();
        for certificate in pem.certificates()? {
            roots.add(certificate).map_err(|error| pem.bad("no certificate in").with_source(error))?;
        }
        Ok(pem)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.bytes).collect();
        let found = found.map_err(|error| self.bad("no certificate in").with_source(error))?;
        if found.is_empty() { Err(self.bad("no certificate in")) } else { Ok(found) }
    }

    fn bad(&self, what: &str) -> Error {
        Error::invalid_argument(format!("{what} {}: expected PEM", self.file.display()))
    }
}

impl ClientPem {
    /// Reads a client certificate. Without `key` the key is in the same file.
    pub(crate) fn read(certificate: &Path, key: Option<&Path>) -> Result<ClientPem> {
        let certificate = Pem::read(certificate)?;
        let key = key.map_or_else(|| Ok(certificate.clone()), Pem::read)?;
        let pem = ClientPem { certificate, key };
        pem.certified()?;
        Ok(pem)
    }

    fn certified(&self) -> Result<CertifiedKey> {
        let chain = self.certificate.certificates()?;
        let key = PrivateKeyDer::from_pem_slice(&self.key.bytes)
            .map_err(|error| self.key.bad("no private key in").with_source(error))?;
        CertifiedKey::from_der(chain, key, &provider()).map_err(|error| {
            let (certificate, key) = (self.certificate.file.display(), self.key.file.display());
            Error::invalid_argument(format!("{certificate} and {key} do not belong together"))
                .with_source(error)
        })
    }
}

impl Tls {
    /// Trusts the authorities of a file in addition to the system's.
    pub fn trusting(file: &Path) -> Result<Tls> {
        Ok(Tls { ca: vec![Pem::authorities(file)?], ..Tls::default() })
    }

    /// The files of additional authorities.
    pub fn authorities(&self) -> Vec<String> {
        self.ca.iter().map(|pem| pem.file.display().to_string()).collect()
    }

    /// The files of client certificates.
    pub fn clients(&self) -> Vec<String> {
        self.client.iter().map(|pem| pem.certificate.file.display().to_string()).collect()
    }

    /// Whether the host's certificate is verified.
    pub fn is_verified(&self) -> bool {
        !self.skip_verify
    }

    /// For a host that a redirect leads to: without client certificates.
    pub(crate) fn without_client(&self) -> Tls {
        Tls { client: Vec::new(), ..self.clone() }
    }

    /// The rustls configuration. `InvalidArgument` if a file has no usable content.
    pub fn config(&self) -> Result<ClientConfig> {
        let provider = provider();
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("ring knows the default versions");
        let verified = if self.skip_verify {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider)))
        } else {
            builder.with_root_certificates(self.roots()?)
        };
        let identities =
            self.client.iter().map(|pem| pem.certified().map(Arc::new)).collect::<Result<Vec<_>>>()?;
        if identities.is_empty() {
            return Ok(verified.with_no_client_auth());
        }
        Ok(verified.with_client_cert_resolver(Arc::new(Identities(identities))))
    }

    fn roots(&self) -> Result<Arc<RootCertStore>> {
        let system = system_roots();
        if self.ca.is_empty() {
            return Ok(system);
        }
        let mut roots = RootCertStore::clone(&system);
        for pem in &self.ca {
            roots.add_parsable_certificates(pem.certificates()?);
        }
        Ok(Arc::new(roots))
    }
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())).clone()
}

/// Loaded with the first request: many daemons never need them.
fn system_roots() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let read = || {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    };
    ROOTS.get_or_init(read).clone()
}

/// Accepts any certificate (`skip_verify`). Handshake signatures are verified, which proves possession of its key.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Client certificates, of which a host accepts some.
#[derive(Debug)]
struct Identities(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for Identities {
    fn resolve(&self, authorities: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let mut usable = self.0.iter().filter(|identity| identity.key.choose_scheme(schemes).is_some());
        let accepted = usable.clone().find(|identity| {
            let issued_by_one = |certificate: &CertificateDer<'_>| {
                let parsed = webpki::EndEntityCert::try_from(certificate);
                parsed.is_ok_and(|parsed| authorities.iter().any(|name| is_name(name, parsed.issuer())))
            };
            authorities.is_empty() || identity.cert.iter().any(issued_by_one)
        });
        // A host may know the issuer of ours by another name than those it lists.
        accepted.or_else(|| usable.next()).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// Whether a DER-encoded distinguished name has this content: `webpki` returns names without the outer header.
fn is_name(name: &[u8], content: &[u8]) -> bool {
    let header_len = name.len().checked_sub(content.len());
    header_len.is_some_and(|header_len| header_len <= 4) && name.ends_with(content)
}
