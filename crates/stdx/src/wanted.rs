//! Whether work on a thread is still wanted by whoever asked for it, and waits for its outcome.
//!
//! Who asks keeps an [`Asker`], whose end, however it comes, is seen by all who have its [`Wanted`].

use std::fmt;
use std::io;
use std::sync::{Arc, Weak};

/// Whoever wants something, until dropped.
#[derive(Debug, Default)]
pub struct Asker(Arc<()>);

impl Asker {
    pub fn new() -> Asker {
        Asker::default()
    }

    pub fn wanted(&self) -> Wanted {
        Wanted(Some(Arc::downgrade(&self.0)))
    }
}

/// What the work is given.
#[derive(Clone, Debug, Default)]
pub struct Wanted(Option<Weak<()>>);

impl Wanted {
    /// Of work that goes on to its end whoever goes away.
    pub fn always() -> Wanted {
        Wanted(None)
    }

    pub fn check(&self) -> Result<(), Unwanted> {
        match &self.0 {
            Some(asker) if asker.strong_count() == 0 => Err(Unwanted),
            _ => Ok(()),
        }
    }

    /// Whether that can ever change.
    pub fn is_always(&self) -> bool {
        self.0.is_none()
    }
}

impl PartialEq for Wanted {
    fn eq(&self, other: &Wanted) -> bool {
        match (&self.0, &other.0) {
            (Some(one), Some(other)) => one.ptr_eq(other),
            (one, other) => one.is_none() && other.is_none(),
        }
    }
}

impl Eq for Wanted {}

/// Why work ended that nobody wanted any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unwanted;

impl fmt::Display for Unwanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("whoever asked for it has gone away")
    }
}

impl std::error::Error for Unwanted {}

impl From<Unwanted> for io::Error {
    fn from(unwanted: Unwanted) -> io::Error {
        io::Error::other(unwanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_asks_for_any_more_is_not_wanted() {
        let asker = Asker::new();
        let wanted = asker.wanted();
        let other = wanted.clone();
        assert!(wanted.check().is_ok() && Wanted::always().check().is_ok());
        assert!(wanted == other && wanted != Wanted::always());
        drop(asker);
        assert!(wanted.check().is_err() && other.check().is_err());
    }
}
