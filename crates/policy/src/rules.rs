//! Rules: what is asked of an image, by where it comes from.

use types::{Error, Reference, Result};

use crate::PublicKey;

/// Rules, and what happens to an image that none is about.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    rules: Vec<Rule>,
    default_rejects: bool,
}

/// What is asked of the images of one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// A registry, a part of one, or a repository: `quay.io`, `quay.io/team`, `quay.io/team/app`.
    pub scope: String,
    pub action: Action,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Accept,
    Reject,
    /// One of these keys has signed it.
    Signed {
        keys: Vec<PublicKey>,
        /// What signatures call the scope: where the images were signed, if they are copies. None for the
        /// scope itself.
        identity: Option<String>,
    },
}

/// What the policy says of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    Accept,
    /// One of the keys must have signed that the image is `repository`.
    Signed {
        rule: &'a Rule,
        keys: &'a [PublicKey],
        repository: String,
    },
}

impl Policy {
    /// `InvalidArgument` if a scope is none, or stands in two rules, or if a rule has no keys.
    pub fn new(rules: Vec<Rule>, default_rejects: bool) -> Result<Policy> {
        for (at, rule) in rules.iter().enumerate() {
            let wrong = |why: &str| Error::invalid_argument(format!("rule for {:?}: {why}", rule.scope));
            check_scope(&rule.scope).map_err(|error| wrong("its scope").with_source(error))?;
            if rules[..at].iter().any(|other| other.scope == rule.scope) {
                return Err(wrong("there are two of them"));
            }
            if let Action::Signed { keys, identity } = &rule.action {
                if keys.is_empty() {
                    return Err(wrong("signatures are asked for, and no keys are given"));
                }
                if let Some(identity) = identity {
                    check_scope(identity).map_err(|error| wrong("its identity").with_source(error))?;
                }
            }
        }
        Ok(Policy { rules, default_rejects })
    }

    /// What an image of this name must fulfil. The rule of the longest scope counts.
    ///
    /// `PermissionDenied`, naming the rule, if it may not come in whatever it is. A name that is no reference
    /// has no repository, so only the default is about it.
    pub fn verdict(&self, name: &str) -> Result<Verdict<'_>> {
        let repository = name.parse::<Reference>().ok().map(|reference| reference.name());
        let within =
            |rule: &&Rule| repository.as_deref().is_some_and(|name| rest_of(name, &rule.scope).is_some());
        let Some(rule) = self.rules.iter().filter(within).max_by_key(|rule| rule.scope.len()) else {
            return if self.default_rejects {
                Err(refused(name, "no rule of the policy accepts it, and the default is to reject"))
            } else {
                Ok(Verdict::Accept)
            };
        };
        match &rule.action {
            Action::Accept => Ok(Verdict::Accept),
            Action::Reject => Err(rule.refusal(name, "it rejects what comes from there")),
            Action::Signed { keys, identity } => {
                let repository = repository.expect("a rule is about it");
                let rest = rest_of(&repository, &rule.scope).expect("within its scope");
                let repository = format!("{}{rest}", identity.as_deref().unwrap_or(&rule.scope));
                Ok(Verdict::Signed { rule, keys, repository })
            }
        }
    }
}

impl Rule {
    /// The error that keeps an image out.
    pub fn refusal(&self, name: &str, why: &str) -> Error {
        refused(name, &format!("by the rule for {:?}, {why}", self.scope))
    }
}

fn refused(name: &str, why: &str) -> Error {
    Error::permission_denied(format!("the policy does not let {name} in: {why}"))
}

/// What follows the scope in a repository's name: nothing, or `/` and more. None if it is another's.
fn rest_of<'a>(repository: &'a str, scope: &str) -> Option<&'a str> {
    repository.strip_prefix(scope).filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A registry's host, alone or with a path below it.
fn check_scope(scope: &str) -> Result<()> {
    // What is below it must be below it however a reference is filled up.
    let below = format!("{scope}/any/any");
    match below.parse::<Reference>() {
        Ok(reference) if reference.name() == below => Ok(()),
        _ => Err(Error::invalid_argument(format!(
            "{scope:?} is neither a registry such as quay.io nor a repository with its registry such as quay.io/team/app"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use types::ErrorKind;

    use super::*;

    fn rule(scope: &str, action: Action) -> Rule {
        Rule { scope: scope.into(), action }
    }

    fn key() -> PublicKey {
        PublicKey::from_pem(
            "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==\n-----END PUBLIC KEY-----",
        )
        .unwrap()
    }

    #[test]
    fn the_rule_of_the_longest_scope_counts() {
        let signed = |identity: Option<&str>| Action::Signed {
            keys: vec![key()],
            identity: identity.map(str::to_owned),
        };
        let rules = vec![
            rule("docker.io", Action::Reject),
            rule("docker.io/library", Action::Accept),
            rule("docker.io/library/redis", signed(None)),
            rule("quay.io/team", signed(None)),
            rule("127.0.0.1:5000/copies", signed(Some("quay.io/team"))),
        ];
        let policy = Policy::new(rules, true).unwrap();
        let check = |name: &str, expected: Result<Option<&str>, &str>| match (policy.verdict(name), expected)
        {
            (Ok(Verdict::Accept), Ok(None)) => {}
            (Ok(Verdict::Signed { repository, .. }), Ok(Some(expected))) => {
                assert_eq!(repository, expected, "{name}");
            }
            (Err(error), Err(words)) => {
                assert_eq!(error.kind(), ErrorKind::PermissionDenied);
                assert!(error.message().contains(words), "{error:?} has no {words:?}");
            }
            (found, expected) => panic!("{name}: {found:?}, not {expected:?}"),
        };
        check("busybox", Ok(None));
        check("redis:7", Ok(Some("docker.io/library/redis")));
        check("redis-stack", Ok(None));
        check("someone/thing", Err("the rule for \"docker.io\""));
        check("quay.io/team/deep/app:1", Ok(Some("quay.io/team/deep/app")));
        check("quay.io/teamwork/app", Err("no rule"));
        check("127.0.0.1:5000/copies/app", Ok(Some("quay.io/team/app")));
        check("ghcr.io/x/y", Err("no rule"));
        check("not a name", Err("no rule"));
        assert_eq!(Policy::default().verdict("not a name").unwrap(), Verdict::Accept);
    }

    #[test]
    fn rules_that_mean_nothing_are_refused() {
        for rules in [
            vec![rule("quay.io/Team", Action::Accept)],
            vec![rule("redis", Action::Signed { keys: Vec::new(), identity: None })],
            vec![rule("quay.io/app:1", Action::Accept)],
            vec![rule("", Action::Accept)],
            vec![rule("quay.io/", Action::Accept)],
            vec![rule("library/redis", Action::Accept)],
            vec![rule("quay.io", Action::Accept), rule("quay.io", Action::Reject)],
            vec![rule("quay.io", Action::Signed { keys: Vec::new(), identity: None })],
            vec![rule("quay.io", Action::Signed { keys: vec![key()], identity: Some("a b".into()) })],
        ] {
            let error = Policy::new(rules.clone(), false).unwrap_err();
            assert!(error.message().starts_with("rule for "), "{rules:?}: {error:?}");
        }
    }
}
