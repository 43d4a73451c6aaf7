//! The memory of this process.

use std::ffi::c_void;
use std::fs;
use std::ops::Range;

use rustix::mm::{Advice, madvise};
use types::{Context, Result};

use crate::mapping::Mapping;

/// Returns free pages of the heap to the kernel: of a [`DenseHeap`](crate::heap::DenseHeap), and of the C library's
/// where that can (malloc_trim(3)).
pub fn trim_heap() {
    crate::heap::trim();
    #[cfg(target_env = "gnu")]
    {
        #[expect(unsafe_code, reason = "a call into the C library")]
        // SAFETY: takes the allocator's own locks and frees only what is free.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

/// Bounds the free memory that the heap keeps, for a program whose threads come and go: two arenas instead of eight for
/// each processor, large blocks mapped by themselves, and the free end of an arena returned beyond 512 KiB
/// (mallopt(3)). To be called before there are threads; no effect if the C library has no such call.
pub fn bound_heap() {
    #[cfg(target_env = "gnu")]
    for (option, value) in
        [(libc::M_ARENA_MAX, 2), (libc::M_MMAP_THRESHOLD, 1 << 20), (libc::M_TRIM_THRESHOLD, 512 << 10)]
    {
        #[expect(unsafe_code, reason = "a call into the C library")]
        // SAFETY: takes numbers only; one that it does not like changes nothing.
        unsafe {
            libc::mallopt(option, value);
        }
    }
}

/// Releases the resident pages of this program's file, and returns their bytes.
///
/// For a process that has started and will mostly wait: pages that only the start needed leave its resident set. They
/// stay in the page cache for as long as the kernel likes, and come back with a minor fault. Only read-only mappings
/// without private pages are released: relocated or patched pages stay. Threads may run meanwhile.
#[expect(unsafe_code, reason = "what is unmapped may be in use, as far as rustix knows")]
pub fn release_program() -> Result<u64> {
    let program = fs::read_link("/proc/self/exe").context(|| "read /proc/self/exe")?;
    let smaps = fs::read_to_string("/proc/self/smaps").context(|| "read /proc/self/smaps")?;
    let mut released = 0;
    for mapping in clean_mappings(&smaps, &program.to_string_lossy()) {
        let start = std::ptr::without_provenance_mut::<c_void>(mapping.start);
        // SAFETY: the kernel has just said that the range is mapped from a file, may not be written and has
        // no page of its own: the same bytes are there whenever they are read again. The program's own
        // mappings live as long as the process.
        unsafe { madvise(start, mapping.len, Advice::LinuxDontNeed) }
            .map_err(std::io::Error::from)
            .context(|| "madvise the program's pages")?;
        released += mapping.resident;
    }
    Ok(released)
}

/// A mapping that is identical to its file.
#[derive(Debug, PartialEq)]
struct Clean {
    start: usize,
    len: usize,
    /// Bytes in memory.
    resident: u64,
}

/// Read-only mappings of a file without private pages (proc_pid_smaps(5)).
fn clean_mappings(smaps: &str, path: &str) -> Vec<Clean> {
    let mut mappings = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        if let Some(mapping) = Mapping::of_line(line) {
            let is_wanted = !mapping.rights.contains('w') && mapping.file == path;
            current = is_wanted.then(|| Clean::of(mapping.addresses)).flatten();
        }
        let Some(mapping) = &mut current else { continue };
        if let Some(resident) = figure(line, "Rss:") {
            mapping.resident = resident;
        }
        // `Anonymous` follows `Rss` in every block.
        if let Some(own) = figure(line, "Anonymous:")
            && let Some(mapping) = current.take()
            && own == 0
        {
            mappings.push(mapping);
        }
    }
    mappings
}

impl Clean {
    fn of(addresses: Range<u64>) -> Option<Clean> {
        let (start, end) = (usize::try_from(addresses.start).ok()?, usize::try_from(addresses.end).ok()?);
        Some(Clean { start, len: end.checked_sub(start)?, resident: 0 })
    }
}

/// Bytes of a line `KEY:   N kB`.
fn figure(line: &str, key: &str) -> Option<u64> {
    let kib = line.strip_prefix(key)?.trim().strip_suffix(" kB")?;
    kib.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55a0-55b0 r--p 00000000 fe:00 42                    /usr/bin/a tool
Size:                 64 kB
Rss:                  40 kB
Anonymous:             0 kB
VmFlags: rd mr mw me
55b0-55f0 r-xp 00010000 fe:00 42                    /usr/bin/a tool
Rss:                 128 kB
Anonymous:             0 kB
55f0-5600 r-xp 00050000 fe:00 42                    /usr/bin/a tool
Rss:                   8 kB
Anonymous:             4 kB
5600-5700 r--p 00060000 fe:00 42                    /usr/bin/a tool
Rss:                  16 kB
Anonymous:            16 kB
5700-5710 rw-p 00070000 fe:00 42                    /usr/bin/a tool
Rss:                   4 kB
Anonymous:             0 kB
7f00-7f10 r-xp 00000000 fe:00 43                    /usr/lib/libc.so.6
Rss:                   4 kB
Anonymous:             0 kB
7f10-7f20 rw-p 00000000 00:00 0 
Rss:                   4 kB
Anonymous:             4 kB
";

    #[test]
    fn only_clean_read_only_mappings_are_released() {
        let expected = [
            Clean { start: 0x55a0, len: 0x10, resident: 40 << 10 },
            Clean { start: 0x55b0, len: 0x40, resident: 128 << 10 },
        ];
        assert_eq!(clean_mappings(SMAPS, "/usr/bin/a tool"), expected);
        assert_eq!(clean_mappings(SMAPS, "/usr/bin/other"), []);
    }

    #[test]
    fn a_program_goes_on_after_its_pages_were_let_go() {
        let released = release_program().unwrap();
        assert!(released > 0);
        // Code and constants are used again, in this thread and in another.
        let text = std::thread::spawn(|| format!("{:?}", figure("nothing", "x"))).join().unwrap();
        assert_eq!(text, "None");
        assert!(release_program().unwrap() < released);
    }
}
