//! Pulls, from a registry on loopback to a tree on disk, and removals, beside the limit that the machine sets.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use testkit::images;
use testkit::{Registry, run};

use crate::side::Side;
use crate::work::{Cost, cost};

pub(crate) fn pull(sides: &[(&str, &dyn Side)], registry: &Registry) {
    println!(
        "{:<44} {:>9} {:>8} {:>9} {:>11} {:>10}",
        "", "wall ms", "CPU s", "peak MB", "written MB", "remove ms"
    );
    measure(sides, registry, "redis", &images::redis(), "bench/pull-small:1", 5);
    measure(sides, registry, "50,000 files", &images::many_files(), "bench/pull-files:1", 3);
    measure(sides, registry, "1 GiB file", &images::large_layer(), "bench/pull-large:1", 3);
}

fn measure(
    sides: &[(&str, &dyn Side)],
    registry: &Registry,
    what: &str,
    layout: &Path,
    name: &str,
    runs: usize,
) {
    let reference = registry.push(layout, images::TAG, name);
    let mut figures: Vec<Vec<(Cost, f64)>> = vec![Vec::new(); sides.len()];
    for _ in 0..runs {
        for ((_, side), figures) in sides.iter().zip(&mut figures) {
            let pulled = cost(side.daemon_pid(), || side.pull(&reference));
            let start = Instant::now();
            side.remove(&reference);
            figures.push((pulled, start.elapsed().as_secs_f64() * 1000.0));
        }
    }
    for ((side, _), figures) in sides.iter().zip(figures) {
        let median = |of: fn(&(Cost, f64)) -> f64| crate::median(figures.iter().map(of).collect());
        println!(
            "{:<44} {:>9.0} {:>8.2} {:>9.1} {:>11.1} {:>10.0}",
            format!("pull, {what}: {side}"),
            median(|(pull, _)| pull.wall_ms),
            median(|(pull, _)| pull.cpu_s),
            median(|(pull, _)| pull.peak_mb),
            median(|(pull, _)| pull.written_mb),
            median(|(_, remove)| *remove),
        );
    }
    limit(what, layout);
}

/// The three stages that nobody can leave out, each alone: hash, inflate, write.
fn limit(what: &str, layout: &Path) {
    let script = "find \"$0/blobs/sha256\" -type f -size +64k";
    let time = |tail: &str| {
        let start = Instant::now();
        run(Command::new("sh")
            .arg("-c")
            .arg(format!("for blob in $({script}); do {tail}; done"))
            .arg(layout))
        .ok();
        start.elapsed().as_secs_f64() * 1000.0
    };
    let hash = time("sha256sum $blob >/dev/null");
    let inflate = time("gzip -dc < $blob >/dev/null");
    println!("{:<44} sha256sum {hash:.0} ms, gzip -dc {inflate:.0} ms", format!("  limit, {what}"));
}
