//! `containerd oci-hook PROGRAM [ARGUMENT…]`: runs a container's hook with facts about the container in its arguments
//! and environment. Placeholders are expanded from the state on standard input:
//!
//! ```text
//! {{id}}  {{pid}}  {{status}}  {{bundle}}  {{rootfs}}  {{annotation "KEY"}}
//! ```
//!
//! Then the hook's program replaces this one (execve(2)).

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use types::{Context, Error, Result};

/// The state that a runtime passes to hooks (runtime-spec, "State").
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct State {
    id: String,
    status: String,
    pid: i64,
    bundle: PathBuf,
    annotations: HashMap<String, String>,
}

/// The part of the bundle's `config.json` that is needed.
#[derive(Deserialize)]
struct Spec {
    root: Root,
}

#[derive(Deserialize)]
struct Root {
    path: PathBuf,
}

/// Returns only if it fails.
pub(crate) fn run(words: &[OsString]) -> Result<()> {
    let state: State = serde_json::from_reader(std::io::stdin()).map_err(|error| {
        Error::invalid_argument("oci-hook: read the container's state from standard input").with_source(error)
    })?;
    let file = state.bundle.join("config.json");
    let text = std::fs::read(&file).context(|| format!("oci-hook: read {}", file.display()))?;
    let spec: Spec = serde_json::from_slice(&text).map_err(|error| {
        Error::invalid_argument(format!("oci-hook: read {}", file.display())).with_source(error)
    })?;
    let container = Container { rootfs: state.bundle.join(spec.root.path), state };
    let filled = words.iter().map(|word| container.fill(word)).collect::<Result<Vec<_>>>()?;
    let Some((program, arguments)) = filled.split_first() else {
        return Err(Error::invalid_argument("oci-hook: which program? oci-hook PROGRAM [ARGUMENT…]"));
    };
    let variables = std::env::vars_os().map(|(name, value)| Ok((name, container.fill(&value)?)));
    let variables = variables.collect::<Result<Vec<_>>>()?;
    let error = Command::new(program).args(arguments).env_clear().envs(variables).exec();
    Err(error).context(|| format!("oci-hook: run {}", Path::new(program).display()))
}

struct Container {
    state: State,
    rootfs: PathBuf,
}

impl Container {
    /// Expands the placeholders in a word. A word that is not UTF-8 is unchanged.
    fn fill(&self, word: &OsString) -> Result<OsString> {
        let Some(mut rest) = word.to_str() else { return Ok(word.clone()) };
        let mut filled = String::new();
        while let Some((before, after)) = rest.split_once("{{") {
            let unknown = || {
                Error::invalid_argument(format!(
                    "oci-hook: {word:?}: id, pid, status, bundle, rootfs and annotation \"KEY\" can stand in double braces"
                ))
            };
            let (inside, after) = after.split_once("}}").ok_or_else(unknown)?;
            filled.push_str(before);
            filled.push_str(&self.value(inside.trim()).ok_or_else(unknown)?);
            rest = after;
        }
        filled.push_str(rest);
        Ok(filled.into())
    }

    fn value(&self, name: &str) -> Option<String> {
        let State { id, status, pid, bundle, annotations } = &self.state;
        Some(match name {
            "id" => id.clone(),
            "status" => status.clone(),
            "pid" => pid.to_string(),
            "bundle" => bundle.display().to_string(),
            "rootfs" => self.rootfs.display().to_string(),
            _ => {
                let quoted = name.strip_prefix("annotation")?.trim();
                let key = ['"', '`']
                    .into_iter()
                    .find_map(|quote| quoted.strip_prefix(quote)?.strip_suffix(quote))?;
                // A missing annotation expands to nothing, as in containerd.
                annotations.get(key).cloned().unwrap_or_default()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oci_hook_placeholders_are_expanded() {
        let container = Container {
            state: State {
                id: "c1".into(),
                status: "created".into(),
                pid: 42,
                bundle: "/b".into(),
                annotations: HashMap::from([("a/b".into(), "x y".into())]),
            },
            rootfs: "/b/rootfs".into(),
        };
        let check = |word: &str, expected: Option<&str>| {
            let filled = container.fill(&word.into()).ok();
            assert_eq!(filled.as_deref(), expected.map(std::ffi::OsStr::new), "{word}");
        };
        check("plain", Some("plain"));
        check("", Some(""));
        check("{{id}}", Some("c1"));
        check("--pid={{ pid }}:{{status}}", Some("--pid=42:created"));
        check("{{bundle}} {{rootfs}}", Some("/b /b/rootfs"));
        check("{{annotation \"a/b\"}}", Some("x y"));
        check("{{annotation `a/b`}}{{annotation \"none\"}}", Some("x y"));
        check("}} {", Some("}} {"));
        for wrong in ["{{id", "{{}}", "{{name}}", "{{annotation}}", "{{annotation \"}}", "{{annotation x}}"] {
            check(wrong, None);
        }
    }
}
