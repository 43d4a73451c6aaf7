//! `hosts.toml`: containerd's file for the mirrors of a registry.
//!
//! ```toml
//! server = "https://registry.example"        # asked last; default: the registry of the reference
//!
//! [host."https://mirror.example:5000"]       # asked in the order in which they are written
//! capabilities = ["pull", "resolve"]         # pull, resolve, push, referrers; default: all
//! ca = "mirror.crt"                          # or a list; paths are relative to the file's directory
//! client = [["client.cert", "client.key"]]   # or files that hold both, one or a list
//! skip_verify = false
//! override_path = false                      # true: the URL has the whole path, no /v2 is added
//! dial_timeout = "5s"                        # default; 30s for the registry itself
//! [host."https://mirror.example:5000".header]
//! x-key = "value"                            # or a list
//! ```
//!
//! The keys of a host may also be at the top level, for the server. An unknown key is an error: a typing error in a
//! mirror must not mean that the public registry is asked.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Uri};
use stdx::{duration, nearest};
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use types::{Error, Result};

use crate::host::{Capability, Scheme};

/// The parsed file. Other files that it references are not checked yet.
#[derive(Debug, Default)]
pub(crate) struct HostsToml {
    /// Without an address if the file names no server.
    pub(crate) server: Entry,
    pub(crate) mirrors: Vec<Entry>,
}

/// The keys of one host.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    pub(crate) address: Option<Address>,
    pub(crate) capabilities: Vec<Capability>,
    pub(crate) ca: Vec<PathBuf>,
    /// Certificate and key files; `None` if one file has both.
    pub(crate) client: Vec<(PathBuf, Option<PathBuf>)>,
    pub(crate) skip_verify: Option<bool>,
    pub(crate) headers: HeaderMap,
    pub(crate) override_path: bool,
    pub(crate) dial_timeout: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) scheme: Scheme,
    pub(crate) authority: String,
    /// Without a trailing slash.
    pub(crate) path: String,
}

const ENTRY_KEYS: [&str; 7] =
    ["capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout"];

impl HostsToml {
    /// `file` is the text's path: for messages, and as the base of relative paths.
    pub(crate) fn parse(text: &str, file: &Path) -> Result<HostsToml> {
        let reader = Reader { text, file };
        let root = DeTable::parse(text)
            .map_err(|error| reader.error(error.span().unwrap_or(0..0), error.message()))?;
        let mut server = Entry::default();
        let mut mirrors = Vec::new();
        for (key, value) in root.get_ref() {
            match &**key.get_ref() {
                "server" => server.address = Some(reader.address(reader.string(value)?, value.span())?),
                "host" => {
                    for (name, value) in reader.table(value)? {
                        let mut entry = Entry {
                            address: Some(reader.address(name.get_ref(), name.span())?),
                            ..Entry::default()
                        };
                        for (key, value) in reader.table(value)? {
                            reader.entry(&mut entry, key, value, &[])?;
                        }
                        mirrors.push((name.span().start, entry));
                    }
                }
                _ => reader.entry(&mut server, key, value, &["server", "host"])?,
            }
        }
        // The parser sorts tables by name, but the order of the file counts.
        mirrors.sort_by_key(|(at, _)| *at);
        Ok(HostsToml { server, mirrors: mirrors.into_iter().map(|(_, entry)| entry).collect() })
    }
}

struct Reader<'a> {
    text: &'a str,
    file: &'a Path,
}

type Key<'t> = Spanned<std::borrow::Cow<'t, str>>;
type Value<'t> = Spanned<DeValue<'t>>;

impl Reader<'_> {
    fn entry(&self, entry: &mut Entry, key: &Key<'_>, value: &Value<'_>, further: &[&str]) -> Result<()> {
        match &**key.get_ref() {
            "capabilities" => entry.capabilities = self.capabilities(value)?,
            "ca" => entry.ca = self.strings(value)?.into_iter().map(|path| self.path(path)).collect(),
            "client" => entry.client = self.client(value)?,
            "skip_verify" => entry.skip_verify = Some(self.boolean(value)?),
            "override_path" => entry.override_path = self.boolean(value)?,
            "dial_timeout" => {
                let text = self.string(value)?;
                let timeout = duration(text).filter(|timeout| !timeout.is_zero());
                let no_duration = || {
                    self.error(value.span(), format!("{text:?} is no duration such as 500ms, 30s or 1m30s"))
                };
                entry.dial_timeout = Some(timeout.ok_or_else(no_duration)?);
            }
            "header" => entry.headers = self.headers(value)?,
            unknown => {
                let known = ENTRY_KEYS.iter().chain(further).copied();
                return Err(self.unknown(key.span(), "key", unknown, known));
            }
        }
        Ok(())
    }

    fn capabilities(&self, value: &Value<'_>) -> Result<Vec<Capability>> {
        let DeValue::Array(items) = value.get_ref() else {
            return Err(self.error(value.span(), "expected a list of strings"));
        };
        let capability = |item: &Value<'_>| {
            let word = self.string(item)?;
            let found = Capability::ALL.into_iter().find(|capability| capability.as_str() == word);
            let known = Capability::ALL.iter().map(|capability| capability.as_str());
            found.ok_or_else(|| self.unknown(item.span(), "capability", word, known))
        };
        items.iter().map(capability).collect()
    }

    /// `"both.pem"`, `["both.pem", …]`, `[["a.cert", "a.key"], …]`.
    fn client(&self, value: &Value<'_>) -> Result<Vec<(PathBuf, Option<PathBuf>)>> {
        let DeValue::Array(items) = value.get_ref() else {
            return Ok(vec![(self.path(self.string(value)?), None)]);
        };
        let pair = |item: &Value<'_>| {
            let paths = self.strings(item)?;
            match paths.as_slice() {
                [both] => Ok((self.path(both), None)),
                [certificate, key] => Ok((self.path(certificate), Some(self.path(key)))),
                _ => Err(self.error(item.span(), "expected a certificate and a key, or one file with both")),
            }
        };
        items.iter().map(pair).collect()
    }

    fn headers(&self, value: &Value<'_>) -> Result<HeaderMap> {
        let mut headers = HeaderMap::new();
        for (key, value) in self.table(value)? {
            let name = HeaderName::from_bytes(key.get_ref().as_bytes())
                .map_err(|_| self.error(key.span(), format!("{:?} is no name of a header", key.get_ref())))?;
            for text in self.strings(value)? {
                let mut text = HeaderValue::from_str(text)
                    .map_err(|_| self.error(value.span(), "a header's value has no control characters"))?;
                // It may be a secret.
                text.set_sensitive(true);
                headers.append(name.clone(), text);
            }
        }
        Ok(headers)
    }

    fn address(&self, text: &str, span: Range<usize>) -> Result<Address> {
        let bad = |why: &str| self.error(span.clone(), format!("{text:?} is no address of a host: {why}"));
        let full = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        let uri: Uri = full.parse().map_err(|error: http::uri::InvalidUri| bad(&error.to_string()))?;
        let scheme = match uri.scheme_str() {
            Some("https") => Scheme::Https,
            Some("http") => Scheme::Http,
            _ => return Err(bad("neither http nor https")),
        };
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        if authority.is_empty() || authority.contains('@') || uri.query().is_some() {
            return Err(bad("expected scheme, name, and port or path if there is one, and nothing else"));
        }
        let path = uri.path().trim_end_matches('/').to_owned();
        Ok(Address { scheme, authority: authority.to_ascii_lowercase(), path })
    }

    fn table<'v, 't>(&self, value: &'v Value<'t>) -> Result<&'v DeTable<'t>> {
        match value.get_ref() {
            DeValue::Table(table) => Ok(table),
            _ => Err(self.error(value.span(), "expected a table")),
        }
    }

    fn string<'v>(&self, value: &'v Value<'_>) -> Result<&'v str> {
        match value.get_ref() {
            DeValue::String(text) => Ok(text),
            _ => Err(self.error(value.span(), "expected a string")),
        }
    }

    /// A string, or a list of strings.
    fn strings<'v>(&self, value: &'v Value<'_>) -> Result<Vec<&'v str>> {
        match value.get_ref() {
            DeValue::Array(items) => items.iter().map(|item| self.string(item)).collect(),
            _ => Ok(vec![self.string(value)?]),
        }
    }

    fn boolean(&self, value: &Value<'_>) -> Result<bool> {
        match value.get_ref() {
            DeValue::Boolean(truth) => Ok(*truth),
            _ => Err(self.error(value.span(), "expected true or false")),
        }
    }

    /// Relative to the directory of the file.
    fn path(&self, path: &str) -> PathBuf {
        self.file.parent().unwrap_or(Path::new("/")).join(path)
    }

    fn unknown<'k>(
        &self,
        span: Range<usize>,
        what: &str,
        word: &str,
        known: impl Iterator<Item = &'k str>,
    ) -> Error {
        let known: Vec<&str> = known.collect();
        let hint = match nearest(word, known.iter().copied()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("known are {}", known.join(", ")),
        };
        self.error(span, format!("unknown {what} `{word}`; {hint}"))
    }

    fn error(&self, span: Range<usize>, message: impl AsRef<str>) -> Error {
        let before = self.text.as_bytes().get(..span.start).unwrap_or_default();
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        Error::invalid_argument(format!("{}:{line}: {}", self.file.display(), message.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<HostsToml> {
        HostsToml::parse(text, Path::new("/certs/x/hosts.toml"))
    }

    const EVERY_KEY: &str = r#"
        server = "https://registry.example/"
        ca = ["/etc/a.pem", "b.pem"]

        [host."https://z.example:5000"]
        capabilities = ["pull", "resolve"]
        ca = "z.crt"
        client = [["z.cert", "z.key"], ["both.pem"]]
        dial_timeout = "1m1.5s"

        [host."http://a.example/some/path"]
        capabilities = ["push", "referrers"]
        client = "a.pem"
        skip_verify = true
        override_path = true
        [host."http://a.example/some/path".header]
        x-one = "1"
        x-two = ["2", "3"]

        [host."m.example"]
        client = ["c.pem", "d.pem"]
    "#;

    #[test]
    fn every_key_is_read_and_hosts_keep_their_order() {
        let file = parse(EVERY_KEY).unwrap();
        let addresses: Vec<_> = file.mirrors.iter().map(|entry| entry.address.clone().unwrap()).collect();
        let address = |scheme, authority: &str, path: &str| Address {
            scheme,
            authority: authority.into(),
            path: path.into(),
        };
        assert_eq!(
            addresses,
            [
                address(Scheme::Https, "z.example:5000", ""),
                address(Scheme::Http, "a.example", "/some/path"),
                address(Scheme::Https, "m.example", ""),
            ]
        );
        assert_eq!(file.server.address, Some(address(Scheme::Https, "registry.example", "")));
        assert_eq!(file.server.ca, [Path::new("/etc/a.pem"), Path::new("/certs/x/b.pem")]);
        let [z, a, m] = file.mirrors.as_slice() else { panic!("three mirrors") };
        assert_eq!(z.capabilities, [Capability::Pull, Capability::Resolve]);
        assert_eq!(z.ca, [Path::new("/certs/x/z.crt")]);
        assert_eq!(
            z.client,
            [("/certs/x/z.cert".into(), Some("/certs/x/z.key".into())), ("/certs/x/both.pem".into(), None)]
        );
        assert_eq!(z.dial_timeout, Some(Duration::from_millis(61_500)));
        assert_eq!(a.capabilities, [Capability::Push, Capability::Referrers]);
        assert_eq!((a.skip_verify, a.override_path), (Some(true), true));
        assert_eq!(a.headers.get_all("x-two").iter().collect::<Vec<_>>(), ["2", "3"]);
        assert_eq!(m.client, [("/certs/x/c.pem".into(), None), ("/certs/x/d.pem".into(), None)]);
        assert!(parse("").unwrap().mirrors.is_empty());
    }

    #[test]
    fn errors_name_file_and_line() {
        for (text, words) in [
            ("\nsever = \"x\"", &["hosts.toml:2:", "unknown key `sever`", "did you mean `server`"][..]),
            ("[host.\"https://a\"]\ncapabilites = []", &["hosts.toml:2:", "did you mean `capabilities`"]),
            ("[host.\"https://a\"]\nserver = \"x\"", &["hosts.toml:2:", "unknown key `server`"]),
            ("[host.\"https://a\"]\n\ncapabilities = [\"pul\"]", &["hosts.toml:3:", "did you mean `pull`"]),
            ("capabilities = [\"destroy\"]", &["hosts.toml:1:", "known are pull, resolve, push, referrers"]),
            ("server = 5", &["hosts.toml:1:", "expected a string"]),
            ("server = \"ftp://a\"", &["hosts.toml:1:", "neither http nor https"]),
            ("server = \"https://user:secret@a\"", &["hosts.toml:1:", "nothing else"]),
            ("server = \"https://a?b=c\"", &["hosts.toml:1:", "nothing else"]),
            ("[host.\"https://a b\"]", &["hosts.toml:1:", "no address"]),
            ("host = \"https://a\"", &["hosts.toml:1:", "expected a table"]),
            ("skip_verify = \"yes\"", &["expected true or false"]),
            ("dial_timeout = \"soon\"", &["hosts.toml:1:", "no duration"]),
            ("dial_timeout = \"0s\"", &["no duration"]),
            ("dial_timeout = \"\"", &["no duration"]),
            ("client = [[\"a\", \"b\", \"c\"]]", &["a certificate and a key"]),
            ("[header]\n\"a b\" = \"c\"", &["hosts.toml:2:", "no name of a header"]),
            ("[header]\na = \"b\\nc\"", &["hosts.toml:2:", "control characters"]),
            ("ca = \"a\"\nca = \"b\"", &["hosts.toml:2:"]),
            ("server = \"unfinished", &["hosts.toml:1:"]),
        ] {
            let error = parse(text).unwrap_err().chain();
            for word in words {
                assert!(error.contains(word), "{text:?}: {error:?} has no {word:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parser(text in ".{0,200}") {
            drop(parse(&text));
        }

        /// A valid file with any edit is parsed or refused without a panic.
        #[test]
        fn no_edit_breaks_the_parser(at in 0..EVERY_KEY.len(), len in 0..40_usize, put in "[\\[\\]=\"'a-z.\n]{0,8}") {
            let end = (at + len).min(EVERY_KEY.len());
            drop(parse(&format!("{}{put}{}", &EVERY_KEY[..at], &EVERY_KEY[end..])));
        }
    }
}
