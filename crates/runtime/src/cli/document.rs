//! JSON documents that the command line prints and reads, in runc's form.

use linux::cgroup::{Cpuset, Hierarchies, Limited, Memory, Pressure, Stall, Stats, Version};
use serde_json::{Map, Value, json};
use types::spec::defaults::{MASKED, READ_ONLY};
use types::spec::runtime::{
    BlockIoResources, Capabilities, CpuResources, DeviceRule, IdMapping, Linux, LinuxNamespace,
    LinuxResources, MemoryResources, Mount, PidsResources, Process, Rlimit, Root, Spec, VERSION,
};
use types::{Error, Result};

use super::args::Args;
use crate::resctrl::Figures;

/// Whether a document is compact or indented.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Spacing {
    None,
    Wide,
}

/// A state, its fields in runc's order: some scripts match on its beginning.
pub(super) fn state(document: &Value, spacing: Spacing) -> String {
    const FIRST: [&str; 7] = ["ociVersion", "id", "pid", "status", "bundle", "rootfs", "created"];
    let fields = document.as_object().into_iter().flatten();
    let is_first = |name: &str| FIRST.contains(&name);
    let first = FIRST.iter().filter_map(|name| Some((*name, document.get(*name)?)));
    let rest = fields.map(|(name, value)| (name.as_str(), value)).filter(|(name, _)| !is_first(name));
    let written = first.chain(rest).map(|(name, value)| match spacing {
        Spacing::None => format!("\"{name}\":{value}"),
        Spacing::Wide => {
            let value = serde_json::to_string_pretty(value).expect("values can be written");
            format!("\n  \"{name}\": {}", value.replace('\n', "\n  "))
        }
    });
    let written = written.collect::<Vec<_>>().join(",");
    format!("{{{written}{}}}", if spacing == Spacing::Wide { "\n" } else { "" })
}

/// The field `data` of `events --stats`.
pub(super) fn stats(stats: &Stats, cpuset: &Cpuset) -> Value {
    let limited = |value: &Limited| json!({"usage": value.usage, "limit": value.limit, "max": value.peak, "failcnt": value.failures});
    let raw: Map<String, Value> =
        stats.memory.stat.iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    let entries = |list: &[linux::cgroup::IoEntry]| -> Vec<Value> {
        let each = list.iter().map(|entry| {
            json!({"major": entry.major, "minor": entry.minor, "op": entry.operation, "value": entry.value})
        });
        each.collect()
    };
    let pages: Map<String, Value> = stats
        .hugetlb
        .iter()
        .map(|pages| {
            let Limited { usage, peak, failures, .. } = pages.usage;
            (pages.page_size.clone(), json!({"usage": usage, "max": peak, "failcnt": failures}))
        })
        .collect();
    let per_cpu = |part: &dyn Fn((u64, u64)) -> u64| -> Vec<u64> {
        stats.cpu.per_cpu_ns.iter().map(|times| part(*times)).collect()
    };
    let mut set = json!({"cpus": cpuset.cpus, "mems": cpuset.mems});
    for (name, value) in cpuset.flags.iter() {
        // The kernel's value for "not set" is -1.
        set[name] = value.cast_signed().into();
    }
    let mut data = json!({
        "cpu": {
            "usage": {
                "total": stats.cpu.usage_ns,
                "percpu": per_cpu(&|(user, system)| user + system),
                "percpu_kernel": per_cpu(&|(_, system)| system),
                "percpu_user": per_cpu(&|(user, _)| user),
                "kernel": stats.cpu.system_ns,
                "user": stats.cpu.user_ns,
            },
            "throttling": {
                "periods": stats.cpu.throttling.periods,
                "throttledPeriods": stats.cpu.throttling.throttled_periods,
                "throttledTime": stats.cpu.throttling.throttled_ns,
            },
        },
        "memory": {
            "usage": limited(&stats.memory.usage),
            "swap": limited(&memory_and_swap(&stats.memory, stats.is_v2)),
            "kernel": limited(&stats.memory.kernel),
            "kernelTCP": limited(&stats.memory.kernel_tcp),
            "cache": stats.memory.stat.get(if stats.is_v2 { "file" } else { "cache" }),
            "raw": raw,
        },
        "pids": {"current": stats.pids.current, "limit": stats.pids.limit},
        "blkio": {
            "ioServiceBytesRecursive": entries(&stats.io.bytes),
            "ioServicedRecursive": entries(&stats.io.operations),
        },
        "hugetlb": pages,
        "cpuset": set,
        "intel_rdt": {},
        "network_interfaces": null,
    });
    // Absent on kernels without pressure information (PSI), as with runc.
    let resources =
        [("cpu", stats.cpu.pressure), ("memory", stats.memory.pressure), ("blkio", stats.io.pressure)];
    for (resource, pressure) in resources {
        if let Some(Pressure { some, full }) = pressure {
            data[resource]["psi"] = json!({"some": stall(some), "full": stall(full)});
        }
    }
    data
}

/// The field `intel_rdt` of a container with a resctrl group.
pub(super) fn shares(figures: &Figures) -> Value {
    let mut document = Map::new();
    for (name, resource) in [("l3_cache", &figures.cache), ("mem_bw", &figures.bandwidth)] {
        let Some(resource) = resource else { continue };
        // The mask is a string, the rest are numbers; runc prints no other file of the kernel's.
        let about = resource.about.iter().filter_map(|(name, text)| match name.as_str() {
            "cbm_mask" => Some((name.clone(), json!(text))),
            "min_cbm_bits" | "num_closids" | "bandwidth_gran" | "delay_linear" | "min_bandwidth" => {
                Some((name.clone(), json!(text.parse::<u64>().ok()?)))
            }
            _ => None,
        });
        document.insert(format!("{name}_info"), Value::Object(about.collect()));
        document.insert(format!("{name}_schema_root"), json!(resource.schema_root));
        document.insert(format!("{name}_schema"), json!(resource.schema));
    }
    if !figures.schemata.is_empty() {
        document.insert("schemata".to_owned(), json!(figures.schemata));
    }
    let transferred = figures.used.iter().filter(|used| used.transferred.is_some());
    let transferred: Vec<Value> = transferred
        .map(|used| json!({"mbm_total_bytes": used.transferred, "mbm_local_bytes": used.transferred_locally.unwrap_or(0)}))
        .collect();
    let caches: Vec<Value> = figures
        .used
        .iter()
        .filter_map(|used| used.cache)
        .map(|cache| json!({"llc_occupancy": cache}))
        .collect();
    for (name, list) in [("mbm_stats", transferred), ("cmt_stats", caches)] {
        if !list.is_empty() {
            document.insert(name.to_owned(), Value::Array(list));
        }
    }
    Value::Object(document)
}

fn stall(stall: Stall) -> Value {
    json!({"avg10": stall.avg10, "avg60": stall.avg60, "avg300": stall.avg300, "total": stall.total_us})
}

/// Memory and swap together, which is what version 1 limits and what readers of runc's output expect.
fn memory_and_swap(memory: &Memory, is_v2: bool) -> Limited {
    if !is_v2 {
        return memory.swap;
    }
    Limited {
        usage: memory.swap.usage.saturating_add(memory.usage.usage),
        limit: memory.swap.limit.saturating_add(memory.usage.limit),
        ..memory.swap
    }
}

/// Limits from the flags of `update`.
pub(super) fn limits_from_flags(args: &mut Args) -> Result<LinuxResources> {
    let memory = MemoryResources {
        limit: size(args, &["--memory"])?,
        reservation: size(args, &["--memory-reservation"])?,
        swap: size(args, &["--memory-swap"])?,
        ..MemoryResources::default()
    };
    // Limits of kernel memory are deprecated; runc ignores them too.
    args.value(&["--kernel-memory"]);
    args.value(&["--kernel-memory-tcp"]);
    let cpu = CpuResources {
        shares: args.number(&["--cpu-share", "--cpu-shares"])?,
        quota: args.number(&["--cpu-quota"])?,
        burst: args.number(&["--cpu-burst"])?,
        period: args.number(&["--cpu-period"])?,
        realtime_runtime: args.number(&["--cpu-rt-runtime"])?,
        realtime_period: args.number(&["--cpu-rt-period"])?,
        cpus: args.value(&["--cpuset-cpus"]).unwrap_or_default(),
        mems: args.value(&["--cpuset-mems"]).unwrap_or_default(),
        idle: args.number(&["--cpu-idle"])?,
    };
    let weight = args.number(&["--blkio-weight"])?;
    let pids = args.number(&["--pids-limit"])?;
    Ok(LinuxResources {
        memory: Some(memory).filter(|memory| *memory != MemoryResources::default()),
        cpu: Some(cpu).filter(|cpu| *cpu != CpuResources::default()),
        block_io: weight
            .map(|weight| BlockIoResources { weight: Some(weight), ..BlockIoResources::default() }),
        pids: pids.map(|limit| PidsResources { limit: Some(limit) }),
        ..LinuxResources::default()
    })
}

/// Bytes, with an optional unit: `64m`, `1GiB`; or `-1` for no limit.
fn size(args: &mut Args, names: &[&str]) -> Result<Option<i64>> {
    let Some(text) = args.value(names).filter(|text| !text.is_empty()) else { return Ok(None) };
    if text == "-1" {
        return Ok(Some(-1));
    }
    let bytes = stdx::bytes(&text).and_then(|bytes| i64::try_from(bytes).ok());
    let bad = || Error::invalid_argument(format!("{}: {text:?} is no size like 64m or 1g", names[0]));
    bytes.map(Some).ok_or_else(bad)
}

/// The default bundle that `spec` writes: runc's, with a cgroup namespace on hosts of version 2, and with the files
/// masked that tell power consumption (CVE-2020-8694).
pub(super) fn default_spec(hostname: &str) -> Spec {
    let strings = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mount = |destination: &str, kind: &str, options: &[&str]| Mount {
        destination: destination.into(),
        kind: kind.into(),
        source: if destination == "/dev/shm" { "shm" } else { kind }.into(),
        options: strings(options),
        ..Mount::default()
    };
    let capabilities = strings(&["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    // As with runc: with version 1 a container sees the host's paths of its cgroups.
    let has_own_cgroups = Hierarchies::detect().is_ok_and(|all| all.version() == Version::V2);
    let namespaces =
        ["pid", "network", "ipc", "uts", "mount"].into_iter().chain(has_own_cgroups.then_some("cgroup"));
    let no_device = DeviceRule { allow: false, access: "rwm".into(), ..DeviceRule::default() };
    Spec {
        oci_version: VERSION.into(),
        process: Some(Process {
            terminal: true,
            args: strings(&["sh"]),
            env: strings(&[
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "TERM=xterm",
            ]),
            cwd: "/".into(),
            capabilities: Some(Capabilities {
                bounding: capabilities.clone(),
                effective: capabilities.clone(),
                permitted: capabilities,
                ..Capabilities::default()
            }),
            rlimits: vec![Rlimit { kind: "RLIMIT_NOFILE".into(), soft: 1024, hard: 1024 }],
            no_new_privileges: true,
            ..Process::default()
        }),
        root: Some(Root { path: "rootfs".into(), readonly: true }),
        hostname: hostname.into(),
        mounts: vec![
            mount("/proc", "proc", &[]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount(
                "/dev/pts",
                "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            ),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ],
        linux: Some(Linux {
            resources: Some(LinuxResources { devices: vec![no_device], ..LinuxResources::default() }),
            namespaces: namespaces
                .map(|kind| LinuxNamespace { kind: kind.into(), path: String::new() })
                .collect(),
            masked_paths: strings(&MASKED),
            readonly_paths: strings(&READ_ONLY),
            ..Linux::default()
        }),
        ..Spec::default()
    }
}

/// The default bundle for a caller without privileges: a user namespace in which it is root, no network namespace, no
/// device group, no limits, and the host's `/sys`, with the host's cgroups.
pub(super) fn rootless_spec(hostname: &str) -> Spec {
    let mut spec = default_spec(hostname);
    let own = |host_id: u32| vec![IdMapping { container_id: 0, host_id, size: 1 }];
    if let Some(linux) = &mut spec.linux {
        linux.namespaces.retain(|namespace| namespace.kind != "network");
        linux.resources = None;
        linux.namespaces.push(LinuxNamespace { kind: "user".into(), path: String::new() });
        linux.uid_mappings = own(rustix::process::geteuid().as_raw());
        linux.gid_mappings = own(rustix::process::getegid().as_raw());
    }
    for mount in &mut spec.mounts {
        mount.options.retain(|word| word != "gid=5");
        if mount.destination == "/sys" {
            mount.kind = "none".into();
            mount.source = "/sys".into();
            mount.options.push("rbind".into());
        }
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resctrl::{Resource, Used};

    #[test]
    fn sizes_have_units() {
        let bytes = |text: &str| {
            let mut args = Args::new(["runtime", "--memory", text].map(Into::into).to_vec());
            size(&mut args, &["--memory"]).ok().flatten()
        };
        assert_eq!(bytes("64m"), Some(64 << 20));
        assert_eq!(bytes("1GiB"), Some(1 << 30));
        assert_eq!(bytes("-1"), Some(-1));
        assert_eq!(bytes("12"), Some(12));
        assert_eq!(bytes("1.5k"), Some(1536));
        assert_eq!(bytes(""), None);
        for wrong in ["m", "1x", "-2", "99999999999t"] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn states_have_runcs_order() {
        let document =
            json!({"annotations": {"a": "b\nc"}, "bundle": "/b", "id": "i", "ociVersion": "1.3.0", "pid": 7});
        let line = r#"{"ociVersion":"1.3.0","id":"i","pid":7,"bundle":"/b","annotations":{"a":"b\nc"}}"#;
        assert_eq!(state(&document, Spacing::None), line);
        let wide = state(&document, Spacing::Wide);
        assert!(wide.starts_with("{\n  \"ociVersion\": \"1.3.0\",\n  \"id\": \"i\","), "{wide}");
        assert!(wide.ends_with("  \"annotations\": {\n    \"a\": \"b\\nc\"\n  }\n}"), "{wide}");
        assert_eq!(serde_json::from_str::<Value>(&wide).unwrap(), document);
    }

    #[test]
    fn resctrl_statistics_have_runcs_names() {
        let resource = |about: &[(&str, &str)], schema: &str| Resource {
            about: about.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect(),
            schema_root: format!("{schema}ff"),
            schema: schema.into(),
        };
        assert_eq!(shares(&Figures::default()), json!({}));
        let cache = [("bit_usage", "0=S"), ("cbm_mask", "ff"), ("min_cbm_bits", "1"), ("num_closids", "16")];
        let bandwidth =
            [("bandwidth_gran", "10"), ("delay_linear", "1"), ("min_bandwidth", "20"), ("num_closids", "8")];
        let figures = Figures {
            cache: Some(resource(&cache, "L3:0=f")),
            bandwidth: Some(resource(&bandwidth, "MB:0=5")),
            schemata: ["MB:0=5", "L3:0=f"].map(str::to_owned).to_vec(),
            used: vec![Used { cache: Some(1), transferred: Some(2), transferred_locally: Some(3) }],
        };
        let expected = json!({
            "l3_cache_info": {"cbm_mask": "ff", "min_cbm_bits": 1, "num_closids": 16},
            "l3_cache_schema_root": "L3:0=fff",
            "l3_cache_schema": "L3:0=f",
            "mem_bw_info": {"bandwidth_gran": 10, "delay_linear": 1, "min_bandwidth": 20, "num_closids": 8},
            "mem_bw_schema_root": "MB:0=5ff",
            "mem_bw_schema": "MB:0=5",
            "schemata": ["MB:0=5", "L3:0=f"],
            "mbm_stats": [{"mbm_total_bytes": 2, "mbm_local_bytes": 3}],
            "cmt_stats": [{"llc_occupancy": 1}],
        });
        assert_eq!(shares(&figures), expected);
    }
}
