//! Lists the files of an image from its layers, without unpacking them.
//!
//! Layers are applied from the lowest to the topmost to one tree of names; whiteouts (image-spec `layer.md`) remove
//! names of lower layers.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufReader;
use std::ops::Bound;

use diff::Decoder;
use diff::tar::{Entry, Kind, Reader};
use metadata::{Caller, Metadata};
use types::spec::image::Manifest;
use types::{Context, Error, Result};

use crate::unpack::open_layer;

/// Names in an image at most. A distribution has a few hundred thousand.
const FILES_MAX: usize = 1 << 22;
/// Bytes of all names and link targets at most. A distribution has some tens of millions.
const TEXT_LEN_MAX: usize = 256 << 20;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// A file of an image, under one of its names.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageFile {
    /// From the root, without a leading slash.
    pub path: String,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime_seconds: i64,
    /// The index of the layer that added it, from the lowest.
    pub layer: usize,
}

/// Every file of an image, sorted by path. `ResourceExhausted` beyond the limits of this module.
pub fn files(metadata: &Metadata, caller: &Caller, manifest: &Manifest) -> Result<Vec<ImageFile>> {
    let mut tree = Tree::default();
    for (at, layer) in manifest.layers.iter().enumerate() {
        let what = || format!("read layer {}", layer.digest);
        let blob = open_layer(metadata, caller, layer).map_err(|error| error.context(what()))?;
        tree.begin();
        let mut archive = Reader::new(BufReader::new(Decoder::new(blob).context(what)?));
        while let Some(entry) = archive.next_entry().context(what)? {
            tree.apply(at, &entry);
            tree.check(FILES_MAX, TEXT_LEN_MAX)?;
        }
    }
    let lossy = |(path, file): (Vec<u8>, ImageFile)| ImageFile {
        path: String::from_utf8_lossy(&path).into_owned(),
        ..file
    };
    Ok(tree.names.into_iter().map(lossy).collect())
}

/// Files by name. A directory's subtree has its name and a slash as prefix.
#[derive(Default)]
struct Tree {
    names: BTreeMap<Vec<u8>, ImageFile>,
    /// Bytes of the names and link targets.
    text_len: usize,
    /// Directories that the current layer has emptied of lower layers' names. A layer may repeat a whiteout many
    /// times, and each time would cost a walk over all names.
    emptied: BTreeSet<Vec<u8>>,
}

impl Tree {
    fn check(&self, files_max: usize, text_len_max: usize) -> Result<()> {
        if self.names.len() > files_max {
            return Err(Error::resource_exhausted(format!("an image of more than {files_max} files")));
        }
        if self.text_len > text_len_max {
            let message = format!("an image whose files have names of more than {text_len_max} bytes");
            return Err(Error::resource_exhausted(message));
        }
        Ok(())
    }

    fn insert(&mut self, path: Vec<u8>, file: ImageFile) {
        self.remove(&path);
        self.text_len += text_len(&path, &file);
        self.names.insert(path, file);
    }

    fn remove(&mut self, path: &[u8]) {
        if let Some(file) = self.names.remove(path) {
            self.text_len -= text_len(path, &file);
        }
    }

    fn apply(&mut self, layer: usize, entry: &Entry) {
        let path = clean(&entry.path);
        let (folder, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&path[..0], &path[..]),
        };
        if name == OPAQUE {
            return self.empty(folder, layer);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            let mut gone = folder.to_vec();
            if !gone.is_empty() {
                gone.push(b'/');
            }
            gone.extend_from_slice(hidden);
            if self.names.get(&gone).is_some_and(|file| file.layer < layer) {
                self.remove(&gone);
            }
            return self.empty(&gone, layer);
        }
        if path.is_empty() {
            return; // the root
        }
        if entry.kind != Kind::Directory {
            self.remove_below(&path, layer + 1);
        }
        let linked = match &entry.kind {
            Kind::HardLink(target) => self.names.get(&clean(target)).cloned(),
            _ => None,
        };
        let own = ImageFile {
            path: String::new(),
            kind: entry.kind.clone(),
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            size: entry.size,
            mtime_seconds: entry.mtime.0,
            layer,
        };
        // A hard link has its target's attributes.
        let file = linked.map_or(own, |target| ImageFile { layer, ..target });
        self.insert(path, file);
    }

    /// Removes what layers below `layer`, the current one, put beneath a directory.
    fn empty(&mut self, folder: &[u8], layer: usize) {
        if self.emptied.insert(folder.to_vec()) {
            self.text_len += folder.len();
            self.remove_below(folder, layer);
        }
    }

    /// Begins the next layer.
    fn begin(&mut self) {
        self.text_len -= self.emptied.iter().map(Vec::len).sum::<usize>();
        self.emptied.clear();
    }

    /// Removes what layers below `layer` put beneath a directory.
    fn remove_below(&mut self, folder: &[u8], layer: usize) {
        let mut prefix = folder.to_vec();
        if !prefix.is_empty() {
            prefix.push(b'/');
        }
        let beneath = self.names.range((Bound::Included(prefix.clone()), Bound::Unbounded));
        let gone: Vec<Vec<u8>> = beneath
            .take_while(|(path, _)| path.starts_with(&prefix))
            .filter(|(_, file)| file.layer < layer)
            .map(|(path, _)| path.clone())
            .collect();
        gone.iter().for_each(|path| self.remove(path));
    }
}

fn text_len(path: &[u8], file: &ImageFile) -> usize {
    let target = match &file.kind {
        Kind::Symlink(target) | Kind::HardLink(target) => target.len(),
        _ => 0,
    };
    path.len() + target
}

/// Normalizes a path: without `.`, empty parts and the leading slash; `..` stops at the root, as when unpacking.
fn clean(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

#[cfg(test)]
mod tests {
    use testkit::layout::tar_of;

    use super::*;

    /// Each opaque whiteout costs a walk over the names below its directory, and a small layer has room for millions
    /// of them.
    #[test]
    fn a_folder_is_emptied_once_however_often_a_layer_says_so() {
        const NAMES: usize = 10_000;
        let paths: Vec<String> = (0..NAMES).map(|at| format!("d/{at}")).collect();
        let own = paths.iter().map(String::as_str);
        let markers = ["d/.wh..wh..opq", ".wh.d"].into_iter().cycle().take(NAMES);
        let files: Vec<(&str, &str)> = own.chain(markers).map(|path| (path, "")).collect();
        let layers = [tar_of(&[("d/below", "")]), tar_of(&files)];
        let mut tree = Tree::default();
        let begun = std::time::Instant::now();
        for (layer, archive) in layers.iter().enumerate() {
            tree.begin();
            let mut entries = Reader::new(&archive[..]);
            while let Some(entry) = entries.next_entry().unwrap() {
                tree.apply(layer, &entry);
            }
        }
        assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
        assert!(tree.names.len() == NAMES && !tree.names.contains_key(&b"d/below"[..]));
        // Another layer may add again what one layer removed, for a third to remove.
        tree.begin();
        let marker = tar_of(&[("d/.wh..wh..opq", "")]);
        tree.apply(2, &Reader::new(&marker[..]).next_entry().unwrap().unwrap());
        assert_eq!(tree.names.len(), 0);
    }

    #[test]
    fn names_have_a_bound_together() {
        let long = "x".repeat(90);
        let paths: Vec<String> = (0..10).map(|at| format!("{long}{at}")).collect();
        let files: Vec<(&str, &str)> = paths.iter().map(|path| (path.as_str(), "")).collect();
        let archive = tar_of(&files);
        let mut tree = Tree::default();
        // The same names again.
        for layer in 0..2 {
            let mut entries = Reader::new(&archive[..]);
            while let Some(entry) = entries.next_entry().unwrap() {
                tree.apply(layer, &entry);
            }
            assert_eq!(tree.text_len, 910);
        }
        tree.check(10, 910).unwrap();
        assert!(tree.check(10, 909).unwrap_err().message().contains("909 bytes"));
        assert!(tree.check(9, 910).unwrap_err().message().contains("9 files"));
        tree.remove_below(b"", 2);
        assert_eq!(tree.text_len, 0);
    }
}
