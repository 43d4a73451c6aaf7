//! Documents that the command line prints and reads: runc's JSON.

use linux::cgroup::{Cpuset, Limited, Memory, Stats};
use linux::ns::NsKind;
use serde_json::{Map, Value, json};
use types::Result;
use types::spec::runtime::{
    Capabilities, Linux, LinuxNamespace, LinuxResources, Mount, Process, Rlimit, Root, Spec, VERSION,
};

use super::args::Args;

/// What `events --stats` prints.
pub(super) fn stats(id: &str, stats: &Stats, cpuset: &Cpuset) -> Value {
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
        // The kernel's "no value of its own" is -1.
        set[name] = value.cast_signed().into();
    }
    json!({"type": "stats", "id": id, "data": {
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
    }})
}

/// Readers know the meaning that version 1 gives to the limit of swap.
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

/// What this runtime can do (runtime-spec `features.md`).
pub(super) fn features() -> Value {
    let namespaces: Vec<&str> = NsKind::ALL.iter().map(|kind| kind.name()).collect();
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": [
            "async", "atime", "bind", "defaults", "dev", "diratime", "exec", "idmap", "noatime", "nodev", "nodiratime",
            "noexec", "nostrictatime", "nosuid", "nosymfollow", "private", "ratime", "rbind", "rdev", "rdiratime",
            "relatime", "rexec", "ridmap", "rnoatime", "rnodev", "rnodiratime", "rnoexec", "rnosuid", "ro", "rprivate",
            "rrelatime", "rro", "rrw", "rshared", "rslave", "rstrictatime", "rsuid", "runbindable", "rw", "shared",
            "slave", "strictatime", "suid", "symfollow", "tmpcopyup", "unbindable",
        ],
        "linux": {
            "namespaces": namespaces,
            "capabilities": linux::cap::all_names(),
            "cgroup": {"v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": true},
            "seccomp": {"enabled": true},
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
            "intelRdt": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": true}},
            "netDevices": {"enabled": false},
        },
        "annotations": {},
    })
}

/// Limits given as flags of `update`.
pub(super) fn limits_from_flags(args: &mut Args, resources: &mut LinuxResources) -> Result<()> {
    let limit: Option<i64> = args.number(&["--memory"])?;
    let reservation: Option<i64> = args.number(&["--memory-reservation"])?;
    let swap: Option<i64> = args.number(&["--memory-swap"])?;
    if limit.or(reservation).or(swap).is_some() {
        let memory = resources.memory.get_or_insert_default();
        memory.limit = limit.or(memory.limit);
        memory.reservation = reservation.or(memory.reservation);
        memory.swap = swap.or(memory.swap);
    }
    let shares: Option<u64> = args.number(&["--cpu-share", "--cpu-shares"])?;
    let quota: Option<i64> = args.number(&["--cpu-quota"])?;
    let period: Option<u64> = args.number(&["--cpu-period"])?;
    let cpus = args.value(&["--cpuset-cpus"]);
    let mems = args.value(&["--cpuset-mems"]);
    if shares.is_some() || quota.is_some() || period.is_some() || cpus.is_some() || mems.is_some() {
        let cpu = resources.cpu.get_or_insert_default();
        cpu.shares = shares.or(cpu.shares);
        cpu.quota = quota.or(cpu.quota);
        cpu.period = period.or(cpu.period);
        cpu.cpus = cpus.unwrap_or_else(|| cpu.cpus.clone());
        cpu.mems = mems.unwrap_or_else(|| cpu.mems.clone());
    }
    if let Some(pids) = args.number(&["--pids-limit"])? {
        resources.pids.get_or_insert_default().limit = Some(pids);
    }
    Ok(())
}

/// A bundle to begin with, as `spec` writes it.
pub(super) fn default_spec() -> Spec {
    let strings = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mount = |destination: &str, kind: &str, options: &[&str]| Mount {
        destination: destination.into(),
        kind: kind.into(),
        source: kind.into(),
        options: strings(options),
        ..Mount::default()
    };
    let capabilities = strings(&["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"];
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
        hostname: "hoist".into(),
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
            namespaces: namespaces
                .iter()
                .map(|kind| LinuxNamespace { kind: (*kind).into(), path: String::new() })
                .collect(),
            masked_paths: strings(&[
                "/proc/acpi",
                "/proc/asound",
                "/proc/kcore",
                "/proc/keys",
                "/proc/latency_stats",
                "/proc/timer_list",
                "/proc/timer_stats",
                "/proc/sched_debug",
                "/proc/scsi",
                "/sys/firmware",
                "/sys/devices/virtual/powercap",
            ]),
            readonly_paths: strings(&[
                "/proc/bus",
                "/proc/fs",
                "/proc/irq",
                "/proc/sys",
                "/proc/sysrq-trigger",
            ]),
            ..Linux::default()
        }),
        ..Spec::default()
    }
}
