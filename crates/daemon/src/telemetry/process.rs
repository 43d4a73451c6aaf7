//! Metrics of the daemon's process: memory, CPU time, descriptors, threads (proc_pid_stat(5) and others).

use std::fs;

use serde_json::{Value, json};

use super::text::Text;

/// Unit of times in `/proc`: `sysconf(_SC_CLK_TCK)`, which is 100 on all Linux architectures.
const TICKS_PER_SECOND: f64 = 100.0;
/// Fields of `/proc/PID/stat` after the name, which ends at the last parenthesis: index 0 is field 3.
const USER_TIME: usize = 14 - 3;
const SYSTEM_TIME: usize = 15 - 3;
const START_TIME: usize = 22 - 3;
const VIRTUAL_SIZE: usize = 23 - 3;
const RESIDENT_PAGES: usize = 24 - 3;

/// Metrics with the names of Prometheus's own client libraries.
pub(super) fn write(text: &mut Text) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let field = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    let mut gauge = |name: &str, kind: &str, help: &str, value: f64| {
        text.family(name, kind, help);
        text.sample(name, &[], value);
    };
    let time = (field(USER_TIME) + field(SYSTEM_TIME)) / TICKS_PER_SECOND;
    gauge("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.", time);
    let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    gauge("process_open_fds", "gauge", "Number of open file descriptors.", open as f64);
    if let Some(max) = open_files_max() {
        gauge("process_max_fds", "gauge", "Maximum number of open file descriptors.", max);
    }
    let page = rustix::param::page_size() as f64;
    let resident = field(RESIDENT_PAGES) * page;
    gauge("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", resident);
    gauge("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", field(VIRTUAL_SIZE));
    let start = boot_time() + field(START_TIME) / TICKS_PER_SECOND;
    gauge(
        "process_start_time_seconds",
        "gauge",
        "Start time of the process since unix epoch in seconds.",
        start,
    );
}

/// The variables of Go's `expvar` that make sense without a garbage collector.
pub(super) fn variables() -> Value {
    let arguments: Vec<String> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let memory = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let memory: serde_json::Map<String, Value> = memory
        .lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(':')?;
            let kib: u64 = value.trim().strip_suffix(" kB")?.trim().parse().ok()?;
            Some((format!("{key}Bytes"), (kib * 1024).into()))
        })
        .collect();
    json!({ "cmdline": arguments, "memory": memory })
}

/// Name, state, CPU time and wait channel of each thread.
pub(super) fn threads() -> Value {
    let mut threads = Vec::new();
    for entry in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let read = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let stat = read("stat");
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let seconds = |at: usize| {
            let ticks = fields.get(at).and_then(|text| text.parse::<f64>().ok());
            ticks.unwrap_or(0.0) / TICKS_PER_SECOND
        };
        threads.push(json!({
            "id": entry.file_name().to_string_lossy(),
            "name": read("comm").trim(),
            "state": fields.first().copied().unwrap_or_default(),
            "user_seconds": seconds(USER_TIME),
            "system_seconds": seconds(SYSTEM_TIME),
            "waits_in": read("wchan").trim(),
        }));
    }
    Value::Array(threads)
}

fn open_files_max() -> Option<f64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn boot_time() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let time = stat.lines().find_map(|line| line.strip_prefix("btime "));
    time.and_then(|time| time.trim().parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_of_the_process_are_read() {
        let mut text = Text::default();
        write(&mut text);
        let text = text.into_string();
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("{name} is missing\n{text}")).parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e5);
        assert!(value("process_open_fds") >= 3.0 && value("process_max_fds") >= 3.0);
        let now = types::Timestamp::now().seconds as f64;
        let started = value("process_start_time_seconds");
        assert!(started <= now + 2.0 && started > now - 86_400.0, "{started} {now}");
        assert!(variables()["memory"]["VmRSSBytes"].as_u64().unwrap() > 100_000);
        assert!(threads().as_array().unwrap().iter().any(|thread| thread["state"] == "R"));
    }
}
