//! Questions about images.

use serde::{Deserialize, Serialize};

use super::Call;

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
