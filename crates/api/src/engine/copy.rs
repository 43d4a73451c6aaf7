//! Requests about files of containers.

use serde::{Deserialize, Serialize};

/// Copies files out of a container or into it, as a tar archive through a named pipe of the client.
///
/// Paths are resolved as in the container, beneath its root. A final symlink is not followed, unless `/` or `/.`
/// follows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "copy", rename_all = "kebab-case")]
pub enum Copy {
    /// Archives the file at a path, under the name `called`. The client must have the pipe open for reading.
    Out { id: String, path: String, called: String, pipe: String },
    /// Archives a container's root file system, without mounts, with the top directory's entries at the archive's root.
    /// The client must have the pipe open for reading.
    Export { id: String, pipe: String },
    /// Extracts the archive into an existing folder.
    In {
        id: String,
        folder: String,
        pipe: String,
        /// Files belong to the container's user, if one was requested or it is not root; otherwise to the owner in the
        /// archive.
        to_user: bool,
    },
}

/// The metadata of a file, in Docker's format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct FileStat {
    /// The file's name; `/` for the root.
    pub name: String,
    pub size: u64,
    /// `st_mode` of stat(2), with the file type.
    pub mode: u32,
    pub mtime: String,
    /// For a symlink: the path that it and further symlinks lead to, which need not exist.
    pub link_target: Option<String>,
}
