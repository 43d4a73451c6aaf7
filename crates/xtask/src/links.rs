//! Links of the documentation: each leads to a file of the repository and, if it names one, to a heading of that page.
//! Names of tests in it exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Pages outside of `docs`.
const PAGES: &[&str] =
    &["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "bench/README.md"];

#[test]
fn every_link_of_the_documentation_leads_to_a_page_and_a_heading() {
    let mut broken = Vec::new();
    for page in &pages() {
        let text = read(page);
        for link in links(&text) {
            if !is_whole(page, link) {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_test_that_a_page_names_exists() {
    let mut names = BTreeSet::new();
    crate::tidy::walk(&crate::workspace_root().join("crates"), &mut |path| {
        if path.extension().is_some_and(|extension| extension == "rs") {
            let text = read(path);
            let words = text.split(|char: char| !is_of_name(char));
            names.extend(words.filter(|word| is_long(word)).map(str::to_owned));
        }
    });
    let mut missing = Vec::new();
    // The changelog tells of tests and keys that were.
    for page in pages().iter().filter(|page| !page.ends_with("CHANGELOG.md")) {
        for name in long_names(&read(page)) {
            if !names.contains(&name) {
                missing.push(format!("{}: {name}", page.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn names_of_tests_are_found_in_a_page() {
    let page = "`a::b_is_c_or_d` and\n`e_f_g_h`, `no_pages`, `a key_of_some_kind`, `a_prefix_of_names…`";
    assert_eq!(long_names(page), ["b_is_c_or_d", "e_f_g_h"]);
}

#[test]
fn every_page_that_a_source_file_names_exists() {
    let root = crate::workspace_root();
    let mut missing = Vec::new();
    crate::tidy::walk(&root.join("crates"), &mut |path| {
        if path.extension().is_some_and(|extension| extension == "rs") {
            for page in pages_named(&read(path)) {
                if !root.join(&page).is_file() {
                    missing.push(format!("{}: {page}", path.display()));
                }
            }
        }
    });
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn a_broken_link_is_found() {
    let page = crate::workspace_root().join("README.md");
    let check = |link: &str, expected: bool| assert_eq!(is_whole(&page, link), expected, "{link}");
    check("ARCHITECTURE.md", true);
    check("ARCHITECTURE.md#4-crates", true);
    check("#sixty-seconds", true);
    check("docs/design", true);
    check("NOWHERE.md", false);
    check("ARCHITECTURE.md#nowhere", false);
    check("#nowhere", false);
    check("/etc", false);
}

fn pages() -> Vec<PathBuf> {
    let root = crate::workspace_root();
    let mut pages: Vec<PathBuf> = PAGES.iter().map(|page| root.join(page)).collect();
    crate::tidy::walk(&root.join("docs"), &mut |path| {
        if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path.to_owned());
        }
    });
    pages
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Targets of the links of a page that stay in the repository.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets
        .map(|(target, _)| target)
        .filter(|target| !target.contains("://") && !target.contains(char::is_whitespace))
}

/// Whether the target of a link of a page exists.
fn is_whole(page: &Path, link: &str) -> bool {
    let (path, heading) = link.split_once('#').unwrap_or((link, ""));
    let target = match path {
        "" => page.to_owned(),
        path => page.parent().expect("a page is in a directory").join(path),
    };
    // GitHub takes a path from `/` for one from the root of the repository, other readers for one of the machine.
    let is_relative = !path.starts_with('/');
    is_relative && target.exists() && (heading.is_empty() || anchors(&read(&target)).contains(heading))
}

/// The anchors of a page's headings, as GitHub names them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut is_code = false;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        is_code ^= line.starts_with("```");
        if !is_code && line.starts_with('#') {
            found.insert(anchor(line.trim_start_matches('#').trim()));
        }
    }
    found
}

fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|char| char.is_alphanumeric() || " -_".contains(*char));
    kept.map(|char| if char == ' ' { '-' } else { char.to_ascii_lowercase() }).collect()
}

/// Names of four or more words in the code spans of a page, without their modules: names of tests, and of long keys.
fn long_names(text: &str) -> Vec<String> {
    let spans = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    let names = spans.map(|span| span.rsplit("::").next().unwrap_or_default());
    names.filter(|name| name.chars().all(is_of_name) && is_long(name)).map(str::to_owned).collect()
}

fn is_of_name(char: char) -> bool {
    char.is_ascii_lowercase() || char.is_ascii_digit() || char == '_'
}

/// Whether a name has four or more words.
fn is_long(name: &str) -> bool {
    name.matches('_').count() >= 3
}

/// The pages that a source file mentions, as paths from the root of the repository.
fn pages_named(text: &str) -> Vec<String> {
    let is_of_path = |char: char| char.is_ascii_alphanumeric() || "/._-".contains(char);
    let names = text.split("docs/").skip(1).map(|rest| {
        let end = rest.find(|char: char| !is_of_path(char)).unwrap_or(rest.len());
        rest[..end].trim_end_matches('.')
    });
    names.filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}")).collect()
}
