//! Questions about images.

use serde::{Deserialize, Serialize};

use super::{Call, Keyring};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "image", rename_all = "kebab-case")]
pub enum ImageCall {
    /// A row for each name.
    List {
        /// `KEY=VALUE`, as Docker's: dangling, label, before, since, reference, until.
        filters: Vec<String>,
        /// Those without a name too.
        all: bool,
        /// With the platforms of each.
        tree: bool,
        /// With what they take on disk.
        #[serde(default)]
        sizes: bool,
    },
    Inspect {
        name: String,
    },
    /// What made each layer, newest first.
    History {
        name: String,
    },
    /// Gives an image another name; a name that is taken moves.
    Tag {
        source: String,
        target: String,
    },
    /// Mounts an image read-only on a folder, by its absolute path.
    Mount {
        name: String,
        path: String,
    },
    Unmount {
        path: String,
    },
    /// What is mounted.
    Mounts,
    /// Takes away a name, or all names of an id.
    Remove {
        name: String,
        force: bool,
    },
    /// Removes those without a name; with `all`, those that no container was made from.
    Prune {
        all: bool,
        /// `KEY=VALUE`: until, label, label!.
        filters: Vec<String>,
    },
    /// What refers to an image in its registry.
    Referrers {
        reference: String,
        artifact_type: Option<String>,
        credentials: Keyring,
    },
}

/// Makes an image of a container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Commit {
    /// The container.
    pub id: String,
    /// Named by its digest without.
    pub name: Option<String>,
    pub author: Option<String>,
    pub message: Option<String>,
    /// Instructions of a Dockerfile, such as `CMD ["sh"]`.
    pub changes: Vec<String>,
    /// Whether the container's processes wait while its tree is copied.
    pub pause: bool,
}

/// Two trees to be compared.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "kebab-case")]
pub enum Changes {
    /// What a container changed in the tree of its image.
    Container {
        id: String,
    },
    Images {
        from: String,
        to: String,
    },
}

/// A name that is not the same in two trees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ChangedPath {
    /// As Docker has it: `A` added, `C` changed, `D` deleted.
    pub kind: String,
    pub path: String,
    /// Bytes of the file before, and after. Nothing for what is no file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_before: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// A question about images that takes its time, or has many answers: [`ImageStep`]s.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "image", rename_all = "kebab-case")]
pub enum ImageFollow {
    /// A row for each file.
    Files { name: String },
    /// Makes another image of one.
    Convert {
        /// Where images are known by their full names alone; the engine's own namespace without.
        namespace: Option<String>,
        source: String,
        target: String,
        /// `none`, `gzip` or `zstd`; as it is without.
        compression: Option<String>,
        /// `oci` or `docker`; as it is without.
        format: Option<String>,
        /// All that are here without.
        platforms: Vec<String>,
        all_platforms: bool,
    },
    /// Hashes what is on disk of images, all without names, and fetches anew what is broken: a row a blob.
    Verify { names: Vec<String>, credentials: Keyring },
    /// Imports an archive or layout of this machine, by a path that may be a pipe of the caller. `embedded`
    /// names an image inside the daemon instead.
    Load {
        path: String,
        embedded: Option<String>,
        /// For an image that has no name in the archive.
        #[serde(default)]
        fallback: Option<String>,
    },
    /// Makes an image of one layer from a tar of a root file system, by a path that may be a pipe.
    Import {
        path: String,
        /// Named by its digest without.
        name: Option<String>,
        comment: String,
        /// Instructions of a Dockerfile, such as `CMD ["sh"]`.
        #[serde(default)]
        changes: Vec<String>,
        #[serde(default)]
        platform: Option<String>,
    },
    /// Writes images as one archive to a pipe of the caller, which must be open for reading.
    Save {
        names: Vec<String>,
        pipe: String,
        /// All of an image that is here without.
        #[serde(default)]
        platforms: Vec<String>,
        /// All of an image, or an error.
        #[serde(default)]
        all_platforms: bool,
    },
}

/// An answer on the way, and the last.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum ImageStep {
    /// In bytes.
    Progress {
        what: String,
        current: u64,
        total: u64,
    },
    Rows {
        rows: Vec<serde_json::Value>,
    },
    Done {
        answer: serde_json::Value,
    },
}

impl From<ImageCall> for Call {
    fn from(call: ImageCall) -> Call {
        Call::Image(call)
    }
}
