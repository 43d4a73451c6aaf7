//! What callers of the records rely on. Blobs are in a real store in a temporary directory; file
//! systems are in a snapshotter that only remembers.

mod collect;
mod content;
mod fixture;
mod graph;
mod race;
mod records;
mod scale;
mod snapshots;
mod told;
