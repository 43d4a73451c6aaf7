//! The policy file: rules about which images may enter the store.
//!
//! ```toml
//! default = "reject"                          # or "accept", the default
//!
//! [[rule]]
//! scope = "docker.io/library"
//! action = "accept"
//!
//! [[rule]]
//! scope = "quay.io/team"
//! action = "signed"
//! keys = ["team.pub"]                         # relative to this file's directory, or absolute
//! identity = "registry.example.org/team"      # the scope's name in signatures, if that differs
//! ```

use std::path::{Path, PathBuf};

use policy::{Action, Policy, PublicKey, Rule};
use serde::Deserialize;
use types::{Context, Error, Result};

use super::suggest;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default = "accept")]
    default: Word,
    #[serde(default)]
    rule: Vec<RawRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    scope: String,
    action: Word,
    #[serde(default)]
    keys: Vec<PathBuf>,
    identity: Option<String>,
}

#[derive(Clone, Copy, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Word {
    Accept,
    Reject,
    Signed,
}

fn accept() -> Word {
    Word::Accept
}

/// Reads a policy file and the keys that it names.
pub(super) fn read(path: &Path) -> Result<Policy> {
    let text = std::fs::read_to_string(path).context(|| format!("read {}", path.display()))?;
    let raw: Raw = toml::from_str(&text).map_err(|error| suggest::explain(&error, &text, path))?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let wrong = |error: Error| error.context(path.display().to_string());
    if raw.default == Word::Signed {
        return Err(wrong(Error::invalid_argument(
            "default: signatures are a rule's to ask for, which has keys",
        )));
    }
    let rules = raw.rule.into_iter().map(|rule| checked(rule, folder)).collect::<Result<_>>();
    Policy::new(rules.map_err(wrong)?, raw.default == Word::Reject).map_err(wrong)
}

fn checked(raw: RawRule, folder: &Path) -> Result<Rule> {
    let RawRule { scope, action, keys, identity } = raw;
    if action != Word::Signed && (!keys.is_empty() || identity.is_some()) {
        return Err(Error::invalid_argument(format!(
            "rule for {scope:?}: keys and identity belong to the action \"signed\""
        )));
    }
    let action = match action {
        Word::Accept => Action::Accept,
        Word::Reject => Action::Reject,
        Word::Signed => {
            let keys = keys.iter().map(|key| read_key(&folder.join(key))).collect::<Result<_>>();
            let keys = keys.map_err(|error| error.context(format!("rule for {scope:?}")))?;
            Action::Signed { keys, identity }
        }
    };
    Ok(Rule { scope, action })
}

fn read_key(path: &Path) -> Result<PublicKey> {
    let what = || format!("read key {}", path.display());
    let text = std::fs::read_to_string(path).context(what)?;
    PublicKey::from_pem(&text).context(what)
}

#[cfg(test)]
mod tests {
    use policy::Verdict;
    use tempfile::TempDir;

    use super::*;

    const KEY: &str = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==\n-----END PUBLIC KEY-----\n";

    fn parsed(text: &str) -> Result<Policy> {
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("policy.toml"), text).unwrap();
        std::fs::write(dir.path().join("team.pub"), KEY).unwrap();
        read(&dir.path().join("policy.toml"))
    }

    #[test]
    fn rules_are_read_with_their_keys() {
        let policy = parsed(
            "default = \"reject\"\n[[rule]]\nscope = \"docker.io\"\naction = \"accept\"\n[[rule]]\nscope = \"quay.io/team\"\naction = \"signed\"\nkeys = [\"team.pub\"]\n",
        )
        .unwrap();
        assert_eq!(policy.verdict("redis").unwrap(), Verdict::Accept);
        assert!(matches!(policy.verdict("quay.io/team/app").unwrap(), Verdict::Signed { .. }));
        policy.verdict("ghcr.io/x/y").unwrap_err();
        assert_eq!(parsed("").unwrap().verdict("ghcr.io/x/y").unwrap(), Verdict::Accept);
    }

    #[test]
    fn policy_errors_have_their_location() {
        let check = |text: &str, words: &[&str]| {
            let message = parsed(text).unwrap_err().chain();
            for word in words {
                assert!(message.contains(word), "{message:?} has no {word:?}");
            }
        };
        check("defalt = \"reject\"", &["policy.toml:1", "did you mean `default`"]);
        check("[[rule]]\nscope = \"quay.io\"\n", &["policy.toml:1", "action"]);
        check("[[rule]]\nscope = \"quay.io\"\naction = \"sign\"", &["policy.toml:3", "signed"]);
        check("default = \"signed\"", &["policy.toml", "default"]);
        let signed = "[[rule]]\nscope = \"quay.io\"\naction = \"signed\"\n";
        check(signed, &["policy.toml", "quay.io", "no keys"]);
        check(&format!("{signed}keys = [\"nosuch.pub\"]"), &["quay.io", "nosuch.pub"]);
        check(&format!("{signed}keys = [\"policy.toml\"]"), &["quay.io", "no public key"]);
        check("[[rule]]\nscope = \"quay.io/Team\"\naction = \"accept\"", &["policy.toml", "quay.io/Team"]);
        check("[[rule]]\nscope = \"quay.io\"\naction = \"accept\"\nkeys = [\"team.pub\"]", &["belong to"]);
    }
}
