//! Pinned network namespaces: bind mounts of `nsfs` files below the state directory, as `ip netns` makes them.

use std::fs;
use std::io;
use std::path::Path;

use linux::rtnetlink::{LOOPBACK, Route};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use types::{Context, Error, Result};

use crate::bridge::silence_ipv6;

/// Creates a network namespace, brings its loopback up, and pins it to `path`.
pub(crate) fn create(path: &Path) -> Result<()> {
    let what = || format!("create network namespace {}", path.display());
    fs::File::options().write(true).create_new(true).open(path).context(what)?;
    let made = std::thread::scope(|scope| scope.spawn(|| make_in_thread(path)).join());
    let made = made.unwrap_or_else(|_| Err(Error::internal("the thread panicked")));
    if made.is_err() {
        // At most an empty file is left behind.
        let _ = fs::remove_file(path);
    }
    made.map_err(|error| error.context(what()))
}

/// Runs in a thread of its own, which ends in the new namespace: no other thread changes namespace.
fn make_in_thread(path: &Path) -> Result<()> {
    linux::ns::unshare(&[linux::ns::NsKind::Network])?;
    // The loopback exists already, so `default` does not affect it: it keeps `::1`.
    silence_ipv6("default")?;
    Route::open()?.set_up(LOOPBACK)?;
    mount_bind("/proc/thread-self/ns/net", path)
        .map_err(io::Error::from)
        .context(|| "pin the namespace to its file")
}

/// Unpins a namespace, which the kernel frees with its last process. Returns whether it existed.
pub(crate) fn remove(path: &Path) -> Result<bool> {
    let what = || format!("remove network namespace {}", path.display());
    match unmount(path, UnmountFlags::DETACH) {
        // EINVAL: the file is there and nothing is mounted on it, as after a crash.
        Ok(()) | Err(rustix::io::Errno::INVAL) => {}
        Err(rustix::io::Errno::NOENT) => return Ok(false),
        Err(errno) => return Err(io::Error::from(errno)).context(what),
    }
    match fs::remove_file(path) {
        // Another thread or process removed it concurrently.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        removed => removed.context(what).map(|()| true),
    }
}
