//! Merges the metadata of layers into one tree.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use erofs::{Ground, Metadata, Tree};
use linux::beneath::proc_path;
use linux::lower_dirs::LowerDirs;
use rustix::fs::{fgetxattr, flistxattr};
use rustix::io::Errno;
use types::{Context, Result};

use super::Archive;
use super::files::read_image;
use super::tree_cache::TreeCache;

/// Most bytes of an extended attribute, and of the names of a directory's attributes (xattr(7)).
const XATTRS_LEN_MAX: usize = 64 * 1024;

/// Merges layers, nearest first, which lie on the directories `below`. Trees in the cache are taken from there; others
/// are read from their images.
pub(super) fn stacked(layers: &[Archive], below: &[PathBuf], cached: Option<&TreeCache>) -> Result<Tree> {
    let trees = layers.iter().rev().map(|layer| {
        if let Some(tree) = cached.and_then(|cached| cached.take(layer.directory())) {
            return Ok(tree);
        }
        let path = layer.files().image;
        Tree::read(&read_image(&path)?).context(|| path.display().to_string())
    });
    let ground = if below.is_empty() { Ground::Nothing } else { Ground::Layers };
    let mut tree = Tree::stack(trees, ground)?;
    if !below.is_empty() {
        fill_implied(&mut tree, below)?;
    }
    Ok(tree)
}

/// Gives implied directories the metadata that they have in the layers below.
fn fill_implied(tree: &mut Tree, below: &[PathBuf]) -> Result<()> {
    let mut layers = LowerDirs::new(below.to_vec());
    for path in tree.implied()? {
        let path = Path::new(std::ffi::OsStr::from_bytes(&path));
        // A name that is a symlink below is no such directory: the implied one keeps its default metadata.
        let Some(directory) = layers.nearest_directory(path)? else { continue };
        let what = || format!("look at {} in the layers below", path.display());
        let found = fs::metadata(proc_path(directory.as_fd())).context(what)?;
        let attributes = attributes(&directory).map_err(io::Error::from).context(what)?;
        let metadata = Metadata {
            mode: u16::try_from(found.mode() & 0o7777).expect("twelve bits"),
            uid: found.uid(),
            gid: found.gid(),
            mtime: (found.mtime(), u32::try_from(found.mtime_nsec()).unwrap_or(0)),
            attributes: &attributes,
        };
        tree.set_implied_metadata(path.as_os_str().as_bytes(), &metadata)?;
    }
    Ok(())
}

fn attributes(directory: &OwnedFd) -> Result<BTreeMap<String, Vec<u8>>, Errno> {
    let mut names = vec![0; XATTRS_LEN_MAX];
    let len = match flistxattr(directory, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        listed => listed?,
    };
    let mut found = BTreeMap::new();
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let Ok(name) = std::str::from_utf8(name) else { continue };
        let mut value = vec![0; XATTRS_LEN_MAX];
        let len = fgetxattr(directory, name, &mut value[..])?;
        value.truncate(len);
        found.insert(name.to_owned(), value);
    }
    Ok(found)
}
