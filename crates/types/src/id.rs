//! Identifiers of records. Each kind is a type of its own that checks its text when it is made. So an identifier is
//! always valid, and safe as a path component.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// containerd's limit for identifiers (`pkg/identifiers`).
pub const IDENTIFIER_LEN_MAX: usize = 76;

/// The longest lease id or ingest reference, in bytes: the longest key of containerd's database.
pub const FREE_TEXT_LEN_MAX: usize = 32_768;

/// Checks containerd's rule for identifiers, which also forbids consecutive separators. The error has containerd's
/// text, which clients look for.
pub fn check(text: &str) -> Result<()> {
    let bad = |why: String| Err(Error::invalid_argument(format!("identifier {why}")));
    if text.is_empty() {
        return bad("must not be empty".to_owned());
    }
    if text.len() > IDENTIFIER_LEN_MAX {
        return bad(format!("{text:?} greater than maximum length ({IDENTIFIER_LEN_MAX} characters)"));
    }
    let is_part = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if text.split(['.', '_', '-']).all(is_part) {
        return Ok(());
    }
    bad(format!("{text:?} must match ^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$"))
}

/// As [`check`]; the error also says what kind of identifier it is.
pub fn check_identifier(what: &str, text: &str) -> Result<()> {
    check(text).map_err(|error| Error::invalid_argument(format!("invalid {what} {text}: {error}")))
}

/// Whether a text is a UUID, in hexadecimal digits of either case and with its dashes: `8-4-4-4-12`.
pub fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            pub fn new(text: impl AsRef<str>) -> Result<$name> {
                let text = text.as_ref();
                let check: fn(&str, &str) -> Result<()> = $check;
                check($what, text)?;
                Ok($name(text.into()))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<$name> {
                $name::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<$name> {
                $name::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.into()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

id_type!(
    /// A namespace, which isolates tenants: records of one are invisible in another.
    Namespace, "namespace", check_identifier
);
id_type!(
    /// A container record, and its task.
    ContainerId, "container id", check_identifier
);
id_type!(
    /// An additional process in a running container.
    ExecId, "exec id", check_identifier
);
id_type!(
    /// A sandbox: the unit that has one shim.
    SandboxId, "sandbox id", check_identifier
);
id_type!(
    /// A lease. containerd lets clients choose any text, so only its length is checked: not empty, not too long.
    LeaseId, "lease id", check_free_text
);
id_type!(
    /// A client's name for a blob that is being written. Any text; never used as a path.
    IngestRef, "ingest reference", check_free_text
);

fn check_free_text(what: &str, text: &str) -> Result<()> {
    if text.is_empty() {
        return Err(Error::invalid_argument(format!("invalid {what}: must not be empty")));
    }
    if text.len() > FREE_TEXT_LEN_MAX {
        let message = format!("invalid {what}: longer than {FREE_TEXT_LEN_MAX} bytes");
        return Err(Error::invalid_argument(message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_follow_containerds_rule() {
        for good in ["a", "redis", "k8s.io", "a-b_c.d", "0", &"x".repeat(76)] {
            assert!(Namespace::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "-a", "a-", "a..b", "a b", "ä", "a\0", &"x".repeat(77)] {
            assert!(ContainerId::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_uuid_has_its_dashes_where_they_belong() {
        let good = "00112233-4455-6677-8899-aabbccddeeff";
        assert!(is_uuid(good) && is_uuid(&good.to_ascii_uppercase()));
        let (dashes, digits) = ("-".repeat(36), "a".repeat(36));
        let moved = "0011223-34455-6677-8899-aabbccddeeff";
        for bad in ["", &good[1..], &format!("{good}0"), &good.replace('f', "g"), moved, &dashes, &digits] {
            assert!(!is_uuid(bad), "{bad}");
        }
    }
}
