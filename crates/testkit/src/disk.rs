//! A disk that remembers every write, and what it would hold had the power gone at any of them.
//!
//! ```text
//! ext4 on a loop device ─▶ one file of a FUSE file system ─▶ a thread here: write, write, flush, write, …
//! ```
//!
//! A disk keeps what came before a flush that it answered. Of what came after, any part may be there and any
//! part not; [`Recording::after_cut`] leaves that to the caller.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use linux::mount;
use stdx::Mutex;
use tempfile::TempDir;

use crate::fuse::{self, REQUEST_MAX};
use crate::run;
use crate::wait::{eventually, wait_for};

const IN_HEADER_LEN: usize = 40;
const FILE_ID: u64 = 2;

enum Operation {
    Write { at: usize, bytes: Vec<u8> },
    Flush,
}

/// A mounted ext4 on a loop device, for tests that need what the file system of temporary files may lack.
pub struct Disk(TempDir);

impl Disk {
    /// Makes an empty file system of `len` bytes.
    pub fn new(len: u64) -> Disk {
        let dir = TempDir::with_prefix("disk-").expect("a temporary directory");
        let image = dir.path().join("image");
        make_ext4(&image, len, &[]);
        let disk = Disk(dir);
        fs::create_dir(disk.path()).expect("a directory of ours");
        mount_image(&image, &disk.path());
        disk
    }

    /// The mount point.
    pub fn path(&self) -> PathBuf {
        self.0.path().join("mounted")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("--recursive").arg(self.path()));
    }
}

/// A mounted file system on a disk that records every write and flush.
pub struct RecordedDisk {
    dir: TempDir,
    shared: Arc<Mutex<Shared>>,
    server: Option<JoinHandle<()>>,
    empty: Vec<u8>,
}

struct Shared {
    content: Vec<u8>,
    operations: Vec<Operation>,
    /// How long the disk takes for each write and each read.
    write_time: Duration,
    read_time: Duration,
    /// How many reads there were.
    reads: usize,
}

/// The writes and flushes of a disk, in order.
pub struct Recording {
    empty: Vec<u8>,
    operations: Vec<Operation>,
}

impl RecordedDisk {
    /// Makes an empty ext4 of `len` bytes.
    pub fn new(len: u64) -> RecordedDisk {
        RecordedDisk::made_with(len, &[])
    }

    /// As [`RecordedDisk::new`], with the ext4 feature for fs-verity. A kernel without fs-verity mounts it read-only.
    pub fn for_verity(len: u64) -> RecordedDisk {
        RecordedDisk::made_with(len, VERITY)
    }

    fn made_with(len: u64, words: &[&str]) -> RecordedDisk {
        let dir = TempDir::with_prefix("disk-").expect("a temporary directory");
        let plain = dir.path().join("plain");
        make_ext4(&plain, len, words);
        let empty = fs::read(&plain).expect("a file of ours");
        fs::remove_file(&plain).expect("a file of ours");
        let shared = Arc::new(Mutex::new(Shared {
            content: empty.clone(),
            operations: Vec::new(),
            write_time: Duration::ZERO,
            read_time: Duration::ZERO,
            reads: 0,
        }));
        let mut disk = RecordedDisk { dir, shared, server: None, empty };
        disk.serve();
        fs::create_dir(disk.path()).expect("a directory of ours");
        mount_image(&disk.dir.path().join("fuse/disk"), &disk.path());
        disk
    }

    /// The mount point.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }

    /// Makes each write take `write_time` from now on. The kernel writes at most 128 KiB at a time.
    pub fn slow_down(&self, write_time: Duration) {
        self.shared.lock().write_time = write_time;
    }

    /// Makes each read take `read_time` from now on, and drops the disk's page cache. The kernel reads at most 128 KiB
    /// at a time.
    pub fn slow_down_reads(&self, read_time: Duration) {
        self.shared.lock().read_time = read_time;
        self.forget();
    }

    /// Drops the disk's page cache, so that the kernel reads from the disk again.
    pub fn forget(&self) {
        forget(&self.dir.path().join("fuse/disk"));
    }

    /// How many reads began so far.
    pub fn reads(&self) -> usize {
        self.shared.lock().reads
    }

    /// How many writes and flushes were recorded so far.
    pub fn now(&self) -> usize {
        self.shared.lock().operations.len()
    }

    /// Unmounts the disk and returns what it recorded. Other mounts of the disk must be unmounted before; the kernel
    /// may let go of them a moment later.
    pub fn end(mut self) -> Recording {
        run(Command::new("umount").arg(self.path())).ok();
        eventually("nobody has the disk any more", || (!self.is_shown()).then_some(()));
        self.stop();
        let operations = std::mem::take(&mut self.shared.lock().operations);
        Recording { empty: std::mem::take(&mut self.empty), operations }
    }

    fn serve(&mut self) {
        let at = self.dir.path().join("fuse");
        fs::create_dir(&at).expect("a directory of ours");
        let device = fuse::mount(&at);
        let shared = Arc::clone(&self.shared);
        self.server = Some(std::thread::spawn(move || Server { device, shared }.run()));
    }

    /// Whether a loop device still uses the disk's file, as it does until its last user is gone.
    fn is_shown(&self) -> bool {
        let file = self.dir.path().join("fuse/disk");
        let devices = fs::read_dir("/sys/block").expect("sysfs is there").flatten();
        let mut shown =
            devices.filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
        shown.any(|shown| Path::new(shown.trim_end()) == file)
    }

    /// Detaches the disk: open files on it get I/O errors from now on. After a failed test, daemons may still have
    /// files open when the disk is dropped, and the server's thread would wait for them.
    fn stop(&mut self) {
        let at = self.dir.path().join("fuse");
        let _ = run(Command::new("umount").args(["--force", "--lazy"]).arg(&at));
        let _ = mount::unmount_all(&at);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

impl Drop for RecordedDisk {
    fn drop(&mut self) {
        if self.server.is_some() {
            let _ = run(Command::new("umount").arg("--lazy").arg(self.path()));
            self.stop();
        }
    }
}

impl Recording {
    /// How many writes and flushes there are.
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// The indexes of the operations that are flushes.
    pub fn flushes(&self) -> impl Iterator<Item = usize> {
        let is_flush = |(_, operation): &(usize, &Operation)| matches!(operation, Operation::Flush);
        self.operations.iter().enumerate().filter(is_flush).map(|(index, _)| index)
    }

    /// Writes to a file the content of the disk after a power cut after `at` operations. `kept` says of each write
    /// after the last flush, by its index, whether it had reached the medium.
    pub fn after_cut(&self, at: usize, mut kept: impl FnMut(usize) -> bool, to: &Path) {
        let operations = &self.operations[..at];
        let is_flush = |operation: &Operation| matches!(operation, Operation::Flush);
        let safe = operations.iter().rposition(is_flush).unwrap_or(0);
        let mut content = self.empty.clone();
        for (index, operation) in operations.iter().enumerate() {
            if let Operation::Write { at, bytes } = operation
                && (index < safe || kept(index))
            {
                content[*at..at + bytes.len()].copy_from_slice(bytes);
            }
        }
        write_sparse(&content, to).expect("room for a disk");
    }
}

/// Writes a file with holes where the bytes are zeros, as most of a disk are. With all of them in the page cache, the
/// first flush of whoever mounts the file would wait until they are written out.
fn write_sparse(bytes: &[u8], to: &Path) -> io::Result<()> {
    static HOLE: [u8; 4096] = [0; 4096];
    let file = File::create(to)?;
    file.set_len(bytes.len() as u64)?;
    for (number, block) in bytes.chunks(HOLE.len()).enumerate() {
        if *block != HOLE[..block.len()] {
            file.write_all_at(block, (number * HOLE.len()) as u64)?;
        }
    }
    Ok(())
}

/// Drops the page cache of a file. Pages that another process has mapped stay.
pub fn forget(path: &Path) {
    let file = File::open(path).expect("a file that is there");
    // Only clean pages are dropped, so dirty ones are written out first.
    let _ = file.sync_all();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("a file with pages");
}

/// Options of mkfs.ext4(8) for fs-verity. The block size is a page size of every kernel that supports it.
const VERITY: &[&str] = &["-b", "4096", "-O", "verity"];

/// Makes a file with an empty ext4, by more options of mkfs.ext4(8).
fn make_ext4(image: &Path, len: u64, words: &[&str]) {
    File::create(image).and_then(|file| file.set_len(len)).expect("room for a sparse file");
    let mut make = Command::new("mkfs.ext4");
    run(make.args(["-q", "-F", "-E", "lazy_itable_init=0"]).args(words).arg(image)).ok();
}

/// Mounts the file system in a file, as after a power cut: its journal is replayed.
pub fn mount_image(image: &Path, at: &Path) {
    run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(at)).ok();
}

struct Server {
    device: File,
    shared: Arc<Mutex<Shared>>,
}

impl Server {
    fn run(mut self) {
        let mut request = vec![0; REQUEST_MAX];
        loop {
            match self.device.read(&mut request) {
                Ok(len) => self.answer(&request[..len]),
                // The kernel took the request back: its caller was interrupted.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The file system was unmounted.
                Err(_) => return,
            }
        }
    }

    fn answer(&mut self, request: &[u8]) {
        const ENOSYS: i32 = -38;
        const ENOENT: i32 = -2;
        let (opcode, body) = (u32_at(request, 4), &request[IN_HEADER_LEN..]);
        let node = u64_at(request, 16);
        let answer = match opcode {
            2 | 36 | 42 => return, // FORGET, INTERRUPT, BATCH_FORGET
            26 => Ok(fuse::init()),
            1 if body == b"disk\0" => Ok(self.entry()),
            1 => Err(ENOENT),
            3 | 4 => Ok([&[0; 16][..], &self.attributes(node)].concat()), // GETATTR, SETATTR
            14 | 27 => Ok(vec![0; 16]),                                   // OPEN, OPENDIR
            15 => Ok(self.read(body)),
            16 => Ok(self.write(body)),
            17 => Ok(vec![0; 80]), // STATFS
            20 => {
                self.shared.lock().operations.push(Operation::Flush);
                Ok(Vec::new())
            }
            18 | 25 | 29 => Ok(Vec::new()), // RELEASE, FLUSH (of a descriptor, not of a disk), RELEASEDIR
            _ => Err(ENOSYS),
        };
        fuse::reply(&mut self.device, request, answer);
    }

    fn read(&self, body: &[u8]) -> Vec<u8> {
        let read_time = {
            let mut shared = self.shared.lock();
            shared.reads += 1;
            shared.read_time
        };
        if !read_time.is_zero() {
            wait_for(read_time);
        }
        let shared = self.shared.lock();
        let at = usize::try_from(u64_at(body, 8)).expect("a small disk").min(shared.content.len());
        let end = (at + u32_at(body, 16) as usize).min(shared.content.len());
        shared.content[at..end].to_vec()
    }

    fn write(&self, body: &[u8]) -> Vec<u8> {
        const WRITE_LEN: usize = 40;
        let (at, len) = (usize::try_from(u64_at(body, 8)).expect("a small disk"), u32_at(body, 16));
        let bytes = body[WRITE_LEN..][..len as usize].to_vec();
        let mut shared = self.shared.lock();
        shared.content[at..at + bytes.len()].copy_from_slice(&bytes);
        shared.operations.push(Operation::Write { at, bytes });
        let write_time = shared.write_time;
        drop(shared);
        wait_for(write_time);
        [len.to_ne_bytes(), [0; 4]].concat()
    }

    /// `fuse_entry_out`.
    fn entry(&self) -> Vec<u8> {
        [&FILE_ID.to_ne_bytes()[..], &[0; 32], &self.attributes(FILE_ID)].concat()
    }

    /// `fuse_attr`.
    fn attributes(&self, node: u64) -> Vec<u8> {
        let (mode, len) = match node {
            FILE_ID => (0o100_600_u32, self.shared.lock().content.len() as u64),
            _ => (0o040_700, 0),
        };
        let mut attributes = Vec::new();
        for word in [node, len, len / 512, 0, 0, 0] {
            attributes.extend_from_slice(&word.to_ne_bytes());
        }
        for word in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
            attributes.extend_from_slice(&word.to_ne_bytes());
        }
        attributes
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
