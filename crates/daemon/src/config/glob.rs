//! Expands patterns in paths with the syntax of Go's `filepath.Glob`: `*`, `?`, `[a-z]`, `[^a-z]`, and `\` to quote a
//! character. A pattern matches within one path component.

use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use types::{Context, Error, Result};

/// The existing paths that match, sorted. `InvalidArgument` for an invalid pattern.
pub(super) fn expand(pattern: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::new()];
    for component in pattern.components() {
        let name = match component {
            Component::Normal(name) => name.to_str(),
            _ => None,
        };
        let Some(name) = name.filter(|name| name.contains(['*', '?', '[', '\\'])) else {
            found.iter_mut().for_each(|path| path.push(component));
            continue;
        };
        let pieces = pieces(name)
            .ok_or_else(|| Error::invalid_argument(format!("syntax error in pattern {name:?}")))?;
        let mut longer = Vec::new();
        for folder in found {
            longer.extend(
                names(&folder)?
                    .into_iter()
                    .filter(|name| matches(&pieces, name))
                    .map(|name| folder.join(name)),
            );
        }
        found = longer;
    }
    found.retain(|path| fs::symlink_metadata(path).is_ok());
    Ok(found)
}

/// The entries of a directory, sorted; none if it is not a directory.
fn names(folder: &Path) -> Result<Vec<String>> {
    let what = || format!("read {}", folder.display());
    let entries = match fs::read_dir(folder) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        entries => entries.context(what)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.context(what)?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

enum Piece {
    Any,
    One,
    Char(char),
    Class { ranges: Vec<(char, char)>, is_negated: bool },
}

fn pieces(pattern: &str) -> Option<Vec<Piece>> {
    let (mut rest, mut pieces) = (pattern.chars().peekable(), Vec::new());
    while let Some(char) = rest.next() {
        pieces.push(match char {
            '*' => Piece::Any,
            '?' => Piece::One,
            '\\' => Piece::Char(rest.next()?),
            '[' => {
                let is_negated = rest.next_if_eq(&'^').is_some();
                let mut ranges = Vec::new();
                // An empty class is an error, and therefore `]` as its first character as well.
                while ranges.is_empty() || rest.next_if_eq(&']').is_none() {
                    let low = bound(&mut rest)?;
                    let high = if rest.next_if_eq(&'-').is_some() { bound(&mut rest)? } else { low };
                    ranges.push((low, high));
                }
                Piece::Class { ranges, is_negated }
            }
            char => Piece::Char(char),
        });
    }
    Some(pieces)
}

fn bound(rest: &mut impl Iterator<Item = char>) -> Option<char> {
    match rest.next()? {
        '-' | ']' => None,
        '\\' => rest.next(),
        char => Some(char),
    }
}

fn matches(pieces: &[Piece], name: &str) -> bool {
    let Some((piece, others)) = pieces.split_first() else { return name.is_empty() };
    let mut chars = name.chars();
    let first = chars.next();
    let is_first = match piece {
        Piece::Any => return matches(others, name) || (first.is_some() && matches(pieces, chars.as_str())),
        Piece::One => first.is_some(),
        Piece::Char(char) => first == Some(*char),
        Piece::Class { ranges, is_negated } => first.is_some_and(|first| {
            ranges.iter().any(|(low, high)| (*low..=*high).contains(&first)) != *is_negated
        }),
    };
    is_first && matches(others, chars.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_patterns_as_in_go() {
        for (pattern, name, expected) in [
            ("*.toml", "a.toml", Some(true)),
            ("*.toml", ".toml", Some(true)),
            ("*.toml", "a.toml~", Some(false)),
            ("*", "", Some(true)),
            ("?-*.toml", "1-x.toml", Some(true)),
            ("?-*.toml", "10-x.toml", Some(false)),
            ("a*b*c", "aXbXbc", Some(true)),
            ("[ab]*.toml", "b.toml", Some(true)),
            ("[ab]*.toml", "c.toml", Some(false)),
            ("[^a-c]x", "dx", Some(true)),
            ("[^a-c]x", "bx", Some(false)),
            ("[!a]", "!", Some(true)),
            ("[\\]]", "]", Some(true)),
            ("?", "é", Some(true)),
            ("\\*", "*", Some(true)),
            ("\\*", "a", Some(false)),
            ("[]a]", "]", None),
            ("[a", "a", None),
            ("[a-]", "a", None),
            ("[-a]", "a", None),
            ("a\\", "a", None),
        ] {
            let found = pieces(pattern).map(|pieces| matches(&pieces, name));
            assert_eq!(found, expected, "{pattern} {name}");
        }
    }

    #[test]
    fn patterns_may_stand_in_every_name_of_a_path() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["x.d/2/a.toml", "x.d/1/a.toml", "x.d/1/b.toml", "x.d/3", "y.d/1/a.toml"] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        for (pattern, expected) in [
            ("x.d/*/a.toml", &["x.d/1/a.toml", "x.d/2/a.toml"][..]),
            ("[xy].d/1/a*", &["x.d/1/a.toml", "y.d/1/a.toml"]),
            ("*/*/[b-z]*", &["x.d/1/b.toml"]),
            ("nosuch/*", &[]),
            ("x.d/*/../3", &["x.d/1/../3", "x.d/2/../3"]),
        ] {
            let found = expand(&dir.path().join(pattern)).unwrap();
            let found: Vec<_> = found.iter().map(|path| path.strip_prefix(dir.path()).unwrap()).collect();
            assert_eq!(found, expected.iter().map(Path::new).collect::<Vec<_>>(), "{pattern}");
        }
        assert!(expand(&dir.path().join("[x/*")).is_err());
    }
}
