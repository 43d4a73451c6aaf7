//! A mount as a description: what to mount, not the act of mounting (that is `linux::mount`).
//!
//! This is containerd's `types.Mount`: snapshotters return a list of them, clients and shims carry
//! them out, in order. Options are those of `mount(8)`; the type `bind` or the option `bind`/`rbind`
//! makes a bind mount.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mount {
    /// File system type, `bind` included. JSON: `type`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// Device, directory or name that is mounted.
    #[serde(default)]
    pub source: String,
    /// Where below the root it goes; empty is the root itself.
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
