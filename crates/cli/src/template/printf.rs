//! `printf`, with the verbs of Go that apply to JSON values.
//!
//! ```text
//! %[flags][width][.precision]verb      flags: - to the left, 0 zeros, + a sign, a space in its place
//! ```

use serde_json::Value;

use super::Why;
use super::value::show;

/// The largest width and precision.
const WIDTH_MAX: usize = 4096;

pub(super) fn printf(format: &str, values: &[Value]) -> Why<String> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut rest = format;
    while let Some((before, after)) = rest.split_once('%') {
        out += before;
        let (place, after) = Place::parse(after)?;
        rest = after;
        if place.verb == '%' {
            out.push('%');
            continue;
        }
        let value = values.next().ok_or_else(|| format!("printf: there is no value for %{}", place.verb))?;
        out += &place.fill(value)?;
    }
    if values.next().is_some() {
        return Err(format!("printf: there are more values than {format:?} has places for"));
    }
    Ok(out + rest)
}

struct Place {
    is_left: bool,
    has_zeros: bool,
    /// The sign before numbers that are not negative.
    sign: &'static str,
    width: usize,
    precision: Option<usize>,
    verb: char,
}

impl Place {
    fn parse(text: &str) -> Why<(Place, &str)> {
        let flags = text.len() - text.trim_start_matches(['-', '0', '+', ' ', '#']).len();
        let (flags, rest) = text.split_at(flags);
        let (width, rest) = digits(rest)?;
        let (precision, rest) = match rest.strip_prefix('.') {
            Some(rest) => digits(rest).map(|(precision, rest)| (Some(precision.unwrap_or(0)), rest))?,
            None => (None, rest),
        };
        let verb = rest.chars().next().ok_or("printf: a verb is missing behind %")?;
        let place = Place {
            is_left: flags.contains('-'),
            has_zeros: flags.contains('0'),
            sign: match (flags.contains('+'), flags.contains(' ')) {
                (true, _) => "+",
                (false, true) => " ",
                (false, false) => "",
            },
            width: width.unwrap_or(0),
            precision,
            verb,
        };
        Ok((place, &rest[verb.len_utf8()..]))
    }

    fn fill(&self, value: &Value) -> Why<String> {
        let text = self.text(value)?;
        let missing = self.width.saturating_sub(text.chars().count());
        Ok(if self.is_left {
            text + &" ".repeat(missing)
        } else if self.has_zeros && value.is_number() {
            let sign = usize::from(text.starts_with(['-', '+', ' ']));
            format!("{}{}{}", &text[..sign], "0".repeat(missing), &text[sign..])
        } else {
            " ".repeat(missing) + &text
        })
    }

    fn text(&self, value: &Value) -> Why<String> {
        // For a list, each element is formatted, as in Go.
        if let (Value::Array(items), true) = (value, self.verb != 'v') {
            let each = items.iter().map(|item| self.text(item)).collect::<Why<Vec<_>>>()?;
            return Ok(format!("[{}]", each.join(" ")));
        }
        let whole = value.as_i64();
        let sign = if value.as_f64().is_some_and(|number| number >= 0.0) { self.sign } else { "" };
        let wrong = || format!("printf: %{} is not for {value}", self.verb);
        Ok(match self.verb {
            'v' => sign.to_owned() + &show(value),
            's' => match self.precision {
                Some(len) => show(value).chars().take(len).collect(),
                None => show(value),
            },
            'q' => crate::output::quoted(&show(value)),
            't' => value.as_bool().ok_or_else(wrong)?.to_string(),
            'd' => format!("{sign}{}", whole.ok_or_else(wrong)?),
            'o' => format!("{:o}", whole.ok_or_else(wrong)?),
            'b' => format!("{:b}", whole.ok_or_else(wrong)?),
            'x' | 'X' => {
                let hex = match value {
                    Value::String(text) => text.bytes().map(|byte| format!("{byte:02x}")).collect(),
                    _ => format!("{:x}", whole.ok_or_else(wrong)?),
                };
                if self.verb == 'X' { hex.to_uppercase() } else { hex }
            }
            'c' => {
                let letter = whole.and_then(|code| char::from_u32(u32::try_from(code).ok()?));
                letter.ok_or_else(wrong)?.to_string()
            }
            'f' | 'F' => {
                let digits = self.precision.unwrap_or(6);
                format!("{sign}{:.digits$}", value.as_f64().ok_or_else(wrong)?)
            }
            'g' => format!("{sign}{}", value.as_f64().ok_or_else(wrong)?),
            other => {
                return Err(format!("printf: %{other} is not known; v, s, q, d, x, o, b, c, f, g and t are"));
            }
        })
    }
}

fn digits(text: &str) -> Why<(Option<usize>, &str)> {
    let (digits, rest) =
        text.split_at(text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len()));
    if digits.is_empty() {
        return Ok((None, rest));
    }
    let number = digits.parse().ok().filter(|number| *number <= WIDTH_MAX);
    number.map(|number| (Some(number), rest)).ok_or_else(|| format!("printf: {digits} is too much"))
}
