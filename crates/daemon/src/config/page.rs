//! Generates `docs/config.md`, the reference of all keys: from `raw.rs`, the comment, type and default of each key.
//!
//! `cargo xtask config` writes it by running the test that compares it with the source.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use toml::{Table, Value};

use super::raw::Raw;
use super::table;

const SOURCE: &str = include_str!("raw.rs");
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/config.md");
/// Set by `cargo xtask config`.
const WRITES: &str = "HOIST_WRITE_PAGE";

const BEGINNING: &str = "\
# Configuration, key by key

<!-- Written by `cargo xtask config` from crates/daemon/src/config/raw.rs. -->

Every key of `/etc/hoist/config.toml` and of the files it imports. [Configure](operate/configure.md) says where these
files are, how they are merged, and which keys `systemctl reload hoist` applies. A key without a default is unset. Times
are written as `100ms`, `2s`, `1m` or `3h`.
";

/// Structs of the source, by name.
type Structs = BTreeMap<&'static str, Vec<Field>>;

struct Field {
    name: &'static str,
    /// Its type in the source.
    of: &'static str,
    comment: String,
}

fn structs() -> Structs {
    let mut structs = Structs::new();
    let mut open: Option<(&'static str, Vec<Field>)> = None;
    let mut comment = String::new();
    for line in SOURCE.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("pub struct ").and_then(|rest| rest.strip_suffix(" {")) {
            open = Some((name, Vec::new()));
            comment.clear();
        } else if line == "}" {
            structs.extend(open.take());
        } else if let Some(words) = line.strip_prefix("/// ") {
            if !comment.is_empty() {
                comment.push(' ');
            }
            comment.push_str(words);
        } else if let Some((name, of)) =
            line.strip_prefix("pub ").and_then(|rest| rest.strip_suffix(',')?.split_once(": "))
            && let Some((_, fields)) = &mut open
        {
            let comment = std::mem::take(&mut comment);
            fields.push(Field { name: name.trim_start_matches("r#"), of, comment });
        }
    }
    structs
}

/// Heading and keys of a section, if the field is one: `[grpc]`, or `[proxy_plugins.NAME]` for a map of sections.
fn section<'a>(field: &Field, structs: &'a Structs) -> Option<(String, &'a [Field])> {
    let one_of_several = field.of.strip_prefix("BTreeMap<String, ").and_then(|of| of.strip_suffix('>'));
    let fields = structs.get(one_of_several.unwrap_or(field.of))?;
    let end = if one_of_several.is_some() { ".NAME" } else { "" };
    Some((format!("[{}{end}]", field.name), fields.as_slice()))
}

/// The TOML type of a type in the source.
fn kind(of: &str) -> &'static str {
    let of = of.strip_prefix("Option<").and_then(|of| of.strip_suffix('>')).unwrap_or(of);
    match of {
        "bool" => "boolean",
        "f64" => "number",
        "i32" | "i64" | "u32" | "u64" => "integer",
        "Vec<String>" => "list of strings",
        "BTreeMap<String, String>" => "table of strings",
        "Paths" => "string, or list of strings",
        // Paths, durations, and words of a fixed set.
        _ => "string",
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => format!("{number:?}"),
        Value::Boolean(is_so) => is_so.to_string(),
        Value::Array(values) => format!("[{}]", values.iter().map(shown).collect::<Vec<_>>().join(", ")),
        Value::Datetime(_) | Value::Table(_) => panic!("no key has such a default: {value:?}"),
    }
}

fn write_keys(page: &mut String, fields: &[Field], defaults: &Table, structs: &Structs) {
    page.push_str("\n| key | type | default | meaning |\n|---|---|---|---|\n");
    for field in fields.iter().filter(|field| section(field, structs).is_none()) {
        let name = field.name;
        assert!(!field.comment.is_empty(), "crates/daemon/src/config/raw.rs: {name} has no comment");
        let default = defaults.get(name).map(|value| format!("`{}`", shown(value))).unwrap_or_default();
        let (kind, meaning) = (kind(field.of), field.comment.replace('|', "\\|"));
        let _ = writeln!(page, "| `{name}` | {kind} | {default} | {meaning} |");
    }
}

fn page() -> String {
    let (structs, defaults, none) = (structs(), table(&Raw::default()), Table::new());
    let top = &structs["Raw"];
    let mut page = BEGINNING.to_owned();
    page.push_str("\n## At the top of the file\n");
    write_keys(&mut page, top, &defaults, &structs);
    for field in top {
        let Some((head, fields)) = section(field, &structs) else { continue };
        let _ = writeln!(page, "\n## `{head}`");
        if !field.comment.is_empty() {
            let _ = writeln!(page, "\n{}", field.comment);
        }
        let of_section = defaults.get(field.name).and_then(Value::as_table);
        write_keys(&mut page, fields, of_section.unwrap_or(&none), &structs);
    }
    page
}

#[test]
fn the_page_has_every_key_as_the_source_says_it() {
    let page = page();
    if std::env::var_os(WRITES).is_some() {
        fs::write(PAGE, &page).unwrap();
    }
    let written = fs::read_to_string(PAGE).unwrap_or_default();
    assert!(page == written, "docs/config.md is not what raw.rs says: run `cargo xtask config`");
}

#[test]
fn every_key_that_has_a_default_is_found_in_the_source() {
    let structs = structs();
    let find = |fields: &[Field], name: &str| fields.iter().any(|field| field.name == name);
    for (name, value) in &table(&Raw::default()) {
        assert!(find(&structs["Raw"], name), "{name}");
        let Some(keys) = value.as_table() else { continue };
        let field = structs["Raw"].iter().find(|field| field.name == name).unwrap();
        let (head, fields) = section(field, &structs).unwrap();
        for key in keys.keys() {
            assert!(find(fields, key), "{head} {key}");
        }
    }
}
