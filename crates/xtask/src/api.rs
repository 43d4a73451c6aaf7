//! The table of `docs/api.md`: every call that the daemon serves, and the tests that cover it.
//!
//! The calls are those of `crates/api/src/services.rs`. A system test declares the calls that it covers with
//! `covers(&["Images.Get", …])` (`crates/systest/tests/it/api/walk.rs`, which also checks that the test makes them),
//! and the answers in which containerd differs with `differs(case, answer, reason)`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::Outcome;

#[path = "../../api/src/services.rs"]
#[allow(unreachable_pub, dead_code, reason = "it is of a library too")]
mod services;

use services::{SERVICES, SINCE, Shape};

const PAGE: &str = "docs/api.md";
const TESTS: &str = "crates/systest/tests/it";

/// Writes the page.
pub(crate) fn write() -> Outcome {
    let path = crate::workspace_root().join(PAGE);
    fs::write(&path, page()?).map_err(|error| format!("write {}: {error}", path.display()))
}

/// A test, and its declarations.
#[derive(Debug, PartialEq)]
struct Test {
    /// `api::images::images_walked`
    name: String,
    covers: Vec<String>,
    /// The containerd to which the test sends the same calls.
    compared: Compared,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Compared {
    No,
    /// containerd 2 only: 1.6 does not have the call.
    Since2,
    Yes,
}

/// A declared case in which containerd answers differently.
#[derive(Debug, PartialEq)]
struct Difference {
    /// `api::images`
    module: String,
    /// The containerd that differs.
    of: &'static str,
    case: String,
    there: String,
    why: String,
}

fn page() -> Outcome<String> {
    let (tests, differences) = marks()?;
    let mut page = String::from(
        "# The API, call by call\n\n\
         <!-- Written by `cargo xtask api` from crates/api/src/services.rs and the marks of the system tests. -->\n\n\
         Every call that the daemon serves, and the system tests (`cargo test -p systest NAME`) that make it. A test\n\
         that ends in `_walked` goes through all that its service refuses, and fails where it does not make a call that\n\
         it is listed for; of the others the list is what they say of themselves. Where the last column says so, the\n\
         same is asked of containerd and the answers are compared: Debian's 1.6, or one of 2.x where\n\
         `HOIST_TEST_CONTAINERD` names the directory of its programs. \"since\"\n\
         is the version of containerd that brought the call.\n",
    );
    let mut untested = Vec::new();
    for (package, service, _, rows) in SERVICES {
        let _ = write!(
            page,
            "\n## `{package}.{service}`\n\n| call | kind | since | tests | compared |\n|---|---|---|---|---|\n"
        );
        for (shape, method, ..) in *rows {
            let of_it: Vec<&Test> = tests
                .iter()
                .filter(|test| test.covers.iter().any(|mark| is_mark(mark, package, service, method)))
                .collect();
            if of_it.is_empty() {
                untested.push(format!("{package}.{service}/{method}"));
            }
            let names: Vec<String> = of_it.iter().map(|test| format!("`{}`", test.name)).collect();
            let compared = match of_it.iter().map(|test| test.compared).max() {
                Some(Compared::Yes) => "yes",
                Some(Compared::Since2) => "with 2.x",
                Some(Compared::No) | None => "",
            };
            let since = since(&format!("{package}.{service}.{method}")).unwrap_or_default();
            let (kind, names) = (kind(*shape), names.join(", "));
            let _ = writeln!(page, "| `{method}` | {kind} | {since} | {names} | {compared} |");
        }
    }
    let mut strange = Vec::new();
    for test in &tests {
        let is_known = |mark: &&String| {
            SERVICES.iter().any(|(package, service, _, rows)| {
                rows.iter().any(|(_, method, ..)| is_mark(mark, package, service, method))
            })
        };
        strange.extend(
            test.covers
                .iter()
                .filter(|mark| !is_known(mark))
                .map(|mark| format!("{} of {}", mark, test.name)),
        );
    }
    if !untested.is_empty() || !strange.is_empty() {
        return Err(format!(
            "calls without a test: {untested:?}; marks of no call: {strange:?} (see crates/xtask/src/api.rs)"
        ));
    }
    page.push_str(
        "\n## Where containerd answers otherwise\n\n\
         As the tests find it with 1.6.20 and 2.3.4. What is meant to differ from containerd of today is in\n\
         [the daemon's page](design/daemon.md#what-is-served).\n\n\
         | tests | case | containerd | answers | why |\n|---|---|---|---|---|\n",
    );
    for Difference { module, of, case, there, why } in &differences {
        let _ = writeln!(page, "| `{module}` | {case} | {of} | {there} | {why} |");
    }
    Ok(page)
}

fn kind(shape: Shape) -> &'static str {
    match shape {
        Shape::Unary => "one answer",
        Shape::Up => "a stream to the daemon",
        Shape::Down => "a stream of answers",
        Shape::Both => "streams both ways",
    }
}

/// The version of containerd that introduced a call.
fn since(call: &str) -> Option<&'static str> {
    let of_it = SINCE.iter().filter(|(beginning, _)| call.starts_with(beginning));
    of_it.max_by_key(|(beginning, _)| beginning.len()).map(|(_, version)| *version)
}

/// Whether `mark`, which is `Images.Get` or a longer suffix of the full name that makes it unique, is this call.
fn is_mark(mark: &str, package: &str, service: &str, method: &str) -> bool {
    let name = format!("{package}.{service}.{method}");
    name.strip_suffix(mark).is_some_and(|before| before.ends_with('.'))
}

/// The declarations of all system tests, by name.
fn marks() -> Outcome<(Vec<Test>, Vec<Difference>)> {
    let root = crate::workspace_root().join(TESTS);
    let mut files = BTreeMap::new();
    read_below(&root, &root, &mut files)?;
    let (mut tests, mut differences) = (Vec::new(), Vec::new());
    for (module, text) in &files {
        tests.extend(tests_of(module, text));
        differences.extend(differences_of(module, text));
    }
    Ok((tests, differences))
}

/// Reads the source files below a folder, by module.
fn read_below(root: &Path, folder: &Path, files: &mut BTreeMap<String, String>) -> Outcome {
    let failed = |path: &Path, error| format!("read {}: {error}", path.display());
    for entry in fs::read_dir(folder).map_err(|error| failed(folder, error))? {
        let path = entry.map_err(|error| failed(folder, error))?.path();
        if path.is_dir() {
            read_below(root, &path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let relative = path.strip_prefix(root).expect("it is below").with_extension("");
            let module = relative.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("::");
            files.insert(module, fs::read_to_string(&path).map_err(|error| failed(&path, error))?);
        }
    }
    Ok(())
}

fn tests_of(module: &str, text: &str) -> Vec<Test> {
    let mut tests = Vec::new();
    for body in text.split("#[test]\n").skip(1) {
        let name =
            body.trim_start().strip_prefix("fn ").and_then(|rest| rest.split('(').next()).unwrap_or_default();
        let Some((before, after)) = body.split_once("covers(") else { continue };
        // The list stands in the call itself, in a constant that several tests share, or in a variable before the call.
        let constant = after.split(')').next().map(|name| format!("const {name}: &[&str] = &["));
        let constant = constant.and_then(|beginning| text.split_once(&beginning));
        let list = match constant {
            _ if after.starts_with("&[") => after,
            Some((_, list)) => list,
            None => before.rsplit_once("&[").map_or("", |(_, list)| list),
        };
        let list = list.split(']').next().unwrap_or_default();
        let covers: Vec<String> = strings(list);
        // A walk may be restricted to successful answers (`.well()`) or to refusals.
        let walk = after.split_once(')').map(|(_, rest)| rest.trim_start());
        let part = |rest| [".well()", ".refusals()"].iter().find_map(|part| str::strip_prefix(rest, part));
        let compared = match walk.map(|rest| part(rest).unwrap_or(rest).trim_start()) {
            Some(rest) if rest.starts_with(".walk(") => Compared::Yes,
            Some(rest) if rest.starts_with(".walk_since(") => Compared::Since2,
            _ => Compared::No,
        };
        tests.push(Test { name: format!("{module}::{name}"), covers, compared });
    }
    tests
}

/// Replaces an escaped quote while string literals are parsed.
const QUOTE: &str = "\0";

fn differences_of(module: &str, text: &str) -> Vec<Difference> {
    let difference = |call: &str| {
        let (before, rest) = call.split_once("There::")?;
        let (there, rest) = match rest.split_once('(')? {
            ("Code", rest) => rest.trim_start_matches("Code::").split_once(')')?,
            (_, rest) => rest.split_once('"')?.1.split_once('"')?,
        };
        let there = format!("`{}`", there.replace(QUOTE, "\""));
        let of = match before.trim_start().chars().next()? {
            '1' => "1.6",
            '2' => "2.x",
            _ => "both",
        };
        let (case, why) = (strings(before).into_iter().next()?, strings(rest).into_iter().next()?);
        Some(Difference { module: module.to_owned(), of, case, there, why })
    };
    let text = text.replace("\\\"", QUOTE).replace("differs_in(", "differs(");
    // Skips the definition of the function itself.
    let calls = text.split("differs(").collect::<Vec<_>>();
    let calls = calls.windows(2).filter(|calls| !calls[0].ends_with("fn ")).map(|calls| calls[1]);
    calls.filter_map(difference).collect()
}

/// The contents of the string literals, none of which contains a quote.
fn strings(text: &str) -> Vec<String> {
    text.split('"').skip(1).step_by(2).map(ToOwned::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_has_a_test_and_the_page_says_which() {
        let page = page().unwrap();
        let written = fs::read_to_string(crate::workspace_root().join(PAGE)).unwrap_or_default();
        assert!(page == written, "{PAGE} is not what the tests say: run `cargo xtask api`");
    }

    #[test]
    fn the_longest_prefix_tells_which_containerd_introduced_a_call() {
        let of = |call: &str| since(&format!("containerd.services.{call}"));
        assert_eq!(of("leases.v1.Leases.List"), Some("1.0"));
        assert_eq!(of("leases.v1.Leases.ListResources"), Some("1.3"));
        assert_eq!(of("mounts.v1.Mounts.List"), Some("2.2"));
        assert_eq!(since("hoist.engine.v1.Engine.Call"), None);
        // A prefix that no call has is a mistake in the table.
        for (beginning, _) in SINCE {
            let is_met = SERVICES.iter().any(|(package, service, _, rows)| {
                rows.iter().any(|(_, call, ..)| format!("{package}.{service}.{call}").starts_with(beginning))
            });
            assert!(is_met, "{beginning}");
        }
    }

    #[test]
    fn declarations_of_covered_calls_are_parsed() {
        let text = "#[test]\nfn a_walk() {\n    let methods = &[\"S.A\", \"S.B\"];\n    covers(methods).walk(SAME, x);\n}\n\
                    #[test]\nfn plain() {}\n#[test]\nfn marked() {\n    covers(&[\n        \"S.C\",\n    ]);\n}\n";
        let test = |name: &str, covers: &[&str], compared| Test {
            name: format!("m::{name}"),
            covers: covers.iter().map(ToString::to_string).collect(),
            compared,
        };
        assert_eq!(
            tests_of("m", text),
            [test("a_walk", &["S.A", "S.B"], Compared::Yes), test("marked", &["S.C"], Compared::No)]
        );
        let since = tests_of("m", &text.replace(".walk(", ".walk_since(2, "));
        assert_eq!(since[0], test("a_walk", &["S.A", "S.B"], Compared::Since2));
        let constant = format!("const LIST: &[&str] = &[\n    \"S.D\",\n];\n{text}");
        let of_constant = tests_of("m", &constant.replace("covers(methods)", "covers(LIST)"));
        assert_eq!(of_constant[0], test("a_walk", &["S.D"], Compared::Yes));
        for part in [".well()", ".refusals()"] {
            let of_part = tests_of("m", &text.replace(".walk(", &format!("{part}.walk(")));
            assert_eq!(of_part[0], test("a_walk", &["S.A", "S.B"], Compared::Yes));
        }
        let text = "differs(\n    \"a case\",\n    There::Code(Code::Ok),\n    \"a reason\",\n),\n";
        let found = differences_of("m", text);
        assert_eq!(
            (found[0].case.as_str(), found[0].there.as_str(), found[0].why.as_str()),
            ("a case", "`Ok`", "a reason")
        );
        let text = "differs(\n    \"told\",\n    There::Value(\"[\\\"it\"),\n    \"a reason\",\n),\n";
        assert_eq!(differences_of("m", &format!("{text}{text}"))[0].there, "`[\"it`");
        assert_eq!(differences_of("m", &format!("const fn {text}{text}")).len(), 1);
        let of_2 = text.replace("differs(", "differs_in(\n    2,");
        let found = differences_of("m", &format!("{text}{of_2}"));
        assert_eq!(found.iter().map(|difference| difference.of).collect::<Vec<_>>(), ["both", "2.x"]);
        assert!(is_mark("Images.Get", "containerd.services.images.v1", "Images", "Get"));
        assert!(!is_mark("mages.Get", "containerd.services.images.v1", "Images", "Get"));
    }
}
