//! Whether overlays can be made of directories here: there are kernels without them, and file systems that cannot hold
//! their upper layer (another overlay, NFS).

use std::fs;
use std::io;
use std::path::Path;

use linux::mount::{Options, new_filesystem};
use rustix::fs::{AtFlags, unlinkat};
use types::{Context, Error, ErrorKind, Result};

/// Whether this kernel makes overlays on the file system of `root`. `Unimplemented` if it does not, with its reason.
pub fn probe(root: &Path) -> Result<()> {
    let dir = root.join("probe.overlay");
    let probed = write_probe(&dir).and_then(|()| mount_probe(&dir));
    let _ = fs::remove_dir_all(&dir); // used again by the next probe otherwise
    probed.map_err(|error| error.context(format!("probe in {}", root.display())))
}

/// What fails here says nothing of the kernel.
fn write_probe(dir: &Path) -> Result<()> {
    for name in ["lower", "upper", "work"] {
        let path = dir.join(name);
        fs::create_dir_all(&path).context(|| format!("create {}", path.display()))?;
    }
    fs::write(dir.join("lower/file"), "").context(|| "write a file")
}

fn mount_probe(dir: &Path) -> Result<()> {
    let layer = |option: &str, name: &str| format!("{option}={}", dir.join(name).display());
    let layers = vec![layer("lowerdir", "lower"), layer("upperdir", "upper"), layer("workdir", "work")];
    let mounted = new_filesystem("overlay", "overlay", &Options::parse(&layers));
    // What is deleted leaves a node of a device in the upper layer, which not everybody may make.
    let deleted = mounted.and_then(|mount| {
        unlinkat(&mount, "file", AtFlags::empty())
            .map_err(io::Error::from)
            .context(|| "delete a file of a lower layer")
    });
    deleted.map_err(|error| match error.kind() {
        ErrorKind::ResourceExhausted => error,
        _ => Error::unimplemented("the kernel makes no overlays here").with_source(error),
    })
}
