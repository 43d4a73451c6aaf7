//! Checks the sources of bind mounts before a container is created: that they exist, and that the requested mount
//! propagation is possible.
//!
//! A disk may not respond, as when the server of a network file system is gone, and a lookup on it then blocks inside
//! the kernel. Lookups therefore run on a few threads of their own, not on those that serve other calls.

use std::path::{Path, PathBuf};
use std::time::Duration;

use api::engine::{Create, Mount};
use linux::mount::MountPoint;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use types::{Context, Error, Result};

use crate::volumes::VOLUME;

/// Concurrent lookups.
const LOOKS_MAX: usize = 8;
static LOOKS: Semaphore = Semaphore::const_new(LOOKS_MAX);
/// How long a lookup may take.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// `NotFound` names a missing source; `Unavailable` one whose lookup does not finish in time.
pub(super) async fn look_for_sources(create: &Create) -> Result<()> {
    let is_bind = |mount: &&Mount| !matches!(mount.kind.as_str(), "tmpfs" | VOLUME);
    for mount in create.mounts.iter().filter(is_bind) {
        let (source, follows) = (PathBuf::from(&mount.source), propagation(mount).is_some());
        let makes = mount.make_source;
        let look = async {
            let place = LOOKS.acquire().await.expect("it is never closed");
            let looked = spawn_blocking(move || {
                let found = look(&source, makes, follows);
                drop(place);
                found
            });
            looked.await.unwrap_or_else(|panic| Err(Error::internal("it broke down").with_source(panic)))
        };
        let looked = timeout(LOOK_LIMIT, look).await.map_err(|_| {
            Error::unavailable(format!(
                "bind source {} could not be looked for within {} s: its disk, or that of another container's bind \
                 source, does not answer",
                mount.source,
                LOOK_LIMIT.as_secs()
            ))
        })?;
        let looked =
            looked.map_err(|error| error.context(format!("look for bind source {}", mount.source)))?;
        let found = looked.ok_or_else(|| {
            Error::not_found(format!(
                "bind source {} does not exist on this machine; make it (mkdir -p), or name it by -v, which makes it",
                mount.source
            ))
        })?;
        if let (Some(wanted), Some(place)) = (propagation(mount), found.place) {
            check_propagation(mount, wanted, &place)?;
        }
    }
    Ok(())
}

/// Result of a lookup.
struct Found {
    /// The mount that contains the source, if propagation was requested.
    place: Option<MountPoint>,
}

fn look(source: &Path, makes: bool, follows: bool) -> Result<Option<Found>> {
    match source.try_exists().context(|| "look")? {
        true => {}
        false if makes => {
            std::fs::create_dir_all(source).context(|| "make a directory, as there is nothing")?;
        }
        false => return Ok(None),
    }
    let place = match follows {
        true => linux::mount::mount_point_of(&source.canonicalize().context(|| "follow its links")?)?,
        false => None,
    };
    Ok(Some(Found { place }))
}

/// The propagation option of a mount, if it has one.
pub(super) fn propagation(mount: &Mount) -> Option<&str> {
    let is_one = |option: &&str| matches!(*option, "shared" | "rshared" | "slave" | "rslave");
    mount.options.iter().map(String::as_str).find(is_one)
}

/// Propagation also depends on how the host has mounted the source; without this check a mismatch would go unnoticed.
fn check_propagation(mount: &Mount, wanted: &str, place: &MountPoint) -> Result<()> {
    let can = place.is_shared || place.is_slave && wanted.ends_with("slave");
    if can {
        return Ok(());
    }
    let (source, point) = (&mount.source, place.path.display());
    let needed = if wanted.ends_with("slave") { "shared or slave" } else { "shared" };
    Err(Error::failed_precondition(format!(
        "bind source {source} is on the mount {point}, which is not {needed}, so that {wanted} would have no effect; make \
         it so (mount --make-rshared {point}), or leave the option out"
    )))
}
