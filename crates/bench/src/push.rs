//! Pushes, from the daemon's stores to a registry on loopback that has no blob of the image.

use std::time::Instant;

use testkit::{Registry, images};

use crate::row;
use crate::side::Side;

const RUNS: usize = 3;

pub(crate) fn push(sides: &[&dyn Side], registry: &Registry) {
    measure(sides, registry, "small (redis)", &images::redis(), "bench/push-small:1");
    measure(sides, registry, "1 GiB file", &images::large_layer(), "bench/push-large:1");
}

fn measure(sides: &[&dyn Side], registry: &Registry, what: &str, layout: &std::path::Path, name: &str) {
    let reference = registry.push(layout, images::TAG, name);
    let mut figures = vec![Vec::new(); sides.len()];
    sides.iter().for_each(|side| side.pull(&reference));
    for _ in 0..RUNS {
        for (side, figures) in sides.iter().zip(&mut figures) {
            // An empty registry for each run: no blob exists, and none can be mounted from another repository.
            let empty = Registry::start();
            let target = format!("{}/{name}", empty.host());
            side.tag(&reference, &target);
            let start = Instant::now();
            side.push(&target);
            figures.push(start.elapsed().as_secs_f64() * 1000.0);
            side.remove(&target);
        }
    }
    sides.iter().for_each(|side| side.remove(&reference));
    let medians: Vec<f64> = figures.into_iter().map(crate::median).collect();
    row(&format!("push, {what} (ms)"), &medians);
}
