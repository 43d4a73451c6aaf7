//! Pulls, from a registry on loopback to a tree on disk, beside the limit that the machine sets.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use testkit::images;
use testkit::{Registry, run};

use crate::row;
use crate::side::Side;

pub(crate) fn pull(sides: &[&dyn Side], registry: &Registry) {
    measure(sides, registry, "small (redis)", &images::redis(), "bench/pull-small:1", 5);
    measure(sides, registry, "50,000 files", &images::many_files(), "bench/pull-files:1", 3);
    measure(sides, registry, "1 GiB file", &images::large_layer(), "bench/pull-large:1", 3);
}

fn measure(sides: &[&dyn Side], registry: &Registry, what: &str, layout: &Path, name: &str, runs: usize) {
    let reference = registry.push(layout, images::TAG, name);
    let mut figures = vec![Vec::new(); sides.len()];
    for _ in 0..runs {
        for (side, figures) in sides.iter().zip(&mut figures) {
            let start = Instant::now();
            side.pull(&reference);
            figures.push(start.elapsed().as_secs_f64() * 1000.0);
            side.remove(&reference);
        }
    }
    let medians: Vec<f64> = figures.into_iter().map(crate::median).collect();
    row(&format!("pull, {what} (ms)"), &medians);
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
