//! The content store of a proxy plugin, through containerd's content service, in place of our own.
//!
//! A blob is read as one stream. An open ingest is one bidirectional stream; the plugin keeps the data when the stream
//! ends.

use std::future::Future;
use std::io::{self, Read};
use std::time::Duration;

use api::grpc::content::content_client::ContentClient;
use api::grpc::content::{
    AbortRequest, DeleteContentRequest, Info, InfoRequest, ListContentRequest, ListStatusesRequest,
    ReadContentRequest, ReadContentResponse, Status as WireStatus, StatusRequest, WriteAction,
    WriteContentRequest, WriteContentResponse,
};
use bytes::Bytes;
use content::{Blob, BlobReader, Expected, IngestStatus, IngestWriter, Store};
use stdx::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use types::{Context, Digest, Error, IngestRef, Result};

use super::{LONG, Plugin, client, request};
use crate::services::convert;

/// Bytes per message of an ingest, as containerd sends.
const CHUNK_LEN: usize = 1 << 20;

pub(crate) struct ProxyStore(Plugin);

impl ProxyStore {
    pub(crate) fn new(plugin: Plugin) -> ProxyStore {
        ProxyStore(plugin)
    }

    fn ask<T, F>(&self, limit: Duration, ask: impl FnOnce(ContentClient<Channel>) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Status>> + Send + 'static,
    {
        self.0.block(limit, ask(client!(ContentClient, self.0.channel())))
    }
}

impl Store for ProxyStore {
    fn info(&self, digest: &Digest) -> Result<Blob> {
        let message = request(None, InfoRequest { digest: digest.to_string() });
        let found = self.ask(self.0.short(), async |mut client| client.info(message).await)?;
        blob(found.into_inner().info.unwrap_or_default())
    }

    fn reader(&self, digest: &Digest) -> Result<Box<dyn BlobReader>> {
        let size = self.info(digest)?.size;
        Ok(Box::new(Reader {
            plugin: self.0.clone(),
            digest: digest.clone(),
            size,
            position: 0,
            ahead: Bytes::new(),
            stream: Mutex::new(None),
        }))
    }

    fn list(&self) -> Result<Vec<Blob>> {
        let message = request(None, ListContentRequest::default());
        let found = self.ask(LONG, async |mut client| {
            let (mut answers, mut found) = (client.list(message).await?.into_inner(), Vec::new());
            while let Some(answer) = answers.message().await? {
                found.extend(answer.info);
            }
            Ok(found)
        })?;
        found.into_iter().map(blob).collect()
    }

    fn delete(&self, digest: &Digest) -> Result<()> {
        let message = request(None, DeleteContentRequest { digest: digest.to_string() });
        self.ask(self.0.short(), async |mut client| client.delete(message).await).map(drop)
    }

    fn begin(&self, reference: &IngestRef, expected: Expected) -> Result<Box<dyn IngestWriter>> {
        let first = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: reference.to_string(),
            total: expected.size.map(convert::signed).unwrap_or_default(),
            expected: expected.digest.as_ref().map(ToString::to_string).unwrap_or_default(),
            ..WriteContentRequest::default()
        };
        let (questions, receiver) = mpsc::channel(1);
        questions.try_send(first).expect("there is room for one");
        let message = request(namespace(reference), ReceiverStream::new(receiver));
        let (state, stream) = self.ask(self.0.short(), async |mut client| {
            let mut answers = client.write(message).await?.into_inner();
            let state = next(&mut answers).await?;
            Ok((state, Conversation { questions, answers }))
        })?;
        Ok(Box::new(Ingest {
            plugin: self.0.clone(),
            reference: reference.clone(),
            expected,
            stream: Mutex::new(Some(stream)),
            state: Mutex::new(state),
        }))
    }

    fn status(&self, reference: &IngestRef) -> Result<IngestStatus> {
        let message = request(namespace(reference), StatusRequest { r#ref: reference.to_string() });
        let found = self.ask(self.0.short(), async |mut client| client.status(message).await)?;
        status(found.into_inner().status.unwrap_or_default())
    }

    fn statuses(&self) -> Result<Vec<IngestStatus>> {
        let message = request(None, ListStatusesRequest::default());
        let found = self.ask(self.0.short(), async |mut client| client.list_statuses(message).await)?;
        found.into_inner().statuses.into_iter().map(status).collect()
    }

    fn abort(&self, reference: &IngestRef) -> Result<()> {
        let message = request(namespace(reference), AbortRequest { r#ref: reference.to_string() });
        self.ask(self.0.short(), async |mut client| client.abort(message).await).map(drop)
    }
}

struct Reader {
    plugin: Plugin,
    digest: Digest,
    size: u64,
    /// Offset of the next byte to read.
    position: u64,
    /// Bytes received from the plugin and not read yet.
    ahead: Bytes,
    /// The stream that continues after `ahead`; `None` before the first read.
    stream: Mutex<Option<Streaming<ReadContentResponse>>>,
}

impl Reader {
    fn open(&self, offset: u64, size: u64) -> Result<Streaming<ReadContentResponse>> {
        let message = ReadContentRequest {
            digest: self.digest.to_string(),
            offset: convert::signed(offset),
            size: convert::signed(size),
        };
        let mut client = client!(ContentClient, self.plugin.channel());
        let asked = async move { client.read(request(None, message)).await };
        self.plugin.block(self.plugin.short(), asked).map(tonic::Response::into_inner)
    }

    /// The stream's next chunk; `None` at its end.
    fn next_piece(&mut self) -> Result<Option<Bytes>> {
        let taken = self.stream.get_mut().take();
        let mut stream = match taken {
            Some(stream) => stream,
            None => self.open(self.position, 0)?,
        };
        let (stream, piece) = self.plugin.block(self.plugin.short(), async move {
            let piece = stream.message().await?.map(|answer| answer.data);
            Ok((stream, piece))
        })?;
        *self.stream.get_mut() = Some(stream);
        Ok(piece)
    }
}

impl Read for Reader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.ahead.is_empty() && self.position < self.size && !buf.is_empty() {
            match self.next_piece().map_err(io::Error::other)? {
                Some(piece) => self.ahead = piece,
                None => {
                    let what =
                        format!("blob {} ended after {} of {} bytes", self.digest, self.position, self.size);
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
                }
            }
        }
        let len = self.ahead.len().min(buf.len());
        buf[..len].copy_from_slice(&self.ahead.split_to(len));
        self.position += len as u64;
        Ok(len)
    }
}

impl BlobReader for Reader {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let wanted = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        if wanted == 0 {
            return Ok(0);
        }
        let mut stream = self.open(offset, wanted as u64)?;
        let pieces = self.plugin.block(LONG, async move {
            let (mut pieces, mut len) = (Vec::new(), 0);
            while len < wanted
                && let Some(answer) = stream.message().await?
            {
                len += answer.data.len();
                pieces.push(answer.data);
            }
            Ok(pieces)
        })?;
        let mut read = 0;
        for piece in pieces {
            let len = piece.len().min(wanted - read);
            buf[read..read + len].copy_from_slice(&piece[..len]);
            read += len;
        }
        Ok(read)
    }
}

struct Conversation {
    questions: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
}

struct Ingest {
    plugin: Plugin,
    reference: IngestRef,
    expected: Expected,
    /// `None` after a failure: the plugin may or may not have the data sent last.
    stream: Mutex<Option<Conversation>>,
    /// The last response.
    state: Mutex<WriteContentResponse>,
}

impl Ingest {
    fn exchange(&self, limit: Duration, question: WriteContentRequest) -> Result<WriteContentResponse> {
        let stream = self.stream.lock().take();
        let Some(mut stream) = stream else {
            return Err(Error::unavailable(format!("ingest {} was cut off", self.reference)));
        };
        let (stream, answer) = self.plugin.block(limit, async move {
            // If the plugin has ended the stream, its response tells why.
            let _ended = stream.questions.send(question).await;
            let answer = next(&mut stream.answers).await?;
            Ok((stream, answer))
        })?;
        *self.stream.lock() = Some(stream);
        let mut state = self.state.lock();
        // Only some responses have a digest.
        let digest = if answer.digest.is_empty() { state.digest.clone() } else { answer.digest.clone() };
        *state = WriteContentResponse { digest, ..answer.clone() };
        Ok(answer)
    }

    fn send(&self, offset: u64, data: Bytes) -> Result<()> {
        let question = WriteContentRequest {
            action: WriteAction::Write.into(),
            offset: convert::signed(offset),
            data,
            ..WriteContentRequest::default()
        };
        self.exchange(self.plugin.short(), question).map(drop)
    }

    fn look<T>(&self, look: impl FnOnce(&WriteContentResponse) -> T) -> T {
        look(&self.state.lock())
    }
}

impl IngestWriter for Ingest {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        bytes.chunks(CHUNK_LEN).try_for_each(|chunk| self.send(self.offset(), Bytes::copy_from_slice(chunk)))
    }

    fn offset(&self) -> u64 {
        unsigned(self.look(|state| state.offset))
    }

    /// The plugin's digest, or the last known one; commit verifies it.
    fn digest(&self) -> Digest {
        let question = WriteContentRequest { action: WriteAction::Stat.into(), ..Default::default() };
        let answer = self.exchange(self.plugin.short(), question);
        let digest = answer.map_or_else(|_| self.look(|state| state.digest.clone()), |answer| answer.digest);
        digest.parse().unwrap_or_else(|_| Digest::of(b""))
    }

    fn status(&self) -> Result<IngestStatus> {
        let time =
            |time: Option<prost_types::Timestamp>| time.map(convert::own_timestamp).unwrap_or_default();
        Ok(self.look(|state| IngestStatus {
            reference: self.reference.clone(),
            offset: unsigned(state.offset),
            total: self.expected.size,
            expected: self.expected.digest.clone(),
            started: time(state.started_at),
            updated: time(state.updated_at),
        }))
    }

    fn truncate(&mut self) -> Result<()> {
        if self.offset() == 0 { Ok(()) } else { self.send(0, Bytes::new()) }
    }

    fn commit(self: Box<Self>, expected: Expected) -> Result<Blob> {
        let question = WriteContentRequest {
            action: WriteAction::Commit.into(),
            offset: convert::signed(self.offset()),
            total: expected.size.map(convert::signed).unwrap_or_default(),
            expected: expected.digest.as_ref().map(ToString::to_string).unwrap_or_default(),
            ..WriteContentRequest::default()
        };
        let answer = self.exchange(LONG, question)?;
        let digest = answer.digest.parse::<Digest>().context(|| "a commit's answer")?;
        let size = unsigned(answer.offset);
        // The plugin has committed the blob; verify that it is the expected one.
        expected.check(size, &digest)?;
        let time =
            |time: Option<prost_types::Timestamp>| time.map(convert::own_timestamp).unwrap_or_default();
        Ok(Blob { digest, size, created: time(answer.started_at), updated: time(answer.updated_at) })
    }
}

async fn next(answers: &mut Streaming<WriteContentResponse>) -> Result<WriteContentResponse, Status> {
    answers.message().await?.ok_or_else(|| Status::unavailable("the plugin ended the ingest"))
}

/// References in a plugin have the form `NAMESPACE/NUMBER/REF`, as the metadata store generates them.
fn namespace(reference: &IngestRef) -> Option<&str> {
    reference.as_str().split_once('/').map(|(namespace, _)| namespace)
}

fn blob(info: Info) -> Result<Blob> {
    Ok(Blob {
        digest: info.digest.parse()?,
        size: unsigned(info.size),
        created: info.created_at.map(convert::own_timestamp).unwrap_or_default(),
        updated: info.updated_at.map(convert::own_timestamp).unwrap_or_default(),
    })
}

fn status(status: WireStatus) -> Result<IngestStatus> {
    Ok(IngestStatus {
        reference: IngestRef::new(status.r#ref)?,
        offset: unsigned(status.offset),
        total: u64::try_from(status.total).ok().filter(|total| *total > 0),
        expected: status.expected.parse().ok(),
        started: status.started_at.map(convert::own_timestamp).unwrap_or_default(),
        updated: status.updated_at.map(convert::own_timestamp).unwrap_or_default(),
    })
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
