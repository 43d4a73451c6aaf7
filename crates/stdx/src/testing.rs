//! What tests need of the machine that they run on, and what becomes of them where it is not there.

use std::fs;
use std::os::unix::fs::MetadataExt;

/// With it in the environment, a test fails that would be skipped for want of root or of a daemon to compare with:
/// `cargo xtask test` has seen to both. What kernels may lack is skipped all the same.
pub const NO_SKIP: &str = "HOIST_TEST_NO_SKIP";

/// True when the tests run as root. Says what is skipped otherwise.
#[track_caller]
pub fn is_root(what: &str) -> bool {
    let root = fs::metadata("/proc/self").expect("/proc is there").uid() == 0;
    if !root {
        skip(&format!("{what} needs root"));
    }
    root
}

/// Says why a test, or a part of it, is skipped.
#[track_caller]
pub fn skip(why: &str) {
    assert!(
        std::env::var_os(NO_SKIP).is_none(),
        "{why}, and {NO_SKIP} says that nothing is skipped for that"
    );
    println!("skipped: {why}");
}
