//! Functions of templates: Docker's, and those of Go's that apply to JSON documents.

use std::cmp::Ordering;

use serde_json::Value;

use super::Why;
use super::printf::printf;
use super::value::{is_true, show};

/// The functions, and their arguments. `and` and `or` evaluate only what they need, so `run` implements them.
const KNOWN: [(&str, &str); 23] = [
    ("and", "VALUE…"),
    ("eq", "VALUE VALUE…"),
    ("ge", "VALUE VALUE"),
    ("gt", "VALUE VALUE"),
    ("index", "LIST|MAP KEY…"),
    ("join", "LIST TEXT"),
    ("json", "VALUE"),
    ("le", "VALUE VALUE"),
    ("len", "VALUE"),
    ("lower", "TEXT"),
    ("lt", "VALUE VALUE"),
    ("ne", "VALUE VALUE"),
    ("not", "VALUE"),
    ("or", "VALUE…"),
    ("pad", "TEXT BEFORE AFTER"),
    ("print", "VALUE…"),
    ("printf", "FORMAT VALUE…"),
    ("println", "VALUE…"),
    ("slice", "LIST|TEXT FROM [TO]"),
    ("split", "TEXT BY"),
    ("title", "TEXT"),
    ("truncate", "TEXT LENGTH"),
    ("upper", "TEXT"),
];

pub(super) fn is_known(name: &str) -> bool {
    KNOWN.iter().any(|(known, _)| *known == name)
}

pub(super) fn names() -> String {
    KNOWN.map(|(name, _)| name).join(", ")
}

/// Whether a function only formats a field, so that the heading stays.
pub(super) fn keeps_headings(name: &str) -> bool {
    ["json", "join", "split", "slice", "index", "title", "lower", "upper", "truncate", "len"].contains(&name)
}

pub(super) fn call(name: &str, arguments: &[Value]) -> Why<Value> {
    let text = |value: &Value| Value::String(show(value));
    Ok(match (name, arguments) {
        ("json", [value]) => Value::String(value.to_string()),
        ("join", [Value::Array(items), between]) => {
            items.iter().map(show).collect::<Vec<_>>().join(&show(between)).into()
        }
        ("join", [Value::Null, _]) => text(&Value::Null),
        ("split", [whole, by]) => show(whole).split(&show(by)).collect(),
        ("title", [value]) => title(&show(value)).into(),
        ("lower", [value]) => show(value).to_lowercase().into(),
        ("upper", [value]) => show(value).to_uppercase().into(),
        ("pad", [value, Value::Number(before), Value::Number(after)]) => match show(value) {
            nothing if nothing.is_empty() => nothing.into(),
            shown => format!("{}{shown}{}", " ".repeat(count(before)?), " ".repeat(count(after)?)).into(),
        },
        ("truncate", [value, Value::Number(len)]) => {
            show(value).chars().take(count(len)?).collect::<String>().into()
        }
        ("len", [value]) => match value {
            Value::Array(items) => items.len().into(),
            Value::Object(map) => map.len().into(),
            Value::String(text) => text.len().into(),
            Value::Null => 0.into(),
            Value::Bool(_) | Value::Number(_) => return Err(misuse(name, arguments)),
        },
        ("index", [value, keys @ ..]) => {
            keys.iter().try_fold(value.clone(), |value, key| index(&value, key))?
        }
        ("slice", [value, Value::Number(from)]) => slice(value, count(from)?, None)?,
        ("slice", [value, Value::Number(from), Value::Number(to)]) => {
            slice(value, count(from)?, Some(count(to)?))?
        }
        ("not", [value]) => (!is_true(value)).into(),
        ("eq", [value, others @ ..]) if !others.is_empty() => {
            let mut found = false;
            for other in others {
                found |= is_same(value, other)?;
            }
            found.into()
        }
        ("ne", [one, other]) => (!is_same(one, other)?).into(),
        ("lt", [one, other]) => order(one, other)?.is_lt().into(),
        ("le", [one, other]) => order(one, other)?.is_le().into(),
        ("gt", [one, other]) => order(one, other)?.is_gt().into(),
        ("ge", [one, other]) => order(one, other)?.is_ge().into(),
        ("print", values) => print(values).into(),
        ("println", values) => (values.iter().map(show).collect::<Vec<_>>().join(" ") + "\n").into(),
        ("printf", [Value::String(format), values @ ..]) => printf(format, values)?.into(),
        _ => return Err(misuse(name, arguments)),
    })
}

fn misuse(name: &str, arguments: &[Value]) -> String {
    let takes = KNOWN.iter().find(|(known, _)| *known == name).map_or("nothing", |(_, takes)| takes);
    let has = arguments.iter().map(Value::to_string).collect::<Vec<_>>().join(" ");
    format!("{name} takes {takes}, and not {}", if has.is_empty() { "nothing" } else { &has })
}

/// A number of letters or columns. Larger numbers are a mistake.
fn count(number: &serde_json::Number) -> Why<usize> {
    const MAX: u64 = 1 << 20;
    let count = number.as_u64().filter(|count| *count <= MAX).and_then(|count| usize::try_from(count).ok());
    count.ok_or_else(|| format!("{number} is no number of letters or places"))
}

/// Capitalizes each word. A word begins after a character that is no letter or digit.
fn title(text: &str) -> String {
    let mut is_inside = false;
    let letters = text.chars().map(|letter| {
        let begins = !std::mem::replace(&mut is_inside, letter.is_alphanumeric() || letter == '_');
        if begins { letter.to_uppercase().to_string() } else { letter.to_string() }
    });
    letters.collect()
}

fn index(value: &Value, key: &Value) -> Why<Value> {
    match (value, key) {
        (Value::Array(items), Value::Number(at)) => {
            let found = count(at).ok().and_then(|at| items.get(at));
            found.cloned().ok_or_else(|| format!("index {at} is beyond a list of {}", items.len()))
        }
        (Value::Object(map), key) => Ok(map.get(&show(key)).cloned().unwrap_or_default()),
        _ => Err(misuse("index", &[value.clone(), key.clone()])),
    }
}

fn slice(value: &Value, from: usize, to: Option<usize>) -> Why<Value> {
    let found = match value {
        Value::Array(items) => items.get(from..to.unwrap_or(items.len())).map(|items| items.to_vec().into()),
        Value::String(text) => text.get(from..to.unwrap_or(text.len())).map(Value::from),
        _ => return Err(misuse("slice", std::slice::from_ref(value))),
    };
    found.ok_or_else(|| format!("slice from {from} to {to:?} is beyond {}", show(value)))
}

fn is_same(one: &Value, other: &Value) -> Why<bool> {
    match (one, other) {
        (Value::Null, _) | (_, Value::Null) => Ok(one == other),
        (Value::Bool(one), Value::Bool(other)) => Ok(one == other),
        _ => order(one, other).map(Ordering::is_eq),
    }
}

fn order(one: &Value, other: &Value) -> Why<Ordering> {
    let found = match (one, other) {
        (Value::String(one), Value::String(other)) => Some(one.cmp(other)),
        (Value::Number(one), Value::Number(other)) => match (one.as_i64(), other.as_i64()) {
            (Some(one), Some(other)) => Some(one.cmp(&other)),
            _ => one.as_f64().zip(other.as_f64()).and_then(|(one, other)| one.partial_cmp(&other)),
        },
        _ => None,
    };
    found.ok_or_else(|| format!("{one} and {other} cannot be compared"))
}

/// Prints values, with a space between two values that are no strings, as Go does.
fn print(values: &[Value]) -> String {
    let mut out = String::new();
    for (at, value) in values.iter().enumerate() {
        let is_spaced = at > 0 && !value.is_string() && !values[at - 1].is_string();
        out += if is_spaced { " " } else { "" };
        out += &show(value);
    }
    out
}
