//! How long commands take, and how many fit into a second.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::side::{Side, time};
use crate::work::forget_files;
use crate::{marks, median, row};

const RUNS: usize = 20;
/// Of starts for which more has to be made ready than is measured.
const FIRST_RUNS: usize = 7;
/// How many times as long a start on a hundred layers may take as one on a single layer, which is to be as long: runs differ by
/// more than less.
const LAYERS_MARK: f64 = 1.1;

/// Whole `run --rm IMAGE true`.
pub(crate) fn run(sides: &[&dyn Side], image: &str) {
    let figures = alternate(sides, RUNS, |side, n| time(side.run_rm(image, &format!("run{n}"), &["true"])));
    row("run --rm IMAGE true (ms)", &figures);
}

/// Whole `run --rm IMAGE true` of an image of a hundred layers, and beside it of one of a single layer: the first after its
/// pull, one with nothing in memory, as long after it, and one after others.
pub(crate) fn layers(sides: &[&dyn Side], one: &str, many: &str) {
    let pulled = |side: &dyn Side, image: &str| {
        side.remove(image);
        side.pull(image);
    };
    compare(sides, one, many, ", the first", FIRST_RUNS, pulled);
    compare(sides, one, many, ", cold", FIRST_RUNS, |_, _| forget_files());
    compare(sides, one, many, "", RUNS, |_, _| ());
}

/// Two rows, and how many times as long the second takes. `before` is done before each and not counted.
fn compare(
    sides: &[&dyn Side],
    one: &str,
    many: &str,
    how: &str,
    runs: usize,
    before: impl Fn(&dyn Side, &str),
) {
    // In turn, so that both see the same machine.
    let (mut of_one, mut of_many) = (vec![Vec::new(); sides.len()], vec![Vec::new(); sides.len()]);
    for n in 0..=runs {
        for (at, side) in sides.iter().enumerate() {
            for (image, figures) in [(one, &mut of_one[at]), (many, &mut of_many[at])] {
                before(*side, image);
                let figure = time(side.run_rm(image, &format!("start{n}"), &["true"]));
                // The first is for what is the same for all images.
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

/// Whole `exec CONTAINER true`.
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

/// Containers a second, by 1, 4 and 16 command lines at a time.
pub(crate) fn rate(sides: &[&dyn Side], image: &str) {
    // The sides in turn, each on a machine that has cleared up after the other.
    const ROUNDS: usize = 4;
    for parallel in [1, 4, 16] {
        let rates = alternate(sides, ROUNDS, |side, round| {
            rest();
            rate_of(side, image, parallel, &format!("rate{parallel}-{round}"))
        });
        crate::rates(&format!("containers a second, {parallel} at a time"), &rates);
    }
}

/// Waits until the machine does nothing: what containers leave to the kernel (namespaces, cgroups, freed blocks of
/// the disk) is worked off seconds later, on whoever's time.
#[expect(clippy::disallowed_methods, reason = "there is no event for a machine at rest")]
fn rest() {
    /// Until what ended has begun to be worked off.
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

/// The first line of `/proc/stat` (proc_stat(5)): idle and waiting for the disk are the fourth and the fifth number.
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
    // Commands are made on this thread's side and run on others: only processes cross.
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
            // The first run warms caches on both sides and does not count.
            if n > 0 {
                figures.push(figure);
            }
        }
    }
    figures.into_iter().map(median).collect()
}
