//! Bearer tokens: their scopes, requests for them, and a cache.
//!
//! ```text
//! GET  realm?service=S&scope=…&scope=…     anonymous, or with Basic authorization
//! POST realm  grant_type=refresh_token     with an identity token
//!             grant_type=password          if the server does not know GET
//! ◀── {"token" or "access_token", "expires_in", …}
//! ```
//!
//! A token is requested with all scopes of a request, and reused by every request of the same user that needs the
//! same scopes, until shortly before it expires.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::time::Duration;

use percent_encoding::utf8_percent_encode;
use stdx::Mutex;
use tokio::time::Instant;

use crate::credentials::Credentials;
use crate::percent::SCOPE;

/// Lifetime of a token without `expires_in` (the distribution project's token specification).
const LIFE_DEFAULT: Duration = Duration::from_secs(60);
/// Upper bound of a token's lifetime: a day is enough for any pull.
const LIFE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Margin for the duration of a request and for clock skew.
const MARGIN: Duration = Duration::from_secs(5);
const TOKENS_MAX: usize = 1024;
/// Bytes of a token and its key that are cached at most, as the registry controls both. Longer ones are used once.
const KEPT_LEN_MAX: usize = 16 << 10;

/// What a token allows: actions by resource, such as `repository:library/redis`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Scopes(BTreeMap<String, BTreeSet<String>>);

impl Scopes {
    pub(crate) fn add(&mut self, resource: impl Into<String>, actions: &str) {
        let actions = actions.split(',').map(str::trim).filter(|action| !action.is_empty());
        self.0.entry(resource.into()).or_default().extend(actions.map(str::to_owned));
    }

    /// Adds the scopes of a challenge: `repository:a:pull,push repository:b:pull`. A name may contain a colon.
    pub(crate) fn add_text(&mut self, text: &str) {
        for scope in text.split_ascii_whitespace() {
            if let Some((resource, actions)) = scope.rsplit_once(':') {
                self.add(resource, actions);
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(resource, actions)| {
            let actions: Vec<&str> = actions.iter().map(String::as_str).collect();
            format!("{resource}:{}", actions.join(","))
        })
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iter().collect::<Vec<_>>().join(" "))
    }
}

/// What determines a token: its server, its scopes, and the user.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TokenKey {
    pub(crate) realm: String,
    pub(crate) service: Option<String>,
    pub(crate) scopes: Scopes,
    pub(crate) credentials: Option<Credentials>,
}

impl TokenKey {
    /// Bytes of the parts that a registry controls.
    fn len(&self) -> usize {
        self.realm.len() + self.service.as_deref().map_or(0, str::len) + self.scopes.to_string().len()
    }

    /// The URL of a token request by GET.
    pub(crate) fn url(&self) -> String {
        let mut url = self.realm.clone();
        for (key, value) in self.parameters() {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(&format!("{key}={}", utf8_percent_encode(&value, SCOPE)));
        }
        url
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        let mut parameters = Vec::new();
        if let Some(service) = &self.service {
            parameters.push(("service", service.clone()));
        }
        parameters.extend(self.scopes.iter().map(|scope| ("scope", scope)));
        if let Some(Credentials::Password { user, .. }) = &self.credentials {
            parameters.push(("account", user.clone()));
        }
        parameters
    }

    /// The form of a token request by POST; `None` without credentials that can be posted.
    pub(crate) fn form(&self) -> Option<String> {
        let mut parameters = match self.credentials.as_ref()? {
            Credentials::Password { user, password } => vec![
                ("grant_type", "password".to_owned()),
                ("username", user.clone()),
                ("password", password.clone()),
            ],
            Credentials::IdentityToken(token) => {
                vec![("grant_type", "refresh_token".to_owned()), ("refresh_token", token.clone())]
            }
            Credentials::RegistryToken(_) => return None,
        };
        parameters.push(("client_id", "hoist".to_owned()));
        parameters.push(("service", self.service.clone().unwrap_or_default()));
        // A form has one parameter for all scopes.
        parameters.push(("scope", self.scopes.to_string()));
        let pairs: Vec<String> = parameters
            .iter()
            .map(|(key, value)| format!("{key}={}", utf8_percent_encode(value, SCOPE)))
            .collect();
        Some(pairs.join("&"))
    }
}

/// A token and its lifetime.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) value: String,
    pub(crate) life: Duration,
}

impl Token {
    /// Parses the response of a token server. `None` if it has no token, or one that is not a valid header value.
    pub(crate) fn parse(body: &[u8]) -> Option<Token> {
        let answer: serde_json::Value = serde_json::from_slice(body).ok()?;
        let named = |name: &str| answer[name].as_str().filter(|token| !token.is_empty());
        let value = named("token").or_else(|| named("access_token"))?;
        if !value.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        let seconds = answer["expires_in"].as_u64().filter(|seconds| *seconds > 0);
        let life = seconds.map_or(LIFE_DEFAULT, Duration::from_secs).min(LIFE_MAX);
        Some(Token { value: value.to_owned(), life })
    }
}

/// The cache of tokens. When it is full the least recently used one goes, so that no registry can crowd out the
/// tokens of others.
#[derive(Default)]
pub(crate) struct Tokens(Mutex<HashMap<TokenKey, CachedToken>>);

struct CachedToken {
    value: String,
    end: Instant,
    used: Instant,
}

impl Tokens {
    pub(crate) fn find(&self, key: &TokenKey) -> Option<String> {
        let now = Instant::now();
        let mut tokens = self.0.lock();
        let kept = tokens.get_mut(key).filter(|kept| kept.end > now)?;
        kept.used = now;
        Some(kept.value.clone())
    }

    pub(crate) fn keep(&self, key: TokenKey, token: &Token) {
        if key.len() + token.value.len() > KEPT_LEN_MAX {
            return;
        }
        let now = Instant::now();
        let mut tokens = self.0.lock();
        tokens.retain(|_, kept| kept.end > now);
        if tokens.len() >= TOKENS_MAX {
            let oldest = tokens.iter().min_by_key(|(_, kept)| kept.used).map(|(key, _)| key.clone());
            oldest.and_then(|key| tokens.remove(&key));
        }
        let life = token.life.saturating_sub(MARGIN).max(token.life / 2);
        tokens.insert(key, CachedToken { value: token.value.clone(), end: now + life, used: now });
    }

    /// Drops a token that was refused before its end.
    pub(crate) fn drop(&self, key: &TokenKey) {
        self.0.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(credentials: Option<Credentials>) -> TokenKey {
        let mut scopes = Scopes::default();
        scopes.add("repository:x/y", "pull");
        scopes.add_text("repository:x/y:push,pull repository:host:5000/z:pull nonsense");
        TokenKey { realm: "https://a/token?x=1".into(), service: Some("a b&c".into()), scopes, credentials }
    }

    #[test]
    fn scopes_are_joined_by_resource() {
        assert_eq!(key(None).scopes.to_string(), "repository:host:5000/z:pull repository:x/y:pull,push");
    }

    #[test]
    fn tokens_are_asked_for_by_address_or_by_form() {
        let scopes = "scope=repository:host:5000/z:pull&scope=repository:x/y:pull,push";
        assert_eq!(key(None).url(), format!("https://a/token?x=1&service=a%20b%26c&{scopes}"));
        assert_eq!(key(None).form(), None);
        let password = Credentials::Password { user: "u".into(), password: "p&q".into() };
        assert!(key(Some(password.clone())).url().ends_with("&account=u"));
        let one =
            "client_id=hoist&service=a%20b%26c&scope=repository:host:5000/z:pull%20repository:x/y:pull,push";
        let form = key(Some(password)).form().unwrap();
        assert_eq!(form, format!("grant_type=password&username=u&password=p%26q&{one}"));
        let form = key(Some(Credentials::IdentityToken("i+d".into()))).form().unwrap();
        assert_eq!(form, format!("grant_type=refresh_token&refresh_token=i%2Bd&{one}"));
        assert_eq!(key(Some(Credentials::RegistryToken("t".into()))).form(), None);
    }

    #[test]
    fn answers_are_read() {
        let check = |body: &str, expected: Option<(&str, u64)>| {
            let found = Token::parse(body.as_bytes()).map(|token| (token.value, token.life.as_secs()));
            assert_eq!(found, expected.map(|(token, life)| (token.to_owned(), life)), "{body}");
        };
        check(r#"{"token":"a"}"#, Some(("a", 60)));
        check(r#"{"access_token":"a","expires_in":300}"#, Some(("a", 300)));
        check(r#"{"token":"","access_token":"b","expires_in":0}"#, Some(("b", 60)));
        check(r#"{"token":"a","expires_in":99999999999}"#, Some(("a", 24 * 3600)));
        check(r#"{"token":"a","expires_in":"soon"}"#, Some(("a", 60)));
        for none in [r#"{"token":5}"#, "{}", "", "[]", "{\"token\":\"a\\nb\"}", "<html>"] {
            check(none, None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_used_until_shortly_before_it_expires() {
        let tokens = Tokens::default();
        let token = Token { value: "t".into(), life: Duration::from_secs(60) };
        tokens.keep(key(None), &token);
        assert_eq!(tokens.find(&key(None)).as_deref(), Some("t"));
        let other = Some(Credentials::IdentityToken("x".into()));
        assert_eq!(tokens.find(&key(other)), None, "a token is one person's");
        tokio::time::advance(Duration::from_secs(56)).await;
        assert_eq!(tokens.find(&key(None)), None);
        tokens.keep(key(None), &token);
        tokens.drop(&key(None));
        assert_eq!(tokens.find(&key(None)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn no_registry_crowds_out_the_tokens_of_others() {
        let tokens = Tokens::default();
        let long = Token { value: "t".into(), life: LIFE_MAX };
        let of = |realm: usize| TokenKey { realm: realm.to_string(), ..key(None) };
        for realm in 0..2 * TOKENS_MAX {
            tokens.keep(of(realm), &long);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        tokens.keep(key(None), &long);
        for realm in 0..2 * TOKENS_MAX {
            tokio::time::advance(Duration::from_millis(1)).await;
            assert!(tokens.find(&key(None)).is_some(), "a token that is in use is kept");
            tokens.keep(of(realm), &long);
        }
        assert_eq!(tokens.0.lock().len(), TOKENS_MAX);
        let large = Token { value: "t".repeat(KEPT_LEN_MAX), life: LIFE_MAX };
        tokens.keep(of(usize::MAX), &large);
        assert_eq!(tokens.find(&of(usize::MAX)), None);
    }
}
