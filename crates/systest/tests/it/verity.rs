//! Layers with fs-verity, from the disk to the container: in the guest of `guest.rs` whose kernel has fs-verity and
//! EROFS, and on any host that can mount a disk made for fs-verity.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;
use testkit::disk::mount_image;
use testkit::layout::{archive_of, tar_entry};
use testkit::{Daemon, Layout, Registry, eventually, images, noise, run, unmount_below};
use types::Digest;
use types::descriptor::media_type;

use crate::memory::push_layout;
use crate::power::gzip;
use crate::retention::{blob, layer};

const DISK_LEN: u64 = 64 << 20;
const FILE_LEN: usize = 300_000;

/// The lower layer of the images of this file.
fn shell_layer() -> Vec<u8> {
    let shell = TempDir::new().expect("a temporary directory");
    fs::create_dir(shell.path().join("bin")).expect("a writable directory");
    fs::copy("/bin/busybox", shell.path().join("bin/busybox")).expect("busybox-static is installed");
    for tool in ["sh", "cat", "sha256sum"] {
        std::os::unix::fs::symlink("busybox", shell.path().join("bin").join(tool)).expect("a new name");
    }
    let tar = Command::new("tar").arg("-C").arg(shell.path()).args(["-cf", "-", "."]).output();
    tar.expect("tar is part of Debian").stdout
}

/// Two layers: the shell, and files of noise.
pub(crate) fn layout() -> Layout {
    let file = |name: &str| tar_entry(name, b'0', "", &noise(name, FILE_LEN));
    let files = archive_of(&["rots", "stays"].map(file));
    let layout = Layout::new();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({"config": {"Cmd": ["sh"], "Env": ["PATH=/bin"]}});
    layout.tag(&layout.image_of(architecture, &[shell_layer(), files], &config), images::TAG);
    layout
}

/// What sha256sum(1) prints of a file of noise.
pub(crate) fn sum(file: &str) -> String {
    Digest::of(&noise(file, FILE_LEN)).hex().to_owned()
}

/// Turns fs-verity on for the daemon's next start. The disk of its first start need not support it.
pub(crate) fn watch_over(daemon: &Daemon) {
    let config = daemon.dir().join("config.toml");
    let text = fs::read_to_string(&config).expect("its configuration");
    let watched = text.replace("verity = false", "verity = true");
    assert_ne!(watched, text, "it says nothing of it");
    fs::write(&config, watched).expect("a writable file");
}

/// Whether ext4 of this kernel supports fs-verity. The guest's kernel must.
pub(crate) fn is_known() -> bool {
    let is_known = Path::new("/sys/fs/ext4/features/verity").exists();
    assert!(is_known || std::env::var_os("HOIST_GUEST").is_none_or(|guest| guest != "younger"));
    is_known
}

/// An ext4 image made with fs-verity, mounted as the daemon's root.
struct Disk {
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    /// None if the kernel cannot mount it.
    fn new(dir: &Path, at: PathBuf) -> Option<Disk> {
        let image = dir.join("disk");
        fs::File::create(&image).and_then(|file| file.set_len(DISK_LEN)).expect("a sparse file");
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-b", "4096", "-O", "verity"]).arg(&image)).ok();
        let disk = Disk { image, at };
        let is_known = is_known();
        if is_known {
            disk.mount();
        }
        is_known.then_some(disk)
    }

    fn mount(&self) {
        mount_image(&self.image, &self.at);
    }

    /// Whether a loop device shows the image.
    fn is_shown(&self) -> bool {
        let devices = fs::read_dir("/sys/block").expect("sysfs is there").flatten();
        let files =
            devices.filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
        files.into_iter().any(|file| Path::new(file.trim_end()) == self.image)
    }

    /// Flips a bit where the disk has these bytes of the file, but nowhere else.
    fn rot(&self, file: &Path, bytes: &[u8]) {
        let disk = fs::File::options().read(true).write(true).open(&self.image).expect("a file of ours");
        self.unmount();
        let mut all = vec![0; usize::try_from(DISK_LEN).expect("small")];
        disk.read_exact_at(&mut all, 0).expect("a whole disk");
        let places = (0..all.len() - bytes.len()).step_by(512).filter(|at| all[*at..].starts_with(bytes));
        for at in places {
            let write = |byte: u8| disk.write_all_at(&[byte], at as u64 + 100).expect("a writable file");
            write(bytes[100] ^ 1);
            self.mount();
            if fs::read(file).is_err() {
                return;
            }
            self.unmount();
            write(bytes[100]);
        }
        panic!("no place of these bytes is one of {}", file.display());
    }

    fn unmount(&self) {
        unmount_below(&self.at);
        eventually("nobody has the disk", || (!self.is_shown()).then_some(()));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount_below(&self.at);
    }
}

/// The directory of the topmost layer, which contains the image of both.
fn top(daemon: &Daemon) -> PathBuf {
    let trees = fs::read_dir(daemon.root().join("snapshots/overlayfs")).expect("a directory of trees");
    let mut trees = trees.map(|entry| entry.expect("an entry").path());
    trees.find(|tree| tree.join("stack.erofs").exists()).expect("a stack")
}

#[test]
fn a_byte_that_rots_is_an_error_until_it_is_mended() {
    let dir = TempDir::with_prefix_in("hoist-verity-", "/var/tmp").expect("a temporary directory");
    let mut daemon = Daemon::start_with(&[], "[snapshots]\nlayers = \"archives\"\nverity = false\n");
    daemon.terminate();
    let Some(disk) = Disk::new(dir.path(), daemon.root()) else {
        println!("skipped: this kernel has no fs-verity");
        return;
    };
    watch_over(&daemon);
    daemon.start_again();

    let layout = layout();
    let loaded = daemon.hoist(["load", "-i", &layout.path().display().to_string()]).ok();
    let name = loaded.text().split_whitespace().last().expect("what was loaded").to_owned();
    let read = |daemon: &Daemon, file: &str| {
        daemon.hoist(["run", "--rm", "--network", "none", &name, "sha256sum", file])
    };
    assert!(read(&daemon, "/stays").ok().text().starts_with(&sum("stays")));
    let top = top(&daemon);
    for record in ["verity", "stack.verity"] {
        assert!(top.join(record).exists(), "{record}");
    }
    for file in ["data.tar", "stack.erofs"] {
        let refused = fs::File::options().write(true).open(top.join(file)).expect_err("nobody writes to it");
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied, "{file}");
    }

    // A byte of the file has changed on the disk.
    daemon.terminate();
    disk.rot(&top.join("data.tar"), &noise("rots", FILE_LEN)[512..4096]);
    daemon.start_again();
    let broken = read(&daemon, "/rots");
    assert!(broken.code != 0 && !broken.stdout.contains(&sum("rots")), "{broken}");
    assert!(broken.stderr.contains("Input/output error"), "{broken}");
    assert!(read(&daemon, "/stays").ok().text().starts_with(&sum("stays")), "all else is as it was");

    // The file was replaced by one with the same bytes, and without fs-verity.
    daemon.terminate();
    unmount_below(&daemon.root().join("snapshots"));
    let (stack, copy) = (top.join("stack.erofs"), top.join("copy"));
    fs::copy(&stack, &copy).and_then(|_| fs::rename(&copy, &stack)).expect("a writable directory");
    daemon.start_again();
    assert!(read(&daemon, "/stays").ok().text().starts_with(&sum("stays")));
    let refused = fs::File::options().write(true).open(&stack).expect_err("it was made anew");
    assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);

    let mended = daemon.hoist(["image", "verify"]).ok();
    assert!(mended.stdout.contains("mended"), "{mended}");
    assert!(read(&daemon, "/rots").ok().text().starts_with(&sum("rots")), "from its blob");
    fs::File::options().write(true).open(top.join("data.tar")).expect_err("it is watched over again");

    // As after a power cut while a layer was mended: its files are right, and do not have fs-verity yet.
    daemon.terminate();
    unmount_below(&daemon.root().join("snapshots"));
    let (archive, copy) = (top.join("data.tar"), top.join("copy"));
    fs::copy(&archive, &copy).and_then(|_| fs::rename(&copy, &archive)).expect("a writable directory");
    daemon.start_again();
    let found = daemon.hoist(["system", "check"]).expect_code(1);
    assert!(found.stdout.lines().any(|line| line.starts_with("damaged: ")), "{found}");
    let mended = daemon.hoist(["image", "verify"]).ok();
    assert!(mended.stdout.contains("1 mended, 0 broken"), "{mended}");
    daemon.hoist(["system", "check"]).ok();
    assert!(read(&daemon, "/rots").ok().text().starts_with(&sum("rots")));
    daemon.terminate();
}

/// Where recipes stand for blobs, the archive is all that there is of one: the file that both use is watched over, and what
/// rotted in it makes no other blob.
#[test]
fn a_blob_that_is_made_of_what_rotted_is_an_error_until_it_is_mended() {
    let dir = TempDir::with_prefix_in("hoist-verity-", "/var/tmp").expect("a temporary directory");
    let config = "[content]\nunpacked = \"recipe\"\n[snapshots]\nlayers = \"archives\"\nverity = false\n";
    let mut daemon = Daemon::start_with(&[], config);
    daemon.terminate();
    let Some(disk) = Disk::new(dir.path(), daemon.root()) else {
        println!("skipped: this kernel has no fs-verity");
        return;
    };
    watch_over(&daemon);
    daemon.start_again();

    // Compressed, so that the blob differs from the archive that is kept.
    let text: String = (0..30_000).map(|line| format!("line {line} of what rots\n")).collect();
    let files = archive_of(&[tar_entry("rots", b'0', "", text.as_bytes())]);
    let layout = Layout::new();
    let diff_ids = [Digest::of(&files).to_string()];
    let blobs = [layout.blob(media_type::OCI_LAYER_GZIP, &gzip(&files))];
    let config = json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}});
    layout.tag(&layout.image_of_blobs(&blobs, &config), images::TAG);
    let registry = Registry::start();
    let reference = push_layout(&registry, layout.path());
    daemon.hoist(["pull", "-q", &reference]).ok();
    let (digest, _) = layer(&daemon, &reference);
    eventually("a recipe stands for the blob", || (!blob(&daemon, &digest).exists()).then_some(()));
    let plain = daemon.root().join("content/recipes/sha256").join(format!("{}.plain", digest.hex()));
    let refused = fs::File::options().write(true).open(&plain).expect_err("it is the layer's archive");
    assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    let read = |daemon: &Daemon| {
        daemon.ctr_command(["content", "get", &digest.to_string()]).output().expect("ctr runs")
    };
    assert_eq!(Digest::of(&read(&daemon).stdout), digest);

    daemon.terminate();
    disk.rot(&plain, &text.as_bytes()[512..4096]);
    daemon.start_again();
    let failed = read(&daemon);
    assert!(!failed.status.success(), "no wrong byte leaves: {} bytes", failed.stdout.len());
    let mended = daemon.hoist(["image", "verify", &reference]).ok();
    assert!(mended.stdout.contains(&registry.host()), "{mended}");
    assert_eq!(Digest::of(&read(&daemon).stdout), digest, "fetched anew");
    daemon.hoist(["system", "check"]).ok();
    let verified = daemon.hoist(["image", "verify", &reference]).ok();
    assert!(verified.stdout.contains("0 mended, 0 broken"), "{verified}");
    daemon.terminate();
}
