//! Network namespaces with a name: files of `nsfs` below the state directory, as `ip netns` makes them.

use std::fs;
use std::io;
use std::path::Path;

use linux::rtnetlink::{LOOPBACK, Route};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use types::{Context, Error, Result};

use crate::bridge::silence_ipv6;

/// Makes a namespace, brings its loopback up, and pins it to `path`.
pub(crate) fn create(path: &Path) -> Result<()> {
    let what = || format!("create network namespace {}", path.display());
    fs::File::options().write(true).create_new(true).open(path).context(what)?;
    let made = std::thread::scope(|scope| scope.spawn(|| make_in_thread(path)).join());
    let made = made.unwrap_or_else(|_| Err(Error::internal("the thread panicked")));
    if made.is_err() {
        // Only an empty file is left behind, if anything.
        let _ = fs::remove_file(path);
    }
    made.map_err(|error| error.context(what()))
}

/// In a thread of its own, which dies in the new namespace: others never notice.
fn make_in_thread(path: &Path) -> Result<()> {
    linux::ns::unshare(&[linux::ns::NsKind::Network])?;
    // The loopback is there, and keeps `::1`.
    silence_ipv6("default")?;
    Route::open()?.set_up(LOOPBACK)?;
    mount_bind("/proc/thread-self/ns/net", path)
        .map_err(io::Error::from)
        .context(|| "pin the namespace to its file")
}

/// Unpins a namespace. It dies when no process is left in it. True if it was there.
pub(crate) fn remove(path: &Path) -> Result<bool> {
    let what = || format!("remove network namespace {}", path.display());
    match unmount(path, UnmountFlags::DETACH) {
        // EINVAL: the file is there and nothing is mounted on it, as after a crash.
        Ok(()) | Err(rustix::io::Errno::INVAL) => {}
        Err(rustix::io::Errno::NOENT) => return Ok(false),
        Err(errno) => return Err(io::Error::from(errno)).context(what),
    }
    match fs::remove_file(path) {
        // Somebody else removes it at the same time.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        removed => removed.context(what).map(|()| true),
    }
}
