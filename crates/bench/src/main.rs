//! Measures Hoist beside containerd with runc: on this machine, in one run.
//!
//! ```text
//! bench soak …      see `soak`
//! bench start       see `start`
//! bench read        see `read`
//! bench remove      see `remove`
//! bench lists       see `lists`: 100,000 records on each side, which takes containerd minutes
//! bench [NAME…]     run, layers, rate, exec, memory, records, pull (see `pull`), throttled, push; by default all
//! ```
//!
//! Both sides run the same image from the same registry. Their runs alternate, so that a machine that slows down slows
//! both. Each row prints the median of each side and the ratio; without `containerd` and `ctr` in PATH the peer's
//! column is empty. Some benchmarks have marks, which are target values: `start`, `read`, `remove`, `layers`, `lists`
//! and `pull` print whether they are met. With `--check` a missed mark makes the exit code 1. All marks, and the
//! figures of a known machine, are in `bench/README.md`.
#![forbid(unsafe_code)]

mod lists;
mod marks;
mod memory;
mod peer;
mod podman;
mod pull;
mod push;
mod read;
mod records;
mod remove;
mod side;
mod soak;
mod speed;
mod start;
mod throttled;
mod work;

use std::process::ExitCode;

use linux::heap::DenseHeap;
use podman::Podman;
use pull::Puller;
use side::{Hoist, Side};

/// The shim's allocator, as `start` calls the shim's library in this process.
#[global_allocator]
static HEAP: DenseHeap = DenseHeap;

/// The benchmarks of which one command runs several.
const TOGETHER: [&str; 14] = [
    "run",
    "layers",
    "exec",
    "rate",
    "memory",
    "records",
    "lists",
    "pull",
    "pull-50",
    "pull-240",
    "pull-1000",
    "pull-parts",
    "throttled",
    "push",
];

fn main() -> ExitCode {
    let mut wanted: Vec<String> = std::env::args().skip(1).collect();
    let checks = wanted.iter().position(|word| word == "--check").map(|at| wanted.remove(at)).is_some();
    let code = bench(&wanted);
    if checks && !marks::are_met() { ExitCode::FAILURE } else { code }
}

/// Runs the benchmarks that the arguments select.
fn bench(wanted: &[String]) -> ExitCode {
    if let [first, words @ ..] = wanted
        && first == "soak"
    {
        return match soak::soak(words) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(usage) => {
                eprintln!("bench soak: {usage}");
                ExitCode::from(2)
            }
        };
    }
    if wanted == ["start"] {
        start::start();
        return ExitCode::SUCCESS;
    }
    if let [first, words @ ..] = wanted
        && first == "read"
    {
        return match read::read(words) {
            Ok(()) => ExitCode::SUCCESS,
            Err(usage) => {
                eprintln!("usage: {usage}");
                ExitCode::from(2)
            }
        };
    }
    if wanted == ["remove"] {
        remove::remove();
        return ExitCode::SUCCESS;
    }
    if let Some(unknown) = wanted.iter().find(|word| !TOGETHER.contains(&word.as_str())) {
        eprintln!(
            "bench: no benchmark {unknown:?} (or it runs alone); usage: bench soak | start | read | remove | [NAME…]"
        );
        eprintln!("names: {}", TOGETHER.join(" "));
        return ExitCode::from(2);
    }
    measure(wanted);
    ExitCode::SUCCESS
}

fn measure(wanted: &[String]) {
    let selected = |name: &str| wanted.is_empty() || wanted.iter().any(|word| word == name);

    let registry = testkit::Registry::start();
    let small = registry.push(&testkit::images::busybox(), testkit::images::TAG, "bench/busybox:latest");
    let hoist = Hoist::start();
    let containerd = testkit::Containerd::start();
    if containerd.is_none() {
        println!("containerd and ctr are not in PATH: one side only (apt-get install containerd runc)");
    }
    let sides: Vec<&dyn Side> = std::iter::once(&hoist as &dyn Side)
        .chain(containerd.as_ref().map(|peer| peer as &dyn Side))
        .collect();

    println!("{:<44} {:>12} {:>12} {:>8}", "", "hoist", "containerd", "ratio");
    memory::daemon(&sides, "daemon RSS, idle (MB)");
    for side in &sides {
        side.pull(&small);
    }
    if selected("run") {
        speed::run(&sides, &small);
    }
    if selected("layers") {
        let many =
            registry.push(&testkit::images::hundred_layers(), testkit::images::TAG, "bench/layers:latest");
        for side in &sides {
            side.pull(&many);
        }
        speed::layers(&sides, &small, &many);
    }
    if selected("exec") {
        speed::exec(&sides, &small);
    }
    if selected("rate") {
        speed::rate(&sides, &small);
    }
    if selected("memory") {
        memory::containers(&sides, &small);
    }
    if selected("records") {
        records::rate(&sides);
    }
    if wanted.iter().any(|word| word == "lists") {
        lists::lists(&sides);
    }
    if pull::is_selected(wanted) {
        let podman = Podman::find();
        if podman.is_none() {
            println!("podman is not in PATH: pulls without it (apt-get install podman)");
        }
        let mut pullers = vec![("hoist", Puller::Daemon(&hoist))];
        pullers.extend(containerd.as_ref().map(|peer| ("containerd", Puller::Daemon(peer))));
        pullers.extend(podman.as_ref().map(|peer| ("podman", Puller::Podman(peer))));
        pull::pull(&pullers, &registry, wanted);
    }
    if selected("throttled") {
        throttled::throttled(&sides, &registry);
    }
    if selected("push") {
        push::push(&sides, &registry);
    }
    memory::daemon(&sides, "daemon RSS, after the work (MB)");
}

/// Prints a row: the median of each side, and the peer's as a multiple of ours.
fn row(what: &str, figures: &[f64]) {
    let [ours, rest @ ..] = figures else { return };
    match rest {
        [peer, ..] => println!("{what:<44} {ours:>12.2} {peer:>12.2} {:>7.1}x", peer / ours),
        [] => println!("{what:<44} {ours:>12.2}"),
    }
}

/// Prints a row of rates, where more is better, with ours as a multiple of the peer's.
fn rates(what: &str, figures: &[f64]) {
    let [ours, rest @ ..] = figures else { return };
    match rest {
        [peer, ..] => println!("{what:<44} {ours:>12.1} {peer:>12.1} {:>7.1}x", ours / peer),
        [] => println!("{what:<44} {ours:>12.1}"),
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
