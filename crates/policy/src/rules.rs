//! Rules: the requirements on an image, by its repository.

use types::{Error, Reference, Result};

use crate::PublicKey;
use crate::place;

/// Rules, and the default for images that no rule covers.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Each rule with its canonical scope; identities are canonical, too.
    rules: Vec<(String, Rule)>,
    default_rejects: bool,
}

/// The requirement on images of one scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// A registry, a path in one, or a repository: `quay.io`, `quay.io/team`, `quay.io/team/app`.
    pub scope: String,
    pub action: Action,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Accept,
    Reject,
    /// A signature by one of these keys is required.
    Signed {
        keys: Vec<PublicKey>,
        /// The scope that signatures name: where the images were signed, if these are copies. `None` for the rule's
        /// own scope.
        identity: Option<String>,
    },
}

/// The policy's decision on an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    Accept,
    /// A signature by one of the keys for `repository` is required.
    Signed {
        rule: &'a Rule,
        keys: &'a [PublicKey],
        repository: String,
    },
}

impl Policy {
    /// `InvalidArgument` if a scope is malformed or in two rules, or if a rule that requires signatures has no keys.
    pub fn new(rules: Vec<Rule>, default_rejects: bool) -> Result<Policy> {
        let mut known: Vec<(String, Rule)> = Vec::new();
        for Rule { scope: written, mut action } in rules {
            let wrong = |why: &str| Error::invalid_argument(format!("rule for {written:?}: {why}"));
            let scope = place::of_scope(&written).map_err(|error| wrong("its scope").with_source(error))?;
            if known.iter().any(|(other, _)| *other == scope) {
                return Err(wrong("its scope has two rules"));
            }
            if let Action::Signed { keys, identity } = &mut action {
                if keys.is_empty() {
                    return Err(wrong("it requires signatures and has no keys"));
                }
                if let Some(identity) = identity {
                    *identity = place::of_scope(identity)
                        .map_err(|error| wrong("its identity").with_source(error))?;
                }
            }
            known.push((scope, Rule { scope: written, action }));
        }
        Ok(Policy { rules: known, default_rejects })
    }

    /// The requirement on an image of this name. The rule with the longest matching scope applies.
    ///
    /// `PermissionDenied`, naming the rule, if the image is rejected whatever its content. A name that is not a
    /// reference has no repository, so only the default applies.
    pub fn verdict(&self, name: &str) -> Result<Verdict<'_>> {
        let repository = name.parse::<Reference>().ok().map(|reference| place::of(&reference));
        let within = |(scope, _): &&(String, Rule)| {
            repository.as_deref().is_some_and(|name| rest_of(name, scope).is_some())
        };
        let longest = self.rules.iter().filter(within).max_by_key(|(scope, _)| scope.len());
        let Some((scope, rule)) = longest else {
            return if self.default_rejects {
                Err(refused(name, "no rule of the policy accepts it, and the default is to reject"))
            } else {
                Ok(Verdict::Accept)
            };
        };
        match &rule.action {
            Action::Accept => Ok(Verdict::Accept),
            Action::Reject => Err(rule.refusal(name, "which rejects its images")),
            Action::Signed { keys, identity } => {
                let repository = repository.expect("a rule is about it");
                let rest = rest_of(&repository, scope).expect("within its scope");
                let repository = place::full(format!("{}{rest}", identity.as_deref().unwrap_or(scope)));
                Ok(Verdict::Signed { rule, keys, repository })
            }
        }
    }
}

impl Rule {
    /// The error that refuses an image by this rule.
    pub fn refusal(&self, name: &str, why: &str) -> Error {
        refused(name, &format!("by the rule for {:?}, {why}", self.scope))
    }
}

fn refused(name: &str, why: &str) -> Error {
    Error::permission_denied(format!("the policy does not let {name} in: {why}"))
}

/// The rest of a repository's name below the scope: empty, or `/` and more. `None` if it is not within the scope.
fn rest_of<'a>(repository: &'a str, scope: &str) -> Option<&'a str> {
    repository.strip_prefix(scope).filter(|rest| rest.is_empty() || rest.starts_with('/'))
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
        for alias in ["QUAY.IO", "quay.io:443", "Quay.io:0443"] {
            check(&format!("{alias}/team/app"), Ok(Some("quay.io/team/app")));
        }
        for alias in ["docker.io:443", "registry-1.docker.io", "Index.Docker.IO", "registry.hub.docker.com"] {
            check(&format!("{alias}/library/redis"), Ok(Some("docker.io/library/redis")));
            check(&format!("{alias}/redis"), Ok(Some("docker.io/library/redis")));
            check(&format!("{alias}/someone/thing"), Err("the rule for \"docker.io\""));
        }
        check("quay.io:444/team/app", Err("no rule"));
        check("127.0.0.1:05000/copies/app", Ok(Some("quay.io/team/app")));
        assert_eq!(Policy::default().verdict("not a name").unwrap(), Verdict::Accept);
    }

    #[test]
    fn a_scope_is_known_however_it_is_written() {
        for scope in ["QUAY.IO/team", "quay.io:443/team"] {
            let policy = Policy::new(vec![rule(scope, Action::Reject)], false).unwrap();
            let error = policy.verdict("quay.io/team/app").unwrap_err();
            assert!(error.message().contains(scope), "as it was written: {error:?}");
        }
        let policy = Policy::new(vec![rule("index.docker.io", Action::Reject)], false).unwrap();
        policy.verdict("busybox").unwrap_err();
        let local = Policy::new(vec![rule("localhost", Action::Reject)], false).unwrap();
        local.verdict("localhost:80/app").unwrap_err();
        let six = Policy::new(vec![rule("[::1]:5000", Action::Reject)], false).unwrap();
        six.verdict("[0:0:0:0:0:0:0:1]:5000/app").unwrap_err();
    }

    #[test]
    fn an_identity_is_known_however_it_is_written() {
        for (identity, name, expected) in [
            ("index.docker.io/team", "quay.io/copies/app", "docker.io/team/app"),
            ("QUAY.IO:443/team", "quay.io/copies/app", "quay.io/team/app"),
            ("docker.io/redis", "quay.io/copies", "docker.io/library/redis"),
        ] {
            let action = Action::Signed { keys: vec![key()], identity: Some(identity.into()) };
            let policy = Policy::new(vec![rule("quay.io/copies", action)], false).unwrap();
            let Verdict::Signed { repository, .. } = policy.verdict(name).unwrap() else { panic!("{name}") };
            assert_eq!(repository, expected, "{identity}");
        }
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
            vec![rule("quay.io", Action::Accept), rule("quay.io:443", Action::Reject)],
            vec![rule("quay.io", Action::Signed { keys: Vec::new(), identity: None })],
            vec![rule("quay.io", Action::Signed { keys: vec![key()], identity: Some("a b".into()) })],
        ] {
            let error = Policy::new(rules.clone(), false).unwrap_err();
            assert!(error.message().starts_with("rule for "), "{rules:?}: {error:?}");
        }
    }
}
