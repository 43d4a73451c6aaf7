//! CPU profiling of this process by the kernel's clock (perf_event_open(2)).
//!
//! ```text
//! each processor ──(every period that it works)──▶ its ring, 64 KiB ──▶ Sampler::take: samples of this process
//! ```
//!
//! The kernel samples whatever runs on a processor, so that later threads are included; samples of other processes are
//! dropped here. No signal is sent, and nothing is stopped.

use std::fs;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

const ONLINE: &str = "/sys/devices/system/cpu/online";

/// Bytes of a ring, a power of two: half a minute of samples every 10 ms.
const RING_LEN: usize = 64 << 10;

/// `perf_event_attr` in its first version, `PERF_ATTR_SIZE_VER0`, which every kernel accepts.
#[repr(C)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    breakpoint_address: u64,
}

const TYPE_SOFTWARE: u32 = 1;
/// Counts nanoseconds.
const COUNT_SW_CPU_CLOCK: u64 = 0;
const SAMPLE_IP: u64 = 1 << 0;
const SAMPLE_TID: u64 = 1 << 1;
const EXCLUDE_HYPERVISOR: u64 = 1 << 6;
const EXCLUDE_IDLE: u64 = 1 << 7;
const FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;

/// Offsets in `perf_event_mmap_page`, the page before a ring: the total bytes that the kernel has written, and that
/// were read.
const DATA_HEAD: usize = 1024;
const DATA_TAIL: usize = 1032;

/// `perf_event_header`: type, flags, and length including the header.
const HEADER_LEN: usize = 8;
const RECORD_SAMPLE: u32 = 9;
/// Mask of the CPU mode in the flags.
const CPU_MODE: u16 = 0b111;
const CPU_MODE_USER: u16 = 2;

/// A thread of this process that was running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    pub thread: u32,
    /// The address of its next instruction, unless in the kernel.
    pub address: Option<u64>,
}

/// Samples this process until it is dropped.
#[derive(Debug)]
pub struct Sampler {
    rings: Vec<Ring>,
}

impl Sampler {
    /// Samples each processor once per `period` of work. `PermissionDenied` without `CAP_PERFMON` in the initial user
    /// namespace.
    pub fn start(period: Duration) -> io::Result<Sampler> {
        let online = stdx::ranges(&fs::read_to_string(ONLINE)?)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{ONLINE} is no list")))?;
        let processors = online.into_iter().flatten();
        let rings = processors.map(|cpu| Ring::open(cpu, period)).collect::<io::Result<_>>()?;
        Ok(Sampler { rings })
    }

    /// The samples since the last call. Samples that did not fit into the rings are lost.
    pub fn take(&mut self) -> Vec<Sample> {
        let own = std::process::id();
        let mut samples = Vec::new();
        for ring in &mut self.rings {
            for record in Records(&ring.take()) {
                samples
                    .extend(sample(record).filter(|(process, _)| *process == own).map(|(_, sample)| sample));
            }
        }
        samples
    }
}

/// The samples of one processor.
#[derive(Debug)]
struct Ring {
    /// The page with the counters, then [`RING_LEN`] bytes.
    memory: NonNull<u8>,
    _event: OwnedFd,
}

// SAFETY: the memory is this ring's alone until it is dropped, whichever thread that is.
#[expect(unsafe_code, reason = "the memory is a pointer")]
unsafe impl Send for Ring {}

impl Ring {
    #[expect(unsafe_code, reason = "rustix has no perf_event_open")]
    fn open(cpu: u32, period: Duration) -> io::Result<Ring> {
        let attributes = Attributes {
            kind: TYPE_SOFTWARE,
            size: size_of::<Attributes>() as u32,
            config: COUNT_SW_CPU_CLOCK,
            sample_period: u64::try_from(period.as_nanos()).unwrap_or(u64::MAX),
            sample_type: SAMPLE_IP | SAMPLE_TID,
            read_format: 0,
            flags: EXCLUDE_HYPERVISOR | EXCLUDE_IDLE,
            wakeup_events: 0,
            breakpoint_type: 0,
            breakpoint_address: 0,
        };
        let (every_process, no_group) = (-1, -1);
        // SAFETY: the attributes are what the call wants, and live through it; it only reads them.
        let opened = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                every_process,
                cpu,
                no_group,
                FLAG_FD_CLOEXEC,
            )
        };
        if opened < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call gave a new descriptor, which nobody else has.
        let event = unsafe { OwnedFd::from_raw_fd(opened as i32) };
        let len = rustix::param::page_size() + RING_LEN;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at a place that the kernel chooses.
        let memory = unsafe { mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, &event, 0) }?;
        let memory = NonNull::new(memory.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Ring { memory, _event: event })
    }

    /// A counter of the first page.
    #[expect(unsafe_code, reason = "memory that the kernel writes")]
    fn counter(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: inside the first page, aligned, and touched by the kernel and us as a whole only.
        unsafe { AtomicU64::from_ptr(self.memory.as_ptr().add(offset).cast()) }
    }

    /// The bytes written since the last call.
    #[expect(unsafe_code, reason = "memory that the kernel writes")]
    fn take(&mut self) -> Vec<u8> {
        let head = self.counter(DATA_HEAD).load(Ordering::Acquire);
        let tail = self.counter(DATA_TAIL).load(Ordering::Relaxed);
        let len = usize::try_from(head - tail).map_or(RING_LEN, |len| len.min(RING_LEN));
        let start = tail as usize % RING_LEN;
        let first = len.min(RING_LEN - start);
        let mut taken = vec![0; len];
        // SAFETY: both parts are inside the ring, and the kernel writes nothing there before the tail has moved on.
        unsafe {
            let ring = self.memory.as_ptr().add(rustix::param::page_size());
            ptr::copy_nonoverlapping(ring.add(start), taken.as_mut_ptr(), first);
            ptr::copy_nonoverlapping(ring, taken.as_mut_ptr().add(first), len - first);
        }
        self.counter(DATA_TAIL).store(head, Ordering::Release);
        taken
    }
}

impl Drop for Ring {
    #[expect(unsafe_code, reason = "munmap(2)")]
    fn drop(&mut self) {
        let len = rustix::param::page_size() + RING_LEN;
        // SAFETY: mapped with this length, and no reference into it is left. That it fails would mean that it is not there.
        let _ = unsafe { munmap(self.memory.as_ptr().cast(), len) };
    }
}

/// The records in the bytes of a ring.
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let len = usize::from(u16::from_ne_bytes(self.0.get(6..HEADER_LEN)?.try_into().ok()?));
        let (record, rest) = self.0.split_at_checked(len).filter(|_| len >= HEADER_LEN)?;
        self.0 = rest;
        Some(record)
    }
}

/// Parses a sample, and its process; None for other records.
fn sample(record: &[u8]) -> Option<(u32, Sample)> {
    let number = |at: usize| Some(u32::from_ne_bytes(record.get(at..at + 4)?.try_into().ok()?));
    if number(0)? != RECORD_SAMPLE {
        return None;
    }
    let flags = u16::from_ne_bytes(record.get(4..6)?.try_into().ok()?);
    let address = u64::from_ne_bytes(record.get(HEADER_LEN..HEADER_LEN + 8)?.try_into().ok()?);
    let address = (flags & CPU_MODE == CPU_MODE_USER).then_some(address);
    Some((number(HEADER_LEN + 8)?, Sample { thread: number(HEADER_LEN + 12)?, address }))
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::time::Instant;

    use super::*;

    fn record(kind: u32, flags: u16, address: u64, process: u32, thread: u32) -> Vec<u8> {
        let mut record = kind.to_ne_bytes().to_vec();
        record.extend(flags.to_ne_bytes());
        record.extend(24_u16.to_ne_bytes());
        record.extend(address.to_ne_bytes());
        record.extend([process.to_ne_bytes(), thread.to_ne_bytes()].concat());
        record
    }

    #[test]
    fn perf_records_are_parsed_until_a_broken_one() {
        let user = record(RECORD_SAMPLE, 2, 0x1234, 7, 8);
        assert_eq!(sample(&user), Some((7, Sample { thread: 8, address: Some(0x1234) })));
        let kernel = record(RECORD_SAMPLE, 1, 0x1234, 7, 9);
        assert_eq!(sample(&kernel), Some((7, Sample { thread: 9, address: None })));
        let lost = record(2, 0, 1, 2, 3);
        assert_eq!(sample(&lost), None);
        let all = [&user[..], &lost, &kernel].concat();
        assert_eq!(Records(&all).count(), 3);
        for broken in [&all[..all.len() - 1], &all[..49]] {
            assert_eq!(Records(broken).count(), 2);
        }
        assert_eq!(Records(&[0; 24]).count(), 0, "a length of nothing");
        assert_eq!(sample(&user[..20]), None);
    }

    #[test]
    fn a_thread_at_work_is_found_where_it_works() {
        let period = Duration::from_micros(500);
        let mut sampler = match Sampler::start(period) {
            Ok(sampler) => sampler,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                println!("skipped: sampling needs CAP_PERFMON: {error}");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let own = rustix::thread::gettid().as_raw_nonzero().get() as u32;
        let begun = Instant::now();
        let mut found = Vec::new();
        // Other processes may have the processor meanwhile.
        while found.len() < 20 && begun.elapsed() < Duration::from_secs(30) {
            black_box((0..100_000_u64).fold(0, |sum: u64, next| black_box(sum ^ next)));
            found.extend(sampler.take().into_iter().filter(|sample| sample.thread == own));
        }
        assert!(found.len() >= 20, "{found:?}");
        let code = fs::read_to_string("/proc/self/maps").unwrap();
        let is_code = |address: u64| {
            let mut mappings = code.lines().filter_map(crate::mapping::Mapping::of_line);
            mappings.any(|mapping| mapping.rights == "r-xp" && mapping.addresses.contains(&address))
        };
        let at: Vec<u64> = found.iter().filter_map(|sample| sample.address).collect();
        assert!(!at.is_empty() && at.iter().all(|address| is_code(*address)), "{found:?}\n{code}");
    }
}
