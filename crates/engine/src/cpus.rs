//! Checks of CPU limits: not more CPUs than the host has, as in Docker.

use std::ops::RangeInclusive;

use api::engine::Create;
use types::{Error, Result};

/// In microseconds: the range that the kernel accepts (Documentation/scheduler/sched-bwc.rst).
const PERIODS: RangeInclusive<u64> = 1_000..=1_000_000;
const QUOTA_MIN: i64 = 1_000;

/// Number of CPUs that this process may run on, regardless of its quota.
pub(crate) fn count() -> usize {
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) => usize::try_from(set.count()).unwrap_or(1).max(1),
        // The kernel has more CPUs than this set can hold.
        Err(_) => std::thread::available_parallelism().map_or(1, usize::from),
    }
}

/// `InvalidArgument` for a share of more CPUs than there are. In thousandths of a CPU.
pub(crate) fn check_share(milli_cpus: u64, count: usize) -> Result<()> {
    if milli_cpus > count as u64 * 1000 {
        return Err(Error::invalid_argument(format!(
            "cpus {}: range of CPUs is from 0.01 to {count}.00, as there are only {count} CPUs available",
            milli_cpus as f64 / 1000.0
        )));
    }
    Ok(())
}

/// `InvalidArgument` for a period or quota that the kernel rejects, or that conflicts with `--cpus`.
pub(crate) fn check_times(create: &Create) -> Result<()> {
    let (period, quota) = (create.extras.cpu_period, create.extras.cpu_quota);
    let said = [("--cpu-period", period.is_some()), ("--cpu-quota", quota.is_some())];
    if create.milli_cpus.is_some_and(|milli| milli != 0)
        && let Some((flag, _)) = said.iter().find(|(_, is_said)| *is_said)
    {
        return Err(Error::invalid_argument(format!(
            "conflicting options: --cpus and {flag}; --cpus is a quota of 100000 us for each processor, in each 100000 us"
        )));
    }
    if let Some(period) = period.filter(|period| !PERIODS.contains(period)) {
        return Err(Error::invalid_argument(format!(
            "--cpu-period {period}: CPU cfs period can not be less than 1ms (i.e. {}) or larger than 1s (i.e. {})",
            PERIODS.start(),
            PERIODS.end()
        )));
    }
    match quota.filter(|quota| (0..QUOTA_MIN).contains(quota)) {
        Some(quota) => Err(Error::invalid_argument(format!(
            "--cpu-quota {quota}: CPU cfs quota can not be less than 1ms (i.e. {QUOTA_MIN}); -1 is no limit"
        ))),
        None => Ok(()),
    }
}

/// `InvalidArgument` for an invalid list of CPUs or memory nodes (cpuset(7), "List format"), or one with members that
/// are not in `available`. An empty list sets no limit.
pub(crate) fn check_list(what: &str, wanted: &str, available: &str) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let Some(ranges) = stdx::ranges(wanted) else {
        return Err(Error::invalid_argument(format!("cpuset {wanted:?}: expected something like 0-2,4")));
    };
    // If we cannot parse the kernel's list, the kernel is left to judge.
    let Some(own) = stdx::ranges(available) else { return Ok(()) };
    let is_there = |cpu: &u32| own.iter().any(|range| range.contains(cpu));
    if ranges.iter().all(|range| is_there(range.start()) && is_there(range.end())) {
        return Ok(());
    }
    Err(Error::invalid_argument(format!(
        "cpuset {wanted}: requested {what} are not available: there are {available}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_shares_are_limited_by_the_number_of_cpus() {
        assert!(check_share(2000, 2).is_ok());
        let refused = check_share(2010, 2).unwrap_err();
        assert!(refused.message().contains("cpus 2.01: range of CPUs is from 0.01 to 2.00"), "{refused}");
    }

    #[test]
    fn cpu_lists_name_existing_cpus() {
        let check = |wanted: &str, is_fine: bool| {
            assert_eq!(check_list("CPUs", wanted, "0-3").is_ok(), is_fine, "{wanted}");
        };
        check("", true);
        check("0", true);
        check("0-2,3", true);
        check("4", false);
        check("0-99", false);
        check("2-1", false);
        check("a", false);
        check("-1", false);
        check("1,", false);
        assert!(check_list("CPUs", "7", "in other words").is_ok());
    }

    #[test]
    fn cpu_periods_and_quotas_are_validated() {
        let check = |milli_cpus, cpu_period, cpu_quota, words: &str| {
            let extras = api::engine::Extras { cpu_period, cpu_quota, ..Default::default() };
            let checked = check_times(&Create { milli_cpus, extras, ..Create::default() });
            match words {
                "" => checked.unwrap(),
                _ => assert!(
                    checked.as_ref().is_err_and(|error| error.message().contains(words)),
                    "{checked:?}"
                ),
            }
        };
        check(None, Some(1_000), Some(-1), "");
        check(Some(0), Some(1_000_000), Some(1_000), "");
        check(Some(500), None, None, "");
        check(Some(500), Some(50_000), None, "--cpus and --cpu-period");
        check(Some(500), None, Some(50_000), "--cpus and --cpu-quota");
        check(None, Some(999), None, "--cpu-period 999");
        check(None, None, Some(999), "--cpu-quota 999");
    }
}
