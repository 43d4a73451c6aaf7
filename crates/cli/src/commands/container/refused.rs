//! Flags of Docker's `run`, `create` and `update` that Hoist does not support. Each is refused with the reason and an
//! alternative.

use clap::Args;

use crate::commands::volume;
use crate::parse::{refused, refused_but};

const ALIAS: &str = "network-scoped alias is supported only for containers in user defined networks, of which there are none; \
                     name others by --add-host NAME:ADDRESS";
const ADDRESS: &str = "user specified IP address is supported on user defined networks only, of which there are none; a container on \
                       the bridge has one that is free at each start, which `hoist inspect` shows";
const REALTIME: &str = "real-time budgets are those of cgroups of version 1 alone; use --cpu-quota, --cpu-shares, or --ulimit rtprio";
const THROTTLE: &str = "single disks are not throttled; --blkio-weight is a container's part of all";

// Reasons for flags of which Hoist supports only the value that is its default.
pub(super) const NO_CGROUPS_OF_THE_MACHINE: &str = "a container sees its own cgroups alone, which is private; one that is to see \
                                                    the machine's has them mounted: -v /sys/fs/cgroup:/PATH:ro";
pub(super) const NO_USERS_OF_ITS_OWN: &str = "a container has the machine's users, which is host; -u UID has it run as one that is not \
                                              root, and `hoist ctr run --uidmap … --gidmap …` maps them";

// Flags of `update` too.
// No doc comments on groups of flags: clap would use them as the help of each command that has the group.
#[derive(Args)]
pub(super) struct RefusedLimits {
    #[arg(long = "cpu-rt-period", hide = true, value_parser = refused(REALTIME))]
    _cpu_rt_period: Option<String>,
    #[arg(long = "cpu-rt-runtime", hide = true, value_parser = refused(REALTIME))]
    _cpu_rt_runtime: Option<String>,
    #[arg(long = "kernel-memory", hide = true, value_parser = refused(
        "kernel memory has no limit of its own; -m includes it",
    ))]
    _kernel_memory: Option<String>,
}

#[derive(Args)]
pub(super) struct Refused {
    #[command(flatten)]
    _limits: RefusedLimits,
    #[arg(long = "network-alias", alias = "net-alias", hide = true, value_parser = refused(ALIAS))]
    _network_alias: Vec<String>,
    #[arg(long = "ip", hide = true, value_parser = refused(ADDRESS))]
    _ip: Option<String>,
    #[arg(long = "ip6", hide = true, value_parser = refused(ADDRESS))]
    _ip6: Option<String>,
    #[arg(long = "link-local-ip", hide = true, value_parser = refused(ADDRESS))]
    _link_local_ip: Vec<String>,
    #[arg(long = "link", hide = true, value_parser = refused(
        "containers are not linked; name others by --add-host NAME:ADDRESS, or share a network by --network container:NAME",
    ))]
    _link: Vec<String>,
    #[arg(long = "storage-opt", hide = true, value_parser = refused(
        "the tree of a container has no size of its own; give what must not grow a tmpfs (--tmpfs PATH:size=64m), or a volume on \
         a disk of its own",
    ))]
    _storage_opt: Vec<String>,
    #[arg(long = "volume-driver", hide = true, value_parser = refused_but(&["", "local"], volume::NO_DRIVERS))]
    _volume_driver: Option<String>,
    #[arg(long = "device-read-bps", hide = true, value_parser = refused(THROTTLE))]
    _device_read_bps: Vec<String>,
    #[arg(long = "device-write-bps", hide = true, value_parser = refused(THROTTLE))]
    _device_write_bps: Vec<String>,
    #[arg(long = "device-read-iops", hide = true, value_parser = refused(THROTTLE))]
    _device_read_iops: Vec<String>,
    #[arg(long = "device-write-iops", hide = true, value_parser = refused(THROTTLE))]
    _device_write_iops: Vec<String>,
    #[arg(long = "blkio-weight-device", hide = true, value_parser = refused(THROTTLE))]
    _blkio_weight_device: Vec<String>,
}
