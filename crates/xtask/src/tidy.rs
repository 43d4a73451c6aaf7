//! Checks of the source text: headers, unsafe code, unfinished work, large files; and of the changelog.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Folders in which `unsafe` is allowed. The list may only shrink.
const UNSAFE_ALLOWED: &[&str] = &["crates/linux/src/", "crates/runtime/src/"];

/// Files that access a process in `/proc` by its pid, and the reason why the pid cannot have been reused. All other
/// code holds a pidfd, and sends signals by it.
const BY_PID: &[(&str, &str)] = &[
    ("crates/cli/src/ctr/tasks.rs", "what was opened is used once the daemon says that the process is there"),
    (
        "crates/engine/src/containers/pid_namespace.rs",
        "opened as view.rs does; and descriptors of the daemon itself",
    ),
    ("crates/engine/src/containers/top.rs", "figures for a list, of whatever is there"),
    ("crates/engine/src/stats.rs", "figures for a list, of whatever is there"),
    ("crates/engine/src/view.rs", "a pidfd is held, and its shim asked again"),
    ("crates/linux/src/cgroup/delegate.rs", "the caller holds a pidfd, and looks at it afterwards"),
    ("crates/linux/src/idmap.rs", "a child of the caller, not reaped"),
    ("crates/linux/src/process.rs", "kill_tree: whose child a number is, again once it is held"),
    ("crates/runtime/src/checkpoint.rs", "a pidfd is held, and looked at afterwards"),
    ("crates/runtime/src/exec.rs", "a pidfd is held, and looked at afterwards"),
    ("crates/runtime/src/net_devices.rs", "a child of the caller, not reaped"),
    ("crates/runtime/src/restore.rs", "a child of the caller, not reaped"),
    ("crates/runtime/src/state.rs", "asks when the process of a number began"),
    ("crates/shim/src/bootstrap.rs", "the caller's parent, and a child that is not reaped"),
    ("crates/shim/src/oci.rs", "a child of the shim, not reaped"),
    ("crates/shim/src/oci/command.rs", "a child of the shim, not reaped; itself"),
    ("crates/shim/src/record.rs", "asks which process of a number it is"),
    ("crates/shim/src/sandbox/exec.rs", "a pidfd is held"),
    ("crates/shim/src/sandbox/namespaces.rs", "a child of the shim, not reaped"),
    ("crates/task/src/strays.rs", "looks whether anybody is there"),
];

/// Files that signal a process group by its number, and the reason why the number cannot have been reused: while the
/// leader is not reaped, its pid is not free (kill(2), setpgid(2)).
const BY_PROCESS_GROUP: &[(&str, &str)] = &[
    ("crates/daemon/src/processors.rs", "led by a child of the daemon, not reaped"),
    ("crates/linux/src/process.rs", "led by a child of the caller, not reaped"),
    ("crates/policy/src/verifiers.rs", "led by a child of the daemon, not reaped"),
];

/// The largest file, in bytes, that belongs in the repository.
const FILE_SIZE_MAX: u64 = 512 * 1024;

#[test]
fn every_source_file_opens_with_what_it_is() {
    let headless = sources(|path, text| is_product(path) && !text.starts_with("//!"));
    assert!(headless.is_empty(), "no `//!` header: {headless:?}");
}

#[test]
fn unsafe_stands_only_where_it_may() {
    let word = concat!("uns", "afe");
    let found = sources(|path, text| {
        let allowed = UNSAFE_ALLOWED.iter().any(|prefix| path.starts_with(prefix));
        let uses =
            [format!("{word} {{"), format!("{word} fn"), format!("{word} impl"), format!("{word} extern")];
        !allowed
            && text.lines().any(|line| {
                !line.trim_start().starts_with("//") && uses.iter().any(|use_| line.contains(use_))
            })
    });
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn processes_are_held_by_descriptors() {
    let path = concat!("\"/proc", "/{");
    let found = sources(|file, text| {
        let product = text.split(concat!("#[cfg(", "test)]\nmod")).next().unwrap_or_default();
        is_product(file) && !is_for_tests(file) && product.contains(path)
    });
    let known: Vec<&str> = BY_PID.iter().map(|(file, _)| *file).collect();
    assert_eq!(found, known, "to the left what looks at processes by number, to the right what may");
    let calls = [concat!("libc::", "kill("), concat!("kill_", "process(")];
    let found = sources(|file, text| {
        is_product(file) && !is_for_tests(file) && calls.iter().any(|call| text.contains(call))
    });
    assert!(found.is_empty(), "signals go by pidfds: {found:?}");
    let call = concat!("kill_", "process_group(");
    let found = sources(|file, text| is_product(file) && !is_for_tests(file) && text.contains(call));
    let known: Vec<&str> = BY_PROCESS_GROUP.iter().map(|(file, _)| *file).collect();
    assert_eq!(found, known, "to the left what signals groups, which have no pidfd, to the right what may");
}

#[test]
fn nothing_is_left_unfinished() {
    let marks = [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("FIX", "ME"),
        concat!("(being ", "written)"),
    ];
    let found = sources(|_, text| marks.iter().any(|mark| text.contains(mark)));
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn no_test_is_ignored() {
    let found = sources(|_, text| text.contains(concat!("#[ign", "ore")));
    assert!(found.is_empty(), "{found:?}");
}

/// Nothing compiles examples in documentation: the tests run without them, which saves a minute.
#[test]
fn documentation_has_no_code_that_would_have_to_be_run() {
    let found = sources(|_, text| {
        let mut is_inside = false;
        let mut fences = text.lines().filter_map(|line| {
            let line = line.trim_start();
            let line = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"))?;
            line.trim_start().strip_prefix("```")
        });
        fences.any(|language| {
            is_inside = !is_inside;
            is_inside && ["", "rust", "should_panic", "no_run"].contains(&language)
        })
    });
    assert!(found.is_empty(), "say what it is (```text): {found:?}");
}

#[test]
fn no_file_is_too_large() {
    let mut found = Vec::new();
    walk(&crate::workspace_root().join("crates"), &mut |path| {
        if path.metadata().is_ok_and(|metadata| metadata.len() > FILE_SIZE_MAX) {
            found.push(path.to_owned());
        }
    });
    assert!(found.is_empty(), "{found:?}");
}

/// Where two changes meet, an entry may come in twice.
#[test]
fn the_changelog_has_each_entry_once() {
    let path = crate::workspace_root().join("CHANGELOG.md");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (mut seen, mut twice) = (BTreeSet::new(), Vec::new());
    for entry in text.lines().filter(|line| line.starts_with("- ")) {
        if !seen.insert(entry) {
            twice.push(entry);
        }
    }
    assert!(twice.is_empty(), "{}", twice.join("\n"));
}

fn is_product(path: &str) -> bool {
    path.contains("/src/")
}

fn is_for_tests(path: &str) -> bool {
    ["testkit", "bench", "xtask", "fuzzed"].iter().any(|name| path.starts_with(&format!("crates/{name}/")))
}

/// The source files for which `matches` holds, relative to the repository, sorted.
fn sources(matches: impl Fn(&str, &str) -> bool) -> Vec<String> {
    let root = crate::workspace_root();
    let mut found = Vec::new();
    walk(&root.join("crates"), &mut |path| {
        if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(path).expect("source files are UTF-8");
            let relative =
                path.strip_prefix(&root).expect("walked below the root").to_string_lossy().into_owned();
            if matches(&relative, &text) {
                found.push(relative);
            }
        }
    });
    found.sort();
    found
}

pub(crate) fn walk(folder: &Path, visit: &mut impl FnMut(&Path)) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries {
        let path: PathBuf = entry.expect("a readable entry").path();
        if path.is_dir() {
            walk(&path, visit);
        } else {
            visit(&path);
        }
    }
}
