//! The lower directories of an overlay, looked through one by one, and not as overlayfs shows them together.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use types::Result;

use crate::beneath::{Found, Root};

/// Trees of layers, the nearest first. Each is opened when a search comes to it.
pub struct LowerDirs {
    trees: Vec<PathBuf>,
    opened: Vec<Root>,
}

impl LowerDirs {
    pub fn new(trees: Vec<PathBuf>) -> LowerDirs {
        LowerDirs { trees, opened: Vec::new() }
    }

    /// The directory at a path in the nearest layer that has anything there, even if an opaque directory of a nearer
    /// one hides it. `None` if no layer has the path, or the nearest has a whiteout or another file there or on the
    /// way.
    pub fn nearest_directory(&mut self, path: &Path) -> Result<Option<OwnedFd>> {
        for (at, tree) in self.trees.iter().enumerate() {
            if at == self.opened.len() {
                self.opened.push(Root::open(tree)?);
            }
            match self.opened[at].find_directory(path)? {
                Found::Directory(directory) => return Ok(Some(directory)),
                Found::Other => return Ok(None),
                Found::Nothing => {}
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn the_nearest_layer_that_has_a_path_says_what_is_there() {
        let dir = tempfile::TempDir::new().unwrap();
        let layers = ["upper", "middle", "lower"].map(|name| dir.path().join(name));
        let [upper, middle, lower] = &layers;
        for made in [upper.join("a"), middle.join("a/b"), lower.join("a/b/c"), lower.join("e/f")] {
            fs::create_dir_all(made).unwrap();
        }
        fs::create_dir_all(lower.join("d/x")).unwrap();
        fs::write(middle.join("d"), "").unwrap();
        symlink("a", middle.join("e")).unwrap();
        let mut dirs = LowerDirs::new(layers.to_vec());
        let mut check = |path: &str, expected: Option<&Path>| {
            let found = dirs.nearest_directory(Path::new(path)).unwrap();
            let found = found.map(|found| fs::File::from(found).metadata().unwrap().ino());
            let expected = expected.map(|tree| fs::metadata(tree.join(path)).unwrap().ino());
            assert_eq!(found, expected, "{path}");
        };
        for (path, tree) in [("", upper), ("a", upper), ("a/b", middle), ("a/b/c", lower)] {
            check(path, Some(tree.as_path()));
        }
        for path in ["d", "d/x", "e", "e/f", "nosuch", "a/nosuch/x"] {
            check(path, None);
        }
    }
}
