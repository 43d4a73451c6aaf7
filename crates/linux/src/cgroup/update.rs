//! Changes of limits while a cgroup is in use.
//!
//! A change may set one of two values that belong together: a quota without its period, or memory without memory and
//! swap. The other one is then taken from the kernel. Setting a weight clears `cpu.idle`. A change that fails is undone
//! as a whole.

use std::os::fd::AsFd as _;

use types::Result;
use types::spec::runtime::{CpuResources, LinuxResources, MemoryResources};

use super::limits_v2::WEIGHTS;
use super::{Cgroup, Member, Version, file};

const SWAP_MAX: &str = "memory.swap.max";
const IDLE: &str = "cpu.idle";

/// A value that was written to a file of a cgroup.
pub(super) struct Written {
    name: String,
    value: String,
    /// The file's content before.
    before: String,
}

/// Completes values that belong together.
pub(super) fn completed(
    cgroup: &Cgroup,
    resources: &LinuxResources,
    made_with: &LinuxResources,
) -> Result<LinuxResources> {
    let mut whole = resources.clone();
    complete_idle(cgroup, &mut whole)?;
    if let Some(cpu) = &mut whole.cpu {
        complete_quota(cgroup, cpu)?;
    }
    // A limit by the file `memory.swap.max` is of swap alone: there is no total that could stay.
    let is_swap_apart = [resources, made_with].iter().any(|limits| limits.unified.contains_key(SWAP_MAX));
    if let (Version::V2, Some(member), Some(memory)) = (cgroup.version(), cgroup.unified(), &mut whole.memory)
    {
        complete_memory(member, memory, is_swap_apart)?;
    }
    Ok(whole)
}

/// The kernel refuses a weight for an idle cgroup. The weight wins, as with runc under systemd.
fn complete_idle(cgroup: &Cgroup, resources: &mut LinuxResources) -> Result<()> {
    let cpu = resources.cpu.as_ref();
    // Clearing idle by file name would come too late, as those files are written after the weight.
    let by_file = resources.unified.get(IDLE).is_some_and(|value| value.trim() != "0");
    let says_whether = cpu.is_some_and(|cpu| cpu.idle.is_some()) || by_file;
    let has_weight = cpu.is_some_and(|cpu| cpu.shares.is_some_and(|shares| shares != 0))
        || WEIGHTS.iter().any(|name| resources.unified.contains_key(*name));
    if says_whether || !has_weight {
        return Ok(());
    }
    let member = cgroup.controller("cpu").or_else(|| cgroup.unified());
    let idle = member.map_or(Ok(None), |member| member.read_optional(IDLE))?;
    if idle.as_deref() == Some("1") {
        resources.cpu.get_or_insert_default().idle = Some(0);
    }
    Ok(())
}

fn complete_quota(cgroup: &Cgroup, cpu: &mut CpuResources) -> Result<()> {
    let (quota, period) = (cpu.quota.filter(|quota| *quota != 0), cpu.period.filter(|period| *period != 0));
    if quota.is_some() == period.is_some() {
        return Ok(());
    }
    let text = match (cgroup.controller("cpu"), cgroup.unified()) {
        (Some(member), _) => {
            let read = |name| Ok(member.read_optional(name)?.unwrap_or_default());
            format!("{} {}", read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?)
        }
        (None, Some(member)) => member.read_optional("cpu.max")?.unwrap_or_default(),
        (None, None) => String::new(),
    };
    // Without these files the write fails, with a better error.
    if let Some((current_quota, current_period)) = text.split_once(' ') {
        cpu.quota = quota.or(Some(current_quota.parse().unwrap_or(-1)));
        cpu.period = period.or(current_period.parse().ok());
    }
    Ok(())
}

fn complete_memory(member: &Member, memory: &mut MemoryResources, is_swap_apart: bool) -> Result<()> {
    // None means no limit.
    let current =
        |name| -> Result<Option<i64>> { Ok(member.read_optional(name)?.and_then(|text| text.parse().ok())) };
    match (memory.limit.unwrap_or(0), memory.swap.unwrap_or(0)) {
        (1.., 0) if !is_swap_apart => {
            if let (Some(limit), Some(swap)) = (current("memory.max")?, current(SWAP_MAX)?) {
                memory.swap = Some(limit.saturating_add(swap));
            }
        }
        (0, 1..) => memory.limit = current("memory.max")?,
        _ => {}
    }
    Ok(())
}

/// Makes a change. If it fails, the written files get their former content back, the last one first.
pub(super) fn all_or_nothing(cgroup: &Cgroup, change: impl FnOnce() -> Result<()>) -> Result<()> {
    for member in &cgroup.members {
        member.written.replace(Some(Vec::new()));
    }
    let changed = change();
    for member in &cgroup.members {
        let written = member.written.take().unwrap_or_default();
        if changed.is_err() {
            written.iter().rev().for_each(|written| written.undo(member));
        }
    }
    changed
}

impl Written {
    /// Called before the write. None for a file that cannot be read: a write to it is a command, not a limit.
    pub(super) fn note(member: &Member, name: &str, value: &str) -> Option<Written> {
        let before = file::read(member.dir.as_fd(), name).ok()?;
        Some(Written { name: name.to_owned(), value: value.to_owned(), before })
    }

    fn undo(&self, member: &Member) {
        for line in self.lines_back() {
            // The change's error is reported. An empty text needs a line end to be written at all.
            let _ = member.try_write(&self.name, &format!("{line}\n"));
        }
    }

    /// The writes that restore the former content, one line each.
    fn lines_back(&self) -> Vec<String> {
        let key = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
        let written = key(&self.value);
        let mut lines = self.before.split('\n');
        if self.name == "memory.oom_control" {
            // `oom_kill_disable 0`, and read-only lines.
            return lines
                .next()
                .and_then(|line| line.split(' ').nth(1))
                .map(str::to_owned)
                .into_iter()
                .collect();
        }
        match lines.clone().find(|line| key(line) == written) {
            Some(line) => vec![line.to_owned()],
            // A device that had no line gets no limit.
            None if written.contains(':') => {
                let unlimited = match &*self.name {
                    "io.max" => "rbps=max wbps=max riops=max wiops=max",
                    name if name.starts_with("blkio.throttle.") => "0",
                    _ => "default",
                };
                vec![format!("{written} {unlimited}")]
            }
            None => lines.map(str::to_owned).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use super::*;
    use tempfile::TempDir;

    /// A directory with files of version 2, in place of a cgroup.
    fn cgroup(files: &[(&str, &str)]) -> (TempDir, Cgroup) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let cgroup = Cgroup::open_locations(&[(String::new(), dir.path().to_owned())].into()).unwrap();
        (dir, cgroup)
    }

    fn memory(limit: i64, swap: i64) -> LinuxResources {
        let some = |bytes: i64| Some(bytes).filter(|bytes| *bytes != 0);
        let memory = MemoryResources { limit: some(limit), swap: some(swap), ..MemoryResources::default() };
        LinuxResources { memory: Some(memory), ..LinuxResources::default() }
    }

    #[test]
    fn half_a_quota_is_completed_from_the_file() {
        let (dir, cgroup) = cgroup(&[("cpu.max", "50000 200000\n")]);
        let check = |quota, period, expected| {
            let cpu = CpuResources { quota, period, ..CpuResources::default() };
            let resources = LinuxResources { cpu: Some(cpu), ..LinuxResources::default() };
            let whole = cgroup.completed(&resources, &LinuxResources::default()).unwrap().cpu.unwrap();
            assert_eq!((whole.quota, whole.period), expected);
        };
        check(None, Some(100_000), (Some(50_000), Some(100_000)));
        check(Some(20_000), None, (Some(20_000), Some(200_000)));
        check(Some(-1), Some(0), (Some(-1), Some(200_000)));
        check(Some(1000), Some(2000), (Some(1000), Some(2000)));
        check(None, None, (None, None));
        fs::write(dir.path().join("cpu.max"), "max 100000\n").unwrap();
        check(None, Some(50_000), (Some(-1), Some(50_000)));
    }

    #[test]
    fn setting_a_weight_clears_cpu_idle() {
        let shares = |shares, idle| {
            let cpu = CpuResources { shares: Some(shares), idle, ..CpuResources::default() };
            LinuxResources { cpu: Some(cpu), ..LinuxResources::default() }
        };
        let by_file = |files: &[(&str, &str)]| {
            let files = files.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            LinuxResources { unified: files.collect(), ..LinuxResources::default() }
        };
        let check = |before: &str, resources: &LinuxResources, expected: Option<i64>| {
            let (_dir, cgroup) = cgroup(&[("cpu.idle", before), ("cpu.weight", "0\n")]);
            let whole = cgroup.completed(resources, &LinuxResources::default()).unwrap();
            assert_eq!(whole.cpu.and_then(|cpu| cpu.idle), expected, "{before:?} {resources:?}");
        };
        check("1\n", &shares(512, None), Some(0));
        check("0\n", &shares(512, None), None);
        check("1\n", &shares(0, None), None);
        check("1\n", &shares(512, Some(1)), Some(1));
        check("1\n", &by_file(&[("cpu.weight", "8")]), Some(0));
        check("1\n", &by_file(&[("cpu.weight.nice", "8")]), Some(0));
        check("1\n", &by_file(&[("cpu.weight", "8"), ("cpu.idle", "1")]), None);
        check("1\n", &by_file(&[("cpu.max", "max")]), None);

        // An idle cgroup has no weight, however it is set.
        for idle in [shares(512, Some(1)), by_file(&[("cpu.idle", "1"), ("cpu.weight", "8")])] {
            let (dir, cgroup) = cgroup(&[("cpu.idle", "0\n"), ("cpu.weight", "100\n")]);
            cgroup.update(&idle).unwrap();
            let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
            assert_eq!([read("cpu.idle"), read("cpu.weight")], ["1\n", "100\n"]);
        }
    }

    #[test]
    fn memory_and_the_total_with_swap_complete_each_other() {
        let check = |max: &str, swap_max: &str, given: (i64, i64), expected: (Option<i64>, Option<i64>)| {
            let (_dir, cgroup) = cgroup(&[("memory.max", max), ("memory.swap.max", swap_max)]);
            let whole = cgroup.completed(&memory(given.0, given.1), &LinuxResources::default()).unwrap();
            let whole = whole.memory.unwrap();
            assert_eq!((whole.limit, whole.swap), expected, "{max} {swap_max} {given:?}");
        };
        check("64\n", "0\n", (32, 0), (Some(32), Some(64)));
        check("64\n", "32\n", (80, 0), (Some(80), Some(96)));
        check("64\n", "max\n", (32, 0), (Some(32), None));
        check("max\n", "32\n", (32, 0), (Some(32), None));
        check("64\n", "0\n", (-1, 0), (Some(-1), None));
        check("64\n", "max\n", (0, 96), (Some(64), Some(96)));
        check("64\n", "0\n", (0, -1), (None, Some(-1)));
        check("max\n", "max\n", (0, 96), (None, Some(96)));
        check("64\n", "0\n", (32, 48), (Some(32), Some(48)));
    }

    #[test]
    fn swap_limited_by_file_name_is_not_added_to_memory() {
        let (_dir, cgroup) = cgroup(&[("memory.max", "64\n"), ("memory.swap.max", "0\n")]);
        let by_file = BTreeMap::from([(SWAP_MAX.to_owned(), "0".to_owned())]);
        let made_with = LinuxResources { unified: by_file, ..LinuxResources::default() };
        let whole = cgroup.completed(&memory(128, 0), &made_with).unwrap();
        assert_eq!(whole, memory(128, 0));
    }

    #[test]
    fn a_change_that_fails_leaves_every_file_as_it_was() {
        let files = [("cpu.weight", "200\n"), ("cpu.max", "900000 900000\n"), ("memory.max", "64\n")];
        let (dir, cgroup) = cgroup(&files);
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        let cpu = CpuResources {
            shares: Some(1024),
            quota: Some(100_000),
            period: Some(100_000),
            mems: "0".into(),
            ..CpuResources::default()
        };
        let resources = LinuxResources { cpu: Some(cpu), ..memory(32, 0) };
        cgroup.update(&resources).unwrap_err();
        for (name, text) in files {
            assert_eq!(read(name), text, "{name}");
        }
        fs::write(dir.path().join("cpuset.mems"), "1\n").unwrap();
        cgroup.update(&resources).unwrap();
        let written = files.map(|(name, _)| read(name));
        assert_eq!(
            written,
            ["100\n", "100000 100000\n", "32\n"],
            "they are what is written if nothing fails"
        );
    }

    #[test]
    fn devices_get_back_their_own_lines() {
        let check = |name: &str, value: &str, before: &str, expected: &[&str]| {
            let written = Written { name: name.into(), value: value.into(), before: before.into() };
            assert_eq!(written.lines_back(), expected, "{name} {value:?}");
        };
        let before = "8:0 rbps=1 wbps=max riops=max wiops=max\n8:16 rbps=2 wbps=3 riops=4 wiops=5";
        check("io.max", "8:16 rbps=9", before, &["8:16 rbps=2 wbps=3 riops=4 wiops=5"]);
        check("io.max", "8:1 rbps=9", before, &["8:1 rbps=max wbps=max riops=max wiops=max"]);
        check("io.weight", "50", "default 100\n8:0 200", &["default 100", "8:0 200"]);
        check("io.weight", "8:0 50", "default 100", &["8:0 default"]);
        check("blkio.throttle.read_bps_device", "8:0 50", "", &["8:0 0"]);
        check("net_prio.ifpriomap", "eth0 5", "lo 0\neth0 1", &["eth0 1"]);
        check("rdma.max", "a hca_handle=1", "a hca_handle=max\nb hca_handle=2", &["a hca_handle=max"]);
        check("cpu.max", "1000 2000", "max 100000", &["max 100000"]);
        check("cpuset.cpus", "0", "", &[""]);
        check("memory.oom_control", "1", "oom_kill_disable 0\nunder_oom 0\noom_kill 0", &["0"]);
    }
}
