//! `stats`: samples of the cgroups and network interfaces of containers.

use linux::cgroup::{Cgroup, Io};
use linux::procfs::read_own;
use metadata::Container;
use serde_json::{Value, json};
use types::{ErrorKind, Result};

use crate::Engine;
use crate::networks::NetworkMode;
use crate::record::Extension;

impl Engine {
    /// One sample per running container; with `all`, or for named containers, zeros for those that do not run.
    pub(crate) async fn stats(&self, names: Vec<String>, all: bool) -> Result<Value> {
        self.blocking(move |engine| {
            let shows_idle = all || !names.is_empty();
            let wanted: Vec<(String, Container)> = if names.is_empty() {
                engine.all()?.into_iter().map(|container| (container.id.to_string(), container)).collect()
            } else {
                let find = |name: String| engine.find(&name).map(|container| (name, container));
                names.into_iter().map(find).collect::<Result<_>>()?
            };
            let machine = crate::info::memory_bytes().unwrap_or(u64::MAX);
            let mut rows = Vec::new();
            for (called, container) in wanted {
                let Ok(extension) = Extension::of(&container) else { continue };
                let sample = Cgroup::open(&engine.cgroup_of(container.id.as_str(), &extension.create.extras))
                    .and_then(|cgroup| {
                        let stats = cgroup.stats()?;
                        // In the host's network namespace, the traffic is not the container's.
                        let is_own = NetworkMode::of(&extension.create) != NetworkMode::Host;
                        Ok((stats, if is_own { traffic_of(&cgroup)? } else { (0, 0) }))
                    });
                let (stats, (received, sent)) = match sample {
                    Ok(sample) => sample,
                    Err(error) if error.is(ErrorKind::NotFound) && shows_idle => Default::default(),
                    Err(error) if error.is(ErrorKind::NotFound) => continue,
                    Err(error) => return Err(error),
                };
                rows.push(json!({
                    "ID": container.id.as_str(),
                    "Container": called,
                    "Name": extension.name,
                    "CpuNanos": stats.cpu.usage_ns,
                    "MemoryBytes": stats.memory.working_set(stats.is_v2),
                    // Without a limit, the host's memory is the limit.
                    "MemoryLimit": stats.memory.usage.limit.min(machine),
                    "PIDs": stats.pids.current,
                    "NetReceived": received,
                    "NetSent": sent,
                    "BlockRead": Io::total(&stats.io.bytes, "read"),
                    "BlockWrite": Io::total(&stats.io.bytes, "write"),
                }));
            }
            Ok(Value::Array(rows))
        })
        .await
    }
}

/// Bytes received and sent in a container's network namespace, read from `/proc` of the process with the lowest pid.
/// Does not ask the shim, which may not answer.
fn traffic_of(cgroup: &Cgroup) -> Result<(u64, u64)> {
    let first = cgroup.processes()?.first().copied();
    // It may have ended by now.
    let interfaces = first.and_then(|pid| read_own(&format!("/proc/{pid}/net/dev")).ok());
    Ok(traffic(&interfaces.unwrap_or_default()))
}

/// Bytes received and sent by all interfaces except the loopback, from `/proc/PID/net/dev`: two header lines, then per
/// interface its name and sixteen counters, of which the first and the ninth are bytes.
fn traffic(interfaces: &str) -> (u64, u64) {
    let others = interfaces.lines().skip(2).filter_map(|line| line.split_once(':'));
    let others = others.filter(|(name, _)| name.trim() != "lo");
    others.fold((0, 0), |(received, sent), (_, counters)| {
        let counters: Vec<u64> = counters.split_whitespace().filter_map(|text| text.parse().ok()).collect();
        let counter = |at: usize| counters.get(at).copied().unwrap_or(0);
        (received + counter(0), sent + counter(8))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_that_of_all_interfaces_but_the_loopback() {
        let text = "Inter-|   Receive                            |  Transmit\n \
                    face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed\n    \
                    lo:     900    9 0 0 0 0 0 0      900    9 0 0 0 0 0 0\n  \
                    eth0:    1200   10 0 0 0 0 0 0       70    1 0 0 0 0 0 0\n\
                    eth1:34 1 0 0 0 0 0 0 5 1 0 0 0 0 0 0\n";
        assert_eq!(traffic(text), (1234, 75));
        assert_eq!(traffic(""), (0, 0));
    }
}
