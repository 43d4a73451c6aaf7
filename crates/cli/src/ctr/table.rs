//! Tables and sizes in the format of containerd's `ctr`, and JSON indented as Go does.

use std::borrow::Cow;

use prost_types::Timestamp as Wire;
use serde::Serialize;
use serde_json::Value;
use types::Timestamp;

use crate::output::printable;

/// Prints rows below their headings.
pub(super) fn print(headings: &[&str], rows: &[Vec<String>]) {
    // Escape control characters, so that names of others cannot break the line.
    let rows: Vec<Vec<Cow<'_, str>>> =
        rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
    let width = |at: usize| {
        let cells = rows.iter().map(|row| row[at].chars().count());
        cells.chain([headings[at].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        println!("{}", padded.collect::<Vec<_>>().join(" ").trim_end());
    };
    line(&mut headings.iter().copied());
    rows.iter().for_each(|row| line(&mut row.iter().map(|cell| &**cell)));
}

/// Prints each word on a line.
pub(super) fn lines<T: AsRef<str>>(words: impl IntoIterator<Item = T>) {
    for word in words {
        println!("{}", word.as_ref());
    }
}

/// `1.9 MiB`
pub(super) fn binary_size(bytes: i64) -> String {
    let mut number = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if number < 1024.0 || unit == "TiB" {
            return format!("{number:.1} {unit}");
        }
        number /= 1024.0;
    }
    unreachable!("the last unit ends the loop")
}

/// `2.018MB`: four digits, powers of 1000.
pub(super) fn decimal_size(bytes: i64) -> String {
    let mut number = bytes as f64;
    let mut units = ["B", "kB", "MB", "GB", "TB", "PB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    while number >= 1000.0
        && let Some(larger) = units.next()
    {
        (number, unit) = (number / 1000.0, larger);
    }
    let digits = 3_usize.saturating_sub(number.max(1.0).log10().floor() as usize);
    let text = format!("{number:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

/// A time in RFC 3339, with the shortest fraction.
pub(super) fn time(wire: Option<&Wire>) -> String {
    shortest(&own_time(wire).to_string())
}

/// Removes trailing zeros of a fraction, as Go does.
pub(super) fn shortest(time: &str) -> String {
    match time.strip_suffix('Z').filter(|time| time.contains('.')) {
        Some(time) => format!("{}Z", time.trim_end_matches('0').trim_end_matches('.')),
        None => time.to_owned(),
    }
}

/// A time in RFC 3339, without a fraction.
pub(super) fn second(wire: Option<&Wire>) -> String {
    Timestamp { nanos: 0, ..own_time(wire) }.to_string()
}

/// The age, in words.
pub(super) fn age(wire: Option<&Wire>) -> String {
    crate::output::age(own_time(wire).until(Timestamp::now()).as_secs())
}

fn own_time(wire: Option<&Wire>) -> Timestamp {
    let wire = wire.copied().unwrap_or_default();
    Timestamp { seconds: wire.seconds, nanos: u32::try_from(wire.nanos).unwrap_or(0) }
}

/// JSON with an indent of four spaces, as Go's tools print documents.
pub(super) fn json(value: &Value) {
    let mut text = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, format);
    value.serialize(&mut serializer).expect("a value has a JSON form");
    lines([String::from_utf8_lossy(&text)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_end_with_their_last_digit() {
        for (time, expected) in [
            ("2026-11-26T02:58:48.790397770Z", "2026-11-26T02:58:48.79039777Z"),
            ("2026-11-26T02:58:40.000000000Z", "2026-11-26T02:58:40Z"),
            ("2026-11-26T02:58:40Z", "2026-11-26T02:58:40Z"),
        ] {
            assert_eq!(shortest(time), expected);
        }
    }

    #[test]
    fn sizes_read_as_gos() {
        for (bytes, expected) in
            [(0, "0.0 B"), (1023, "1023.0 B"), (2_017_792, "1.9 MiB"), (1 << 50, "1024.0 TiB")]
        {
            assert_eq!(binary_size(bytes), expected);
        }
        for (bytes, expected) in [
            (0, "0B"),
            (107, "107B"),
            (1000, "1kB"),
            (2_017_792, "2.018MB"),
            (12_345, "12.35kB"),
            (999_999, "1000kB"),
        ] {
            assert_eq!(decimal_size(bytes), expected);
        }
    }
}
