//! The memory of a process.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// The interval at which [`own_peak_while`] reads the memory's size.
const LOOK: Duration = Duration::from_millis(1);

/// A figure of `/proc/PID/smaps_rollup` (proc_pid_smaps(5)), in bytes.
pub fn rollup(pid: u32, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("a living process");
    let line = text.lines().find(|line| line.starts_with(&format!("{key}:"))).expect("the kernel's format");
    let kib: u64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number");
    kib * 1024
}

/// Resets the peak of a process's resident memory (proc_pid_clear_refs(5)).
pub fn forget_peak(pid: u32) {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("a living process of ours");
}

/// The peak of a process's resident memory since it began or was last reset, in bytes (proc_pid_status(5), `VmHWM`).
pub fn peak(pid: u32) -> u64 {
    peak_if_there(pid).expect("a living process")
}

/// As [`peak`]; `None` if the process has ended.
pub fn peak_if_there(pid: u32) -> Option<u64> {
    status(pid, "VmHWM:")
}

/// The peak of a process's anonymous resident memory (`RssAnon`) while `act` runs, in bytes. Sampled, so a peak shorter
/// than [`LOOK`] may be missed.
pub fn own_peak_while(pid: u32, act: impl FnOnce()) -> u64 {
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut peak = 0;
            while !is_done.load(Ordering::Relaxed) {
                peak = peak.max(status(pid, "RssAnon:").expect("a living process"));
                thread::park_timeout(LOOK);
            }
            peak
        });
        act();
        is_done.store(true, Ordering::Relaxed);
        looking.thread().unpark();
        looking.join().expect("it only looks")
    })
}

/// A figure of `/proc/PID/status`, in bytes.
fn status(pid: u32, key: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.split_whitespace().next().and_then(|kib| kib.parse().ok()).expect("a number");
    Some(kib * 1024)
}
