//! Everything that is decided before the clone, so that the child only acts: the checked spec, opened descriptors,
//! compiled filters.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use linux::cap::{self, CapSet};
use linux::ns::{self, NsKind};
use types::spec::runtime::{Capabilities, DeviceRule, Hooks, LinuxNamespace, LinuxSeccomp, Process, Spec};
use types::{Context, Error, Result};

use crate::{hooks, net_devices, scheduling};

/// Standard input, output and error of a process.
pub enum Stdio {
    /// These descriptors.
    Pipes { stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd },
    /// A new terminal of the container's devpts, of this size (rows, columns) if given. Its master is returned.
    ///
    /// `is_relayed`: the caller copies the output to a terminal of its own, or to a pipe. So line ends are not
    /// translated here: the other terminal does that, and a pipe gets no carriage returns.
    Terminal { size: Option<(u16, u16)>, is_relayed: bool },
    /// The caller's own.
    Inherit,
}

/// The namespaces of a container.
pub(crate) struct Namespaces {
    /// Made by clone.
    pub(crate) new: Vec<NsKind>,
    /// Joined, in this order.
    pub(crate) joined: Vec<(NsKind, OwnedFd)>,
}

impl Namespaces {
    /// Opens the namespaces to join, and refuses settings of a namespace that the container shares with the caller.
    pub(crate) fn of(spec: &Spec) -> Result<Namespaces> {
        let mut namespaces = Namespaces { new: Vec::new(), joined: Vec::new() };
        let mut seen = Vec::new();
        for namespace in spec.linux.iter().flat_map(|linux| &linux.namespaces) {
            let kind = NsKind::from_name(&namespace.kind)?;
            if seen.contains(&kind) {
                return Err(Error::invalid_argument(format!("namespace {} is listed twice", kind.name())));
            }
            seen.push(kind);
            if namespace.path.is_empty() {
                namespaces.new.push(kind);
            } else {
                namespaces.joined.push((kind, kind.open(Path::new(&namespace.path))?));
            }
        }
        // The user namespace owns the others, so it is entered first.
        namespaces.joined.sort_by_key(|(kind, _)| *kind);
        check_settings(spec, &namespaces.own()?)?;
        Ok(namespaces)
    }

    /// Those that the container does not share with the caller. A joined namespace may be the caller's, whatever its
    /// path.
    fn own(&self) -> Result<Vec<NsKind>> {
        let mut own = self.new.clone();
        for (kind, file) in &self.joined {
            if !ns::is_current(file.as_fd(), *kind)? {
                own.push(*kind);
            }
        }
        Ok(own)
    }

    pub(crate) fn is_new(&self, kind: NsKind) -> bool {
        self.new.contains(&kind)
    }

    /// The namespace of this kind to join, if there is one.
    pub(crate) fn joined(&self, kind: NsKind) -> Option<BorrowedFd<'_>> {
        self.joined.iter().find(|(joined, _)| *joined == kind).map(|(_, file)| file.as_fd())
    }

    pub(crate) fn has(&self, kind: NsKind) -> bool {
        self.is_new(kind) || self.joined(kind).is_some()
    }
}

/// Reads and checks `config.json`.
pub(crate) fn read_spec(bundle: &Path) -> Result<Spec> {
    let path = bundle.join("config.json");
    let bytes = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(no_spec(bundle)),
        bytes => bytes.context(|| format!("read {}", path.display()))?,
    };
    let mut spec: Spec = serde_json::from_slice(&bytes)
        .map_err(|error| Error::invalid_argument(format!("read {}", path.display())).with_source(error))?;
    // As runc does, an empty profile is taken for none.
    if let Some(linux) = &mut spec.linux {
        let is_empty =
            |seccomp: &LinuxSeccomp| seccomp.default_action.is_empty() && seccomp.syscalls.is_empty();
        linux.seccomp = linux.seccomp.take().filter(|seccomp| !is_empty(seccomp));
    }
    check(&spec).map_err(|error| error.context(format!("{} cannot be run", path.display())))?;
    Ok(spec)
}

/// Programs that drive runc match on its beginning.
fn no_spec(bundle: &Path) -> Error {
    let bundle = std::path::absolute(bundle).unwrap_or_else(|_| bundle.to_owned());
    let bundle = bundle.display();
    Error::not_found(format!(
        "JSON specification file config.json not found in {bundle}; name the bundle with --bundle, or make one with spec"
    ))
}

/// The hooks of a bundle, for state files of earlier versions. None if the bundle is gone.
pub(crate) fn read_hooks(bundle: &Path) -> Result<Option<Hooks>> {
    #[derive(serde::Deserialize)]
    struct Part {
        hooks: Option<Hooks>,
    }
    let path = bundle.join("config.json");
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context(|| format!("read {}", path.display())),
    };
    let part: Part = serde_json::from_slice(&bytes)
        .map_err(|error| Error::invalid_argument(format!("read {}", path.display())).with_source(error))?;
    Ok(part.hooks)
}

/// Whether creating this bundle's container may block on others: on hooks, on the supervisor of a seccomp filter, or on
/// containers that share the pid namespace, and so can stop the first process. Errs on the side of true. The shim asks
/// this at each creation.
pub fn waits_for_others(bundle: &Path) -> bool {
    let text = std::fs::read(bundle.join("config.json")).unwrap_or_default();
    let has = |key: &str| text.windows(key.len()).any(|part| part == key.as_bytes());
    // Searched as text, which is cheaper than parsing.
    has("\"hooks\"") || has("\"listenerPath\"") || joins_pids(&text)
}

/// Whether a spec joins an existing pid namespace.
fn joins_pids(text: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Part {
        linux: Option<LinuxPart>,
    }
    #[derive(serde::Deserialize)]
    struct LinuxPart {
        #[serde(default)]
        namespaces: Vec<LinuxNamespace>,
    }
    let part = serde_json::from_slice::<Part>(text).ok().and_then(|part| part.linux);
    let namespaces = part.map(|linux| linux.namespaces).unwrap_or_default();
    namespaces.iter().any(|namespace| namespace.kind == "pid" && !namespace.path.is_empty())
}

fn check(spec: &Spec) -> Result<()> {
    let bad = |why: String| Err(Error::invalid_argument(why));
    let major = spec.oci_version.split('.').next().unwrap_or_default();
    if major != "1" {
        return bad(format!("ociVersion {:?} is not 1.x", spec.oci_version));
    }
    if spec.root.as_ref().is_none_or(|root| root.path.is_empty()) {
        return bad("root.path is empty".into());
    }
    let Some(process) = &spec.process else { return bad("process is missing".into()) };
    check_process(process)?;
    if spec.namespace("mount").is_none() {
        return bad("a container needs a mount namespace of its own".into());
    }
    if let Some(linux) = &spec.linux {
        let is_new = |kind: &str| spec.namespace(kind).is_some_and(|namespace| namespace.path.is_empty());
        let is_mapped = !linux.uid_mappings.is_empty() || !linux.gid_mappings.is_empty();
        if is_mapped && spec.namespace("user").is_none() {
            return bad("uidMappings and gidMappings need a user namespace".into());
        }
        if is_new("user") && (linux.uid_mappings.is_empty() || linux.gid_mappings.is_empty()) {
            return bad("a user namespace needs uidMappings and gidMappings".into());
        }
        if !is_new("time") && !linux.time_offsets.is_empty() {
            return bad("timeOffsets need a time namespace of the container's own".into());
        }
        net_devices::check(&linux.net_devices)?;
        linux.memory_policy.as_ref().map_or(Ok(()), scheduling::check_memory_policy)?;
    }
    for mount in &spec.mounts {
        if mount.destination.is_empty() {
            return bad(format!("a mount of {:?} has no destination", mount.source));
        }
    }
    if let Some(hooks) = &spec.hooks {
        hooks::check(hooks)?;
    }
    Ok(())
}

/// Refuses names, sysctls and devices for namespaces that the container shares with the caller.
fn check_settings(spec: &Spec, own: &[NsKind]) -> Result<()> {
    let need = |what: &str, kind: NsKind| {
        if own.contains(&kind) {
            return Ok(());
        }
        let kind = kind.name();
        Err(Error::invalid_argument(format!("{what} needs a {kind} namespace of the container's own")))
    };
    if !spec.hostname.is_empty() {
        need("hostname", NsKind::Uts)?;
    }
    if !spec.domainname.is_empty() {
        need("domainname", NsKind::Uts)?;
    }
    let Some(linux) = &spec.linux else { return Ok(()) };
    if !linux.net_devices.is_empty() {
        need("netDevices", NsKind::Network)?;
    }
    let has = |name: &str| own.iter().any(|kind| kind.name() == name);
    linux.sysctl.keys().try_for_each(|key| check_sysctl(key, &has))
}

/// Warnings of settings that are honoured although they are likely mistakes.
pub(crate) fn doubts(spec: &Spec) -> Vec<String> {
    let relative = spec.mounts.iter().filter(|mount| !Path::new(&mount.destination).is_absolute());
    let relative = relative.map(|mount| {
        format!("mount destination {} is not absolute; it is taken from the root", mount.destination)
    });
    let unknown =
        device_rules(spec).filter(|rule| rule.access.contains(|letter: char| !"rwm".contains(letter)));
    let unknown = unknown.map(|rule| {
        format!(
            "linux.resources.devices has access {:?}: letters other than r, w and m are left out",
            rule.access
        )
    });
    // In a user namespace the capabilities are those of the namespace.
    let is_of_host = spec.namespace("user").is_none();
    let asked =
        spec.process.iter().filter(|_| is_of_host).filter_map(|process| process.capabilities.as_ref());
    let beyond_host = asked.filter_map(|all| capabilities_beyond(all, CapSet::bounding()));
    let left_out = spec.process.iter().flat_map(capabilities_left_out);
    relative.chain(unknown).chain(left_out).chain(beyond_host).collect()
}

/// The rules whose access letters matter: a rule for all devices is for every access.
fn device_rules(spec: &Spec) -> impl Iterator<Item = &DeviceRule> {
    let resources = spec.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    let rules = resources.into_iter().flat_map(|resources| &resources.devices);
    rules.filter(|rule| !matches!(rule.kind.as_str(), "" | "a"))
}

/// Warnings of capabilities that the process will not have: unknown ones, and those of a set that are missing in
/// another that must have them too (capabilities(7)).
pub(crate) fn capabilities_left_out(process: &Process) -> Vec<String> {
    let Some(all) = &process.capabilities else { return Vec::new() };
    let has = |names: &[String], cap: u32| names.iter().any(|name| cap::number(name) == Some(cap));
    let cannot_be = all.ambient.iter().filter(|name| {
        cap::number(name).is_some_and(|cap| !has(&all.permitted, cap) || !has(&all.inheritable, cap))
    });
    let cannot_be: Vec<&str> = cannot_be.map(String::as_str).collect();
    let warning = (!cannot_be.is_empty()).then(|| {
        format!("can't raise ambient capability {}: not both permitted and inheritable", cannot_be.join(" "))
    });
    let beyond = |what: &str, names: &[String], why: &str, others: &[String]| {
        let out = names.iter().filter(|name| cap::number(name).is_some_and(|cap| !has(others, cap)));
        let out: Vec<&str> = out.map(String::as_str).collect();
        (!out.is_empty())
            .then(|| format!("{what} capabilities that are not {why} are left out: {}", out.join(" ")))
    };
    let beyond = [
        beyond("effective", &all.effective, "permitted", &all.permitted),
        beyond("permitted", &all.permitted, "in the bounding set", &all.bounding),
        beyond("inheritable", &all.inheritable, "in the bounding set", &all.bounding),
    ];
    unknown_capabilities(all).into_iter().chain(warning).chain(beyond.into_iter().flatten()).collect()
}

/// A warning of capabilities that the caller lacks, and so cannot give.
fn capabilities_beyond(all: &Capabilities, own: CapSet) -> Option<String> {
    let is_beyond = |name: &&str| cap::number(name).is_some_and(|cap| !own.contains(cap));
    let beyond: Vec<&str> = names_of(all).into_iter().filter(is_beyond).collect();
    let words = "capabilities that the caller does not have are left out: ";
    (!beyond.is_empty()).then(|| format!("{words}{}", beyond.join(" ")))
}

/// The names in all sets, each once.
fn names_of(all: &Capabilities) -> BTreeSet<&str> {
    let sets = [&all.bounding, &all.effective, &all.inheritable, &all.permitted, &all.ambient];
    sets.into_iter().flatten().map(String::as_str).collect()
}

fn unknown_capabilities(all: &Capabilities) -> Option<String> {
    let unknown: Vec<&str> = names_of(all).into_iter().filter(|name| cap::number(name).is_none()).collect();
    (!unknown.is_empty()).then(|| format!("unknown capabilities are left out: {}", unknown.join(" ")))
}

pub(crate) fn check_process(process: &Process) -> Result<()> {
    let bad = |why: &str| Err(Error::invalid_argument(why));
    if process.args.is_empty() {
        return bad("process.args is empty: there is nothing to run");
    }
    if !Path::new(&process.cwd).is_absolute() {
        return bad("process.cwd is not an absolute path");
    }
    // -1 to the kernel: "leave the id unchanged", which is root.
    if [process.user.uid, process.user.gid].contains(&u32::MAX) {
        return bad("process.user has 4294967295, which is no valid id");
    }
    let strings = process.args.iter().chain(&process.env);
    if strings.into_iter().any(|string| string.contains('\0')) {
        return bad("process.args and process.env must not contain zero bytes");
    }
    // getenv(3) would not find it, and a shell drops it.
    if let Some(entry) = process.env.iter().find(|entry| matches!(entry.find('='), None | Some(0))) {
        return bad(&format!("process.env has {entry:?}, which is not NAME=VALUE"));
    }
    scheduling::check(process)
}

/// The path of a sysctl below `/proc/sys` (sysctl.d(5)). The first `.` or `/` of its name is the separator; the other
/// one then stands for a dot in a part, as in `net.ipv4.conf.eth0/100.forwarding` and
/// `net/ipv4/conf/eth0.100/forwarding`.
pub fn sysctl_path(key: &str) -> String {
    match key.find(['.', '/']) {
        Some(at) if key[at..].starts_with('.') => {
            let swapped = key.chars().map(|letter| match letter {
                '.' => '/',
                '/' => '.',
                other => other,
            });
            swapped.collect()
        }
        _ => key.to_owned(),
    }
}

/// Allows only sysctls that belong to a namespace of the container's own; the others are the host's.
pub fn check_sysctl(key: &str, has: &impl Fn(&str) -> bool) -> Result<()> {
    let path = sysctl_path(key);
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        // Otherwise `net/../kernel/core_pattern` would count as a network sysctl.
        return Err(Error::invalid_argument(format!("sysctl {key:?} is no name")));
    }
    let ipc = path.starts_with("fs/mqueue/")
        || [
            "kernel/msgmax",
            "kernel/msgmnb",
            "kernel/msgmni",
            "kernel/sem",
            "kernel/shmall",
            "kernel/shmmax",
            "kernel/shmmni",
            "kernel/shm_rmid_forced",
        ]
        .contains(&path.as_str());
    let needed = match path.as_str() {
        _ if ipc => "ipc",
        _ if path.starts_with("net/") => "network",
        "kernel/domainname" => "uts",
        _ if path.starts_with("user/") => "user",
        _ => return Err(Error::invalid_argument(format!("sysctl {key} is not separated by any namespace"))),
    };
    if has(needed) {
        return Ok(());
    }
    Err(Error::invalid_argument(format!("sysctl {key} needs a {needed} namespace of the container's own")))
}

/// The root file system's directory on the host, links resolved.
pub(crate) fn rootfs_path(spec: &Spec, bundle: &Path) -> Result<PathBuf> {
    let root = spec.root.as_ref().expect("checked when it was read");
    real_path(&bundle.join(&root.path), "root file system")
}

/// A path of the host, links resolved. `InvalidArgument` if it is not UTF-8: the state document, which is JSON, cannot
/// hold it.
pub(crate) fn real_path(path: &Path, what: &str) -> Result<PathBuf> {
    let real = path.canonicalize().context(|| format!("open {what} {}", path.display()))?;
    if real.to_str().is_none() {
        return Err(Error::invalid_argument(format!(
            "{what} {} has a path that is not UTF-8",
            real.display()
        )));
    }
    Ok(real)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_json_cannot_write_is_refused() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::TempDir::new().unwrap();
        let odd = dir.path().join(std::ffi::OsStr::from_bytes(b"odd\xff"));
        std::fs::create_dir(&odd).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&odd, &link).unwrap();
        assert!(real_path(&link, "bundle").unwrap_err().is(types::ErrorKind::InvalidArgument));
        assert_eq!(real_path(dir.path(), "bundle").unwrap(), dir.path().canonicalize().unwrap());
    }

    #[test]
    fn unknown_letters_of_a_device_access_are_a_warning() {
        let check = |kind: &str, access: &str, is_told: bool| {
            let rule = serde_json::json!({"allow": true, "type": kind, "access": access});
            let document = serde_json::json!({"linux": {"resources": {"devices": [rule]}}});
            let told = doubts(&serde_json::from_value(document).unwrap());
            assert_eq!(told.iter().any(|words| words.contains("left out")), is_told, "{kind} {access}");
        };
        check("c", "rwa", true);
        check("b", "rwm", false);
        check("a", "all", false);
    }

    #[test]
    fn capabilities_that_the_process_cannot_have_are_a_warning() {
        let told = |sets: serde_json::Value| {
            let process = serde_json::json!({ "capabilities": sets });
            capabilities_left_out(&serde_json::from_value(process).unwrap()).join("; ")
        };
        let one = serde_json::json!(["CAP_KILL"]);
        let two = serde_json::json!(["CAP_KILL", "CAP_CHOWN"]);
        let check =
            |sets: serde_json::Value, expected: &str| assert_eq!(told(sets.clone()), expected, "{sets}");
        check(
            serde_json::json!({"bounding": two, "permitted": one, "effective": one, "inheritable": one}),
            "",
        );
        check(
            serde_json::json!({"bounding": two, "permitted": one, "effective": two}),
            "effective capabilities that are not permitted are left out: CAP_CHOWN",
        );
        check(
            serde_json::json!({"bounding": one, "permitted": two, "inheritable": two}),
            "permitted capabilities that are not in the bounding set are left out: CAP_CHOWN; \
             inheritable capabilities that are not in the bounding set are left out: CAP_CHOWN",
        );
        let all: Capabilities = serde_json::from_value(serde_json::json!({"bounding": two})).unwrap();
        let own =
            |names: &[&str]| CapSet::from_names(&names.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(capabilities_beyond(&all, own(&["CAP_KILL", "CAP_CHOWN"])), None);
        let warning = capabilities_beyond(&all, own(&["CAP_KILL"])).unwrap();
        assert_eq!(warning, "capabilities that the caller does not have are left out: CAP_CHOWN");
    }

    #[test]
    fn sysctls_of_interfaces_with_dots_have_names() {
        for (key, path) in [
            ("net.core.somaxconn", "net/core/somaxconn"),
            ("net/core/somaxconn", "net/core/somaxconn"),
            ("net.ipv4.conf.eth0/100.forwarding", "net/ipv4/conf/eth0.100/forwarding"),
            ("net/ipv4/conf/eth0.100/forwarding", "net/ipv4/conf/eth0.100/forwarding"),
            ("plain", "plain"),
        ] {
            assert_eq!(sysctl_path(key), path);
        }
    }

    #[test]
    fn only_sysctls_of_own_namespaces_may_be_set() {
        let check = |key: &str, own: &[&str]| check_sysctl(key, &|kind: &str| own.contains(&kind)).is_ok();
        assert!(check("net.ipv4.ip_forward", &["network"]));
        assert!(check("net/ipv4/ip_forward", &["network"]));
        assert!(!check("net.ipv4.ip_forward", &["ipc"]));
        assert!(check("kernel.shmmax", &["ipc"]));
        assert!(!check("net/../kernel/core_pattern", &["network"]));
        assert!(!check("net.", &["network"]));
        assert!(!check("net.//.kernel.core_pattern", &["network"]));
        assert!(!check("net.ipv4./.conf", &["network"]));
        assert!(check("net.ipv4.conf.eth0/100.forwarding", &["network"]));
        assert!(!check("kernel.core_pattern", &["ipc", "network", "uts", "user"]));
        assert!(!check("vm.swappiness", &["ipc", "network", "uts", "user"]));
    }
}
