//! The records: namespaces, images, containers, sandboxes, leases, activations of mounts, and the namespaced views of
//! blobs and snapshots; and the garbage collector that follows their references.
//!
//! ```text
//!            images ──▶ content ──▶ content ──▶ snapshots ──▶ snapshots      per namespace
//!        containers ───────────────────────────────▲
//!            leases ──▶ any of them
//! ```
//!
//! Invariants
//! - An object becomes visible in the transaction that also adds it to the caller's lease. The stores below this
//!   crate do not know leases, labels or namespaces.
//! - Records are removed first, bytes later: `delete` and `remove` delete a record; [`Metadata::collect`] removes
//!   objects without a record in any namespace from the stores below.
//! - Events are published when their change is on disk, in the order of the changes.
//!
//! Handles such as [`Images`] are cheap to make: one per call is fine. All calls block, except those that return a
//! [`Ready`]: such a change can be queued.
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
pub use differ::{Applied, Differs};
pub use event::{Event, Sink};
pub use gate::{Gate, IsOpen};
pub use gc::graph;
pub use gc::{Collected, Turns};
pub use image::{Image, Images, StoredImage};
pub use lease::{Lease, Leases, Resource, Workflow};
pub use namespace::Namespaces;
pub use outbox::Hearing;
pub use processor::{LayerSource, StreamProcessors};
pub use sandbox::{Sandbox, Sandboxes};
pub use snapshot::{Snapshot, Snapshots};
pub use store::{Caller, Metadata, MountSweep, Notice, NoticeSink, Options, Ready};
pub use stream::{LeasedStream, Streams};
