//! The files of a configuration: the main file, its imports, and `conf.d` beside it.
//!
//! ```text
//! defaults ◀── main file ◀── its imports, in their order ◀── the imports of those ◀── command line
//! ```
//!
//! Later values replace earlier ones; tables are merged key by key, lists are replaced as a whole. A file is Hoist's or
//! containerd's in any version. Each file is parsed strictly by itself, so that errors have its name and line, and is
//! translated before merging.

use std::collections::{HashSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};
use types::{Context, Error, Result};

use super::containerd;
use super::glob;
use super::raw::Raw;
use super::suggest;

/// Lists that are concatenated instead of replaced.
const JOINED_LISTS: [&str; 3] = ["imports", "disabled_plugins", "required_plugins"];
/// The most files of a configuration.
const FILES_MAX: usize = 256;

/// The name the daemon was called by: determines the default paths and the format in which configurations are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flavor {
    #[default]
    Hoist,
    Containerd,
}

impl Flavor {
    /// The file that is read, if it exists, when none is named.
    pub(crate) fn default_file(self) -> &'static Path {
        Path::new(match self {
            Flavor::Hoist => "/etc/hoist/config.toml",
            Flavor::Containerd => "/etc/containerd/config.toml",
        })
    }
}

/// The merged contents of all files.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// In our keys.
    pub(crate) ours: Table,
    /// The containerd files, migrated to version 4 and otherwise complete.
    pub(crate) containerd: Option<Table>,
    /// Warnings about keys that have no effect.
    pub(crate) warnings: Vec<String>,
    /// In order of increasing precedence.
    pub(crate) files: Vec<PathBuf>,
}

/// Reads the named file, or the default file and `conf.d` beside it.
pub(crate) fn read(named: Option<&Path>, flavor: Flavor) -> Result<Written> {
    match named {
        Some(path) => read_from(path, flavor, false),
        None => read_from(flavor.default_file(), flavor, true),
    }
}

fn read_from(main: &Path, flavor: Flavor, is_default: bool) -> Result<Written> {
    let mut written = Written::default();
    let mut seen = HashSet::new();
    let mut pending = VecDeque::from([main.to_owned()]);
    while let Some(path) = pending.pop_front() {
        let text = match fs::read_to_string(&path) {
            Err(error) if is_default && path == main && error.kind() == std::io::ErrorKind::NotFound => None,
            outcome => Some(outcome.context(|| format!("read {}", path.display()))?),
        };
        if !seen.insert(path.clone()) {
            continue;
        }
        if seen.len() > FILES_MAX {
            return Err(Error::invalid_argument(format!("configuration: more than {FILES_MAX} files")));
        }
        let imports = match text {
            Some(text) => written.add(&path, &text, flavor)?,
            None => None,
        };
        let imports = match imports {
            Some(imports) => imports,
            // A file that lists imports, or is named explicitly, does not include `conf.d`.
            None if is_default && path == main => vec!["conf.d/*.toml".to_owned()],
            None => Vec::new(),
        };
        for pattern in imports {
            pending.extend(expand(&path, &pattern)?);
        }
    }
    Ok(written)
}

impl Written {
    /// Merges a file and returns its imports.
    fn add(&mut self, path: &Path, text: &str, flavor: Flavor) -> Result<Option<Vec<String>>> {
        let explain = |error: toml::de::Error| suggest::explain(&error, text, path);
        let mut table: Table = toml::from_str(text).map_err(explain)?;
        let is_ours = !containerd::is_theirs(&table);
        // Under containerd's name, a file that could be either is taken for containerd's.
        let ours = if !is_ours || (flavor == Flavor::Containerd && toml::from_str::<Raw>(text).is_err()) {
            let migrated = containerd::migrated(text, path)?;
            let translated = containerd::translate(&migrated, path)?;
            self.warnings.extend(translated.warnings);
            merge(self.containerd.get_or_insert_default(), migrated);
            translated.ours
        } else {
            toml::from_str::<Raw>(text).map_err(explain)?;
            if flavor == Flavor::Containerd {
                merge(self.containerd.get_or_insert_default(), containerd::of_ours(&table));
            }
            table.clone()
        };
        merge(&mut self.ours, ours);
        // Imports are resolved here and merged, so the key is dropped.
        self.ours.remove("imports");
        self.files.push(path.to_owned());
        match table.remove("imports") {
            None => Ok(None),
            Some(Value::Array(list)) => {
                list.into_iter().map(|entry| text_of(entry, path)).collect::<Result<_>>().map(Some)
            }
            Some(_) => Err(invalid(path, "imports: expected a list of paths")),
        }
    }
}

fn text_of(value: Value, path: &Path) -> Result<String> {
    match value {
        Value::String(text) => Ok(text),
        _ => Err(invalid(path, "imports: expected a list of paths")),
    }
}

fn invalid(path: &Path, why: &str) -> Error {
    Error::invalid_argument(format!("{}: {why}", path.display()))
}

/// Merges `from` into `onto`, overriding it.
pub(super) fn merge(onto: &mut Table, from: Table) {
    for (key, value) in from {
        match (onto.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            (Some(Value::Array(below)), Value::Array(above)) if JOINED_LISTS.contains(&key.as_str()) => {
                let new: Vec<Value> = above.into_iter().filter(|entry| !below.contains(entry)).collect();
                below.extend(new);
            }
            (_, value) => drop(onto.insert(key, value)),
        }
    }
}

/// The files that an entry of `imports` names: one file, or all that match a pattern. A relative path starts at the
/// directory of the importing file.
fn expand(importer: &Path, pattern: &str) -> Result<Vec<PathBuf>> {
    let full = importer.parent().unwrap_or(Path::new("/")).join(pattern);
    // As in containerd, `[` alone does not make a pattern: it may occur in file names.
    if !pattern.contains(['*', '?']) {
        return Ok(vec![full]);
    }
    glob::expand(&full).map_err(|error| error.context(format!("{}: imports", importer.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files by name and contents; the first is the main file.
    fn check(files: &[(&str, &str)], is_default: bool, expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let main = dir.path().join(files.first().map_or("config.toml", |(name, _)| *name));
        let found = match read_from(&main, Flavor::Hoist, is_default) {
            Ok(written) => toml::to_string(&written.ours).unwrap(),
            Err(error) => error.chain().replace(dir.path().to_str().unwrap(), ""),
        };
        assert_eq!(found.trim(), expected.trim(), "{files:?}");
    }

    #[test]
    fn imports_are_merged_in_their_order_and_once() {
        check(
            &[
                (
                    "main.toml",
                    "imports = [\"b.toml\", \"d/*.toml\"]\nroot = \"/main\"\n[log]\nlevel = \"warn\"\n[gc]\nstartup_delay = \"1s\"",
                ),
                ("b.toml", "root = \"/b\"\nimports = [\"main.toml\", \"last.toml\"]"),
                ("last.toml", "[gc]\nschedule_delay = \"9s\""),
                ("d/2.toml", "[gc]\nschedule_delay = \"2s\""),
                ("d/1.toml", "[gc]\nschedule_delay = \"1s\"\nmutation_threshold = 7"),
                ("d/README", "not this"),
            ],
            false,
            "root = \"/b\"\n\n[gc]\nmutation_threshold = 7\nschedule_delay = \"9s\"\nstartup_delay = \"1s\"\n\n[log]\nlevel = \"warn\"",
        );
        check(&[("main.toml", "imports = [\"/nosuch.d/*.toml\"]")], false, "");
        check(
            &[("main.toml", "imports = [\"gone.toml\"]")],
            false,
            "read /gone.toml: no such file or directory",
        );
        check(
            &[("main.toml", "imports = \"x\"")],
            false,
            "/main.toml:1: invalid type: string \"x\", expected a sequence",
        );
        check(
            &[
                ("main.toml", "imports = [\"x*/[ab].*\", \"c[1].toml\"]"),
                ("x.d/a.toml", "root = \"/a\""),
                ("x.d/c.toml", "root = \"/c\""),
                ("y.d/a.toml", "root = \"/y\""),
                ("c[1].toml", "state = \"/one\""),
            ],
            false,
            "root = \"/a\"\nstate = \"/one\"",
        );
        check(
            &[("main.toml", "imports = [\"[x/*.toml\"]")],
            false,
            "/main.toml: imports: syntax error in pattern \"[x\"",
        );
    }

    #[test]
    fn conf_d_is_read_only_beside_the_default_file() {
        let drop_in = ("conf.d/10-log.toml", "[log]\nlevel = \"debug\"");
        let used = "[log]\nlevel = \"debug\"";
        check(&[("config.toml", ""), drop_in], true, used);
        check(&[("config.toml", "imports = []"), drop_in], true, "");
        check(&[("config.toml", ""), drop_in], false, "");
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("conf.d")).unwrap();
        fs::write(dir.path().join("conf.d/a.toml"), used).unwrap();
        let written = read_from(&dir.path().join("config.toml"), Flavor::Hoist, true).unwrap();
        assert_eq!(written.ours.len(), 1, "a main file is not needed");
    }

    #[test]
    fn configuration_errors_name_their_file() {
        check(
            &[("main.toml", "imports = [\"b.toml\"]"), ("b.toml", "\n\nrot = \"/x\"")],
            false,
            "/b.toml:3: unknown field `rot`, expected one of `imports`, `root`, `state`, `oom_score`, `cgroup`, `snapshotter`, \
             `policy`, `required_plugins`, `disabled_plugins`, `snapshots`, `grpc`, `ttrpc`, `metrics`, `debug`, \
             `otlp`, `log`, `metadata`, `network`, `registry`, `transfer`, `shims`, `gc`, `restart`, \
             `image_verifiers`, `content`, `diff`, `proxy_plugins`, `stream_processors`; did you mean `root`?",
        );
    }

    #[test]
    fn files_of_both_kinds_may_be_mixed() {
        check(
            &[
                (
                    "main.toml",
                    "version = 2\nimports = [\"b.toml\", \"c.toml\"]\nroot = \"/theirs\"\n[grpc]\naddress = \"/a\"\n[plugins.\"io.containerd.gc.v1.scheduler\"]\nstartup_delay = \"5s\"",
                ),
                ("b.toml", "root = \"/ours\""),
                ("c.toml", "version = 4\n[plugins.\"io.containerd.server.v1.grpc\"]\naddress = \"/b\""),
            ],
            false,
            "root = \"/ours\"\n\n[gc]\nstartup_delay = \"5s\"\n\n[grpc]\naddress = \"/b\"",
        );
    }
}
