//! A cgroup's counters as containerd's messages, which differ by cgroup version.

use api::shim::cgroups::{v1, v2};
use linux::cgroup::{Io, IoEntry, Limited, Pressure, Rdma, RdmaEntry, Stall, Stats};
use prost_types::Any;

pub(crate) fn pack(stats: &Stats) -> Any {
    if stats.is_v2 {
        return api::shim::pack(&metrics_v2(stats));
    }
    // Without it devices are shown by their numbers.
    let disks = std::fs::read_to_string("/proc/diskstats").unwrap_or_default();
    api::shim::pack(&metrics_v1(stats, &disks))
}

/// `disks` are the kernel's lines of block devices, `MAJOR MINOR NAME …` (proc_diskstats(5)).
fn metrics_v1(stats: &Stats, disks: &str) -> v1::Metrics {
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
            io_service_bytes_recursive: blkio(&stats.io.bytes, disks),
            io_serviced_recursive: blkio(&stats.io.operations, disks),
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

fn blkio(entries: &[IoEntry], disks: &str) -> Vec<v1::BlkioEntry> {
    let convert = |entry: &IoEntry| v1::BlkioEntry {
        op: entry.operation.clone(),
        device: path_of_disk(disks, entry).unwrap_or_default(),
        major: entry.major,
        minor: entry.minor,
        value: entry.value,
    };
    entries.iter().map(convert).collect()
}

fn path_of_disk(disks: &str, entry: &IoEntry) -> Option<String> {
    disks.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let mut is_next = |number: u64| fields.next().and_then(|field| field.parse().ok()) == Some(number);
        (is_next(entry.major) && is_next(entry.minor)).then_some(())?;
        fields.next().map(|name| format!("/dev/{name}"))
    })
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

/// Merges bytes and operations of each device into one entry.
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

#[cfg(test)]
mod tests {
    use linux::cgroup::{Cpu, Hugetlb, Memory, MemoryEvents, Pids, Throttling};

    use super::*;

    #[test]
    fn devices_have_the_names_that_the_kernel_gives_them() {
        let disks = "   7       1 loop1 52252 1548\n 254       0 vda 1 2\n 254      10 vdb 1 2\n";
        let entry = |major, minor| IoEntry { major, minor, operation: "Read".into(), value: 4096 };
        let io = Io {
            bytes: vec![entry(254, 0), entry(254, 1)],
            operations: vec![entry(254, 10)],
            pressure: None,
        };
        let blkio = metrics_v1(&Stats { io, ..Stats::default() }, disks).blkio.unwrap();
        let names =
            |entries: &[v1::BlkioEntry]| entries.iter().map(|entry| entry.device.clone()).collect::<Vec<_>>();
        assert_eq!(names(&blkio.io_service_bytes_recursive), ["/dev/vda", ""]);
        assert_eq!(names(&blkio.io_serviced_recursive), ["/dev/vdb"]);
    }

    /// The fields of `metrics.proto` in containerd's cgroups.
    const MEMORY: [&str; 37] = [
        "anon",
        "file",
        "kernel_stack",
        "slab",
        "sock",
        "shmem",
        "file_mapped",
        "file_dirty",
        "file_writeback",
        "anon_thp",
        "inactive_anon",
        "active_anon",
        "inactive_file",
        "active_file",
        "unevictable",
        "slab_reclaimable",
        "slab_unreclaimable",
        "pgfault",
        "pgmajfault",
        "",
        "",
        "workingset_nodereclaim",
        "pgrefill",
        "pgscan",
        "pgsteal",
        "pgactivate",
        "pgdeactivate",
        "pglazyfree",
        "pglazyfreed",
        "thp_fault_alloc",
        "thp_collapse_alloc",
        "",
        "",
        "",
        "",
        "",
        "",
    ];
    const WORKINGSET: [&str; 4] = [
        "workingset_refault_anon",
        "workingset_refault_file",
        "workingset_activate_anon",
        "workingset_activate_file",
    ];

    /// A message in protobuf's wire format: tag and kind, then the value.
    #[derive(Default)]
    struct Wire(Vec<u8>);

    impl Wire {
        fn varint(mut self, mut value: u64) -> Wire {
            while value > 127 {
                self.0.push(value as u8 | 128);
                value >>= 7;
            }
            self.0.push(value as u8);
            self
        }

        fn number(self, tag: u64, value: u64) -> Wire {
            self.varint(tag << 3).varint(value)
        }

        /// Numbers with consecutive tags, from 1 on.
        fn numbers(values: impl IntoIterator<Item = u64>) -> Wire {
            (1..).zip(values).fold(Wire::default(), |wire, (tag, value)| wire.number(tag, value))
        }

        fn double(mut self, tag: u64, value: f64) -> Wire {
            self = self.varint(tag << 3 | 1);
            self.0.extend(value.to_le_bytes());
            self
        }

        fn bytes(mut self, tag: u64, bytes: &[u8]) -> Wire {
            self = self.varint(tag << 3 | 2).varint(bytes.len() as u64);
            self.0.extend(bytes);
            self
        }

        fn message(self, tag: u64, message: Wire) -> Wire {
            self.bytes(tag, &message.0)
        }

        fn pressure(self, tag: u64, first: u32) -> Wire {
            let line = |first: u32| {
                let times = (1..)
                    .zip(first..first + 3)
                    .fold(Wire::default(), |wire, (tag, value)| wire.double(tag, value.into()));
                times.number(4, (first + 3).into())
            };
            self.message(tag, Wire::default().message(1, line(first)).message(2, line(first + 4)))
        }
    }

    fn pressure(first: u32) -> Pressure {
        let stall = |first: u32| Stall {
            avg10: first.into(),
            avg60: (first + 1).into(),
            avg300: (first + 2).into(),
            total_us: (first + 3).into(),
        };
        Pressure { some: stall(first), full: stall(first + 4) }
    }

    /// Each field has a distinct value.
    #[test]
    fn the_message_of_version_2_has_containerds_numbers() {
        let names = MEMORY.iter().zip(1001..).chain(WORKINGSET.iter().zip(2001..));
        let rdma = |device: &str, first| RdmaEntry {
            device: device.into(),
            hca_handles: first,
            hca_objects: first + 1,
        };
        let transfer =
            |operation: &str, value| IoEntry { major: 8, minor: 16, operation: operation.into(), value };
        let stats = Stats {
            is_v2: true,
            pids: Pids { current: 11, limit: 12 },
            cpu: Cpu {
                usage_ns: 21_000,
                user_ns: 22_000,
                system_ns: 23_000,
                per_cpu_ns: Vec::new(),
                throttling: Throttling {
                    periods: 24,
                    throttled_periods: 25,
                    throttled_ns: 26_000,
                    bursts: 28,
                    burst_ns: 29_000,
                },
                pressure: Some(pressure(300)),
            },
            memory: Memory {
                usage: Limited { usage: 1032, limit: 1033, peak: 1036, failures: 0 },
                swap: Limited { usage: 1034, limit: 1035, peak: 1037, failures: 0 },
                stat: names
                    .filter(|(name, _)| !name.is_empty())
                    .map(|(name, value)| ((*name).to_owned(), value))
                    .collect(),
                events: MemoryEvents {
                    low: 81,
                    high: 82,
                    max: 83,
                    oom: 84,
                    oom_kill: 85,
                    oom_group_kill: 86,
                },
                pressure: Some(pressure(320)),
                ..Memory::default()
            },
            rdma: Rdma { current: vec![rdma("mlx5_0", 52)], limit: vec![rdma("mlx5_1", 56)] },
            io: Io {
                bytes: vec![transfer("Read", 63), transfer("Write", 64)],
                operations: vec![transfer("Read", 65), transfer("Write", 66)],
                pressure: Some(pressure(340)),
            },
            hugetlb: vec![Hugetlb {
                page_size: "2MB".into(),
                usage: Limited { usage: 71, limit: 72, peak: 0, failures: 74 },
            }],
        };
        let device = |name: &str, first| {
            Wire::default().bytes(1, name.as_bytes()).number(2, first).number(3, first + 1)
        };
        // Counters of anonymous memory and files are added up, as containerd does.
        let memory = (1001..1038).map(|value| match value {
            1020 => 2001 + 2002,
            1021 => 2003 + 2004,
            value => value,
        });
        let memory = (39..)
            .zip(2001..2005)
            .fold(Wire::numbers(memory).pressure(38, 320), |wire, (tag, value)| wire.number(tag, value));
        let expected = Wire::default()
            .message(1, Wire::numbers([11, 12]))
            .message(2, Wire::numbers(21..27).pressure(7, 300).number(8, 28).number(9, 29))
            .message(4, memory)
            .message(5, Wire::default().message(1, device("mlx5_0", 52)).message(2, device("mlx5_1", 56)))
            .message(6, Wire::default().message(1, Wire::numbers([8, 16, 63, 64, 65, 66])).pressure(2, 340))
            .message(7, Wire::numbers([71, 72]).bytes(3, b"2MB").number(4, 74))
            .message(8, Wire::numbers(81..87));
        let packed = pack(&stats);
        assert_eq!(packed.type_url, "io.containerd.cgroups.v2.Metrics");
        assert_eq!(packed.value, expected.0);
    }
}
