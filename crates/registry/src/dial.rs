//! Connections to a host, directly or through a proxy.
//!
//! ```text
//! https   host ◀── TLS ── [CONNECT host ── proxy] ── TCP
//! http    the request to the proxy has the absolute URL
//! ```

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use tower_service::Service;

use crate::http_trace::ConnectionTrace;
use crate::proxy::{Proxies, Proxy};
use crate::tls::Tls;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Connects one client, below TLS.
#[derive(Clone)]
pub(crate) struct Dialer {
    tcp: HttpConnector<Names>,
    proxies: Arc<Proxies>,
    timeout: Duration,
}

impl Dialer {
    pub(crate) fn new(proxies: Arc<Proxies>, timeout: Duration) -> Dialer {
        let mut tcp = HttpConnector::new_with_resolver(Names(GaiResolver::new()));
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        // Divided among a name's addresses, so that a dead one leaves time for the next.
        tcp.set_connect_timeout(Some(timeout));
        Dialer { tcp, proxies, timeout }
    }

    async fn connect(mut self, to: Uri) -> Result<ProxyableStream, BoxError> {
        let proxies = self.proxies.clone();
        let Some(proxy) = proxies.choose(&to) else {
            let io = self.tcp.call(to).await?;
            let address = io.inner().peer_addr().ok();
            return Ok(ProxyableStream { io: Box::new(io), is_proxied: false, address });
        };
        let connected = if proxy.address.scheme_str() == Some("https") {
            let tls = hyper_rustls::HttpsConnectorBuilder::new()
                .with_tls_config(Tls::default().config()?)
                .https_or_http()
                .enable_http1()
                .wrap_connector(self.tcp);
            through(proxy, to, tls).await
        } else {
            through(proxy, to, self.tcp).await
        };
        connected.map_err(|error| format!("through proxy {}: {}", proxy.address, chain(&*error)).into())
    }
}

/// The system's name resolution, reported to the request's trace.
#[derive(Clone)]
struct Names(GaiResolver);

impl Service<Name> for Names {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        ConnectionTrace::looks_up(name.as_str());
        let found = self.0.call(name);
        Box::pin(async move {
            let found = found.await.map(Iterator::collect::<Vec<SocketAddr>>);
            match &found {
                Ok(addresses) => ConnectionTrace::found(addresses),
                Err(error) => ConnectionTrace::not_found(&error.to_string()),
            }
            found.map(IntoIterator::into_iter)
        })
    }
}

async fn through<C>(proxy: &Proxy, to: Uri, mut connector: C) -> Result<ProxyableStream, BoxError>
where
    C: Service<Uri>,
    C::Response: Read + Write + Send + Unpin + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send + 'static,
{
    if to.scheme_str() != Some("https") {
        let io = connector.call(proxy.address.clone()).await.map_err(Into::into)?;
        return Ok(ProxyableStream { io: Box::new(io), is_proxied: true, address: None });
    }
    let mut tunnel = Tunnel::new(proxy.address.clone(), connector);
    if let Some(authorization) = &proxy.authorization {
        tunnel = tunnel.with_auth(authorization.clone());
    }
    Ok(ProxyableStream { io: Box::new(tunnel.call(to).await?), is_proxied: false, address: None })
}

/// An error with its sources in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        line = format!("{line}: {cause}");
        next = cause.source();
    }
    line
}

impl Service<Uri> for Dialer {
    type Response = ProxyableStream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<ProxyableStream, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let dial = self.clone();
        Box::pin(async move {
            let timeout = dial.timeout;
            ConnectionTrace::connects();
            let connected = tokio::time::timeout(timeout, dial.connect(to)).await;
            connected.unwrap_or_else(|_| {
                Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {timeout:?}"))
                    .into())
            })
        })
    }
}

trait Io: Read + Write {}

impl<T: Read + Write> Io for T {}

/// An open connection.
pub(crate) struct ProxyableStream {
    io: Box<dyn Io + Send + Unpin>,
    /// The other end is an HTTP proxy, which needs absolute URLs.
    is_proxied: bool,
    /// The other end's address, if it is the host itself.
    address: Option<SocketAddr>,
}

/// The address of the other end of a response's connection.
#[derive(Clone, Copy)]
pub(crate) struct RemoteAddress(pub(crate) SocketAddr);

impl Connection for ProxyableStream {
    fn connected(&self) -> Connected {
        let connected = Connected::new().proxy(self.is_proxied);
        match self.address {
            Some(address) => connected.extra(RemoteAddress(address)),
            None => connected,
        }
    }
}

impl Read for ProxyableStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_read(context, buffer)
    }
}

impl Write for ProxyableStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.io).poll_write_vectored(context, parts)
    }
}
