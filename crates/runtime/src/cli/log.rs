//! The log of `--log`, in runc's two formats. Programs that drive the runtime read the last error from it.

use std::fs;
use std::io::{self, Write};

use types::{Context, Error, Result, Timestamp};

use super::args::Args;
use crate::steps::Steps;

#[derive(Clone)]
pub(super) struct Log {
    path: Option<String>,
    /// Whether steps are logged too (`--debug`).
    is_detailed: bool,
    /// None if not set: errors on standard error are then plain sentences.
    format: Option<Format>,
}

#[derive(Clone, Copy)]
enum Format {
    Text,
    Json,
}

impl Log {
    /// Takes `--log`, `--log-format` and `--debug`. Fails if the log cannot be written: its reader would wait in vain.
    pub(super) fn read(args: &mut Args) -> Result<Log> {
        let path = args.value(&["--log"]).filter(|path| !path.is_empty());
        let format = match args.value(&["--log-format"]).as_deref() {
            None | Some("") => None,
            Some("json") => Some(Format::Json),
            Some("text") => Some(Format::Text),
            Some(other) => {
                return Err(Error::invalid_argument(format!(
                    "--log-format {other:?}: json and text are known"
                )));
            }
        };
        if let Some(path) = &path {
            open(path).context(|| format!("open log {path}"))?;
        }
        Ok(Log { path, format, is_detailed: args.flag(&["--debug"]) })
    }

    /// Logs the error that ends the program. It also goes to standard error, as it is.
    pub(super) fn error(&self, error: &Error) {
        if self.path.is_some() || self.format.is_none() {
            report(&error.chain());
        }
        self.line("error", &error.chain());
    }

    pub(super) fn warning(&self, words: &str) {
        if self.path.is_none() && self.format.is_none() {
            report(&format!("warning: {words}"));
        }
        self.line("warning", words);
    }

    /// Logs a step. Without a path and a format it goes to standard error as a line of the text format.
    pub(super) fn debug(&self, words: &str) {
        match (&self.path, self.format) {
            _ if !self.is_detailed => {}
            (None, None) => report(&line(Format::Text, &Timestamp::now().to_string(), "debug", words)),
            _ => self.line("debug", words),
        }
    }

    /// Logs the runtime's steps, one a line.
    pub(super) fn steps(&self) -> Steps {
        if !self.is_detailed {
            return Steps::default();
        }
        let log = self.clone();
        Steps::told_to(move |words| log.debug(words))
    }

    fn line(&self, level: &str, words: &str) {
        let line = line(self.format.unwrap_or(Format::Text), &Timestamp::now().to_string(), level, words);
        match &self.path {
            Some(path) => {
                // The error also goes to standard error; a log that cannot be written is ignored.
                if let Ok(mut file) = open(path) {
                    let _ = writeln!(file, "{line}");
                }
            }
            None if self.format.is_some() => report(&line),
            None => {}
        }
    }
}

fn open(path: &str) -> io::Result<fs::File> {
    fs::File::options().create(true).append(true).open(path)
}

/// Writes a line to standard error. A closed standard error is no reason to fail.
pub(super) fn report(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn line(format: Format, time: &str, level: &str, words: &str) -> String {
    match format {
        Format::Json => serde_json::json!({"level": level, "msg": words, "time": time}).to_string(),
        Format::Text => format!("time={time:?} level={level} msg={words:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_runcs() {
        let json = line(Format::Json, "2026-01-02T03:04:05Z", "error", "a \"b\"");
        assert_eq!(json, r#"{"level":"error","msg":"a \"b\"","time":"2026-01-02T03:04:05Z"}"#);
        let text = line(Format::Text, "2026-01-02T03:04:05Z", "warning", "a \"b\"");
        assert_eq!(text, r#"time="2026-01-02T03:04:05Z" level=warning msg="a \"b\"""#);
    }
}
