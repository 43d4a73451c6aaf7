//! Program lookup in a search path such as `PATH`.

use std::env;
use std::ffi::OsStr;
use std::path::PathBuf;

/// The first file of this name in the absolute directories of `path`. Relative ones depend on the working directory,
/// and are skipped.
pub fn find(program: &str, path: &OsStr) -> Option<PathBuf> {
    let folders = env::split_paths(path).filter(|folder| folder.is_absolute());
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_first_file_counts_and_nothing_relative() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for folder in ["none", "folder/tool", "one", "two"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        for file in ["one/tool", "two/tool", "two/other"] {
            fs::write(at(file), "").unwrap();
        }
        let find_in = |folders: &[&str], program: &str| {
            find(program, &env::join_paths(folders.iter().map(|folder| at(folder))).unwrap())
        };
        assert_eq!(find_in(&["missing", "none", "folder", "one", "two"], "tool"), Some(at("one/tool")));
        assert_eq!(find_in(&["two", "one"], "tool"), Some(at("two/tool")));
        assert_eq!(find_in(&["one", "two"], "other"), Some(at("two/other")));
        assert_eq!(find_in(&["one", "folder"], "other"), None);
        assert_eq!(find("tool", OsStr::new("")), None);
        // The tests' working directory is the crate's, which has this file.
        assert_eq!(find("lib.rs", OsStr::new("src:.")), None);
    }
}
