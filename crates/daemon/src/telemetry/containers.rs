//! Metrics of containers' cgroups with containerd's names, `container_<group>_<metric>_<unit>`, which differ between
//! cgroup versions 1 and 2.

use std::collections::BTreeMap;

use api::shim::cgroups::{v1, v2};
use api::shim::types::TypeUrl;
use metadata::Metadata;
use prost::Message;
use task::{Shims, Task};
use tokio::task::{JoinSet, spawn_blocking};
use types::Opaque;

use super::text::Text;

/// A metric: its name, its unit, and how to read it.
type Figure<M> = (&'static str, &'static str, fn(&M) -> u64);

/// A block IO metric of version 1: its name, its unit, and its entries.
type Transfers = (&'static str, &'static str, fn(&v1::BlkioStat) -> &Vec<v1::BlkioEntry>);

/// The only metric of type counter; all others are gauges, as in containerd.
const OOM_V1: &str = "container_memory_oom_total";

/// Samples by metric: the format requires all samples of a metric together.
#[derive(Default)]
struct Samples(BTreeMap<String, Vec<Sample>>);

/// A container's current value of a metric.
struct Sample {
    owner: Owner,
    /// Additional labels, which distinguish samples of one container.
    further: Vec<(&'static str, String)>,
    value: u64,
}

#[derive(Clone)]
struct Owner {
    namespace: String,
    id: String,
    runtime: String,
}

impl Sample {
    /// The sort key.
    fn order(&self) -> (&str, &str, &[(&'static str, String)]) {
        (&self.owner.namespace, &self.owner.id, &self.further)
    }
}

/// Queries all shims in parallel. Containers whose shim does not answer in time are left out.
pub(super) async fn write(text: &mut Text, metadata: &Metadata, shims: &Shims) {
    let mut asks = JoinSet::new();
    for task in shims.tasks(None) {
        let metadata = metadata.clone();
        asks.spawn(async move {
            let stats = task.stats().await.ok().flatten()?;
            Some((owner(&task, metadata).await, stats))
        });
    }
    let mut samples = Samples::default();
    while let Some(asked) = asks.join_next().await {
        if let Ok(Some((owner, stats))) = asked {
            samples.add(&owner, &stats);
        }
    }
    samples.write(text);
}

async fn owner(task: &Task, metadata: Metadata) -> Owner {
    let (namespace, id) = (task.namespace().clone(), task.id().clone());
    let (own_namespace, own_id) = (namespace.clone(), id.clone());
    let found = spawn_blocking(move || metadata.containers(&own_namespace).get(&own_id)).await;
    // A task without a container record has metrics as well.
    let runtime = found.ok().and_then(Result::ok).map(|container| container.runtime.name);
    Owner { namespace: namespace.to_string(), id: id.to_string(), runtime: runtime.unwrap_or_default() }
}

impl Samples {
    fn write(self, text: &mut Text) {
        for (name, mut family) in self.0 {
            let kind = if name == OOM_V1 { "counter" } else { "gauge" };
            text.family(&name, kind, "of a container's cgroup");
            family.sort_by(|a, b| a.order().cmp(&b.order()));
            for Sample { owner: Owner { namespace, id, runtime }, further, value } in &family {
                let mut labels =
                    vec![("container_id", id.as_str()), ("namespace", namespace), ("runtime", runtime)];
                labels.extend(further.iter().map(|(label, value)| (*label, value.as_str())));
                text.sample(&name, &labels, *value as f64);
            }
        }
    }

    fn add(&mut self, owner: &Owner, stats: &Opaque) {
        if stats.type_url.ends_with(v1::Metrics::TYPE_URL) {
            if let Ok(metrics) = v1::Metrics::decode(&*stats.value) {
                self.add_v1(owner, &metrics);
            }
        } else if stats.type_url.ends_with(v2::Metrics::TYPE_URL)
            && let Ok(metrics) = v2::Metrics::decode(&*stats.value)
        {
            self.add_v2(owner, &metrics);
        }
    }

    fn put(
        &mut self,
        owner: &Owner,
        name: &str,
        unit: &str,
        further: Vec<(&'static str, String)>,
        value: u64,
    ) {
        let separator = if unit.is_empty() { "" } else { "_" };
        let name = format!("container_{name}{separator}{unit}");
        self.0.entry(name).or_default().push(Sample { owner: owner.clone(), further, value });
    }

    fn put_all<M>(&mut self, owner: &Owner, group: &str, message: Option<&M>, figures: &[Figure<M>]) {
        let Some(message) = message else { return };
        for (name, unit, read) in figures {
            self.put(owner, &format!("{group}_{name}"), unit, Vec::new(), read(message));
        }
    }

    fn add_v1(&mut self, owner: &Owner, metrics: &v1::Metrics) {
        const THROTTLING: &[Figure<v1::Throttle>] = &[
            ("throttle_periods", "total", |stat| stat.periods),
            ("throttled_periods", "total", |stat| stat.throttled_periods),
            ("throttled_time", "nanoseconds", |stat| stat.throttled_time),
        ];
        const USAGE: &[Figure<v1::CpuUsage>] = &[
            ("total", "nanoseconds", |stat| stat.total),
            ("kernel", "nanoseconds", |stat| stat.kernel),
            ("user", "nanoseconds", |stat| stat.user),
        ];
        const PIDS: &[Figure<v1::PidsStat>] =
            &[("current", "", |stat| stat.current), ("limit", "", |stat| stat.limit)];
        const MEMORY: &[Figure<v1::MemoryStat>] = &[
            ("active_anon", "bytes", |stat| stat.active_anon),
            ("active_file", "bytes", |stat| stat.active_file),
            ("cache", "bytes", |stat| stat.cache),
            ("dirty", "bytes", |stat| stat.dirty),
            ("hierarchical_memory_limit", "bytes", |stat| stat.hierarchical_memory_limit),
            ("hierarchical_memsw_limit", "bytes", |stat| stat.hierarchical_swap_limit),
            ("inactive_anon", "bytes", |stat| stat.inactive_anon),
            ("inactive_file", "bytes", |stat| stat.inactive_file),
            ("mapped_file", "bytes", |stat| stat.mapped_file),
            ("pgfault", "bytes", |stat| stat.pg_fault),
            ("pgmajfault", "bytes", |stat| stat.pg_maj_fault),
            ("pgpgin", "bytes", |stat| stat.pg_pg_in),
            ("pgpgout", "bytes", |stat| stat.pg_pg_out),
            ("rss", "bytes", |stat| stat.rss),
            ("rss_huge", "bytes", |stat| stat.rss_huge),
            ("total_active_anon", "bytes", |stat| stat.total_active_anon),
            ("total_active_file", "bytes", |stat| stat.total_active_file),
            ("total_cache", "bytes", |stat| stat.total_cache),
            ("total_dirty", "bytes", |stat| stat.total_dirty),
            ("total_inactive_anon", "bytes", |stat| stat.total_inactive_anon),
            ("total_inactive_file", "bytes", |stat| stat.total_inactive_file),
            ("total_mapped_file", "bytes", |stat| stat.total_mapped_file),
            ("total_pgfault", "bytes", |stat| stat.total_pg_fault),
            ("total_pgmajfault", "bytes", |stat| stat.total_pg_maj_fault),
            ("total_pgpgin", "bytes", |stat| stat.total_pg_pg_in),
            ("total_pgpgout", "bytes", |stat| stat.total_pg_pg_out),
            ("total_rss", "bytes", |stat| stat.total_rss),
            ("total_rss_huge", "bytes", |stat| stat.total_rss_huge),
            ("total_unevictable", "bytes", |stat| stat.total_unevictable),
            ("total_writeback", "bytes", |stat| stat.total_writeback),
            ("unevictable", "bytes", |stat| stat.unevictable),
            ("writeback", "bytes", |stat| stat.writeback),
        ];
        const ENTRY: &[Figure<v1::MemoryEntry>] = &[
            ("failcnt", "total", |entry| entry.failcnt),
            ("limit", "bytes", |entry| entry.limit),
            ("max", "bytes", |entry| entry.max),
            ("usage", "bytes", |entry| entry.usage),
        ];
        const TRANSFERS: &[Transfers] = &[
            ("io_merged_recursive", "total", |stat| &stat.io_merged_recursive),
            ("io_queued_recursive", "total", |stat| &stat.io_queued_recursive),
            ("io_service_bytes_recursive", "bytes", |stat| &stat.io_service_bytes_recursive),
            ("io_service_time_recursive", "total", |stat| &stat.io_service_time_recursive),
            ("io_serviced_recursive", "total", |stat| &stat.io_serviced_recursive),
            ("io_time_recursive", "total", |stat| &stat.io_time_recursive),
            ("sectors_recursive", "total", |stat| &stat.sectors_recursive),
        ];
        if let Some(cpu) = &metrics.cpu {
            self.put_all(owner, "cpu", cpu.throttling.as_ref(), THROTTLING);
            self.put_all(owner, "cpu", cpu.usage.as_ref(), USAGE);
            for (number, value) in cpu.usage.iter().flat_map(|usage| usage.per_cpu.iter().enumerate()) {
                self.put(owner, "per_cpu", "nanoseconds", vec![("cpu", number.to_string())], *value);
            }
        }
        self.put_all(owner, "pids", metrics.pids.as_ref(), PIDS);
        self.put_all(owner, "memory", metrics.memory.as_ref(), MEMORY);
        if let Some(memory) = &metrics.memory {
            self.put_all(owner, "memory_usage", memory.usage.as_ref(), ENTRY);
            self.put_all(owner, "memory_swap", memory.swap.as_ref(), ENTRY);
            self.put_all(owner, "memory_kernel", memory.kernel.as_ref(), ENTRY);
            self.put_all(owner, "memory_kerneltcp", memory.kernel_tcp.as_ref(), ENTRY);
        }
        for (blkio, (name, unit, entries)) in
            metrics.blkio.iter().flat_map(|blkio| TRANSFERS.iter().map(move |row| (blkio, row)))
        {
            for entry in entries(blkio) {
                let labels = vec![
                    ("op", entry.op.clone()),
                    ("device", entry.device.clone()),
                    ("major", entry.major.to_string()),
                    ("minor", entry.minor.to_string()),
                ];
                self.put(owner, &format!("blkio_{name}"), unit, labels, entry.value);
            }
        }
        for size in &metrics.hugetlb {
            for (name, unit, value) in [
                ("usage", "bytes", size.usage),
                ("failcnt", "total", size.failcnt),
                ("max", "bytes", size.max),
            ] {
                let page = vec![("page", size.pagesize.clone())];
                self.put(owner, &format!("hugetlb_{name}"), unit, page, value);
            }
        }
        // containerd has no sample before the first OOM kill.
        if let Some(kills) = metrics.memory_oom_control.as_ref().map(|control| control.oom_kill)
            && kills > 0
        {
            self.put(owner, "memory_oom", "total", Vec::new(), kills);
        }
    }

    fn add_v2(&mut self, owner: &Owner, metrics: &v2::Metrics) {
        const CPU: &[Figure<v2::CpuStat>] = &[
            ("usage_usec", "microseconds", |stat| stat.usage_usec),
            ("user_usec", "microseconds", |stat| stat.user_usec),
            ("system_usec", "microseconds", |stat| stat.system_usec),
            ("nr_periods", "total", |stat| stat.nr_periods),
            ("nr_throttled", "total", |stat| stat.nr_throttled),
            ("throttled_usec", "microseconds", |stat| stat.throttled_usec),
        ];
        const PIDS: &[Figure<v2::PidsStat>] =
            &[("current", "", |stat| stat.current), ("limit", "", |stat| stat.limit)];
        const MEMORY: &[Figure<v2::MemoryStat>] = &[
            ("active_anon", "bytes", |stat| stat.active_anon),
            ("active_file", "bytes", |stat| stat.active_file),
            ("anon", "bytes", |stat| stat.anon),
            ("anon_thp", "bytes", |stat| stat.anon_thp),
            ("file", "bytes", |stat| stat.file),
            ("file_dirty", "bytes", |stat| stat.file_dirty),
            ("file_mapped", "bytes", |stat| stat.file_mapped),
            ("file_writeback", "bytes", |stat| stat.file_writeback),
            ("inactive_anon", "bytes", |stat| stat.inactive_anon),
            ("inactive_file", "bytes", |stat| stat.inactive_file),
            ("kernel_stack", "bytes", |stat| stat.kernel_stack),
            ("pgactivate", "bytes", |stat| stat.pgactivate),
            ("pgdeactivate", "bytes", |stat| stat.pgdeactivate),
            ("pgfault", "bytes", |stat| stat.pgfault),
            ("pglazyfree", "bytes", |stat| stat.pglazyfree),
            ("pglazyfreed", "bytes", |stat| stat.pglazyfreed),
            ("pgmajfault", "bytes", |stat| stat.pgmajfault),
            ("pgrefill", "bytes", |stat| stat.pgrefill),
            ("pgscan", "bytes", |stat| stat.pgscan),
            ("pgsteal", "bytes", |stat| stat.pgsteal),
            ("shmem", "bytes", |stat| stat.shmem),
            ("slab", "bytes", |stat| stat.slab),
            ("slab_reclaimable", "bytes", |stat| stat.slab_reclaimable),
            ("slab_unreclaimable", "bytes", |stat| stat.slab_unreclaimable),
            ("sock", "bytes", |stat| stat.sock),
            ("swap_limit", "bytes", |stat| stat.swap_limit),
            ("swap_usage", "bytes", |stat| stat.swap_usage),
            ("thp_collapse_alloc", "bytes", |stat| stat.thp_collapse_alloc),
            ("thp_fault_alloc", "bytes", |stat| stat.thp_fault_alloc),
            ("unevictable", "bytes", |stat| stat.unevictable),
            ("usage", "bytes", |stat| stat.usage),
            ("usage_limit", "bytes", |stat| stat.usage_limit),
            ("workingset_activate", "bytes", |stat| stat.workingset_activate),
            ("workingset_nodereclaim", "bytes", |stat| stat.workingset_nodereclaim),
            ("workingset_refault", "bytes", |stat| stat.workingset_refault),
        ];
        const EVENTS: &[Figure<v2::MemoryEvents>] = &[("oom", "total", |events| events.oom)];
        self.put_all(owner, "cpu", metrics.cpu.as_ref(), CPU);
        self.put_all(owner, "pids", metrics.pids.as_ref(), PIDS);
        self.put_all(owner, "memory", metrics.memory.as_ref(), MEMORY);
        self.put_all(owner, "memory", metrics.memory_events.as_ref(), EVENTS);
        for entry in metrics.io.iter().flat_map(|io| &io.usage) {
            let device = || vec![("major", entry.major.to_string()), ("minor", entry.minor.to_string())];
            for (name, unit, value) in [
                ("io_rbytes", "bytes", entry.rbytes),
                ("io_wbytes", "bytes", entry.wbytes),
                ("io_rios", "total", entry.rios),
                ("io_wios", "total", entry.wios),
            ] {
                self.put(owner, name, unit, device(), value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_tells_of_devices_pages_and_lost_memory() {
        let entry = |value| v1::BlkioEntry {
            op: "Read".into(),
            device: "/dev/sda".into(),
            major: 8,
            minor: 0,
            value,
        };
        let metrics = v1::Metrics {
            hugetlb: vec![v1::HugetlbStat { usage: 1, max: 2, failcnt: 3, pagesize: "2MB".into() }],
            blkio: Some(v1::BlkioStat {
                io_service_bytes_recursive: vec![entry(1)],
                io_serviced_recursive: vec![entry(2)],
                io_queued_recursive: vec![entry(3)],
                io_service_time_recursive: vec![entry(4)],
                io_wait_time_recursive: vec![entry(5)],
                io_merged_recursive: vec![entry(6)],
                io_time_recursive: vec![entry(7)],
                sectors_recursive: vec![entry(8)],
            }),
            memory_oom_control: Some(v1::MemoryOomControl { oom_kill: 4, ..Default::default() }),
            ..Default::default()
        };
        let owner = Owner { namespace: "n".into(), id: "c".into(), runtime: "r".into() };
        let stats = Opaque { type_url: v1::Metrics::TYPE_URL.into(), value: metrics.encode_to_vec() };
        let (mut samples, mut text) = (Samples::default(), Text::default());
        samples.add(&owner, &stats);
        samples.write(&mut text);
        let text = text.into_string();
        let device = "device=\"/dev/sda\",major=\"8\",minor=\"0\"";
        let whose = "container_id=\"c\",namespace=\"n\",runtime=\"r\"";
        for (name, labels, value) in [
            ("blkio_io_merged_recursive_total", device, 6),
            ("blkio_io_queued_recursive_total", device, 3),
            ("blkio_io_service_bytes_recursive_bytes", device, 1),
            ("blkio_io_service_time_recursive_total", device, 4),
            ("blkio_io_serviced_recursive_total", device, 2),
            ("blkio_io_time_recursive_total", device, 7),
            ("blkio_sectors_recursive_total", device, 8),
            ("hugetlb_usage_bytes", "page=\"2MB\"", 1),
            ("hugetlb_max_bytes", "page=\"2MB\"", 2),
            ("hugetlb_failcnt_total", "page=\"2MB\"", 3),
            ("memory_oom_total", whose, 4),
        ] {
            let line = text.lines().find(|line| line.starts_with(&format!("container_{name}{{")));
            let line = line.unwrap_or_else(|| panic!("{name} is missing in\n{text}"));
            assert!(line.contains(labels) && line.ends_with(&format!(" {value}")), "{line}");
        }
        assert!(text.contains("# TYPE container_memory_oom_total counter"), "{text}");
    }
}
