//! Overlay mounts on kernels before Linux 6.5, which take all layers as one string of mount(2).
//!
//! ```text
//! thread in a mount namespace of its own: mount(2) ─▶ open_tree (a detached copy) ─▶ thread and namespace end
//! ```
//!
//! So the mount is nowhere to be seen here either, and nothing is left of it if the process dies.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, OpenTreeFlags, mount, mount_change, open_tree};
use types::{Context, Error, Result};

use crate::beneath::proc_path;
use crate::ns::{self, NsKind};

/// Bytes of mount(2)'s data: a page, with the zero at its end.
const DATA_MAX: usize = 4095;

/// Whether this kernel takes layers one by one.
pub(crate) fn takes_layers() -> bool {
    static TAKES: OnceLock<bool> = OnceLock::new();
    *TAKES.get_or_init(|| {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let mut numbers = release.split(|character: char| !character.is_ascii_digit()).map(str::parse);
        let mut next = || numbers.next().and_then(std::result::Result::ok).unwrap_or(0_u32);
        (next(), next()) >= (6, 5)
    })
}

/// Makes a mount that is mounted nowhere. `layers` are the lower ones, the uppermost first; `words` all
/// other options.
pub(crate) fn detached(layers: &[String], words: &[String], is_read_only: bool) -> Result<OwnedFd> {
    let mut flags = MountFlags::empty();
    if is_read_only {
        flags |= MountFlags::RDONLY;
    }
    // A namespace is a thread's own; so is the root directory that goes with it.
    let made = std::thread::scope(|scope| scope.spawn(|| mount_privately(layers, words, flags)).join());
    made.unwrap_or_else(|_| Err(Error::internal("the thread that mounts an overlay panicked")))
}

fn mount_privately(layers: &[String], words: &[String], flags: MountFlags) -> Result<OwnedFd> {
    // Any directory will do to be covered by the mount; it has looked at its layers by then.
    let place = layers.first().ok_or_else(|| Error::invalid_argument("an overlay without lower layers"))?;
    ns::unshare(&[NsKind::Mount])?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(io::Error::from).context(|| "make mounts private")?;
    // Layers must be of this namespace, so they are opened in it.
    let (data, _kept) = data(layers, words)?;
    mount("overlay", place.as_str(), "overlay", flags, data.as_c_str())
        .map_err(io::Error::from)
        .context(|| format!("mount overlay with {data:?}"))?;
    let copy = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, place.as_str(), copy).map_err(io::Error::from).context(|| "copy the overlay mount")
}

/// The options as one string. Layers whose paths are too long together go by descriptor, and the
/// descriptors must be kept as long as the string is needed.
fn data(layers: &[String], words: &[String]) -> Result<(CString, Vec<OwnedFd>)> {
    // A backslash keeps what it stands before from ending a layer or an option.
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
            "{count} layers are more than this kernel mounts; Linux 6.5 takes more"
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
        if !rustix::process::geteuid().is_root() {
            println!("skipped: mounting needs root");
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
