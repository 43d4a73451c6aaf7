//! Reads archives: one tar stream, uncompressed or in gzip or zstd.
//!
//! Paths in an archive are only compared with each other, never opened on the host. Paths that lead out of the
//! archive are refused nevertheless, so that they need no interpretation.

use std::io::{BufRead, BufReader, Read};
use std::path::Component;
use std::path::Path;

use diff::Decoder;
use diff::tar::{Kind, Reader};
use types::{Context, Error, Result};

use super::{DOCUMENT_LEN_MAX, Found, Importer, blob_digest};

/// Entries of an archive at most: many more than layers in the largest image.
const ENTRIES_MAX: usize = 1 << 17;
/// Bytes of a path (PATH_MAX), and of all paths together, which are kept in memory to the end.
const PATH_LEN_MAX: usize = 4096;
const PATHS_LEN_MAX: usize = 16 << 20;

impl Importer<'_> {
    pub(super) fn read_archive(&self, source: impl Read + Send) -> Result<Found> {
        let what = || "read archive";
        let mut source = BufReader::new(source);
        refuse_other_compression(source.fill_buf().context(what)?)?;
        let mut archive = Reader::new(BufReader::new(Decoder::new(source).context(what)?));
        let mut found = Found::default();
        let mut is_layout = false;
        let (mut entries, mut paths) = (0, 0);
        while let Some(entry) = archive.next_entry().context(what)? {
            entries += 1;
            if entries > ENTRIES_MAX {
                return Err(Error::invalid_argument(format!("more than {ENTRIES_MAX} entries")));
            }
            refuse_long(&entry.path)?;
            let name = String::from_utf8_lossy(&entry.path).into_owned();
            let leaves =
                |why: &str| Error::invalid_argument(format!("entry {name:?} leads out of the archive{why}"));
            let path = inside("", &name).ok_or_else(|| leaves(""))?;
            match &entry.kind {
                Kind::File if entry.sparse.is_none() => {}
                Kind::File => return Err(Error::invalid_argument(format!("entry {name:?} is sparse"))),
                Kind::Symlink(target) | Kind::HardLink(target) => {
                    let folder = match entry.kind {
                        Kind::Symlink(_) => path.rsplit_once('/').map_or("", |(folder, _)| folder),
                        _ => "",
                    };
                    refuse_long(target)?;
                    let target = String::from_utf8_lossy(target);
                    let meant = inside(folder, &target).ok_or_else(|| leaves(&format!(", to {target:?}")))?;
                    keep_room(&mut paths, path.len() + meant.len())?;
                    found.links.insert(path, meant);
                    continue;
                }
                _ => continue,
            }
            let document = |archive: &mut Reader<_>, before: &Option<Vec<u8>>| {
                if before.is_some() {
                    return Err(Error::invalid_argument(format!("{path} is there twice")));
                }
                archive.read_all(DOCUMENT_LEN_MAX).context(|| format!("read {path}")).map(Some)
            };
            match path.as_str() {
                "index.json" => found.index = document(&mut archive, &found.index)?,
                "manifest.json" => found.docker_manifest = document(&mut archive, &found.docker_manifest)?,
                "repositories" => found.has_repositories = true,
                "oci-layout" => is_layout = true,
                // Docker before 1.10 wrote these beside each layer.
                _ if path.ends_with("/VERSION") || path.ends_with("/json") => {}
                _ => {
                    keep_room(&mut paths, path.len())?;
                    let expected = blob_digest(&path);
                    let data = &mut Data(&mut archive);
                    let stored = self.store(&path, "", expected.as_ref(), Some(entry.size), data)?;
                    if found.files.get(&path).is_some_and(|before| *before != stored) {
                        return Err(Error::invalid_argument(format!("{path} is there twice, and differs")));
                    }
                    found.files.insert(path, stored);
                }
            }
        }
        // Of both lists, containerd reads the index only beside the file that says what it is.
        if !is_layout && found.docker_manifest.is_some() {
            found.index = None;
        }
        Ok(found)
    }
}

/// No operating system accepts longer paths.
fn refuse_long(path: &[u8]) -> Result<()> {
    let len = path.len();
    if len > PATH_LEN_MAX {
        let words = format!("a path of {len} bytes, more than the {PATH_LEN_MAX} allowed");
        return Err(Error::invalid_argument(words));
    }
    Ok(())
}

/// Counts the bytes of kept paths.
fn keep_room(paths: &mut usize, len: usize) -> Result<()> {
    *paths += len;
    if *paths > PATHS_LEN_MAX {
        let words = format!("the paths of its entries have more than the {PATHS_LEN_MAX} bytes allowed");
        return Err(Error::invalid_argument(words));
    }
    Ok(())
}

/// A normalized path beneath a directory of the archive. `None` if it is absolute or leads above the top.
fn inside(folder: &str, name: &str) -> Option<String> {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    let is_link_target = !folder.is_empty();
    for component in Path::new(name).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            // Link targets of older archives contain `..`; entry names have no reason to.
            Component::ParentDir if is_link_target => drop(parts.pop()?),
            _ => return None,
        }
    }
    Some(parts.join("/"))
}

/// Names an unsupported compression, instead of reporting a broken tar.
fn refuse_other_compression(prefix: &[u8]) -> Result<()> {
    let (name, program) = match prefix {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => ("xz", "xz"),
        [b'B', b'Z', b'h', ..] => ("bzip2", "bzip2"),
        _ => return Ok(()),
    };
    Err(Error::unimplemented(format!(
        "it is compressed with {name}; gzip, zstd and plain tar are read: unpack it first ({program} -d)"
    )))
}

/// The data of the current entry, as a reader.
struct Data<'a, R>(&'a mut Reader<R>);

impl<R: BufRead> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read_data(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        for (folder, name, meant) in [
            ("", "a/b", Some("a/b")),
            ("", "./a//b/.", Some("a/b")),
            ("", "a/../b", None),
            ("", "../a", None),
            ("", "/a", None),
            ("a/b", "../c/layer.tar", Some("a/c/layer.tar")),
            ("a", "../layer.tar", Some("layer.tar")),
            ("a", "../../layer.tar", None),
            ("a", "/etc/passwd", None),
        ] {
            assert_eq!(inside(folder, name).as_deref(), meant, "{folder} {name}");
        }
    }
}
