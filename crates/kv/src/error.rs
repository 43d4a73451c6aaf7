//! Maps the engine's errors to [`types::Error`].

use std::error::Error as _;

use types::{Error, ErrorKind};

/// The file holds something that this program did not write.
pub(crate) fn damaged(what: &str) -> Error {
    Error::data_loss(format!("the metadata file is damaged: {what}"))
}

/// Converts an engine error; for `map_err`.
pub(crate) fn engine<E: Into<redb::Error>>(error: E) -> Error {
    let error = error.into();
    let (kind, message) = match &error {
        redb::Error::Io(io) => (io.kind().into(), "the metadata file cannot be read or written"),
        redb::Error::Corrupted(_) => (ErrorKind::DataLoss, "the metadata file is damaged"),
        redb::Error::DatabaseAlreadyOpen => {
            (ErrorKind::FailedPrecondition, "the metadata file is in use by another process")
        }
        redb::Error::UpgradeRequired(_) => {
            (ErrorKind::FailedPrecondition, "the metadata file is of a format that this program cannot read")
        }
        redb::Error::PreviousIo => {
            (ErrorKind::Unavailable, "the metadata file is closed since a read or write of it failed")
        }
        redb::Error::ValueTooLarge(_) => (ErrorKind::InvalidArgument, "a record is too large"),
        _ => (ErrorKind::Internal, "the metadata engine failed"),
    };
    Error::new(kind, message).with_source(error)
}

/// Whether storage failed, after which the engine must be reopened.
pub(crate) fn is_of_storage(error: &Error) -> bool {
    let mut next = error.source();
    while let Some(cause) = next {
        if let Some(redb::Error::Io(_) | redb::Error::PreviousIo) = cause.downcast_ref() {
            return true;
        }
        next = cause.source();
    }
    false
}

/// An error that is reported to several callers.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    kind: ErrorKind,
    text: String,
}

impl Shared {
    pub(crate) fn new(error: &Error) -> Shared {
        Shared { kind: error.kind(), text: error.chain() }
    }

    pub(crate) fn to_error(&self) -> Error {
        Error::new(self.kind, self.text.clone())
    }
}
