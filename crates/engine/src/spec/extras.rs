//! Rarely used options, applied to a spec with Docker's defaults.

use std::net::IpAddr;
use std::path::Path;

use super::{HOST, OF_CONTAINER};
use api::engine::{Create, Device, Extras, Ulimit};
use linux::device::Node;
use types::spec::runtime::{DeviceRule, Linux, LinuxDevice, Mount, Process, Rlimit, Spec};
use types::{Context, Error, Result};

/// Docker's names of the limits of setrlimit(2).
const ULIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// `InvalidArgument` for an invalid option; the message names the flag.
pub(super) fn apply(create: &Create, spec: &mut Spec) -> Result<()> {
    let extras = &create.extras;
    check_names(extras)?;
    let process = spec.process.get_or_insert_default();
    process.rlimits = extras.ulimits.iter().map(rlimit).collect::<Result<_>>()?;
    if let Some(score) = extras.oom_score_adj {
        process.oom_score_adj = Some(score);
    }
    let linux = spec.linux.get_or_insert_default();
    secure(&extras.security, process, linux)?;
    linux.sysctl.clone_from(&extras.sysctls);
    for wanted in &extras.devices {
        for (device, rule) in devices(wanted)? {
            linux.devices.push(device);
            // A privileged container may use all devices anyway.
            if !create.privileged {
                linux.resources.get_or_insert_default().devices.push(rule);
            }
        }
    }
    if !create.privileged {
        let rules = extras.device_rules.iter().map(|text| device_rule(text)).collect::<Result<Vec<_>>>()?;
        linux.resources.get_or_insert_default().devices.extend(rules);
    }
    for (kind, mode) in [("pid", &extras.pid), ("ipc", &extras.ipc), ("uts", &extras.uts)] {
        if shares(kind, mode)? {
            linux.namespaces.retain(|namespace| namespace.kind != kind);
        }
    }
    spec.annotations.extend(extras.annotations.clone());
    if let Some(key) = extras.annotations.keys().find(|key| key.is_empty()) {
        return Err(Error::invalid_argument(format!("--annotation {key:?}: it has no key")));
    }
    name_domain(extras, spec)?;
    if let Some(shm) =
        spec.mounts.iter_mut().find(|mount| mount.destination == "/dev/shm" && mount.kind == "tmpfs")
    {
        size_shm(shm, extras);
    }
    Ok(())
}

/// `/dev/shm` is the host's, or gets the requested size.
fn size_shm(shm: &mut Mount, extras: &Extras) {
    if extras.ipc == HOST {
        shm.kind = "bind".into();
        shm.source = "/dev/shm".into();
        shm.options = ["rbind", "nosuid", "noexec", "nodev"].map(str::to_owned).to_vec();
    } else if let Some(bytes) = extras.shm_bytes {
        shm.options.retain(|option| !option.starts_with("size="));
        shm.options.push(format!("size={bytes}"));
    }
}

/// Whether a namespace mode means the host's. Another container's is resolved when the container starts.
fn shares(flag: &str, mode: &str) -> Result<bool> {
    match mode {
        HOST => Ok(true),
        "" | "private" => Ok(false),
        "shareable" if flag == "ipc" => Ok(false),
        other if flag == "pid" && other.starts_with(OF_CONTAINER) => Ok(false),
        other if flag == "ipc" && other.starts_with(OF_CONTAINER) => Err(Error::invalid_argument(format!(
            "--ipc {other}: the shared memory of a container is its own; use --ipc host for both, or a volume that both mount"
        ))),
        other => {
            let of_others = if flag == "pid" { ", or container:NAME" } else { "" };
            Err(Error::invalid_argument(format!("--{flag} {other:?}: it is host or private{of_others}")))
        }
    }
}

/// In the host's UTS namespace, a container cannot have a domain name of its own.
fn name_domain(extras: &Extras, spec: &mut Spec) -> Result<()> {
    let domain = &extras.domainname;
    // The kernel's limit (setdomainname(2)); and the name is written to a file as one word.
    if domain.len() > 64 || domain.contains(|letter: char| letter.is_whitespace() || letter.is_control()) {
        return Err(Error::invalid_argument(format!(
            "--domainname {domain:?} is not a domain of at most 64 bytes"
        )));
    }
    if extras.uts != HOST {
        spec.domainname.clone_from(domain);
        return Ok(());
    }
    spec.hostname.clear();
    if domain.is_empty() {
        return Ok(());
    }
    Err(Error::invalid_argument(
        "conflicting options: --domainname and --uts host; the machine's domain is not changed",
    ))
}

/// Parses `c 1:3 rwm`; `a` is all types, `*` all numbers.
fn device_rule(text: &str) -> Result<DeviceRule> {
    let read = || {
        let [kind, numbers, access] = text.split(' ').collect::<Vec<_>>()[..] else { return None };
        let (major, minor) = numbers.split_once(':')?;
        let number = |text: &str| if text == "*" { Some(None) } else { text.parse::<u32>().ok().map(Some) };
        let (major, minor) = (number(major)?.map(i64::from), number(minor)?.map(i64::from));
        let is_access =
            (1..=3).contains(&access.len()) && access.chars().all(|letter| "rwm".contains(letter));
        (["a", "b", "c"].contains(&kind) && is_access).then(|| DeviceRule {
            allow: true,
            kind: kind.to_owned(),
            major,
            minor,
            access: access.to_owned(),
        })
    };
    read().ok_or_else(|| {
        Error::invalid_argument(format!(
            "--device-cgroup-rule {text:?}: invalid device cgroup format; expected something like \"c 1:3 rwm\", \"b *:* r\""
        ))
    })
}

fn rlimit(wanted: &Ulimit) -> Result<Rlimit> {
    let bad = |why: String| Err(Error::invalid_argument(format!("--ulimit {}: {why}", wanted.name)));
    if !ULIMITS.contains(&wanted.name.as_str()) {
        return bad(format!("there is no such limit, but {}", ULIMITS.join(", ")));
    }
    let [soft, hard] = [wanted.soft, wanted.hard].map(|limit| limit.unwrap_or(u64::MAX));
    if soft > hard {
        return bad(format!("the soft limit {soft} is above the hard one, {hard}"));
    }
    Ok(Rlimit { kind: format!("RLIMIT_{}", wanted.name.to_ascii_uppercase()), soft, hard })
}

/// A device, or all devices in a directory, at their paths in the container.
fn devices(wanted: &Device) -> Result<Vec<(LinuxDevice, DeviceRule)>> {
    let Device { source, target, access } = wanted;
    let bad = |why: &str| Error::invalid_argument(format!("--device {source}: {why}"));
    if access.is_empty() || !access.chars().all(|letter| "rwm".contains(letter)) {
        return Err(bad("the access is of the letters r, w and m"));
    }
    if !target.starts_with('/') {
        return Err(bad("its place in the container is not an absolute path"));
    }
    let nodes = linux::device::nodes(Path::new(source)).context(|| format!("--device {source}"))?;
    if nodes.is_empty() {
        return Err(bad("there are no devices in it"));
    }
    let each = |node: Node| {
        let device = node.placed(Path::new(target));
        let (kind, major, minor) = (device.kind.clone(), Some(device.major), Some(device.minor));
        (device, DeviceRule { allow: true, kind, major, minor, access: access.clone() })
    };
    Ok(nodes.into_iter().map(each).collect())
}

fn secure(options: &[String], process: &mut Process, linux: &mut Linux) -> Result<()> {
    for option in options {
        let (name, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
        match (name, value) {
            ("no-new-privileges", "" | "true") => process.no_new_privileges = true,
            ("no-new-privileges", "false") => process.no_new_privileges = false,
            ("seccomp", "unconfined") => linux.seccomp = None,
            ("seccomp", profile) if profile.starts_with('{') => {
                let capabilities = process.capabilities.clone().unwrap_or_default().bounding;
                linux.seccomp = Some(super::seccomp::read(profile, &capabilities)?);
            }
            ("seccomp", "builtin") | ("label", "disable") | ("apparmor", "unconfined") => {}
            ("apparmor", profile) if !profile.is_empty() => process.apparmor_profile = profile.to_owned(),
            ("systempaths", "unconfined") => {
                linux.masked_paths.clear();
                linux.readonly_paths.clear();
            }
            _ => {
                return Err(Error::invalid_argument(format!(
                    "--security-opt {option:?}: there are no-new-privileges, seccomp=unconfined or with a profile in \
                     JSON, apparmor=PROFILE, systempaths=unconfined and label=disable"
                )));
            }
        }
    }
    Ok(())
}

/// Validates what is written to files in `/etc`, one entry per line.
fn check_names(extras: &Extras) -> Result<()> {
    let is_word = |word: &str| {
        !word.is_empty() && !word.contains(|letter: char| letter.is_whitespace() || letter == '#')
    };
    for (name, address) in &extras.hosts {
        if !is_word(name) || address != super::HOST_GATEWAY && address.parse::<IpAddr>().is_err() {
            return Err(Error::invalid_argument(format!(
                "--add-host {name}:{address}: it is NAME:ADDRESS, or NAME:{}",
                super::HOST_GATEWAY
            )));
        }
    }
    if let Some(server) = extras.dns.servers.iter().find(|server| server.parse::<IpAddr>().is_err()) {
        return Err(Error::invalid_argument(format!("--dns {server:?} is not an address")));
    }
    match extras.dns.search.iter().chain(&extras.dns.options).find(|word| !is_word(word)) {
        Some(word) => Err(Error::invalid_argument(format!("{word:?} is not a word of resolv.conf"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use types::ErrorKind;

    use super::*;

    fn applied(extras: Extras) -> Result<Spec> {
        let shm = Mount {
            destination: "/dev/shm".into(),
            kind: "tmpfs".into(),
            options: vec!["nosuid".into(), "size=64".into()],
            ..Mount::default()
        };
        let mut spec = Spec { mounts: vec![shm], ..Spec::default() };
        apply(&Create { extras, ..Create::default() }, &mut spec).map(|()| spec)
    }

    #[test]
    fn ulimits_devices_and_shm_size_are_applied_to_the_spec() {
        let extras = Extras {
            ulimits: vec![Ulimit { name: "nofile".into(), soft: Some(7), hard: None }],
            devices: vec![Device {
                source: "/dev/zero".into(),
                target: "/dev/given".into(),
                access: "r".into(),
            }],
            shm_bytes: Some(1024),
            ..Extras::default()
        };
        let spec = applied(extras).unwrap();
        let limit = Rlimit { kind: "RLIMIT_NOFILE".into(), soft: 7, hard: u64::MAX };
        assert_eq!(spec.process.unwrap().rlimits, [limit]);
        let linux = spec.linux.unwrap();
        assert_eq!((linux.devices[0].path.as_str(), linux.devices[0].minor), ("/dev/given", 5));
        let rule = &linux.resources.unwrap().devices[0];
        assert_eq!((rule.allow, rule.minor, rule.access.as_str()), (true, Some(5), "r"));
        assert_eq!(spec.mounts[0].options, ["nosuid", "size=1024"]);
    }

    #[test]
    fn names_device_rules_and_annotations_are_applied_to_the_spec() {
        let extras = Extras {
            device_rules: vec!["c 1:* rm".into(), "a *:* rwm".into()],
            annotations: [("key".to_owned(), "value".to_owned())].into(),
            domainname: "example.org".into(),
            pid: "container:x".into(),
            ..Extras::default()
        };
        let spec = applied(extras).unwrap();
        assert_eq!((spec.domainname.as_str(), spec.annotations["key"].as_str()), ("example.org", "value"));
        let rules = spec.linux.unwrap().resources.unwrap().devices;
        assert_eq!((rules[0].kind.as_str(), rules[0].major, rules[0].minor), ("c", Some(1), None));
        assert_eq!((rules[1].kind.as_str(), rules[1].access.as_str()), ("a", "rwm"));
    }

    #[test]
    fn invalid_options_are_refused_by_their_flag() {
        let check = |extras: Extras, words: &str| {
            let refused = applied(extras).unwrap_err();
            assert!(refused.is(ErrorKind::InvalidArgument), "{refused}");
            assert!(refused.chain().contains(words), "{}", refused.chain());
        };
        let limit = |name: &str, soft| Ulimit { name: name.into(), soft, hard: Some(1) };
        check(Extras { ulimits: vec![limit("files", None)], ..Extras::default() }, "--ulimit files");
        check(Extras { ulimits: vec![limit("nofile", Some(2))], ..Extras::default() }, "above the hard one");
        let device = |source: &str, access: &str| Device {
            source: source.into(),
            target: source.into(),
            access: access.into(),
        };
        check(
            Extras { devices: vec![device("/etc/hostname", "rwm")], ..Extras::default() },
            "is not a device",
        );
        check(Extras { devices: vec![device("/dev/null", "x")], ..Extras::default() }, "--device /dev/null");
        check(Extras { pid: "else".into(), ..Extras::default() }, "--pid");
        check(Extras { ipc: "container:x".into(), ..Extras::default() }, "--ipc");
        check(Extras { uts: "container:x".into(), ..Extras::default() }, "--uts");
        check(Extras { domainname: "a b".into(), ..Extras::default() }, "--domainname");
        check(Extras { uts: "host".into(), domainname: "a".into(), ..Extras::default() }, "--uts host");
        for rule in ["c 1:3", "d 1:3 r", "c 1 r", "c 1:3 x", "c 1:3 rwmr", "c -1:3 r", "c  1:3 r"] {
            check(Extras { device_rules: vec![rule.into()], ..Extras::default() }, "--device-cgroup-rule");
        }
        check(Extras { ipc: "none".into(), ..Extras::default() }, "--ipc");
        check(Extras { security: vec!["seccomp=/x".into()], ..Extras::default() }, "--security-opt");
        check(Extras { hosts: vec![("a b".into(), "::1".into())], ..Extras::default() }, "--add-host");
        check(Extras { hosts: vec![("a".into(), "b".into())], ..Extras::default() }, "host-gateway");
        let dns = |servers: &[&str], search: &[&str]| api::engine::Dns {
            servers: servers.iter().map(ToString::to_string).collect(),
            search: search.iter().map(ToString::to_string).collect(),
            options: Vec::new(),
        };
        check(Extras { dns: dns(&["x"], &[]), ..Extras::default() }, "--dns");
        check(Extras { dns: dns(&[], &["a\nnameserver 1.1.1.1"]), ..Extras::default() }, "is not a word");
    }
}
