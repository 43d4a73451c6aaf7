//! Keys whose value is one of a fixed set of words, as enums.

use std::str::FromStr;

use types::{Error, Result};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $what:literal, { $($variant:ident => $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub enum $name {
            $($variant),+
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<$name> {
                match text {
                    $($word => Ok($name::$variant),)+
                    _ => Err(Error::invalid_argument(format!(
                        concat!("invalid ", $what, " {:?}: expected one of {}"),
                        text,
                        [$($word),+].join(", ")
                    ))),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<$name> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                match value { $($name::$variant => $word),+ }.to_owned()
            }
        }
    };
}

words!(
    /// The log level.
    Level, "log level", {
        Trace => "trace", Debug => "debug", Info => "info", Warn => "warn", Error => "error",
    }
);
words!(
    /// How layers are stored.
    Layers, "form of layers", { Auto => "auto", Archives => "archives", Directories => "directories" }
);
words!(
    /// When archives are read without the page cache.
    DirectReads, "direct_reads", { Auto => "auto", Always => "always", Never => "never" }
);
words!(
    /// What happens to the blobs of layers after unpacking.
    Unpacked, "retention of unpacked layers", { Keep => "keep", Drop => "drop", Recipe => "recipe" }
);
words!(
    /// Whether a namespace gets another one's blob by naming its digest.
    Sharing, "sharing of content", { Shared => "shared", Isolated => "isolated" }
);
words!(
    /// The type of a proxy plugin.
    ProxyKind, "type of proxy plugin", {
        Snapshot => "snapshot", Content => "content", Diff => "diff", Sandbox => "sandbox",
    }
);
words!(
    /// The format of log lines.
    LogFormat, "log format", { Text => "text", Json => "json" }
);

impl Level {
    /// Parses a level in the syntax of logrus's `ParseLevel`, which containerd accepts: case-insensitive, `warning` for
    /// `warn`, and two levels above error, which map to error.
    pub(crate) fn of_logrus(text: &str) -> Result<Level> {
        match text.to_lowercase().as_str() {
            "panic" | "fatal" => Ok(Level::Error),
            "warning" => Ok(Level::Warn),
            word => word.parse(),
        }
    }
}

impl From<Unpacked> for transfer::Retention {
    fn from(unpacked: Unpacked) -> transfer::Retention {
        match unpacked {
            Unpacked::Keep => transfer::Retention::Keep,
            Unpacked::Drop => transfer::Retention::Drop,
            Unpacked::Recipe => transfer::Retention::Recipe,
        }
    }
}
