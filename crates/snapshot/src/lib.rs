//! Snapshots: states of a file system tree, each based on another.
//!
//! ```text
//! prepare(key, parent) ─▶ active ──commit(name)──▶ committed ◀── parent of others
//! view(key, parent)    ─▶ view (read-only)
//! remove(key) ─▶ gone from the records; cleanup() moves its files away, and reclaim() deletes them
//! ```
//!
//! [`Snapshotter`] is the port, and [`KeptLayers`] a second one, for layers that are kept as archives. A snapshotter
//! only returns mounts; its callers perform them. Keys of active snapshots and names of committed ones share one
//! namespace. `docs/design/snapshots.md` describes the format on disk, and the state after a crash.
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

/// Parsers of files that a disk may have corrupted, for the fuzz targets.
#[doc(hidden)]
pub mod parsers {
    pub use crate::packed::{read as unpack_image, write as pack_image};
}

/// The name that this crate uses for a snapshotter that clients call by this one. A client that asks for the `erofs`
/// snapshotter gets [`Overlay`], which keeps layers as EROFS images too.
pub fn canonical_name(name: &str) -> &str {
    match name {
        Overlay::OTHER_NAME => Overlay::NAME,
        own => own,
    }
}
