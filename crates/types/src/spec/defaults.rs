//! Default paths that a container must not see or write: those of containerd's `pkg/oci`. The lists of `runc spec` and
//! of Docker are the same but for a few paths of their own.

/// Masked paths, which reveal or change the state of the host or of other containers. `powercap` shows the power
/// consumption of the processor, from which cryptographic keys of other processes can be inferred (CVE-2020-8694).
pub const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/proc/scsi",
];

/// Paths that processes in a container may read but not write.
pub const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
