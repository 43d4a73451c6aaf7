//! How many processors a container may have: not more than there are, as with Docker.

use types::{Error, Result};

/// Those that this process may run on, whatever share of their time it has.
pub(crate) fn count() -> usize {
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) => usize::try_from(set.count()).unwrap_or(1).max(1),
        // The kernel has more than a set of this size holds.
        Err(_) => std::thread::available_parallelism().map_or(1, usize::from),
    }
}

/// `InvalidArgument` for more thousandths of processors than there are processors.
pub(crate) fn check_share(milli_cpus: u64, count: usize) -> Result<()> {
    if milli_cpus > count as u64 * 1000 {
        return Err(Error::invalid_argument(format!(
            "cpus {}: range of CPUs is from 0.01 to {count}.00, as there are only {count} CPUs available",
            milli_cpus as f64 / 1000.0
        )));
    }
    Ok(())
}

/// `InvalidArgument` for a list of processors (cpuset(7), "List format") that is none, or that has some beyond those
/// of another list. An empty one is no wish.
pub(crate) fn check_list(wanted: &str, available: &str) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let Some(ranges) = stdx::ranges(wanted) else {
        return Err(Error::invalid_argument(format!("cpuset {wanted:?}: expected something like 0-2,4")));
    };
    // A list that the kernel writes in another way is for the kernel to judge by.
    let Some(own) = stdx::ranges(available) else { return Ok(()) };
    let is_there = |cpu: &u32| own.iter().any(|range| range.contains(cpu));
    if ranges.iter().all(|range| is_there(range.start()) && is_there(range.end())) {
        return Ok(());
    }
    Err(Error::invalid_argument(format!(
        "cpuset {wanted}: requested CPUs are not available: there are {available}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_end_where_processors_do() {
        assert!(check_share(2000, 2).is_ok());
        let refused = check_share(2010, 2).unwrap_err();
        assert!(refused.message().contains("cpus 2.01: range of CPUs is from 0.01 to 2.00"), "{refused}");
    }

    #[test]
    fn lists_name_processors_that_are_there() {
        let check =
            |wanted: &str, is_fine: bool| assert_eq!(check_list(wanted, "0-3").is_ok(), is_fine, "{wanted}");
        check("", true);
        check("0", true);
        check("0-2,3", true);
        check("4", false);
        check("0-99", false);
        check("2-1", false);
        check("a", false);
        check("-1", false);
        check("1,", false);
        assert!(check_list("7", "in other words").is_ok());
    }
}
