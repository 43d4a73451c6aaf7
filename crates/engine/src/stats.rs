//! What containers use of the machine: a sample of their cgroups and interfaces.

use linux::cgroup::{Cgroup, Io};
use linux::procfs::read_own;
use metadata::Container;
use serde_json::{Value, json};
use types::{ErrorKind, Result};

use crate::Engine;
use crate::networks::NetworkMode;
use crate::record::Extension;

impl Engine {
    /// One sample for each running container, for all, or for those named. Those that do not run use nothing.
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
                        // The host's traffic is not a container's.
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
                    // One that has none has what the machine has.
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

/// Bytes in and out of a container's network, as its first process sees it, which has the lowest number. Nobody is asked
/// who may not answer: that is for `ps`.
fn traffic_of(cgroup: &Cgroup) -> Result<(u64, u64)> {
    let first = cgroup.processes()?.first().copied();
    // It may have ended by now.
    let interfaces = first.and_then(|pid| read_own(&format!("/proc/{pid}/net/dev")).ok());
    Ok(traffic(&interfaces.unwrap_or_default()))
}

/// Bytes that came in and went out by all interfaces but the loopback, by `/proc/PID/net/dev`: two lines of headings, then
/// a name and sixteen counters for each, of which the first and the ninth are bytes.
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
