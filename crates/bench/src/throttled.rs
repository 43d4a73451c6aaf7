//! A pull from a registry that limits the rate of each connection, as many registries behind a CDN do.

use std::time::{Duration, Instant};

use testkit::{Fault, FaultProxy, Registry, images};

use crate::row;
use crate::side::Side;

const RUNS: usize = 3;

pub(crate) fn throttled(sides: &[&dyn Side], registry: &Registry) {
    let reference = registry.push(&images::redis(), images::TAG, "bench/pull-throttled:1");
    let share = Fault::Throttle { bytes: 16 << 10, every: Duration::from_millis(4) };
    let proxy = FaultProxy::start(registry, move |asked| match asked.blob() {
        Some(_) => vec![share.clone()],
        None => Vec::new(),
    });
    let name = proxy.through(&reference);
    let mut figures = vec![Vec::new(); sides.len()];
    for _ in 0..RUNS {
        for (side, figures) in sides.iter().zip(&mut figures) {
            let start = Instant::now();
            side.pull(&name);
            figures.push(start.elapsed().as_secs_f64() * 1000.0);
            side.remove(&name);
        }
    }
    let medians: Vec<f64> = figures.into_iter().map(crate::median).collect();
    row("pull, redis, 4 MB/s a connection (ms)", &medians);
}
