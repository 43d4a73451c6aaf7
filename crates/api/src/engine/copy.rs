//! Questions about the files of containers.

use serde::{Deserialize, Serialize};

/// Files out of a container or into it, as a tar archive that goes through a pipe of the caller.
///
/// Paths are resolved as the container does, and beneath its root. The last name is not followed if it is a link, but
/// with `/` or `/.` behind it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "copy", rename_all = "kebab-case")]
pub enum Copy {
    /// What is at a path, which is called otherwise in the archive. The pipe must be open for reading.
    Out { id: String, path: String, called: String, pipe: String },
    /// The tree of a container, without what is mounted in it, with the names of its top directory as the first. The pipe
    /// must be open for reading.
    Export { id: String, pipe: String },
    /// What is in the archive goes into a folder that is there.
    In {
        id: String,
        folder: String,
        pipe: String,
        /// To the user that the container runs as, if it has one of its own; to whom the archive says without.
        to_user: bool,
    },
}

/// What is at a path, in Docker's shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct FileStat {
    /// The last name of the path; `/` for the root.
    pub name: String,
    pub size: u64,
    /// As stat(2) has it, with the type.
    pub mode: u32,
    pub mtime: String,
    /// Of a symlink, the path to which it and those that follow lead, where there may be nothing.
    pub link_target: Option<String>,
}
