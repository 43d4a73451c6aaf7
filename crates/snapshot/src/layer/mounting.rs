//! Mounts an image with its archives as devices.

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

/// Most bytes of the value of a mount option.
const PATH_LEN_MAX: usize = 255;

/// How images and archives are given to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backing {
    /// As files (Linux 6.12), or as loop devices if the kernel cannot mount files. Archives in the page cache, as after
    /// a pull, are read through it; others by direct I/O if the kernel can (Linux 6.13), which reads a page from the
    /// disk sooner, and caches it once instead of twice.
    #[default]
    Files,
    /// As files, always through the page cache.
    FilesThroughMemory,
    /// As files, always by direct I/O.
    FilesDirectly,
    /// As loop devices.
    LoopDevices,
}

/// The first sound release of each maintained branch of Linux. Before them, a reader that was killed during a read of a
/// mounted file left zeros in the page cache, which all other readers got from then on (eade54040384, "erofs: set
/// fileio bio failed in short read case"); in releases not much older, direct I/O used freed memory (1caf50ce4af0,
/// CVE-2026-23224).
const SOUND: [(u32, u32, u32); 4] = [(6, 12, 80), (6, 18, 21), (6, 19, 11), (7, 0, 0)];

/// Whether a kernel of this release is known to read the files of a mounted image soundly. False too for distributors'
/// kernels with backported fixes, whose release numbers do not show them.
pub fn reads_files_soundly(release: (u32, u32, u32)) -> bool {
    let (major, minor, _) = release;
    let of_branch = SOUND.iter().find(|sound| (sound.0, sound.1) == (major, minor));
    release >= *of_branch.unwrap_or(&SOUND[SOUND.len() - 1])
}

impl Backing {
    /// The backing to use instead on a kernel of this release: loop devices if it does not read files soundly. Direct
    /// I/O stays, since it leaves no zeros in the page cache and only an explicit setting asks for it.
    pub fn on(self, release: (u32, u32, u32)) -> Backing {
        match self {
            Backing::Files | Backing::FilesThroughMemory if !reads_files_soundly(release) => {
                Backing::LoopDevices
            }
            other => other,
        }
    }
}

/// The mount option for direct I/O.
const DIRECT_IO: &str = "directio";

/// Checks that this kernel mounts images with this backing, from files of this file system, with data at the 512-byte
/// offsets of archives. `Unimplemented` if not, with the kernel's reason.
pub fn probe(root: &Path, backing: Backing) -> Result<()> {
    fs::create_dir_all(root).context(|| format!("create {}", root.display()))?;
    let (data, image) = (root.join("probe.tar"), root.join("probe.erofs"));
    let probed = write_probe(&data, &image).and_then(|()| mount_probe(&data, &image, backing));
    for path in [&data, &image] {
        let _ = fs::remove_file(path); // if it fails, the next probe overwrites the file
    }
    probed.map_err(|error| error.context(format!("probe in {}", root.display())))
}

const EROFS: &str = "erofs";
const PROBE_DATA: &[u8] = b"what is written is read";

/// Writes the image to mount. Failing to do so says nothing about the kernel.
fn write_probe(data: &Path, image: &Path) -> Result<()> {
    let what = || "write an image";
    let mut archive = vec![0; 512];
    archive.extend_from_slice(PROBE_DATA);
    archive.resize(1024, 0);
    fs::write(data, &archive).context(what)?;
    let mut tree = Tree::new(erofs::Device { tag: "probe".into(), len: archive.len() as u64 });
    let metadata = Metadata { mode: 0o600, uid: 0, gid: 0, mtime: (0, 0), attributes: &BTreeMap::new() };
    let kind = erofs::EntryKind::File { len: PROBE_DATA.len() as u64, at: 512 };
    tree.add(&erofs::Entry { path: b"said", kind, metadata })?;
    write_image(&tree, image)?;
    File::open(data).and_then(|data| data.sync_all()).context(what)
}

/// `Unimplemented` for all failures but a lack of memory or disk space, which says nothing about the kernel.
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
    if found != PROBE_DATA {
        return Err(Error::data_loss("a file of the image is not what was written"));
    }
    Ok(())
}

/// A detached mount of an image with its devices.
pub(super) fn detached(image: &Path, data: &[PathBuf], backing: Backing) -> Result<OwnedFd> {
    match backing {
        Backing::Files | Backing::FilesThroughMemory => {
            or_from_loop_devices(from_files(image, data, &[]), image, data)
        }
        Backing::FilesDirectly => from_files(image, data, &[DIRECT_IO]),
        Backing::LoopDevices => from_loop_devices(image, data),
    }
}

/// Switches a mount to direct I/O.
pub(super) fn read_directly(at: &Path) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(at, flags, Mode::empty()).map_err(io::Error::from);
    let opened = opened.context(|| format!("open {}", at.display()))?;
    let options = mount::Options::parse(&["ro".to_owned(), DIRECT_IO.to_owned()]);
    mount::reconfigure(opened.as_fd(), &options).context(|| format!("change the mount at {}", at.display()))
}

/// Whether at least half of a file, not counting holes, is in the page cache. True if the kernel does not tell.
pub(super) fn is_in_memory(path: &Path) -> Result<bool> {
    let what = || format!("look at {}", path.display());
    let file = File::open(path).context(what)?;
    let metadata = file.metadata().context(what)?;
    let half = metadata.len().min(metadata.blocks() * 512) / 2;
    Ok(page_cache::cached_len(file.as_fd()).map_or(true, |cached| cached >= half))
}

/// Mounts loop devices if the kernel cannot mount files (`ENOTBLK`).
fn or_from_loop_devices(mounted: Result<OwnedFd>, image: &Path, data: &[PathBuf]) -> Result<OwnedFd> {
    match mounted {
        Err(error) if is_want_of_block_devices(&error) => from_loop_devices(image, data),
        mounted => mounted,
    }
}

fn from_files(image: &Path, data: &[PathBuf], words: &[&str]) -> Result<OwnedFd> {
    // Paths that are too long for a mount option are opened and named by their descriptors instead.
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
    // Sets the read-ahead of the disk that has the archives, as its own files have.
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

    /// Uses the loop devices of kernels before 6.12 on this one.
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

    /// A data file with sparse files is longer than a terabyte, but mostly a hole.
    #[test]
    fn holes_of_an_archive_do_not_count_for_its_presence_in_the_page_cache() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("data");
        fs::write(&path, vec![7; 100_000]).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len((1 << 40) + 4096).unwrap();
        file.sync_all().unwrap();
        assert!(is_in_memory(&path).unwrap());
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        // Not every file system drops its pages.
        let is_gone = page_cache::cached_len(file.as_fd()).is_ok_and(|cached| cached == 0);
        assert_eq!(is_in_memory(&path).unwrap(), !is_gone);
    }

    #[test]
    fn kernels_that_read_files_unsoundly_get_loop_devices() {
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
    fn only_enotblk_leads_to_loop_devices() {
        let failed = |errno: Errno| Err::<(), _>(io::Error::from(errno)).context(|| "mount").unwrap_err();
        assert!(is_want_of_block_devices(&failed(Errno::NOTBLK)));
        assert!(!is_want_of_block_devices(&failed(Errno::INVAL)));
    }
}
