//! The duration of commands, and their rate.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::side::{Side, time};
use crate::work::forget_files;
use crate::{marks, median, row};

const RUNS: usize = 20;
/// The number of runs where preparing a start takes longer than the start.
const FIRST_RUNS: usize = 7;
/// The mark: a start on a hundred layers as a multiple of one on a single layer. They should take the same time; runs
/// vary by less than this.
const LAYERS_MARK: f64 = 1.1;

/// Complete `run --rm IMAGE true`.
pub(crate) fn run(sides: &[&dyn Side], image: &str) {
    let figures = alternate(sides, RUNS, |side, n| time(side.run_rm(image, &format!("run{n}"), &["true"])));
    row("run --rm IMAGE true (ms)", &figures);
}

/// Complete `run --rm IMAGE true` of an image with a hundred layers, beside one with a single layer: the first run
/// after the pull; a run with a cold page cache; and a run after others.
pub(crate) fn layers(sides: &[&dyn Side], one: &str, many: &str) {
    let pulled = |side: &dyn Side, image: &str| {
        side.remove(image);
        side.pull(image);
    };
    compare(sides, one, many, ", the first", FIRST_RUNS, pulled);
    compare(sides, one, many, ", cold", FIRST_RUNS, |_, _| forget_files());
    compare(sides, one, many, "", RUNS, |_, _| ());
}

/// Prints two rows, and the second as a multiple of the first. `before` runs before each and is not timed.
fn compare(
    sides: &[&dyn Side],
    one: &str,
    many: &str,
    how: &str,
    runs: usize,
    before: impl Fn(&dyn Side, &str),
) {
    // In turn, so that both images meet the same conditions.
    let (mut of_one, mut of_many) = (vec![Vec::new(); sides.len()], vec![Vec::new(); sides.len()]);
    for n in 0..=runs {
        for (at, side) in sides.iter().enumerate() {
            for (image, figures) in [(one, &mut of_one[at]), (many, &mut of_many[at])] {
                before(*side, image);
                let figure = time(side.run_rm(image, &format!("start{n}"), &["true"]));
                // The first run warms what all images share.
                figures.extend((n > 0).then_some(figure));
            }
        }
    }
    let medians = |figures: Vec<Vec<f64>>| figures.into_iter().map(median).collect::<Vec<_>>();
    let (of_one, of_many) = (medians(of_one), medians(of_many));
    row(&format!("run --rm{how}, of one layer (ms)"), &of_one);
    row(&format!("run --rm{how}, of a hundred layers (ms)"), &of_many);
    let shares: Vec<String> =
        of_many.iter().zip(&of_one).map(|(many, one)| format!("{:>12.2}", many / one)).collect();
    let what = format!("a hundred layers over one{how}");
    println!("{what:<44} {}", shares.join(" "));
    marks::at_most(&what, of_many[0] / of_one[0], LAYERS_MARK);
}

/// Complete `exec CONTAINER true`.
pub(crate) fn exec(sides: &[&dyn Side], image: &str) {
    for side in sides {
        side.run_detached(image, "exec");
    }
    let figures = alternate(sides, RUNS, |side, n| time(side.exec("exec", &format!("e{n}"), &["true"])));
    row("exec CONTAINER true (ms)", &figures);
    for side in sides {
        side.remove_container("exec");
    }
}

/// Containers a second, with 1, 4 and 16 concurrent command lines.
pub(crate) fn rate(sides: &[&dyn Side], image: &str) {
    // The sides in turn, each after the machine has come to rest.
    const ROUNDS: usize = 4;
    for parallel in [1, 4, 16] {
        let rates = alternate(sides, ROUNDS, |side, round| {
            rest();
            rate_of(side, image, parallel, &format!("rate{parallel}-{round}"))
        });
        crate::rates(&format!("containers a second, {parallel} at a time"), &rates);
    }
}

/// Waits until the machine is idle: the kernel frees a container's namespaces, cgroups and disk blocks seconds after
/// its end, which would slow the next measurement.
#[expect(clippy::disallowed_methods, reason = "there is no event for a machine at rest")]
fn rest() {
    /// The kernel has begun to free resources by then.
    const REST_MIN: Duration = Duration::from_secs(6);
    const REST_MAX: Duration = Duration::from_secs(60);
    const SAMPLE: Duration = Duration::from_millis(500);
    let begin = Instant::now();
    let mut before = processor_times();
    loop {
        std::thread::sleep(SAMPLE);
        let now = processor_times();
        let share = (now.busy - before.busy) / (now.all - before.all).max(1.0);
        before = now;
        let rested = begin.elapsed();
        if rested > REST_MIN && share < 0.03 || rested > REST_MAX {
            return;
        }
    }
}

struct ProcessorTimes {
    busy: f64,
    all: f64,
}

/// The first line of `/proc/stat` (proc_stat(5)): idle and iowait are the fourth and fifth numbers.
fn processor_times() -> ProcessorTimes {
    let stat = std::fs::read_to_string("/proc/stat").expect("proc is mounted");
    let line = stat.lines().next().expect("a line for all processors");
    let times: Vec<f64> = line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    let all = times.iter().take(8).sum();
    ProcessorTimes { busy: all - times[3] - times[4], all }
}

fn rate_of(side: &dyn Side, image: &str, parallel: usize, name: &str) -> f64 {
    const CONTAINERS: usize = 48;
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    // `Side` stays on this thread; only the commands go to others.
    let commands: Vec<_> = (0..CONTAINERS)
        .map(|n| side.run_rm(image, &format!("{name}-{n}"), &["true"]))
        .map(|command| std::sync::Mutex::new(Some(command)))
        .collect();
    std::thread::scope(|scope| {
        for _ in 0..parallel {
            scope.spawn(|| {
                while let Some(slot) = commands.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let command = slot.lock().expect("no panic holds this lock").take();
                    time(command.expect("each index is taken once"));
                }
            });
        }
    });
    CONTAINERS as f64 / start.elapsed().as_secs_f64()
}

/// Runs both sides in turn and returns the median of each.
fn alternate(sides: &[&dyn Side], runs: usize, mut measure: impl FnMut(&dyn Side, usize) -> f64) -> Vec<f64> {
    let mut figures = vec![Vec::new(); sides.len()];
    for n in 0..=runs {
        for (side, figures) in sides.iter().zip(&mut figures) {
            let figure = measure(*side, n);
            // The first run warms caches on both sides and is not counted.
            if n > 0 {
                figures.push(figure);
            }
        }
    }
    figures.into_iter().map(median).collect()
}
