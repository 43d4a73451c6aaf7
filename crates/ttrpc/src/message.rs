//! The messages inside frames: requests, responses, and errors as statuses.

use std::time::Duration;

use prost::Message;
use types::{Error, ErrorKind, Result};

#[derive(Clone, PartialEq, Message)]
pub struct Request {
    #[prost(string, tag = "1")]
    pub service: String,
    #[prost(string, tag = "2")]
    pub method: String,
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
    /// The caller's timeout in nanoseconds. Zero is none; a negative one has already expired.
    #[prost(int64, tag = "4")]
    pub timeout_nano: i64,
    #[prost(message, repeated, tag = "5")]
    pub metadata: Vec<KeyValue>,
}

impl Request {
    pub fn new(service: &str, method: &str, message: &impl Message) -> Request {
        Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: message.encode_to_vec(),
            timeout_nano: 0,
            metadata: Vec::new(),
        }
    }

    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Request {
        self.timeout_nano = i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX);
        self
    }

    #[must_use]
    pub fn with_metadata(mut self, key: &str, value: &str) -> Request {
        self.metadata.push(KeyValue { key: key.to_owned(), value: value.to_owned() });
        self
    }

    pub fn timeout(&self) -> Option<Duration> {
        let nanos = u64::try_from(self.timeout_nano).unwrap_or(0);
        (self.timeout_nano != 0).then(|| Duration::from_nanos(nanos))
    }

    /// The first value under `key`.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.iter().find(|pair| pair.key == key).map(|pair| pair.value.as_str())
    }

    /// Decodes the payload as the method's request message. `InvalidArgument` if it is malformed.
    pub fn read<M: Message + Default>(&self) -> Result<M> {
        M::decode(self.payload.as_slice()).map_err(|error| {
            Error::invalid_argument(format!("{}/{}: malformed request", self.service, self.method))
                .with_source(error)
        })
    }

    /// The error that the Go package returns for an unknown service.
    pub fn unknown_service(&self) -> Error {
        Error::unimplemented(format!("service {}", self.service))
    }

    /// The error that the Go package returns for an unknown method.
    pub fn unknown_method(&self) -> Error {
        Error::unimplemented(format!("method {}", self.method))
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct KeyValue {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Response {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    #[prost(bytes = "vec", tag = "2")]
    pub payload: Vec<u8>,
}

/// `google.rpc.Status`, without `details`, which no peer sends.
#[derive(Clone, PartialEq, Message)]
pub struct Status {
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(string, tag = "2")]
    pub message: String,
}

impl From<Result<Vec<u8>>> for Response {
    fn from(outcome: Result<Vec<u8>>) -> Response {
        match outcome {
            Ok(payload) => Response { status: None, payload },
            Err(error) => Response {
                status: Some(Status { code: error.kind().code(), message: error.chain() }),
                payload: Vec::new(),
            },
        }
    }
}

impl From<Response> for Result<Vec<u8>> {
    fn from(response: Response) -> Result<Vec<u8>> {
        match response.status {
            Some(status) if status.code != 0 => {
                Err(Error::new(ErrorKind::from_code(status.code), status.message))
            }
            _ => Ok(response.payload),
        }
    }
}

/// Decodes a response's payload.
pub(crate) fn read_answer<M: Message + Default>(payload: &[u8]) -> Result<M> {
    M::decode(payload).map_err(|error| Error::internal("malformed ttrpc response").with_source(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_kind_in_a_response() {
        let error = Error::not_found("no such task").context("kill redis");
        let response = Response::from(Err(error));
        let bytes = response.encode_to_vec();
        let back = Result::from(Response::decode(bytes.as_slice()).unwrap()).unwrap_err();
        assert_eq!(back.kind(), ErrorKind::NotFound);
        assert_eq!(back.message(), "kill redis: no such task");
    }

    #[test]
    fn timeouts_travel_as_nanoseconds() {
        let request = Request::new("s", "m", &()).with_timeout(Duration::from_millis(2));
        assert_eq!(request.timeout_nano, 2_000_000);
        assert_eq!(request.timeout(), Some(Duration::from_millis(2)));
        assert_eq!(Request::new("s", "m", &()).timeout(), None);
        // The Go package sends a negative timeout for a deadline that has passed.
        let late = Request { timeout_nano: -5, ..Request::new("s", "m", &()) };
        assert_eq!(late.timeout(), Some(Duration::ZERO));
    }
}
