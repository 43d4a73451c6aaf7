//! Where `--log` points to, in runc's two formats. Programs that drive the runtime read the last error
//! from there.

use std::fs;
use std::io::Write;

use types::{Error, Timestamp};

use super::args::Args;

pub(super) struct Log {
    path: Option<String>,
    /// None: nobody asked, and sentences without a frame read best.
    format: Option<Format>,
}

#[derive(Clone, Copy)]
enum Format {
    Text,
    Json,
}

impl Log {
    /// Takes `--log` and `--log-format`.
    pub(super) fn read(args: &mut Args) -> Log {
        let path = args.value(&["--log"]).filter(|path| !path.is_empty());
        let format = args.value(&["--log-format"]).and_then(|format| match format.as_str() {
            "json" => Some(Format::Json),
            "text" => Some(Format::Text),
            _ => None,
        });
        Log { path, format }
    }

    /// The error that ends the program. It also goes to standard error, as it is.
    pub(super) fn error(&self, error: &Error) {
        if self.path.is_some() || self.format.is_none() {
            eprintln!("{}", error.chain());
        }
        self.line("error", &error.chain());
    }

    pub(super) fn warning(&self, words: &str) {
        if self.path.is_none() && self.format.is_none() {
            eprintln!("warning: {words}");
        }
        self.line("warning", words);
    }

    fn line(&self, level: &str, words: &str) {
        let line = line(self.format.unwrap_or(Format::Text), &Timestamp::now().to_string(), level, words);
        match &self.path {
            Some(path) => {
                // The error also goes to standard error; a log that cannot be written has no other reader.
                if let Ok(mut file) = fs::File::options().create(true).append(true).open(path) {
                    let _ = writeln!(file, "{line}");
                }
            }
            None if self.format.is_some() => eprintln!("{line}"),
            None => {}
        }
    }
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
