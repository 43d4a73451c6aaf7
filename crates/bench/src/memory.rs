//! The memory use of daemons and containers.

use std::fs;
use std::time::Duration;

use crate::row;
use crate::side::Side;

const CONTAINERS: usize = 10;
const REST: Duration = Duration::from_secs(5);

/// An idle daemon, long enough after the last call that background work has finished.
#[expect(clippy::disallowed_methods, reason = "a benchmark; there is no event for rest")]
pub(crate) fn daemon(sides: &[&dyn Side], what: &str) {
    std::thread::sleep(REST);
    let figures: Vec<f64> = sides.iter().map(|side| rollup(side.daemon_pid(), "Rss")).collect();
    row(what, &figures);
}

/// Idle containers, for each: the shim alone, and with the container's first process, a `sleep` of busybox.
pub(crate) fn containers(sides: &[&dyn Side], image: &str) {
    let mut rows = [Vec::new(), Vec::new(), Vec::new()];
    for side in sides {
        let ids: Vec<String> = (0..CONTAINERS).map(|n| format!("memory{n}")).collect();
        for id in &ids {
            side.run_detached(image, id);
        }
        let first: Vec<u32> = ids.iter().map(|id| side.init_pid(id)).collect();
        let shims: Vec<u32> = first.iter().map(|&pid| parent(pid)).collect();
        let mean =
            |pids: &[u32], key| pids.iter().map(|&pid| rollup(pid, key)).sum::<f64>() / CONTAINERS as f64;
        let shim = mean(&shims, "Pss");
        for (row, figure) in rows.iter_mut().zip([shim, mean(&shims, "Rss"), shim + mean(&first, "Pss")]) {
            row.push(figure);
        }
        for id in &ids {
            side.remove_container(id);
        }
    }
    row("shim of an idle container, PSS (MB)", &rows[0]);
    row("shim of an idle container, RSS (MB)", &rows[1]);
    row("idle container with its shim, PSS (MB)", &rows[2]);
}

/// A value of `/proc/PID/smaps_rollup` (proc(5)), in MB of 10^6 bytes.
pub(crate) fn rollup(pid: u32, key: &str) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("a living process");
    let line = text.lines().find(|line| line.starts_with(&format!("{key}:"))).expect("the kernel's format");
    let kib: f64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number");
    kib * 1024.0 / 1e6
}

fn parent(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a living process");
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("the kernel's format");
    line.trim().parse().expect("a pid")
}
