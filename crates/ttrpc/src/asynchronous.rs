//! The asynchronous client and server, on tokio. Many tasks can share one client.
//!
//! [`crate::Client`] and [`crate::Server`] implement the protocol; the tasks here only move bytes.
//!
//! Invariants
//! - A call whose future is dropped is forgotten; its late answer is discarded.
//! - When the connection ends, every open call fails with `Unavailable`.
//! - At most [`PENDING_MAX`] bytes and one request wait for a peer that does not read; further calls fail.
//! - A connection's tasks end when the last [`AsyncClient`] is dropped.

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use types::{Context, Error, Result};

use crate::client::Client;
use crate::frame::StreamId;
use crate::message::{Request, read_answer};
use crate::server::{PENDING_MAX, Server};
use crate::socket_path;

/// The number of calls that one served connection handles at the same time.
const HANDLERS_MAX: usize = 64;
const BUFFER_LEN: usize = 16 << 10;

/// A connection to a shim. Clones share it.
#[derive(Clone)]
pub struct AsyncClient {
    shared: Arc<Shared>,
    /// Dropped with the last clone, which ends the connection's tasks.
    _alive: Arc<oneshot::Sender<()>>,
    closed: watch::Receiver<bool>,
}

struct Shared {
    state: Mutex<State>,
    /// Signalled when a request waits to be written.
    written: Notify,
}

#[derive(Default)]
struct State {
    client: Client,
    waiting: HashMap<StreamId, oneshot::Sender<Result<Vec<u8>>>>,
    closed: bool,
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no one panics while holding this lock")
    }

    fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.waiting.clear();
    }
}

impl AsyncClient {
    /// Connects to `unix:///path`, `ttrpc+unix:///path` or `/path`.
    pub async fn connect(address: &str) -> Result<AsyncClient> {
        let path = socket_path(address)?;
        let stream = UnixStream::connect(path).await.context(|| format!("connect to {}", path.display()))?;
        Ok(AsyncClient::new(stream))
    }

    /// Takes over a connected socket. Must be called inside a tokio runtime.
    pub fn new(stream: UnixStream) -> AsyncClient {
        let shared = Arc::new(Shared { state: Mutex::default(), written: Notify::new() });
        let (alive, dropped) = oneshot::channel();
        let (closing, closed) = watch::channel(false);
        let (reader, writer) = stream.into_split();
        let reader_task = tokio::spawn(read_answers(reader, shared.clone()));
        let writer_task = tokio::spawn(write_requests(writer, shared.clone()));
        let end = shared.clone();
        tokio::spawn(async move {
            let reader = reader_task.abort_handle();
            tokio::spawn(async move {
                // The channel never carries a value: an error here means that the last client was dropped.
                let _ended = dropped.await;
                reader.abort();
            });
            let _cancelled = reader_task.await;
            writer_task.abort();
            end.close();
            closing.send_replace(true);
        });
        AsyncClient { shared, _alive: Arc::new(alive), closed }
    }

    /// Sends a request and waits for the answer. A timeout in the request also limits the wait here:
    /// `DeadlineExceeded`. Fails with `Unavailable` when the connection ends, and with `ResourceExhausted` while the
    /// peer does not read.
    pub async fn call<M: Message + Default>(&self, request: &Request) -> Result<M> {
        let about = || format!("{}/{}", request.service, request.method);
        let payload = match request.timeout() {
            None => self.exchange(request).await,
            Some(timeout) => match tokio::time::timeout(timeout, self.exchange(request)).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    return Err(Error::deadline_exceeded(format!(
                        "{} took longer than {timeout:?}",
                        about()
                    )));
                }
            },
        }?;
        read_answer(&payload).context(about)
    }

    async fn exchange(&self, request: &Request) -> Result<Vec<u8>> {
        let (sender, receiver) = oneshot::channel();
        let stream = {
            let mut state = self.shared.state();
            if state.closed {
                return Err(Error::unavailable("the ttrpc connection is closed"));
            }
            if state.client.pending().len() > PENDING_MAX {
                return Err(Error::resource_exhausted("the peer does not read its requests"));
            }
            let stream = state.client.call(request)?;
            state.waiting.insert(stream, sender);
            stream
        };
        self.shared.written.notify_one();
        let _forget = ForgetOnDrop { shared: &self.shared, stream };
        receiver.await.map_err(|_| Error::unavailable("the ttrpc connection was closed"))?
    }

    /// Waits until the connection has ended.
    pub async fn closed(&self) {
        let mut closed = self.closed.clone();
        // An error means that the connection's task, which holds the sender, is gone: the connection has ended.
        let _gone = closed.wait_for(|closed| *closed).await;
    }

    pub fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }
}

/// Forgets a call when its future is dropped.
struct ForgetOnDrop<'a> {
    shared: &'a Shared,
    stream: StreamId,
}

impl Drop for ForgetOnDrop<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.waiting.remove(&self.stream);
        state.client.forget(self.stream);
    }
}

async fn read_answers(mut reader: OwnedReadHalf, shared: Arc<Shared>) {
    let mut buffer = vec![0; BUFFER_LEN];
    while let Ok(len @ 1..) = reader.read(&mut buffer).await {
        let mut state = shared.state();
        state.client.feed(&buffer[..len]);
        while let Some(answer) = state.client.next_answer() {
            if let Some(waiting) = state.waiting.remove(&answer.stream) {
                // The caller may have dropped its future just now.
                let _unheard = waiting.send(answer.outcome);
            }
        }
    }
}

async fn write_requests(mut writer: OwnedWriteHalf, shared: Arc<Shared>) {
    loop {
        let bytes = {
            let mut state = shared.state();
            let bytes = state.client.pending().to_vec();
            state.client.advance(bytes.len());
            bytes
        };
        if bytes.is_empty() {
            shared.written.notified().await;
        } else if writer.write_all(&bytes).await.is_err() {
            // The reading task sees the end of the connection and closes it.
            return;
        }
    }
}

/// Listens on `path`, replacing an old socket file. Only the owner may connect (mode 0600).
pub fn listen(path: &Path) -> Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    let about = || format!("listen on {}", path.display());
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).context(about),
        _ => {}
    }
    let listener = UnixListener::bind(path).context(about)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).context(about)?;
    Ok(listener)
}

/// Serves until the future is dropped, which closes all connections. `handle` returns the encoded response; for an
/// unknown service or method it returns [`Request::unknown_service`] or [`Request::unknown_method`].
pub async fn serve<H, F>(listener: UnixListener, handle: H)
where
    H: Fn(Request) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Vec<u8>>> + Send + 'static,
{
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(serve_connection(stream, handle.clone()));
            }
            // Most likely the process is out of file descriptors: give other connections time to end.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Serves one connection until the peer closes it.
pub async fn serve_connection<H, F>(stream: UnixStream, handle: H)
where
    H: Fn(Request) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Vec<u8>>> + Send + 'static,
{
    let (mut reader, writer) = stream.into_split();
    let server = Arc::new(Mutex::new(Server::new()));
    let writer = Arc::new(tokio::sync::Mutex::new(writer));
    let places = Arc::new(Semaphore::new(HANDLERS_MAX));
    let mut handlers = tokio::task::JoinSet::new();
    let mut buffer = vec![0; BUFFER_LEN];
    while let Ok(len @ 1..) = reader.read(&mut buffer).await {
        let calls: Vec<_> = {
            let mut server = server.lock().expect("no one panics while holding this lock");
            server.feed(&buffer[..len]);
            std::iter::from_fn(|| server.next_call()).collect()
        };
        flush(&server, &writer).await;
        for call in calls {
            let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
            let (server, writer) = (server.clone(), writer.clone());
            // Called here and not in the task, so that handlers run in the order of their requests up to their first
            // `.await`.
            let answer = handle(call.request);
            handlers.spawn(async move {
                let outcome = answer.await;
                server.lock().expect("no one panics while holding this lock").reply(call.stream, outcome);
                flush(&server, &writer).await;
                drop(place);
            });
        }
        while handlers.try_join_next().is_some() {}
    }
}

/// Writes all pending bytes. The reading task sees a write error as the end of the connection, and closes it.
async fn flush(server: &Mutex<Server>, writer: &tokio::sync::Mutex<OwnedWriteHalf>) {
    let mut writer = writer.lock().await;
    let bytes = {
        let mut server = server.lock().expect("no one panics while holding this lock");
        let bytes = server.pending().to_vec();
        server.advance(bytes.len());
        bytes
    };
    let _broken = writer.write_all(&bytes).await;
}

#[cfg(test)]
mod tests {
    use types::ErrorKind;

    use super::*;
    use crate::Status;

    fn run<T>(test: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
    }

    fn pair(hold: Arc<Notify>) -> (AsyncClient, tokio::task::JoinHandle<()>) {
        let (here, there) = UnixStream::pair().unwrap();
        let served = tokio::spawn(serve_connection(there, move |request: Request| {
            let hold = hold.clone();
            async move {
                match request.method.as_str() {
                    "Wait" => {
                        hold.notified().await;
                        Ok(request.payload)
                    }
                    "Echo" => Ok(request.payload),
                    _ => Err(request.unknown_method()),
                }
            }
        }));
        (AsyncClient::new(here), served)
    }

    fn message(text: &str) -> Status {
        Status { code: 1, message: text.into() }
    }

    #[test]
    fn a_call_that_waits_does_not_hold_up_others() {
        run(async {
            let hold = Arc::new(Notify::new());
            let (client, _served) = pair(hold.clone());
            let waiting = tokio::spawn({
                let client = client.clone();
                async move { client.call::<Status>(&Request::new("s", "Wait", &message("slow"))).await }
            });
            for _ in 0..100 {
                let answer: Status = client.call(&Request::new("s", "Echo", &message("fast"))).await.unwrap();
                assert_eq!(answer, message("fast"));
            }
            assert!(!waiting.is_finished());
            hold.notify_one();
            assert_eq!(waiting.await.unwrap().unwrap(), message("slow"));
        });
    }

    #[test]
    fn deadlines_and_unknown_methods_are_errors_and_the_connection_lives_on() {
        run(async {
            let (client, _served) = pair(Arc::new(Notify::new()));
            let request = Request::new("s", "Wait", &()).with_timeout(Duration::from_millis(5));
            let late = client.call::<()>(&request).await.unwrap_err();
            assert_eq!(late.kind(), ErrorKind::DeadlineExceeded);
            let unknown = client.call::<()>(&Request::new("s", "What", &())).await.unwrap_err();
            assert_eq!(unknown.kind(), ErrorKind::Unimplemented);
            assert!(client.call::<Status>(&Request::new("s", "Echo", &message("x"))).await.is_ok());
        });
    }

    #[test]
    fn open_calls_fail_when_the_connection_ends() {
        run(async {
            let (client, served) = pair(Arc::new(Notify::new()));
            let waiting = tokio::spawn({
                let client = client.clone();
                async move { client.call::<()>(&Request::new("s", "Wait", &())).await }
            });
            let echoed: Status = client.call(&Request::new("s", "Echo", &message("x"))).await.unwrap();
            assert_eq!(echoed, message("x"));
            served.abort();
            assert_eq!(waiting.await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
            client.closed().await;
            let after = client.call::<()>(&Request::new("s", "Echo", &())).await.unwrap_err();
            assert_eq!(after.kind(), ErrorKind::Unavailable);
        });
    }

    #[test]
    fn requests_pending_for_a_peer_that_does_not_read_are_bounded() {
        run(async {
            let (here, _there) = UnixStream::pair().unwrap();
            let client = AsyncClient::new(here);
            let big = message(&"x".repeat(100_000));
            let request = Request::new("s", "Echo", &big).with_timeout(Duration::from_millis(1));
            // More than the socket's buffer, one write and the limit hold.
            for _ in 0..200 {
                let error = client.call::<Status>(&request).await.unwrap_err();
                if error.kind() == ErrorKind::ResourceExhausted {
                    return;
                }
                assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
            }
            panic!("twenty megabytes wait");
        });
    }

    #[test]
    fn dropping_the_client_ends_the_connection() {
        run(async {
            let (client, served) = pair(Arc::new(Notify::new()));
            drop(client);
            served.await.unwrap();
        });
    }
}
