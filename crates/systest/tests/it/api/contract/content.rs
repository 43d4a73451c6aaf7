//! A content store that is an adapter of a daemon's content service.

use std::io::{self, Read};

use api::grpc::content::content_client::ContentClient;
use api::grpc::content::{
    AbortRequest, DeleteContentRequest, Info, InfoRequest, ListContentRequest, ListStatusesRequest,
    ReadContentRequest, ReadContentResponse, Status as WireStatus, StatusRequest, WriteAction,
    WriteContentRequest, WriteContentResponse,
};
use content::{Blob, BlobReader, Expected, IngestStatus, IngestWriter, Store};
use stdx::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};
use types::{Digest, IngestRef, Result, Timestamp};

use super::super::walk::all;
use super::Wire;

pub(super) struct WireStore(Wire);

impl WireStore {
    pub(super) fn new(wire: Wire) -> WireStore {
        WireStore(wire)
    }

    fn client(&self) -> ContentClient<Channel> {
        client(&self.0)
    }
}

fn client(wire: &Wire) -> ContentClient<Channel> {
    ContentClient::new(wire.channel.clone()).max_decoding_message_size(api::grpc::MESSAGE_BYTES_MAX)
}

impl Store for WireStore {
    fn info(&self, digest: &Digest) -> Result<Blob> {
        let request = self.0.request(InfoRequest { digest: digest.to_string() });
        self.0.ask(self.client().info(request)).map(|found| blob(found.info.unwrap_or_default()))
    }

    fn reader(&self, digest: &Digest) -> Result<Box<dyn BlobReader>> {
        let size = self.info(digest)?.size;
        let reader = Reader {
            wire: self.0.clone(),
            digest: digest.clone(),
            size,
            position: 0,
            opened: Mutex::default(),
        };
        // The stream that is open when the blob goes is what goes on.
        let opened = reader.open(0, size)?;
        *reader.opened.lock() = Some(opened);
        Ok(Box::new(reader))
    }

    fn list(&self) -> Result<Vec<Blob>> {
        let request = self.0.request(ListContentRequest::default());
        let found = self.0.ask(all(self.client().list(request)))?;
        Ok(found.into_iter().flat_map(|message| message.info).map(blob).collect())
    }

    fn delete(&self, digest: &Digest) -> Result<()> {
        let request = self.0.request(DeleteContentRequest { digest: digest.to_string() });
        self.0.ask(self.client().delete(request))?;
        self.0.collect()
    }

    fn begin(&self, reference: &IngestRef, expected: Expected) -> Result<Box<dyn IngestWriter>> {
        let first = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: reference.to_string(),
            total: signed(expected.size),
            expected: expected.digest.as_ref().map(ToString::to_string).unwrap_or_default(),
            ..WriteContentRequest::default()
        };
        let (questions, receiver) = mpsc::channel(1);
        questions.try_send(first).expect("there is room for one");
        let request = self.0.request(ReceiverStream::new(receiver));
        let mut client = self.client();
        let (answers, first) = self.0.ask(async {
            let mut answers = client.write(request).await?.into_inner();
            let first = next(&mut answers).await?;
            Ok(Response::new((answers, first)))
        })?;
        Ok(Box::new(Writer {
            wire: self.0.clone(),
            reference: reference.clone(),
            expected,
            offset: unsigned(first.offset),
            stream: Mutex::new((Some(questions), answers)),
        }))
    }

    fn status(&self, reference: &IngestRef) -> Result<IngestStatus> {
        let request = self.0.request(StatusRequest { r#ref: reference.to_string() });
        let found = self.0.ask(self.client().status(request))?;
        status(found.status.unwrap_or_default())
    }

    fn statuses(&self) -> Result<Vec<IngestStatus>> {
        let request = self.0.request(ListStatusesRequest::default());
        let found = self.0.ask(self.client().list_statuses(request))?;
        found.statuses.into_iter().map(status).collect()
    }

    fn abort(&self, reference: &IngestRef) -> Result<()> {
        let request = self.0.request(AbortRequest { r#ref: reference.to_string() });
        self.0.ask(self.client().abort(request))
    }
}

struct Reader {
    wire: Wire,
    digest: Digest,
    size: u64,
    position: u64,
    /// From the beginning on, until it is used.
    opened: Mutex<Option<Streaming<ReadContentResponse>>>,
}

impl Reader {
    fn open(&self, offset: u64, size: u64) -> Result<Streaming<ReadContentResponse>> {
        let read = ReadContentRequest {
            digest: self.digest.to_string(),
            offset: signed(Some(offset)),
            size: signed(Some(size)),
        };
        self.wire.ask(client(&self.wire).read(self.wire.request(read)))
    }
}

impl Read for Reader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.read_at(buf, self.position).map_err(io::Error::other)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl BlobReader for Reader {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        if offset >= self.size || buf.is_empty() {
            return Ok(0);
        }
        let opened = self.opened.lock().take();
        let mut stream = match opened.filter(|_| offset == 0) {
            Some(stream) => stream,
            None => self.open(offset, buf.len() as u64)?,
        };
        self.wire.ask(async {
            let mut read = 0;
            while read < buf.len()
                && let Some(message) = stream.message().await?
            {
                let len = message.data.len().min(buf.len() - read);
                buf[read..read + len].copy_from_slice(&message.data[..len]);
                read += len;
            }
            Ok(Response::new(read))
        })
    }
}

type Stream = (Option<mpsc::Sender<WriteContentRequest>>, Streaming<WriteContentResponse>);

struct Writer {
    wire: Wire,
    reference: IngestRef,
    expected: Expected,
    offset: u64,
    stream: Mutex<Stream>,
}

impl Writer {
    fn say(&self, question: WriteContentRequest) -> Result<WriteContentResponse> {
        let mut stream = self.stream.lock();
        let (questions, answers) = &mut *stream;
        self.wire.ask(async {
            if let Some(questions) = questions {
                // If nobody listens, the answer says why.
                let _ended = questions.send(question).await;
            }
            next(answers).await.map(Response::new)
        })
    }

    fn stat(&self) -> Result<WriteContentResponse> {
        self.say(WriteContentRequest { action: WriteAction::Stat.into(), ..WriteContentRequest::default() })
    }

    fn send(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let answer = self.say(WriteContentRequest {
            action: WriteAction::Write.into(),
            offset: signed(Some(offset)),
            data: data.to_vec().into(),
            ..WriteContentRequest::default()
        })?;
        self.offset = unsigned(answer.offset);
        Ok(())
    }
}

impl IngestWriter for Writer {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.send(self.offset, bytes)
    }

    fn offset(&self) -> u64 {
        self.offset
    }

    fn digest(&self) -> Digest {
        self.stat().and_then(|answer| answer.digest.parse()).expect("an open ingest has a digest")
    }

    fn status(&self) -> Result<IngestStatus> {
        let answer = self.stat()?;
        Ok(IngestStatus {
            reference: self.reference.clone(),
            offset: unsigned(answer.offset),
            total: (answer.total > 0).then(|| unsigned(answer.total)),
            expected: self.expected.digest.clone(),
            started: time(answer.started_at),
            updated: time(answer.updated_at),
        })
    }

    fn truncate(&mut self) -> Result<()> {
        self.send(0, b"")
    }

    fn commit(self: Box<Self>, expected: Expected) -> Result<Blob> {
        let answer = self.say(WriteContentRequest {
            action: WriteAction::Commit.into(),
            offset: signed(Some(self.offset)),
            total: signed(expected.size),
            expected: expected.digest.as_ref().map(ToString::to_string).unwrap_or_default(),
            ..WriteContentRequest::default()
        })?;
        WireStore(self.wire.clone()).info(&answer.digest.parse()?)
    }
}

impl Drop for Writer {
    /// Lets go, and waits until the daemon has let go too.
    fn drop(&mut self) {
        let (questions, answers) = self.stream.get_mut();
        questions.take();
        self.wire.runtime.block_on(async { while let Ok(Some(_)) = answers.message().await {} });
    }
}

async fn next(answers: &mut Streaming<WriteContentResponse>) -> Result<WriteContentResponse, Status> {
    answers.message().await?.ok_or_else(|| Status::unknown("the stream ended without an answer"))
}

fn blob(info: Info) -> Blob {
    let Info { digest, size, created_at, updated_at, .. } = info;
    let digest = digest.parse().expect("a digest");
    Blob { digest, size: unsigned(size), created: time(created_at), updated: time(updated_at) }
}

fn status(status: WireStatus) -> Result<IngestStatus> {
    Ok(IngestStatus {
        reference: IngestRef::new(status.r#ref)?,
        offset: unsigned(status.offset),
        total: (status.total > 0).then(|| unsigned(status.total)),
        expected: status.expected.parse().ok(),
        started: time(status.started_at),
        updated: time(status.updated_at),
    })
}

fn time(time: Option<prost_types::Timestamp>) -> Timestamp {
    let time = time.expect("the daemon tells times");
    Timestamp { seconds: time.seconds, nanos: time.nanos.unsigned_abs() }
}

fn signed(size: Option<u64>) -> i64 {
    size.map_or(0, |size| i64::try_from(size).expect("a size of a test"))
}

fn unsigned(size: i64) -> u64 {
    u64::try_from(size).expect("a size")
}
