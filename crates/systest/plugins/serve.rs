//! What all examples need: one service of containerd's API on a unix socket.

use std::convert::Infallible;
use std::path::Path;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixListener;
use tonic::body::Body;
use tower_service::Service;

/// Serves until the process is killed.
pub(crate) fn serve<S>(socket: &Path, service: S) -> std::io::Result<()>
where
    S: Service<http::Request<Incoming>, Response = http::Response<Body>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        // A socket that an earlier run left.
        let _old = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket)?;
        loop {
            let (stream, _) = listener.accept().await?;
            let service = service.clone();
            let answer = hyper::service::service_fn(move |request| service.clone().call(request));
            let connection =
                http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer);
            tokio::spawn(connection);
        }
    })
}

/// The paths on the command line, after the program's name.
pub(crate) fn paths<const N: usize>(usage: &str) -> [std::path::PathBuf; N] {
    let given: Vec<_> = std::env::args_os().skip(1).map(Into::into).collect();
    given.try_into().unwrap_or_else(|_| {
        eprintln!("usage: {usage}");
        std::process::exit(2)
    })
}
