//! Authentication challenges: the `WWW-Authenticate` header (RFC 9110 section 11.6.1, and the distribution project's
//! token protocol).

/// A challenge that this client supports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// The first supported challenge; Bearer before Basic. A header may hold several.
    pub(crate) fn parse(headers: &[&str]) -> Option<Challenge> {
        let mut basic = None;
        for challenge in headers.iter().flat_map(|header| split(header)) {
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
            let value = |name: &str| {
                let found = challenge.parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = value("realm")
            {
                return Some(Challenge::Bearer { realm, service: value("service"), scope: value("scope") });
            }
        }
        basic
    }
}

struct Parsed<'a> {
    scheme: &'a str,
    parameters: Vec<(&'a str, String)>,
}

/// `Scheme key=value, key="value", Scheme …`. Malformed text ends the list.
fn split(header: &str) -> Vec<Parsed<'_>> {
    let mut found: Vec<Parsed<'_>> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find(|byte: char| !is_token(byte)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            return found;
        }
        let Some(text) = after.trim_start().strip_prefix('=') else {
            found.push(Parsed { scheme: word, parameters: Vec::new() });
            rest = after;
            continue;
        };
        let Some((value, next)) = value(text.trim_start()) else { return found };
        if let Some(challenge) = found.last_mut() {
            challenge.parameters.push((word, value));
        }
        rest = next;
    }
}

fn is_token(byte: char) -> bool {
    byte.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(byte)
}

/// A token or a quoted string, and the rest.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        // Unquoted URLs are invalid, but occur.
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let (service, scope) = (service.map(str::to_owned), scope.map(str::to_owned));
        Some(Challenge::Bearer { realm: realm.to_owned(), service, scope })
    }

    #[test]
    fn challenges_are_read() {
        let docker = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/redis:pull,push""#;
        let expected = bearer(
            "https://auth.docker.io/token",
            Some("registry.docker.io"),
            Some("repository:library/redis:pull,push"),
        );
        for (headers, challenge) in [
            (&[docker][..], expected.clone()),
            (&["Basic realm=\"x\"", docker], expected.clone()),
            (&[&format!("Basic realm=\"x\", charset=UTF-8, {docker}")], expected.clone()),
            (&[&format!("{docker}, Basic realm=\"x\"")], expected),
            (&["basic"], Some(Challenge::Basic)),
            (&["Negotiate, Basic realm=\"a, b\""], Some(Challenge::Basic)),
            (&["Negotiate"], None),
            (&["Negotiate TlRMTVNTUAAB==, Basic"], Some(Challenge::Basic)),
            (&[r#"bearer realm="a\"b", error=none"#], bearer("a\"b", None, None)),
            (&["Bearer realm=https://a/token,service=x"], bearer("https://a/token", Some("x"), None)),
            (&["Bearer realm = \"a\" , scope=\"\""], bearer("a", None, None)),
            (&["Bearer"], None),
            (&["Bearer realm"], None),
            (&["Bearer realm=\""], None),
            (&["Bearer realm=\"\""], None),
            (&["Bearer =,=,="], None),
            (&["Bearer scope=\"x\""], None),
            (&["realm=\"x\""], None),
            (&[""], None),
            (&[], None),
        ] {
            assert_eq!(Challenge::parse(headers), challenge, "{headers:?}");
        }
    }

    proptest! {
        #[test]
        fn no_header_breaks_the_parser(text in ".{0,200}") {
            Challenge::parse(&[&text]);
            Challenge::parse(&[&format!("Bearer {text}")]);
        }

        #[test]
        fn quoted_parameters_come_back(realm in "[ -~]{1,60}", scope in "[ -~]{1,60}") {
            let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
            let header = format!("Bearer realm=\"{}\",scope=\"{}\"", quote(&realm), quote(&scope));
            prop_assert_eq!(Challenge::parse(&[&header]), bearer(&realm, None, Some(&scope)));
        }
    }
}
