//! Cancellation of work on a thread whose outcome has no receiver any more.
//!
//! The requester keeps a [`CancelOnDrop`]. Dropping it, also by a panic or a cancelled future, cancels every
//! [`CancelToken`] made from it.

use std::fmt;
use std::io;
use std::sync::{Arc, Weak};

/// Cancels all its tokens when it is dropped.
#[derive(Debug, Default)]
pub struct CancelOnDrop(Arc<()>);

impl CancelOnDrop {
    pub fn new() -> CancelOnDrop {
        CancelOnDrop::default()
    }

    /// A token for a worker.
    pub fn token(&self) -> CancelToken {
        CancelToken(Some(Arc::downgrade(&self.0)))
    }
}

/// The side of the worker, which checks it between steps.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Option<Weak<()>>);

impl CancelToken {
    /// A token that is never cancelled.
    pub fn never() -> CancelToken {
        CancelToken(None)
    }

    /// An error once the work is cancelled.
    pub fn check(&self) -> Result<(), Cancelled> {
        match &self.0 {
            Some(owner) if owner.strong_count() == 0 => Err(Cancelled),
            _ => Ok(()),
        }
    }

    /// Whether the work cannot be cancelled at all.
    pub fn is_never(&self) -> bool {
        self.0.is_none()
    }
}

impl PartialEq for CancelToken {
    fn eq(&self, other: &CancelToken) -> bool {
        match (&self.0, &other.0) {
            (Some(one), Some(other)) => one.ptr_eq(other),
            (one, other) => one.is_none() && other.is_none(),
        }
    }
}

impl Eq for CancelToken {}

/// The error of cancelled work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cancelled;

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cancelled: the requester has gone away")
    }
}

impl std::error::Error for Cancelled {}

impl From<Cancelled> for io::Error {
    fn from(cancelled: Cancelled) -> io::Error {
        io::Error::other(cancelled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropping_the_requester_cancels_all_its_tokens() {
        let owner = CancelOnDrop::new();
        let token = owner.token();
        let other = token.clone();
        assert!(token.check().is_ok() && CancelToken::never().check().is_ok());
        assert!(token == other && token != CancelToken::never());
        drop(owner);
        assert!(token.check().is_err() && other.check().is_err());
    }
}
