//! Opening blobs.
//!
//! One that is kept as a recipe is made again when it is opened. Whoever does that, or waits for another who does, has a
//! thread meanwhile, and the threads of all other calls come from the same pool: so they are few at a time, and the rest
//! wait without one.

use std::sync::Arc;

use content::{BlobReader, Form};
use metadata::Content;
use tokio::sync::Semaphore;
use types::{Digest, Result};

use crate::blocking;

/// Blobs that are opened at once and may have to be made again first.
const OPENINGS_MAX: usize = 8;
static OPENINGS: Semaphore = Semaphore::const_new(OPENINGS_MAX);

/// Opens a blob of a namespace.
pub async fn open_blob(content: &Content, digest: &Digest) -> Result<Arc<dyn BlobReader>> {
    let (own, wanted) = (content.clone(), digest.clone());
    let whole = blocking(move || match own.form(&wanted)? {
        Form::Whole => own.reader(&wanted).map(Some),
        Form::Recipe { .. } => Ok(None),
    });
    if let Some(reader) = whole.await? {
        return Ok(Arc::from(reader));
    }
    let place = OPENINGS.acquire().await.expect("it is never closed");
    let (own, wanted) = (content.clone(), digest.clone());
    // It goes on if the caller goes away, and keeps its place until it is done.
    blocking(move || {
        let opened = own.reader(&wanted);
        drop(place);
        opened
    })
    .await
    .map(Arc::from)
}
