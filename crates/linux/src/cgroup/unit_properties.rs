//! Properties of a container's unit from its annotations: `org.systemd.property.NAME`, with a value in GVariant's text
//! format (<https://docs.gtk.org/glib/gvariant-text-format.html>), as with runc.
//!
//! ```text
//! org.systemd.property.TimeoutStopUSec  uint64 123456789      CollectMode  'inactive-or-failed'
//!                      TimeoutStopSec   1.5                   Wants        ['a.service', 'b.service']
//! ```
//!
//! Supported types are those of systemd's properties: strings, lists of strings, booleans, integers. An integer without
//! a type is an `int32`.

use std::collections::BTreeMap;

use types::{Error, Result};

use crate::dbus::Value;

/// Prefix of annotations that set properties of a container's unit.
pub const PREFIX: &str = "org.systemd.property.";
const SEC_US: u64 = 1_000_000;

/// Parses the annotations. `InvalidArgument` names the one that cannot be parsed.
pub(super) fn properties(annotations: &BTreeMap<String, String>) -> Result<Vec<(String, Value)>> {
    let asked = annotations.iter().filter_map(|(key, text)| Some((key.strip_prefix(PREFIX)?, text)));
    let read = asked.map(|(name, text)| {
        property(name, text.trim()).ok_or_else(|| {
            Error::invalid_argument(format!("annotation {PREFIX}{name}: {text:?} is no value"))
        })
    });
    read.collect()
}

fn property(name: &str, text: &str) -> Option<(String, Value)> {
    if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return None;
    }
    match name.strip_suffix("Sec") {
        // The form of unit files; on D-Bus the property is in microseconds.
        Some(stem) if stem.ends_with(|last: char| last.is_ascii_lowercase()) => {
            Some((format!("{stem}USec"), Value::U64(microseconds(text)?)))
        }
        _ => Some((name.to_owned(), value(text)?)),
    }
}

fn microseconds(text: &str) -> Option<u64> {
    let number = text.rsplit_once(' ').map_or(text, |(_type, number)| number);
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let part = format!("{part:0<6}");
    let part: u64 = part.get(..6)?.parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(SEC_US)?.checked_add(part)
}

fn value(text: &str) -> Option<Value> {
    let (kind, number) = text.split_once(' ').unwrap_or(("int32", text));
    Some(match (text, kind) {
        ("true", _) => Value::Bool(true),
        ("false", _) => Value::Bool(false),
        ("@as []", _) => Value::Texts(Vec::new()),
        _ if text.starts_with(['\'', '"']) => match quoted(text)? {
            (text, "") => Value::Text(text),
            _ => return None,
        },
        _ if text.starts_with('[') => Value::Texts(list(text)?),
        (_, "int32") => Value::I32(number.trim().parse().ok()?),
        (_, "uint32") => Value::U32(number.trim().parse().ok()?),
        (_, "int64") => Value::I64(number.trim().parse().ok()?),
        (_, "uint64") => Value::U64(number.trim().parse().ok()?),
        _ => return None,
    })
}

fn list(text: &str) -> Option<Vec<String>> {
    let mut rest = text.strip_prefix('[')?.strip_suffix(']')?.trim();
    let mut texts = Vec::new();
    loop {
        let (text, behind) = quoted(rest)?;
        texts.push(text);
        match behind.trim_start() {
            "" => return Some(texts),
            more => rest = more.strip_prefix(',')?.trim_start(),
        }
    }
}

/// The quoted string at the beginning, without its quotes, and the rest.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut letters = text.char_indices();
    let (_, quote) = letters.next().filter(|(_, first)| matches!(first, '\'' | '"'))?;
    let mut inside = String::new();
    while let Some((at, letter)) = letters.next() {
        match letter {
            _ if letter == quote => return Some((inside, &text[at + 1..])),
            '\\' => inside.push(match letters.next()?.1 {
                'n' => '\n',
                't' => '\t',
                other @ ('\\' | '\'' | '"') => other,
                _ => return None,
            }),
            _ => inside.push(letter),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, text: &str, expected: Option<(&str, Value)>) {
        let annotations = [(format!("{PREFIX}{name}"), text.to_owned()), ("other".into(), "x".into())];
        let read = properties(&annotations.into()).map(|mut read| read.pop().unwrap());
        match expected {
            Some((name, value)) => assert_eq!(read.unwrap(), (name.to_owned(), value)),
            None => assert!(read.unwrap_err().chain().contains(name)),
        }
    }

    #[test]
    fn values_are_of_gvariants_text_form() {
        let text = |text: &str| Value::Text(text.into());
        let texts = |texts: &[&str]| Value::Texts(texts.iter().map(ToString::to_string).collect());
        check("TimeoutStopUSec", "uint64 123456789", Some(("TimeoutStopUSec", Value::U64(123_456_789))));
        check("CollectMode", "'inactive-or-failed'", Some(("CollectMode", text("inactive-or-failed"))));
        check("Description", r#""it's \"so\"\n""#, Some(("Description", text("it's \"so\"\n"))));
        check("SendSIGHUP", "true", Some(("SendSIGHUP", Value::Bool(true))));
        check("KillSignal", " 9 ", Some(("KillSignal", Value::I32(9))));
        check("KillSignal", "-9", Some(("KillSignal", Value::I32(-9))));
        check("Limit", "uint32 7", Some(("Limit", Value::U32(7))));
        check("Limit", "int64 -7", Some(("Limit", Value::I64(-7))));
        check("Wants", "['a.service', \"b,c\"]", Some(("Wants", texts(&["a.service", "b,c"]))));
        check("Wants", "@as []", Some(("Wants", texts(&[]))));
        for wrong in ["", "word", "'open", "'a' b", "['a'", "['a' 'b']", "[1]", "uint64 -1", "uint8 1", "1.5"]
        {
            check("Name", wrong, None);
        }
    }

    #[test]
    fn seconds_become_microseconds() {
        for (text, expected) in [("uint64 123", 123 * SEC_US), ("5", 5 * SEC_US), ("1.5", 1_500_000)] {
            check("TimeoutStopSec", text, Some(("TimeoutStopUSec", Value::U64(expected))));
        }
        // Properties whose names end so.
        check("USec", "1", Some(("USec", Value::I32(1))));
        check("TimeoutStopSec", "'soon'", None);
    }

    #[test]
    fn names_are_words() {
        for wrong in ["", "ab", "Two Words", "A-B", "Größe"] {
            check(wrong, "1", None);
        }
    }
}
