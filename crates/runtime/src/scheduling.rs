//! Scheduling and placement of a process: scheduler, IO priority, CPU affinity, memory nodes, personality.
#![expect(unsafe_code, reason = "these system calls have no wrappers in rustix")]

use std::io;

use types::spec::runtime::{IoPriority, MemoryPolicy, Personality, Process, Scheduler};
use types::{Context, Error, Result};

/// Upper bound of processor and node numbers in a list.
const NUMBER_MAX: u32 = 8192;

/// `IOPRIO_CLASS_*` (ioprio_set(2)).
const IO_CLASSES: [(&str, i32); 3] =
    [("IOPRIO_CLASS_RT", 1), ("IOPRIO_CLASS_BE", 2), ("IOPRIO_CLASS_IDLE", 3)];

/// `SCHED_*` (sched(7)).
const POLICIES: [(&str, u32); 7] = [
    ("SCHED_OTHER", 0),
    ("SCHED_FIFO", 1),
    ("SCHED_RR", 2),
    ("SCHED_BATCH", 3),
    ("SCHED_ISO", 4),
    ("SCHED_IDLE", 5),
    ("SCHED_DEADLINE", 6),
];

/// `SCHED_FLAG_*` (sched_setattr(2)).
const SCHEDULER_FLAGS: [(&str, u64); 7] = [
    ("SCHED_FLAG_RESET_ON_FORK", 0x01),
    ("SCHED_FLAG_RECLAIM", 0x02),
    ("SCHED_FLAG_DL_OVERRUN", 0x04),
    ("SCHED_FLAG_KEEP_POLICY", 0x08),
    ("SCHED_FLAG_KEEP_PARAMS", 0x10),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
];

/// `MPOL_*` (set_mempolicy(2)).
pub(crate) const MEMORY_MODES: [(&str, u32); 7] = [
    ("MPOL_DEFAULT", 0),
    ("MPOL_PREFERRED", 1),
    ("MPOL_BIND", 2),
    ("MPOL_INTERLEAVE", 3),
    ("MPOL_LOCAL", 4),
    ("MPOL_PREFERRED_MANY", 5),
    ("MPOL_WEIGHTED_INTERLEAVE", 6),
];

/// `MPOL_F_*` (set_mempolicy(2)).
pub(crate) const MEMORY_FLAGS: [(&str, u32); 3] = [
    ("MPOL_F_NUMA_BALANCING", 1 << 13),
    ("MPOL_F_RELATIVE_NODES", 1 << 14),
    ("MPOL_F_STATIC_NODES", 1 << 15),
];

/// Refuses values that the kernel would clamp or ignore (sched_setattr(2), ioprio_set(2)).
pub(crate) fn check(process: &Process) -> Result<()> {
    let bad = |why: String| Err(Error::invalid_argument(why));
    if let Some(scheduler) = &process.scheduler {
        let Scheduler { policy, nice, priority, runtime, deadline, period, .. } = scheduler;
        let is = |policies: &[&str]| policies.contains(&policy.as_str());
        if is(&["SCHED_OTHER", "SCHED_BATCH"]) && !(-20..=19).contains(nice) {
            return bad(format!("scheduler.nice {nice} is not from -20 to 19"));
        }
        if *priority != 0 && !is(&["SCHED_FIFO", "SCHED_RR"]) {
            return bad(format!("scheduler.priority is for SCHED_FIFO and SCHED_RR, not for {policy}"));
        }
        if (*runtime, *deadline, *period) != (0, 0, 0) && !is(&["SCHED_DEADLINE"]) {
            let why = "scheduler.runtime, deadline and period are for SCHED_DEADLINE";
            return bad(format!("{why}, not for {policy}"));
        }
    }
    match &process.io_priority {
        Some(IoPriority { priority, .. }) if !(0..=7).contains(priority) => {
            bad(format!("ioPriority {priority} is not from 0 to 7"))
        }
        _ => Ok(()),
    }
}

/// The value of a constant by its name in the specification.
fn value<T: Copy>(words: &[(&str, T)], word: &str, what: &str) -> Result<T> {
    let found = words.iter().find(|(known, _)| *known == word);
    found.map(|(_, value)| *value).ok_or_else(|| Error::invalid_argument(format!("unknown {what} {word:?}")))
}

fn done(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub(crate) fn set_io_priority(priority: &IoPriority) -> Result<()> {
    let class = value(&IO_CLASSES, &priority.class, "ioPriority class")?;
    let number = class << 13 | (priority.priority & 0x1fff);
    // SAFETY: numbers only; 1 is IOPRIO_WHO_PROCESS and 0 the caller.
    done(unsafe { libc::syscall(libc::SYS_ioprio_set, 1, 0, number) })
        .context(|| format!("set ioPriority {} {}", priority.class, priority.priority))
}

/// Sets the scheduler of a process; 0 is the caller. `processors` is the cpuset of its cgroup, as a list; empty if it
/// has none, or if it is not known.
pub(crate) fn set_scheduler(pid: u32, scheduler: &Scheduler, processors: &str) -> Result<()> {
    #[repr(C)]
    struct SchedAttr {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
        util_min: u32,
        util_max: u32,
    }
    let mut flags = 0;
    for flag in &scheduler.flags {
        flags |= value(&SCHEDULER_FLAGS, flag, "scheduler flag")?;
    }
    let attr = SchedAttr {
        size: 56,
        policy: value(&POLICIES, &scheduler.policy, "scheduler policy")?,
        flags,
        nice: scheduler.nice,
        priority: scheduler.priority.cast_unsigned(),
        runtime: scheduler.runtime,
        deadline: scheduler.deadline,
        period: scheduler.period,
        // The specification has flags for them, but no values; older kernels require zero.
        util_min: 0,
        util_max: 0,
    };
    // SAFETY: the kernel reads `size` bytes of a structure of that size.
    done(unsafe { libc::syscall(libc::SYS_sched_setattr, pid, &raw const attr, 0) })
        .map_err(|error| not_scheduled(scheduler, processors, error))
}

/// Explains a refusal: a deadline needs all processors that are scheduled together (sched-deadline.rst, "Deadline
/// scheduling with CPU affinity"). The words are runc's, which programs that drive it match on.
fn not_scheduled(scheduler: &Scheduler, processors: &str, error: io::Error) -> Error {
    let is_bound = scheduler.policy == "SCHED_DEADLINE"
        && !processors.is_empty()
        && error.raw_os_error() == Some(libc::EPERM);
    let words = match is_bound {
        true => format!(
            "process scheduler can't be used together with AllowedCPUs: set scheduler {} on processors {processors}; leave \
             out one of process.scheduler and linux.resources.cpu.cpus",
            scheduler.policy
        ),
        false => format!("set scheduler {}", scheduler.policy),
    };
    Error::new(error.kind().into(), words).with_source(error)
}

/// Sets the CPU affinity of the calling process, as a list (cpuset(7)). An empty list leaves it as it is.
pub(crate) fn set_processors(list: &str) -> Result<()> {
    if list.is_empty() {
        return Ok(());
    }
    let mask = mask(list)?;
    let size = size_of_val(&mask[..]);
    // SAFETY: size and pointer describe a slice that lives across the call; 0 is the caller.
    done(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size, mask.as_ptr()) })
        .context(|| format!("run on processors {list}"))
}

/// Resets the CPU affinity of the calling process to its cgroup's, as runc does: the caller may be bound to fewer
/// processors (taskset(1), systemd's `CPUAffinity=`), and since Linux 6.2 the affinity survives entering a cgroup. The
/// kernel drops processors that do not exist, or are not in the cgroup's set (sched_setaffinity(2)).
pub(crate) fn leave_callers_processors() {
    let all = [u64::MAX; NUMBER_MAX as usize / 64];
    let size = size_of_val(&all);
    // If the call is refused, as by a filter of the host's, the process keeps the caller's affinity.
    // SAFETY: size and pointer describe an array that lives across the call; 0 is the caller.
    unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size, all.as_ptr()) };
}

/// Checks a memory policy, with errors in runc's words.
pub(crate) fn check_memory_policy(policy: &MemoryPolicy) -> Result<()> {
    read_memory_policy(policy).map(|_| ())
}

/// The mode with its flags, and the nodes as a bit mask.
fn read_memory_policy(policy: &MemoryPolicy) -> Result<(u32, Vec<u64>)> {
    let bad = |why: String| Err(Error::invalid_argument(why));
    let Some((_, mode)) = MEMORY_MODES.iter().find(|(known, _)| *known == policy.mode) else {
        let known = MEMORY_MODES.map(|(mode, _)| mode).join(", ");
        return bad(format!("invalid memory policy mode {:?}: it is none of {known}", policy.mode));
    };
    let nodes = mask(&policy.nodes).context(|| format!("invalid memory policy nodes {:?}", policy.nodes))?;
    let count: u32 = nodes.iter().map(|word| word.count_ones()).sum();
    match policy.mode.as_str() {
        "MPOL_DEFAULT" | "MPOL_LOCAL" if count > 0 => {
            return bad(format!(
                "memory policy mode requires 0 nodes but got {count}: {} has none, leave out linux.memoryPolicy.nodes",
                policy.mode
            ));
        }
        "MPOL_DEFAULT" | "MPOL_LOCAL" | "MPOL_PREFERRED" => {}
        other if count == 0 => {
            return bad(format!(
                "memory policy mode requires at least one node but got 0: name those of {other} in \
                 linux.memoryPolicy.nodes"
            ));
        }
        _ => {}
    }
    let mut mode = *mode;
    for flag in &policy.flags {
        let Some((_, bit)) = MEMORY_FLAGS.iter().find(|(known, _)| known == flag) else {
            let known = MEMORY_FLAGS.map(|(flag, _)| flag).join(", ");
            return bad(format!("invalid memory policy flag {flag:?}: it is none of {known}"));
        };
        mode |= bit;
    }
    Ok((mode, nodes))
}

pub(crate) fn set_memory_policy(policy: &MemoryPolicy) -> Result<()> {
    let (mode, nodes) = read_memory_policy(policy)?;
    let (pointer, bits) = match nodes.len() {
        0 => (std::ptr::null(), 0),
        // The kernel reads one bit less than `maxnode`.
        words => (nodes.as_ptr(), words * 64 + 1),
    };
    // SAFETY: pointer and length describe a slice that lives across the call, or are null and 0.
    done(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, pointer, bits) })
        .context(|| format!("set memoryPolicy {} on nodes {:?}", policy.mode, policy.nodes))
}

pub(crate) fn set_personality(personality: &Personality) -> Result<()> {
    let domain = match personality.domain.as_str() {
        "LINUX" => 0,
        "LINUX32" => 8,
        other => return Err(Error::invalid_argument(format!("unknown personality {other:?}"))),
    };
    if !personality.flags.is_empty() {
        return Err(Error::invalid_argument("personality.flags are not defined by the specification"));
    }
    // SAFETY: a number only.
    done(unsafe { libc::personality(domain) }.into()).context(|| "set personality")
}

/// Parses `0-2,5` into words of a bit mask.
fn mask(list: &str) -> Result<Vec<u64>> {
    let bad = || Error::invalid_argument(format!("{list:?} is no list of numbers like 0-2,5"));
    let ranges = stdx::ranges(list).filter(|ranges| ranges.iter().all(|range| *range.end() < NUMBER_MAX));
    let mut words = Vec::new();
    for number in ranges.ok_or_else(bad)?.into_iter().flatten() {
        let (word, bit) = ((number / 64) as usize, number % 64);
        if words.len() <= word {
            words.resize(word + 1, 0);
        }
        words[word] |= 1 << bit;
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_memory_policy_is_refused_in_runcs_words() {
        let check = |mode: &str, nodes: &str, flag: &str, expected: &str| {
            let flags = if flag.is_empty() { Vec::new() } else { vec![flag.to_owned()] };
            let policy = MemoryPolicy { mode: mode.into(), nodes: nodes.into(), flags };
            let told = check_memory_policy(&policy).map_or_else(|error| error.chain(), |()| String::new());
            assert!(told.contains(expected) && told.is_empty() == expected.is_empty(), "{policy:?}: {told}");
        };
        check("MPOL_DEFAULT", "", "", "");
        check("MPOL_PREFERRED", "", "", "");
        check("MPOL_BIND", "0-1", "MPOL_F_STATIC_NODES", "");
        check("", "", "", "invalid memory policy");
        check("", "0-7", "", "invalid memory policy mode");
        check("INTERLEAVE", "0", "", "invalid memory policy mode");
        check("MPOL_PREFERRED", "0", "badflag", "invalid memory policy flag");
        check("MPOL_BIND", "0-9876543210", "", "invalid memory policy node");
        check("MPOL_DEFAULT", "0-7", "", "mode requires 0 nodes but got 8");
        check("MPOL_LOCAL", "70", "", "mode requires 0 nodes but got 1");
        check("MPOL_BIND", "", "", "mode requires at least one node but got 0");
    }

    #[test]
    fn sched_deadline_with_a_cpuset_explains_its_error() {
        let check = |policy: &str, processors: &str, number: i32, expected: bool| {
            let scheduler = Scheduler { policy: policy.into(), ..Scheduler::default() };
            let error = not_scheduled(&scheduler, processors, io::Error::from_raw_os_error(number));
            let is_told = error.chain().contains("process scheduler can't be used together with AllowedCPUs");
            assert_eq!(is_told, expected, "{policy} {processors:?} {number}: {}", error.chain());
        };
        check("SCHED_DEADLINE", "0", libc::EPERM, true);
        check("SCHED_DEADLINE", "", libc::EPERM, false);
        check("SCHED_DEADLINE", "0", libc::EBUSY, false);
        check("SCHED_FIFO", "0", libc::EPERM, false);
    }

    #[test]
    fn lists_become_bits() {
        assert_eq!(mask("0-2,5").unwrap(), [0b10_0111]);
        assert_eq!(mask("64").unwrap(), [0, 1]);
        assert_eq!(mask("").unwrap(), Vec::<u64>::new());
        for wrong in ["a", "2-1", "1-", "99999", "-1"] {
            assert!(mask(wrong).is_err(), "{wrong}");
        }
    }
}
