//! Converts YAML to the JSON value with the same meaning.
//!
//! Supports the subset of YAML that CDI files use: one document, scalar keys, no anchors and no tags. Without anchors
//! the value is never larger than its text. Plain scalars are typed as Go's YAML 1.1 decoders type them: `0666` is
//! octal.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};
use types::{Error, Result};

/// Maximum nesting of lists and maps.
const DEPTH_MAX: usize = 32;

/// A list or map that is still being read.
enum Open {
    List(Vec<Value>),
    /// The map so far, and the key whose value is read next.
    Map(Map<String, Value>, Option<String>),
}

pub(crate) fn parse(text: &str) -> Result<Value> {
    let bad = |why: &str| Error::invalid_argument(format!("it is YAML that is not read: {why}"));
    let (mut open, mut root): (Vec<Open>, Option<Value>) = (Vec::new(), None);
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| bad(&error.to_string()))?;
        let bad = |why: &str| bad(&format!("{why}, in line {}", span.start.line()));
        let done = match event {
            Event::Scalar(_, _, anchor, tag)
            | Event::SequenceStart(anchor, tag)
            | Event::MappingStart(anchor, tag)
                if anchor != 0 || tag.is_some() =>
            {
                return Err(bad("anchors and tags have no place in it"));
            }
            Event::Alias(_) => return Err(bad("aliases have no place in it")),
            Event::DocumentStart(_) if root.is_some() => return Err(bad("there is a second document")),
            Event::SequenceStart(..) | Event::MappingStart(..) if open.len() == DEPTH_MAX => {
                return Err(bad("it is too deep"));
            }
            Event::SequenceStart(..) => {
                open.push(Open::List(Vec::new()));
                continue;
            }
            Event::MappingStart(..) => {
                open.push(Open::Map(Map::new(), None));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List(list)) => Value::Array(list),
                Some(Open::Map(map, None)) => Value::Object(map),
                _ => return Err(bad("it ends before it is whole")),
            },
            Event::Scalar(text, style, ..) => match open.last_mut() {
                // A key is a string, even if it looks like another type.
                Some(Open::Map(map, key @ None)) => {
                    if map.contains_key(&*text) {
                        return Err(bad(&format!("{text:?} is there twice")));
                    }
                    *key = Some(text.into_owned());
                    continue;
                }
                _ if style == ScalarStyle::Plain => plain(&text),
                _ => Value::String(text.into_owned()),
            },
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => continue,
        };
        match open.last_mut() {
            None => root = Some(done),
            Some(Open::List(list)) => list.push(done),
            Some(Open::Map(map, key)) => {
                let key = key.take().ok_or_else(|| bad("a key is no scalar"))?;
                map.insert(key, done);
            }
        }
    }
    root.ok_or_else(|| bad("it is empty"))
}

fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    integer(text).map_or_else(|| Value::String(text.to_owned()), Value::from)
}

fn integer(text: &str) -> Option<i64> {
    let (is_negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let number = match digits.as_bytes() {
        [b'0', b'x', ..] => i64::from_str_radix(digits.get(2..)?, 16),
        [b'0', b'o', ..] => i64::from_str_radix(digits.get(2..)?, 8),
        [b'0', b'0'..=b'7', ..] => i64::from_str_radix(digits, 8),
        [b'0'..=b'9', ..] => digits.parse(),
        _ => return None,
    };
    number.ok().map(|number| if is_negative { -number } else { number })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn yaml_parses_to_the_same_value_as_json() {
        let text =
            "---\na: 0.6.0\nb:\n- 0666\n- 0x10\n- -1\n- \"5\"\n- null\n- yes\n- true\nc: {d: [], 7: 'e'}\n";
        let expected =
            json!({"a": "0.6.0", "b": [438, 16, -1, "5", null, "yes", true], "c": {"d": [], "7": "e"}});
        assert_eq!(parse(text).unwrap(), expected);
        assert_eq!(parse("{\"a\": [1, \"b\"]}").unwrap(), json!({"a": [1, "b"]}));
    }

    #[test]
    fn yaml_with_anchors_tags_or_doubled_keys_is_refused() {
        let deep = "[".repeat(40);
        for (text, words) in [
            ("", "empty"),
            ("a: &x 1\nb: *x", "anchors"),
            ("a: !!str 1", "tags"),
            ("a: 1\na: 2", "twice"),
            ("a: 1\n---\nb: 2", "second document"),
            ("{[a]: 1}", "no scalar"),
            ("a: [", "YAML"),
            (&deep, "too deep"),
        ] {
            let refused = parse(text).unwrap_err();
            assert!(refused.message().contains(words), "{text:.20}: {refused}");
        }
    }
}
