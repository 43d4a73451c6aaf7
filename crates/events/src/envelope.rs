//! An event in containerd's envelope: timestamp, namespace and topic.

use std::borrow::Cow;

use types::filter::present;
use types::{Error, FieldPath, Fields, Namespace, Opaque, Result, Timestamp, id};

/// A published event: when, in which namespace, under which topic, and the encoded event itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    pub timestamp: Timestamp,
    pub namespace: Namespace,
    /// One or more identifiers, each preceded by a slash: `/tasks/exit`.
    pub topic: String,
    pub event: Opaque,
}

impl Envelope {
    /// `InvalidArgument` if the topic is malformed.
    pub fn new(
        timestamp: Timestamp,
        namespace: Namespace,
        topic: impl Into<String>,
        event: Opaque,
    ) -> Result<Envelope> {
        let topic = topic.into();
        check_topic(&topic)?;
        Ok(Envelope { timestamp, namespace, topic, event })
    }

    /// Memory it takes in bytes, including the parts whose length the publisher chooses.
    pub(crate) fn len(&self) -> usize {
        size_of::<Envelope>()
            + self.namespace.as_str().len()
            + self.topic.len()
            + self.event.type_url.len()
            + self.event.value.len()
    }
}

impl Fields for Envelope {
    /// Filters see `namespace` and `topic` only: the event itself is opaque here.
    fn field(&self, path: &FieldPath) -> Option<Cow<'_, str>> {
        match path.head() {
            "namespace" => Some(Cow::Borrowed(self.namespace.as_str())),
            "topic" => present(&self.topic),
            _ => None,
        }
    }
}

fn check_topic(topic: &str) -> Result<()> {
    let Some(parts) = topic.strip_prefix('/') else {
        let why = if topic.is_empty() { "must not be empty" } else { "must start with '/'" };
        return Err(Error::invalid_argument(format!("envelope topic {topic:?}: {why}")));
    };
    if parts.is_empty() {
        return Err(Error::invalid_argument(format!(
            "envelope topic {topic:?}: must have at least one component"
        )));
    }
    let check = |part| {
        let failed = || format!("envelope topic {topic:?}: failed validation on component {part:?}");
        id::check(part).map_err(|error| error.context(failed()))
    };
    parts.split('/').try_for_each(check)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_identifiers_after_slashes() {
        for good in ["/tasks/exit", "/a", "/a/b/c-d"] {
            assert!(check_topic(good).is_ok(), "{good}");
        }
        for bad in ["", "/", "tasks/exit", "/tasks/", "//a", "/a b"] {
            assert!(check_topic(bad).is_err(), "{bad:?}");
        }
    }
}
