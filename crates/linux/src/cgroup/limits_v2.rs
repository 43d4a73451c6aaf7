//! Limits as files of version 2 (Documentation/admin-guide/cgroup-v2.rst).
//!
//! The specification uses the units of version 1. Values with another scale here are converted by the formulas of runc
//! and crun, so that a container gets the same share under any of them.

use std::io;

use rustix::io::Errno;
use types::spec::runtime::{
    BlockIoResources, CpuResources, HugepageLimit, LinuxResources, MemoryResources, NetworkResources,
    ThrottleDevice,
};
use types::{Context as _, Error, Result};

use super::limits_v1::{pids_max, rdma_line, refuse_below_usage};
use super::{Cgroup, Member, file};

pub(super) fn apply(cgroup: &Cgroup, resources: &LinuxResources) -> Result<()> {
    let Some(member) = cgroup.unified() else {
        // A caller without privileges stays in its own cgroup.
        return if wants_nothing(resources) { Ok(()) } else { Err(not_delegated()) };
    };
    let is_idle = is_idle(resources);
    if let Some(cpu) = &resources.cpu {
        apply_cpu(member, cpu, is_idle)?;
        apply_cpuset(member, cpu)?;
    }
    if let Some(memory) = &resources.memory {
        apply_memory(member, memory)?;
    }
    if let Some(limit) = resources.pids.as_ref().and_then(|pids| pids.limit) {
        set(member, "pids.max", &pids_max(limit))?;
    }
    if let Some(block_io) = &resources.block_io {
        apply_block_io(member, block_io)?;
    }
    if resources.network.as_ref().is_some_and(|network| *network != NetworkResources::default()) {
        let words = "network classes and priorities exist in cgroup version 1 only; use a packet filter";
        return Err(Error::failed_precondition(words));
    }
    for limit in &resources.hugepage_limits {
        apply_hugepages(member, limit)?;
    }
    for (device, limit) in &resources.rdma {
        set(member, "rdma.max", &rdma_line(device, limit))?;
    }
    for (name, value) in &resources.unified {
        if is_idle && WEIGHTS.contains(&name.as_str()) {
            continue;
        }
        apply_unified(member, name, value)?;
    }
    Ok(())
}

/// The weight files, which an idle cgroup refuses.
pub(super) const WEIGHTS: [&str; 2] = ["cpu.weight", "cpu.weight.nice"];

/// Whether a cgroup is to be idle, whatever its weight.
pub(super) fn is_idle(resources: &LinuxResources) -> bool {
    resources.cpu.as_ref().is_some_and(|cpu| cpu.idle == Some(1))
        || resources.unified.get("cpu.idle").is_some_and(|value| value.trim() == "1")
}

fn wants_nothing(resources: &LinuxResources) -> bool {
    let devices = resources.devices.clone();
    *resources == LinuxResources { devices, ..LinuxResources::default() }
}

fn not_delegated() -> Error {
    Error::permission_denied("no cgroup was delegated to this user, so nothing can be limited")
}

/// Writes a file of a controller; the error names a missing controller.
fn set(member: &Member, name: &str, value: &str) -> Result<()> {
    match member.try_write(name, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let controller = name.split('.').next().unwrap_or(name);
            let available = member.read("cgroup.controllers").unwrap_or_default();
            let message = if available.split_whitespace().any(|has| has == controller) {
                format!("{}: this kernel has no such file", member.cannot_write(name, value))
            } else {
                format!("cgroup controller {controller} is not available, so {name} cannot be {value:?}")
            };
            Err(Error::failed_precondition(message))
        }
        result => result.context(|| member.cannot_write(name, value)),
    }
}

fn apply_cpu(member: &Member, cpu: &CpuResources, is_idle: bool) -> Result<()> {
    if cpu.realtime_runtime.is_some_and(|value| value != 0)
        || cpu.realtime_period.is_some_and(|value| value != 0)
    {
        return Err(Error::failed_precondition("realtime CPU budgets exist in cgroup version 1 only"));
    }
    if let Some(idle) = cpu.idle {
        set(member, "cpu.idle", &idle.to_string())?;
    }
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0 && !is_idle) {
        set(member, "cpu.weight", &weight_of_shares(shares).to_string())?;
    }
    apply_quota(member, cpu)
}

/// Burst may never exceed the quota, so their order depends on the direction.
fn apply_quota(member: &Member, cpu: &CpuResources) -> Result<()> {
    let burst = cpu.burst.map(|burst| burst.to_string());
    let mut burst_later = false;
    if let Some(burst) = &burst {
        burst_later = match member.try_write("cpu.max.burst", burst) {
            Ok(()) => false,
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => true,
            Err(error) => return Err(error).context(|| member.cannot_write("cpu.max.burst", burst)),
        };
    }
    let (quota, period) = (cpu.quota.unwrap_or(0), cpu.period.unwrap_or(0));
    if quota != 0 || period != 0 {
        let current = match (quota, period) {
            (0, _) | (_, 0) => member.read_optional("cpu.max")?.unwrap_or_default(),
            _ => String::new(),
        };
        set(member, "cpu.max", &cpu_max(quota, period, &current))?;
    }
    match burst {
        Some(burst) if burst_later => set(member, "cpu.max.burst", &burst),
        _ => Ok(()),
    }
}

/// Shares (2..=262144, default 1024) as a weight (1..=10000, default 100): a curve through both ends and both defaults.
pub(super) fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            #[expect(clippy::cast_precision_loss, reason = "shares are below 2^18 here")]
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "between 1 and 10000"
            )]
            let weight = 10_f64.powf(exponent).ceil() as u64;
            weight
        }
    }
}

fn apply_cpuset(member: &Member, cpu: &CpuResources) -> Result<()> {
    if !cpu.cpus.is_empty() {
        set(member, "cpuset.cpus", &cpu.cpus)?;
    }
    if !cpu.mems.is_empty() {
        set(member, "cpuset.mems", &cpu.mems)?;
    }
    Ok(())
}

fn apply_memory(member: &Member, memory: &MemoryResources) -> Result<()> {
    if let (Some(true), Some(limit)) = (memory.check_before_update, memory.limit) {
        refuse_below_usage(limit, member.read_number("memory.current")?)?;
    }
    if let Some(swap) = swap_max(memory)? {
        match set(member, "memory.swap.max", &swap) {
            // A kernel without swap accounting: there is no swap limit to set.
            Err(_) if !member.has_file("memory.swap.max") && member.has_file("memory.max") => {}
            result => result?,
        }
    }
    if let Some(limit) = memory.limit.filter(|limit| *limit != 0) {
        set(member, "memory.max", &or_max(limit))?;
    }
    match memory.reservation.filter(|reservation| *reservation != 0) {
        Some(reservation) => set(member, "memory.low", &or_max(reservation)),
        None => Ok(()),
    }
}

/// The limit of swap alone, from that of memory and swap together.
pub(super) fn swap_max(memory: &MemoryResources) -> Result<Option<String>> {
    let (limit, swap) = (memory.limit.unwrap_or(0), memory.swap.unwrap_or(0));
    match (limit, swap) {
        (-1, 0) | (_, -1) => Ok(Some("max".to_owned())),
        (_, 0) => Ok(None),
        (0 | -1, _) => Err(Error::invalid_argument(format!(
            "memory and swap together are limited to {swap} bytes, but memory is not limited"
        ))),
        (limit, swap) if swap < limit => Err(Error::invalid_argument(format!(
            "memory and swap together, {swap} bytes, are less than memory alone, {limit} bytes"
        ))),
        (limit, swap) => Ok(Some((swap - limit).to_string())),
    }
}

fn or_max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

fn apply_block_io(member: &Member, io: &BlockIoResources) -> Result<()> {
    if io
        .leaf_weight
        .into_iter()
        .chain(io.weight_device.iter().filter_map(|device| device.leaf_weight))
        .any(|weight| weight != 0)
    {
        let words =
            "weights of leaves (blockIO.leafWeight) exist in cgroup version 1 only; use blockIO.weight";
        return Err(Error::failed_precondition(words));
    }
    let has_bfq = member.has_file("io.bfq.weight");
    if let Some(weight) = io.weight.filter(|weight| *weight != 0) {
        if has_bfq {
            set(member, "io.bfq.weight", &weight.to_string())?;
        } else {
            set(member, "io.weight", &io_weight(weight).to_string())?;
        }
    }
    for device in &io.weight_device {
        if let Some(weight) = device.weight.filter(|weight| *weight != 0) {
            let (name, weight) = match has_bfq {
                true => ("io.bfq.weight", u64::from(weight)),
                false => ("io.weight", io_weight(weight)),
            };
            set(member, name, &format!("{}:{} {weight}", device.major, device.minor))?;
        }
    }
    let throttles: [(&str, &[ThrottleDevice]); 4] = [
        ("rbps", &io.throttle_read_bps_device),
        ("wbps", &io.throttle_write_bps_device),
        ("riops", &io.throttle_read_iops_device),
        ("wiops", &io.throttle_write_iops_device),
    ];
    for (key, devices) in throttles {
        for device in devices {
            let (major, minor) = (device.major, device.minor);
            let rate = if device.rate == 0 { "max".to_owned() } else { device.rate.to_string() };
            set(member, "io.max", &format!("{major}:{minor} {key}={rate}"))?;
        }
    }
    Ok(())
}

/// A weight of version 1 (10..=1000) as 1..=10000.
pub(super) fn io_weight(weight: u16) -> u64 {
    1 + u64::from(weight).saturating_sub(10) * 9999 / 990
}

pub(super) fn apply_hugepages(member: &Member, limit: &HugepageLimit) -> Result<()> {
    let (size, value) = (&limit.page_size, limit.limit.to_string());
    set(member, &format!("hugetlb.{size}.max"), &value)?;
    let reserved = format!("hugetlb.{size}.rsvd.max");
    match member.try_write(&reserved, &value) {
        Err(error) if !file::is_gone(&error) => Err(error).context(|| member.cannot_write(&reserved, &value)),
        _ => Ok(()),
    }
}

/// A limit by file name. Each line of the value is a write of its own.
fn apply_unified(member: &Member, name: &str, value: &str) -> Result<()> {
    let is_file_of_controller = name.contains('.') && !name.contains('/') && !name.starts_with('.');
    if !is_file_of_controller {
        return Err(Error::invalid_argument(format!("{name:?} is not the name of a cgroup file")));
    }
    value.lines().try_for_each(|line| set(member, name, line))
}

/// Quota and period share a file: the one that is not set keeps its value.
fn cpu_max(quota: i64, period: u64, current: &str) -> String {
    let (current_quota, current_period) = current.split_once(' ').unwrap_or(("max", "100000"));
    let quota = match quota {
        0 => current_quota.to_owned(),
        1.. => quota.to_string(),
        _ => "max".to_owned(),
    };
    match period {
        0 => format!("{quota} {current_period}"),
        _ => format!("{quota} {period}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unset_half_of_cpu_max_keeps_its_value() {
        assert_eq!(cpu_max(60_000, 0, "50000 200000"), "60000 200000");
        assert_eq!(cpu_max(0, 200_000, "60000 100000"), "60000 200000");
        assert_eq!(cpu_max(-1, 0, "60000 100000"), "max 100000");
        assert_eq!(cpu_max(60_000, 0, ""), "60000 100000");
        assert_eq!(cpu_max(60_000, 10_000, ""), "60000 10000");
    }

    #[test]
    fn shares_become_weights() {
        let pairs = [(0, 1), (2, 1), (1024, 100), (262_144, 10_000), (500_000, 10_000)];
        for (shares, weight) in pairs {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
        assert!(weight_of_shares(512) < 100 && weight_of_shares(512) > 40);
    }

    #[test]
    fn io_weights_keep_their_ends() {
        assert_eq!((io_weight(10), io_weight(1000)), (1, 10_000));
    }

    #[test]
    fn the_swap_limit_is_the_total_without_memory() {
        let swap = |limit, swap| {
            swap_max(&MemoryResources { limit: Some(limit), swap: Some(swap), ..MemoryResources::default() })
        };
        assert_eq!(swap(100, 300).unwrap().as_deref(), Some("200"));
        assert_eq!(swap(100, 100).unwrap().as_deref(), Some("0"));
        assert_eq!(swap(100, -1).unwrap().as_deref(), Some("max"));
        assert_eq!(swap(-1, 0).unwrap().as_deref(), Some("max"));
        assert_eq!(swap(100, 0).unwrap(), None);
        assert!(swap(100, 50).is_err());
        assert!(swap(0, 50).is_err());
    }

    #[test]
    fn no_pids_at_all_means_one() {
        assert_eq!([pids_max(0), pids_max(-1), pids_max(7)], ["1", "max", "7"]);
    }
}
