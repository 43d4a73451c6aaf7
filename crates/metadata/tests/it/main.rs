//! What callers of the records rely on. Blobs are in a real store in a temporary directory; snapshots are in a
//! snapshotter without files.

mod collect;
mod content;
mod events;
mod fixture;
mod graph;
mod race;
mod records;
mod scale;
mod snapshots;
