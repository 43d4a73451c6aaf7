//! The records: namespaces, images, containers, sandboxes, leases, activations of mounts, and the namespaced views
//! of blobs and snapshots; and the garbage collector that goes by their references.
//!
//! ```text
//!            images ──▶ content ──▶ content ──▶ snapshots ──▶ snapshots      per namespace
//!        containers ───────────────────────────────▲
//!            leases ──▶ any of them
//! ```
//!
//! Invariants
//! - An object becomes visible in the transaction that also adds it to the caller's lease. Nothing
//!   below this crate knows leases, labels or namespaces.
//! - Records go first, bytes later: `delete` and `remove` drop a record; what no namespace has any
//!   more is removed from the store below by [`Metadata::collect`].
//! - Events are handed out when their change is on disk, in the order of the changes.
//!
//! Handles such as [`Images`] are cheap to make: one per call is fine. All calls block, but for those that give a
//! [`Ready`]: that change can be left to a queue.
//!
//! Tables and bytes: `docs/design/metadata.md`.
#![forbid(unsafe_code)]

mod activation;
mod container;
mod content;
mod differ;
mod event;
mod gate;
mod gc;
mod image;
mod lease;
mod mask;
mod namespace;
mod outbox;
mod processor;
mod sandbox;
mod sequence;
mod snapshot;
mod store;
mod stream;

pub use activation::{Activation, Activations, ActiveMount};
pub use container::{Container, Containers, Runtime, StoredContainer};
pub use content::{Blob, Content, ContentWriter, Mending};
pub use differ::{Applied, Differs, NoDiffers};
pub use event::{Event, Sink};
pub use gate::{Gate, IsOpen, OpenGate};
pub use gc::graph;
pub use gc::{Collected, Turns};
pub use image::{Image, Images, StoredImage};
pub use lease::{Lease, Leases, Resource, Workflow};
pub use namespace::Namespaces;
pub use outbox::Hearing;
pub use processor::{LayerSource, NoProcessors, StreamProcessors};
pub use sandbox::{Sandbox, Sandboxes};
pub use snapshot::{Snapshot, Snapshots};
pub use store::{Caller, Metadata, MountSweep, Notice, NoticeSink, Options, Ready};
pub use stream::{LeasedStream, NoStreams, Streams};
