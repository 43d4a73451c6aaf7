//! Flags of `run` and `create` that few containers need.

use std::fs::File;
use std::io::Read as _;

use api::engine::{Device, Dns, Extras, Ulimit};
use clap::Args;
use types::{Context as _, Error, Result};

use crate::parse;

/// Bytes of a filter of system calls: many times what Docker's has.
const SECCOMP_LEN_MAX: u64 = 1 << 20;

// Of a group of flags a doc comment would become the help of each command that has it.
#[derive(Args)]
pub(crate) struct ExtraFlags {
    /// NAME=SOFT[:HARD], as nofile=1024:4096; -1 is no limit
    #[arg(long)]
    ulimit: Vec<String>,
    /// The size of /dev/shm, in bytes, or with k, m, g behind
    #[arg(long)]
    shm_size: Option<String>,
    /// KEY=VALUE, of the container's own namespaces
    #[arg(long)]
    sysctl: Vec<String>,
    /// A device of this machine: PATH[:PATH-INSIDE][:rwm]
    #[arg(long)]
    device: Vec<String>,
    /// host or private: whose processes it sees
    #[arg(long, default_value = "", hide_default_value = true)]
    pid: String,
    /// host or private: whose shared memory it has
    #[arg(long, default_value = "", hide_default_value = true)]
    ipc: String,
    /// no-new-privileges, seccomp=unconfined|FILE, apparmor=PROFILE, systempaths=unconfined
    #[arg(long)]
    security_opt: Vec<String>,
    /// From -1000, never killed for want of memory, to 1000
    #[arg(long, allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    oom_score_adj: Option<i32>,
    /// Its part where processors are short; others have 1024
    #[arg(long, short)]
    cpu_shares: Option<u64>,
    /// Processors that it may use: 0-2,7
    #[arg(long, default_value = "", hide_default_value = true)]
    cpuset_cpus: String,
    /// What it keeps where memory is short
    #[arg(long)]
    memory_reservation: Option<String>,
    /// Memory and swap together, above -m; -1 is no limit. Otherwise twice as much as -m
    #[arg(long, allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Its first process reaps what ends and passes signals on
    #[arg(long)]
    init: bool,
    /// A group that its user is in as well: a name that the image knows, or a number
    #[arg(long)]
    group_add: Vec<String>,
    /// What asks it to stop, in place of what the image says
    #[arg(long)]
    stop_signal: Option<String>,
    /// NAME:ADDRESS, for its /etc/hosts; host-gateway is the address of this machine
    #[arg(long)]
    add_host: Vec<String>,
    /// Address of who resolves names
    #[arg(long)]
    dns: Vec<String>,
    /// Domains in which short names are looked for; . is none
    #[arg(long)]
    dns_search: Vec<String>,
    /// As in resolv.conf: ndots:2
    #[arg(long, alias = "dns-opt")]
    dns_option: Vec<String>,
}

impl ExtraFlags {
    pub(crate) fn read(self) -> Result<Extras> {
        Ok(Extras {
            ulimits: self.ulimit.iter().map(|text| ulimit(text)).collect::<Result<_>>()?,
            shm_bytes: self.shm_size.as_deref().map(parse::bytes).transpose()?.filter(|bytes| *bytes != 0),
            sysctls: self.sysctl.iter().map(|text| sysctl(text)).collect::<Result<_>>()?,
            devices: self.device.iter().map(|text| device(text)).collect::<Result<_>>()?,
            pid: self.pid,
            ipc: self.ipc,
            security: self.security_opt.into_iter().map(security).collect::<Result<_>>()?,
            oom_score_adj: self.oom_score_adj,
            cpu_shares: self.cpu_shares.filter(|shares| *shares != 0),
            cpuset: self.cpuset_cpus,
            memory_reservation: self.memory_reservation.as_deref().map(parse::bytes).transpose()?,
            memory_swap: self.memory_swap.as_deref().map(parse::swap).transpose()?,
            stop_signal: self.stop_signal,
            hosts: self.add_host.iter().map(|text| host(text)).collect::<Result<_>>()?,
            dns: Dns { servers: self.dns, search: self.dns_search, options: self.dns_option },
            init: self.init,
            groups: self.group_add,
        })
    }
}

/// A filter of system calls is a file here, and its content for the daemon.
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

fn sysctl(text: &str) -> Result<(String, String)> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    let pair =
        pair.ok_or_else(|| Error::invalid_argument(format!("invalid sysctl {text:?}: expected KEY=VALUE")))?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

/// The last of two may be an access, as Docker has it.
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

/// Addresses have colons too, names have none.
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
    fn values_are_read_as_dockers() {
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
        assert!(host("a").is_err() && host(":1").is_err() && sysctl("=x").is_err());
    }
}
