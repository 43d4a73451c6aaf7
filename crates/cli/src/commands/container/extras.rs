//! Flags of `run` and `create` that are rarely used.

use std::fs::File;
use std::io::Read as _;
use std::time::Duration;

use api::engine::{Device, Dns, Extras, Health, Log, Ulimit, Update};
use clap::Args;
use types::{Context as _, Error, Result};

use crate::parse;

/// The shortest interval and timeout of a health check, which is Docker's.
const HEALTH_TIME_MIN: Duration = Duration::from_millis(1);
/// The most GPUs that can be requested by number.
const GPUS_MAX: usize = 256;
/// The largest seccomp profile, in bytes: many times the size of Docker's.
const SECCOMP_LEN_MAX: u64 = 1 << 20;

// No doc comments on groups of flags: clap would use them as the help of each command that has the group.
#[derive(Args)]
pub(crate) struct ExtraFlags {
    /// NAME=SOFT[:HARD], as nofile=1024:4096; -1 is no limit
    #[arg(long, help_heading = "Limits")]
    ulimit: Vec<String>,
    /// The size of /dev/shm in bytes, or with the unit k, m or g
    #[arg(long, help_heading = "Limits")]
    shm_size: Option<String>,
    /// KEY=VALUE, for a sysctl of the container's own namespaces
    #[arg(long, help_heading = "Namespaces")]
    sysctl: Vec<String>,
    /// A device of this machine: PATH[:PATH-INSIDE][:rwm], or a CDI device VENDOR/CLASS=NAME
    #[arg(long, help_heading = "Devices")]
    device: Vec<String>,
    /// GPUs of nvidia.com/gpu: all, a number, or device=NAME,…
    #[arg(long, help_heading = "Devices")]
    gpus: Option<String>,
    /// The PID namespace: host, private, or container:NAME
    #[arg(long, default_value = "", hide_default_value = true, help_heading = "Namespaces")]
    pid: String,
    /// The IPC namespace: host or private
    #[arg(long, default_value = "", hide_default_value = true, help_heading = "Namespaces")]
    ipc: String,
    /// no-new-privileges, seccomp=unconfined|FILE, apparmor=PROFILE, systempaths=unconfined, label=disable
    #[arg(long, help_heading = "Security")]
    security_opt: Vec<String>,
    /// The UTS namespace: host or private
    #[arg(long, default_value = "", hide_default_value = true, help_heading = "Namespaces")]
    uts: String,
    /// The container's NIS domain name
    #[arg(long, default_value = "", hide_default_value = true, help_heading = "Network")]
    domainname: String,
    /// KEY=VALUE, an annotation of the OCI spec
    #[arg(long)]
    annotation: Vec<String>,
    /// The parent cgroup, as a path from the root of the hierarchy
    #[arg(long, default_value = "", hide_default_value = true, value_name = "PATH", help_heading = "Limits")]
    cgroup_parent: String,
    /// A device cgroup rule, for devices that the container creates: "c 189:* rwm"
    #[arg(long, value_name = "RULE", help_heading = "Devices")]
    device_cgroup_rule: Vec<String>,
    /// The MAC address of the container's interface on the bridge
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        value_name = "ADDRESS",
        help_heading = "Network"
    )]
    mac_address: String,
    /// The shim, by its name as a containerd runtime: io.containerd.hoist.v2
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    runtime: String,
    /// Swappiness from 0 to 100; -1 is the machine's. Cgroup v1 only
    #[arg(long, allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..=100), help_heading = "Limits")]
    memory_swappiness: Option<i64>,
    /// Let processes wait for memory instead of killing them. Cgroup v1 only
    #[arg(long, help_heading = "Limits")]
    oom_kill_disable: bool,
    /// OOM score adjustment, from -1000 (never killed) to 1000
    #[arg(long, allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-1000..=1000), help_heading = "Limits")]
    oom_score_adj: Option<i32>,
    /// Run an init process that reaps zombies and forwards signals
    #[arg(long)]
    init: bool,
    /// An additional group of the user: a name in the image, or a number
    #[arg(long, help_heading = "Security")]
    group_add: Vec<String>,
    /// A shell command that succeeds while the container is healthy
    #[arg(long, value_name = "COMMAND", help_heading = "Health")]
    health_cmd: Option<String>,
    /// The pause between health checks, as 30s
    #[arg(long, value_name = "DURATION", help_heading = "Health")]
    health_interval: Option<String>,
    /// The timeout of a health check
    #[arg(long, value_name = "DURATION", help_heading = "Health")]
    health_timeout: Option<String>,
    /// Consecutive failures until the container is unhealthy
    #[arg(long, value_name = "COUNT", help_heading = "Health")]
    health_retries: Option<u32>,
    /// The time after the start in which failures are not counted
    #[arg(long, value_name = "DURATION", help_heading = "Health")]
    health_start_period: Option<String>,
    /// The pause between health checks in that time
    #[arg(long, value_name = "DURATION", help_heading = "Health")]
    health_start_interval: Option<String>,
    /// Disable the image's health check
    #[arg(long, help_heading = "Health", conflicts_with_all = ["health_cmd", "health_interval", "health_timeout",
        "health_retries", "health_start_period", "health_start_interval"])]
    no_healthcheck: bool,
    /// The signal that asks the container to stop, instead of the image's
    #[arg(long)]
    stop_signal: Option<String>,
    /// Seconds until a stop kills the container; -1 is never
    #[arg(long, allow_negative_numbers = true, value_name = "SECONDS")]
    stop_timeout: Option<i64>,
    /// PORT[-PORT][/udp] to expose, besides those of the image
    #[arg(long, help_heading = "Network")]
    expose: Vec<String>,
    /// CONTAINER[:ro]: also mount this container's volumes and binds
    #[arg(long, value_name = "CONTAINER", help_heading = "Files")]
    volumes_from: Vec<String>,
    /// NAME:ADDRESS, an entry of /etc/hosts; host-gateway is the address of this machine
    #[arg(long, help_heading = "Network")]
    add_host: Vec<String>,
    /// The address of a DNS server
    #[arg(long, help_heading = "Network")]
    dns: Vec<String>,
    /// A DNS search domain; . is none
    #[arg(long, help_heading = "Network")]
    dns_search: Vec<String>,
    /// An option of resolv.conf: ndots:2
    #[arg(long, alias = "dns-opt", help_heading = "Network")]
    dns_option: Vec<String>,
    /// The log driver: json-file, local, or none
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true, help_heading = "Log")]
    log_driver: String,
    /// max-size=10m and max-file=3: the size at which a log file is rotated, and how many files are kept
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Log")]
    log_opt: Vec<String>,
}

impl ExtraFlags {
    /// Converts the flags, together with the limits that are rarely used.
    pub(crate) fn read(self, limits: &Update) -> Result<Extras> {
        let time =
            |flag: &str, text: &Option<String>| text.as_deref().map_or(Ok(0), |text| nanoseconds(flag, text));
        let health = Health {
            is_off: self.no_healthcheck,
            command: self.health_cmd.clone(),
            interval: time("interval", &self.health_interval)?,
            timeout: time("timeout", &self.health_timeout)?,
            start_period: time("start-period", &self.health_start_period)?,
            start_interval: time("start-interval", &self.health_start_interval)?,
            retries: self.health_retries.unwrap_or(0).into(),
        };
        let (named, devices): (Vec<String>, Vec<String>) =
            self.device.into_iter().partition(|device| cdi::is_qualified(device));
        let gpus = self.gpus.as_deref().map(gpus).transpose()?.unwrap_or_default();
        Ok(Extras {
            ulimits: self.ulimit.iter().map(|text| ulimit(text)).collect::<Result<_>>()?,
            shm_bytes: self.shm_size.as_deref().map(parse::bytes).transpose()?.filter(|bytes| *bytes != 0),
            sysctls: self.sysctl.iter().map(|text| sysctl(text)).collect::<Result<_>>()?,
            cdi: named.into_iter().chain(gpus).collect(),
            devices: devices.iter().map(|text| device(text)).collect::<Result<_>>()?,
            pid: self.pid,
            ipc: self.ipc,
            security: self.security_opt.into_iter().map(security).collect::<Result<_>>()?,
            uts: self.uts,
            domainname: self.domainname,
            annotations: self.annotation.iter().map(|text| annotation(text)).collect::<Result<_>>()?,
            cgroup_parent: self.cgroup_parent,
            device_rules: self.device_cgroup_rule,
            mac_address: self.mac_address,
            runtime: self.runtime,
            swappiness: self.memory_swappiness.and_then(|swappiness| u64::try_from(swappiness).ok()),
            oom_kill_disable: self.oom_kill_disable,
            oom_score_adj: self.oom_score_adj,
            cpu_shares: limits.cpu_shares.filter(|shares| *shares != 0),
            cpu_period: limits.cpu_period.filter(|period| *period != 0),
            cpu_quota: limits.cpu_quota.filter(|quota| *quota != 0),
            cpuset: limits.cpuset.clone(),
            cpuset_mems: limits.cpuset_mems.clone(),
            blkio_weight: limits.blkio_weight.filter(|weight| *weight != 0),
            memory_reservation: limits.memory_reservation,
            memory_swap: limits.memory_swap,
            stop_signal: self.stop_signal,
            hosts: self.add_host.iter().map(|text| host(text)).collect::<Result<_>>()?,
            dns: Dns { servers: self.dns, search: self.dns_search, options: self.dns_option },
            init: self.init,
            health: (health != Health::default()).then_some(health),
            groups: self.group_add,
            exposed: self.expose,
            stop_timeout: self.stop_timeout,
            volumes_from: self.volumes_from,
            log: Log { driver: self.log_driver, options: parse::label_words(&self.log_opt).collect() },
        })
    }
}

/// A security option. The daemon gets the content of a seccomp profile instead of its path.
fn security(option: String) -> Result<String> {
    let Some(path) = option.strip_prefix("seccomp=").or_else(|| option.strip_prefix("seccomp:")) else {
        return Ok(option);
    };
    if ["unconfined", "builtin"].contains(&path) {
        return Ok(option);
    }
    let what = || format!("read the filter of system calls for --security-opt {option}");
    let mut text = String::new();
    let file = File::open(path).context(what)?;
    file.take(SECCOMP_LEN_MAX + 1).read_to_string(&mut text).context(what)?;
    if text.len() as u64 > SECCOMP_LEN_MAX {
        return Err(
            Error::invalid_argument(format!("{path} has more than {SECCOMP_LEN_MAX} bytes")).context(what())
        );
    }
    let document: serde_json::Value = serde_json::from_str(&text).map_err(|error| {
        Error::invalid_argument(format!("{path} is no JSON")).with_source(error).context(what())
    })?;
    Ok(format!("seccomp={document}"))
}

fn ulimit(text: &str) -> Result<Ulimit> {
    let bad = || Error::invalid_argument(format!("invalid ulimit {text:?}: expected NAME=SOFT[:HARD]"));
    let (name, limits) = text.split_once('=').ok_or_else(bad)?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let limit = |text: &str| match text {
        "-1" | "unlimited" => Ok(None),
        number => number.parse().map(Some).map_err(|_| bad()),
    };
    Ok(Ulimit { name: name.to_owned(), soft: limit(soft)?, hard: limit(hard)? })
}

fn annotation(text: &str) -> Result<(String, String)> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    let pair = pair
        .ok_or_else(|| Error::invalid_argument(format!("invalid annotation {text:?}: expected KEY=VALUE")))?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

fn sysctl(text: &str) -> Result<(String, String)> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    let pair =
        pair.ok_or_else(|| Error::invalid_argument(format!("invalid sysctl {text:?}: expected KEY=VALUE")))?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

/// A duration in nanoseconds. Zero leaves the default, as with Docker.
fn nanoseconds(flag: &str, text: &str) -> Result<i64> {
    let time = stdx::duration(text).filter(|time| time.is_zero() || *time >= HEALTH_TIME_MIN);
    let nanoseconds = time.and_then(|time| i64::try_from(time.as_nanos()).ok());
    nanoseconds.ok_or_else(|| {
        Error::invalid_argument(format!(
            "invalid --health-{flag} {text:?}: expected a time such as 30s, and 1ms at least"
        ))
    })
}

/// Parses `--gpus`: `all`, a number, or Docker's list of `KEY=VALUE`, in which a value may have commas: `device=0,1`.
fn gpus(text: &str) -> Result<Vec<String>> {
    let bad = |why: &str| {
        Error::invalid_argument(format!(
            "invalid gpus {text:?}: {why}; expected all, a number, or device=NAME,…"
        ))
    };
    let count = |count: &str| match count {
        "all" | "-1" => Ok(vec!["all".to_owned()]),
        number => {
            let number = number.parse::<usize>().ok().filter(|number| *number <= GPUS_MAX);
            let number = number.ok_or_else(|| bad("it is not a valid number"))?;
            Ok((0..number).map(|at| at.to_string()).collect())
        }
    };
    // With Docker, quotes protect the list from being split at commas.
    let bare = text.replace('"', "");
    let (mut names, mut key) = (Vec::new(), "count");
    for word in bare.split(',') {
        let value = match word.split_once('=') {
            Some((own, value)) => {
                key = own;
                value
            }
            None => word,
        };
        match key {
            "count" => names.extend(count(value)?),
            "device" if value.is_empty() => return Err(bad("device has no name")),
            "device" => names.push(value.to_owned()),
            // The CDI file that describes the device determines its capabilities.
            "capabilities" => {}
            "driver" if value == "nvidia" => {}
            "driver" => {
                return Err(bad(
                    "the driver is nvidia; others' devices are given by --device VENDOR/CLASS=NAME",
                ));
            }
            _ => return Err(bad("it has a key that is not known")),
        }
    }
    let names: Vec<String> = names.into_iter().map(|name| format!("nvidia.com/gpu={name}")).collect();
    match names.iter().find(|name| !cdi::is_qualified(name)) {
        Some(name) => Err(bad(&format!("{name} is no device"))),
        None => Ok(names),
    }
}

/// Parses `--device`. As with Docker, the second of two parts may be the access.
fn device(text: &str) -> Result<Device> {
    let parts: Vec<&str> = text.split(':').collect();
    let is_access = |word: &str| !word.is_empty() && word.chars().all(|letter| "rwm".contains(letter));
    let (source, target, access) = match parts[..] {
        [source] => (source, source, "rwm"),
        [source, access] if is_access(access) => (source, source, access),
        [source, target] => (source, target, "rwm"),
        [source, target, access] => (source, target, access),
        _ => {
            return Err(Error::invalid_argument(format!(
                "invalid device {text:?}: expected PATH[:PATH-INSIDE][:rwm]"
            )));
        }
    };
    Ok(Device { source: source.into(), target: target.into(), access: access.into() })
}

/// Parses `--add-host`. An address may have colons, a name has none.
fn host(text: &str) -> Result<(String, String)> {
    let pair = text.split_once(['=', ':']).filter(|(name, address)| !name.is_empty() && !address.is_empty());
    let (name, address) =
        pair.ok_or_else(|| Error::invalid_argument(format!("invalid host {text:?}: expected NAME:ADDRESS")))?;
    let bare = address.strip_prefix('[').and_then(|address| address.strip_suffix(']'));
    Ok((name.to_owned(), bare.unwrap_or(address).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_rare_run_flags_are_parsed_as_dockers() {
        let limit = |name: &str, soft, hard| Ulimit { name: name.into(), soft, hard };
        assert_eq!(ulimit("nofile=1:2").unwrap(), limit("nofile", Some(1), Some(2)));
        assert_eq!(ulimit("core=-1").unwrap(), limit("core", None, None));
        let found = |source: &str, target: &str, access: &str| Device {
            source: source.into(),
            target: target.into(),
            access: access.into(),
        };
        assert_eq!(device("/dev/a").unwrap(), found("/dev/a", "/dev/a", "rwm"));
        assert_eq!(device("/dev/a:r").unwrap(), found("/dev/a", "/dev/a", "r"));
        assert_eq!(device("/dev/a:/dev/b").unwrap(), found("/dev/a", "/dev/b", "rwm"));
        assert_eq!(device("/dev/a:/dev/b:rw").unwrap(), found("/dev/a", "/dev/b", "rw"));
        assert_eq!(host("a:::1").unwrap(), ("a".to_owned(), "::1".to_owned()));
        assert_eq!(host("a=[::1]").unwrap(), ("a".to_owned(), "::1".to_owned()));
        assert_eq!(sysctl("a.b=c=d").unwrap(), ("a.b".to_owned(), "c=d".to_owned()));
        assert!(ulimit("nofile").is_err() && ulimit("nofile=x").is_err() && device("a:b:c:d").is_err());
        assert_eq!(
            (nanoseconds("x", "1m30s").unwrap(), nanoseconds("x", "0s").unwrap()),
            (90_000_000_000, 0)
        );
        assert!(nanoseconds("interval", "1us").unwrap_err().message().contains("--health-interval"));
        for (text, expected) in [
            ("all", &["all"][..]),
            ("2", &["0", "1"]),
            ("0", &[]),
            ("device=1,GPU-7", &["1", "GPU-7"]),
            ("\"device=0,2\",capabilities=utility", &["0", "2"]),
            ("driver=nvidia,count=all", &["all"]),
        ] {
            let expected: Vec<String> =
                expected.iter().map(|name| format!("nvidia.com/gpu={name}")).collect();
            assert_eq!(gpus(text).unwrap(), expected, "{text}");
        }
        for bad in ["", "x", "-2", "9999", "device=", "device=/dev/x", "driver=other,count=1", "odd=1"] {
            assert!(gpus(bad).is_err(), "{bad}");
        }
        assert!(host("a").is_err() && host(":1").is_err() && sysctl("=x").is_err());
    }
}
