//! The configuration of a container: `config.json` of the OCI runtime-spec 1.3.
//!
//! Field names and meanings are those of the specification (`config.md`, `config-linux.md`). Two rules differ from a
//! plain transcription:
//! - Values of open sets (capabilities, architectures, namespace types) are strings, so that a name which only a newer
//!   kernel and a newer client know can pass through.
//! - Unknown keys are kept (`extra`), so that reading and writing a document loses nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::null_as_default;

/// The version of the specification in the documents that Hoist makes.
pub const VERSION: &str = "1.3.0";

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Declares objects of the document. Keys that the specification requires stand in brackets and are always written:
/// some runtimes refuse an object without them. All others are omitted when they have their default; `null` reads as
/// the default. The field after `..` keeps unknown keys.
macro_rules! document {
    ($(
        $(#[$doc:meta])*
        $name:ident
        $([ $($(#[$required_attribute:meta])* $required:ident: $required_kind:ty,)* ])?
        { $($(#[$attribute:meta])* $field:ident: $kind:ty,)* $(..$extra:ident)? }
    )+) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
            #[serde(rename_all = "camelCase", default)]
            pub struct $name {
                $($(
                    $(#[$required_attribute])*
                    #[serde(deserialize_with = "null_as_default")]
                    pub $required: $required_kind,
                )*)?
                $(
                    $(#[$attribute])*
                    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "is_default")]
                    pub $field: $kind,
                )*
                $(
                    #[serde(flatten)]
                    pub $extra: Map<String, Value>,
                )?
            }
        )+
    };
}

document! {
    /// The whole document.
    Spec [
        oci_version: String,
    ] {
        process: Option<Process>,
        root: Option<Root>,
        hostname: String,
        domainname: String,
        mounts: Vec<Mount>,
        hooks: Option<Hooks>,
        annotations: BTreeMap<String, String>,
        linux: Option<Linux>,
        ..extra
    }

    /// A process of the container: its first, or one that `exec` adds.
    Process [
        user: User,
        cwd: String,
    ] {
        terminal: bool,
        console_size: Option<ConsoleSize>,
        args: Vec<String>,
        env: Vec<String>,
        capabilities: Option<Capabilities>,
        rlimits: Vec<Rlimit>,
        no_new_privileges: bool,
        apparmor_profile: String,
        oom_score_adj: Option<i32>,
        selinux_label: String,
        io_priority: Option<IoPriority>,
        scheduler: Option<Scheduler>,
        #[serde(rename = "execCPUAffinity")]
        exec_cpu_affinity: Option<CpuAffinity>,
        ..extra
    }

    /// The Linux-specific section: namespaces, resources and restrictions.
    Linux {
        uid_mappings: Vec<IdMapping>,
        gid_mappings: Vec<IdMapping>,
        sysctl: BTreeMap<String, String>,
        resources: Option<LinuxResources>,
        cgroups_path: String,
        namespaces: Vec<LinuxNamespace>,
        devices: Vec<LinuxDevice>,
        net_devices: BTreeMap<String, NetDevice>,
        seccomp: Option<LinuxSeccomp>,
        rootfs_propagation: String,
        masked_paths: Vec<String>,
        readonly_paths: Vec<String>,
        mount_label: String,
        intel_rdt: Option<IntelRdt>,
        memory_policy: Option<MemoryPolicy>,
        personality: Option<Personality>,
        time_offsets: BTreeMap<String, TimeOffset>,
        ..extra
    }

    /// The root file system.
    Root [
        path: String,
    ] {
        readonly: bool,
    }

    /// A mount inside the container. Options are those of mount(8) and some that the specification adds.
    Mount [
        destination: String,
    ] {
        #[serde(rename = "type")]
        kind: String,
        source: String,
        options: Vec<String>,
        uid_mappings: Vec<IdMapping>,
        gid_mappings: Vec<IdMapping>,
    }

    ConsoleSize [
        height: u16,
        width: u16,
    ] {}

    User [
        uid: u32,
        gid: u32,
    ] {
        umask: Option<u32>,
        additional_gids: Vec<u32>,
        username: String,
    }

    /// Capability names as in capabilities(7), with the prefix `CAP_`.
    Capabilities {
        bounding: Vec<String>,
        effective: Vec<String>,
        inheritable: Vec<String>,
        permitted: Vec<String>,
        ambient: Vec<String>,
    }

    Rlimit [
        /// The resource, such as `RLIMIT_NOFILE` (getrlimit(2)).
        #[serde(rename = "type")]
        kind: String,
        soft: u64,
        hard: u64,
    ] {}

    IoPriority [
        class: String,
        priority: i32,
    ] {}

    Scheduler [
        policy: String,
    ] {
        nice: i32,
        priority: i32,
        flags: Vec<String>,
        runtime: u64,
        deadline: u64,
        period: u64,
    }

    CpuAffinity {
        initial: String,
        #[serde(rename = "final")]
        last: String,
    }

    Hooks {
        prestart: Vec<Hook>,
        create_runtime: Vec<Hook>,
        create_container: Vec<Hook>,
        start_container: Vec<Hook>,
        poststart: Vec<Hook>,
        poststop: Vec<Hook>,
    }

    Hook [
        path: String,
    ] {
        args: Vec<String>,
        env: Vec<String>,
        /// Seconds.
        timeout: Option<i64>,
    }

    IdMapping [
        #[serde(rename = "containerID")]
        container_id: u32,
        #[serde(rename = "hostID")]
        host_id: u32,
        size: u32,
    ] {}

    LinuxNamespace [
        /// `pid`, `network`, `ipc`, `uts`, `mount`, `user`, `cgroup` or `time`.
        #[serde(rename = "type")]
        kind: String,
    ] {
        /// The path of an existing namespace to join; empty creates a new one.
        path: String,
    }

    LinuxDevice [
        path: String,
        /// `c`, `u`, `b` or `p`: character (also `u`) or block device, or FIFO.
        #[serde(rename = "type")]
        kind: String,
        major: i64,
        minor: i64,
    ] {
        file_mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
    }

    NetDevice {
        name: String,
    }

    /// Allocation of caches and memory bandwidth (resctrl).
    IntelRdt {
        #[serde(rename = "closID")]
        clos_id: String,
        schemata: Vec<String>,
        l3_cache_schema: String,
        mem_bw_schema: String,
        enable_monitoring: bool,
    }

    /// The NUMA nodes from which memory is allocated (set_mempolicy(2)).
    MemoryPolicy {
        mode: String,
        /// As in cpuset(7): `0-2,5`.
        nodes: String,
        flags: Vec<String>,
    }

    Personality {
        domain: String,
        flags: Vec<String>,
    }

    TimeOffset {
        secs: i64,
        nanosecs: u32,
    }

    LinuxResources {
        devices: Vec<DeviceRule>,
        memory: Option<MemoryResources>,
        cpu: Option<CpuResources>,
        pids: Option<PidsResources>,
        #[serde(rename = "blockIO")]
        block_io: Option<BlockIoResources>,
        hugepage_limits: Vec<HugepageLimit>,
        network: Option<NetworkResources>,
        rdma: BTreeMap<String, RdmaLimit>,
        unified: BTreeMap<String, String>,
    }

    DeviceRule [
        allow: bool,
    ] {
        /// `a` (all), `b` (block) or `c` (character); empty is `a`.
        #[serde(rename = "type")]
        kind: String,
        major: Option<i64>,
        minor: Option<i64>,
        access: String,
    }

    /// Limits of memory in bytes; -1 is unlimited.
    MemoryResources {
        limit: Option<i64>,
        reservation: Option<i64>,
        /// Memory and swap together.
        swap: Option<i64>,
        kernel: Option<i64>,
        #[serde(rename = "kernelTCP")]
        kernel_tcp: Option<i64>,
        swappiness: Option<u64>,
        #[serde(rename = "disableOOMKiller")]
        disable_oom_killer: Option<bool>,
        use_hierarchy: Option<bool>,
        check_before_update: Option<bool>,
    }

    CpuResources {
        shares: Option<u64>,
        /// Microseconds of processor time in each period; -1 is unlimited.
        quota: Option<i64>,
        burst: Option<u64>,
        period: Option<u64>,
        realtime_runtime: Option<i64>,
        realtime_period: Option<u64>,
        cpus: String,
        mems: String,
        idle: Option<i64>,
    }

    PidsResources {
        limit: Option<i64>,
    }

    BlockIoResources {
        weight: Option<u16>,
        leaf_weight: Option<u16>,
        weight_device: Vec<WeightDevice>,
        throttle_read_bps_device: Vec<ThrottleDevice>,
        throttle_write_bps_device: Vec<ThrottleDevice>,
        #[serde(rename = "throttleReadIOPSDevice")]
        throttle_read_iops_device: Vec<ThrottleDevice>,
        #[serde(rename = "throttleWriteIOPSDevice")]
        throttle_write_iops_device: Vec<ThrottleDevice>,
    }

    WeightDevice [
        major: i64,
        minor: i64,
    ] {
        weight: Option<u16>,
        leaf_weight: Option<u16>,
    }

    ThrottleDevice [
        major: i64,
        minor: i64,
        rate: u64,
    ] {}

    HugepageLimit [
        page_size: String,
        limit: u64,
    ] {}

    NetworkResources {
        #[serde(rename = "classID")]
        class_id: Option<u32>,
        priorities: Vec<InterfacePriority>,
    }

    InterfacePriority [
        name: String,
        priority: u32,
    ] {}

    RdmaLimit {
        hca_handles: Option<u32>,
        hca_objects: Option<u32>,
    }

    /// A seccomp filter of system calls.
    LinuxSeccomp [
        default_action: String,
    ] {
        default_errno_ret: Option<u32>,
        architectures: Vec<String>,
        flags: Vec<String>,
        listener_path: String,
        listener_metadata: String,
        syscalls: Vec<SeccompRule>,
    }

    SeccompRule [
        names: Vec<String>,
        action: String,
    ] {
        errno_ret: Option<u32>,
        args: Vec<SeccompArg>,
    }

    SeccompArg [
        index: u32,
        value: u64,
        op: String,
    ] {
        value_two: u64,
    }
}

impl Spec {
    /// The namespace of this type that the container creates or joins. `None` if it stays in that of the runtime.
    pub fn namespace(&self, kind: &str) -> Option<&LinuxNamespace> {
        self.linux.as_ref()?.namespaces.iter().find(|namespace| namespace.kind == kind)
    }
}

impl User {
    /// Checks the name of a user or group that a client or an image gives: a number must be a valid id. If an invalid
    /// number were looked up as a name, a row of that name in the image's passwd(5) could map it to any user, such as
    /// root (CVE-2026-46680).
    pub fn check_number(text: &str) -> crate::Result<()> {
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse::<u32>() {
            // The kernel takes the greatest number, (uid_t)-1, for "unchanged" (chown(2), setresuid(2)).
            Ok(number) if number != u32::MAX => Ok(()),
            Err(_) if !is_number => Ok(()),
            _ => Err(crate::Error::invalid_argument(format!(
                "{text} is no user or group: their numbers are 0 to {}",
                u32::MAX - 1
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_number_out_of_range_is_not_looked_up_as_a_name() {
        for fits in ["0", "+7", "4294967294", "web", "", "-", "+", "web-1", "1web"] {
            User::check_number(fits).unwrap();
        }
        let long = ["00000000000004294967296", "18446744073709551616"];
        for not in ["4294967295", "4294967296", "+4294967296", "-1", "-0"].into_iter().chain(long) {
            let refused = User::check_number(not).unwrap_err();
            assert!(refused.message().starts_with(not), "{refused}");
        }
    }

    #[test]
    fn a_spec_round_trips() {
        let text = r#"{
            "ociVersion": "1.2.0", "future": {"x": [1]},
            "process": {"user": {"uid": 1, "additionalGids": [5]}, "args": ["sh"], "cwd": "/", "noNewPrivileges": true,
                        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}], "future": 1},
            "root": {"path": "rootfs", "readonly": true},
            "linux": {"namespaces": [{"type": "pid"}, {"type": "network", "path": "/x"}], "future": "kept",
                      "resources": {"memory": {"limit": -1, "disableOOMKiller": false},
                                    "blockIO": {"throttleReadIOPSDevice": [{"major": 8, "minor": 1, "rate": 3}]}},
                      "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
                      "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}}
        }"#;
        let spec: Spec = serde_json::from_str(text).unwrap();
        let written = serde_json::to_value(&spec).unwrap();
        assert_eq!(serde_json::from_value::<Spec>(written.clone()).unwrap(), spec);
        assert_eq!(written["future"]["x"][0], 1);
        assert_eq!(written["process"]["future"], 1);
        assert_eq!(written["linux"]["future"], "kept");
        assert_eq!(written["linux"]["uidMappings"][0]["hostID"], 1000);
        assert_eq!(written["linux"]["resources"]["memory"]["disableOOMKiller"], false);
        assert_eq!(spec.namespace("network").unwrap().path, "/x");
    }

    /// Replaces each field of a complete document by `null`, one at a time, nested objects included.
    #[test]
    fn null_reads_as_a_field_that_is_left_out() {
        fn nulls(value: &Value, path: &str, found: &mut Vec<String>) {
            let Value::Object(fields) = value else { return };
            for (name, value) in fields {
                let path = format!("{path}/{name}");
                nulls(value, &path, found);
                found.push(path);
            }
        }
        let document = serde_json::json!({
            "ociVersion": "1.2.0", "hostname": "h", "annotations": {}, "root": {"path": "r", "readonly": true},
            "mounts": [{"destination": "/a"}], "hooks": {"prestart": [], "poststop": []},
            "process": {"terminal": true, "consoleSize": {"height": 1, "width": 1}, "user": {"uid": 1, "additionalGids": []},
                        "args": ["a"], "env": [], "cwd": "/", "capabilities": {"bounding": []}, "rlimits": [],
                        "noNewPrivileges": true, "oomScoreAdj": 1, "ioPriority": {"class": "x", "priority": 1}},
            "linux": {"uidMappings": [], "sysctl": {}, "namespaces": [], "devices": [], "maskedPaths": [],
                      "resources": {"devices": [], "memory": {"limit": 1, "disableOOMKiller": true}, "unified": {},
                                    "cpu": {"shares": 1, "cpus": "0"}, "hugepageLimits": []},
                      "seccomp": {"defaultAction": "x", "architectures": [], "syscalls": []},
                      "rootfsPropagation": "slave", "timeOffsets": {}}
        });
        let mut paths = Vec::new();
        nulls(&document, "", &mut paths);
        assert!(paths.len() > 50, "{}", paths.len());
        for path in paths {
            let (object, name) = path.rsplit_once('/').unwrap();
            let (mut null, mut without) = (document.clone(), document.clone());
            null.pointer_mut(&path).unwrap().take();
            without.pointer_mut(object).unwrap().as_object_mut().unwrap().remove(name);
            let read = |value: Value| serde_json::from_value::<Spec>(value);
            assert_eq!(
                read(null).unwrap_or_else(|error| panic!("{path}: {error}")),
                read(without).unwrap(),
                "{path}"
            );
        }
    }

    #[test]
    fn required_keys_of_a_spec_are_written_when_empty() {
        let spec = Spec {
            process: Some(Process::default()),
            linux: Some(Linux {
                uid_mappings: vec![IdMapping { size: 1, ..IdMapping::default() }],
                resources: Some(LinuxResources {
                    devices: vec![DeviceRule { access: "rwm".into(), ..DeviceRule::default() }],
                    ..LinuxResources::default()
                }),
                ..Linux::default()
            }),
            ..Spec::default()
        };
        let written = serde_json::to_value(&spec).unwrap();
        assert_eq!(written["process"]["user"], serde_json::json!({"uid": 0, "gid": 0}));
        let linux = &written["linux"];
        assert_eq!(linux["uidMappings"][0], serde_json::json!({"containerID": 0, "hostID": 0, "size": 1}));
        assert_eq!(linux["resources"]["devices"][0], serde_json::json!({"allow": false, "access": "rwm"}));
    }
}
