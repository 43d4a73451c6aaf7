//! Resource usage of a cgroup, in one form for both versions.
//!
//! Numbers that only one version has are 0 in the other. "No limit" is [`u64::MAX`] in version 2, and in version 1 the
//! large number that the kernel shows instead.

use types::Result;

use super::pressure::{self, Pressure};
use super::{Cgroup, Member, Version, file};

/// Counters at one moment. Missing controllers read as zero.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Whether the numbers come from controllers of version 2.
    pub is_v2: bool,
    pub cpu: Cpu,
    pub memory: Memory,
    pub pids: Pids,
    pub io: Io,
    pub hugetlb: Vec<Hugetlb>,
    pub rdma: Rdma,
}

/// Nanoseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cpu {
    pub usage_ns: u64,
    pub user_ns: u64,
    pub system_ns: u64,
    /// User and system time of each processor. Version 1 only.
    pub per_cpu_ns: Vec<(u64, u64)>,
    pub throttling: Throttling,
    pub pressure: Option<Pressure>,
}

/// Throttling by the CPU quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttling {
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_ns: u64,
    /// How often, and how long, more than the quota was used. Version 2 only.
    pub bursts: u64,
    pub burst_ns: u64,
}

/// A quantity with a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limited {
    pub usage: u64,
    pub limit: u64,
    /// The highest usage so far.
    pub peak: u64,
    /// How often the limit was hit.
    pub failures: u64,
}

/// Bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    pub usage: Limited,
    /// Version 1: memory and swap together. Version 2: swap alone.
    pub swap: Limited,
    /// Version 1 only.
    pub kernel: Limited,
    /// Version 1 only.
    pub kernel_tcp: Limited,
    /// `memory.stat`, by the kernel's names.
    pub stat: Counters,
    pub events: MemoryEvents,
    /// Version 1: processes wait for memory instead of being killed.
    pub is_oom_kill_disabled: bool,
    /// Version 1: the cgroup is out of memory at this moment.
    pub is_under_oom: bool,
    pub pressure: Option<Pressure>,
}

impl Memory {
    /// Usage as Docker shows it: without the part of the page cache that is easily reclaimed.
    pub fn working_set(&self, is_v2: bool) -> u64 {
        let inactive = if is_v2 { "inactive_file" } else { "total_inactive_file" };
        self.usage.usage.saturating_sub(self.stat.get(inactive))
    }
}

/// Version 2's `memory.events`; of version 1 only `oom_kill`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryEvents {
    pub low: u64,
    pub high: u64,
    pub max: u64,
    pub oom: u64,
    pub oom_kill: u64,
    /// How often all its processes were killed at once.
    pub oom_group_kill: u64,
}

/// Number of processes and threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pids {
    pub current: u64,
    /// 0 means no limit, as in containerd's messages.
    pub limit: u64,
}

/// Transfers of block devices.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Io {
    pub bytes: Vec<IoEntry>,
    pub operations: Vec<IoEntry>,
    pub pressure: Option<Pressure>,
}

/// One counter of a block device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IoEntry {
    pub major: u64,
    pub minor: u64,
    /// `Read`, `Write`, and with version 1 also `Sync`, `Async`, `Discard`, `Total`.
    pub operation: String,
    pub value: u64,
}

impl Io {
    /// Sum over devices, for an operation.
    pub fn total(entries: &[IoEntry], operation: &str) -> u64 {
        let of_operation = entries.iter().filter(|entry| entry.operation.eq_ignore_ascii_case(operation));
        of_operation.map(|entry| entry.value).sum()
    }
}

/// Usage of huge pages of one size, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hugetlb {
    /// `2MB`
    pub page_size: String,
    pub usage: Limited,
}

/// Usage and limits of RDMA devices (rdma.rst).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rdma {
    pub current: Vec<RdmaEntry>,
    pub limit: Vec<RdmaEntry>,
}

/// The resources of one RDMA device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RdmaEntry {
    pub device: String,
    pub hca_handles: u32,
    pub hca_objects: u32,
}

/// Allowed processors and memory nodes, and flags (cpusets.rst of version 1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpuset {
    pub cpus: Vec<u16>,
    pub mems: Vec<u16>,
    /// Version 1 only: `cpu_exclusive`, `memory_migrate` and so on.
    pub flags: Counters,
}

/// The counters of a file `name value` per line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(Vec<(String, u64)>);

impl Counters {
    fn parse(text: &str) -> Counters {
        let pairs = text.lines().filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        });
        pairs.collect()
    }

    /// The counter of this name; 0 if the kernel has none.
    pub fn get(&self, name: &str) -> u64 {
        self.0.iter().find(|(has, _)| has == name).map_or(0, |(_, value)| *value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }
}

impl FromIterator<(String, u64)> for Counters {
    fn from_iter<T: IntoIterator<Item = (String, u64)>>(pairs: T) -> Counters {
        Counters(pairs.into_iter().collect())
    }
}

pub(super) fn read(cgroup: &Cgroup) -> Result<Stats> {
    match (cgroup.version(), cgroup.unified()) {
        (Version::V2, Some(member)) => read_v2(member),
        _ => read_v1(cgroup),
    }
}

pub(super) fn cpuset(cgroup: &Cgroup) -> Result<Cpuset> {
    let in_v1 = cgroup.controller("cpuset");
    let Some(member) = in_v1.or_else(|| cgroup.unified()) else { return Ok(Cpuset::default()) };
    let (suffix, flags) = if in_v1.is_some() { ("", &CPUSET_FLAGS[..]) } else { (".effective", &[][..]) };
    let list = |name: &str| -> Result<Vec<u16>> {
        let text = member.read_optional(&format!("cpuset.{name}{suffix}"))?.unwrap_or_default();
        let numbers = stdx::ranges(&text).into_iter().flatten().flatten();
        Ok(numbers.map_while(|number| u16::try_from(number).ok()).collect())
    };
    let mut read = Vec::with_capacity(flags.len());
    for name in flags {
        read.push(((*name).to_owned(), member.read_number(&format!("cpuset.{name}"))?));
    }
    Ok(Cpuset { cpus: list("cpus")?, mems: list("mems")?, flags: Counters(read) })
}

const CPUSET_FLAGS: [&str; 9] = [
    "cpu_exclusive",
    "mem_exclusive",
    "mem_hardwall",
    "memory_migrate",
    "memory_pressure",
    "memory_spread_page",
    "memory_spread_slab",
    "sched_load_balance",
    "sched_relax_domain_level",
];

fn counters(member: &Member, name: &str) -> Result<Counters> {
    Ok(member.read_optional(name)?.map(|text| Counters::parse(&text)).unwrap_or_default())
}

// --- version 1 ---

fn read_v1(cgroup: &Cgroup) -> Result<Stats> {
    let mut stats = Stats::default();
    if let Some(member) = cgroup.controller("cpuacct") {
        read_cpuacct(member, &mut stats.cpu)?;
    }
    if let Some(member) = cgroup.controller("cpu") {
        let stat = counters(member, "cpu.stat")?;
        stats.cpu.throttling = Throttling {
            periods: stat.get("nr_periods"),
            throttled_periods: stat.get("nr_throttled"),
            throttled_ns: stat.get("throttled_time"),
            ..Throttling::default()
        };
    }
    if let Some(member) = cgroup.controller("memory") {
        stats.memory = memory_v1(member)?;
    }
    if let Some(member) = cgroup.controller("pids") {
        stats.pids = pids(member)?;
    }
    if let Some(member) = cgroup.controller("blkio") {
        stats.io = io_v1(member)?;
    }
    if let Some(member) = cgroup.controller("hugetlb") {
        stats.hugetlb =
            hugetlb(member, ["usage_in_bytes", "limit_in_bytes", "max_usage_in_bytes", "failcnt"])?;
    } else if let Some(unified) = cgroup.unified() {
        stats.hugetlb = hugetlb(unified, ["current", "max", "", "events"])?;
    }
    if let Some(member) = cgroup.controller("rdma") {
        stats.rdma = rdma(member)?;
    }
    Ok(stats)
}

/// `cpuacct.stat` counts in ticks (`USER_HZ`), a hundredth of a second on every supported architecture.
const TICK_NS: u64 = 10_000_000;

fn read_cpuacct(member: &Member, cpu: &mut Cpu) -> Result<()> {
    let stat = counters(member, "cpuacct.stat")?;
    cpu.usage_ns = member.read_number("cpuacct.usage")?;
    cpu.user_ns = stat.get("user") * TICK_NS;
    cpu.system_ns = stat.get("system") * TICK_NS;
    cpu.per_cpu_ns = per_cpu(&member.read_optional("cpuacct.usage_all")?.unwrap_or_default());
    Ok(())
}

/// Lines `1 200 300`: processor, user, system. The first line is the heading.
fn per_cpu(text: &str) -> Vec<(u64, u64)> {
    let pair = |line: &str| {
        let mut numbers = line.split_whitespace().skip(1).map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    };
    text.lines().filter_map(pair).collect()
}

fn memory_v1(member: &Member) -> Result<Memory> {
    let control = counters(member, "memory.oom_control")?;
    Ok(Memory {
        usage: limited_v1(member, "memory")?,
        swap: limited_v1(member, "memory.memsw")?,
        kernel: limited_v1(member, "memory.kmem")?,
        kernel_tcp: limited_v1(member, "memory.kmem.tcp")?,
        stat: counters(member, "memory.stat")?,
        events: MemoryEvents { oom_kill: control.get("oom_kill"), ..MemoryEvents::default() },
        is_oom_kill_disabled: control.get("oom_kill_disable") != 0,
        is_under_oom: control.get("under_oom") != 0,
        pressure: None,
    })
}

fn limited_v1(member: &Member, prefix: &str) -> Result<Limited> {
    Ok(Limited {
        usage: member.read_number(&format!("{prefix}.usage_in_bytes"))?,
        limit: member.read_number(&format!("{prefix}.limit_in_bytes"))?,
        peak: member.read_number(&format!("{prefix}.max_usage_in_bytes"))?,
        failures: member.read_number(&format!("{prefix}.failcnt"))?,
    })
}

fn pids(member: &Member) -> Result<Pids> {
    let limit = member.read_number("pids.max")?;
    Ok(Pids {
        current: member.read_number("pids.current")?,
        limit: if limit == u64::MAX { 0 } else { limit },
    })
}

/// The counters of the I/O scheduler in use (BFQ, CFQ), or else of the throttle layer, which every transfer passes.
fn io_v1(member: &Member) -> Result<Io> {
    for prefix in ["blkio.bfq.io", "blkio.io", "blkio.throttle.io"] {
        let read = |what: &str| -> Result<Vec<IoEntry>> {
            let text = member.read_optional(&format!("{prefix}_{what}_recursive"))?;
            Ok(text.map(|text| io_entries(&text)).unwrap_or_default())
        };
        let bytes = read("service_bytes")?;
        if !bytes.is_empty() {
            return Ok(Io { bytes, operations: read("serviced")?, pressure: None });
        }
    }
    Ok(Io::default())
}

/// Lines `8:0 Read 4096`; the last, `Total 4096`, is over all devices and is left out.
fn io_entries(text: &str) -> Vec<IoEntry> {
    let entry = |line: &str| {
        let mut parts = line.split_whitespace();
        let (major, minor) = parts.next()?.split_once(':')?;
        Some(IoEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            operation: parts.next()?.to_owned(),
            value: parts.next()?.parse().ok()?,
        })
    };
    text.lines().filter_map(entry).collect()
}

// --- version 2 ---

fn read_v2(member: &Member) -> Result<Stats> {
    let cpu = counters(member, "cpu.stat")?;
    Ok(Stats {
        is_v2: true,
        cpu: Cpu {
            usage_ns: cpu.get("usage_usec") * 1000,
            user_ns: cpu.get("user_usec") * 1000,
            system_ns: cpu.get("system_usec") * 1000,
            per_cpu_ns: Vec::new(),
            throttling: Throttling {
                periods: cpu.get("nr_periods"),
                throttled_periods: cpu.get("nr_throttled"),
                throttled_ns: cpu.get("throttled_usec") * 1000,
                bursts: cpu.get("nr_bursts"),
                burst_ns: cpu.get("burst_usec") * 1000,
            },
            pressure: pressure::read(member, "cpu")?,
        },
        memory: memory_v2(member)?,
        pids: pids(member)?,
        io: Io {
            pressure: pressure::read(member, "io")?,
            ..member.read_optional("io.stat")?.map(|text| io_v2(&text)).unwrap_or_default()
        },
        hugetlb: hugetlb(member, ["current", "max", "", "events"])?,
        rdma: rdma(member)?,
    })
}

fn memory_v2(member: &Member) -> Result<Memory> {
    let events = counters(member, "memory.events")?;
    let limited = |prefix: &str, failures| -> Result<Limited> {
        Ok(Limited {
            usage: member.read_number(&format!("{prefix}.current"))?,
            limit: member.read_number(&format!("{prefix}.max"))?,
            peak: member.read_number(&format!("{prefix}.peak"))?,
            failures,
        })
    };
    Ok(Memory {
        usage: limited("memory", events.get("max"))?,
        swap: limited("memory.swap", 0)?,
        stat: counters(member, "memory.stat")?,
        events: MemoryEvents {
            low: events.get("low"),
            high: events.get("high"),
            max: events.get("max"),
            oom: events.get("oom"),
            oom_kill: events.get("oom_kill"),
            oom_group_kill: events.get("oom_group_kill"),
        },
        pressure: pressure::read(member, "memory")?,
        ..Memory::default()
    })
}

/// Lines `8:0 rbytes=1 wbytes=2 rios=3 wios=4 …`.
fn io_v2(text: &str) -> Io {
    let mut io = Io::default();
    for line in text.lines() {
        let mut parts = line.split_whitespace();
        let Some((major, minor)) = parts.next().and_then(|device| device.split_once(':')) else { continue };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
        for (key, value) in parts.filter_map(|part| part.split_once('=')) {
            let (list, operation) = match key {
                "rbytes" => (&mut io.bytes, "Read"),
                "wbytes" => (&mut io.bytes, "Write"),
                "rios" => (&mut io.operations, "Read"),
                "wios" => (&mut io.operations, "Write"),
                _ => continue,
            };
            let value = value.parse().unwrap_or(0);
            list.push(IoEntry { major, minor, operation: operation.to_owned(), value });
        }
    }
    io
}

// --- both ---

/// Sizes of huge pages, by the files `hugetlb.<size>.<usage>` of the directory.
fn hugetlb(member: &Member, [usage, limit, peak, failures]: [&str; 4]) -> Result<Vec<Hugetlb>> {
    let Ok(entries) = std::fs::read_dir(&member.path) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let size = name.to_str().and_then(|name| {
            let size = name.strip_prefix("hugetlb.")?.strip_suffix(usage)?.strip_suffix('.')?;
            (!size.contains('.')).then(|| size.to_owned())
        });
        let Some(page_size) = size else { continue };
        let read = |what: &str| match what {
            "" => Ok(0),
            _ => member.read_number(&format!("hugetlb.{page_size}.{what}")),
        };
        let usage = Limited {
            usage: read(usage)?,
            limit: read(limit)?,
            peak: read(peak)?,
            failures: match failures {
                // A file of counters, like all events of version 2.
                "events" => counters(member, &format!("hugetlb.{page_size}.events"))?.get("max"),
                _ => read(failures)?,
            },
        };
        found.push(Hugetlb { page_size, usage });
    }
    found.sort_by(|a, b| a.page_size.cmp(&b.page_size));
    Ok(found)
}

fn rdma(member: &Member) -> Result<Rdma> {
    let entries = |name: &str| -> Result<Vec<RdmaEntry>> {
        Ok(member.read_optional(name)?.map(|text| rdma_entries(&text)).unwrap_or_default())
    };
    Ok(Rdma { current: entries("rdma.current")?, limit: entries("rdma.max")? })
}

/// Lines `mlx5_0 hca_handle=2 hca_object=max`.
fn rdma_entries(text: &str) -> Vec<RdmaEntry> {
    let entry = |line: &str| {
        let mut parts = line.split_whitespace();
        let mut entry = RdmaEntry { device: parts.next()?.to_owned(), ..RdmaEntry::default() };
        for (key, value) in parts.filter_map(|part| part.split_once('=')) {
            let value = u32::try_from(file::number(value)).unwrap_or(u32::MAX);
            match key {
                "hca_handle" => entry.hca_handles = value,
                "hca_object" => entry.hca_objects = value,
                _ => {}
            }
        }
        Some(entry)
    };
    text.lines().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_of_version_1_has_an_entry_per_operation() {
        let entries = io_entries("8:0 Read 10\n8:0 Write 5\n8:16 Read 1\nTotal 16\n");
        assert_eq!(entries.len(), 3);
        assert_eq!(Io::total(&entries, "read"), 11);
    }

    #[test]
    fn io_of_version_2_is_the_same_shape() {
        let io = io_v2("254:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n253:1 \n");
        assert_eq!(Io::total(&io.bytes, "Read"), 4096);
        assert_eq!(Io::total(&io.operations, "Write"), 2);
    }

    #[test]
    fn processors_are_counted_by_user_and_system() {
        assert_eq!(per_cpu("cpu user system\n0 10 20\n1 0 5\n"), [(10, 20), (0, 5)]);
    }

    #[test]
    fn rdma_without_limit_is_the_greatest_number() {
        let entries = rdma_entries("mlx4_0 hca_handle=2 hca_object=max");
        assert_eq!((entries[0].hca_handles, entries[0].hca_objects), (2, u32::MAX));
    }
}
