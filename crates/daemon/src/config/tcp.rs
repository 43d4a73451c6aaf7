//! The TCP address on which the API is served, and the certificates of server and clients.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use types::Result;

use super::{invalid, raw};

#[derive(Clone, Debug, PartialEq)]
pub struct Tcp {
    pub address: SocketAddr,
    pub tls: Option<Tls>,
}

/// PEM files.
#[derive(Clone, Debug, PartialEq)]
pub struct Tls {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Without it clients need no certificate.
    pub client_ca: Option<PathBuf>,
}

pub(super) fn check(raw: &raw::Grpc) -> Result<Option<Tcp>> {
    const KEY: &str = "grpc.tcp_address";
    let path = |text: &str| Some(text).filter(|text| !text.is_empty()).map(PathBuf::from);
    let files = (path(&raw.tcp_tls_cert), path(&raw.tcp_tls_key), path(&raw.tcp_tls_ca));
    let tls = match files {
        (None, None, None) => None,
        (Some(cert), Some(key), client_ca) => Some(Tls { cert, key, client_ca }),
        _ => {
            let message = "needs tcp_tls_cert and tcp_tls_key; they belong together, and tcp_tls_ca to them";
            return Err(invalid(KEY, message));
        }
    };
    if raw.tcp_address.is_empty() {
        return Ok(None);
    }
    if !raw.tcp_tls_common_name.is_empty() {
        let message =
            "common names of certificates are not checked; use a tcp_tls_ca that signs no other clients";
        return Err(invalid("grpc.tcp_tls_common_name", message));
    }
    let found = raw.tcp_address.to_socket_addrs().ok().and_then(|mut found| found.next());
    let Some(address) = found else {
        let message = format!("{:?} is no address such as 127.0.0.1:2375", raw.tcp_address);
        return Err(invalid(KEY, &message));
    };
    let knows_clients = tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    if !address.ip().is_loopback() && !knows_clients {
        let message = "other hosts can reach it, and its clients have root's power: tcp_tls_ca must be set";
        return Err(invalid(KEY, message));
    }
    Ok(Some(Tcp { address, tls }))
}
