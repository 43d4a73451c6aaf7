//! Requests about images.

use serde::{Deserialize, Serialize};

use super::{Call, Keyring};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "image", rename_all = "kebab-case")]
pub enum ImageCall {
    /// A row for each image name.
    List {
        /// `KEY=VALUE`, as Docker's, with the keys `dangling`, `label`, `before`, `since`, `reference` and `until`.
        filters: Vec<String>,
        /// Also images without a name.
        all: bool,
        /// Also the platforms of each image.
        tree: bool,
        /// Also the disk usage of each image.
        #[serde(default)]
        sizes: bool,
    },
    Inspect {
        name: String,
    },
    /// The build steps of an image, newest first.
    History {
        name: String,
    },
    /// Gives an image another name, which is moved if it exists.
    Tag {
        source: String,
        target: String,
    },
    /// Mounts an image read-only over a folder, given by its absolute path.
    Mount {
        name: String,
        path: String,
    },
    Unmount {
        path: String,
    },
    /// The mounted images.
    Mounts,
    /// Removes a name, or all names of an id.
    Remove {
        name: String,
        force: bool,
    },
    /// Removes images without a name; with `all`, every image that no container was made from.
    Prune {
        all: bool,
        /// `KEY=VALUE` with the keys `until`, `label` and `label!`.
        filters: Vec<String>,
    },
    /// The manifests in an image's registry that refer to it.
    Referrers {
        reference: String,
        artifact_type: Option<String>,
        credentials: Keyring,
    },
}

/// Makes an image from a container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Commit {
    /// The container's id.
    pub id: String,
    /// Absent: the image is named by its digest.
    pub name: Option<String>,
    pub author: Option<String>,
    pub message: Option<String>,
    /// Instructions of a Dockerfile, such as `CMD ["sh"]`.
    pub changes: Vec<String>,
    /// Pauses the container's processes while its files are copied.
    pub pause: bool,
}

/// Two file systems to compare.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "kebab-case")]
pub enum Changes {
    /// The changes of a container to its image.
    Container {
        id: String,
    },
    Images {
        from: String,
        to: String,
    },
}

/// A path that differs between two file systems.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ChangedPath {
    /// As in Docker: `A` added, `C` changed, `D` deleted.
    pub kind: String,
    pub path: String,
    /// The sizes before and after, in bytes; absent unless it is a regular file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_before: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// A request about images that takes long or has many answers: [`ImageStep`]s.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "image", rename_all = "kebab-case")]
pub enum ImageFollow {
    /// A row for each file in the image.
    Files { name: String },
    /// Makes another image from an image.
    Convert {
        /// The containerd namespace, where only full names are known; absent is the engine's own.
        namespace: Option<String>,
        source: String,
        target: String,
        /// `none`, `gzip` or `zstd`; absent keeps the compression.
        compression: Option<String>,
        /// `oci` or `docker`; absent keeps the format.
        format: Option<String>,
        /// Empty is every platform that is present.
        platforms: Vec<String>,
        all_platforms: bool,
    },
    /// Hashes the stored content of images, or of all images, and fetches corrupt blobs again. A row for each blob.
    Verify { names: Vec<String>, credentials: Keyring },
    /// Imports an image archive or layout, by a path that may be a named pipe of the client; or, if `embedded` is
    /// given, the image of that name inside the daemon.
    Load {
        path: String,
        embedded: Option<String>,
        /// The name of an image that has none in the archive.
        #[serde(default)]
        fallback: Option<String>,
    },
    /// Makes an image of one layer from a tar of a root file system, by a path that may be a named pipe.
    Import {
        path: String,
        /// Absent: the image is named by its digest.
        name: Option<String>,
        comment: String,
        /// Instructions of a Dockerfile, such as `CMD ["sh"]`.
        #[serde(default)]
        changes: Vec<String>,
        #[serde(default)]
        platform: Option<String>,
    },
    /// Writes images as one archive to a named pipe, which the client must have open for reading.
    Save {
        names: Vec<String>,
        pipe: String,
        /// Empty is every part of an image that is present.
        #[serde(default)]
        platforms: Vec<String>,
        /// Every part of an image; a missing one is an error.
        #[serde(default)]
        all_platforms: bool,
    },
}

/// A step of such a request. The last one has the result.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum ImageStep {
    /// Progress in bytes.
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
