//! Who we are to a registry: challenges (RFC 9110 section 11.6.1), tokens, and the credentials that people
//! keep in `~/.docker/config.json`.

use std::fs;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use types::{Context, Error, Result};

/// A user's name and password, or a token in the password's place.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub user: String,
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({})", self.user)
    }
}

impl Credentials {
    pub(crate) fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.user, self.password)))
    }

    /// What a Docker config file has for a host. None if it has nothing, or there is no file.
    pub fn from_docker_config(path: &Path, host: &str) -> Result<Option<Credentials>> {
        let what = || format!("read {}", path.display());
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context(what),
        };
        let config: serde_json::Value = serde_json::from_str(&text)
            .map_err(|error| Error::invalid_argument(what()).with_source(error))?;
        let keys = match host {
            "docker.io" => vec!["https://index.docker.io/v1/", "docker.io", "index.docker.io"],
            _ => vec![host],
        };
        let entry = keys.iter().find_map(|key| config["auths"].get(key));
        let Some(encoded) = entry.and_then(|entry| entry["auth"].as_str()) else { return Ok(None) };
        let plain = STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = plain.as_deref().and_then(|plain| plain.split_once(':'));
        let (user, password) = pair.ok_or_else(|| {
            Error::invalid_argument(format!("{}: auths.{host}.auth is not base64 of user:password", what()))
        })?;
        Ok(Some(Credentials { user: user.to_owned(), password: password.trim_end_matches('\0').to_owned() }))
    }
}

/// What a `WWW-Authenticate` header asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// The first challenge that we can answer; Bearer before Basic.
    pub(crate) fn parse(headers: &[&str]) -> Option<Challenge> {
        let challenges: Vec<Challenge> = headers.iter().filter_map(|header| parse_one(header)).collect();
        let bearer = challenges.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        bearer.or(challenges.first()).cloned()
    }
}

fn parse_one(header: &str) -> Option<Challenge> {
    let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service, mut scope) = (None, None, None);
    let mut rest = rest;
    while let Some((key, after)) = rest.split_once('=') {
        let (value, next) = value(after)?;
        match key.trim_matches([' ', ',']).to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value),
            "service" => service = Some(value),
            "scope" => scope = Some(value),
            _ => {}
        }
        rest = next;
    }
    Some(Challenge::Bearer { realm: realm?, service, scope })
}

/// A token or a quoted string, and what follows it.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(',').unwrap_or(text.len());
        return Some((text[..end].trim().to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

/// The address to ask for a token.
pub(crate) fn token_url(realm: &str, service: Option<&str>, scopes: &[String]) -> String {
    let mut url = realm.to_owned();
    let mut add = |key: &str, value: &str| {
        url.push(if url.contains('?') { '&' } else { '?' });
        url.push_str(&format!("{key}={}", percent_encode(value)));
    };
    if let Some(service) = service {
        add("service", service);
    }
    for scope in scopes {
        add("scope", scope);
    }
    url
}

fn percent_encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:,".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// The token in an answer, under either of its names.
pub(crate) fn token_of(body: &[u8]) -> Option<String> {
    let answer: serde_json::Value = serde_json::from_slice(body).ok()?;
    let token = answer["token"].as_str().or_else(|| answer["access_token"].as_str())?;
    (!token.is_empty()).then(|| token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let bearer = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/redis:pull,push""#;
        let expected = Challenge::Bearer {
            realm: "https://auth.docker.io/token".into(),
            service: Some("registry.docker.io".into()),
            scope: Some("repository:library/redis:pull,push".into()),
        };
        assert_eq!(Challenge::parse(&[bearer]), Some(expected.clone()));
        assert_eq!(Challenge::parse(&["Basic realm=\"x\"", bearer]), Some(expected));
        assert_eq!(Challenge::parse(&["basic"]), Some(Challenge::Basic));
        assert_eq!(Challenge::parse(&["Negotiate"]), None);
        let quoted = Challenge::parse(&[r#"bearer realm="a\"b", error=none"#]);
        assert_eq!(quoted, Some(Challenge::Bearer { realm: "a\"b".into(), service: None, scope: None }));
        for hostile in ["Bearer", "Bearer realm", "Bearer realm=\"", "Bearer =,=,=", "Bearer scope=\"x\""] {
            assert_eq!(Challenge::parse(&[hostile]), None, "{hostile}");
        }
    }

    #[test]
    fn token_addresses_are_encoded() {
        let url = token_url("https://a/token?x=1", Some("a b&c"), &["repository:x/y:pull".to_owned()]);
        assert_eq!(url, "https://a/token?x=1&service=a%20b%26c&scope=repository:x/y:pull");
    }
}
