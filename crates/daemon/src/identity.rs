//! The daemon's identity: a UUID that is stored in the root directory, and the version that clients understand.

use std::fs;
use std::io;
use std::path::Path;

use stdx::{Durable, replace};
use types::id::is_uuid;
use types::{Context, Result};

/// The version that the `Version` call returns.
pub(crate) const VERSION: &str = api::grpc::VERSION;

/// Our own version.
pub(crate) const OWN_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The UUID of this root directory, created at the first start. BuildKit and other clients take daemons with the same
/// UUID for the same daemon.
pub(crate) fn uuid(root: &Path) -> Result<String> {
    let path = root.join("uuid");
    let what = || format!("name the root directory in {}", path.display());
    match fs::read_to_string(&path) {
        Ok(text) if is_uuid(text.trim()) => return Ok(text.trim().to_owned()),
        // Truncated, from a daemon that died writing it in place: no client has seen it.
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).context(what),
    }
    let uuid = random_uuid()?;
    replace(&path, uuid.as_bytes(), 0o644, Durable::Now).context(what)?;
    Ok(uuid)
}

/// A random UUID.
pub(crate) fn random_uuid() -> Result<String> {
    let file = "/proc/sys/kernel/random/uuid";
    let text = fs::read_to_string(file).context(|| format!("read {file}"))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uuid_of_a_root_is_kept_and_a_truncated_one_replaced() {
        let root = tempfile::TempDir::new().unwrap();
        let name = uuid(root.path()).unwrap();
        assert!(is_uuid(&name), "{name}");
        assert_eq!(uuid(root.path()).unwrap(), name);
        let mut last = name.clone();
        for broken in [&name[..10], &"-".repeat(36)] {
            fs::write(root.path().join("uuid"), broken).unwrap();
            let renamed = uuid(root.path()).unwrap();
            assert!(is_uuid(&renamed) && renamed != last);
            assert_eq!(uuid(root.path()).unwrap(), renamed);
            last = renamed;
        }
    }
}
