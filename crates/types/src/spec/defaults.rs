//! What a container is told if nobody asks for anything else, by whichever program: containerd's `pkg/oci`, which
//! runc's `spec` and Docker's list agree with but for what they name themselves.

/// What nobody in a container sees: it tells of the host or of others, or changes them. The last but one is what the
/// power takes, from which keys of others can be read (CVE-2020-8694).
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

/// What everybody in a container may read, and nobody change.
pub const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
