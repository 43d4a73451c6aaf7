//! The part of Go's templates that people use with `--format`: fields, `json`, `index`, `len`, `upper`,
//! `lower`, `join`, `range` and `if`.

use serde_json::Value;
use types::{Error, Result};

/// Fills a template from a document.
pub(crate) fn render(template: &str, data: &Value) -> Result<String> {
    let mut out = String::new();
    match block(template, data, &mut out, true)? {
        (_, Stop::Text) => Ok(out),
        _ => Err(bad(template, "an {{end}} without a beginning")),
    }
}

/// What a block ended with.
#[derive(Clone, Copy, PartialEq)]
enum Stop {
    Text,
    End,
    Else,
}

/// Renders up to the end of the block, and returns what follows it.
fn block<'a>(mut text: &'a str, data: &Value, out: &mut String, top: bool) -> Result<(&'a str, Stop)> {
    loop {
        let Some((plain, after)) = text.split_once("{{") else {
            if !top {
                return Err(bad(text, "an {{end}} is missing"));
            }
            out.push_str(text);
            return Ok(("", Stop::Text));
        };
        out.push_str(plain);
        let (action, rest) = after.split_once("}}").ok_or_else(|| bad(after, "}} is missing"))?;
        let action = action.trim().trim_start_matches("- ").trim_end_matches(" -").trim();
        let (word, argument) = action.split_once(' ').unwrap_or((action, ""));
        match word {
            "end" => return Ok((rest, Stop::End)),
            "else" => return Ok((rest, Stop::Else)),
            "range" => {
                let list = evaluate(argument, data)?;
                let items: Vec<Value> = match list {
                    Value::Array(items) => items,
                    Value::Object(map) => map.into_iter().map(|(_, value)| value).collect(),
                    _ => Vec::new(),
                };
                let mut after = None;
                for item in &items {
                    after = Some(block(rest, item, out, false)?.0);
                }
                text = match after {
                    Some(after) => after,
                    None => block(rest, &Value::Null, &mut String::new(), false)?.0,
                };
            }
            "if" => {
                let holds = is_true(&evaluate(argument, data)?);
                let mut ignored = String::new();
                let (after, end) = block(rest, data, if holds { &mut *out } else { &mut ignored }, false)?;
                text = match end {
                    Stop::Else => block(after, data, if holds { &mut ignored } else { &mut *out }, false)?.0,
                    _ => after,
                };
            }
            _ => {
                out.push_str(&show(&evaluate(action, data)?));
                text = rest;
            }
        }
    }
}

/// A pipeline: `.A.B | json`.
fn evaluate(pipeline: &str, data: &Value) -> Result<Value> {
    let mut value = None;
    let mut rest = pipeline;
    loop {
        let end = outside(rest, '|').unwrap_or(rest.len());
        let mut words = words(rest[..end].trim(), data)?;
        if let Some(previous) = value.take() {
            words.push(Word::Value(previous));
        }
        value = Some(call(&words, data)?);
        match rest.get(end + 1..) {
            Some(more) => rest = more,
            None => return Ok(value.unwrap_or(Value::Null)),
        }
    }
}

/// Where a letter stands first that is in no parentheses or quotes.
fn outside(text: &str, wanted: char) -> Option<usize> {
    let (mut depth, mut quoted) = (0_usize, false);
    for (at, letter) in text.char_indices() {
        match letter {
            _ if letter == wanted && depth == 0 && !quoted => return Some(at),
            '"' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    None
}

enum Word {
    Name(String),
    Value(Value),
}

fn words(text: &str, data: &Value) -> Result<Vec<Word>> {
    let mut words = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        if let Some(quoted) = rest.strip_prefix('"') {
            let (inside, after) = quoted.split_once('"').unwrap_or((quoted, ""));
            words.push(Word::Value(Value::String(inside.to_owned())));
            rest = after.trim_start();
            continue;
        }
        if let Some(inner) = rest.strip_prefix('(') {
            let end = outside(inner, ')').ok_or_else(|| bad(text, "a parenthesis is not closed"))?;
            let value = evaluate(&inner[..end], data)?;
            let after = &inner[end + 1..];
            // `(index .A 0).B`
            let (path, after) = after.split_once(' ').unwrap_or((after, ""));
            words.push(Word::Value(if path.is_empty() { value } else { field(path, &value)? }));
            rest = after.trim_start();
            continue;
        }
        let (word, after) = rest.split_once(' ').unwrap_or((rest, ""));
        words.push(match word.parse::<i64>() {
            Ok(number) => Word::Value(number.into()),
            Err(_) => Word::Name(word.to_owned()),
        });
        rest = after.trim_start();
    }
    Ok(words)
}

fn call(words: &[Word], data: &Value) -> Result<Value> {
    let operand = |word: &Word| -> Result<Value> {
        match word {
            Word::Value(value) => Ok(value.clone()),
            Word::Name(name) => field(name, data),
        }
    };
    let Some((first, arguments)) = words.split_first() else { return Ok(Value::Null) };
    let Word::Name(name) = first else { return operand(first) };
    let argument = |at: usize| arguments.get(at).map_or(Ok(Value::Null), &operand);
    match name.as_str() {
        "json" => Ok(Value::String(argument(0)?.to_string())),
        "len" => Ok(match argument(0)? {
            Value::Array(items) => items.len().into(),
            Value::Object(map) => map.len().into(),
            Value::String(text) => text.len().into(),
            _ => 0.into(),
        }),
        "upper" => Ok(Value::String(show(&argument(0)?).to_uppercase())),
        "lower" => Ok(Value::String(show(&argument(0)?).to_lowercase())),
        "println" => Ok(Value::String(show(&argument(0)?) + "\n")),
        "join" => {
            let items = argument(0)?;
            let items =
                items.as_array().map(|items| items.iter().map(show).collect::<Vec<_>>()).unwrap_or_default();
            Ok(Value::String(items.join(&show(&argument(1)?))))
        }
        "index" => {
            let mut value = argument(0)?;
            for key in &arguments[1.min(arguments.len())..] {
                value = match operand(key)? {
                    Value::Number(number) => {
                        value[usize::try_from(number.as_u64().unwrap_or(0)).unwrap_or(0)].take()
                    }
                    key => value[show(&key)].take(),
                };
            }
            Ok(value)
        }
        _ => field(name, data),
    }
}

fn field(name: &str, data: &Value) -> Result<Value> {
    let path = name.strip_prefix('.').ok_or_else(|| bad(name, "unknown function"))?;
    let mut value = data;
    for key in path.split('.').filter(|key| !key.is_empty()) {
        value = value.get(key).ok_or_else(|| bad(name, "there is no such field"))?;
    }
    Ok(value.clone())
}

/// The name of the first field that an action shows, if it shows one.
pub(crate) fn first_field(action: &str) -> Option<&str> {
    let rest = &action[action.find('.')? + 1..];
    let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric()).unwrap_or(rest.len());
    (end > 0).then_some(&rest[..end])
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn bad(template: &str, why: &str) -> Error {
    Error::invalid_argument(format!("invalid format {template:?}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_filled() {
        let data = serde_json::json!({"A": {"B": "x"}, "L": ["p", "q"], "N": 3, "E": "", "T": true,
            "M": {"80/tcp": [{"Port": "8080"}]}});
        for (template, expected) in [
            ("{{.A.B}}", "x"),
            ("a {{ .N }} b", "a 3 b"),
            ("{{json .A}}", r#"{"B":"x"}"#),
            ("{{.A | json}}", r#"{"B":"x"}"#),
            ("{{index .L 1}}", "q"),
            ("{{len .L}}", "2"),
            ("{{upper .A.B}}", "X"),
            ("{{join .L \",\"}}", "p,q"),
            ("{{range .L}}<{{.}}>{{end}}!", "<p><q>!"),
            ("{{if .E}}yes{{else}}no{{end}}", "no"),
            ("{{if .T}}yes{{else}}no{{end}}", "yes"),
            ("{{if .E}}yes{{end}}-", "-"),
            ("{{(index .L 1) | upper}}", "Q"),
            ("{{(index (index .M \"80/tcp\") 0).Port}}", "8080"),
            ("{{join .L \"|\" | upper}}", "P|Q"),
            ("plain", "plain"),
        ] {
            assert_eq!(render(template, &data).unwrap(), expected, "{template}");
        }
        for wrong in ["{{.Nosuch}}", "{{", "{{range .L}}", "{{nosuch .A}}", "{{end}}x", "{{(len .L}}"] {
            assert!(render(wrong, &data).is_err(), "{wrong}");
        }
    }
}
