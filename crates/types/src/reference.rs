//! Names of images: the short form that users type, and the full name that it stands for.
//!
//! ```text
//! redis                         docker.io/library/redis:latest
//! user/app:1                    docker.io/user/app:1
//! localhost:5000/app@sha256:…   localhost:5000/app@sha256:…
//! ```
//!
//! The grammar is that of the distribution project (`reference` package): the first part is a host if it has
//! a dot or a colon, or is `localhost`.

use std::fmt;
use std::str::FromStr;

use crate::{Digest, Error, Result};

/// A full image name: host, repository, and a tag or a digest or both.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository without the host: `library/redis`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Host and repository, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// The tag or digest to ask a registry for. The digest comes first, as it always means the same content.
    pub fn object(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".into(),
        }
    }

    /// The short form: without `docker.io/` and `library/`, which are the defaults.
    pub fn familiar_name(&self) -> String {
        let name = self.name();
        let short = name.strip_prefix("docker.io/").unwrap_or(&name);
        short.strip_prefix("library/").filter(|_| self.host == "docker.io").unwrap_or(short).to_owned()
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Reference> {
        let bad = |why: &str| Error::invalid_argument(format!("invalid image reference {text:?}: {why}"));
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                (rest, Some(digest.parse::<Digest>().map_err(|error| bad(error.message()))?))
            }
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag {
            let first = tag.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            let others = tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
            if !first || !others || tag.len() > 128 {
                return Err(bad(
                    "a tag has up to 128 letters, digits, '_', '.' and '-', and begins with a letter, digit or '_'",
                ));
            }
        }
        // Repository names have no uppercase letters, so a first part that has one is a host.
        let is_host = |part: &str| {
            let has_uppercase = part.chars().any(|letter| letter.is_ascii_uppercase());
            part.contains(['.', ':']) || part == "localhost" || has_uppercase
        };
        let (host, repository) = match name.split_once('/') {
            Some((first, rest)) if is_host(first) => (first, rest.to_owned()),
            _ if name.contains('/') => ("docker.io", name.to_owned()),
            _ => ("docker.io", format!("library/{name}")),
        };
        let host = if host == "index.docker.io" { "docker.io" } else { host };
        let repository = if host == "docker.io" && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository
        };
        check_host(host).map_err(bad)?;
        if repository.len() + host.len() > 255 {
            return Err(bad("the name is longer than 255 characters"));
        }
        if !repository.split('/').all(is_component) {
            return Err(bad(
                "a repository has lowercase letters and digits, with '.', '_' or '-' between them",
            ));
        }
        let tag = tag.map(str::to_owned).or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Reference { host: host.to_owned(), repository, tag, digest })
    }
}

fn check_host(host: &str) -> Result<(), &'static str> {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    };
    if port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return Err("the host's port is not a number");
    }
    let v6 = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let valid = match v6 {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => name.split('.').all(is_host_label),
    };
    if valid { Ok(()) } else { Err("the host is not a host name") }
}

/// `[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]`
fn is_host_label(label: &str) -> bool {
    let bytes = label.as_bytes();
    let ends = [bytes.first(), bytes.last()].iter().all(|end| end.is_some_and(u8::is_ascii_alphanumeric));
    ends && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(part: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends =
        bytes.first().copied().is_some_and(alphanumeric) && bytes.last().copied().is_some_and(alphanumeric);
    let known = bytes.iter().all(|byte| alphanumeric(*byte) || b"._-".contains(byte));
    let separators = part.split(|c: char| c.is_ascii_alphanumeric()).filter(|run| !run.is_empty());
    let single = |run: &str| matches!(run, "." | "_" | "__") || run.bytes().all(|byte| byte == b'-');
    ends && known && separators.into_iter().all(single)
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_references_are_completed() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, full) in [
            ("redis", "docker.io/library/redis:latest"),
            ("redis:7", "docker.io/library/redis:7"),
            ("user/app", "docker.io/user/app:latest"),
            ("docker.io/redis", "docker.io/library/redis:latest"),
            ("index.docker.io/a/b", "docker.io/a/b:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x:y", "localhost:5000/x:y"),
            ("127.0.0.1:1/a__b/c-d:T_1", "127.0.0.1:1/a__b/c-d:T_1"),
            ("MYHOST/app", "MYHOST/app:latest"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            (&format!("ghcr.io/x@{digest}"), &format!("ghcr.io/x@{digest}")),
            (&format!("x:1@{digest}"), &format!("docker.io/library/x:1@{digest}")),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), full, "{text}");
            assert_eq!(full.parse::<Reference>().unwrap().to_string(), full, "{full} stays");
        }
        assert_eq!("redis".parse::<Reference>().unwrap().familiar_name(), "redis");
        assert_eq!("ghcr.io/library/x".parse::<Reference>().unwrap().familiar_name(), "ghcr.io/library/x");
    }

    #[test]
    fn a_malformed_reference_is_refused_with_the_reason() {
        for text in [
            "",
            "UPPER",
            "user/UPPER",
            "UPPER_/case",
            "a//b",
            "-a",
            "a:",
            "a:b:c",
            "a@sha256:1",
            "host:x/y",
            "a/../b",
            "a b",
            "x:-1",
            "a.-b/c",
        ] {
            let error = text.parse::<Reference>().unwrap_err();
            assert!(error.to_string().contains("invalid image reference"), "{text}");
        }
    }
}
