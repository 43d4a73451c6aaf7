//! Tables, sizes and ages, as Docker prints them.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use types::{Result, Timestamp};

use crate::template;

/// A column: its heading and how a row fills it.
pub(crate) type Column = (&'static str, fn(&Value) -> String);

/// Prints rows by a format: a table of columns without one, `json`, `table TEMPLATE` or a template.
pub(crate) fn rows(rows: &[Value], columns: &[Column], format: Option<&str>) -> Result<()> {
    match format {
        None | Some("table") => table(rows, columns),
        Some("json") => rows.iter().for_each(|row| println!("{row}")),
        Some(text) => {
            let unescaped = |text: &str| text.replace("\\t", "\t").replace("\\n", "\n");
            let Some(text) = text.strip_prefix("table ").map(unescaped) else {
                let text = unescaped(text);
                for row in rows {
                    println!("{}", template::render(&text, row)?);
                }
                return Ok(());
            };
            let cells = rows.iter().map(|row| {
                let mut cells: Vec<String> =
                    template::render(&text, row)?.split('\t').map(str::to_owned).collect();
                // As many as there are headings, whatever stands in the fields.
                cells.resize(text.split('\t').count(), String::new());
                Ok(cells)
            });
            let headings: Vec<String> = text.split('\t').map(|part| heading(part, columns)).collect();
            let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
            grid(&headings, &cells.collect::<Result<Vec<_>>>()?);
        }
    }
    Ok(())
}

/// The heading of a part of a template: what it says itself, with the heading of its field in the field's place.
fn heading(part: &str, columns: &[Column]) -> String {
    let Some((before, rest)) = part.split_once("{{") else { return part.to_owned() };
    let (action, after) = rest.split_once("}}").unwrap_or((rest, ""));
    let known = |heading: &str| columns.iter().map(|(own, _)| *own).find(|own| own.ends_with(heading));
    let own = match template::first_field(action).unwrap_or_default() {
        "ID" => known(" ID").unwrap_or("ID").to_owned(),
        "RunningFor" | "CreatedSince" => "CREATED".to_owned(),
        "CreatedAt" => "CREATED AT".to_owned(),
        "CreatedBy" => "CREATED BY".to_owned(),
        field => field.to_uppercase(),
    };
    format!("{before}{own}{}", heading(after, columns))
}

fn table(rows: &[Value], columns: &[Column]) {
    let cells: Vec<Vec<String>> =
        rows.iter().map(|row| columns.iter().map(|(_, fill)| fill(row)).collect()).collect();
    grid(&columns.iter().map(|(heading, _)| *heading).collect::<Vec<_>>(), &cells);
}

/// Prints rows of cells below their headings.
pub(crate) fn grid(headings: &[&str], cells: &[Vec<String>]) {
    let width = |at: usize| {
        let widest = cells.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
        widest.max(headings[at].len())
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let line = |cells: &[&str]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        println!("{}", padded.collect::<Vec<_>>().join("   ").trim_end());
    };
    line(headings);
    for row in cells {
        line(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

/// A bar of bytes on a terminal, of so many or of nobody knows how many; nothing elsewhere.
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

/// Text of a field; empty for none.
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

/// `12.3MB`: powers of 1000, as Docker counts.
pub(crate) fn size(bytes: u64) -> String {
    scaled(bytes as f64, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB"])
}

/// `12.3MiB`: powers of 1024, for memory.
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

/// `3 minutes`, in words.
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

/// How long ago a time in a field was.
pub(crate) fn since(row: &Value, key: &str) -> Option<String> {
    let time: Timestamp = row[key].as_str()?.parse().ok()?;
    Some(age(time.until(Timestamp::now()).as_secs()))
}

/// `Up 3 minutes`, `Exited (0) 2 hours ago`.
pub(crate) fn status(row: &Value) -> String {
    match row["State"].as_str() {
        Some("running") => format!("Up {}", since(row, "StartedAt").unwrap_or_default()),
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
    fn parts_of_a_template_have_headings() {
        let columns: &[Column] = &[("CONTAINER ID", |row| text(row, "ID"))];
        for (part, expected) in [
            ("{{.ID}}", "CONTAINER ID"),
            ("{{.RunningFor}} ({{.Names}})", "CREATED (NAMES)"),
            ("{{json .Ports}}", "PORTS"),
            ("x", "x"),
        ] {
            assert_eq!(heading(part, columns), expected);
        }
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
