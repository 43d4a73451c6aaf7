//! Parses the two arguments of `cp`, and determines the name of the copy.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use types::{Context, Error, Result};

/// The number of symlinks that are followed: the kernel's limit (path_resolution(7)).
const SYMLINKS_MAX: usize = 40;

/// One of the arguments.
#[derive(Debug, PartialEq)]
pub(super) enum End<'a> {
    /// A path on this machine, or `-`.
    Here(&'a str),
    Container {
        id: &'a str,
        path: &'a str,
    },
}

impl End<'_> {
    /// Parses an argument. One that begins with `/` or `.` is a path, even with a colon.
    pub(super) fn parse(word: &str) -> End<'_> {
        match word.split_once(':') {
            Some((id, path)) if !id.is_empty() && !id.starts_with(['/', '.']) => End::Container { id, path },
            _ => End::Here(word),
        }
    }
}

/// Whether the path's form says that it is a directory.
fn means_directory(path: &str) -> bool {
    path.ends_with('/') || is_contents(path)
}

/// Whether the path means the contents of a directory instead of the directory.
pub(super) fn is_contents(path: &str) -> bool {
    path == "." || path.ends_with("/.")
}

/// The source of a copy.
#[derive(Debug)]
pub(super) struct Source {
    /// The name of the copy in an existing directory.
    pub(super) name: OsString,
    pub(super) is_directory: bool,
    pub(super) contents: bool,
}

impl Source {
    /// The name in the archive before it is renamed: `.` is the directory into which it is extracted.
    pub(super) fn own_name(&self) -> &OsStr {
        if self.contents || self.name == "/" { OsStr::new(".") } else { &self.name }
    }
}

/// The destination of a copy.
#[derive(Debug)]
pub(super) struct Target {
    path: PathBuf,
    /// Whether the path is a directory. `None` if nothing exists there.
    is_directory: Option<bool>,
    means_directory: bool,
}

impl Target {
    pub(super) fn of(path: &str, is_directory: Option<bool>) -> Target {
        Target { path: PathBuf::from(path), is_directory, means_directory: means_directory(path) }
    }

    /// A destination on this machine. Symlinks are followed, also if the path that they lead to does not exist.
    pub(super) fn here(path: &Path) -> Result<Target> {
        let means_directory = path.to_str().is_some_and(means_directory);
        let mut path = path.to_owned();
        for _ in 0..SYMLINKS_MAX {
            match fs::read_link(&path) {
                Ok(target) => path = path.parent().unwrap_or(Path::new("")).join(target),
                Err(_) => break,
            }
        }
        let shown = path.display();
        let is_directory = match fs::metadata(&path) {
            Ok(found) if found.is_dir() => Some(true),
            Ok(found) if found.is_file() => Some(false),
            Ok(_) => {
                return Err(Error::invalid_argument(format!(
                    "invalid output path: {shown} must be a directory or a regular file"
                )));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let above = path.parent().filter(|above| !above.as_os_str().is_empty());
                if above.is_some_and(|above| !above.is_dir()) {
                    let above = above.unwrap_or(Path::new("")).display();
                    return Err(Error::not_found(format!(
                        "invalid output path: directory {above} does not exist"
                    )));
                }
                None
            }
            found => found.map(|_| None).context(|| format!("look at {shown}"))?,
        };
        Ok(Target { path, is_directory, means_directory })
    }
}

/// The directory of the copy, and its name there: `.` is the directory itself.
pub(super) fn place(source: &Source, target: Target) -> Result<(PathBuf, OsString)> {
    let Target { path, is_directory, means_directory } = target;
    if is_directory == Some(true) {
        return Ok((path, source.own_name().to_owned()));
    }
    if is_directory == Some(false) && (source.is_directory || means_directory) {
        let what = if source.is_directory { "cannot copy a directory there" } else { "it is no directory" };
        return Err(Error::invalid_argument(format!("{}: {what}", path.display())));
    }
    if is_directory.is_none() && means_directory && !source.is_directory {
        return Err(Error::not_found(format!("no such directory: {}", path.display())));
    }
    let name = path.file_name().map(OsStr::to_owned);
    let name = name.ok_or_else(|| Error::invalid_argument(format!("{} has no name", path.display())))?;
    let folder = match path.parent() {
        Some(above) if !above.as_os_str().is_empty() => above.to_owned(),
        _ => PathBuf::from("."),
    };
    Ok((folder, name))
}

/// A source on this machine: a name in a directory.
pub(super) struct Local {
    pub(super) folder: OwnedFd,
    pub(super) name: OsString,
    pub(super) source: Source,
}

impl Local {
    pub(super) fn find(word: &str, follows: bool) -> Result<Local> {
        let what = || format!("look at {word}");
        let path = Path::new(word);
        if is_contents(word) {
            let source = Source { name: OsString::from("."), is_directory: true, contents: true };
            return Ok(Local { folder: open(path)?, name: OsString::from("."), source });
        }
        let last = path.components().next_back();
        let is_plain = matches!(last, Some(Component::Normal(_))) && !word.ends_with('/');
        let (path, called) = if follows || !is_plain {
            let real = fs::canonicalize(path).context(what)?;
            let called = path.file_name().or(real.file_name()).unwrap_or(OsStr::new("/")).to_owned();
            (real, called)
        } else {
            (path.to_owned(), path.file_name().unwrap_or_default().to_owned())
        };
        let is_directory = fs::symlink_metadata(&path).context(what)?.is_dir();
        if word.ends_with('/') && !is_directory {
            return Err(Error::invalid_argument(format!("{word}: not a directory")));
        }
        let source = Source { name: called, is_directory, contents: false };
        let (folder, name) = match (path.parent(), path.file_name()) {
            (Some(above), Some(name)) if !above.as_os_str().is_empty() => (above.to_owned(), name.to_owned()),
            (_, Some(name)) => (PathBuf::from("."), name.to_owned()),
            (_, None) => (path.clone(), OsString::from(".")),
        };
        Ok(Local { folder: open(&folder)?, name, source })
    }
}

fn open(folder: &Path) -> Result<OwnedFd> {
    let what = || format!("open {}", folder.display());
    let file = File::open(folder).context(what)?;
    if !file.metadata().context(what)?.is_dir() {
        return Err(Error::invalid_argument(format!("{}: not a directory", folder.display())));
    }
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_cp_are_container_or_local_paths() {
        let container = |id, path| End::Container { id, path };
        assert_eq!(End::parse("web:/etc/hosts"), container("web", "/etc/hosts"));
        assert_eq!(End::parse("web:"), container("web", ""));
        assert_eq!(End::parse("web:a:b"), container("web", "a:b"));
        for here in ["-", "file", "/a:b", "./a:b", "../a:b", ".:x", ":x"] {
            assert_eq!(End::parse(here), End::Here(here));
        }
    }

    /// The cases of the table in `docker cp`'s documentation.
    #[test]
    fn copies_are_named_as_by_docker_cp() {
        let check = |from: &str, is_directory: bool, to: &str, there: Option<bool>| {
            let name = Path::new(from).file_name().unwrap().into();
            let source = Source { name, is_directory, contents: is_contents(from) };
            let placed = place(&source, Target::of(to, there));
            placed
                .map(|(folder, name)| folder.join(name).display().to_string())
                .map_err(|error| error.chain())
        };
        let (file, folder) = (false, true);
        assert_eq!(check("a/f", file, "/to", None).unwrap(), "/to");
        assert_eq!(check("a/f", file, "/to", Some(false)).unwrap(), "/to");
        assert_eq!(check("a/f", file, "/to", Some(true)).unwrap(), "/to/f");
        assert_eq!(check("a/f", file, "to", None).unwrap(), "./to");
        assert!(check("a/f", file, "/to/", None).unwrap_err().contains("no such directory"));
        assert!(check("a/f", file, "/to/", Some(false)).unwrap_err().contains("no directory"));
        assert_eq!(check("a/d", folder, "/to", None).unwrap(), "/to");
        assert_eq!(check("a/d", folder, "/to/", None).unwrap(), "/to");
        assert_eq!(check("a/d", folder, "/to", Some(true)).unwrap(), "/to/d");
        assert_eq!(check("a/d/.", folder, "/to", None).unwrap(), "/to");
        assert_eq!(check("a/d/.", folder, "/to", Some(true)).unwrap(), "/to/.");
        assert!(check("a/d", folder, "/to", Some(false)).unwrap_err().contains("cannot copy a directory"));
    }
}
