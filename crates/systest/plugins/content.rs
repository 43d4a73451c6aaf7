//! `example-content SOCKET`: a content store that keeps blobs in memory.
//!
//! ```text
//! Write(STAT, ref) ─▶ ingest ─▶ Write(WRITE, offset, data)… ─▶ Write(COMMIT, size, digest) ─▶ blob
//!                       └── the stream ends: the ingest stays, and the next Write of its ref goes on
//! ```
//!
//! `docs/extend/content-store.md` walks through it.

mod serve;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use api::grpc::content::content_server::{Content, ContentServer};
use api::grpc::content::*;
use bytes::Bytes;
use prost_types::Timestamp;
use tokio::sync::mpsc;
use tokio_stream::Iter;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use types::Digest;

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    blobs: BTreeMap<String, (Bytes, Option<Timestamp>)>,
    ingests: BTreeMap<String, Ingest>,
}

#[derive(Clone, Default)]
struct Ingest {
    bytes: Vec<u8>,
    started: Option<Timestamp>,
    total: i64,
    /// Whether a writer has the ingest open: there is one at a time.
    is_open: bool,
}

const CHUNK_LEN: usize = 1 << 20;

impl Memory {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().expect("no panic holds this lock")
    }

    /// Opens an ingest, new or at the offset where an earlier writer left it.
    fn open(&self, first: &WriteContentRequest) -> Result<String, Status> {
        if first.r#ref.is_empty() {
            return Err(Status::invalid_argument("the first message names a ref"));
        }
        let mut kept = self.kept();
        if kept.blobs.contains_key(&first.expected) {
            return Err(Status::already_exists(format!("content {}", first.expected)));
        }
        let ingest = kept.ingests.entry(first.r#ref.clone()).or_default();
        if ingest.is_open {
            return Err(Status::unavailable(format!("ref {} is being written", first.r#ref)));
        }
        if ingest.started.is_none() || (first.total > 0 && ingest.total != first.total) {
            *ingest = Ingest { started: now(), total: first.total, ..Ingest::default() };
        }
        ingest.is_open = true;
        Ok(first.r#ref.clone())
    }

    fn carry_out(&self, key: &str, asked: WriteContentRequest) -> Result<WriteContentResponse, Status> {
        let mut kept = self.kept();
        let ingest = kept.ingests.get_mut(key).ok_or_else(|| Status::not_found(format!("ref {key}")))?;
        let action = asked.action();
        if action != WriteAction::Stat {
            if asked.offset == 0 && action == WriteAction::Write {
                ingest.bytes.clear();
            } else if usize::try_from(asked.offset) != Ok(ingest.bytes.len()) {
                return Err(Status::out_of_range(format!("offset {} is not where it ends", asked.offset)));
            }
            ingest.bytes.extend_from_slice(&asked.data);
        }
        let len = ingest.bytes.len() as i64;
        let digest = match action {
            WriteAction::Write => String::new(),
            WriteAction::Stat | WriteAction::Commit => Digest::of(&ingest.bytes).to_string(),
        };
        let answer = WriteContentResponse {
            action: action.into(),
            started_at: ingest.started,
            updated_at: now(),
            offset: len,
            total: ingest.total,
            digest: digest.clone(),
        };
        if action == WriteAction::Commit {
            let is_other = !asked.expected.is_empty() && asked.expected != digest;
            if is_other || (asked.total > 0 && asked.total != len) {
                return Err(Status::failed_precondition(format!("it is {digest} of {len} bytes")));
            }
            let ingest = kept.ingests.remove(key).expect("found above");
            if kept.blobs.contains_key(&digest) {
                return Err(Status::already_exists(format!("content {digest}")));
            }
            kept.blobs.insert(digest, (ingest.bytes.into(), now()));
        }
        Ok(answer)
    }

    fn close(&self, key: &str) {
        if let Some(ingest) = self.kept().ingests.get_mut(key) {
            ingest.is_open = false;
        }
    }

    async fn converse(
        self,
        mut questions: Streaming<WriteContentRequest>,
        answers: mpsc::Sender<Result<WriteContentResponse, Status>>,
    ) {
        let Ok(Some(first)) = questions.message().await else { return };
        let key = match self.open(&first) {
            Ok(key) => key,
            Err(status) => {
                let _gone = answers.send(Err(status)).await;
                return;
            }
        };
        let mut question = Some(first);
        while let Some(asked) = question {
            let is_last = asked.action() == WriteAction::Commit;
            let answer = self.carry_out(&key, asked);
            let is_over = is_last || answer.is_err();
            if answers.send(answer).await.is_err() || is_over {
                break;
            }
            question = questions.message().await.unwrap_or(None);
        }
        self.close(&key);
    }
}

fn now() -> Option<Timestamp> {
    Some(SystemTime::now().into())
}

fn info((digest, (bytes, created)): (&String, &(Bytes, Option<Timestamp>))) -> Info {
    Info {
        digest: digest.clone(),
        size: bytes.len() as i64,
        created_at: *created,
        updated_at: *created,
        ..Info::default()
    }
}

fn status((key, ingest): (&String, &Ingest)) -> api::grpc::content::Status {
    api::grpc::content::Status {
        started_at: ingest.started,
        updated_at: ingest.started,
        r#ref: key.clone(),
        offset: ingest.bytes.len() as i64,
        total: ingest.total,
        expected: String::new(),
    }
}

type Answer<T> = Result<Response<T>, Status>;
type Answers<T> = Iter<std::vec::IntoIter<Result<T, Status>>>;

#[tonic::async_trait]
impl Content for Memory {
    async fn info(&self, request: Request<InfoRequest>) -> Answer<InfoResponse> {
        let digest = &request.get_ref().digest;
        let found = self.kept().blobs.get_key_value(digest).map(info);
        let found = found.ok_or_else(|| Status::not_found(format!("content {digest}")))?;
        Ok(Response::new(InfoResponse { info: Some(found) }))
    }

    /// Not needed: the daemon keeps labels itself, by namespace.
    async fn update(&self, _: Request<UpdateRequest>) -> Answer<UpdateResponse> {
        Err(Status::unimplemented("there are no labels here"))
    }

    type ListStream = Answers<ListContentResponse>;

    async fn list(&self, _: Request<ListContentRequest>) -> Answer<Self::ListStream> {
        let info = self.kept().blobs.iter().map(info).collect();
        Ok(Response::new(tokio_stream::iter(vec![Ok(ListContentResponse { info })])))
    }

    async fn delete(&self, request: Request<DeleteContentRequest>) -> Answer<()> {
        let digest = &request.get_ref().digest;
        let found = self.kept().blobs.remove(digest);
        found.map(|_| Response::new(())).ok_or_else(|| Status::not_found(format!("content {digest}")))
    }

    type ReadStream = Answers<ReadContentResponse>;

    async fn read(&self, request: Request<ReadContentRequest>) -> Answer<Self::ReadStream> {
        let ReadContentRequest { digest, offset, size } = request.into_inner();
        let bytes = self.kept().blobs.get(&digest).map(|(bytes, _)| bytes.clone());
        let bytes = bytes.ok_or_else(|| Status::not_found(format!("content {digest}")))?;
        let start = usize::try_from(offset).unwrap_or(0);
        if start > bytes.len() {
            return Err(Status::out_of_range(format!("offset {offset} is behind the end")));
        }
        let len = usize::try_from(size).ok().filter(|size| *size > 0).unwrap_or(usize::MAX);
        let wanted = bytes.slice(start..start.saturating_add(len).min(bytes.len()));
        let pieces = (0..wanted.len()).step_by(CHUNK_LEN).map(|at| {
            let data = wanted.slice(at..(at + CHUNK_LEN).min(wanted.len()));
            Ok(ReadContentResponse { offset: at as i64, data })
        });
        Ok(Response::new(tokio_stream::iter(pieces.collect::<Vec<_>>())))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        let key = &request.get_ref().r#ref;
        let found = self.kept().ingests.get_key_value(key).map(status);
        let found = found.ok_or_else(|| Status::not_found(format!("ref {key}")))?;
        Ok(Response::new(StatusResponse { status: Some(found) }))
    }

    async fn list_statuses(&self, _: Request<ListStatusesRequest>) -> Answer<ListStatusesResponse> {
        let statuses = self.kept().ingests.iter().map(status).collect();
        Ok(Response::new(ListStatusesResponse { statuses }))
    }

    type WriteStream = ReceiverStream<Result<WriteContentResponse, Status>>;

    async fn write(&self, request: Request<Streaming<WriteContentRequest>>) -> Answer<Self::WriteStream> {
        let (answers, receiver) = mpsc::channel(1);
        tokio::spawn(self.clone().converse(request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Answer<()> {
        let key = &request.get_ref().r#ref;
        let found = self.kept().ingests.remove(key);
        found.map(|_| Response::new(())).ok_or_else(|| Status::not_found(format!("ref {key}")))
    }
}

fn main() -> std::io::Result<()> {
    let [socket] = serve::paths("example-content SOCKET");
    let limit = api::grpc::MESSAGE_BYTES_MAX;
    serve::serve(&socket, ContentServer::new(Memory::default()).max_decoding_message_size(limit))
}
