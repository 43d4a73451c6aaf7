//! A reading of a cgroup as the message that containerd's clients expect for its version.

use api::shim::cgroups::{v1, v2};
use linux::cgroup::{Io, IoEntry, Limited, Pressure, Rdma, RdmaEntry, Stall, Stats};
use prost_types::Any;

pub(crate) fn pack(stats: &Stats) -> Any {
    if stats.is_v2 { api::shim::pack(&metrics_v2(stats)) } else { api::shim::pack(&metrics_v1(stats)) }
}

fn metrics_v1(stats: &Stats) -> v1::Metrics {
    let throttling = stats.cpu.throttling;
    v1::Metrics {
        hugetlb: stats
            .hugetlb
            .iter()
            .map(|size| v1::HugetlbStat {
                usage: size.usage.usage,
                max: size.usage.peak,
                failcnt: size.usage.failures,
                pagesize: size.page_size.clone(),
            })
            .collect(),
        pids: Some(v1::PidsStat { current: stats.pids.current, limit: stats.pids.limit }),
        cpu: Some(v1::CpuStat {
            usage: Some(v1::CpuUsage {
                total: stats.cpu.usage_ns,
                kernel: stats.cpu.system_ns,
                user: stats.cpu.user_ns,
                per_cpu: stats.cpu.per_cpu_ns.iter().map(|(user, system)| user + system).collect(),
            }),
            throttling: Some(v1::Throttle {
                periods: throttling.periods,
                throttled_periods: throttling.throttled_periods,
                throttled_time: throttling.throttled_ns,
            }),
        }),
        memory: Some(memory_v1(stats)),
        blkio: Some(v1::BlkioStat {
            io_service_bytes_recursive: blkio(&stats.io.bytes),
            io_serviced_recursive: blkio(&stats.io.operations),
            ..v1::BlkioStat::default()
        }),
        rdma: Some(v1::RdmaStat {
            current: rdma(&stats.rdma, |rdma| &rdma.current, rdma_v1),
            limit: rdma(&stats.rdma, |rdma| &rdma.limit, rdma_v1),
        }),
        network: Vec::new(),
        cgroup_stats: None,
        memory_oom_control: Some(v1::MemoryOomControl {
            oom_kill_disable: stats.memory.is_oom_kill_disabled.into(),
            under_oom: stats.memory.is_under_oom.into(),
            oom_kill: stats.memory.events.oom_kill,
        }),
    }
}

fn memory_v1(stats: &Stats) -> v1::MemoryStat {
    let memory = &stats.memory;
    let stat = |name: &str| memory.stat.get(name);
    v1::MemoryStat {
        cache: stat("cache"),
        rss: stat("rss"),
        rss_huge: stat("rss_huge"),
        mapped_file: stat("mapped_file"),
        dirty: stat("dirty"),
        writeback: stat("writeback"),
        pg_pg_in: stat("pgpgin"),
        pg_pg_out: stat("pgpgout"),
        pg_fault: stat("pgfault"),
        pg_maj_fault: stat("pgmajfault"),
        inactive_anon: stat("inactive_anon"),
        active_anon: stat("active_anon"),
        inactive_file: stat("inactive_file"),
        active_file: stat("active_file"),
        unevictable: stat("unevictable"),
        hierarchical_memory_limit: stat("hierarchical_memory_limit"),
        hierarchical_swap_limit: stat("hierarchical_memsw_limit"),
        total_cache: stat("total_cache"),
        total_rss: stat("total_rss"),
        total_rss_huge: stat("total_rss_huge"),
        total_mapped_file: stat("total_mapped_file"),
        total_dirty: stat("total_dirty"),
        total_writeback: stat("total_writeback"),
        total_pg_pg_in: stat("total_pgpgin"),
        total_pg_pg_out: stat("total_pgpgout"),
        total_pg_fault: stat("total_pgfault"),
        total_pg_maj_fault: stat("total_pgmajfault"),
        total_inactive_anon: stat("total_inactive_anon"),
        total_active_anon: stat("total_active_anon"),
        total_inactive_file: stat("total_inactive_file"),
        total_active_file: stat("total_active_file"),
        total_unevictable: stat("total_unevictable"),
        usage: Some(entry(memory.usage)),
        swap: Some(entry(memory.swap)),
        kernel: Some(entry(memory.kernel)),
        kernel_tcp: Some(entry(memory.kernel_tcp)),
    }
}

fn entry(limited: Limited) -> v1::MemoryEntry {
    v1::MemoryEntry {
        limit: limited.limit,
        usage: limited.usage,
        max: limited.peak,
        failcnt: limited.failures,
    }
}

fn blkio(entries: &[IoEntry]) -> Vec<v1::BlkioEntry> {
    let convert = |entry: &IoEntry| v1::BlkioEntry {
        op: entry.operation.clone(),
        device: String::new(),
        major: entry.major,
        minor: entry.minor,
        value: entry.value,
    };
    entries.iter().map(convert).collect()
}

fn rdma<T>(stats: &Rdma, pick: fn(&Rdma) -> &Vec<RdmaEntry>, convert: fn(&RdmaEntry) -> T) -> Vec<T> {
    pick(stats).iter().map(convert).collect()
}

fn rdma_v1(entry: &RdmaEntry) -> v1::RdmaEntry {
    v1::RdmaEntry {
        device: entry.device.clone(),
        hca_handles: entry.hca_handles,
        hca_objects: entry.hca_objects,
    }
}

fn rdma_v2(entry: &RdmaEntry) -> v2::RdmaEntry {
    v2::RdmaEntry {
        device: entry.device.clone(),
        hca_handles: entry.hca_handles,
        hca_objects: entry.hca_objects,
    }
}

fn metrics_v2(stats: &Stats) -> v2::Metrics {
    let throttling = stats.cpu.throttling;
    let events = stats.memory.events;
    v2::Metrics {
        pids: Some(v2::PidsStat { current: stats.pids.current, limit: stats.pids.limit }),
        cpu: Some(v2::CpuStat {
            usage_usec: stats.cpu.usage_ns / 1000,
            user_usec: stats.cpu.user_ns / 1000,
            system_usec: stats.cpu.system_ns / 1000,
            nr_periods: throttling.periods,
            nr_throttled: throttling.throttled_periods,
            throttled_usec: throttling.throttled_ns / 1000,
            psi: stats.cpu.pressure.map(psi),
            nr_bursts: throttling.bursts,
            burst_usec: throttling.burst_ns / 1000,
        }),
        memory: Some(memory_v2(stats)),
        rdma: Some(v2::RdmaStat {
            current: rdma(&stats.rdma, |rdma| &rdma.current, rdma_v2),
            limit: rdma(&stats.rdma, |rdma| &rdma.limit, rdma_v2),
        }),
        io: Some(v2::IoStat { usage: io_v2(&stats.io), psi: stats.io.pressure.map(psi) }),
        hugetlb: stats
            .hugetlb
            .iter()
            .map(|size| v2::HugetlbStat {
                current: size.usage.usage,
                max: size.usage.limit,
                failcnt: size.usage.failures,
                pagesize: size.page_size.clone(),
            })
            .collect(),
        memory_events: Some(v2::MemoryEvents {
            low: events.low,
            high: events.high,
            max: events.max,
            oom: events.oom,
            oom_kill: events.oom_kill,
            oom_group_kill: events.oom_group_kill,
        }),
    }
}

fn psi(pressure: Pressure) -> v2::PsiStats {
    let data = |stall: Stall| v2::PsiData {
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
        total: stall.total_us,
    };
    v2::PsiStats { some: Some(data(pressure.some)), full: Some(data(pressure.full)) }
}

fn memory_v2(stats: &Stats) -> v2::MemoryStat {
    let memory = &stats.memory;
    let stat = |name: &str| memory.stat.get(name);
    v2::MemoryStat {
        anon: stat("anon"),
        file: stat("file"),
        kernel_stack: stat("kernel_stack"),
        slab: stat("slab"),
        sock: stat("sock"),
        shmem: stat("shmem"),
        file_mapped: stat("file_mapped"),
        file_dirty: stat("file_dirty"),
        file_writeback: stat("file_writeback"),
        anon_thp: stat("anon_thp"),
        inactive_anon: stat("inactive_anon"),
        active_anon: stat("active_anon"),
        inactive_file: stat("inactive_file"),
        active_file: stat("active_file"),
        unevictable: stat("unevictable"),
        slab_reclaimable: stat("slab_reclaimable"),
        slab_unreclaimable: stat("slab_unreclaimable"),
        pgfault: stat("pgfault"),
        pgmajfault: stat("pgmajfault"),
        workingset_refault: stat("workingset_refault_anon") + stat("workingset_refault_file"),
        workingset_activate: stat("workingset_activate_anon") + stat("workingset_activate_file"),
        workingset_nodereclaim: stat("workingset_nodereclaim"),
        pgrefill: stat("pgrefill"),
        pgscan: stat("pgscan"),
        pgsteal: stat("pgsteal"),
        pgactivate: stat("pgactivate"),
        pgdeactivate: stat("pgdeactivate"),
        pglazyfree: stat("pglazyfree"),
        pglazyfreed: stat("pglazyfreed"),
        thp_fault_alloc: stat("thp_fault_alloc"),
        thp_collapse_alloc: stat("thp_collapse_alloc"),
        usage: memory.usage.usage,
        usage_limit: memory.usage.limit,
        swap_usage: memory.swap.usage,
        swap_limit: memory.swap.limit,
        max_usage: memory.usage.peak,
        swap_max_usage: memory.swap.peak,
        psi: memory.pressure.map(psi),
        workingset_refault_anon: stat("workingset_refault_anon"),
        workingset_refault_file: stat("workingset_refault_file"),
        workingset_activate_anon: stat("workingset_activate_anon"),
        workingset_activate_file: stat("workingset_activate_file"),
    }
}

/// Bytes and operations of each device in one entry.
fn io_v2(io: &Io) -> Vec<v2::IoEntry> {
    let mut devices: Vec<v2::IoEntry> = Vec::new();
    for (entries, is_bytes) in [(&io.bytes, true), (&io.operations, false)] {
        for entry in entries {
            let found =
                devices.iter().position(|device| (device.major, device.minor) == (entry.major, entry.minor));
            let index = found.unwrap_or_else(|| {
                devices.push(v2::IoEntry { major: entry.major, minor: entry.minor, ..Default::default() });
                devices.len() - 1
            });
            let device = &mut devices[index];
            match (is_bytes, entry.operation.to_ascii_lowercase().as_str()) {
                (true, "read") => device.rbytes += entry.value,
                (true, "write") => device.wbytes += entry.value,
                (false, "read") => device.rios += entry.value,
                (false, "write") => device.wios += entry.value,
                _ => {}
            }
        }
    }
    devices
}
