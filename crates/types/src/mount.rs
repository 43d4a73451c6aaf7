//! The description of a mount; `linux::mount` performs it.
//!
//! This is containerd's `types.Mount`. Snapshotters return a list of them, which clients and shims mount in order.
//! Options are those of mount(8); the type `bind` or the option `bind` or `rbind` makes a bind mount.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mount {
    /// File system type, `bind` included. JSON: `type`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The device, directory or name to mount.
    #[serde(default)]
    pub source: String,
    /// The mount point, relative to the root of the container; empty is the root itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target: String,
    #[serde(default)]
    pub options: Vec<String>,
}

impl Mount {
    pub fn is_read_only(&self) -> bool {
        self.options.iter().any(|option| option == "ro")
    }
}
