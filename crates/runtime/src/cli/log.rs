//! Where `--log` points to, in runc's two formats. Programs that drive the runtime read the last error
//! from there.

use std::fs;
use std::io::{self, Write};

use types::{Context, Error, Result, Timestamp};

use super::args::Args;
use crate::steps::Steps;

#[derive(Clone)]
pub(super) struct Log {
    path: Option<String>,
    /// Whether each step is a line.
    is_detailed: bool,
    /// None: nobody asked, and sentences without a frame read best.
    format: Option<Format>,
}

#[derive(Clone, Copy)]
enum Format {
    Text,
    Json,
}

impl Log {
    /// Takes `--log`, `--log-format` and `--debug`. An error if nothing can be written there: who reads it would wait in vain.
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

    /// The error that ends the program. It also goes to standard error, as it is.
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

    /// A step. Without a path and a format it has the frame of lines all the same: it is none of the program's own words.
    pub(super) fn debug(&self, words: &str) {
        match (&self.path, self.format) {
            _ if !self.is_detailed => {}
            (None, None) => report(&line(Format::Text, &Timestamp::now().to_string(), "debug", words)),
            _ => self.line("debug", words),
        }
    }

    /// Steps of the runtime, each a line.
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
                // The error also goes to standard error; a log that cannot be written has no other reader.
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

/// A line on standard error. Nobody may be there to read it, which is no reason to end otherwise.
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
