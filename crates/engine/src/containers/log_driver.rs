//! Log drivers with Docker's names and options, as far as they are supported.

use api::engine::Log;
use types::{Error, Result};

/// The driver that stores nothing: only attached clients see the output.
pub(crate) const NO_LOG: &str = "none";
/// Docker's drivers `json-file` and `local` are the same here: JSON lines in rotated files. They differ in their
/// default limits.
pub(super) const JSON_FILE: &str = "json-file";
const LOCAL: &str = "local";
pub(crate) const LOG_DRIVERS: [&str; 3] = [JSON_FILE, LOCAL, NO_LOG];

const SIZE: &str = "max-size";
const FILES: &str = "max-file";

/// Largest size of a log file, in bytes, and the number of files, including the current one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) size: u64,
    pub(super) files: u32,
}

/// The log driver; Docker's default if none is given.
pub(super) fn driver(log: &Log) -> &str {
    if log.driver.is_empty() { JSON_FILE } else { &log.driver }
}

/// The limits of a log; `None` if it is not stored. `InvalidArgument` for an unsupported driver, option or value.
pub(super) fn limits(log: &Log) -> Result<Option<Limits>> {
    let driver = driver(log);
    let default = match driver {
        // Docker's default is one file without a limit, but no log may fill the disk.
        JSON_FILE if !log.options.contains_key(SIZE) => Limits { size: 100_000_000, files: 2 },
        JSON_FILE => Limits { size: 100_000_000, files: 1 },
        LOCAL => Limits { size: 20_000_000, files: 5 },
        NO_LOG if log.options.is_empty() => return Ok(None),
        NO_LOG => {
            return Err(Error::invalid_argument(format!(
                "--log-opt: invalid logging opts for driver {NO_LOG}"
            )));
        }
        other => {
            return Err(Error::invalid_argument(format!(
                "--log-driver {other:?}: there are {JSON_FILE}, {LOCAL} and {NO_LOG}; who sends logs elsewhere reads \
                 `hoist logs --follow`, or the file that `hoist inspect` names as LogPath"
            )));
        }
    };
    let mut limits = default;
    for (key, value) in &log.options {
        let bad = |why: &str| Error::invalid_argument(format!("--log-opt {key}={value}: {why}"));
        match key.as_str() {
            SIZE => {
                // Decimal, as in Docker: `10m` is ten million bytes, `1.5k` is 1500.
                let bytes = stdx::decimal_bytes(value).filter(|bytes| *bytes > 0);
                limits.size = bytes.ok_or_else(|| bad("it is a size such as 10m, and more than nothing"))?;
            }
            FILES => {
                let files = value.parse().ok().filter(|files| *files > 0);
                limits.files = files.ok_or_else(|| bad("it is how many files are kept, and 1 at least"))?;
            }
            // Options that match what happens anyway.
            "mode" if value == "blocking" => {}
            "compress" if value == "false" => {}
            "mode" => return Err(bad("there is blocking, in which nothing is lost")),
            "compress" => return Err(bad("files that were rotated stay as they are")),
            _ => {
                return Err(Error::invalid_argument(format!(
                    "unknown log opt '{key}' for {driver} log driver: there are {SIZE} and {FILES}"
                )));
            }
        }
    }
    Ok(Some(limits))
}

#[cfg(test)]
mod tests {
    use types::ErrorKind;

    use super::*;

    fn found(driver: &str, options: &[(&str, &str)]) -> Result<Option<Limits>> {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        limits(&Log { driver: driver.into(), options })
    }

    #[test]
    fn log_options_are_dockers() {
        let check = |driver: &str, options: &[(&str, &str)], size, files| {
            assert_eq!(found(driver, options).unwrap(), Some(Limits { size, files }), "{driver} {options:?}");
        };
        check("", &[], 100_000_000, 2);
        check("json-file", &[("max-size", "10m")], 10_000_000, 1);
        check("json-file", &[("max-size", "1.5KB"), ("max-file", "3")], 1500, 3);
        check("", &[("max-file", "7"), ("mode", "blocking"), ("compress", "false")], 100_000_000, 7);
        check("local", &[], 20_000_000, 5);
        check("local", &[("max-size", "1g")], 1_000_000_000, 5);
        assert_eq!(found("none", &[]).unwrap(), None);
    }

    #[test]
    fn unsupported_log_drivers_and_options_are_refused_by_name() {
        for (driver, options, words) in [
            ("syslog", &[][..], "json-file, local and none"),
            ("none", &[("max-size", "1m")], "driver none"),
            (
                "",
                &[("labels", "a")],
                "unknown log opt 'labels' for json-file log driver: there are max-size and max-file",
            ),
            ("local", &[("max-size", "0")], "max-size=0"),
            ("", &[("max-size", "ten")], "max-size=ten"),
            ("", &[("max-file", "0")], "max-file=0"),
            ("", &[("mode", "non-blocking")], "there is blocking"),
            ("", &[("compress", "true")], "stay as they are"),
        ] {
            let refused = found(driver, options).unwrap_err();
            assert!(refused.is(ErrorKind::InvalidArgument) && refused.message().contains(words), "{refused}");
        }
    }
}
