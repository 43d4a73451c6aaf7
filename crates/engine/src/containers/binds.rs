//! What a container is to have of the machine's files, looked for before the container is made.
//!
//! A disk may not answer, as when the server of a file system is gone, and whoever looks for a name on it waits in the
//! kernel for as long. That costs one of few threads, and none of those that all other calls need.

use std::path::PathBuf;
use std::time::Duration;

use api::engine::{Create, Mount};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use types::{Context, Error, Result};

use crate::volumes::VOLUME;

/// Who looks at once.
const LOOKS_MAX: usize = 8;
static LOOKS: Semaphore = Semaphore::const_new(LOOKS_MAX);
/// How long a disk may take.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// `NotFound` names a source that is not there; `Unavailable` one that cannot be looked for in time.
pub(super) async fn look_for_sources(create: &Create) -> Result<()> {
    let is_bind = |mount: &&Mount| !matches!(mount.kind.as_str(), "tmpfs" | VOLUME);
    for mount in create.mounts.iter().filter(is_bind) {
        let source = PathBuf::from(&mount.source);
        let look = async {
            let place = LOOKS.acquire().await.expect("it is never closed");
            let looked = spawn_blocking(move || {
                let found = source.try_exists();
                drop(place);
                found
            });
            looked.await.unwrap_or_else(|panic| Err(std::io::Error::other(panic)))
        };
        let looked = timeout(LOOK_LIMIT, look).await.map_err(|_| {
            Error::unavailable(format!(
                "bind source {} could not be looked for within {} s: its disk, or that of another container's bind \
                 source, does not answer",
                mount.source,
                LOOK_LIMIT.as_secs()
            ))
        })?;
        if !looked.context(|| format!("look for bind source {}", mount.source))? {
            return Err(Error::not_found(format!(
                "bind source {} does not exist on this machine",
                mount.source
            )));
        }
    }
    Ok(())
}
