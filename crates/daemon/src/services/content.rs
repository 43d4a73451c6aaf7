//! `containerd.services.content.v1`: blobs, and the protocol of ingests.

use std::sync::Arc;

use api::grpc::content::content_server::Content as ContentService;
use api::grpc::content::{
    AbortRequest, DeleteContentRequest, Info, InfoRequest, InfoResponse, ListContentRequest,
    ListContentResponse, ListStatusesRequest, ListStatusesResponse, ReadContentRequest, ReadContentResponse,
    Status as WireStatus, StatusRequest, StatusResponse, UpdateRequest, UpdateResponse, WriteAction,
    WriteContentRequest, WriteContentResponse,
};
use content::{BlobReader, Expected, IngestStatus};
use metadata::{Blob, Content, ContentWriter, Metadata};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use types::{Digest, Error, ErrorKind, Filters, IngestRef, Result};

use super::{Answer, Answers, batches, blocking, caller, convert, required, status};

/// Bytes per message of a read, as containerd sends.
const CHUNK_LEN: u64 = 1 << 20;
/// Messages queued for a slow reader.
const CHUNKS_WAITING: usize = 2;

pub(super) struct Service(pub(super) Metadata);

#[tonic::async_trait]
impl ContentService for Service {
    async fn info(&self, request: Request<InfoRequest>) -> Answer<InfoResponse> {
        let content = self.0.content(caller(&request)?);
        let digest = digest(&request.into_inner().digest)?;
        let blob = blocking(move || content.info(&digest)).await?;
        Ok(Response::new(InfoResponse { info: Some(wire(blob)) }))
    }

    async fn update(&self, request: Request<UpdateRequest>) -> Answer<UpdateResponse> {
        let content = self.0.content(caller(&request)?);
        let request = request.into_inner();
        let info = required(request.info, "info")?;
        let (digest, paths) = (digest(&info.digest)?, convert::paths(request.update_mask));
        let blob = blocking(move || content.update(&digest, &info.labels, &paths)).await?;
        Ok(Response::new(UpdateResponse { info: Some(wire(blob)) }))
    }

    type ListStream = Answers<ListContentResponse>;

    async fn list(&self, request: Request<ListContentRequest>) -> Answer<Self::ListStream> {
        let content = self.0.content(caller(&request)?);
        let filters = Filters::parse(&request.into_inner().filters).map_err(status)?;
        let blobs = blocking(move || content.list(&filters)).await?;
        let found = blobs.into_iter().map(wire).collect();
        Ok(Response::new(batches(found, |info| ListContentResponse { info })))
    }

    async fn delete(&self, request: Request<DeleteContentRequest>) -> Answer<()> {
        let content = self.0.content(caller(&request)?);
        let digest = digest(&request.into_inner().digest)?;
        blocking(move || content.delete(&digest)).await.map(Response::new)
    }

    type ReadStream = Answers<ReadContentResponse>;

    async fn read(&self, request: Request<ReadContentRequest>) -> Answer<Self::ReadStream> {
        let content = self.0.content(caller(&request)?);
        let request = request.into_inner();
        let digest = digest(&request.digest)?;
        let reader = transfer::open_blob(&content, &digest).await.map_err(status)?;
        let range = range(&request, reader.size()).map_err(status)?;
        let (send, receive) = mpsc::channel(CHUNKS_WAITING);
        tokio::spawn(read_range(reader, range, send));
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        let caller = caller(&request);
        let text = request.into_inner().r#ref;
        let find = async {
            let (content, reference) = (self.0.content(caller?), reference(&text)?);
            blocking(move || content.status(&reference)).await
        };
        let found = find.await.map_err(|refused| {
            let message = format!("could not get status for ref {text:?}: {}", refused.message());
            Status::new(refused.code(), message)
        })?;
        Ok(Response::new(StatusResponse { status: Some(wire_status(found)) }))
    }

    async fn list_statuses(&self, request: Request<ListStatusesRequest>) -> Answer<ListStatusesResponse> {
        let content = self.0.content(caller(&request)?);
        let filters = Filters::parse(&request.into_inner().filters).map_err(status)?;
        let found = blocking(move || content.statuses(&filters)).await?;
        Ok(Response::new(ListStatusesResponse { statuses: found.into_iter().map(wire_status).collect() }))
    }

    type WriteStream = Answers<WriteContentResponse>;

    async fn write(&self, request: Request<Streaming<WriteContentRequest>>) -> Answer<Self::WriteStream> {
        let content = self.0.content(caller(&request)?);
        let (send, receive) = mpsc::channel(CHUNKS_WAITING);
        let requests = request.into_inner();
        tokio::spawn(async move {
            if let Err(status) = write(content, requests, &send).await {
                // Fails if the client has disconnected; the ingest is kept for its return.
                let _ = send.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Answer<()> {
        let content = self.0.content(caller(&request)?);
        let reference = reference(&request.into_inner().r#ref)?;
        blocking(move || content.abort(&reference)).await.map(Response::new)
    }
}

/// The requested byte range: from the offset, to the end if no size is given, and never beyond the end.
fn range(request: &ReadContentRequest, size: u64) -> Result<std::ops::Range<u64>> {
    let start = u64::try_from(request.offset).unwrap_or(0);
    if start > size {
        let message = format!("read {} from {start}: read past object length {size} bytes", request.digest);
        return Err(Error::out_of_range(message));
    }
    let len = u64::try_from(request.size).ok().filter(|len| *len > 0).unwrap_or(u64::MAX);
    Ok(start..start.saturating_add(len).min(size))
}

/// Offsets in the responses are relative to the start of this range, as containerd's are.
async fn read_range(
    reader: Arc<dyn BlobReader>,
    range: std::ops::Range<u64>,
    send: mpsc::Sender<Result<ReadContentResponse, Status>>,
) {
    let mut at = range.start;
    while at < range.end {
        let len = CHUNK_LEN.min(range.end - at);
        let reader = reader.clone();
        let chunk = blocking(move || {
            let mut bytes = vec![0; usize::try_from(len).expect("a chunk fits")];
            let read = reader.read_at(&mut bytes, at)?;
            if read == 0 {
                return Err(Error::data_loss(format!("the blob ended {len} bytes early")));
            }
            bytes.truncate(read);
            Ok(bytes)
        });
        let chunk = chunk.await;
        let failed = chunk.is_err();
        let offset = convert::signed(at - range.start);
        at += chunk.as_ref().map_or(0, |bytes| bytes.len() as u64);
        let message = chunk.map(|bytes| ReadContentResponse { offset, data: bytes.into() });
        if send.send(message).await.is_err() || failed {
            return;
        }
    }
}

/// One ingest, from its first message to its commit.
struct Ingest {
    content: Content,
    reference: IngestRef,
    expected: Expected,
    writer: ContentWriter,
}

/// Result of one message.
struct Step {
    /// `None` once it is committed.
    ingest: Option<Ingest>,
    answer: WriteContentResponse,
}

async fn write(
    content: Content,
    mut requests: Streaming<WriteContentRequest>,
    send: &mpsc::Sender<Result<WriteContentResponse, Status>>,
) -> Result<(), Status> {
    let Some(first) = requests.message().await? else { return Ok(()) };
    let mut ingest = {
        let first = WriteContentRequest { data: Vec::new().into(), ..first.clone() };
        blocking(move || Ingest::open(&content, &first)).await?
    };
    let mut next = Some(first);
    while let Some(request) = next {
        let step = blocking(move || ingest.step(&request)).await?;
        if send.send(Ok(step.answer)).await.is_err() {
            return Ok(());
        }
        let Some(open) = step.ingest else { return Ok(()) };
        ingest = open;
        next = requests.message().await?;
    }
    Ok(())
}

impl Ingest {
    fn open(content: &Content, first: &WriteContentRequest) -> Result<Ingest> {
        if first.r#ref.is_empty() {
            return Err(Error::invalid_argument("first message must have a reference"));
        }
        let expected = Expected { size: size(first.total), digest: expected_digest(&first.expected)? };
        let (content, reference) = (content.clone(), IngestRef::new(&first.r#ref)?);
        let writer = content.begin(&reference, expected.clone())?;
        Ok(Ingest { content, reference, expected, writer })
    }

    fn step(mut self, request: &WriteContentRequest) -> Result<Step> {
        self.learn(request)?;
        let action = WriteAction::try_from(request.action).map_err(|_| {
            Error::invalid_argument(format!("ingest {}: unknown action {}", self.reference, request.action))
        })?;
        // A commit checks this itself.
        if action != WriteAction::Commit && !request.expected.is_empty() {
            self = self.still_needed()?;
        }
        if action == WriteAction::Stat {
            let status = self.writer.status()?;
            let answer = WriteContentResponse {
                action: request.action,
                started_at: convert::timestamp(status.started),
                updated_at: convert::timestamp(status.updated),
                offset: convert::signed(self.writer.offset()),
                total: self.expected.size.or(status.total).map_or(0, convert::signed),
                digest: self.writer.digest().to_string(),
            };
            return Ok(Step { ingest: Some(self), answer });
        }
        self.take(request, action)?;
        let offset = convert::signed(self.writer.offset());
        let answer = WriteContentResponse { action: request.action, offset, ..Default::default() };
        if action == WriteAction::Write {
            let answer = WriteContentResponse { digest: self.writer.digest().to_string(), ..answer };
            return Ok(Step { ingest: Some(self), answer });
        }
        // Only the labels of the commit message count, as in containerd.
        let blob = self.writer.commit(self.expected, request.labels.clone())?;
        let total = convert::signed(blob.size);
        let answer = WriteContentResponse { total, digest: blob.digest.to_string(), ..answer };
        Ok(Step { ingest: None, answer })
    }

    /// If the blob exists already, aborts the ingest, which frees its reference.
    fn still_needed(self) -> Result<Ingest> {
        let Some(digest) = &self.expected.digest else { return Ok(self) };
        match self.content.info(digest) {
            Err(error) if error.is(ErrorKind::NotFound) => return Ok(self),
            found => found?,
        };
        let refused = Error::already_exists(format!("blob with expected digest {digest} exists"));
        self.writer.abort()?;
        Err(refused)
    }

    /// Takes expectations from later messages: the last ones count, and commit verifies them.
    fn learn(&mut self, request: &WriteContentRequest) -> Result<()> {
        if !request.r#ref.is_empty() && request.r#ref != self.reference.as_str() {
            let message = format!("ingest {}: another reference {}", self.reference, request.r#ref);
            return Err(Error::invalid_argument(message));
        }
        if let Some(size) = size(request.total) {
            self.expected.size = Some(size);
        }
        if let Some(digest) = expected_digest(&request.expected)? {
            self.expected.digest = Some(digest);
        }
        Ok(())
    }

    /// Appends the data of a message. A write at offset 0 truncates the ingest; a negative offset, which clients send
    /// that do not know it, appends.
    fn take(&mut self, request: &WriteContentRequest, action: WriteAction) -> Result<()> {
        let at = self.writer.offset();
        let asked = u64::try_from(request.offset).unwrap_or(at);
        let begins_anew = asked == 0 && (action == WriteAction::Write || !request.data.is_empty());
        if asked > 0 && asked != at {
            let message =
                format!("ingest {}: write @{asked} must occur at current offset {at}", self.reference);
            return Err(Error::out_of_range(message));
        }
        if begins_anew && at > 0 {
            self.writer.truncate()?;
        }
        if request.data.is_empty() { Ok(()) } else { self.writer.write(&request.data) }
    }
}

/// 0 and negative numbers mean unknown: Go's HTTP client reports -1 without a Content-Length.
fn size(total: i64) -> Option<u64> {
    u64::try_from(total).ok().filter(|size| *size > 0)
}

fn expected_digest(text: &str) -> Result<Option<Digest>> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}

fn digest(text: &str) -> Result<Digest, Status> {
    text.parse().map_err(status)
}

fn reference(text: &str) -> Result<IngestRef, Status> {
    if text.is_empty() {
        return Err(Status::not_found("reference : not found"));
    }
    IngestRef::new(text).map_err(status)
}

fn wire(blob: Blob) -> Info {
    Info {
        digest: blob.digest.to_string(),
        size: convert::signed(blob.size),
        created_at: convert::timestamp(blob.created),
        updated_at: convert::timestamp(blob.updated),
        labels: blob.labels,
    }
}

fn wire_status(status: IngestStatus) -> WireStatus {
    WireStatus {
        started_at: convert::timestamp(status.started),
        updated_at: convert::timestamp(status.updated),
        r#ref: status.reference.into(),
        offset: convert::signed(status.offset),
        total: status.total.map_or(0, convert::signed),
        expected: status.expected.map(|digest| digest.to_string()).unwrap_or_default(),
    }
}
