//! One filter as Docker's users write it, `KEY=VALUE`, of the keys that a call knows. What a value means is the call's.

use types::{Error, Result, Timestamp};

use crate::moment::moment;

/// A filter that was read.
pub struct FilterWord<'a> {
    text: &'a str,
    pub key: &'a str,
    pub value: &'a str,
}

impl<'a> FilterWord<'a> {
    /// `InvalidArgument` for a text without `=`, or of a key that is not in `known`.
    pub fn read(text: &'a str, known: &[&str]) -> Result<FilterWord<'a>> {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        let filter = FilterWord { text, key, value };
        if !text.contains('=') {
            return Err(filter.bad("expected KEY=VALUE"));
        }
        if !known.contains(&key) {
            return Err(filter.bad(&format!("known are {}", known.join(", "))));
        }
        Ok(filter)
    }

    /// Why its value is refused.
    pub fn bad(&self, why: &str) -> Error {
        Error::invalid_argument(format!("invalid filter {:?}: {why}", self.text))
    }

    /// Of a value that is `LABEL` or `LABEL=VALUE`: the label, and the value if one is asked for.
    pub(crate) fn label(&self) -> (String, Option<String>) {
        match self.value.split_once('=') {
            Some((label, wanted)) => (label.to_owned(), Some(wanted.to_owned())),
            None => (self.value.to_owned(), None),
        }
    }

    /// Of a value that is a time, or a duration before now.
    pub(crate) fn time(&self) -> Result<Timestamp> {
        moment(self.value)
            .ok_or_else(|| self.bad("expected a duration like 24h, or a time like 2026-01-02T03:04:05Z"))
    }
}
