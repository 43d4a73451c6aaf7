//! The memory of helper threads. A program of its own, since the figure is that of the whole process.

use std::fs;
use std::io::{Cursor, Read};

use diff::tar::{Entry, Kind, Writer};
use diff::{Helpers, Limits, store};

/// Most bytes of a layer without helpers, and of all helpers together, with those that the allocator keeps
/// (transfer.md, "Memory").
const ALONE_MAX: u64 = 10 << 20;
const HELPERS_MAX: u64 = 14 << 20;

/// A file of some megabytes in a frame of its own, again and again.
struct Frames {
    frame: Vec<u8>,
    left: u32,
    piece: Cursor<Vec<u8>>,
}

impl Frames {
    fn new(frames: u32, len: u64) -> Frames {
        let mut entry = Entry::new("file".to_owned(), Kind::File);
        entry.size = len;
        let mut writer = Writer::new(Vec::new(), 0);
        let data: Vec<u8> = (0..len).map(|at| ((at * at) >> 7) as u8).collect();
        writer.entry(&entry, &mut &data[..]).unwrap();
        let mut plain = writer.finish().unwrap();
        plain.truncate(plain.len() - 1024);
        Frames { frame: zstd::encode_all(&plain[..], 1).unwrap(), left: frames, piece: Cursor::default() }
    }
}

impl Read for Frames {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let len = self.piece.read(buffer)?;
        if len > 0 || self.left == 0 {
            return Ok(len);
        }
        self.left -= 1;
        let piece = if self.left == 0 { zstd::encode_all(&[0; 1024][..], 1)? } else { self.frame.clone() };
        self.piece = Cursor::new(piece);
        self.piece.read(buffer)
    }
}

#[test]
fn helper_threads_share_one_memory_budget() {
    let grown = [0, 8].map(|helpers| {
        let limits = Limits { helpers: Helpers::Fixed(helpers), ..Limits::default() };
        let frames = Frames::new(80, 3 << 20);
        let data = tempfile::tempfile().unwrap();
        forget_peak();
        let before = memory("VmRSS:");
        let stored = store(frames, limits, &data, None).unwrap();
        assert_eq!(stored.helped_len > 0, helpers > 0);
        memory("VmHWM:").saturating_sub(before)
    });
    println!("{grown:?}");
    let [alone, helped] = grown;
    assert!(alone < ALONE_MAX, "{alone} bytes alone");
    assert!(helped < ALONE_MAX + HELPERS_MAX, "{helped} bytes with helpers");
}

fn forget_peak() {
    fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// A figure of this process in bytes (proc_pid_status(5)).
fn memory(key: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() << 10
}
