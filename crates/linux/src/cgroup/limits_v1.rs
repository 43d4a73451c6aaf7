//! Limits as files of version 1 (Documentation/admin-guide/cgroup-v1).

use std::io;

use rustix::io::Errno;
use types::spec::runtime::{
    BlockIoResources, CpuResources, HugepageLimit, LinuxResources, MemoryResources, NetworkResources,
    PidsResources, RdmaLimit, ThrottleDevice,
};
use types::{Context as _, Error, Result};

use super::{Cgroup, Member, file, limits_v2};

pub(super) fn apply(cgroup: &Cgroup, resources: &LinuxResources) -> Result<()> {
    if let Some((key, _)) = resources.unified.first_key_value() {
        return Err(Error::failed_precondition(format!(
            "invalid configuration: cgroup limit {key}: limits by file name are for hosts whose controllers are in version 2"
        )));
    }
    if let Some(cpu) = &resources.cpu {
        apply_cpu(cgroup, cpu)?;
        apply_cpuset(cgroup, cpu)?;
    }
    if let Some(memory) = &resources.memory {
        apply_memory(cgroup, memory)?;
    }
    if let Some(pids) = &resources.pids {
        apply_pids(cgroup, pids)?;
    }
    if let Some(block_io) = &resources.block_io {
        apply_block_io(cgroup, block_io)?;
    }
    if let Some(network) = &resources.network {
        apply_network(cgroup, network)?;
    }
    for limit in &resources.hugepage_limits {
        apply_hugepages(cgroup, limit)?;
    }
    for (device, limit) in &resources.rdma {
        set(cgroup, "rdma", "rdma.max", &rdma_line(device, limit))?;
    }
    Ok(())
}

/// Writes a file of a controller, which must be mounted.
fn set(cgroup: &Cgroup, controller: &str, name: &str, value: &str) -> Result<()> {
    member(cgroup, controller, name, value)?.write(name, value)
}

fn member<'a>(cgroup: &'a Cgroup, controller: &str, name: &str, value: &str) -> Result<&'a Member> {
    cgroup.controller(controller).ok_or_else(|| {
        Error::failed_precondition(format!(
            "cgroup controller {controller} is not mounted, so {name} cannot be {value}"
        ))
    })
}

fn apply_cpu(cgroup: &Cgroup, cpu: &CpuResources) -> Result<()> {
    let set = |name: &str, value: &str| set(cgroup, "cpu", name, value);
    // Realtime budgets come first: a cgroup without one takes no realtime process.
    let period = cpu.realtime_period.filter(|period| *period != 0);
    let set_period = || period.map_or(Ok(()), |period| set("cpu.rt_period_us", &period.to_string()));
    // A period below the current runtime is refused: then the runtime is set first.
    let early = set_period();
    if let Some(runtime) = cpu.realtime_runtime.filter(|runtime| *runtime != 0) {
        set("cpu.rt_runtime_us", &runtime.to_string())?;
        if early.is_err() {
            set_period()?;
        }
    } else {
        early?;
    }
    // An idle cgroup refuses shares: idle is cleared before they are set, and set afterwards.
    if cpu.idle == Some(0) {
        set("cpu.idle", "0")?;
    }
    // An idle cgroup has no shares, and refuses them.
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0 && cpu.idle != Some(1)) {
        set("cpu.shares", &shares.to_string())?;
    }
    apply_quota(cgroup, cpu)?;
    match cpu.idle {
        Some(idle) if idle != 0 => set("cpu.idle", &idle.to_string()),
        _ => Ok(()),
    }
}

/// The kernel checks quota, period and burst against each other at each write, so a smaller period may
/// have to wait for the smaller quota.
fn apply_quota(cgroup: &Cgroup, cpu: &CpuResources) -> Result<()> {
    let quota = cpu.quota.filter(|quota| *quota != 0).map(|quota| quota.to_string());
    let period = cpu.period.filter(|period| *period != 0).map(|period| period.to_string());
    let burst = cpu.burst.map(|burst| burst.to_string());
    let wanted = [("cpu.cfs_period_us", period), ("cpu.cfs_quota_us", quota), ("cpu.cfs_burst_us", burst)];
    let mut later = Vec::new();
    for (name, value) in &wanted {
        let Some(value) = value else { continue };
        let member = member(cgroup, "cpu", name, value)?;
        match member.try_write(name, value) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                later.push((member, name, value));
            }
            Err(error) => return Err(error).context(|| member.cannot_write(name, value)),
        }
    }
    later.into_iter().try_for_each(|(member, name, value)| member.write(name, value))
}

fn apply_cpuset(cgroup: &Cgroup, cpu: &CpuResources) -> Result<()> {
    if !cpu.cpus.is_empty() {
        set(cgroup, "cpuset", "cpuset.cpus", &cpu.cpus)?;
    }
    if !cpu.mems.is_empty() {
        set(cgroup, "cpuset", "cpuset.mems", &cpu.mems)?;
    }
    Ok(())
}

const LIMIT: &str = "memory.limit_in_bytes";
/// The limit of memory and swap together; never below that of memory alone.
const LIMIT_WITH_SWAP: &str = "memory.memsw.limit_in_bytes";

fn apply_memory(cgroup: &Cgroup, memory: &MemoryResources) -> Result<()> {
    let set = |name: &str, value: &str| set(cgroup, "memory", name, value);
    check_usage(cgroup, memory)?;
    apply_memory_and_swap(cgroup, memory)?;
    if let Some(reservation) = memory.reservation.filter(|reservation| *reservation != 0) {
        set("memory.soft_limit_in_bytes", &reservation.to_string())?;
    }
    if memory.disable_oom_killer == Some(true) {
        set("memory.oom_control", "1")?;
    }
    match memory.swappiness {
        Some(swappiness) if swappiness > 100 && swappiness != u64::MAX => {
            Err(Error::invalid_argument(format!("memory swappiness {swappiness} is not between 0 and 100")))
        }
        Some(swappiness) if swappiness != u64::MAX => set("memory.swappiness", &swappiness.to_string()),
        _ => Ok(()),
    }
}

fn check_usage(cgroup: &Cgroup, memory: &MemoryResources) -> Result<()> {
    let (Some(true), Some(limit)) = (memory.check_before_update, memory.limit) else { return Ok(()) };
    let member = member(cgroup, "memory", LIMIT, "checked")?;
    refuse_below_usage(limit, member.read_number("memory.usage_in_bytes")?)
}

/// For both versions: a limit below the usage would kill at once.
pub(super) fn refuse_below_usage(limit: i64, usage: u64) -> Result<()> {
    match u64::try_from(limit) {
        Ok(limit) if limit > 0 && limit < usage => Err(Error::failed_precondition(format!(
            "memory limit {limit} is below what is in use, {usage} bytes"
        ))),
        _ => Ok(()),
    }
}

fn apply_memory_and_swap(cgroup: &Cgroup, memory: &MemoryResources) -> Result<()> {
    let limit = memory.limit.filter(|limit| *limit != 0);
    // Unlimited memory means unlimited swap, unless set.
    let swap = memory.swap.filter(|swap| *swap != 0).or(if limit == Some(-1) { Some(-1) } else { None });
    let Some(limit) = limit else {
        return match swap {
            Some(swap) => set_swap(cgroup, memory, swap),
            None => Ok(()),
        };
    };
    let Some(swap) = swap else { return set_limit(cgroup, limit) };
    let current = member(cgroup, "memory", LIMIT, &limit.to_string())?.read_number(LIMIT_WITH_SWAP)?;
    let grows = swap == -1 || u64::try_from(swap).is_ok_and(|swap| swap > current);
    // To raise, the outer limit is set first; to lower, the inner.
    if grows {
        set_swap(cgroup, memory, swap)?;
        set_limit(cgroup, limit)
    } else {
        set_limit(cgroup, limit)?;
        set_swap(cgroup, memory, swap)
    }
}

fn set_limit(cgroup: &Cgroup, limit: i64) -> Result<()> {
    let value = limit.to_string();
    let member = member(cgroup, "memory", LIMIT, &value)?;
    member.try_write(LIMIT, &value).map_err(|error| {
        let message = member.cannot_write(LIMIT, &value);
        if error.raw_os_error() != Some(Errno::BUSY.raw_os_error()) {
            return Error::new(error.kind().into(), message).with_source(error);
        }
        let usage = member.read("memory.usage_in_bytes").unwrap_or_default();
        Error::failed_precondition(format!("{message}: {usage} bytes are in use")).with_source(error)
    })
}

fn set_swap(cgroup: &Cgroup, memory: &MemoryResources, swap: i64) -> Result<()> {
    let value = swap.to_string();
    let member = member(cgroup, "memory", LIMIT_WITH_SWAP, &value)?;
    // A kernel without swap accounting has no such file. Then memory alone is the whole limit.
    if !member.has_file(LIMIT_WITH_SWAP) && (swap == -1 || memory.limit.is_some()) {
        return Ok(());
    }
    member.write(LIMIT_WITH_SWAP, &value)
}

fn apply_pids(cgroup: &Cgroup, pids: &PidsResources) -> Result<()> {
    match pids.limit {
        Some(limit) => set(cgroup, "pids", "pids.max", &pids_max(limit)),
        None => Ok(()),
    }
}

/// 0 would keep the first process out; it is taken as 1.
pub(super) fn pids_max(limit: i64) -> String {
    match limit {
        0 => "1".to_owned(),
        limit if limit < 0 => "max".to_owned(),
        limit => limit.to_string(),
    }
}

fn apply_block_io(cgroup: &Cgroup, io: &BlockIoResources) -> Result<()> {
    let set = |name: &str, value: &str| set(cgroup, "blkio", name, value);
    let weights = if cgroup.controller("blkio").is_some_and(|member| member.has_file("blkio.weight")) {
        ("blkio.weight", "blkio.weight_device")
    } else {
        ("blkio.bfq.weight", "blkio.bfq.weight_device")
    };
    if let Some(weight) = io.weight.filter(|weight| *weight != 0) {
        set(weights.0, &weight.to_string())?;
    }
    if let Some(weight) = io.leaf_weight.filter(|weight| *weight != 0) {
        set("blkio.leaf_weight", &weight.to_string())?;
    }
    for device in &io.weight_device {
        let (major, minor) = (device.major, device.minor);
        if let Some(weight) = device.weight.filter(|weight| *weight != 0) {
            set(weights.1, &format!("{major}:{minor} {weight}"))?;
        }
        if let Some(weight) = device.leaf_weight.filter(|weight| *weight != 0) {
            set("blkio.leaf_weight_device", &format!("{major}:{minor} {weight}"))?;
        }
    }
    let throttles: [(&str, &[ThrottleDevice]); 4] = [
        ("blkio.throttle.read_bps_device", &io.throttle_read_bps_device),
        ("blkio.throttle.write_bps_device", &io.throttle_write_bps_device),
        ("blkio.throttle.read_iops_device", &io.throttle_read_iops_device),
        ("blkio.throttle.write_iops_device", &io.throttle_write_iops_device),
    ];
    for (name, devices) in throttles {
        for device in devices {
            set(name, &format!("{}:{} {}", device.major, device.minor, device.rate))?;
        }
    }
    Ok(())
}

fn apply_network(cgroup: &Cgroup, network: &NetworkResources) -> Result<()> {
    if let Some(class) = network.class_id.filter(|class| *class != 0) {
        set(cgroup, "net_cls", "net_cls.classid", &class.to_string())?;
    }
    for interface in &network.priorities {
        let line = format!("{} {}", interface.name, interface.priority);
        set(cgroup, "net_prio", "net_prio.ifpriomap", &line)?;
    }
    Ok(())
}

fn apply_hugepages(cgroup: &Cgroup, limit: &HugepageLimit) -> Result<()> {
    // The controller may be in version 2 on a hybrid host.
    if let (None, Some(unified)) = (cgroup.controller("hugetlb"), cgroup.unified()) {
        return limits_v2::apply_hugepages(unified, limit);
    }
    let (size, value) = (&limit.page_size, limit.limit.to_string());
    set(cgroup, "hugetlb", &format!("hugetlb.{size}.limit_in_bytes"), &value)?;
    // Reserved pages are accounted apart, by newer kernels only.
    let reserved = format!("hugetlb.{size}.rsvd.limit_in_bytes");
    match cgroup.controller("hugetlb").map(|member| (member, member.try_write(&reserved, &value))) {
        Some((member, Err(error))) if !is_missing(&error) => {
            Err(error).context(|| member.cannot_write(&reserved, &value))
        }
        _ => Ok(()),
    }
}

fn is_missing(error: &io::Error) -> bool {
    file::is_gone(error)
}

/// The given limits of a device, in the kernel's format (rdma.rst): others stay.
pub(super) fn rdma_line(device: &str, limit: &RdmaLimit) -> String {
    let mut line = device.to_owned();
    for (name, limit) in [("hca_handle", limit.hca_handles), ("hca_object", limit.hca_objects)] {
        if let Some(limit) = limit {
            line.push_str(&format!(" {name}={limit}"));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As with runc; so an update does not change other limits.
    #[test]
    fn an_rdma_line_has_only_the_given_limits() {
        let line =
            |handles, objects| rdma_line("mlx5_1", &RdmaLimit { hca_handles: handles, hca_objects: objects });
        assert_eq!(line(Some(3), Some(10_000)), "mlx5_1 hca_handle=3 hca_object=10000");
        assert_eq!(line(Some(3), None), "mlx5_1 hca_handle=3");
        assert_eq!(line(None, Some(0)), "mlx5_1 hca_object=0");
        assert_eq!(line(None, None), "mlx5_1");
    }
}
