//! What can be checked of the text itself: headers, unsafe, unfinished work, large files.

use std::fs;
use std::path::{Path, PathBuf};

/// Where `unsafe` may stand. The list only shrinks.
const UNSAFE_ALLOWED: &[&str] =
    &["crates/linux/src/", "crates/runtime/src/", "crates/hello/src/", "crates/shim/src/"];

/// Bytes. A file larger than this does not belong in the repository.
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

fn is_product(path: &str) -> bool {
    path.contains("/src/")
}

/// Source files, relative to the repository, for which `matches` holds.
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
