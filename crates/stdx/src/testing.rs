//! What tests need of the machine, and how they skip without it.

use std::fs;
use std::os::unix::fs::MetadataExt;

/// With this variable set, a test fails instead of being skipped for want of root or of a daemon to compare with, as
/// `cargo xtask test` has checked that both are there. Tests for features that the kernel lacks are still skipped.
pub const NO_SKIP: &str = "HOIST_TEST_NO_SKIP";

/// True if the tests run as root. Otherwise prints what is skipped.
#[track_caller]
pub fn is_root(what: &str) -> bool {
    let root = fs::metadata("/proc/self").expect("/proc is there").uid() == 0;
    if !root {
        skip(&format!("{what} needs root"));
    }
    root
}

/// Prints why a test, or a part of it, is skipped.
#[track_caller]
pub fn skip(why: &str) {
    assert!(
        std::env::var_os(NO_SKIP).is_none(),
        "{why}, and {NO_SKIP} says that nothing is skipped for that"
    );
    println!("skipped: {why}");
}
