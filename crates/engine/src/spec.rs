//! Builds the OCI spec from an image's config and the client's request, with Docker's defaults.

mod extras;
mod seccomp;

use std::path::Path;

use crate::{cpus, etc};
use api::engine::Create;
use types::spec::defaults::{MASKED, READ_ONLY};
use types::spec::image::ExecConfig;
use types::spec::runtime::{
    BlockIoResources, Capabilities, CpuResources, DeviceRule, Linux, LinuxNamespace, LinuxResources,
    MemoryResources, Mount, PidsResources, Process, Root, Spec, User, VERSION,
};
use types::{Context, Error, Result};

/// Docker's default capabilities.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];
/// Masked by Docker beyond the usual paths: interrupt counts reveal what other containers do.
const INTERRUPTS: &str = "/proc/interrupts";
/// Where sysfs describes the CPUs.
const PROCESSORS: &str = "/sys/devices/system/cpu";
/// Docker's minimum memory limit, in bytes: creating a container takes that much.
const MEMORY_MIN: i64 = 6 << 20;
/// As an address: that by which containers reach the host.
pub(crate) const HOST_GATEWAY: &str = "host-gateway";
/// As a namespace mode: the host's namespace.
pub(crate) const HOST: &str = "host";
/// Prefix of a namespace mode: another container's namespace.
pub(crate) const OF_CONTAINER: &str = "container:";
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Which network namespace a container gets.
pub(crate) enum Network<'a> {
    Host,
    /// A new one, only with a loopback interface; ends with the container.
    Alone,
    /// The one pinned to this file.
    At(&'a Path),
}

/// Everything that a spec is built from.
pub(crate) struct Inputs<'a> {
    pub(crate) create: &'a Create,
    pub(crate) image: &'a ExecConfig,
    pub(crate) hostname: &'a str,
    pub(crate) user: User,
    pub(crate) home: &'a str,
    pub(crate) network: Network<'a>,
    /// Directory with hosts, hostname and resolv.conf.
    pub(crate) files: &'a Path,
    pub(crate) cgroup: String,
    /// The requested mounts, with volumes resolved to directories.
    pub(crate) mounts: Vec<Mount>,
}

/// The command line: entrypoint and command of the request, or else of the image.
pub(crate) fn command(create: &Create, image: &ExecConfig) -> Result<Vec<String>> {
    let (entrypoint, arguments) = entrypoint_and_command(create, image);
    let command: Vec<String> = entrypoint.into_iter().chain(arguments).collect();
    if command.is_empty() {
        return Err(Error::invalid_argument("no command specified: the image has none, and none was given"));
    }
    Ok(command)
}

/// Entrypoint and arguments separately. A requested entrypoint drops the image's command.
pub(crate) fn entrypoint_and_command(create: &Create, image: &ExecConfig) -> (Vec<String>, Vec<String>) {
    let entrypoint = match create.entrypoint.as_deref() {
        Some("") => Vec::new(),
        Some(own) => vec![own.to_owned()],
        None => image.entrypoint.clone(),
    };
    let command = match (&create.command[..], &create.entrypoint) {
        ([], None) => image.cmd.clone(),
        (own, _) => own.to_vec(),
    };
    (entrypoint, command)
}

pub(crate) fn build(inputs: Inputs<'_>) -> Result<Spec> {
    let create = inputs.create;
    let capabilities = capabilities(create)?;
    let process = Process {
        terminal: create.tty,
        user: inputs.user.clone(),
        args: command(create, inputs.image)?,
        env: environment(&inputs),
        cwd: working_directory(create, inputs.image)?,
        capabilities: Some(Capabilities {
            bounding: capabilities.clone(),
            // A user other than root gets capabilities only through files.
            effective: if inputs.user.uid == 0 { capabilities.clone() } else { Vec::new() },
            permitted: if inputs.user.uid == 0 { capabilities.clone() } else { Vec::new() },
            inheritable: Vec::new(),
            ambient: Vec::new(),
        }),
        oom_score_adj: Some(0),
        ..Process::default()
    };
    let mut namespaces: Vec<LinuxNamespace> = ["pid", "ipc", "uts", "mount", "cgroup"]
        .iter()
        .map(|kind| LinuxNamespace { kind: (*kind).into(), path: String::new() })
        .collect();
    let network = match inputs.network {
        Network::Host => None,
        Network::Alone => Some(String::new()),
        Network::At(path) => Some(path.display().to_string()),
    };
    namespaces.extend(network.map(|path| LinuxNamespace { kind: "network".into(), path }));
    let strings = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    let seccomp = (!create.privileged).then(|| linux::seccomp::default_profile(&capabilities));
    let mut spec = Spec {
        oci_version: VERSION.into(),
        process: Some(process),
        root: Some(Root { path: "rootfs".into(), readonly: create.read_only }),
        hostname: inputs.hostname.to_owned(),
        mounts: mounts(&inputs),
        linux: Some(Linux {
            resources: Some(resources(create)?),
            cgroups_path: inputs.cgroup,
            namespaces,
            seccomp,
            masked_paths: if create.privileged { Vec::new() } else { masked(Path::new(PROCESSORS)) },
            readonly_paths: if create.privileged { Vec::new() } else { strings(&READ_ONLY) },
            rootfs_propagation: root_propagation(&inputs.mounts).to_owned(),
            ..Linux::default()
        }),
        ..Spec::default()
    };
    extras::apply(create, &mut spec)?;
    Ok(spec)
}

/// Paths that containers must not read: [`MASKED`], [`INTERRUPTS`], and each CPU's thermal throttle counters, where it
/// has them: they reveal what other containers do.
///
/// Listed for each container, because CPUs may be added while the daemon runs.
fn masked(processors: &Path) -> Vec<String> {
    let each = std::fs::read_dir(processors).into_iter().flatten().flatten();
    let counters = each.map(|entry| entry.path().join("thermal_throttle")).filter(|path| path.is_dir());
    let mut heat: Vec<String> = counters.map(|path| path.display().to_string()).collect();
    heat.sort();
    let everywhere = MASKED.iter().chain(&[INTERRUPTS]).map(ToString::to_string);
    everywhere.chain(heat).collect()
}

fn capabilities(create: &Create) -> Result<Vec<String>> {
    // The daemon cannot grant a capability that is outside its own bounding set.
    let all = linux::cap::CapSet::bounding().names();
    if create.privileged {
        return Ok(all);
    }
    let full = |name: &str| -> Result<String> {
        linux::cap::number(name)
            .ok_or_else(|| Error::invalid_argument(format!("unknown capability {name:?}")))?;
        let upper = name.to_ascii_uppercase();
        Ok(if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") })
    };
    let is_all = |list: &[String]| list.iter().any(|name| name.eq_ignore_ascii_case("all"));
    let mut set: Vec<String> = match (is_all(&create.cap_drop), is_all(&create.cap_add)) {
        (_, true) => all,
        (true, false) => Vec::new(),
        (false, false) => CAPABILITIES.map(str::to_owned).to_vec(),
    };
    for name in create.cap_drop.iter().filter(|name| !name.eq_ignore_ascii_case("all")) {
        let name = full(name)?;
        set.retain(|own| *own != name);
    }
    for name in create.cap_add.iter().filter(|name| !name.eq_ignore_ascii_case("all")) {
        let name = full(name)?;
        if !set.contains(&name) {
            set.push(name);
        }
    }
    Ok(set)
}

fn environment(inputs: &Inputs<'_>) -> Vec<String> {
    let mut env = vec![PATH.to_owned(), format!("HOSTNAME={}", inputs.hostname)];
    if inputs.create.tty {
        env.push("TERM=xterm".into());
    }
    env.push(format!("HOME={}", inputs.home));
    if let Some(called_at) = inputs.create.called_at {
        env.push(format!("HOIST_STARTED_AT={called_at}"));
    }
    for entry in inputs.image.env.iter().chain(&inputs.create.env) {
        let key = entry.split('=').next().unwrap_or_default();
        let prefix = format!("{key}=");
        env.retain(|own| !own.starts_with(&prefix));
        if entry.contains('=') {
            env.push(entry.clone());
        }
    }
    env
}

fn working_directory(create: &Create, image: &ExecConfig) -> Result<String> {
    if let Some(wanted) = create.workdir.as_deref().filter(|cwd| !cwd.is_empty()) {
        check_working_directory(wanted)?;
        return Ok(wanted.to_owned());
    }
    Ok(match image.working_dir.as_str() {
        "" => "/".into(),
        // An image's relative path counts from the root.
        relative if !relative.starts_with('/') => format!("/{relative}"),
        absolute => absolute.to_owned(),
    })
}

/// `InvalidArgument` for a requested relative working directory.
pub(crate) fn check_working_directory(wanted: &str) -> Result<()> {
    match wanted.starts_with('/') {
        true => Ok(()),
        false => Err(Error::invalid_argument(format!(
            "the working directory {wanted:?} is invalid, it needs to be an absolute path"
        ))),
    }
}

fn mounts(inputs: &Inputs<'_>) -> Vec<Mount> {
    let create = inputs.create;
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| Mount {
        destination: destination.into(),
        kind: kind.into(),
        source: source.into(),
        options: options.iter().map(ToString::to_string).collect(),
        ..Mount::default()
    };
    let access = if create.privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", access]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]),
    ];
    let taken = |path: &str| inputs.mounts.iter().any(|own| own.destination == path);
    for name in etc::NAMES {
        let destination = format!("/etc/{name}");
        if !taken(&destination) {
            let source = inputs.files.join(name).display().to_string();
            mounts.push(mount(&destination, "bind", &source, &["rbind", "rprivate"]));
        }
    }
    mounts.retain(|own| !taken(&own.destination));
    mounts.extend(inputs.mounts.iter().cloned());
    mounts
}

/// Mounts made below a shared bind propagate to the host only if the root's mounts are shared as well.
fn root_propagation(mounts: &[Mount]) -> &'static str {
    let is_shared =
        |mount: &Mount| mount.options.iter().any(|option| option == "shared" || option == "rshared");
    if mounts.iter().any(is_shared) { "shared" } else { "" }
}

pub(crate) fn resources(create: &Create) -> Result<LinuxResources> {
    let memory = create.memory.filter(|limit| *limit != 0);
    if let Some(limit) = memory.filter(|limit| *limit < MEMORY_MIN) {
        return Err(Error::invalid_argument(format!(
            "memory limit {limit}: no container starts with less than {MEMORY_MIN} bytes (6m)"
        )));
    }
    let milli_cpus = create.milli_cpus.filter(|milli| *milli != 0);
    if let Some(milli) = milli_cpus {
        cpus::check_share(milli, cpus::count())?;
    }
    cpus::check_times(create)?;
    if !create.extras.cpuset.is_empty() {
        let path = "/sys/devices/system/cpu/online";
        let online = std::fs::read_to_string(path).context(|| format!("read {path}"))?;
        cpus::check_list("CPUs", &create.extras.cpuset, online.trim())?;
    }
    if !create.extras.cpuset_mems.is_empty() {
        // A kernel without NUMA has one memory node.
        let online = std::fs::read_to_string("/sys/devices/system/node/online");
        cpus::check_list(
            "memory nodes",
            &create.extras.cpuset_mems,
            online.as_deref().unwrap_or("0").trim(),
        )?;
    }
    let reservation = create.extras.memory_reservation.filter(|reservation| *reservation != 0);
    if let (Some(limit), Some(reservation)) = (memory, reservation)
        && limit < reservation
    {
        return Err(Error::invalid_argument(format!(
            "memory limit {limit} can not be less than the memory reservation, {reservation}"
        )));
    }
    let device = |kind: &str, major: Option<i64>, minor: Option<i64>| DeviceRule {
        allow: true,
        kind: kind.into(),
        major,
        minor,
        access: "rwm".into(),
    };
    let devices = if create.privileged {
        vec![device("a", None, None)]
    } else {
        let standard = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];
        let refuse = DeviceRule { allow: false, access: "rwm".into(), ..DeviceRule::default() };
        let each = standard.iter().map(|(major, minor)| device("c", Some(*major), Some(*minor)));
        std::iter::once(refuse).chain(each).chain([device("c", Some(136), None)]).collect()
    };
    check_swap(create)?;
    let swap = memory_and_swap(create);
    if let Some(swappiness) = create.extras.swappiness.filter(|swappiness| *swappiness > 100) {
        return Err(Error::invalid_argument(format!(
            "--memory-swappiness {swappiness}: valid memory swappiness range is 0-100, and -1 is the machine's"
        )));
    }
    let memory = MemoryResources {
        limit: memory,
        reservation,
        swap,
        swappiness: create.extras.swappiness,
        disable_oom_killer: create.extras.oom_kill_disable.then_some(true),
        ..MemoryResources::default()
    };
    let of_share = milli_cpus.map(|milli| i64::try_from(milli * 100).unwrap_or(i64::MAX));
    let cpu = CpuResources {
        period: milli_cpus.map(|_| 100_000).or(create.extras.cpu_period),
        quota: of_share.or(create.extras.cpu_quota),
        shares: create.extras.cpu_shares,
        cpus: create.extras.cpuset.clone(),
        mems: create.extras.cpuset_mems.clone(),
        ..CpuResources::default()
    };
    let weight = create.extras.blkio_weight;
    if let Some(weight) = weight.filter(|weight| !(10..=1000).contains(weight)) {
        return Err(Error::invalid_argument(format!("--blkio-weight {weight}: it is from 10 to 1000")));
    }
    Ok(LinuxResources {
        devices,
        memory: (memory != MemoryResources::default()).then_some(memory),
        cpu: (cpu != CpuResources::default()).then_some(cpu),
        // 0 or less is Docker's spelling of no limit; in the OCI spec that is -1.
        pids: create
            .pids_limit
            .map(|limit| PidsResources { limit: Some(if limit <= 0 { -1 } else { limit }) }),
        block_io: weight
            .map(|weight| BlockIoResources { weight: Some(weight), ..BlockIoResources::default() }),
        ..LinuxResources::default()
    })
}

/// Limit of memory and swap together, in bytes, by Docker's rules: twice the memory by default; -1 is no limit.
pub(crate) fn memory_and_swap(create: &Create) -> Option<i64> {
    let memory = create.memory.filter(|limit| *limit > 0);
    match create.extras.memory_swap.filter(|limit| *limit != 0) {
        // Without a memory limit, there is no swap limit to lift.
        Some(-1) => memory.map(|_| -1),
        Some(both) => Some(both),
        None => memory.map(|limit| limit.saturating_mul(2)),
    }
}

fn check_swap(create: &Create) -> Result<()> {
    let memory = create.memory.filter(|limit| *limit > 0);
    match (memory, create.extras.memory_swap) {
        (_, None | Some(-1 | 0)) => Ok(()),
        (_, Some(both)) if both < 0 => Err(Error::invalid_argument(format!(
            "--memory-swap {both}: it is bytes of memory and swap together, or -1"
        ))),
        (None, Some(both)) => Err(Error::invalid_argument(format!(
            "--memory-swap {both}: it limits memory and swap together, so it needs --memory"
        ))),
        (Some(memory), Some(both)) if both < memory => Err(Error::invalid_argument(format!(
            "--memory-swap {both}: it is memory and swap together, so it is not less than --memory, {memory}"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use types::ErrorKind;

    use super::*;

    #[test]
    fn command_lines_are_put_together_as_dockers() {
        let image =
            ExecConfig { entrypoint: vec!["/e".into()], cmd: vec!["c".into()], ..ExecConfig::default() };
        let check = |command_words: &[&str], entrypoint: Option<&str>, expected: &[&str]| {
            let create = Create {
                command: command_words.iter().map(ToString::to_string).collect(),
                entrypoint: entrypoint.map(str::to_owned),
                ..Create::default()
            };
            assert_eq!(command(&create, &image).unwrap(), expected);
        };
        check(&[], None, &["/e", "c"]);
        check(&["x"], None, &["/e", "x"]);
        check(&["x"], Some("/own"), &["/own", "x"]);
        check(&[], Some("/own"), &["/own"]);
        assert!(command(&Create::default(), &ExecConfig::default()).is_err());
    }

    /// CVE-2026-57231: an environment entry without a value in an image was replaced by the daemon's own variable.
    #[test]
    fn an_image_gets_nothing_of_the_daemons_environment() {
        let env = ["PATH", "CARGO*", "*", "", "A=1"].map(str::to_owned).to_vec();
        let (create, image) = (Create::default(), ExecConfig { env, ..ExecConfig::default() });
        let inputs = Inputs {
            create: &create,
            image: &image,
            hostname: "h",
            user: User::default(),
            home: "/",
            network: Network::Alone,
            files: Path::new("/"),
            cgroup: String::new(),
            mounts: Vec::new(),
        };
        assert_eq!(environment(&inputs), ["HOSTNAME=h", "HOME=/", "A=1"]);
    }

    #[test]
    fn working_directories_are_absolute_or_the_images() {
        let check = |wanted: Option<&str>, image: &str| {
            let create = Create { workdir: wanted.map(str::to_owned), ..Create::default() };
            let image = ExecConfig { working_dir: image.to_owned(), ..ExecConfig::default() };
            working_directory(&create, &image).map_err(|error| error.kind())
        };
        assert_eq!(check(None, ""), Ok("/".into()));
        assert_eq!(check(Some(""), "data"), Ok("/data".into()));
        assert_eq!(check(Some("/own"), "/data"), Ok("/own".into()));
        assert_eq!(check(Some("own"), "/data"), Err(ErrorKind::InvalidArgument));
    }

    #[test]
    fn memory_has_a_least_limit_and_none_by_zero() {
        let limit = |memory: i64| resources(&Create { memory: Some(memory), ..Create::default() });
        assert!(limit(0).unwrap().memory.is_none());
        assert_eq!(limit(6 << 20).unwrap().memory.unwrap().limit, Some(6 << 20));
        let refused = limit(1024).unwrap_err();
        assert!(refused.is(ErrorKind::InvalidArgument) && refused.message().contains("1024"), "{refused}");
    }

    #[test]
    fn memory_and_swap_are_limited_together() {
        let swap = |memory: i64, memory_swap: Option<i64>| {
            let extras = api::engine::Extras { memory_swap, ..Default::default() };
            let memory = Some(memory << 20).filter(|limit| *limit != 0);
            let limits = resources(&Create { memory, extras, ..Create::default() })?;
            Ok(limits.memory.and_then(|memory| memory.swap))
        };
        let check = |memory, memory_swap, expected| {
            let found: Result<_> = swap(memory, memory_swap);
            assert_eq!(found.unwrap(), expected, "{memory} {memory_swap:?}");
        };
        check(0, None, None);
        check(0, Some(-1), None);
        check(8, None, Some(16 << 20));
        check(8, Some(0), Some(16 << 20));
        check(8, Some(8 << 20), Some(8 << 20));
        check(8, Some(-1), Some(-1));
        for (memory, both, words) in
            [(0, 8 << 20, "needs --memory"), (8, 7 << 20, "not less"), (8, -2, "or -1")]
        {
            let refused = swap(memory, Some(both)).unwrap_err();
            assert!(refused.is(ErrorKind::InvalidArgument) && refused.message().contains(words), "{refused}");
        }
    }

    #[test]
    fn thermal_throttle_counters_are_masked_where_they_exist() {
        let dir = tempfile::tempdir().unwrap();
        let everywhere = [&MASKED[..], &[INTERRUPTS]].concat();
        assert_eq!(masked(dir.path()), everywhere);
        assert_eq!(masked(&dir.path().join("missing")), everywhere);
        for name in ["cpu1/thermal_throttle", "cpu0/thermal_throttle", "cpu2/topology", "cpufreq"] {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("possible"), "0-2\n").unwrap();
        let heat = [0, 1].map(|cpu| format!("{}/cpu{cpu}/thermal_throttle", dir.path().display()));
        assert_eq!(masked(dir.path())[everywhere.len()..], heat);
    }

    #[test]
    fn capabilities_are_added_and_dropped() {
        let check = |add: &[&str], drop: &[&str]| {
            let strings = |words: &[&str]| words.iter().map(ToString::to_string).collect();
            capabilities(&Create { cap_add: strings(add), cap_drop: strings(drop), ..Create::default() })
        };
        assert_eq!(check(&[], &["ALL"]).unwrap(), Vec::<String>::new());
        assert_eq!(check(&["net_admin"], &["all"]).unwrap(), ["CAP_NET_ADMIN"]);
        assert!(!check(&[], &["CAP_CHOWN"]).unwrap().contains(&"CAP_CHOWN".to_owned()));
        assert_eq!(check(&["ALL"], &[]).unwrap(), linux::cap::CapSet::bounding().names());
        assert!(check(&["nosuch"], &[]).is_err());
    }
}
