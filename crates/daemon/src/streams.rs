//! Named streams: a client opens one and names it in another call, which reads or writes it.
//!
//! ```text
//! open (name) ──▶ waiting ──take──▶ in use ──▶ closed
//!                    └──── the client disconnects, or its lease is deleted ──▶ closed
//! ```
//!
//! Data is sent in messages of up to [`CHUNK_LEN_MAX`]; the reader grants credit with `WindowUpdate`.
//!
//! Invariants
//! - A name is unique among the open streams of its namespace.
//! - An open stream costs nothing but its connection: it is not read before it is taken, so that its client blocks.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use api::grpc::transfer::{Data, WindowUpdate};
use api::shim::{pack, unpack};
use linux::pipe::{SILENCE_MAX, silent};
use metadata::{Caller, LeasedStream};
use prost_types::Any;
use stdx::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::Stream;
use tonic::{Status, Streaming};
use types::{Error, LeaseId, Namespace, Result};

/// Bytes per message, as containerd's clients send.
const CHUNK_LEN_MAX: usize = 32 * 1024;
/// Our messages queued for a slow client.
const WAITING_MAX: usize = 16;
/// Open streams of all clients together.
const STREAMS_MAX: usize = 4096;
/// Longest name of a stream, in bytes.
const NAME_LEN_MAX: usize = 256;

type Key = (Namespace, String);

/// The open streams. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Streams(Arc<Mutex<HashMap<Key, Open>>>);

struct Open {
    /// `None` once it is taken.
    channel: Option<Channel>,
    lease: Option<LeaseId>,
    /// Dropped to close the stream, even while it is in use.
    end: Option<oneshot::Sender<()>>,
}

/// Both directions of a stream.
pub(crate) struct Channel {
    incoming: Streaming<Any>,
    outgoing: mpsc::Sender<Result<Any, Status>>,
}

impl Streams {
    /// Opens a stream and returns the client's receiving end. `AlreadyExists` if the name is taken. A stream opened
    /// under a lease is closed with it, unless a label keeps it.
    pub(crate) fn open(&self, caller: &Caller, name: &str, incoming: Streaming<Any>) -> Result<Outgoing> {
        if name.is_empty() || name.len() > NAME_LEN_MAX {
            return Err(Error::invalid_argument(format!(
                "the name of a stream has 1 to {NAME_LEN_MAX} bytes, not {}",
                name.len()
            )));
        }
        let key = (caller.namespace.clone(), name.to_owned());
        let (outgoing, receive) = mpsc::channel(WAITING_MAX);
        let mut open = self.0.lock();
        if open.contains_key(&key) {
            return Err(Error::already_exists(format!("stream {name:?}")));
        }
        if open.len() >= STREAMS_MAX {
            return Err(Error::resource_exhausted(format!("{STREAMS_MAX} streams are open")));
        }
        // The client waits for this before it uses the name in another call.
        let acknowledged = Any { type_url: "google.protobuf.Empty".into(), value: Vec::new() };
        outgoing.try_send(Ok(acknowledged)).map_err(|_| Error::internal("a new channel has room"))?;
        let (end, ended) = oneshot::channel();
        let channel = Some(Channel { incoming, outgoing });
        open.insert(key.clone(), Open { channel, lease: caller.lease.clone(), end: Some(end) });
        Ok(Outgoing { receive, ended, key, streams: self.clone() })
    }

    /// Takes a stream for use. It closes when the channel is dropped.
    pub(crate) fn take(&self, namespace: &Namespace, name: &str) -> Result<Channel> {
        let mut open = self.0.lock();
        match open.get_mut(&(namespace.clone(), name.to_owned())) {
            Some(open) => open
                .channel
                .take()
                .ok_or_else(|| Error::failed_precondition(format!("stream {name:?} is in use"))),
            None => Err(Error::not_found(format!("stream {name:?}: open it before you name it"))),
        }
    }
}

impl metadata::Streams for Streams {
    fn leased(&self) -> Vec<LeasedStream> {
        let open = self.0.lock();
        let leased = |((namespace, name), open): (&Key, &Open)| {
            let lease = open.lease.clone()?;
            Some(LeasedStream { namespace: namespace.clone(), name: name.clone(), lease })
        };
        open.iter().filter_map(leased).collect()
    }

    /// Closes the stream, for the client as well as for its user.
    fn end(&self, stream: &LeasedStream) {
        let key = (stream.namespace.clone(), stream.name.clone());
        let mut open = self.0.lock();
        if let Some(open) = open.get_mut(&key).filter(|open| open.lease.as_ref() == Some(&stream.lease)) {
            open.end = None;
        }
    }
}

impl Channel {
    /// Sends a message. `Unavailable` if the client has disconnected.
    pub(crate) async fn send(&self, message: Any) -> Result<()> {
        self.outgoing.send(Ok(message)).await.map_err(|_| Error::unavailable("the stream's client is gone"))
    }

    /// The next message; `None` when the client has sent its last.
    pub(crate) async fn receive(&mut self) -> Result<Option<Any>> {
        self.incoming
            .message()
            .await
            .map_err(|status| Error::unavailable(format!("the stream broke off: {}", status.message())))
    }

    /// The client's data, for a thread that may block.
    pub(crate) fn into_reader(self, handle: Handle) -> Reader {
        Reader { channel: self.timed(), handle, pending: bytes::Bytes::new(), window: 0 }
    }

    /// Data for the client, from a thread that may block.
    pub(crate) fn into_writer(self, handle: Handle) -> Writer {
        Writer { sender: self.into_sender(), handle }
    }

    /// Data for the client.
    pub(crate) fn into_sender(self) -> Sender {
        Sender { channel: self.timed(), window: 0 }
    }

    fn timed(self) -> TimedChannel {
        TimedChannel { channel: self, silence_max: SILENCE_MAX }
    }
}

/// A channel with a limit on the client's inactivity.
struct TimedChannel {
    channel: Channel,
    silence_max: Duration,
}

impl TimedChannel {
    async fn send(&self, message: Any) -> io::Result<()> {
        with_limit(self.silence_max, self.channel.send(message)).await
    }

    async fn receive(&mut self) -> io::Result<Option<Any>> {
        with_limit(self.silence_max, self.channel.receive()).await
    }
}

async fn with_limit<T>(silence_max: Duration, step: impl Future<Output = Result<T>>) -> io::Result<T> {
    timeout(silence_max, step).await.map_err(|_| silent(silence_max))?.map_err(io::Error::other)
}

/// Bytes that a client may have in flight to us.
const WINDOW: usize = 1 << 20;

/// Reads the client's data, on a thread that may block.
pub(crate) struct Reader {
    channel: TimedChannel,
    handle: Handle,
    /// Received and not read yet.
    pending: bytes::Bytes,
    /// Remaining credit of the client, in bytes.
    window: usize,
}

impl io::Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.pending.is_empty() {
            if self.window < WINDOW / 2 {
                let update = i32::try_from(WINDOW - self.window).unwrap_or(i32::MAX);
                let message = pack(&WindowUpdate { update });
                self.handle.block_on(self.channel.send(message))?;
                self.window = WINDOW;
            }
            let Some(message) = self.handle.block_on(self.channel.receive())? else { return Ok(0) };
            let Some(data) = unpack::<Data>(&message) else {
                return Err(io::Error::other(format!("a writer of bytes sends a {}", message.type_url)));
            };
            self.pending = data.map_err(io::Error::other)?.data;
            // A client that exceeds its credit is not disconnected: HTTP/2 flow control limits it as well.
            self.window = self.window.saturating_sub(self.pending.len());
        }
        let len = buffer.len().min(self.pending.len());
        buffer[..len].copy_from_slice(&self.pending.split_to(len));
        Ok(len)
    }
}

/// The messages to the client. Dropping it frees the stream's name.
pub(crate) struct Outgoing {
    receive: mpsc::Receiver<Result<Any, Status>>,
    ended: oneshot::Receiver<()>,
    key: Key,
    streams: Streams,
}

impl Stream for Outgoing {
    type Item = Result<Any, Status>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Option<Self::Item>> {
        if std::pin::Pin::new(&mut self.ended).poll(context).is_ready() {
            return Poll::Ready(None);
        }
        self.receive.poll_recv(context)
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        let mut open = self.streams.0.lock();
        drop(open.remove(&self.key));
    }
}

/// Sends data as fast as the client grants credit.
pub(crate) struct Sender {
    channel: TimedChannel,
    /// Remaining credit, in bytes.
    window: usize,
}

impl Sender {
    pub(crate) async fn send_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = self.send(bytes).await?;
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    /// Waits for credit and sends as many of the bytes as it allows.
    async fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        while self.window == 0 {
            let message = self.channel.receive().await?.ok_or(io::ErrorKind::BrokenPipe)?;
            let Some(update) = unpack::<WindowUpdate>(&message) else {
                return Err(io::Error::other(format!("a reader of bytes sends a {}", message.type_url)));
            };
            self.window = usize::try_from(update.map_err(io::Error::other)?.update).unwrap_or(0);
        }
        let len = bytes.len().min(self.window).min(CHUNK_LEN_MAX);
        let data = Data { data: bytes::Bytes::copy_from_slice(&bytes[..len]) };
        self.channel.send(pack(&data)).await?;
        self.window -= len;
        Ok(len)
    }
}

/// A sender for a thread that may block.
pub(crate) struct Writer {
    sender: Sender,
    handle: Handle,
}

impl io::Write for Writer {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.handle.block_on(self.sender.send(buffer))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    /// A client that sends nothing.
    fn silence() -> Streaming<Any> {
        let decoder = tonic_prost::ProstDecoder::<Any>::default();
        let never = tokio_stream::pending::<Result<hyper::body::Frame<bytes::Bytes>, Status>>();
        let body = http_body_util::StreamBody::new(never);
        Streaming::new_request(decoder, body, None, None)
    }

    /// An open stream, and the client's receiving end.
    fn opened() -> (TimedChannel, mpsc::Receiver<Result<Any, Status>>) {
        let (outgoing, receive) = mpsc::channel(1);
        let channel = Channel { incoming: silence(), outgoing };
        let silence_max = Duration::from_millis(1);
        (TimedChannel { channel, silence_max }, receive)
    }

    async fn given_up(work: impl FnOnce() -> io::Result<()> + Send + 'static) {
        let error = tokio::task::spawn_blocking(work).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    }

    #[tokio::test]
    async fn a_stream_is_ended_by_its_lease_and_by_no_other() {
        use metadata::Streams as _;

        let streams = Streams::default();
        let caller = Caller::new(Namespace::new("test").unwrap());
        let (lease, other) = (LeaseId::new("one").unwrap(), LeaseId::new("other").unwrap());
        let _free = streams.open(&caller, "free", silence()).unwrap();
        let mut held = streams.open(&caller.clone().with_lease(lease.clone()), "held", silence()).unwrap();
        let stream = LeasedStream { namespace: caller.namespace, name: "held".to_owned(), lease };
        assert_eq!(streams.leased(), std::slice::from_ref(&stream));

        streams.end(&LeasedStream { lease: other, ..stream.clone() });
        assert_eq!(held.ended.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        streams.end(&stream);
        assert_eq!(held.ended.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        drop(held);
        assert!(streams.leased().is_empty());
        // The stream is gone; closing it again is fine.
        streams.end(&stream);
    }

    #[tokio::test]
    async fn a_client_that_neither_sends_nor_takes_is_given_up() {
        let (channel, _asked) = opened();
        given_up(move || {
            let handle = Handle::current();
            let mut reader = Reader { channel, handle, pending: bytes::Bytes::new(), window: 0 };
            reader.read(&mut [0]).map(drop)
        })
        .await;
        // A client that grants no credit, or grants it but does not read.
        for window in [0, usize::MAX] {
            let (channel, _taken) = opened();
            let writer = |sender| Writer { sender, handle: Handle::current() };
            given_up(move || writer(Sender { channel, window }).write_all(&[0; 2 * CHUNK_LEN_MAX])).await;
        }
    }
}
