//! A compact heap for single-threaded programs of which thousands run.
//!
//! ```text
//! the region:    blocks, side by side, lowest first │ free end │ not used yet …
//!                                                   └──────────┴─ returned to the kernel by `trim_heap`
//! large blocks:  mapped and unmapped, each by itself
//! ```
//!
//! The C library of static programs (musl) uses a page or more for each size class, returns a page as soon as it is
//! free, and takes it again for the next block: that costs a container's start 0.3 ms. This heap (dlmalloc) keeps free
//! memory until the program trims it.

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicPtr, AtomicUsize};

use dlmalloc::{Allocator, Dlmalloc};
use rustix::mm::{Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags};
use rustix::mm::{madvise, mmap_anonymous, mprotect, mremap, munmap};
use stdx::Mutex;

/// Bytes of the reserved address range for blocks that are not large. Most are never used, and cost nothing.
const REGION_LEN: usize = 64 << 20;
/// Bytes by which the used part of the region grows.
const STEP: usize = 64 << 10;
/// Bytes from which a block is mapped by itself.
const LARGE: usize = 128 << 10;
const PAGE: usize = 4096;

static HEAP: Mutex<Dlmalloc<Region>> = Mutex::new(
    const {
        let mut heap = Dlmalloc::new_with_allocator(Region::new());
        assert!(heap.set_granularity(PAGE));
        heap
    },
);

/// For `#[global_allocator]`. All values are the same heap.
pub struct DenseHeap;

fn heap() -> MutexGuard<'static, Dlmalloc<Region>> {
    HEAP.lock()
}

/// Returns the free end of the region to the kernel.
pub(crate) fn trim() {
    #[expect(unsafe_code, reason = "a call into the allocator")]
    // SAFETY: touches nothing but what is free; the lock is held.
    unsafe {
        heap().trim(0);
    }
}

fn is_large(layout: Layout) -> bool {
    layout.size() >= LARGE && layout.align() <= PAGE
}

#[expect(unsafe_code, reason = "an allocator hands out memory")]
// SAFETY: pieces are disjoint, as large and aligned as they were asked for, and stay where they are until they are freed: those
// of dlmalloc, which one thread at a time uses, the one that holds the lock, and large ones, which are mappings. A layout
// tells which of them a piece is. Nothing here panics or allocates.
unsafe impl GlobalAlloc for DenseHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            return map(layout.size());
        }
        // SAFETY: the caller keeps to the same contract.
        unsafe { heap().malloc(layout.size(), layout.align()) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            return map(layout.size());
        }
        // SAFETY: the caller keeps to the same contract.
        unsafe { heap().calloc(layout.size(), layout.align()) }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        if is_large(layout) {
            // SAFETY: by its layout it is a mapping of its own, and nobody has it any more.
            return unsafe { unmap(piece, layout.size()) };
        }
        // SAFETY: the caller keeps to the same contract.
        unsafe { heap().free(piece, layout.size(), layout.align()) }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        // SAFETY: the caller answers for `len`, as for that of a layout.
        let wanted = unsafe { Layout::from_size_align_unchecked(len, layout.align()) };
        match (is_large(layout), is_large(wanted)) {
            // SAFETY: the caller keeps to the same contract.
            (false, false) => unsafe { heap().realloc(piece, layout.size(), layout.align(), len) },
            (true, true) => {
                let (old, new) = (in_pages(layout.size()), in_pages(len));
                // SAFETY: a mapping of its own, which may go elsewhere as its owner takes the new address.
                let moved = unsafe { mremap(piece.cast(), old, new, MremapFlags::MAYMOVE) };
                moved.map_or(null_mut(), <*mut c_void>::cast)
            }
            // SAFETY: both pieces are as long as what is copied, and apart from each other.
            _ => unsafe {
                let other = self.alloc(wanted);
                if !other.is_null() {
                    other.copy_from_nonoverlapping(piece, layout.size().min(len));
                    self.dealloc(piece, layout);
                }
                other
            },
        }
    }
}

/// dlmalloc's source of memory: one range that grows upwards, so that its free end can be returned.
struct Region {
    base: AtomicPtr<u8>,
    /// Bytes of its beginning that dlmalloc has.
    used: AtomicUsize,
}

impl Region {
    const fn new() -> Region {
        Region { base: AtomicPtr::new(null_mut()), used: AtomicUsize::new(0) }
    }

    /// The start of the region, which is reserved at the first call. None if the address space is too small.
    fn base(&self) -> Option<*mut u8> {
        let base = self.base.load(Relaxed);
        if !base.is_null() {
            return Some(base);
        }
        let base = reserve()?;
        self.base.store(base, Relaxed);
        Some(base)
    }

    fn grow(&self, len: usize) -> Option<*mut u8> {
        let (base, used) = (self.base()?, self.used.load(Relaxed));
        if len > REGION_LEN - used {
            return None;
        }
        let end = base.wrapping_add(used);
        #[expect(unsafe_code, reason = "pages become memory")]
        // SAFETY: they are the region's, and nobody has them yet.
        unsafe { mprotect(end.cast(), len, MprotectFlags::READ | MprotectFlags::WRITE) }.ok()?;
        self.used.store(used + len, Relaxed);
        Some(end)
    }

    /// Whether a range ends at the end of the used part.
    fn ends_with(&self, start: *mut u8, len: usize) -> bool {
        let base = self.base.load(Relaxed);
        !base.is_null()
            && start >= base
            && start.wrapping_add(len) == base.wrapping_add(self.used.load(Relaxed))
    }
}

#[expect(unsafe_code, reason = "dlmalloc takes memory")]
// SAFETY: what is handed out is fresh memory that nobody else has, and only what dlmalloc gives back is taken back.
unsafe impl Allocator for Region {
    fn alloc(&self, len: usize) -> (*mut u8, usize, u32) {
        let len = len.next_multiple_of(STEP);
        match self.grow(len).unwrap_or_else(|| map(len)) {
            nowhere if nowhere.is_null() => (nowhere, 0, 0),
            start => (start, len, 0),
        }
    }

    fn remap(&self, _: *mut u8, _: usize, _: usize, _: bool) -> *mut u8 {
        null_mut()
    }

    fn free_part(&self, start: *mut u8, len: usize, kept: usize) -> bool {
        let (end, gone) = (start.wrapping_add(kept), len - kept);
        if !self.ends_with(end, gone) {
            return false;
        }
        // SAFETY: dlmalloc is done with these pages; they read as zeros when they are its own again.
        let given_back = unsafe { madvise(end.cast(), gone, Advice::LinuxDontNeed) };
        if given_back.is_ok() {
            self.used.store(self.used.load(Relaxed) - gone, Relaxed);
        }
        given_back.is_ok()
    }

    /// Memory mapped while the region was full stays dlmalloc's.
    fn free(&self, _: *mut u8, _: usize) -> bool {
        false
    }

    fn can_release_part(&self, _: u32) -> bool {
        true
    }

    fn allocates_zeros(&self) -> bool {
        true
    }

    fn page_size(&self) -> usize {
        PAGE
    }
}

fn in_pages(len: usize) -> usize {
    // Lengths that cannot be rounded are refused by the kernel.
    len.checked_next_multiple_of(PAGE).unwrap_or(len)
}

/// Maps memory; null if there is none.
fn map(len: usize) -> *mut u8 {
    anonymous(in_pages(len), ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE).unwrap_or(null_mut())
}

/// Reserves addresses without memory.
fn reserve() -> Option<*mut u8> {
    anonymous(REGION_LEN, ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE)
}

fn anonymous(len: usize, protection: ProtFlags, flags: MapFlags) -> Option<*mut u8> {
    #[expect(unsafe_code, reason = "mmap(2)")]
    // SAFETY: the kernel chooses the place, where nothing is.
    let mapped = unsafe { mmap_anonymous(null_mut(), len, protection, flags) };
    mapped.ok().map(<*mut c_void>::cast)
}

/// # Safety
///
/// The range is one of [`map`], and nobody uses it any more.
#[expect(unsafe_code, reason = "munmap(2)")]
unsafe fn unmap(start: *mut u8, len: usize) {
    // SAFETY: as the caller says. It cannot fail for such a range but for want of memory for smaller mappings, and then the
    // range stays.
    let _stays = unsafe { munmap(start.cast(), in_pages(len)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Resident bytes of the region, which begins with the page of this block.
    fn memory_from(first: &Piece) -> usize {
        let begin = first.0.addr() / PAGE * PAGE;
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let (mut inside, mut kib) = (false, 0);
        for line in smaps.lines() {
            if let Some(mapping) = crate::mapping::Mapping::of_line(line) {
                inside = (begin..begin + REGION_LEN).contains(&(mapping.addresses.start as usize));
            } else if let Some(len) = line.strip_prefix("Rss:").filter(|_| inside) {
                kib += len.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap();
            }
        }
        kib << 10
    }

    /// A block filled with a byte that identifies it.
    struct Piece(*mut u8, Layout, u8);

    #[expect(unsafe_code, reason = "what an allocator is asked for")]
    impl Piece {
        fn new(number: usize) -> Piece {
            let layout = Layout::from_size_align(1 + number * 37 % 9000, 1 << (number % 8)).unwrap();
            // SAFETY: the size is not zero.
            Piece(unsafe { DenseHeap.alloc(layout) }, layout, number as u8).written()
        }

        fn written(self) -> Piece {
            assert!(!self.0.is_null() && self.0.addr().is_multiple_of(self.1.align()));
            // SAFETY: within the piece.
            unsafe { self.0.write_bytes(self.2, self.1.size()) };
            self
        }

        fn check(&self, len: usize) {
            // SAFETY: within the piece, all of which was written.
            let bytes = unsafe { std::slice::from_raw_parts(self.0, len) };
            assert!(bytes.iter().all(|byte| *byte == self.2), "piece {}", self.2);
        }

        fn resized(self, len: usize) -> Piece {
            let layout = Layout::from_size_align(len, self.1.align()).unwrap();
            // SAFETY: of the layout that it was asked for with.
            let piece = Piece(unsafe { DenseHeap.realloc(self.0, self.1, len) }, layout, self.2);
            piece.check(len.min(self.1.size()));
            piece.written()
        }

        fn free(self) {
            self.check(self.1.size());
            // SAFETY: of the layout that it was asked for with, and not used again.
            unsafe { DenseHeap.dealloc(self.0, self.1) };
        }
    }

    #[test]
    fn pieces_are_apart_keep_their_bytes_and_go_back() {
        let first = Piece::new(1);
        let mut pieces: Vec<Piece> = (0..5000).map(Piece::new).collect();
        // Through all sizes, also mapped ones, and back.
        for len in [LARGE - 1, LARGE, 3 * LARGE + 5, LARGE + 1, 100] {
            pieces = pieces
                .into_iter()
                .enumerate()
                .map(|(at, piece)| if at % 100 == 7 { piece.resized(len) } else { piece })
                .collect();
        }
        let full = memory_from(&first);
        assert!(full > 15 << 20, "{full}");
        pieces.into_iter().for_each(Piece::free);
        #[expect(unsafe_code, reason = "what an allocator is asked for")]
        for size in [5000, LARGE] {
            let layout = Layout::from_size_align(size, 8).unwrap();
            // SAFETY: the size is not zero; what is looked at is within the piece, which is freed as it was asked for.
            unsafe {
                let piece = DenseHeap.alloc_zeroed(layout);
                assert!(std::slice::from_raw_parts(piece, size).iter().all(|byte| *byte == 0));
                DenseHeap.dealloc(piece, layout);
            }
        }
        crate::memory::trim_heap();
        let after = memory_from(&first);
        assert!(after < 1 << 20, "{full}, {after}");
        first.free();
        Piece::new(1).free();
    }
}
