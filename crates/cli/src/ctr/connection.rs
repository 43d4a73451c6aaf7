//! A connection to the daemon, with the namespace and lease of its calls.

use std::io;
use std::path::Path;

use api::grpc::{LEASE_KEY, NAMESPACE_KEY};
use client::Channel;
use tonic::{Code, Request, Response, Status};
use types::{Error, ErrorKind, Result};

/// A channel to the daemon, and the namespace of calls.
#[derive(Clone)]
pub(super) struct Connection {
    channel: Channel,
    pub(super) namespace: String,
    /// The lease to which calls add the objects that they create.
    lease: Option<String>,
}

/// A client of one of the services: `service!(connection, images::images_client::ImagesClient)`.
macro_rules! service {
    ($connection:expr, $($path:ident)::+) => {
        api::grpc::$($path)::+::new($connection.channel())
            .max_decoding_message_size(api::grpc::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(api::grpc::MESSAGE_BYTES_MAX)
    };
}
pub(super) use service;

impl Connection {
    pub(super) async fn open(socket: &Path, namespace: String) -> Result<Connection> {
        let channel = client::channel(socket).await.map_err(|error| not_reached(error, socket))?;
        Ok(Connection { channel, namespace, lease: None })
    }

    /// The same connection, with a lease for created objects.
    pub(super) fn with_lease(&self, lease: &str) -> Connection {
        Connection { lease: Some(lease.to_owned()), ..self.clone() }
    }

    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A request with the metadata of namespace and lease.
    pub(super) fn request<T>(&self, message: T) -> Result<Request<T>> {
        let mut request = Request::new(message);
        let value = |text: &str, what: &str| {
            text.parse()
                .map_err(|_| Error::invalid_argument(format!("{what} {text:?} is not printable ASCII")))
        };
        request.metadata_mut().insert(NAMESPACE_KEY, value(&self.namespace, "namespace")?);
        if let Some(lease) = &self.lease {
            request.metadata_mut().insert(LEASE_KEY, value(lease, "lease")?);
        }
        Ok(request)
    }
}

/// How the words begin that containerd's `ctr` has for a socket that is missing, and for one on which nobody listens.
const MISSING: &str = "cannot access socket";
const UNANSWERED: &str = "connection error: desc = \"transport: Error while dialing: dial unix";

/// The error of a socket to which no connection could be made, in containerd's words: scripts look for them.
pub(super) fn not_reached(error: Error, socket: &Path) -> Error {
    let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>());
    let Some(cause) = source.map(io::Error::kind) else { return error };
    let socket = socket.display();
    let unanswered = |why: &str| format!("{UNANSWERED} {socket}: connect: {why}\"");
    let said = match cause {
        io::ErrorKind::NotFound => format!("{MISSING} {socket}: stat {socket}: no such file or directory"),
        io::ErrorKind::ConnectionRefused => unanswered("connection refused") + ": unavailable",
        io::ErrorKind::PermissionDenied => unanswered("permission denied") + ": unavailable",
        _ => return error,
    };
    Error::new(error.kind(), said)
}

/// What to do about an error of [`not_reached`]. `None` for other errors. `is_named` is whether the user named the socket.
pub(super) fn way_out(error: &Error, socket: &Path, is_named: bool) -> Option<String> {
    if !error.message().starts_with(MISSING) && !error.message().starts_with(UNANSWERED) {
        return None;
    }
    if error.is(ErrorKind::PermissionDenied) {
        return Some(crate::NO_RIGHT.to_owned());
    }
    // Without any socket, the next command takes that of Hoist's daemon.
    let socket = if is_named || socket.exists() { socket } else { Path::new(crate::args::ADDRESS_DEFAULT) };
    Some(crate::daemon::how_to_start(socket))
}

/// Converts the outcome of a call.
pub(super) trait Answer<T> {
    fn answer(self) -> Result<T>;
}

impl<T> Answer<T> for Result<Response<T>, Status> {
    fn answer(self) -> Result<T> {
        self.map(Response::into_inner).map_err(|status| error(&status))
    }
}

/// An error whose message ends with its class, as Go's clients print it and scripts look for it.
pub(super) fn error(status: &Status) -> Error {
    let class = match status.code() {
        Code::InvalidArgument => "invalid argument",
        Code::NotFound => "not found",
        Code::AlreadyExists => "already exists",
        Code::FailedPrecondition => "failed precondition",
        Code::Unavailable => "unavailable",
        Code::Unimplemented => "not implemented",
        _ => "",
    };
    let error = client::error(status);
    if class.is_empty() || status.message().ends_with(class) {
        return error;
    }
    Error::new(error.kind(), format!("{}: {class}", status.message()))
}

/// A required field of an answer. `Internal` if it is absent.
pub(super) fn present<T>(part: Option<T>, what: &str) -> Result<T> {
    part.ok_or_else(|| Error::internal(format!("the daemon's answer has no {what}")))
}

/// All messages of a stream.
pub(super) async fn all<T>(mut stream: tonic::Streaming<T>) -> Result<Vec<T>> {
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await.map_err(|status| error(&status))? {
        messages.push(message);
    }
    Ok(messages)
}
