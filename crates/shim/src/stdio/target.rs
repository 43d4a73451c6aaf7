//! Standard streams as the API names them.
//!
//! | text | meaning |
//! |---|---|
//! | empty | `/dev/null` |
//! | `/path`, `fifo:///path` | a fifo made by the client; a plain path may also be a file, which is appended to |
//! | `fifo:///path?once` | a client that will not return: its end ends the input, and later output is lost; ours |
//! | `file:///path` | raw bytes appended to a file, created with its parent directories if missing |
//! | `binary:///path?key=value` | a log driver program |
//! | `binary-v2:///path?key=value` | one that writes a byte when it is ready, as its death closes the pipe too |
//! | `json-file:///path?max-size=10m&max-file=3&attach=/fifo` | Docker's log lines; ours |

use std::path::PathBuf;

use types::{Error, Result};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Null,
    /// A fifo, or an existing file.
    Path(PathBuf),
    /// A fifo whose client does not return after closing it.
    Once(PathBuf),
    File(PathBuf),
    Driver {
        program: PathBuf,
        args: Vec<String>,
        ready: Ready,
    },
    JsonFile(JsonFile),
}

/// How a log driver reports readiness on its third pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    /// It closes it, also by exiting.
    Closes,
    /// It writes a byte.
    Writes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JsonFile {
    pub path: PathBuf,
    /// Size in bytes at which the log is rotated; `None` for no limit.
    pub size_max: Option<u64>,
    /// Number of files, the current one included.
    pub files_max: u32,
    /// A fifo that gets the raw bytes as well, if it has a reader.
    pub attach: Option<PathBuf>,
}

impl Target {
    pub(crate) fn parse(text: &str) -> Result<Target> {
        if text.is_empty() {
            return Ok(Target::Null);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return absolute(text, text).map(Target::Path);
        };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        if !["fifo", "file", "binary", "binary-v2", "json-file"].contains(&scheme) {
            return Err(Error::unimplemented(format!(
                "log URI {text:?}: scheme {scheme:?} is not supported; use fifo, file, binary, binary-v2 or \
                 json-file"
            )));
        }
        let path = absolute(text, &percent_decoded(path))?;
        match scheme {
            "fifo" if query == "once" => Ok(Target::Once(path)),
            "fifo" => Ok(Target::Path(path)),
            "file" => Ok(Target::File(path)),
            "binary" => Ok(Target::Driver { program: path, args: driver_args(query), ready: Ready::Closes }),
            "binary-v2" => {
                Ok(Target::Driver { program: path, args: driver_args(query), ready: Ready::Writes })
            }
            _ => JsonFile::parse(text, path, query).map(Target::JsonFile),
        }
    }
}

impl JsonFile {
    fn parse(text: &str, path: PathBuf, query: &str) -> Result<JsonFile> {
        let mut log = JsonFile { path, size_max: None, files_max: 1, attach: None };
        for (key, value) in pairs(query) {
            let bad =
                || Error::invalid_argument(format!("log URI {text:?}: {key}={value:?} is not understood"));
            match key.as_str() {
                "max-size" => {
                    // As Docker reads it: `10m` is ten million bytes.
                    let size = stdx::decimal_bytes(&value).ok_or_else(bad)?;
                    log.size_max = (size > 0).then_some(size);
                }
                "max-file" => {
                    log.files_max = value.parse().ok().filter(|files| *files > 0).ok_or_else(bad)?;
                }
                "attach" => log.attach = Some(absolute(text, &value)?),
                _ => return Err(bad()),
            }
        }
        Ok(log)
    }
}

/// Keys and values of the query become the driver's arguments, in order; a key may have no value.
fn driver_args(query: &str) -> Vec<String> {
    pairs(query)
        .flat_map(|(key, value)| if value.is_empty() { vec![key] } else { vec![key, value] })
        .collect()
}

fn pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (percent_decoded(&key.replace('+', " ")), percent_decoded(&value.replace('+', " ")))
    })
}

fn absolute(text: &str, path: &str) -> Result<PathBuf> {
    if path.starts_with('/') && !path.contains('\0') {
        Ok(PathBuf::from(path))
    } else {
        Err(Error::invalid_argument(format!("stdio {text:?}: expected an absolute path")))
    }
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = (*first == b'%')
            .then(|| tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok()))
            .flatten()
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(hex.unwrap_or(*first));
        rest = if hex.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use types::ErrorKind;

    use super::*;

    #[test]
    fn the_uris_of_the_field_are_read() {
        let path = |text: &str| PathBuf::from(text);
        let driver = |ready| Target::Driver {
            program: path("/bin/logger"),
            args: vec!["--tag".into(), "a b".into(), "-v".into()],
            ready,
        };
        let json = JsonFile {
            path: path("/var/log/x.json"),
            size_max: Some(10_000_000),
            files_max: 3,
            attach: Some(path("/run/f 1")),
        };
        let plain = JsonFile { path: path("/l"), size_max: None, files_max: 1, attach: None };
        for (text, expected) in [
            ("", Target::Null),
            ("/run/fifo", Target::Path(path("/run/fifo"))),
            ("fifo:///run/fifo", Target::Path(path("/run/fifo"))),
            ("fifo:///run/fifo?once", Target::Once(path("/run/fifo"))),
            ("file:///tmp/a%20b", Target::File(path("/tmp/a b"))),
            ("binary:///bin/logger?--tag=a%20b&-v", driver(Ready::Closes)),
            ("binary-v2:///bin/logger?--tag=a%20b&-v", driver(Ready::Writes)),
            ("json-file:///var/log/x.json?max-size=10m&max-file=3&attach=/run/f+1", Target::JsonFile(json)),
            ("json-file:///l?max-size=0", Target::JsonFile(plain)),
        ] {
            assert_eq!(Target::parse(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn unknown_stream_uris_are_refused_by_name() {
        let kind = |text: &str| Target::parse(text).unwrap_err().kind();
        assert_eq!(kind("npipe:///x"), ErrorKind::Unimplemented);
        assert_eq!(kind("npipe://./pipe/x"), ErrorKind::Unimplemented);
        assert_eq!(kind("relative/path"), ErrorKind::InvalidArgument);
        assert_eq!(kind("file://relative"), ErrorKind::InvalidArgument);
        assert_eq!(kind("json-file:///l?max-file=0"), ErrorKind::InvalidArgument);
        assert_eq!(kind("json-file:///l?max-size=big"), ErrorKind::InvalidArgument);
        assert_eq!(kind("json-file:///l?colour=red"), ErrorKind::InvalidArgument);
    }
}
