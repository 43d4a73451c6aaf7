//! Opening blobs.
//!
//! A blob that is kept as a recipe is rebuilt when it is opened, which blocks a thread, also in callers that wait for
//! another's rebuild. All calls share one thread pool, so few such openings run at a time, and the rest wait without
//! a thread.

use std::sync::Arc;

use content::{BlobReader, Form};
use metadata::Content;
use tokio::sync::Semaphore;
use types::{Digest, Result};

use crate::blocking;

/// Openings at once that may have to rebuild a blob.
const OPENINGS_MAX: usize = 8;
static OPENINGS: Semaphore = Semaphore::const_new(OPENINGS_MAX);

/// Opens a blob of a namespace. `NotFound` if the namespace does not have it, `DataLoss` if it cannot be rebuilt.
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
    // Runs on if the caller is cancelled, and holds its permit until it is done.
    blocking(move || {
        let opened = own.reader(&wanted);
        drop(place);
        opened
    })
    .await
    .map(Arc::from)
}
