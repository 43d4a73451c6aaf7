//! The memory that applying a layer of a million entries takes. A program of its own, since the figure is that of the
//! whole process.

use std::fs;
use std::io::{Cursor, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use diff::tar::{Entry, Kind, Writer};
use diff::{ApplyOptions, Limits, Whiteouts, apply};
use tempfile::TempDir;

const ENTRIES: u64 = 1_000_000;
const DIRECTORIES: u64 = 1000;

/// Gives the archive piece by piece: it is never in memory as a whole.
struct Archive {
    at: u64,
    piece: Cursor<Vec<u8>>,
}

impl Read for Archive {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let len = self.piece.read(buffer)?;
        if len > 0 || self.at > ENTRIES {
            return Ok(len);
        }
        self.piece = Cursor::new(piece(self.at));
        self.at += 1;
        self.piece.read(buffer)
    }
}

/// An entry without an archive's end, or the end. Names repeat in a pattern that no cache of open directories
/// holds.
fn piece(at: u64) -> Vec<u8> {
    let kind = if at == 0 { Kind::File } else { Kind::HardLink(b"0/0".to_vec()) };
    let entry = Entry::new(format!("{}/{}", at % DIRECTORIES, at / DIRECTORIES), kind);
    let mut writer = Writer::new(Vec::new(), 0);
    if at < ENTRIES {
        writer.entry(&entry, &mut std::io::empty()).unwrap();
    }
    let mut bytes = writer.finish().unwrap();
    if at < ENTRIES {
        bytes.truncate(512);
    }
    bytes
}

/// In memory, since the disk is not what is tested.
#[test]
fn a_million_entries_are_applied_in_bounded_memory() {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.unwrap();
    let root = fs::File::open(dir.path()).unwrap();
    let options = ApplyOptions { whiteouts: Whiteouts::Overlay, limits: Limits::default() };
    let before = peak_memory();
    let applied = apply(Archive { at: 0, piece: Cursor::default() }, options, root.as_fd()).unwrap();
    assert_eq!(applied.size, ENTRIES * 512 + 1024);
    assert_eq!(fs::metadata(dir.path().join("0/0")).unwrap().nlink(), ENTRIES);
    let grown = peak_memory() - before;
    assert!(grown < 64 << 20, "{grown} bytes more than before");
}

/// The most memory that this process ever had, in bytes (proc_pid_status(5), `VmHWM`).
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() << 10
}
