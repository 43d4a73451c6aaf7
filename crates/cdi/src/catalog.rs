//! The CDI files of all directories, and an index of their devices by qualified name.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use types::{Context, Error, ErrorKind, Result};

use crate::document::{Document, Form, is_qualified};
use crate::edits::Edits;

/// Default search path: `/etc/cdi` for static files, `/var/run/cdi` for generated ones. A later directory takes
/// precedence.
pub const FOLDERS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// Longest CDI file that is read, in bytes: many times what a host with many devices needs.
const FILE_LEN_MAX: u64 = 4 << 20;
/// The most files read from one directory.
const FILES_MAX: usize = 1024;
/// The most devices one container may request.
const ASKED_MAX: usize = 1024;
/// The most device names listed in an error message.
const TOLD_MAX: usize = 20;

/// The devices found in the CDI directories at the time of [`Catalog::read`].
#[derive(Debug, Default)]
pub struct Catalog {
    folders: Vec<PathBuf>,
    devices: BTreeMap<String, Found>,
    /// Why files could not be read or parsed.
    broken: Vec<Error>,
}

#[derive(Debug)]
struct Found {
    document: Arc<Document>,
    at: usize,
    file: PathBuf,
    priority: usize,
    /// Another file of the same directory that defines the same device: a conflict.
    other: Option<PathBuf>,
}

impl Catalog {
    /// Reads the CDI files of these directories; a later directory takes precedence. An unreadable or invalid file does
    /// not affect the other files: its error is reported when a requested device is not found. A missing directory has
    /// no devices.
    pub fn read<P: AsRef<Path>>(folders: &[P]) -> Catalog {
        let mut catalog = Catalog::default();
        for (priority, folder) in folders.iter().enumerate() {
            let folder = folder.as_ref();
            catalog.folders.push(folder.to_owned());
            match list(folder) {
                Ok(files) => files.into_iter().for_each(|(path, form)| catalog.add(path, form, priority)),
                Err(error) => catalog.broken.push(error),
            }
        }
        catalog
    }

    fn add(&mut self, path: PathBuf, form: Form, priority: usize) {
        let read = read(&path).and_then(|bytes| Document::parse(&bytes, form));
        let document = match read {
            Ok(document) => Arc::new(document),
            // The file was removed after it was listed.
            Err(error) if error.is(ErrorKind::NotFound) => return,
            Err(error) => {
                self.broken.push(error.context(format!("read {}", path.display())));
                return;
            }
        };
        for (at, name) in document.names().enumerate() {
            let found = Found { document: document.clone(), at, file: path.clone(), priority, other: None };
            match self.devices.get_mut(&name) {
                Some(known) if known.priority == priority => known.other = Some(path.clone()),
                _ => drop(self.devices.insert(name, found)),
            }
        }
    }

    /// The qualified names of all devices, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.devices.keys().map(String::as_str)
    }

    /// The edits that a container with these devices needs: once for each CDI file involved the edits common to its
    /// devices, then those of each device.
    ///
    /// `NotFound` for a device that no file defines, `FailedPrecondition` for one that two files of a directory define,
    /// `InvalidArgument` for too many devices.
    pub fn edits(&self, names: &[String]) -> Result<Edits> {
        if names.len() > ASKED_MAX {
            return Err(Error::invalid_argument(format!("no container has more than {ASKED_MAX} devices")));
        }
        let (mut edits, mut seen): (Edits, Vec<&Arc<Document>>) = (Edits::default(), Vec::new());
        for name in names {
            let found = self.devices.get(name).ok_or_else(|| self.missing(name))?;
            if let Some(other) = &found.other {
                return Err(Error::failed_precondition(format!(
                    "device {name} is described by both {} and {}; take it out of one of them",
                    found.file.display(),
                    other.display()
                )));
            }
            if !seen.iter().any(|document| Arc::ptr_eq(document, &found.document)) {
                seen.push(&found.document);
                edits.add(&found.document.container_edits);
            }
            edits.add(&found.document.devices[found.at].container_edits);
        }
        Ok(edits)
    }

    fn missing(&self, name: &str) -> Error {
        if !is_qualified(name) {
            return Error::invalid_argument(format!("{name:?} is no device: expected VENDOR/CLASS=NAME"));
        }
        let folders: Vec<String> = self.folders.iter().map(|folder| folder.display().to_string()).collect();
        let mut names: Vec<&str> = self.names().take(TOLD_MAX + 1).collect();
        if names.len() > TOLD_MAX {
            names[TOLD_MAX] = "…";
        }
        let there = match &names[..] {
            [] => "they describe no devices".to_owned(),
            [one] => format!("the only one is {one}"),
            several => format!("there are {}", several.join(", ")),
        };
        let mut message = format!("no file of {} describes device {name}; {there}", folders.join(", "));
        for error in &self.broken {
            message.push_str(&format!("; and could not {}", error.chain()));
        }
        Error::not_found(message)
    }
}

/// Files sorted by name, so that the result does not depend on the order of directory entries.
fn list(folder: &Path) -> Result<Vec<(PathBuf, Form)>> {
    let what = || format!("list {}", folder.display());
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context(what)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.context(what)?.path();
        let form = match path.extension().and_then(std::ffi::OsStr::to_str) {
            Some("json") => Form::Json,
            Some("yaml") => Form::Yaml,
            _ => continue,
        };
        if files.len() == FILES_MAX {
            return Err(Error::resource_exhausted(format!("{}: it has more than {FILES_MAX} files", what())));
        }
        files.push((path, form));
    }
    files.sort_unstable_by(|one, other| one.0.cmp(&other.0));
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let what = || "open it".to_owned();
    // Non-blocking, because the path may be a FIFO.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path).context(what)?;
    if !file.metadata().context(what)?.is_file() {
        return Err(Error::invalid_argument("it is not a regular file"));
    }
    let bytes = stdx::read_at_most(file, FILE_LEN_MAX).context(what)?;
    bytes.ok_or_else(|| Error::resource_exhausted(format!("it has more than {FILE_LEN_MAX} bytes")))
}

#[cfg(test)]
mod tests {
    use types::spec::runtime::Spec;

    use super::*;

    fn document(env: &str, names: &[&str]) -> String {
        let device = |name: &&str| {
            format!(r#"{{"name": "{name}", "containerEdits": {{"env": ["{}={env}"]}}}}"#, name.to_uppercase())
        };
        let devices: Vec<String> = names.iter().map(device).collect();
        format!(
            r#"{{"cdiVersion": "0.5.0", "kind": "v.com/c", "containerEdits": {{"env": ["ALL={env}"]}}, "devices": [{}]}}"#,
            devices.join(", ")
        )
    }

    fn env(catalog: &Catalog, names: &[&str]) -> Result<Vec<String>> {
        let names: Vec<String> = names.iter().map(|name| format!("v.com/c={name}")).collect();
        let mut spec = Spec::default();
        catalog.edits(&names)?.apply(&mut spec)?;
        Ok(spec.process.unwrap_or_default().env)
    }

    #[test]
    fn a_later_cdi_directory_wins_and_two_files_of_one_conflict() {
        let (dir, early, late) = (tempfile::tempdir().unwrap(), "early", "late");
        let folders = [early, late, "nosuch"].map(|name| dir.path().join(name));
        let write = |folder: &str, name: &str, text: &str| {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
            fs::write(dir.path().join(folder).join(name), text).unwrap();
        };
        write(early, "a.json", &document("one", &["a", "b"]));
        write(early, "b.json", &document("two", &["b", "c"]));
        write(early, "c.conf", "of somebody else");
        write(late, "z.yaml", &document("three", &["c"]));
        write(late, "broken.json", "{");
        fs::create_dir(dir.path().join(late).join("folder.json")).unwrap();
        let catalog = Catalog::read(&folders);
        assert_eq!(catalog.names().collect::<Vec<_>>(), ["v.com/c=a", "v.com/c=b", "v.com/c=c"]);
        assert_eq!(env(&catalog, &["a"]).unwrap(), ["ALL=one", "A=one"]);
        assert_eq!(env(&catalog, &["c", "a"]).unwrap(), ["C=three", "ALL=one", "A=one"]);
        let conflict = env(&catalog, &["b"]).unwrap_err();
        assert!(conflict.is(ErrorKind::FailedPrecondition), "{conflict}");
        assert!(conflict.message().contains("early/a.json") && conflict.message().contains("early/b.json"));
        let missing = env(&catalog, &["x"]).unwrap_err();
        for words in
            ["v.com/c=x", "early", "v.com/c=a", "broken.json", "folder.json: it is not a regular file"]
        {
            assert!(missing.is(ErrorKind::NotFound) && missing.message().contains(words), "{missing}");
        }
        // A definition in a later directory resolves the conflict.
        write(late, "y.json", &document("four", &["b"]));
        assert_eq!(env(&Catalog::read(&folders), &["b"]).unwrap(), ["ALL=four", "B=four"]);
    }
}
