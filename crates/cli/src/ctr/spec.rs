//! The OCI spec of a container that `ctr` creates: containerd's defaults, then the image's config, then the flags.

use std::collections::BTreeMap;
use std::path::Path;

use linux::beneath::{Root as Tree, stat};
use types::spec::defaults::{MASKED, READ_ONLY};
use types::spec::image::ExecConfig;
use types::spec::runtime::{
    Capabilities, CpuResources, DeviceRule, IdMapping, IntelRdt, Linux, LinuxDevice, LinuxNamespace,
    LinuxResources, LinuxSeccomp, MemoryResources, Mount, Process, Rlimit, Root, Spec, User, VERSION,
};
use types::{Context, Error, Platform, Result};

use super::command::{Call, Command, Flag};
use super::{apparmor, table};

/// The default capabilities of containerd's clients.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const SHARES: u64 = 1024;
const OPEN_FILES_MAX: u64 = 1024;
/// The CPU period, in microseconds.
const PERIOD: u64 = 100_000;

pub(super) const COMMAND: Command = Command::new(
    "spec",
    "[flags]",
    "print the OCI spec that containers begin with",
    &[Flag::value("platform", "a Linux platform; the spec is the same for all")],
    |call| Box::pin(default(call)),
);

/// The inputs of a spec besides the flags.
pub(super) struct Inputs<'a> {
    pub(super) namespace: &'a str,
    pub(super) id: &'a str,
    /// The words after the image and the id.
    pub(super) command: &'a [String],
    pub(super) image: &'a ExecConfig,
    pub(super) user: User,
    /// A folder of this machine as root file system.
    pub(super) rootfs: Option<&'a str>,
}

/// Prints the default spec, without an image or flags.
async fn default(call: Call) -> Result<u8> {
    if let Some(text) = call.value("platform") {
        let platform: Platform = text.parse()?;
        if platform.os != "linux" {
            return Err(Error::invalid_argument(format!(
                "--platform {text}: only containers of linux are made here"
            )));
        }
    }
    table::json(&serde_json::to_value(begun(&call)?).expect("a spec has a JSON form"));
    Ok(0)
}

fn begun(call: &Call) -> Result<Spec> {
    let namespace = call.value("namespace").unwrap_or("default");
    // The builder requires a program; the empty one is removed below.
    let (command, image) = ([String::new()], ExecConfig::default());
    let user = User::default();
    let mut spec =
        build(call, Inputs { namespace, id: "", command: &command, image: &image, user, rootfs: None })?;
    if let Some(process) = &mut spec.process {
        process.args.clear();
        process.env.clear();
    }
    if let Some(linux) = &mut spec.linux {
        linux.cgroups_path = format!("/{namespace}");
        // Default devices and limits are added when a container is created.
        let nothing = DeviceRule { allow: false, access: "rwm".into(), ..DeviceRule::default() };
        linux.resources = Some(LinuxResources { devices: vec![nothing], ..LinuxResources::default() });
    }
    Ok(spec)
}

pub(super) fn build(call: &Call, inputs: Inputs<'_>) -> Result<Spec> {
    let is_privileged = call.is("privileged");
    if call.is("privileged-without-host-devices") && !is_privileged {
        return Err(Error::invalid_argument("--privileged-without-host-devices requires --privileged"));
    }
    let capabilities = capabilities(call, is_privileged)?;
    let (uid_mappings, gid_mappings) = id_maps(call)?.unwrap_or_default();
    let mut spec = Spec {
        oci_version: VERSION.into(),
        process: Some(process(call, &inputs, &capabilities)?),
        root: Some(Root {
            path: inputs.rootfs.unwrap_or("rootfs").to_owned(),
            readonly: call.is("read-only"),
        }),
        hostname: call.value("hostname").unwrap_or_default().to_owned(),
        mounts: mounts(call, is_privileged)?,
        // As with containerd's, the container's labels are annotations too.
        annotations: Call::labels(&[call.values("annotation"), call.values("label")].concat()),
        linux: Some(Linux {
            resources: Some(resources(call)?),
            devices: devices(call)?,
            cgroups_path: match call.value("cgroup") {
                Some(path) => path.to_owned(),
                None => format!("/{}/{}", inputs.namespace, inputs.id),
            },
            namespaces: namespaces(call)?,
            rootfs_propagation: call.value("rootfs-propagation").unwrap_or_default().to_owned(),
            seccomp: seccomp(call, &capabilities)?,
            uid_mappings,
            gid_mappings,
            intel_rdt: call
                .value("rdt-class")
                .map(|class| IntelRdt { clos_id: class.to_owned(), ..IntelRdt::default() }),
            masked_paths: if is_privileged { Vec::new() } else { MASKED.map(str::to_owned).to_vec() },
            readonly_paths: if is_privileged { Vec::new() } else { READ_ONLY.map(str::to_owned).to_vec() },
            ..Linux::default()
        }),
        ..Spec::default()
    };
    let named = named_devices(call)?;
    if !named.is_empty() {
        cdi::Catalog::read(&cdi::FOLDERS).edits(&named)?.apply(&mut spec)?;
    }
    Ok(spec)
}

/// The requested CDI devices.
fn named_devices(call: &Call) -> Result<Vec<String>> {
    let mut named: Vec<String> =
        call.values("device").iter().filter(|device| cdi::is_qualified(device)).cloned().collect();
    for word in call.values("gpus").iter().flat_map(|words| words.split(',')) {
        if word != "all" && word.parse::<u32>().is_err() {
            return Err(Error::invalid_argument(format!("--gpus {word}: expected a number, or all")));
        }
        named.push(format!("nvidia.com/gpu={word}"));
    }
    Ok(named)
}

/// Reads a spec from a file, keeps its content as it is, and adds the container's labels as annotations. A relative
/// path of the root file system, as in a bundle, is made absolute, as the shim does not know the file's directory.
pub(super) fn of_file(file: &Path, labels: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let what = || format!("--config {}", file.display());
    let text = std::fs::read(file).context(what)?;
    let broken = |error| Error::invalid_argument(what()).with_source(error);
    let spec: Spec = serde_json::from_slice(&text).map_err(broken)?;
    let root = spec.root.filter(|root| !root.path.starts_with('/'));
    if root.is_none() && labels.is_empty() {
        return Ok(text);
    }
    let mut document: serde_json::Value = serde_json::from_slice(&text).map_err(broken)?;
    if let Some(root) = root {
        let bundle = std::path::absolute(file).context(what)?.parent().unwrap_or(Path::new("/")).to_owned();
        document["root"]["path"] = bundle.join(root.path).display().to_string().into();
    }
    for (key, value) in labels {
        document["annotations"][key.as_str()] = value.as_str().into();
    }
    Ok(document.to_string().into_bytes())
}

/// The seccomp filter: none by default, Hoist's own profile, or that of a file.
fn seccomp(call: &Call, capabilities: &[String]) -> Result<Option<LinuxSeccomp>> {
    match (call.is("seccomp"), call.value("seccomp-profile")) {
        (false, None) => Ok(None),
        (false, Some(_)) => Err(Error::invalid_argument("--seccomp-profile requires --seccomp")),
        (true, None) => Ok(Some(linux::seccomp::default_profile(capabilities))),
        (true, Some(path)) => {
            let what = || format!("--seccomp-profile {path}");
            let text = std::fs::read(path).context(what)?;
            let profile = serde_json::from_slice(&text);
            profile.map(Some).map_err(|error| Error::invalid_argument(what()).with_source(error))
        }
    }
}

/// The user and group mappings of a private user namespace, one range each.
type IdMaps = (Vec<IdMapping>, Vec<IdMapping>);

pub(super) fn id_maps(call: &Call) -> Result<Option<IdMaps>> {
    let map = |flag: &str| -> Result<Option<IdMapping>> {
        let Some(text) = call.value(flag) else { return Ok(None) };
        let numbers: Vec<u32> = text.split(':').filter_map(|number| number.parse().ok()).collect();
        match numbers[..] {
            [container_id, host_id, size] if text.split(':').count() == 3 => {
                Ok(Some(IdMapping { container_id, host_id, size }))
            }
            _ => Err(Error::invalid_argument(format!("--{flag} {text}: expected INSIDE:OUTSIDE:COUNT"))),
        }
    };
    match (map("uidmap")?, map("gidmap")?) {
        (None, None) => Ok(None),
        (Some(uids), Some(gids)) => Ok(Some((vec![uids], vec![gids]))),
        _ => Err(Error::invalid_argument("--uidmap and --gidmap belong together")),
    }
}

fn process(call: &Call, inputs: &Inputs<'_>, capabilities: &[String]) -> Result<Process> {
    let image = inputs.image;
    let args = match inputs.command {
        [] => image.entrypoint.iter().chain(&image.cmd).cloned().collect(),
        // As with containerd's, words on the command line replace entrypoint and command.
        own => own.to_vec(),
    };
    if args.is_empty() {
        return Err(Error::invalid_argument("no command specified: the image has none, and none was given"));
    }
    let cwd = call.value("cwd").filter(|cwd| !cwd.is_empty()).unwrap_or(&image.working_dir);
    Ok(Process {
        terminal: call.is("tty"),
        user: inputs.user.clone(),
        args,
        env: environment(call, image)?,
        cwd: if cwd.is_empty() { "/".to_owned() } else { cwd.to_owned() },
        capabilities: Some(Capabilities {
            bounding: capabilities.to_vec(),
            effective: capabilities.to_vec(),
            permitted: capabilities.to_vec(),
            inheritable: Vec::new(),
            ambient: Vec::new(),
        }),
        rlimits: vec![open_files(call)?],
        apparmor_profile: apparmor::profile(call)?,
        // As with containerd's, `--privileged` does not change this.
        no_new_privileges: !call.is("allow-new-privs"),
        ..Process::default()
    })
}

/// The limit of open files, from SOFT:HARD or one number for both.
fn open_files(call: &Call) -> Result<Rlimit> {
    let (soft, hard) = match call.value("rlimit-nofile").filter(|text| !text.is_empty()) {
        None => (OPEN_FILES_MAX, OPEN_FILES_MAX),
        Some(text) => {
            let (soft, hard) = text.split_once(':').unwrap_or((text, text));
            let number = |text: &str| text.parse::<u64>().ok();
            number(soft).zip(number(hard)).ok_or_else(|| {
                Error::invalid_argument(format!(
                    "--rlimit-nofile {text}: expected SOFT:HARD, or one number for both"
                ))
            })?
        }
    };
    Ok(Rlimit { kind: "RLIMIT_NOFILE".into(), soft, hard })
}

/// The environment: the image's variables, overridden by those of files, overridden by those of flags. As with
/// containerd's, a name without a value in a file removes the entries of earlier files, and in a flag those of all
/// files, but not the image's; lines are not trimmed. A container with the host network gets HOSTNAME last.
fn environment(call: &Call, image: &ExecConfig) -> Result<Vec<String>> {
    let mut own = Vec::new();
    for path in call.values("env-file") {
        let text = std::fs::read_to_string(path).context(|| format!("read {path}"))?;
        say(&mut own, text.lines().filter(|line| !line.starts_with('#')));
    }
    say(&mut own, call.values("env").iter().map(|entry| &**entry));
    let mut env = if image.env.is_empty() { vec![PATH.to_owned()] } else { image.env.clone() };
    if call.is("tty") {
        say(&mut env, ["TERM=xterm"]);
    }
    say(&mut env, own.iter().map(String::as_str));
    if call.is("net-host") {
        let name = format!("HOSTNAME={}", rustix::system::uname().nodename().to_string_lossy());
        say(&mut env, [name.as_str()]);
    }
    Ok(env)
}

/// Adds entries, each of which replaces earlier entries of its name. Entries of one call do not replace each other.
fn say<'a>(env: &mut Vec<String>, said: impl IntoIterator<Item = &'a str>) {
    let before = env.len();
    for entry in said {
        let (name, has_value) = entry.split_once('=').map_or((entry, false), |(name, _)| (name, true));
        let is_same = |other: &String| other.split('=').next() == Some(name);
        let value = if has_value { entry } else { "" };
        match env[..before].iter().rposition(is_same) {
            Some(at) => value.clone_into(&mut env[at]),
            None => env.push(value.to_owned()),
        }
    }
    env.retain(|entry| !entry.is_empty());
}

fn capabilities(call: &Call, is_privileged: bool) -> Result<Vec<String>> {
    let mut set = match is_privileged {
        true => linux::cap::CapSet::bounding().names(),
        false => CAPABILITIES.map(str::to_owned).to_vec(),
    };
    let known = |name: &String| match linux::cap::number(name) {
        Some(_) if name.starts_with("CAP_") => Ok(()),
        _ => Err(Error::invalid_argument(format!(
            "unknown capability {name:?}: capabilities must be specified with 'CAP_' prefix"
        ))),
    };
    for name in call.values("cap-add") {
        known(name)?;
        if !set.contains(name) {
            set.push(name.clone());
        }
    }
    for name in call.values("cap-drop") {
        known(name)?;
        set.retain(|own| own != name);
    }
    Ok(set)
}

fn namespaces(call: &Call) -> Result<Vec<LinuxNamespace>> {
    let mut kinds = vec!["pid", "ipc", "uts", "mount", "network"];
    if call.value("uidmap").is_some() {
        kinds.push("user");
    }
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        kinds.push("cgroup");
    }
    let mut namespaces: Vec<LinuxNamespace> =
        kinds.into_iter().map(|kind| LinuxNamespace { kind: kind.into(), path: String::new() }).collect();
    if call.is("net-host") {
        namespaces.retain(|namespace| namespace.kind != "network");
    }
    for entry in call.values("with-ns") {
        let Some((kind, path)) = entry.split_once(':') else {
            return Err(Error::invalid_argument(format!("--with-ns {entry}: expected <nstype>:<path>")));
        };
        namespaces.retain(|namespace| namespace.kind != kind);
        namespaces.push(LinuxNamespace { kind: kind.into(), path: path.into() });
    }
    Ok(namespaces)
}

fn mounts(call: &Call, is_privileged: bool) -> Result<Vec<Mount>> {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| Mount {
        destination: destination.into(),
        kind: kind.into(),
        source: source.into(),
        options: options.iter().map(ToString::to_string).collect(),
        ..Mount::default()
    };
    let access = if is_privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]),
        mount("/run", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ];
    if is_privileged {
        mounts.push(mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "rw"]));
    }
    if call.is("net-host") {
        for file in ["/etc/hosts", "/etc/resolv.conf"] {
            mounts.push(mount(file, "bind", file, &["rbind", "ro"]));
        }
    }
    for text in call.values("mount") {
        mounts.push(parse_mount(text)?);
    }
    Ok(mounts)
}

/// `type=bind,src=/a,dst=/b,options=rbind:ro`
fn parse_mount(text: &str) -> Result<Mount> {
    let bad = |why: &str| Error::invalid_argument(format!("--mount {text}: {why}"));
    let mut mount = Mount::default();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').ok_or_else(|| bad("expected key=value,…"))?;
        match key {
            "type" => mount.kind = value.to_owned(),
            "source" | "src" => mount.source = value.to_owned(),
            "destination" | "dst" => mount.destination = value.to_owned(),
            "options" => mount.options = value.split(':').map(str::to_owned).collect(),
            _ => return Err(bad(&format!("{key} is none of type, src, dst, options"))),
        }
    }
    if mount.destination.is_empty() {
        return Err(bad("dst is missing"));
    }
    Ok(mount)
}

fn resources(call: &Call) -> Result<LinuxResources> {
    let device = |kind: &str, major: Option<i64>, minor: Option<i64>| DeviceRule {
        allow: true,
        kind: kind.into(),
        major,
        minor,
        access: "rwm".into(),
    };
    let standard = [(1, 3), (1, 8), (1, 7), (5, 0), (1, 5), (1, 9), (5, 1)];
    let mut rules = vec![DeviceRule { allow: false, access: "rwm".into(), ..DeviceRule::default() }];
    if has_all_devices(call) {
        rules = vec![device("a", None, None)];
    } else {
        rules.extend(standard.map(|(major, minor)| device("c", Some(major), Some(minor))));
        rules.extend([device("c", Some(136), None), device("c", Some(5), Some(2))]);
        for own in devices(call)? {
            rules.push(device(&own.kind, Some(own.major), Some(own.minor)));
        }
    }
    let mut cpu = CpuResources {
        shares: Some(call.number("cpu-shares")?.unwrap_or(SHARES)),
        cpus: call.value("cpuset-cpus").unwrap_or_default().to_owned(),
        mems: call.value("cpuset-mems").unwrap_or_default().to_owned(),
        ..CpuResources::default()
    };
    if let Some(cpus) = call.number::<f64>("cpus")?.filter(|cpus| *cpus > 0.0) {
        (cpu.period, cpu.quota) = (Some(PERIOD), Some((cpus * PERIOD as f64) as i64));
    }
    if let Some(quota) = call.number::<i64>("cpu-quota")?.filter(|quota| *quota != -1) {
        cpu.quota = Some(quota);
    }
    if let Some(period) = call.number::<u64>("cpu-period")?.filter(|period| *period != 0) {
        cpu.period = Some(period);
    }
    let limit = call.number::<i64>("memory-limit")?.filter(|limit| *limit != 0);
    Ok(LinuxResources {
        devices: rules,
        memory: limit.map(|limit| MemoryResources { limit: Some(limit), ..MemoryResources::default() }),
        cpu: Some(cpu),
        ..LinuxResources::default()
    })
}

/// Whether the container has access to all devices of this machine.
fn has_all_devices(call: &Call) -> bool {
    call.is("privileged") && !call.is("privileged-without-host-devices")
}

/// The devices: single ones, or all of a directory, as with containerd's; for a privileged container all of this
/// machine's.
fn devices(call: &Call) -> Result<Vec<LinuxDevice>> {
    let mut devices: Vec<LinuxDevice> = Vec::new();
    let of_machine = has_all_devices(call).then_some(("--privileged", "/dev"));
    let named = call.values("device").iter().filter(|device| !cdi::is_qualified(device));
    for (flag, path) in of_machine.into_iter().chain(named.map(|path| ("--device", path.as_str()))) {
        let nodes = linux::device::nodes(Path::new(path)).context(|| format!("{flag} {path}"))?;
        for device in nodes.into_iter().map(|node| node.placed(Path::new(path))) {
            if !devices.iter().any(|known| known.path == device.path) {
                devices.push(device);
            }
        }
    }
    Ok(devices)
}

/// The most bytes that are read of passwd(5) and group(5).
const FILE_LEN_MAX: u64 = 4 << 20;

/// Parses `USER[:GROUP]`, each a name or a number. The root file system is opened only to look something up.
pub(super) fn user(text: &str, open: impl FnOnce() -> Result<Tree>) -> Result<User> {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    if text.is_empty() || text == "0" || text == "root" {
        // As with containerd's, the user's own group is an additional group.
        return Ok(User { additional_gids: vec![0], ..User::default() });
    }
    [user].into_iter().chain(group).try_for_each(User::check_number)?;
    if let (Ok(uid), Some(Ok(gid))) = (user.parse(), group.map(str::parse)) {
        return Ok(User { uid, gid, additional_gids: vec![gid], ..User::default() });
    }
    let tree = open()?;
    let (passwd, groups) = (read(&tree, "/etc/passwd")?, read(&tree, "/etc/group")?);
    // A number is never looked up as a name: an image with such a row could map it to another user, root for one.
    let row = |text: &str, name: &str| -> Option<Vec<String>> {
        let wanted = name.parse::<u32>().ok();
        let is_meant = |fields: &Vec<String>| match wanted {
            Some(wanted) => fields[2].parse::<u32>() == Ok(wanted),
            None => fields[0] == name,
        };
        let mut rows = text.lines().map(|line| line.split(':').map(str::to_owned).collect::<Vec<_>>());
        rows.find(|fields| fields.len() >= 4 && is_meant(fields))
    };
    let number = |fields: &[String], at: usize| fields[at].parse().ok();
    let found = row(&passwd, user);
    let uid = found.as_ref().and_then(|fields| number(fields, 2)).or_else(|| user.parse().ok());
    let uid = uid.ok_or_else(|| Error::not_found(format!("no user {user} in /etc/passwd of the image")))?;
    let gid = match group {
        None => found.as_ref().and_then(|fields| number(fields, 3)).unwrap_or(0),
        Some(group) => {
            let gid =
                row(&groups, group).and_then(|fields| number(&fields, 2)).or_else(|| group.parse().ok());
            gid.ok_or_else(|| Error::not_found(format!("no group {group} in /etc/group of the image")))?
        }
    };
    Ok(User { uid, gid, additional_gids: vec![gid], ..User::default() })
}

fn read(tree: &Tree, path: &str) -> Result<String> {
    let Some(file) = tree.find_file(Path::new(path))? else { return Ok(String::new()) };
    let what = || format!("read {path} of the image");
    let found = stat(std::os::fd::AsFd::as_fd(&file)).context(what)?;
    if u64::try_from(found.st_size).unwrap_or(u64::MAX) > FILE_LEN_MAX {
        return Err(Error::failed_precondition(format!(
            "{path} of the image is larger than such a file may be"
        )));
    }
    let mut text = Vec::new();
    let mut file = std::io::Read::take(std::fs::File::from(file), FILE_LEN_MAX);
    std::io::Read::read_to_end(&mut file, &mut text).context(what)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctr::{ROOT, command};

    #[test]
    fn an_env_name_without_a_value_removes_earlier_entries() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        std::fs::write(&file, "# of=ours\nA=1\nB=2\nC= spaces \nB\nHOME\n\n").unwrap();
        let flags =
            ["--env", "D=4", "--env", "A", "--env", "E=5", "--env", "OWN", "--env", "PATH", "--env", "E"];
        let file = ["run", "--env-file", file.to_str().unwrap()];
        let words = file.iter().chain(&flags).chain(&["image", "id"]).map(ToString::to_string);
        let Ok(command::Parsed::Call(call)) = command::parse(&ROOT, words.collect()) else {
            panic!("a call")
        };
        let image = ExecConfig { env: vec!["PATH=/bin".into(), "OWN=image".into()], ..ExecConfig::default() };
        let expected = ["PATH=/bin", "OWN=image", "B=2", "C= spaces ", "D=4", "E=5"];
        assert_eq!(environment(&call, &image).unwrap(), expected);
    }

    #[test]
    fn the_default_spec_has_neither_program_nor_limits() {
        let words = ["-n", "own", "oci", "spec"].map(str::to_owned).to_vec();
        let Ok(command::Parsed::Call(call)) = command::parse(&ROOT, words) else { panic!("a call") };
        let spec = begun(&call).unwrap();
        let (process, linux) = (spec.process.unwrap(), spec.linux.unwrap());
        assert!(
            process.args.is_empty() && process.env.is_empty() && process.no_new_privileges,
            "{process:?}"
        );
        assert_eq!(linux.cgroups_path, "/own");
        let resources = linux.resources.unwrap();
        assert!(resources.cpu.is_none() && resources.devices.len() == 1, "{resources:?}");
        assert_eq!(spec.mounts.len(), 7);
    }

    /// The spec for a command line of `run` and an image without a config.
    fn built(flags: &[&str]) -> Result<Spec> {
        let words = ["run"].iter().chain(flags).chain(&["image", "id", "true"]).map(ToString::to_string);
        let command::Parsed::Call(call) = command::parse(&ROOT, words.collect())? else { panic!("a call") };
        let (command, image) = (["true".to_owned()], ExecConfig::default());
        let (namespace, id, user) = ("default", "id", User::default());
        build(&call, Inputs { namespace, id, command: &command, image: &image, user, rootfs: None })
    }

    #[test]
    fn labels_are_annotations_of_the_spec_of_a_file_too() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        let text =
            r#"{"ociVersion": "1.2.0",  "root": {"path": "/x"}, "annotations": {"a": "file", "b": "file"}}"#;
        std::fs::write(&file, text).unwrap();
        assert_eq!(of_file(&file, &BTreeMap::new()).unwrap(), text.as_bytes());
        let labels =
            BTreeMap::from([("b", "label"), ("c", "label")].map(|(k, v)| (k.to_owned(), v.to_owned())));
        let annotations = || {
            let spec: Spec = serde_json::from_slice(&of_file(&file, &labels).unwrap()).unwrap();
            spec.annotations.into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>()
        };
        assert_eq!(annotations(), ["a=file", "b=label", "c=label"]);
        std::fs::write(&file, r#"{"ociVersion": "1.2.0", "annotations": null}"#).unwrap();
        assert_eq!(annotations(), ["b=label", "c=label"]);
    }

    #[test]
    fn limits_of_processors_and_files_are_those_of_the_flags() {
        let flags =
            ["--cpuset-cpus", "0-1", "--cpuset-mems", "0", "--rlimit-nofile", "100:200", "--label", "a=b"];
        let spec = built(&flags).unwrap();
        let cpu = spec.linux.unwrap().resources.unwrap().cpu.unwrap();
        assert_eq!((cpu.cpus.as_str(), cpu.mems.as_str()), ("0-1", "0"));
        let files = &spec.process.unwrap().rlimits[0];
        assert_eq!((files.soft, files.hard), (100, 200));
        assert_eq!(spec.annotations.get("a").map(String::as_str), Some("b"));
        let files = built(&["--rlimit-nofile", "7"]).unwrap().process.unwrap().rlimits;
        assert_eq!((files[0].soft, files[0].hard), (7, 7));
        for bad in ["x", "1:", "1:2:3"] {
            let refused = built(&["--rlimit-nofile", bad]).unwrap_err();
            assert!(refused.chain().contains("SOFT:HARD"), "{refused:?}");
        }
    }

    #[test]
    fn privileged_containers_have_all_devices_unless_told_otherwise() {
        let of = |flags: &[&str]| {
            let spec = built(flags).unwrap();
            let linux = spec.linux.unwrap();
            let has_null = linux.devices.iter().any(|device| device.path == "/dev/null");
            let resources = linux.resources.unwrap();
            let is_free = resources.devices.iter().any(|rule| rule.allow && rule.kind == "a");
            (has_null, is_free, spec.process.unwrap().no_new_privileges)
        };
        assert_eq!(of(&[]), (false, false, true));
        assert_eq!(of(&["--privileged"]), (true, true, true));
        assert_eq!(of(&["--privileged", "--privileged-without-host-devices"]), (false, false, true));
        assert_eq!(of(&["--allow-new-privs"]), (false, false, false));
        let alone = built(&["--privileged-without-host-devices"]).unwrap_err();
        assert!(alone.chain().contains("requires --privileged"), "{alone:?}");
        let env = built(&["--net-host", "--env", "HOSTNAME=mine"]).unwrap().process.unwrap().env;
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        assert!(env.contains(&format!("HOSTNAME={name}")), "{env:?}");
    }

    #[test]
    fn a_pipe_in_place_of_passwd_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let path = dir.path().join("etc/passwd");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let refused = user("web", || Tree::open(dir.path())).unwrap_err();
        assert!(refused.chain().contains("/etc/passwd is no regular file"), "{refused:?}");
    }

    #[test]
    fn powercap_is_masked() {
        let words = ["run", "image", "id", "true"].map(str::to_owned).to_vec();
        let Ok(command::Parsed::Call(call)) = command::parse(&ROOT, words) else { panic!("a call") };
        let (command, image) = (["true".to_owned()], ExecConfig::default());
        let (namespace, id, user) = ("default", "id", User::default());
        let inputs = Inputs { namespace, id, command: &command, image: &image, user, rootfs: None };
        let linux = build(&call, inputs).unwrap().linux.unwrap();
        assert!(linux.masked_paths.iter().any(|path| path == "/sys/devices/virtual/powercap"));
        assert_eq!(linux.readonly_paths, READ_ONLY);
    }

    #[test]
    fn mount_flags_are_parsed() {
        let mount = parse_mount("type=bind,src=/a,dst=/b,options=rbind:ro").unwrap();
        assert_eq!(
            (mount.kind.as_str(), mount.source.as_str(), mount.destination.as_str()),
            ("bind", "/a", "/b")
        );
        assert_eq!(mount.options, ["rbind", "ro"]);
        for bad in ["/a:/b", "type=bind", "dst=/b,mode=3"] {
            assert!(parse_mount(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn users_are_looked_up_in_the_root_file_system() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        let rows = "root:x:0:0::/:\nweb:x:33:44::/:/bin/sh\n1000:x:0:0::/:\n4294967296:x:0:0::/:\n";
        std::fs::write(dir.path().join("etc/passwd"), rows).unwrap();
        std::fs::write(dir.path().join("etc/group"), "50:x:0:\nstaff:x:50:\n4294967296:x:0:\n").unwrap();
        let check = |text: &str, expected: Option<(u32, u32)>| {
            let found = user(text, || Tree::open(dir.path())).ok().map(|user| (user.uid, user.gid));
            assert_eq!(found, expected, "{text}");
        };
        check("", Some((0, 0)));
        check("web", Some((33, 44)));
        check("33", Some((33, 44)));
        check("web:staff", Some((33, 50)));
        check("7:8", Some((7, 8)));
        check("7", Some((7, 0)));
        // A number is that number, even if the image has a user of that name.
        check("1000", Some((1000, 0)));
        check("web:50", Some((33, 50)));
        check("nobody", None);
        check("web:nosuch", None);
        // A number out of range is refused, whatever the image's files have.
        check("4294967296", None);
        check("web:4294967296", None);
        check("4294967295:7", None);
        check("7:4294967295", None);
    }
}
