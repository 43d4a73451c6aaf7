//! Pushes images from the stores into a registry.
//!
//! ```text
//! plan    documents from the target down, each with all its descendants in the store ─▶ or left out, or an error
//! send    blobs, some at a time ─▶ documents, children first ─▶ the tag ─▶ referrers
//! ```
//!
//! An index with some platforms missing from the store is pushed without them, under a digest of its own; one
//! platform alone is pushed as its manifest. With [`Scope::Whole`] nothing is left out. Blobs that an index consists
//! of, such as a checkpoint's, always go with it.

mod plan;
mod upload;

use std::collections::BTreeSet;

use metadata::{Caller, Metadata};
use registry::{Push, Remote, Sent};
use tokio::sync::mpsc;
use types::{Descriptor, Digest, Platform, Reference, Result};

use self::plan::Stores;
use self::upload::Uploader;
pub(crate) use self::upload::Uploads;
use crate::{Lease, Slots, blocking};

/// Which platforms of a multi-platform image are pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those that the store has.
    Present,
    /// All; a missing one is an error.
    Whole,
    /// The best image for each of these; a missing one is an error.
    Only(Vec<Platform>),
}

/// What to push, and where to.
pub struct PushRequest {
    pub target: Descriptor,
    /// The repository, and the tag if there is one.
    pub reference: Reference,
    pub scope: Scope,
    /// Whether to push referrers, too: images of the store whose subject is pushed, such as signatures.
    pub referrers: bool,
    /// Bounds what this daemon's pushes send to one registry at once.
    pub slots: Slots,
    pub caller: Caller,
    pub remote: Remote,
}

/// Progress of a blob or document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PushProgress {
    /// A platform that the store does not have.
    LeftOut {
        what: String,
    },
    /// All parts of the push, parents before their children.
    Parts(Vec<PushPart>),
    Sending {
        digest: Digest,
        current: u64,
    },
    Sent {
        digest: Digest,
        how: Sent,
    },
    /// A manifest or index is in the registry.
    Document {
        document: Box<Descriptor>,
        /// Whether it was before.
        existed: bool,
    },
    /// A referrer of a pushed document.
    Referrer {
        digest: Digest,
    },
}

/// A document or blob to push, and its parent; the root has none. A part with several parents is listed once for
/// each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushPart {
    pub part: Descriptor,
    pub above: Option<Descriptor>,
}

/// Pushes an image. Returns the descriptor of what is in the registry under its name.
pub async fn push(
    metadata: &Metadata,
    request: PushRequest,
    report: Option<mpsc::Sender<PushProgress>>,
) -> Result<Descriptor> {
    let name = request.reference.to_string();
    let lease = {
        let (metadata, caller) = (metadata.clone(), request.caller.clone());
        blocking(move || Lease::begin(&metadata, &caller)).await?
    };
    let stores = Stores { metadata: metadata.clone(), caller: lease.caller.clone() };
    let pushed = run(stores, request, report).await;
    match blocking(move || lease.end()).await {
        // The push's error is the one to return: a full disk, say, fails both.
        Err(error) if pushed.is_err() => tracing::warn!("end a push: {}", error.chain()),
        ended => ended?,
    }
    pushed.map_err(|error| error.context(format!("push {name}")))
}

async fn run(
    stores: Stores,
    request: PushRequest,
    report: Option<mpsc::Sender<PushProgress>>,
) -> Result<Descriptor> {
    let plan = {
        let (stores, target, scope) = (stores.clone(), request.target.clone(), request.scope.clone());
        blocking(move || stores.plan(&target, &scope)).await?
    };
    let (push, slots) = (Push::new(&request.remote)?, request.slots);
    let uploader = Uploader { stores: stores.clone(), push, report, to: request.reference, slots };
    for what in &plan.left_out {
        uploader.tell(PushProgress::LeftOut { what: what.clone() });
    }
    let tag = uploader.to.tag().map(str::to_owned);
    let root = uploader.deliver(&plan, tag.as_deref()).await?;
    if request.referrers {
        let pushed: BTreeSet<Digest> =
            plan.documents.iter().map(|document| document.descriptor.digest.clone()).collect();
        let plans = blocking(move || stores.referrers(pushed)).await?;
        for plan in plans {
            let referrer = uploader.deliver(&plan, None).await?;
            uploader.tell(PushProgress::Referrer { digest: referrer.digest });
        }
    }
    Ok(root)
}
