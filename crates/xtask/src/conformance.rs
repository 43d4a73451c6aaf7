//! Checks the tables of `docs/` that say which test shows what: each row must name tests, and the tests must exist.
//!
//! A test is named as `module::name`, `crate: name` or just `name`, its file as `file.rs`. `module::*` is all tests of
//! a module, and a name that ends in `…` is a prefix. A row may name a command instead, or say that it is not tested.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const DOCUMENTS: &[&str] =
    &["docs/design/cgroups.md", "docs/design/runtime-conformance.md", "docs/design/shim.md"];

/// Headings of the columns that name tests.
const HEADINGS: &[&str] = &["Shown by", "Test"];

/// The cells of a row that has no test.
const NO_TEST: &[&str] = &["not there", "not tested"];

/// The names of all test functions, and the files that contain them.
struct Tests {
    by_name: BTreeMap<String, Vec<PathBuf>>,
    files: Vec<PathBuf>,
}

#[test]
fn every_row_names_tests_that_are_there() {
    let tests = Tests::of(&crate::workspace_root().join("crates"));
    let mut wrong = Vec::new();
    for document in DOCUMENTS {
        let text = fs::read_to_string(crate::workspace_root().join(document)).expect("a document");
        let rows = rows(&text);
        assert!(rows.len() > 10, "{document} has tables of tests");
        wrong.extend(
            rows.iter().filter_map(|row| tests.complaint(row)).map(|words| format!("{document}: {words}")),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_table_row_that_names_no_test_is_found() {
    let tests = Tests::of(&crate::workspace_root().join("crates"));
    let check = |cell: &str, is_right: bool| assert_eq!(tests.complaint(cell).is_none(), is_right, "{cell}");
    check("`conformance::a_table_row_that_names_no_test_is_found`", true);
    check("`a_table_row_that_names_no…` and `conformance.rs`", true);
    check("`conformance::*`", true);
    check("`cargo xtask soak containers=0`", true);
    check("not there", true);
    check("", false);
    check("`--flag`", false);
    check("`elsewhere::a_table_row_that_names_no_test_is_found`", false);
    check("`conformance::a_table_row_that_names_another`", false);
    check("`a_table_row_that_names_another…`", false);
    check("`elsewhere::*`", false);
    check("`elsewhere_altogether.rs`", false);
}

/// The cells of the columns that name tests.
fn rows(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut is_ours = false;
    for line in text.lines() {
        let Some(cells) = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) else {
            is_ours = false;
            continue;
        };
        let last = cells.rsplit(" | ").next().unwrap_or_default().trim();
        if HEADINGS.contains(&last) {
            is_ours = true;
        } else if is_ours && !last.contains("---") {
            found.push(last);
        }
    }
    found
}

impl Tests {
    fn of(crates: &Path) -> Tests {
        let mut tests = Tests { by_name: BTreeMap::new(), files: Vec::new() };
        crate::tidy::walk(crates, &mut |path| {
            if path.extension().is_some_and(|extension| extension == "rs") {
                tests.add(path);
            }
        });
        tests
    }

    fn add(&mut self, file: &Path) {
        let text = fs::read_to_string(file).expect("source files are UTF-8");
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            is_test |= line == "#[test]" || line.starts_with("#[tokio::test");
            let rest = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
            if let Some((name, _)) = rest.and_then(|rest| rest.split_once('('))
                && std::mem::take(&mut is_test)
            {
                self.by_name.entry(name.to_owned()).or_default().push(file.to_owned());
            }
        }
        self.files.push(file.to_owned());
    }

    /// The mistake in a cell, if there is one.
    fn complaint(&self, cell: &str) -> Option<String> {
        let codes = || cell.split('`').skip(1).step_by(2);
        let names: Vec<&str> = codes().filter(|code| is_name(code)).collect();
        let shows = !names.is_empty() || codes().any(|code| code.starts_with("cargo xtask"));
        if !shows && !NO_TEST.iter().any(|words| cell.contains(words)) {
            return Some(format!("no test is named in {cell:?}"));
        }
        let wrong = names.into_iter().find(|name| !self.has(name))?;
        Some(format!("there is no {wrong}"))
    }

    fn has(&self, name: &str) -> bool {
        if name.ends_with(".rs") {
            return self.files.iter().any(|file| file.ends_with(name));
        }
        let (module, name) = name.rsplit_once("::").unwrap_or(("", name));
        let is_there = |file: &&PathBuf| module.is_empty() || is_in(file, module);
        match (name, name.strip_suffix('…')) {
            ("" | "*", _) => self.by_name.values().flatten().any(|file| is_there(&file)),
            (_, Some(beginning)) => {
                let named = self.by_name.iter().filter(|(name, _)| name.starts_with(beginning));
                named.flat_map(|(_, files)| files).any(|file| is_there(&file))
            }
            _ => self.by_name.get(name).into_iter().flatten().any(|file| is_there(&file)),
        }
    }
}

/// Whether the code in a cell names a test or a file. Other code names flags, crates or fields.
fn is_name(code: &str) -> bool {
    let is_word = |code: &str| code.chars().all(|char| char.is_ascii_alphanumeric() || "_:*…".contains(char));
    code.ends_with(".rs") || is_word(code) && (code.contains("::") || code.matches('_').count() > 1)
}

/// Whether a file is the module, or lies in its folder.
fn is_in(file: &Path, module: &str) -> bool {
    let last = module.rsplit("::").next().unwrap_or(module);
    file.with_extension("").components().any(|part| part.as_os_str() == last)
}
