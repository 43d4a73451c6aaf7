//! The program in the embedded image `hello`: prints what a process sees from inside a container.
//!
//! It is static and asks only `/proc` and `/sys`, so it needs nothing else in its image. With
//! `--exit-code N` it ends with N; with `--wait` it stays until it is told to stop. Under another name it is [`init`].
#![forbid(unsafe_code)]

mod init;

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    if let [program, arguments @ ..] = &words[..]
        && init::is_called(program)
    {
        return init::main(arguments);
    }
    let started = start_latency();
    let args: Vec<String> = std::env::args().skip(1).collect();

    println!("Hello from a container. It sees:");
    let rows = [
        ("pid", std::process::id().to_string()),
        ("user", user()),
        ("hostname", read("/proc/sys/kernel/hostname")),
        ("kernel", kernel()),
        ("cgroup", cgroup()),
        ("memory limit", memory_limit()),
        ("mounts", mounts()),
        ("network", interfaces()),
        ("seccomp", seccomp()),
        ("capabilities", status_field("CapEff")),
        ("started in", started),
    ];
    for (name, value) in rows {
        println!("  {name:<13} {value}");
    }

    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--exit-code", code] => code.parse::<u8>().map_or(ExitCode::FAILURE, ExitCode::from),
        ["--wait"] => {
            // Until standard input ends, or a signal ends the process.
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            ExitCode::SUCCESS
        }
        _ => ExitCode::SUCCESS,
    }
}

/// How long ago the command line was called, if it passed the time on (`HOIST_STARTED_AT`, nanoseconds since 1970 by
/// the wall clock of the same machine).
fn start_latency() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let told = std::env::var("HOIST_STARTED_AT").ok().and_then(|text| text.parse().ok());
    match told.map(Duration::from_nanos).and_then(|called| now.checked_sub(called)) {
        Some(latency) => format!(
            "{:.1} ms, from the command line's first instruction to ours",
            latency.as_secs_f64() * 1e3
        ),
        None => "unknown: HOIST_STARTED_AT is not set".into(),
    }
}

fn user() -> String {
    let ids = |key| status_field(key).split_whitespace().next().unwrap_or("?").to_owned();
    format!("uid {}, gid {}", ids("Uid"), ids("Gid"))
}

fn kernel() -> String {
    format!("{} {}", read("/proc/sys/kernel/ostype"), read("/proc/sys/kernel/osrelease"))
}

/// The longest path: the only line of cgroup version 2, or a controller's of version 1.
fn cgroup() -> String {
    let text = read("/proc/self/cgroup");
    let lines = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    lines.max_by_key(|path| path.len()).unwrap_or("none").to_owned()
}

fn memory_limit() -> String {
    let files = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limit = files.iter().map(|file| read(file)).find(|text| !text.is_empty());
    match limit.as_deref().map(str::parse::<u64>) {
        Some(Ok(bytes)) if bytes < 1 << 60 => format!("{} MiB", bytes >> 20),
        _ => "none".into(),
    }
}

fn mounts() -> String {
    let text = read("/proc/self/mounts");
    let root = text.lines().find(|line| line.split(' ').nth(1) == Some("/"));
    let kind = root.and_then(|line| line.split(' ').nth(2)).unwrap_or("unknown");
    format!("{}, the root is {kind}", text.lines().count())
}

fn interfaces() -> String {
    let text = read("/proc/net/dev");
    let names = text.lines().skip(2).filter_map(|line| line.split(':').next()).map(str::trim);
    names.collect::<Vec<_>>().join(", ")
}

fn seccomp() -> String {
    match status_field("Seccomp").as_str() {
        "0" => "off".into(),
        "2" => "a filter is on".into(),
        other => other.into(),
    }
}

/// A line of `/proc/self/status` (proc(5)).
fn status_field(key: &str) -> String {
    let text = read("/proc/self/status");
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

/// A file's text without the white space around it; empty when it cannot be read.
fn read(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}
