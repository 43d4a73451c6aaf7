//! Tables, sizes and ages in Docker's format.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt::Write;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use types::{Error, Result, Timestamp};

use crate::template::Template;

/// A column: its heading, and the function that makes a cell from a row.
pub(crate) type Column = (&'static str, fn(&Value) -> String);

/// Replaces a row's labels by what Docker's templates use: `{{.Labels}}` on one line, and `{{.Label "KEY"}}`.
pub(crate) fn show_labels(row: &mut Value) {
    let labels = row["Labels"].as_object().into_iter().flatten();
    let labels: Vec<String> =
        labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    row["Label"] = row["Labels"].take();
    row["Labels"] = labels.join(",").into();
}

/// Prints rows in a format: a table of columns by default, `json`, `table TEMPLATE` or a template.
pub(crate) fn rows(rows: &[Value], columns: &[Column], format: Option<&str>) -> Result<()> {
    match format {
        None | Some("" | "table") => table(rows, columns),
        Some("json") => rows.iter().for_each(|row| println!("{row}")),
        Some(text) => {
            let text = text.replace("\\t", "\t").replace("\\n", "\n");
            if let Some(text) = text.strip_prefix("table ") {
                return table_of(rows, &Template::parse(text.trim_start())?, columns);
            }
            let template = Template::parse(&text)?;
            for row in rows {
                println!("{}", template.fill(row)?);
            }
        }
    }
    Ok(())
}

/// Whether a format is a template that uses a field. Errors in the template are reported when it is filled.
pub(crate) fn names_field(format: &str, field: &str) -> bool {
    let is_named = Cell::new(false);
    let note = |name: &str| {
        is_named.set(is_named.get() || name == field);
        String::new()
    };
    let template = Template::parse(format);
    template.is_ok_and(|template| template.headings(&note).is_ok()) && is_named.get()
}

/// Prints a table whose rows a template makes, with tabs between cells.
fn table_of(rows: &[Value], template: &Template, columns: &[Column]) -> Result<()> {
    let headings = template.headings(&|field| heading(field, columns))?;
    let headings: Vec<&str> = headings.split('\t').collect();
    let cells = rows.iter().map(|row| {
        let mut cells: Vec<String> = template.fill(row)?.split('\t').map(str::to_owned).collect();
        // The number of headings decides, even if a field's value has tabs.
        cells.resize(headings.len(), String::new());
        Ok(cells)
    });
    let cells = cells.collect::<Result<Vec<_>>>()?;
    grid(&headings, &cells);
    Ok(())
}

/// The heading of a field in Docker's tables.
fn heading(field: &str, columns: &[Column]) -> String {
    let own = match field {
        "ID" => columns.iter().map(|(own, _)| *own).find(|own| own.ends_with(" ID")).unwrap_or("ID"),
        "Name" => columns.iter().map(|(own, _)| *own).find(|own| own.ends_with("NAME")).unwrap_or("NAME"),
        "RunningFor" | "CreatedSince" => "CREATED",
        "CreatedAt" => "CREATED AT",
        "CreatedBy" => "CREATED BY",
        "LocalVolumes" => "LOCAL VOLUMES",
        "HealthStatus" => "HEALTH STATUS",
        "CPUPerc" => "CPU %",
        "MemUsage" => "MEM USAGE / LIMIT",
        "MemPerc" => "MEM %",
        "NetIO" => "NET I/O",
        "BlockIO" => "BLOCK I/O",
        "TotalCount" => "TOTAL",
        _ => return field.to_uppercase(),
    };
    own.to_owned()
}

fn table(rows: &[Value], columns: &[Column]) {
    let cells: Vec<Vec<String>> =
        rows.iter().map(|row| columns.iter().map(|(_, fill)| fill(row)).collect()).collect();
    grid(&columns.iter().map(|(heading, _)| *heading).collect::<Vec<_>>(), &cells);
}

/// Prints rows of cells below their headings.
pub(crate) fn grid(headings: &[&str], cells: &[Vec<String>]) {
    // Escape control characters, so that names of others cannot break the line.
    let cells: Vec<Vec<Cow<'_, str>>> =
        cells.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
    let width = |at: usize| {
        let widest = cells.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
        widest.max(headings[at].len())
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let line = |cells: &[Cow<'_, str>]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        println!("{}", padded.collect::<Vec<_>>().join("   ").trim_end());
    };
    line(&headings.iter().map(|heading| Cow::Borrowed(*heading)).collect::<Vec<_>>());
    cells.iter().for_each(|row| line(row));
}

/// A text with control characters escaped, as `\x1b`, or `\u{85}` beyond ASCII, so that it stays on its line and cannot
/// control the terminal.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for letter in text.chars() {
        match u32::from(letter) {
            code @ 0..0x80 if letter.is_control() => write!(shown, "\\x{code:02x}"),
            code if letter.is_control() => write!(shown, "\\u{{{code:x}}}"),
            _ => shown.write_char(letter),
        }
        .expect("a string takes it");
    }
    shown.into()
}

/// An error's message, with control characters escaped except newlines: names in it may come from an image, a registry
/// or a container.
pub(crate) fn said(error: &Error) -> String {
    error.chain().split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// A text in quotes, as Go's `strconv.Quote` writes it.
pub(crate) fn quoted(text: &str) -> String {
    let mut shown = String::with_capacity(text.len() + 2);
    shown.push('"');
    for letter in text.chars() {
        let known = ['\x07', '\x08', '\x0c', '\n', '\r', '\t', '\x0b', '\\', '"'];
        if let Some(at) = known.iter().position(|one| *one == letter) {
            shown.extend(['\\', ['a', 'b', 'f', 'n', 'r', 't', 'v', '\\', '"'][at]]);
            continue;
        }
        match u32::from(letter) {
            _ if !is_invisible(letter) => shown.write_char(letter),
            code @ 0..0x80 => write!(shown, "\\x{code:02x}"),
            code @ 0x80..0x10000 => write!(shown, "\\u{code:04x}"),
            code => write!(shown, "\\U{code:08x}"),
        }
        .expect("a string takes it");
    }
    shown.push('"');
    shown
}

/// Whether a character has no glyph: control characters, blanks except the space, and formatting characters.
fn is_invisible(letter: char) -> bool {
    let sets_others = matches!(letter, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}');
    letter.is_control() || (letter.is_whitespace() && letter != ' ') || sets_others
}

/// A progress bar of bytes, of known or unknown length. Hidden with `quiet`, or if standard error is no terminal.
pub(crate) fn bytes_bar(what: &'static str, len: Option<u64>, quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match len {
        Some(len) => (ProgressBar::new(len), "{msg:<10} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}"),
        None => (ProgressBar::new_spinner(), "{msg:<10} {spinner} {bytes} {bytes_per_sec}"),
    };
    let style = ProgressStyle::with_template(template).expect("a valid template").progress_chars("=> ");
    bar.enable_steady_tick(Duration::from_millis(200));
    bar.with_style(style).with_message(what)
}

/// The text of a field; empty for `null`.
pub(crate) fn text(row: &Value, key: &str) -> String {
    match &row[key] {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

pub(crate) fn short(id: &str) -> String {
    id.strip_prefix("sha256:").unwrap_or(id).chars().take(12).collect()
}

/// A size in powers of 1000, as Docker prints it: `12.3MB`.
pub(crate) fn size(bytes: u64) -> String {
    scaled(bytes as f64, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB"])
}

/// A size in powers of 1024, for memory: `12.3MiB`.
pub(crate) fn memory(bytes: u64) -> String {
    scaled(bytes as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"])
}

fn scaled(mut number: f64, step: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while number >= step && unit + 1 < units.len() {
        number /= step;
        unit += 1;
    }
    let digits = if number >= 100.0 || unit == 0 {
        0
    } else if number >= 10.0 {
        1
    } else {
        2
    };
    let text = format!("{number:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{}", units[unit])
}

/// An age in words: `3 minutes`.
pub(crate) fn age(seconds: u64) -> String {
    let count =
        |number: u64, unit: &str| if number == 1 { format!("1 {unit}") } else { format!("{number} {unit}s") };
    match seconds {
        0 => "Less than a second".into(),
        1 => "1 second".into(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".into(),
        120..3600 => count(seconds / 60, "minute"),
        3600..7200 => "About an hour".into(),
        7200..172_800 => count(seconds / 3600, "hour"),
        172_800..1_209_600 => count(seconds / 86_400, "day"),
        1_209_600..5_184_000 => count(seconds / 604_800, "week"),
        5_184_000..63_072_000 => count(seconds / 2_592_000, "month"),
        _ => count(seconds / 31_536_000, "year"),
    }
}

/// The age of a time in a field.
pub(crate) fn since(row: &Value, key: &str) -> Option<String> {
    let time: Timestamp = row[key].as_str()?.parse().ok()?;
    Some(age(time.until(Timestamp::now()).as_secs()))
}

/// A time in a field, as Docker's lists print it: `2026-11-27 05:03:24 +0000 UTC`.
pub(crate) fn created_at(row: &Value) -> String {
    let text = text(row, "CreatedAt");
    let Ok(time) = text.parse::<Timestamp>() else { return text };
    Timestamp { nanos: 0, ..time }.to_string().replace('T', " ").replace('Z', " +0000 UTC")
}

/// A container's status: `Up 3 minutes`, `Exited (0) 2 hours ago`.
pub(crate) fn status(row: &Value) -> String {
    match row["State"].as_str() {
        Some("running") => {
            let health = match row["HealthStatus"].as_str() {
                None | Some("" | "none") => String::new(),
                Some("starting") => " (health: starting)".to_owned(),
                Some(status) => format!(" ({status})"),
            };
            format!("Up {}{health}", since(row, "StartedAt").unwrap_or_default())
        }
        Some("paused") => format!("Up {} (Paused)", since(row, "StartedAt").unwrap_or_default()),
        Some("exited") => {
            let code = row["ExitCode"].as_u64().unwrap_or(0);
            format!("Exited ({code}) {} ago", since(row, "FinishedAt").unwrap_or_default())
        }
        Some("restarting") => {
            let code = row["ExitCode"].as_u64().unwrap_or(0);
            format!("Restarting ({code}) {} ago", since(row, "FinishedAt").unwrap_or_default())
        }
        Some("created") => "Created".into(),
        _ => "Unknown".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_have_dockers_headings() {
        let columns: &[Column] = &[("CONTAINER ID", |row| text(row, "ID"))];
        for (field, expected) in
            [("ID", "CONTAINER ID"), ("RunningFor", "CREATED"), ("Ports", "PORTS"), ("NetIO", "NET I/O")]
        {
            assert_eq!(heading(field, columns), expected);
        }
        assert_eq!(heading("ID", &[]), "ID");
    }

    #[test]
    fn control_characters_of_names_are_escaped() {
        assert_eq!(printable("/usr/lüb"), "/usr/lüb");
        assert_eq!(printable("a\nb\x1b[2J\u{9b}c\t\x7f"), r"a\x0ab\x1b[2J\u{9b}c\x09\x7f");
        assert_eq!(quoted("sh -c 'ü'"), r#""sh -c 'ü'""#);
        let hostile = "a\n\"b\"\\\x07\x1b[1m\u{85}\u{202e}\u{e0001}…";
        assert_eq!(quoted(hostile), r#""a\n\"b\"\\\a\x1b[1m\u0085\u202e\U000e0001…""#);
    }

    #[test]
    fn an_error_of_a_hostile_name_moves_nothing_on_the_terminal() {
        let error = Error::invalid_argument("there is\nmore").context("unpack \x1b]52;c;\x07\u{9b}2J");
        assert_eq!(said(&error), "unpack \\x1b]52;c;\\x07\\u{9b}2J: there is\nmore");
    }

    #[test]
    fn sizes_and_ages_read_as_dockers() {
        for (bytes, expected) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1234, "1.23kB"),
            (12_345_678, "12.3MB"),
            (250_000_000, "250MB"),
        ] {
            assert_eq!(size(bytes), expected);
        }
        let row = serde_json::json!({"CreatedAt": "2026-11-27T07:03:24.123+02:00"});
        assert_eq!(created_at(&row), "2026-11-27 05:03:24 +0000 UTC");
        assert_eq!(memory(1536), "1.5KiB");
        assert_eq!(memory(64 << 20), "64MiB");
        for (seconds, expected) in [
            (0, "Less than a second"),
            (5, "5 seconds"),
            (61, "About a minute"),
            (180, "3 minutes"),
            (4000, "About an hour"),
            (7200, "2 hours"),
            (200_000, "2 days"),
        ] {
            assert_eq!(age(seconds), expected);
        }
    }
}
