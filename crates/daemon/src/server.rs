//! gRPC over HTTP/2 on a unix socket, and over TCP, with TLS or without.
//!
//! The path of a request names its service; each service is a closure from request to response.
//! Nothing else of a web framework is needed.

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

use crate::mended::Mended;
use crate::oversized::reworded;
use crate::rest::Rest;
use crate::telemetry::Calls;
use crate::traces;

/// Every wait for a container is an open stream, and clients share one connection among many.
const STREAMS_MAX: u32 = 16_384;
/// Room for a pull's worth of blobs on their way in.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// How long calls may take to end when the daemon stops.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// How long a client may take to say who it is.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long to wait when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

type Answer = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;
type Route = Box<dyn Fn(Request<Body>) -> Answer + Send + Sync>;

/// Services by name.
#[derive(Default)]
pub(crate) struct Router {
    routes: HashMap<&'static str, Route>,
    calls: Option<Calls>,
    rest: Rest,
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
                    Ok(response) => reworded(response),
                    Err(never) => match never {},
                }
            })
        };
        self.routes.insert(S::NAME, Box::new(route));
        self
    }

    /// The full names of what is served.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.routes.keys().copied()
    }

    /// Has calls counted.
    pub(crate) fn counted(mut self, calls: Option<Calls>) -> Router {
        self.calls = calls;
        self
    }

    /// Every call disturbs this rest.
    pub(crate) fn disturbing(mut self, rest: Rest) -> Router {
        self.rest = rest;
        self
    }

    fn answer(&self, request: Request<Incoming>) -> Answer {
        self.rest.disturb();
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

/// Where connections come from.
pub(crate) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener, Option<TlsAcceptor>),
}

/// A connection whose client has said nothing yet.
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

/// Serves until `stopping` says true; then takes no more connections and lets calls end.
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
        Accepted::Unix(stream) => speak(stream, router, stopping).await,
        Accepted::Tcp(stream, None) => speak(stream, router, stopping).await,
        Accepted::Tcp(stream, Some(tls)) => {
            match tokio::time::timeout(HANDSHAKE_LIMIT, tls.accept(stream)).await {
                Ok(Ok(stream)) => speak(stream, router, stopping).await,
                Ok(Err(error)) => tracing::debug!("a client was refused: {error}"),
                Err(_) => tracing::debug!("a client did not say who it is"),
            }
        }
    }
}

async fn speak<S>(stream: S, router: Arc<Router>, mut stopping: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |request| {
        let answer = router.answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(METADATA_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .serve_connection(TokioIo::new(Mended::new(stream)), service);
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
    // An error means that nobody is left who could say it, which is the same.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}
