//! Marks: what a figure is to be at most, or at least. Each is printed below the row of its figure, as met or missed, and counted.

use std::sync::atomic::{AtomicUsize, Ordering};

static MISSED: AtomicUsize = AtomicUsize::new(0);

/// Prints whether a figure is within its mark. One that was not measured is missed.
pub(crate) fn at_most(what: &str, figure: f64, mark: f64) {
    judge(what, figure, &format!("at most {mark:.2}"), figure <= mark);
}

/// As [`at_most`], of what is to be much.
pub(crate) fn at_least(what: &str, figure: f64, mark: f64) {
    judge(what, figure, &format!("at least {mark:.2}"), figure >= mark);
}

fn judge(what: &str, figure: f64, mark: &str, is_met: bool) {
    MISSED.fetch_add(usize::from(!is_met), Ordering::Relaxed);
    let judged = if is_met { "met" } else { "MISSED" };
    println!("{:<44} {figure:.2} of {mark}: {judged}", format!("  mark: {what}"));
}

/// Whether all that were printed are met.
pub(crate) fn are_met() -> bool {
    MISSED.load(Ordering::Relaxed) == 0
}
