//! HTTP/1 for those who look: a TCP port for figures, a unix socket for all.

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
use types::{Context, Result};

use super::{Sources, process};
use crate::config::{Config, DebugSocket};
use crate::listen;

/// How long a connection may take to say what it wants.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// How long to wait when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Which pages there are.
#[derive(Clone, Copy, PartialEq)]
enum Door {
    Metrics,
    Debug,
}

/// Listens where the configuration says, and answers for ever, on tasks of its own.
pub(crate) async fn serve(config: &Config, sources: &Sources) -> Result<()> {
    if let Some(address) = config.metrics.address {
        let listener = bind(address).await?;
        tracing::info!(address = %listener.local_addr().unwrap_or(address), "metrics are served");
        let sources = sources.clone();
        tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => answer_on(TokioIo::new(stream), Door::Metrics, sources.clone()),
                    Err(error) => rest(&error).await,
                }
            }
        });
    }
    if let Some(DebugSocket { path, uid, gid }) = &config.debug {
        let listener = listen::listen_for_debugging(path, *uid, *gid)?;
        let listener = UnixListener::from_std(listener).context(|| "listen for debugging")?;
        let sources = sources.clone();
        tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => answer_on(TokioIo::new(stream), Door::Debug, sources.clone()),
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

fn answer_on(stream: impl Read + Write + Unpin + Send + 'static, door: Door, sources: Sources) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let sources = sources.clone();
        async move { Ok::<_, Infallible>(answer(&request, door, &sources).await) }
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

async fn answer<B>(request: &Request<B>, door: Door, sources: &Sources) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
    const JSON: &str = "application/json; charset=utf-8";
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET is served here\n".to_owned());
    }
    match (request.uri().path(), door) {
        ("/v1/metrics", _) => page(StatusCode::OK, TEXT, sources.metrics().await),
        ("/debug/vars", Door::Debug) => page(StatusCode::OK, JSON, process::variables().to_string()),
        ("/debug/threads", Door::Debug) => page(StatusCode::OK, JSON, process::threads().to_string()),
        (_, Door::Metrics) => page(StatusCode::NOT_FOUND, TEXT, "try /v1/metrics\n".to_owned()),
        (_, Door::Debug) => {
            let pages = "try /v1/metrics, /debug/vars, /debug/threads\n";
            page(StatusCode::NOT_FOUND, TEXT, pages.to_owned())
        }
    }
}

fn page(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
