//! The HTTP/1 server of telemetry: metrics on a TCP port, all pages on a unix socket.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, UnixListener};
use types::{Context, Error, ErrorKind, Result};

use super::{Sources, process, profile};
use crate::background::Background;
use crate::config::{Config, DebugSocket};
use crate::listen;

/// How long a connection may take to send its request.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// Pause when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Which set of pages a listener serves.
#[derive(Clone, Copy, PartialEq)]
enum Pages {
    Metrics,
    Debug,
}

/// Listens on the configured addresses and serves in the background.
pub(crate) async fn serve(config: &Config, sources: &Sources, background: &mut Background) -> Result<()> {
    if let Some(address) = config.metrics.address {
        let listener = bind(address).await?;
        tracing::info!(address = %listener.local_addr().unwrap_or(address), "metrics are served");
        let sources = sources.clone();
        background.spawn("serve metrics", async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => answer_on(TokioIo::new(stream), Pages::Metrics, sources.clone()),
                    Err(error) => rest(&error).await,
                }
            }
        });
    }
    if let Some(DebugSocket { path, uid, gid }) = &config.debug {
        let listener = listen::listen_for_debugging(path, *uid, *gid)?;
        let listener = UnixListener::from_std(listener).context(|| "listen for debugging")?;
        let sources = sources.clone();
        background.spawn("serve debugging", async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => answer_on(TokioIo::new(stream), Pages::Debug, sources.clone()),
                    Err(error) => rest(&error).await,
                }
            }
        });
    }
    Ok(())
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .context(|| format!("configuration: metrics.address: listen on {address}"))
}

async fn rest(error: &std::io::Error) {
    tracing::warn!("accept a connection: {error}");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

fn answer_on(stream: impl Read + Write + Unpin + Send + 'static, pages: Pages, sources: Sources) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let sources = sources.clone();
        async move { Ok::<_, Infallible>(answer(&request, pages, &sources).await) }
    });
    tokio::spawn(async move {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_LIMIT)
            .serve_connection(stream, service);
        if let Err(error) = connection.await {
            tracing::debug!("a connection for figures ended: {error}");
        }
    });
}

async fn answer<B>(request: &Request<B>, pages: Pages, sources: &Sources) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
    const JSON: &str = "application/json; charset=utf-8";
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET is served here\n");
    }
    match (request.uri().path(), pages) {
        ("/v1/metrics", _) => page(StatusCode::OK, TEXT, sources.metrics().await),
        ("/debug/vars", Pages::Debug) => page(StatusCode::OK, JSON, process::variables().to_string()),
        ("/debug/threads", Pages::Debug) => page(StatusCode::OK, JSON, process::threads().to_string()),
        ("/debug/pprof/profile", Pages::Debug) => match processors(request.uri().query()).await {
            Ok(profile) => page(StatusCode::OK, "application/octet-stream", profile),
            Err(error) => page(refusal(&error), TEXT, format!("{error}\n")),
        },
        (_, Pages::Metrics) => page(StatusCode::NOT_FOUND, TEXT, "try /v1/metrics\n"),
        (_, Pages::Debug) => {
            let pages = "try /v1/metrics, /debug/vars, /debug/threads, /debug/pprof/profile?seconds=30\n";
            page(StatusCode::NOT_FOUND, TEXT, pages)
        }
    }
}

/// A CPU profile, as long as the query requests.
async fn processors(query: Option<&str>) -> Result<Vec<u8>> {
    let asked = query.unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("seconds="));
    let seconds = asked.map_or(Ok(profile::SECONDS), str::parse);
    let seconds =
        seconds.ok().filter(|seconds| (1..=profile::SECONDS_MAX).contains(seconds)).ok_or_else(|| {
            let (asked, max) = (asked.unwrap_or_default(), profile::SECONDS_MAX);
            Error::invalid_argument(format!("seconds={asked}: it must be a number from 1 to {max}"))
        })?;
    profile::of_processors(seconds, profile::turn()?).await
}

fn refusal(error: &Error) -> StatusCode {
    match error.kind() {
        ErrorKind::InvalidArgument => StatusCode::BAD_REQUEST,
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn page(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
