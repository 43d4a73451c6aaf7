//! Mounting an image with the archives that it shows.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use erofs::{Metadata, Tree};
use linux::loopdev::LoopDevice;
use linux::{mount, page_cache};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use types::{Context, Error, ErrorKind, Result};

use super::files::write_image;

/// Bytes that the kernel takes as a value of an option of a mount.
const PATH_LEN_MAX: usize = 255;

/// How the kernel is shown images and archives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backing {
    /// As files (Linux 6.12), or as loop devices if it mounts no files. It reads them through its memory of files while
    /// they are in it, as after a pull, and past it otherwise, if it can (Linux 6.13): a page that has to come from the
    /// disk comes sooner, and takes memory once instead of twice.
    #[default]
    Files,
    /// As files that it reads through its memory of files in any case.
    FilesThroughMemory,
    /// As files that it reads past its memory of files in any case.
    FilesDirectly,
    /// As loop devices.
    LoopDevices,
}

/// The first releases of Linux, of each branch that is cared for, that read the files of a mounted image soundly. Before
/// them, a reader that was killed while the kernel waited for a file left zeros in the memory of files, which everybody
/// else was given from then on (eade54040384, "erofs: set fileio bio failed in short read case"); and in releases not
/// much older, reading past that memory used what had been freed (1caf50ce4af0, CVE-2026-23224).
const SOUND: [(u32, u32, u32); 4] = [(6, 12, 80), (6, 18, 21), (6, 19, 11), (7, 0, 0)];

/// Whether a kernel of this release is known to read the files of a mounted image soundly. Distributors mend older
/// kernels under numbers of their own, which this does not know.
pub fn reads_files_soundly(release: (u32, u32, u32)) -> bool {
    let (major, minor, _) = release;
    let of_branch = SOUND.iter().find(|sound| (sound.0, sound.1) == (major, minor));
    release >= *of_branch.unwrap_or(&SOUND[SOUND.len() - 1])
}

impl Backing {
    /// What to do in its place on a kernel of this release. What reads past the memory of files leaves no zeros there, and
    /// was asked for.
    pub fn on(self, release: (u32, u32, u32)) -> Backing {
        match self {
            Backing::Files | Backing::FilesThroughMemory if !reads_files_soundly(release) => {
                Backing::LoopDevices
            }
            other => other,
        }
    }
}

/// The option of a mount whose files are read past the memory of files.
const DIRECTLY: &str = "directio";

/// Whether this kernel mounts images that are shown so, from files of this file system and at the places where files
/// begin in archives. `Unimplemented` if it does not, with its reason.
pub fn probe(root: &Path, backing: Backing) -> Result<()> {
    fs::create_dir_all(root).context(|| format!("create {}", root.display()))?;
    let (data, image) = (root.join("probe.tar"), root.join("probe.erofs"));
    let probed = write_probe(&data, &image).and_then(|()| mount_probe(&data, &image, backing));
    for path in [&data, &image] {
        let _ = fs::remove_file(path); // overwritten by the next probe otherwise
    }
    probed.map_err(|error| error.context(format!("probe in {}", root.display())))
}

const EROFS: &str = "erofs";
const SAID: &[u8] = b"what is written is read";

/// What fails here says nothing of the kernel.
fn write_probe(data: &Path, image: &Path) -> Result<()> {
    let what = || "write an image";
    let mut archive = vec![0; 512];
    archive.extend_from_slice(SAID);
    archive.resize(1024, 0);
    fs::write(data, &archive).context(what)?;
    let mut tree = Tree::new(erofs::Device { tag: "probe".into(), len: archive.len() as u64 });
    let metadata = Metadata { mode: 0o600, uid: 0, gid: 0, mtime: (0, 0), attributes: &BTreeMap::new() };
    let kind = erofs::EntryKind::File { len: SAID.len() as u64, at: 512 };
    tree.add(&erofs::Entry { path: b"said", kind, metadata })?;
    write_image(&tree, image)?;
    File::open(data).and_then(|data| data.sync_all()).context(what)
}

/// `Unimplemented` if the kernel cannot, which want of memory or room does not say.
fn mount_probe(data: &Path, image: &Path, backing: Backing) -> Result<()> {
    read_probe(data, image, backing).map_err(|error| match error.kind() {
        ErrorKind::ResourceExhausted => error,
        _ => Error::unimplemented("layers cannot be mounted from archives").with_source(error),
    })
}

fn read_probe(data: &Path, image: &Path, backing: Backing) -> Result<()> {
    let what = || "read it";
    let mount = detached(image, &[data.to_owned()], backing)?;
    let mut found = Vec::new();
    let said = rustix::fs::openat(&mount, "said", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    File::from(said.map_err(io::Error::from).context(what)?).read_to_end(&mut found).context(what)?;
    if found != SAID {
        return Err(Error::data_loss("a file of the image is not what was written"));
    }
    Ok(())
}

/// An image with its devices, mounted nowhere yet.
pub(super) fn detached(image: &Path, data: &[PathBuf], backing: Backing) -> Result<OwnedFd> {
    match backing {
        Backing::Files | Backing::FilesThroughMemory => {
            or_from_loop_devices(from_files(image, data, &[]), image, data)
        }
        Backing::FilesDirectly => from_files(image, data, &[DIRECTLY]),
        Backing::LoopDevices => from_loop_devices(image, data),
    }
}

/// Has what is mounted at a place read past the kernel's memory of files from now on.
pub(super) fn read_directly(at: &Path) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(at, flags, Mode::empty()).map_err(io::Error::from);
    let opened = opened.context(|| format!("open {}", at.display()))?;
    let options = mount::Options::parse(&["ro".to_owned(), DIRECTLY.to_owned()]);
    mount::reconfigure(opened.as_fd(), &options).context(|| format!("change the mount at {}", at.display()))
}

/// Whether most of a file, its holes aside, is in the kernel's memory of files. So it is for all we know where the kernel does not tell.
pub(super) fn is_in_memory(path: &Path) -> Result<bool> {
    let what = || format!("look at {}", path.display());
    let file = File::open(path).context(what)?;
    let metadata = file.metadata().context(what)?;
    let half = metadata.len().min(metadata.blocks() * 512) / 2;
    Ok(page_cache::cached_len(file.as_fd()).map_or(true, |cached| cached >= half))
}

/// Kernels that mount no files (`ENOTBLK`) get block devices that show them.
fn or_from_loop_devices(mounted: Result<OwnedFd>, image: &Path, data: &[PathBuf]) -> Result<OwnedFd> {
    match mounted {
        Err(error) if is_want_of_block_devices(&error) => from_loop_devices(image, data),
        mounted => mounted,
    }
}

fn from_files(image: &Path, data: &[PathBuf], words: &[&str]) -> Result<OwnedFd> {
    // What is too long for an option is opened here and named by its number, until it is mounted.
    let mut open = Vec::new();
    let mut shown = |path: &Path| -> Result<String> {
        match path.to_str() {
            Some(text) if text.len() < PATH_LEN_MAX => Ok(text.to_owned()),
            _ => {
                let file = File::open(path).context(|| format!("open {}", path.display()))?;
                let text = format!("/proc/self/fd/{}", file.as_raw_fd());
                open.push(file);
                Ok(text)
            }
        }
    };
    let source = shown(image)?;
    let devices = data.iter().map(|path| shown(path)).collect::<Result<Vec<_>>>()?;
    let before = page_cache::Backings::of(EROFS);
    let mount = new_mount(&source, &devices, words)?;
    // As files of directories are, which lie on that disk themselves.
    if let Some(metadata) = data.first().and_then(|data| fs::metadata(data).ok()) {
        before.read_ahead_as(metadata.dev());
    }
    Ok(mount)
}

fn from_loop_devices(image: &Path, data: &[PathBuf]) -> Result<OwnedFd> {
    let show = |path: &PathBuf| {
        let what = || format!("show {} as a device", path.display());
        LoopDevice::show(File::open(path).context(what)?.as_fd()).context(what)
    };
    let image = show(&image.to_owned())?;
    let data = data.iter().map(show).collect::<Result<Vec<_>>>()?;
    let path = |device: &LoopDevice| device.path().display().to_string();
    new_mount(&path(&image), &data.iter().map(path).collect::<Vec<_>>(), &[])
}

fn new_mount(source: &str, devices: &[String], words: &[&str]) -> Result<OwnedFd> {
    let devices = devices.iter().map(|device| format!("device={device}"));
    let words = ["ro"].iter().chain(words).map(ToString::to_string);
    let options: Vec<String> = words.chain(devices).collect();
    mount::new_filesystem(EROFS, source, &mount::Options::parse(&options))
}

fn is_want_of_block_devices(error: &Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    cause.and_then(io::Error::raw_os_error) == Some(Errno::NOTBLK.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LayerFiles;

    /// What a kernel before 6.12 is given, tried on this one.
    #[test]
    fn images_are_mounted_from_loop_devices_too() {
        if !stdx::testing::is_root("a mount") {
            return;
        }
        let dir = tempfile::TempDir::new().unwrap();
        let files = LayerFiles::of(dir.path());
        let mut tree = Tree::new(erofs::Device { tag: "x".into(), len: 1024 });
        let metadata = Metadata { mode: 0o600, uid: 0, gid: 0, mtime: (0, 0), attributes: &BTreeMap::new() };
        let kind = erofs::EntryKind::File { len: 3, at: 512 };
        tree.add(&erofs::Entry { path: b"file", kind, metadata }).unwrap();
        files
            .write(|new| {
                std::os::unix::fs::FileExt::write_all_at(new.data, b"abc", 512).unwrap();
                new.data.set_len(1024).unwrap();
                Ok(tree)
            })
            .unwrap();
        let refused = Err(io::Error::from(Errno::NOTBLK)).context(|| "mount erofs");
        let mount = or_from_loop_devices(refused, &files.image, std::slice::from_ref(&files.data)).unwrap();
        let file = rustix::fs::openat(&mount, "file", OFlags::RDONLY, Mode::empty()).unwrap();
        assert_eq!(io::read_to_string(File::from(file)).unwrap(), "abc");
    }

    /// One is longer than a terabyte, whatever is in it.
    #[test]
    fn an_archive_with_holes_is_in_memory_if_what_there_is_of_it_is() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("data");
        fs::write(&path, vec![7; 100_000]).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len((1 << 40) + 4096).unwrap();
        file.sync_all().unwrap();
        assert!(is_in_memory(&path).unwrap());
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        // Not every file system lets go of it.
        let is_gone = page_cache::cached_len(file.as_fd()).is_ok_and(|cached| cached == 0);
        assert_eq!(is_in_memory(&path).unwrap(), !is_gone);
    }

    #[test]
    fn kernels_that_read_files_unsoundly_are_shown_loop_devices() {
        for (release, is_sound) in [
            ((5, 10, 0), false),
            ((6, 12, 0), false),
            ((6, 12, 79), false),
            ((6, 12, 80), true),
            ((6, 13, 12), false),
            ((6, 17, 99), false),
            ((6, 18, 11), false),
            ((6, 18, 20), false),
            ((6, 18, 21), true),
            ((6, 18, 44), true),
            ((6, 19, 10), false),
            ((6, 19, 11), true),
            ((7, 0, 0), true),
            ((7, 1, 2), true),
            ((8, 0, 0), true),
        ] {
            assert_eq!(reads_files_soundly(release), is_sound, "{release:?}");
            for backing in [Backing::Files, Backing::FilesThroughMemory] {
                let expected = if is_sound { backing } else { Backing::LoopDevices };
                assert_eq!(backing.on(release), expected, "{release:?}");
            }
            for backing in [Backing::FilesDirectly, Backing::LoopDevices] {
                assert_eq!(backing.on(release), backing, "{release:?}: as it was asked for");
            }
        }
    }

    #[test]
    fn only_the_want_of_a_block_device_leads_to_loop_devices() {
        let failed = |errno: Errno| Err::<(), _>(io::Error::from(errno)).context(|| "mount").unwrap_err();
        assert!(is_want_of_block_devices(&failed(Errno::NOTBLK)));
        assert!(!is_want_of_block_devices(&failed(Errno::INVAL)));
    }
}
