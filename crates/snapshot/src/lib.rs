//! Snapshots: states of a file system, each made on top of another.
//!
//! ```text
//! prepare(key, parent) ─▶ active ──commit(name)──▶ committed ◀── parent of others
//! view(key, parent)    ─▶ view (read-only)
//! remove(key) ─▶ gone from the records; its files are taken out of the way by cleanup() and deleted by reclaim()
//! ```
//!
//! [`Snapshotter`] is the port, and [`KeptLayers`] a second one, for layers that are kept whole, as they came. A
//! snapshotter gives mounts and leaves carrying them out to others. Keys of active snapshots and names of committed ones
//! share one space. `docs/design/snapshots.md` has the format on disk and what a crash leaves.
//!
//! - [`Overlay`]: a directory or an archive per snapshot, stacked by overlayfs.
//! - [`Native`]: a full copy per snapshot, for file systems that overlayfs cannot use.
#![forbid(unsafe_code)]

mod barrier;
mod layer;
mod native;
mod overlay;
mod packed;
mod records;
mod snapshotter;
mod verity;

pub use barrier::Barrier;
pub use layer::{Backing, LayerFiles, Merged, NewLayer, probe, reads_files_soundly};
pub use native::Native;
pub use overlay::{LayerForm, Options, Overlay, probe as probe_overlay};
pub use snapshotter::{
    CommitOptions, KeptLayers, Kind, ReadyCommit, Snapshot, Snapshotter, Step, Target, Tidy, Usage,
};
pub use verity::probe as probe_verity;

/// Parsers of files that a disk may have changed, for those who try what they do with any.
#[doc(hidden)]
pub mod parsers {
    pub use crate::packed::{read as unpack_image, write as pack_image};
}

/// The name by which a snapshotter is known here, of all that clients call it by: who asks for layers as
/// EROFS images gets them from [`Overlay`].
pub fn canonical_name(name: &str) -> &str {
    match name {
        Overlay::OTHER_NAME => Overlay::NAME,
        own => own,
    }
}
