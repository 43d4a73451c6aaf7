//! A client of Hoist's own gRPC service, `hoist.engine.v1.Engine`, over the daemon's unix socket. [`channel`] is the
//! raw gRPC channel, for the daemon's other services.
#![forbid(unsafe_code)]

pub mod parts;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use api::engine::engine_client::EngineClient;
use api::engine::{Call, Document, Follow};
use api::grpc::{MESSAGE_BYTES_MAX, METADATA_BYTES_MAX};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;
pub use tonic::transport::Channel;
use tonic::transport::{Endpoint, Uri};
use types::{Error, ErrorKind, Result};

/// The HTTP/2 frame size, in bytes, that this client announces. Each frame costs a system call or two on both sides;
/// with HTTP/2's default of 16 KiB a long list or a blob takes a thousand of them.
const FRAME_LEN_MAX: u32 = 256 << 10;

/// A connection to a daemon.
#[derive(Clone)]
pub struct Client {
    engine: EngineClient<Channel>,
    address: PathBuf,
}

impl Client {
    /// Connects to the daemon at `address`. Fails with `NotFound` or `Unavailable` if no daemon listens there.
    pub async fn connect(address: &Path) -> Result<Client> {
        let engine = EngineClient::new(channel(address).await?);
        let engine =
            engine.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Client { engine, address: address.to_owned() })
    }

    /// The path of the daemon's socket.
    pub fn address(&self) -> &Path {
        &self.address
    }

    /// Sends a call and returns the daemon's answer.
    pub async fn call(&self, call: &Call) -> Result<Value> {
        let document = Document { json: serde_json::to_vec(call).expect("questions can be written") };
        let answer = self.engine.clone().call(document).await.map_err(|status| error(&status))?;
        parse(&answer.into_inner().json)
    }

    /// Sends a call that the daemon answers with a stream.
    pub async fn follow(&self, follow: &Follow) -> Result<Answers> {
        let document = Document { json: serde_json::to_vec(follow).expect("questions can be written") };
        let answers = self.engine.clone().follow(document).await.map_err(|status| error(&status))?;
        Ok(Answers(answers.into_inner()))
    }
}

/// Opens a channel to the daemon's socket. Fails with `NotFound` or `Unavailable` if no daemon listens there.
pub async fn channel(address: &Path) -> Result<Channel> {
    let stream = UnixStream::connect(address).await.map_err(|error| {
        let what = format!("cannot connect to the hoist daemon at {}", address.display());
        Error::new(error.kind().into(), what).with_source(error)
    })?;
    // The first request uses the connection made above; tonic dials again only if the daemon restarts.
    let connector = Connector { address: address.to_owned(), first: Some(stream) };
    let channel = endpoint("http://hoist").max_frame_size(FRAME_LEN_MAX);
    let channel = channel.connect_with_connector(connector).await;
    channel.map_err(|error| Error::unavailable("speak to the daemon").with_source(error))
}

/// A channel that connects on first use, and again after the connection breaks. Must be called inside a tokio
/// runtime.
pub fn lazy_channel(address: &Path) -> Channel {
    let connector = Connector { address: address.to_owned(), first: None };
    endpoint("http://plugin").connect_with_connector_lazy(connector)
}

fn endpoint(name: &'static str) -> Endpoint {
    Endpoint::from_static(name).http2_max_header_list_size(METADATA_BYTES_MAX)
}

/// The stream of answers to [`Client::follow`].
pub struct Answers(tonic::Streaming<Document>);

impl Answers {
    /// Waits for the next answer. `None` is the end of the stream.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        match self.0.message().await.map_err(|status| error(&status))? {
            Some(document) => parse(&document.json).map(Some),
            None => Ok(None),
        }
    }
}

fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T> {
    serde_json::from_slice(json)
        .map_err(|error| Error::internal("the daemon's answer cannot be read").with_source(error))
}

/// Converts a gRPC status. A connection that broke before the daemon answered is `Unavailable`.
pub fn error(status: &tonic::Status) -> Error {
    // tonic sets a source only for errors of this side, never for a status that the daemon sent.
    if status.code() == tonic::Code::Unknown && std::error::Error::source(status).is_some() {
        return Error::unavailable(format!("the connection to the daemon broke: {}", status.message()));
    }
    Error::new(ErrorKind::from_code(i32::from(status.code())), status.message())
}

struct Connector {
    address: PathBuf,
    first: Option<UnixStream>,
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<UnixStream>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (first, address) = (self.first.take(), self.address.clone());
        Box::pin(async move {
            match first {
                Some(stream) => Ok(TokioIo::new(stream)),
                None => UnixStream::connect(address).await.map(TokioIo::new),
            }
        })
    }
}
