//! Questions about images.

use serde::{Deserialize, Serialize};

use super::Call;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "image", rename_all = "kebab-case")]
pub enum ImageCall {
    List,
    Inspect {
        name: String,
    },
    /// Gives an image another name; a name that is taken moves.
    Tag {
        source: String,
        target: String,
    },
    Remove {
        name: String,
        force: bool,
    },
    /// Imports an archive or layout of this machine. `embedded` names an image inside the daemon instead.
    Load {
        path: String,
        embedded: Option<String>,
    },
    /// Makes an image of one layer from a tar of a root file system on this machine.
    Import {
        path: String,
        /// Named by its digest without.
        name: Option<String>,
        comment: String,
    },
    /// Writes images as one archive to a pipe of the caller, which must be open for reading.
    Save {
        names: Vec<String>,
        pipe: String,
    },
}

impl From<ImageCall> for Call {
    fn from(call: ImageCall) -> Call {
        Call::Image(call)
    }
}
