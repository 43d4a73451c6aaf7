//! Overlay mounts that are made in a private mount namespace: on kernels before Linux 6.8, which take all layers as one
//! string of mount(2), and of layers with mapped owners, which must be mounted somewhere.
//!
//! ```text
//! thread in a new mount namespace: mount(2) ─▶ open_tree (a detached clone) ─▶ thread and namespace end
//!                                  each layer's mapped clone on itself ─▶ overlay
//! ```
//!
//! So the mount is not visible on the host, and nothing is left of it if the process dies.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, OpenTreeFlags, mount_change, open_tree};
use types::{Context, Error, Result};

use crate::beneath::proc_path;
use crate::idmap::{self, Owners};
use crate::mount::{self, Layer};
use crate::ns::{self, NsKind};
use crate::release;

/// Bytes of mount(2)'s data: a page, including the final zero.
const DATA_MAX: usize = 4095;

/// Whether this kernel takes layers one by one (`lowerdir+`). The single string works on all kernels; those from 6.5
/// on, which have the new mount API for overlayfs, do not all know `lowerdir+`.
pub(crate) fn takes_layers() -> bool {
    release() >= (6, 8, 0)
}

/// Whether this kernel's overlayfs accepts layers with mapped owners.
pub fn maps_owners() -> bool {
    release() >= (5, 19, 0)
}

/// Whether this kernel's overlayfs has the option `volatile`.
pub(crate) fn may_be_volatile() -> bool {
    release() >= (5, 10, 0)
}

/// Makes a detached mount. `layers` are the lower ones, the uppermost first; `words` all other options.
pub(crate) fn detached(layers: &[String], words: &[String], is_read_only: bool) -> Result<OwnedFd> {
    let mut flags = MountFlags::empty();
    if is_read_only {
        flags |= MountFlags::RDONLY;
    }
    privately(|| mount_old(layers, words, flags))
}

/// Runs `make`, which makes an overlay, while the layers show mapped owners.
pub(crate) fn with_owners(
    layers: &[Layer],
    make: impl FnOnce() -> Result<OwnedFd> + Send,
) -> Result<OwnedFd> {
    privately(|| {
        // Most layers have the same map, and share one user namespace.
        let mut known: Option<(&Owners, OwnedFd)> = None;
        for Layer { path, owners } in layers {
            let Some(owners) = owners else { continue };
            let namespace = match known.take() {
                Some((same, namespace)) if same == owners => namespace,
                _ => idmap::namespace(owners)?,
            };
            cover(path, namespace.as_fd()).context(|| format!("map the owners of layer {path}"))?;
            known = Some((owners, namespace));
        }
        make()
    })
}

/// Mounts a clone of a layer with mapped owners on the layer itself.
fn cover(layer: &str, namespace: BorrowedFd<'_>) -> Result<()> {
    let copy = mount::clone_path(Path::new(layer), false)?;
    mount::set_idmap(copy.as_fd(), namespace, false)?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let place = rustix::fs::open(layer, flags, Mode::empty()).map_err(io::Error::from);
    mount::attach(copy.as_fd(), place.context(|| "open it")?.as_fd())
}

/// Runs work in a private mount namespace, which is dropped with its mounts.
fn privately(work: impl FnOnce() -> Result<OwnedFd> + Send) -> Result<OwnedFd> {
    // A thread has its own mount namespace and root directory.
    let done = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            ns::unshare(&[NsKind::Mount])?;
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", private).map_err(io::Error::from).context(|| "make mounts private")?;
            work()
        });
        thread.join()
    });
    done.unwrap_or_else(|_| Err(Error::internal("the thread that mounts an overlay panicked")))
}

fn mount_old(layers: &[String], words: &[String], flags: MountFlags) -> Result<OwnedFd> {
    // Any directory can be the mount point; the overlay has opened its layers before it covers one.
    let place = layers.first().ok_or_else(|| Error::invalid_argument("an overlay without lower layers"))?;
    // The layers must be of this mount namespace, so they are opened in it.
    let (data, _kept) = data(layers, words)?;
    rustix::mount::mount("overlay", place.as_str(), "overlay", flags, data.as_c_str())
        .map_err(io::Error::from)
        .context(|| format!("mount overlay with {data:?}"))?;
    let copy = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, place.as_str(), copy).map_err(io::Error::from).context(|| "copy the overlay mount")
}

/// The options as one string. Layers whose paths are too long in total are named by descriptors, which must be kept as
/// long as the string is used.
fn data(layers: &[String], words: &[String]) -> Result<(CString, Vec<OwnedFd>)> {
    // A backslash escapes the separators of layers and options.
    let escaped = layers.iter().map(|layer| {
        let special = |character: char| matches!(character, ':' | ',' | '\\');
        let escape = |character: char| special(character).then_some('\\').into_iter().chain([character]);
        layer.chars().flat_map(escape).collect::<String>()
    });
    let join = |layers: &[String]| {
        let lower = format!("lowerdir={}", layers.join(":"));
        words.iter().chain([&lower]).map(String::as_str).collect::<Vec<_>>().join(",")
    };
    let mut kept = Vec::new();
    let mut text = join(&escaped.collect::<Vec<_>>());
    if text.len() > DATA_MAX {
        for layer in layers {
            let opened = rustix::fs::open(layer.as_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
            kept.push(opened.map_err(io::Error::from).context(|| format!("open layer {layer}"))?);
        }
        text = join(&kept.iter().map(|fd| proc_path(fd.as_fd()).display().to_string()).collect::<Vec<_>>());
    }
    if text.len() > DATA_MAX {
        let count = layers.len();
        return Err(Error::failed_precondition(format!(
            "{count} layers are more than this kernel mounts; Linux 6.8 takes more"
        )));
    }
    let text =
        CString::new(text).map_err(|_| Error::invalid_argument("an overlay option with a zero byte"))?;
    Ok((text, kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_of_an_old_kernel_are_one_tree_too() {
        if !stdx::testing::is_root("a mount") {
            return;
        }
        let long = "a-rather-long-name-so-that-the-sum-exceeds-a-page-";
        let dir = tempfile::TempDir::with_prefix(long).unwrap();
        let layers: Vec<String> = (0..120)
            .map(|layer| {
                let path = dir.path().join(format!("layer{layer}"));
                std::fs::create_dir(&path).unwrap();
                std::fs::write(path.join(format!("file{layer}")), "").unwrap();
                path.display().to_string()
            })
            .collect();
        for name in ["upper", "work"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let path = |name: &str| format!("{name}dir={}", dir.path().join(name).display());
        for layers in [&layers[..2], &layers[..]] {
            let tree = detached(layers, &[path("upper"), path("work")], false).unwrap();
            let entries =
                rustix::fs::openat(&tree, ".", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
            let count = std::fs::read_dir(proc_path(entries.as_fd())).unwrap().count();
            assert_eq!(count, layers.len());
        }
        assert!(detached(&["/no/such".to_owned()], &[], true).is_err());
    }

    #[test]
    fn paths_are_protected_from_being_read_as_several() {
        let (text, kept) = data(&["/a:b".into(), "/c,d".into()], &["index=off".into()]).unwrap();
        assert_eq!(text.to_str().unwrap(), r"index=off,lowerdir=/a\:b:/c\,d");
        assert!(kept.is_empty());
    }
}
