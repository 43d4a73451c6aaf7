//! Streams by name: a client opens one, and names it in another call that reads or writes it.
//!
//! ```text
//! open (name) ──▶ waiting ──take──▶ in use ──▶ gone
//!                    └──── the client lets go ──▶ gone
//! ```
//!
//! Bytes go in messages of up to [`CHUNK_LEN_MAX`]; who reads says with `WindowUpdate` how many more it takes.
//!
//! Invariants
//! - A name stands for one stream of its namespace at a time.
//! - A stream costs nothing but its connection: nobody reads it before it is taken, and its client waits.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use api::grpc::transfer::{Data, WindowUpdate};
use api::shim::{pack, unpack};
use prost_types::Any;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::{Status, Streaming};
use types::{Error, Namespace, Result};

/// Bytes in one message, as many as containerd's clients send.
const CHUNK_LEN_MAX: usize = 32 * 1024;
/// Messages of ours that wait for a slow client.
const WAITING_MAX: usize = 16;
/// Streams that are open and named, of all clients together.
const STREAMS_MAX: usize = 4096;
/// Bytes of a stream's name.
const NAME_LEN_MAX: usize = 256;

type Key = (Namespace, String);

/// The streams that are open. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Streams(Arc<Mutex<HashMap<Key, Option<Channel>>>>);

/// Both directions of a stream.
pub(crate) struct Channel {
    incoming: Streaming<Any>,
    outgoing: mpsc::Sender<Result<Any, Status>>,
}

impl Streams {
    /// Opens a stream and answers its client's half. `AlreadyExists` if the name is taken.
    pub(crate) fn open(
        &self,
        namespace: &Namespace,
        name: &str,
        incoming: Streaming<Any>,
    ) -> Result<Outgoing> {
        if name.is_empty() || name.len() > NAME_LEN_MAX {
            return Err(Error::invalid_argument(format!(
                "the name of a stream has 1 to {NAME_LEN_MAX} bytes, not {}",
                name.len()
            )));
        }
        let key = (namespace.clone(), name.to_owned());
        let (outgoing, receive) = mpsc::channel(WAITING_MAX);
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if open.contains_key(&key) {
            return Err(Error::already_exists(format!("stream {name:?}")));
        }
        if open.len() >= STREAMS_MAX {
            return Err(Error::resource_exhausted(format!("{STREAMS_MAX} streams are open")));
        }
        // The client waits for this before it names the stream elsewhere.
        let acknowledged = Any { type_url: "google.protobuf.Empty".into(), value: Vec::new() };
        outgoing.try_send(Ok(acknowledged)).map_err(|_| Error::internal("a new channel has room"))?;
        open.insert(key.clone(), Some(Channel { incoming, outgoing }));
        Ok(Outgoing { receive, key, streams: self.clone() })
    }

    /// Takes a stream to use it. It ends when the channel is dropped.
    pub(crate) fn take(&self, namespace: &Namespace, name: &str) -> Result<Channel> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match open.get_mut(&(namespace.clone(), name.to_owned())) {
            Some(channel) => {
                channel.take().ok_or_else(|| Error::failed_precondition(format!("stream {name:?} is in use")))
            }
            None => Err(Error::not_found(format!("stream {name:?}: open it before you name it"))),
        }
    }
}

impl Channel {
    /// Sends a message. `Unavailable` if the client is gone.
    pub(crate) async fn send(&self, message: Any) -> Result<()> {
        self.outgoing.send(Ok(message)).await.map_err(|_| Error::unavailable("the stream's client is gone"))
    }

    /// The next message; none when the client has sent its last.
    pub(crate) async fn receive(&mut self) -> Result<Option<Any>> {
        self.incoming
            .message()
            .await
            .map_err(|status| Error::unavailable(format!("the stream broke off: {}", status.message())))
    }

    /// Bytes of the client, for a thread that may block.
    pub(crate) fn into_reader(self, handle: Handle) -> Reader {
        Reader { channel: self, handle, pending: bytes::Bytes::new(), window: 0 }
    }

    /// Bytes for the client, from a thread that may block.
    pub(crate) fn into_writer(self, handle: Handle) -> Writer {
        Writer { channel: self, handle, window: 0 }
    }
}

/// Bytes that a client may have on the way to us.
const WINDOW: usize = 1 << 20;

/// Reads what a client writes, from a thread that may block.
pub(crate) struct Reader {
    channel: Channel,
    handle: Handle,
    /// What came and was not read yet.
    pending: bytes::Bytes,
    /// Bytes that the client may still send.
    window: usize,
}

impl io::Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.pending.is_empty() {
            if self.window < WINDOW / 2 {
                let update = i32::try_from(WINDOW - self.window).unwrap_or(i32::MAX);
                let message = pack(&WindowUpdate { update });
                self.handle.block_on(self.channel.send(message)).map_err(io::Error::other)?;
                self.window = WINDOW;
            }
            let received = self.handle.block_on(self.channel.receive()).map_err(io::Error::other)?;
            let Some(message) = received else { return Ok(0) };
            let Some(data) = unpack::<Data>(&message) else {
                return Err(io::Error::other(format!("a writer of bytes sends a {}", message.type_url)));
            };
            self.pending = data.map_err(io::Error::other)?.data;
            // One that sends more than it may is not cut off: its connection holds it back as well.
            self.window = self.window.saturating_sub(self.pending.len());
        }
        let len = buffer.len().min(self.pending.len());
        buffer[..len].copy_from_slice(&self.pending.split_to(len));
        Ok(len)
    }
}

/// What goes to the client. The stream's name is free when this is dropped.
pub(crate) struct Outgoing {
    receive: mpsc::Receiver<Result<Any, Status>>,
    key: Key,
    streams: Streams,
}

impl Stream for Outgoing {
    type Item = Result<Any, Status>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Option<Self::Item>> {
        self.receive.poll_recv(context)
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        let mut open = self.streams.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(open.remove(&self.key));
    }
}

/// Writes what a client reads.
pub(crate) struct Writer {
    channel: Channel,
    handle: Handle,
    /// Bytes that the client takes.
    window: usize,
}

impl Writer {
    /// Waits until the client takes more.
    fn wait(&mut self) -> io::Result<()> {
        while self.window == 0 {
            let message = self.handle.block_on(self.channel.receive()).map_err(io::Error::other)?;
            let message = message.ok_or(io::ErrorKind::BrokenPipe)?;
            let Some(update) = unpack::<WindowUpdate>(&message) else {
                return Err(io::Error::other(format!("a reader of bytes sends a {}", message.type_url)));
            };
            self.window = usize::try_from(update.map_err(io::Error::other)?.update).unwrap_or(0);
        }
        Ok(())
    }
}

impl io::Write for Writer {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        self.wait()?;
        let len = buffer.len().min(self.window).min(CHUNK_LEN_MAX);
        let data = Data { data: bytes::Bytes::copy_from_slice(&buffer[..len]) };
        self.handle.block_on(self.channel.send(pack(&data))).map_err(io::Error::other)?;
        self.window -= len;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
