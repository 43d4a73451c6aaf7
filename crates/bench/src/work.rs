//! The cost of a piece of work: time, CPU, memory, disk writes.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Clock ticks a second in `/proc/PID/stat` (proc_pid_stat(5)); `USER_HZ`, which is 100 on Linux.
const TICKS: f64 = 100.0;

/// Between two polls of a command.
const LOOK: Duration = Duration::from_millis(5);

#[derive(Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) wall_ms: f64,
    /// CPU time of the daemon, of its children that ended, and of the commands that were run.
    pub(crate) cpu_s: f64,
    /// The daemon's peak RSS.
    pub(crate) peak_mb: f64,
    /// Bytes that the daemon caused to be written to disk.
    pub(crate) written_mb: f64,
}

/// Runs `work`, which calls the daemon `pid`, and returns its cost.
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

/// As [`cost`], for a program without a daemon: the command does all the work. The peak memory is that of its first
/// process.
#[expect(clippy::disallowed_methods, reason = "a benchmark; nobody says how much it holds")]
pub(crate) fn cost_of_command(mut command: Command) -> Cost {
    let own = || (ticks("self", 13..15), figure("/proc/self/io", "write_bytes:") / 1e6);
    let (cpu, written) = own();
    let start = Instant::now();
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("the program is in PATH");
    let mut peak_mb = 0.0;
    let status = loop {
        // The kernel's peak only grows, so the last poll is close to the final value.
        if let Some(peak) = testkit::memory::peak_if_there(child.id()) {
            peak_mb = peak as f64 / 1e6;
        }
        match child.try_wait().expect("a child of ours") {
            Some(status) => break status,
            None => std::thread::sleep(LOOK),
        }
    };
    let wall_ms = start.elapsed().as_secs_f64() * 1000.0;
    assert!(status.success(), "{command:?}: {status}");
    // A child's usage is added to its parent's when it is reaped (`wait_task_zombie`).
    let (cpu_after, written_after) = own();
    Cost { wall_ms, cpu_s: cpu_after - cpu, peak_mb, written_mb: written_after - written }
}

/// Writes dirty pages and drops the page cache, so that reads come from the disk.
pub(crate) fn forget_files() {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").expect("root may do so");
}

fn cpu_s(pid: u32) -> f64 {
    // The daemon's time with its children's; of this process only its children's.
    ticks(&pid.to_string(), 11..15) + ticks("self", 13..15)
}

/// The sum of fields of `/proc/PID/stat`, counted from after the name, which may contain blanks.
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
