//! A connection to the daemon, with the namespace and lease of its calls.

use std::path::Path;

use api::grpc::{LEASE_KEY, NAMESPACE_KEY};
use client::Channel;
use tonic::{Code, Request, Response, Status};
use types::{Error, Result};

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
    pub(super) async fn open(address: &str, namespace: String) -> Result<Connection> {
        let path = address.strip_prefix("unix://").unwrap_or(address);
        let channel = client::channel(Path::new(path)).await?;
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
