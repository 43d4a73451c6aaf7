//! The files of an image, from its layers and without unpacking them.
//!
//! Layers are read from the lowest to the topmost into one tree of names; whiteouts (image-spec `layer.md`)
//! take away what lower layers brought.

use std::collections::BTreeMap;
use std::io::BufReader;
use std::ops::Bound;

use diff::Decoder;
use diff::tar::{Entry, Kind, Reader};
use metadata::{Caller, Metadata};
use types::spec::image::Manifest;
use types::{Context, Error, Result};

/// Names in an image. A distribution has a few hundred thousand.
const FILES_MAX: usize = 1 << 22;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// One name in an image.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageFile {
    /// From the root, without a slash before it.
    pub path: String,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime_seconds: i64,
    /// The layer that brought it, counted from the lowest, which is 0.
    pub layer: usize,
}

/// Every file of an image, by path.
pub fn files(metadata: &Metadata, caller: &Caller, manifest: &Manifest) -> Result<Vec<ImageFile>> {
    let mut tree = Tree::default();
    for (at, layer) in manifest.layers.iter().enumerate() {
        image::check_layer(layer)?;
        let what = || format!("read layer {}", layer.digest);
        let blob = metadata.content(caller).reader(&layer.digest).map_err(|error| error.context(what()))?;
        let mut archive = Reader::new(BufReader::new(Decoder::new(blob).context(what)?));
        while let Some(entry) = archive.next_entry().context(what)? {
            tree.apply(at, &entry);
            if tree.names.len() > FILES_MAX {
                return Err(Error::resource_exhausted(format!("an image of more than {FILES_MAX} files")));
            }
        }
    }
    let lossy = |(path, file): (Vec<u8>, ImageFile)| ImageFile {
        path: String::from_utf8_lossy(&path).into_owned(),
        ..file
    };
    Ok(tree.names.into_iter().map(lossy).collect())
}

/// Names with what they are. A subtree is what begins with its folder and a slash.
#[derive(Default)]
struct Tree {
    names: BTreeMap<Vec<u8>, ImageFile>,
}

impl Tree {
    fn apply(&mut self, layer: usize, entry: &Entry) {
        let path = clean(&entry.path);
        let (folder, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&path[..0], &path[..]),
        };
        if name == OPAQUE {
            return self.remove_below(folder, layer);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            let mut gone = folder.to_vec();
            if !gone.is_empty() {
                gone.push(b'/');
            }
            gone.extend_from_slice(hidden);
            if self.names.get(&gone).is_some_and(|file| file.layer < layer) {
                self.names.remove(&gone);
            }
            return self.remove_below(&gone, layer);
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
        // Another name of a file is that file.
        let file = linked.map_or(own, |target| ImageFile { layer, ..target });
        self.names.insert(path, file);
    }

    /// Takes away what layers below `layer` brought beneath a folder.
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
        gone.iter().for_each(|path| drop(self.names.remove(path)));
    }
}

/// Without `.`, empty parts and the slash before it; `..` stops at the root, as when it is unpacked.
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
