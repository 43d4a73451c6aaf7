//! `--filter` of image lists, with Docker's syntax.
//!
//! Values of the same key are alternatives, except labels, which must all match. Different keys must all match.

use std::collections::BTreeMap;

use types::{Error, Reference, Result, Timestamp};

use super::found::Found;
use crate::containers::familiar;
use crate::filter::{FilterWord, LabelFilter};

/// The parsed filters of one call.
#[derive(Default)]
pub(crate) struct Filter {
    pub(crate) dangling: Option<bool>,
    labels: LabelFilter,
    references: Vec<String>,
    /// Limits of the creation time: that of another image, or a given time.
    before: Option<Timestamp>,
    since: Option<Timestamp>,
}

impl Filter {
    /// `known` are the keys of this command; `created` returns when the named image was created.
    pub(crate) fn parse(
        texts: &[String],
        known: &[&str],
        created: impl Fn(&str) -> Result<Timestamp>,
    ) -> Result<Filter> {
        let mut filter = Filter::default();
        for text in texts {
            let word = FilterWord::read(text, known)?;
            let (value, bad) = (word.value, |why: &str| word.bad(why));
            match word.key {
                "dangling" => {
                    filter.dangling = Some(match value {
                        "true" | "1" => true,
                        "false" | "0" => false,
                        _ => return Err(bad("expected true or false")),
                    });
                }
                "label" | "label!" => filter.labels.add(&word),
                "reference" => filter.references.push(value.to_owned()),
                "before" => filter.before = Some(earliest(filter.before, created(value)?)),
                "since" => {
                    let time = created(value)?;
                    filter.since = Some(filter.since.map_or(time, |other| other.max(time)));
                }
                "until" => filter.before = Some(earliest(filter.before, word.time()?)),
                _ => return Err(bad("it is not built yet")),
            }
        }
        Ok(filter)
    }

    pub(crate) fn fits(&self, found: &Found) -> bool {
        let created = found.created().unwrap_or_default();
        let none = BTreeMap::new();
        let labels = found.summary().map_or(&none, |summary| &summary.labels);
        self.dangling.is_none_or(|dangling| dangling == found.is_dangling())
            && self.before.is_none_or(|before| created < before)
            && self.since.is_none_or(|since| created > since)
            && self.labels.fits(labels)
            && (self.references.is_empty() || self.references.iter().any(|pattern| named(found, pattern)))
    }
}

fn earliest(known: Option<Timestamp>, time: Timestamp) -> Timestamp {
    known.map_or(time, |known| known.min(time))
}

/// Docker matches the familiar name, with and without the tag; we also match the full name.
fn named(found: &Found, pattern: &str) -> bool {
    let Some(reference) = &found.reference else { return matches(pattern, &found.image.name) };
    let tagged = |name: &str| reference.tag().map_or_else(|| name.to_owned(), |tag| format!("{name}:{tag}"));
    let (short, full) = (reference.familiar_name(), reference.name());
    [familiar(&found.image.name), tagged(&short), tagged(&full), short, full]
        .iter()
        .any(|name| matches(pattern, name))
}

/// Matches a shell pattern; `*` and `?` do not match a slash.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    // Backtracking: if what follows the last star does not match, the star takes one byte more.
    let (mut at, mut place, mut retry) = (0, 0, None);
    while place < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                retry = Some((at, place));
                at += 1;
                continue;
            }
            Some(b'?') if name[place] != b'/' => {
                at += 1;
                place += 1;
                continue;
            }
            Some(b'[') => {
                if let Some(len) = set(&pattern[at..], name[place]) {
                    at += len;
                    place += 1;
                    continue;
                }
            }
            Some(byte) if *byte == name[place] => {
                at += 1;
                place += 1;
                continue;
            }
            _ => {}
        }
        match retry {
            Some((star, from)) if name[from] != b'/' => {
                retry = Some((star, from + 1));
                (at, place) = (star + 1, from + 1);
            }
            _ => return false,
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

/// The length of a bracket expression such as `[a-z]` if it matches the byte.
fn set(pattern: &[u8], byte: u8) -> Option<usize> {
    let end = pattern.iter().position(|byte| *byte == b']')?;
    let mut inside = &pattern[1..end];
    let negated = matches!(inside.first(), Some(b'^' | b'!'));
    inside = &inside[usize::from(negated)..];
    let mut has = false;
    while let Some((first, rest)) = inside.split_first() {
        match rest {
            [b'-', last, rest @ ..] => {
                has |= (*first..=*last).contains(&byte);
                inside = rest;
            }
            _ => {
                has |= *first == byte;
                inside = rest;
            }
        }
    }
    (has != negated && byte != b'/').then_some(end + 1)
}

/// Creation time of an image that a filter names.
pub(super) fn created(found: &Found) -> Result<Timestamp> {
    let name = |reference: &Reference| reference.to_string();
    found.created().ok_or_else(|| {
        let name = found.reference.as_ref().map_or_else(|| found.image.name.clone(), name);
        Error::invalid_argument(format!("image {name} does not say when it was made"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_filter_patterns_are_shell_patterns() {
        for (pattern, name, fits) in [
            ("busybox", "busybox", true),
            ("busybox", "busybox:1", false),
            ("busy*", "busybox:1", true),
            ("*:1", "busybox:1", true),
            ("*", "tools/busybox", false),
            ("*/*", "tools/busybox", true),
            ("b?sybox", "busybox", true),
            ("b[a-u]sybox", "busybox", true),
            ("b[!u]sybox", "busybox", false),
            ("*a*b*c", "xxaxxbxxc", true),
            ("*a*b*c", "xxaxxbxx", false),
            ("[", "[", false),
            ("", "", true),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn filters_that_are_none_are_refused() {
        let parse = |text: &str| {
            let created = |_: &str| Ok(Timestamp::default());
            Filter::parse(&[text.to_owned()], &["dangling", "until"], created).map(drop)
        };
        parse("dangling=true").expect("a filter");
        for (wrong, why) in [
            ("dangling", "KEY=VALUE"),
            ("dangling=maybe", "true or false"),
            ("nosuch=1", "known are"),
            ("until=x", "duration"),
        ] {
            let error = parse(wrong).expect_err("no filter");
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}
