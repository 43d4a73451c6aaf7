//! One `--filter KEY=VALUE` with Docker's syntax. The caller interprets the value.

use std::collections::BTreeMap;

use types::{Error, Result, Timestamp};

use crate::times::parse_time;

/// A parsed filter.
pub struct FilterWord<'a> {
    text: &'a str,
    pub key: &'a str,
    pub value: &'a str,
}

impl<'a> FilterWord<'a> {
    /// `InvalidArgument` for a text without `=` or with a key that is not in `known`.
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

    /// The error for an invalid value.
    pub fn bad(&self, why: &str) -> Error {
        Error::invalid_argument(format!("invalid filter {:?}: {why}", self.text))
    }

    /// Parses a value that is a time, or a duration before now.
    pub(crate) fn time(&self) -> Result<Timestamp> {
        parse_time(self.value)
            .ok_or_else(|| self.bad("expected a duration like 24h, or a time like 2026-01-02T03:04:05Z"))
    }
}

/// Labels that must be present (`label`) or absent (`label!`): `LABEL`, or `LABEL=VALUE`.
#[derive(Default)]
pub(crate) struct LabelFilter(Vec<(String, Option<String>, bool)>);

impl LabelFilter {
    pub(crate) fn add(&mut self, word: &FilterWord<'_>) {
        let (label, wanted) = match word.value.split_once('=') {
            Some((label, wanted)) => (label, Some(wanted.to_owned())),
            None => (word.value, None),
        };
        self.0.push((label.to_owned(), wanted, word.key == "label!"));
    }

    /// Whether all conditions hold.
    pub(crate) fn fits(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|(label, wanted, absent)| {
            let own = labels.get(label);
            own.is_some_and(|own| wanted.as_ref().is_none_or(|wanted| wanted == own)) != *absent
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_must_all_be_there_or_must_not() {
        let labels =
            BTreeMap::from([("tier".to_owned(), "db=1".to_owned()), ("empty".to_owned(), String::new())]);
        let fits = |texts: &[&str]| {
            let mut filter = LabelFilter::default();
            texts.iter().for_each(|text| filter.add(&FilterWord::read(text, &["label", "label!"]).unwrap()));
            filter.fits(&labels)
        };
        assert!(fits(&[]) && fits(&["label=tier"]) && fits(&["label=tier=db=1", "label=empty="]));
        assert!(!fits(&["label=tier=db"]) && !fits(&["label=tier", "label=other"]));
        assert!(fits(&["label!=other", "label!=tier=web"]) && !fits(&["label!=tier"]));
    }
}
