//! Serves gRPC over HTTP/2 on a unix socket, and over TCP with or without TLS.
//!
//! The request's path selects the service; each service is a closure from request to response. No web framework is
//! needed.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use api::grpc::METADATA_BYTES_MAX;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower_service::Service;

use crate::authority_stream::AuthorityStream;
use crate::chunked_responses::with_chunks;
use crate::idle::Idle;
use crate::oversized::reworded;
use crate::telemetry::Calls;
use crate::traces;

/// Concurrent streams per connection: each wait for a container takes one, and clients share a connection.
const STREAMS_MAX: u32 = 16_384;
/// Streams of a connection that the client may have reset before the daemon accepted them; one more closes the
/// connection. hyper's default of 20 protects servers from strangers. Clients of the daemon are trusted, and one that
/// gives up a hundred waits at once while the machine is busy would lose all its other calls.
const EARLY_RESETS_MAX: usize = 4_096;
/// Flow control windows in bytes, large enough for the blobs of a pull being sent to us.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// How long calls may take to end when the daemon stops.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// Time limit of the TLS handshake and the first bytes of a client.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// A TCP peer may vanish silently: interval of HTTP/2 pings, and time limit of the response.
const SIGN_INTERVAL: Duration = Duration::from_secs(60);
const SIGN_LIMIT: Duration = Duration::from_secs(20);
/// Pause when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

type Answer = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;
type Route = Box<dyn Fn(Request<Body>) -> Answer + Send + Sync>;

/// Services by name.
#[derive(Default)]
pub(crate) struct Router {
    routes: HashMap<&'static str, Route>,
    calls: Option<Calls>,
    idle: Idle,
}

impl Router {
    pub(crate) fn add<S>(mut self, service: S) -> Router
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        let route = move |request| -> Answer {
            let answer = service.clone().call(request);
            Box::pin(async move {
                match answer.await {
                    Ok(response) => reworded(with_chunks(response)),
                    Err(never) => match never {},
                }
            })
        };
        self.routes.insert(S::NAME, Box::new(route));
        self
    }

    /// Removes a service.
    pub(crate) fn without(mut self, name: &str) -> Router {
        self.routes.remove(name);
        self
    }

    /// The full names of the services.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.routes.keys().copied()
    }

    /// Counts calls.
    pub(crate) fn counted(mut self, calls: Option<Calls>) -> Router {
        self.calls = calls;
        self
    }

    /// Notifies `idle` of every call.
    pub(crate) fn disturbing(mut self, idle: Idle) -> Router {
        self.idle = idle;
        self
    }

    fn answer(&self, request: Request<Incoming>) -> Answer {
        self.idle.disturb();
        let service = request.uri().path().strip_prefix('/').and_then(|path| path.split_once('/'));
        match service.and_then(|(name, method)| Some((name, method, self.routes.get(name)?))) {
            Some((name, method, route)) => {
                let span = traces::call(name, method, request.headers());
                let call = self.calls.as_ref().map(|calls| calls.begin(name, method));
                let request = request.map(Body::new);
                let answer = route(match &call {
                    Some(call) => call.receive(request),
                    None => request,
                });
                match call {
                    None if span.is_disabled() => answer,
                    None => Box::pin(traces::within(span, answer)),
                    Some(call) => Box::pin(async move { call.follow(traces::within(span, answer).await) }),
                }
            }
            None => {
                let what = format!("unknown service {}", service.map_or("", |(name, _)| name));
                Box::pin(async move { Status::unimplemented(what).into_http() })
            }
        }
    }
}

/// A source of connections.
pub(crate) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener, Option<TlsAcceptor>),
}

/// A connection before any handshake.
enum Accepted {
    Unix(UnixStream),
    Tcp(TcpStream, Option<TlsAcceptor>),
}

impl Listener {
    async fn accept(&self) -> io::Result<Accepted> {
        Ok(match self {
            Listener::Unix(listener) => Accepted::Unix(listener.accept().await?.0),
            Listener::Tcp(listener, tls) => Accepted::Tcp(listener.accept().await?.0, tls.clone()),
        })
    }
}

/// Serves until `stopping` becomes true; then accepts no more connections and lets calls end.
pub(crate) async fn serve(listener: Listener, router: Arc<Router>, mut stopping: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stopping) => break,
        };
        match accepted {
            Ok(accepted) => {
                connections.spawn(connection(accepted, router.clone(), stopping.clone()));
            }
            Err(error) => {
                tracing::warn!("accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_LIMIT, drained).await.is_err() {
        tracing::info!("some calls did not end in time");
    }
}

async fn connection(accepted: Accepted, router: Arc<Router>, stopping: watch::Receiver<bool>) {
    match accepted {
        Accepted::Unix(stream) => speak(AuthorityStream::new(stream), router, stopping, None).await,
        Accepted::Tcp(stream, None) => begin(stream, router, stopping).await,
        Accepted::Tcp(stream, Some(tls)) => {
            match tokio::time::timeout(HANDSHAKE_LIMIT, tls.accept(stream)).await {
                Ok(Ok(stream)) => begin(stream, router, stopping).await,
                Ok(Err(error)) => tracing::debug!("a client was refused: {error}"),
                Err(_) => tracing::debug!("a client did not complete the TLS handshake in time"),
            }
        }
    }
}

/// Serves a TCP connection whose client starts in time, as long as it responds to pings.
async fn begin<S>(stream: S, router: Arc<Router>, mut stopping: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut stream = AuthorityStream::new(stream);
    let begun = tokio::select! {
        begun = tokio::time::timeout(HANDSHAKE_LIMIT, stream.begin()) => begun,
        () = stopped(&mut stopping) => return,
    };
    match begun {
        Ok(Ok(())) => speak(stream, router, stopping, Some(SIGN_INTERVAL)).await,
        Ok(Err(error)) => tracing::debug!("a connection ended: {error}"),
        Err(_) => tracing::debug!("a client said nothing"),
    }
}

async fn speak<S>(
    stream: AuthorityStream<S>,
    router: Arc<Router>,
    mut stopping: watch::Receiver<bool>,
    sign_interval: Option<Duration>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |request| {
        let answer = router.answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(EARLY_RESETS_MAX)
        .max_header_list_size(METADATA_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(sign_interval)
        .keep_alive_timeout(SIGN_LIMIT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!("a connection ended: {error}");
    }
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which also means to stop.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::Instant;

    use super::*;

    /// How long a peer is kept that sends only this.
    async fn kept(sent: &[u8]) -> Duration {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let (_running, stopping) = watch::channel(false);
        let begun = Instant::now();
        let serving = tokio::spawn(begin(server, Arc::new(Router::default()), stopping));
        client.write_all(sent).await.unwrap();
        let mut answers = Vec::new();
        client.read_to_end(&mut answers).await.unwrap();
        serving.await.unwrap();
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn tcp_peers_that_vanish_are_disconnected() {
        assert!((HANDSHAKE_LIMIT..HANDSHAKE_LIMIT * 2).contains(&kept(b"").await));
        let silent = kept(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
        let limit = SIGN_INTERVAL + SIGN_LIMIT;
        assert!((limit..limit * 2).contains(&silent), "{silent:?}");
    }

    /// A peer that responds to pings may otherwise be silent.
    #[tokio::test(start_paused = true)]
    async fn tcp_peers_that_answer_pings_are_kept() {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (_running, stopping) = watch::channel(false);
        let serving = tokio::spawn(begin(server, Arc::new(Router::default()), stopping));
        let client =
            hyper::client::conn::http2::handshake::<_, _, Body>(TokioExecutor::new(), TokioIo::new(client));
        let (_calls, connection) = client.await.unwrap();
        tokio::time::timeout((SIGN_INTERVAL + SIGN_LIMIT) * 10, connection).await.unwrap_err();
        assert!(!serving.is_finished());
        serving.abort();
    }
}
