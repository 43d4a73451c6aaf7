//! Marks: target values of figures. Each is printed below the figure's row as met or missed, and misses are counted.

use std::sync::atomic::{AtomicUsize, Ordering};

static MISSED: AtomicUsize = AtomicUsize::new(0);

/// Prints whether a figure is at most its mark. A figure that was not measured (NaN) misses it.
pub(crate) fn at_most(what: &str, figure: f64, mark: f64) {
    judge(what, figure, &format!("at most {mark:.2}"), figure <= mark);
}

/// As [`at_most`], for figures where more is better.
pub(crate) fn at_least(what: &str, figure: f64, mark: f64) {
    judge(what, figure, &format!("at least {mark:.2}"), figure >= mark);
}

fn judge(what: &str, figure: f64, mark: &str, is_met: bool) {
    MISSED.fetch_add(usize::from(!is_met), Ordering::Relaxed);
    let judged = if is_met { "met" } else { "MISSED" };
    println!("{:<44} {figure:.2} of {mark}: {judged}", format!("  mark: {what}"));
}

/// Whether every printed mark was met.
pub(crate) fn are_met() -> bool {
    MISSED.load(Ordering::Relaxed) == 0
}
