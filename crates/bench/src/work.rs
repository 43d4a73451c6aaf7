//! What a piece of work costs the machine: time, processor, memory, disk.

use std::fs;
use std::time::Instant;

/// Clock ticks a second of `/proc/PID/stat` (proc_pid_stat(5)); the same on all machines of today.
const TICKS: f64 = 100.0;

#[derive(Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) wall_ms: f64,
    /// Of the daemon, its children that ended, and the commands that were run.
    pub(crate) cpu_s: f64,
    /// The most that the daemon held at any time.
    pub(crate) peak_mb: f64,
    /// Pages that the daemon gave to the disk to write.
    pub(crate) written_mb: f64,
}

/// Has `work` done by the daemon `pid` and says what it cost.
pub(crate) fn cost(pid: u32, work: impl FnOnce()) -> Cost {
    testkit::memory::forget_peak(pid);
    let (cpu, written) = (cpu_s(pid), written_mb(pid));
    let start = Instant::now();
    work();
    let wall_ms = start.elapsed().as_secs_f64() * 1000.0;
    Cost {
        wall_ms,
        cpu_s: cpu_s(pid) - cpu,
        peak_mb: testkit::memory::peak(pid) as f64 / 1e6,
        written_mb: written_mb(pid) - written,
    }
}

fn cpu_s(pid: u32) -> f64 {
    // The daemon's own time and that of its children; of us only the children's.
    ticks(&pid.to_string(), 11..15) + ticks("self", 13..15)
}

/// Fields of `/proc/PID/stat`, counted from behind the name, which may contain blanks.
fn ticks(pid: &str, fields: std::ops::Range<usize>) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a living process");
    let behind_name = stat.rsplit(')').next().expect("the kernel's format");
    let words: Vec<&str> = behind_name.split_whitespace().collect();
    words[fields].iter().map(|word| word.parse::<f64>().expect("a number")).sum::<f64>() / TICKS
}

fn written_mb(pid: u32) -> f64 {
    figure(&format!("/proc/{pid}/io"), "write_bytes:") / 1e6
}

fn figure(file: &str, key: &str) -> f64 {
    let text = fs::read_to_string(file).expect("a living process");
    let line = text.lines().find_map(|line| line.strip_prefix(key)).expect("the kernel's format");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}
