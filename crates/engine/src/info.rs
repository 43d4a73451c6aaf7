//! `info`: the daemon's objects and the host they are on.

use linux::cgroup::{Hierarchies, Version};
use linux::procfs::read_own;
use serde_json::{Value, json};
use types::filter::Filters;
use types::{Result, Timestamp};

use crate::Engine;
use crate::containers::{LOG_DRIVERS, Phase};
use crate::networks::NETWORKS;

impl Engine {
    pub(crate) async fn info(&self) -> Result<Value> {
        let listed = self.list_all().await?;
        let count = |phase: Phase| listed.iter().filter(|one| one.state.phase == phase).count();
        let (running, paused) = (count(Phase::Running), count(Phase::Paused));
        let images = self
            .blocking(|engine| {
                Ok(engine.parts().metadata.images(&engine.0.caller).list(&Filters::all())?.len())
            })
            .await?;
        let kernel = rustix::system::uname();
        Ok(json!({
            "ServerVersion": env!("CARGO_PKG_VERSION"),
            "Containers": listed.len(),
            "ContainersRunning": running,
            "ContainersPaused": paused,
            "ContainersStopped": listed.len() - running - paused,
            "Images": images,
            "Driver": self.parts().snapshotter,
            "LoggingDriver": "json-file",
            "CgroupDriver": "cgroupfs",
            "CgroupVersion": cgroup_version(),
            "SecurityOptions": security_options(),
            "DefaultRuntime": "hoist",
            "LiveRestoreEnabled": true,
            "Plugins": {
                "Volume": ["local"],
                "Network": NETWORKS.map(|network| network.driver()),
                "Log": LOG_DRIVERS,
            },
            "Swarm": {"LocalNodeState": "inactive", "ControlAvailable": false},
            "RootDir": self.parts().root,
            "DockerRootDir": self.parts().root,
            "StateDir": self.parts().state,
            "Name": kernel.nodename().to_string_lossy(),
            "KernelVersion": kernel.release().to_string_lossy(),
            "OperatingSystem": operating_system(),
            "OSType": std::env::consts::OS,
            "Architecture": kernel.machine().to_string_lossy(),
            "NCPU": crate::cpus::count(),
            "MemTotal": memory_bytes(),
            "SystemTime": Timestamp::now().to_string(),
        }))
    }
}

/// Docker's `CgroupVersion`: "1" if any controller is on a version 1 hierarchy, because containers are limited by that.
pub(crate) fn cgroup_version() -> Option<&'static str> {
    Some(match Hierarchies::detect().ok()?.version() {
        Version::V2 => "2",
        Version::V1 | Version::Hybrid => "1",
    })
}

/// The security options that containers have by default, in Docker's format.
fn security_options() -> Vec<&'static str> {
    let has_seccomp = read_own("/proc/self/status").is_ok_and(|status| status.contains("\nSeccomp:"));
    let seccomp = has_seccomp.then_some("name=seccomp,profile=builtin");
    seccomp.into_iter().chain(["name=cgroupns"]).collect()
}

/// os-release(5)
fn operating_system() -> String {
    let text = read_own("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("unknown").trim_matches(['"', '\'']).to_owned()
}

/// proc_meminfo(5)
pub(crate) fn memory_bytes() -> Option<u64> {
    let text = read_own("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}
