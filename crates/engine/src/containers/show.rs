//! `ps` and `inspect`: containers in Docker's JSON formats.

use std::collections::{BTreeMap, BTreeSet};

use api::engine::{Create, Device, Restart, Ulimit};
use metadata::Container;
use network::Transport;
use serde_json::{Map, Value, json};
use task::{OUR_RUNTIME, Process};
use types::{ContainerId, ErrorKind, Namespace, Result};

use super::config::ports_asked_for;
use super::filter::{Filter, KNOWN, KNOWN_TO_PRUNE};
use super::log_driver::{self, NO_LOG};
use super::{Phase, State, exposed};
use crate::Engine;
use crate::logs::LOG_FILE;
use crate::networks::NetworkMode;
use crate::record::Extension;
use crate::spec::memory_and_swap;
use crate::volumes::VOLUME;

/// A container in a list, with its state.
pub(crate) struct Listed {
    pub(crate) container: Container,
    pub(crate) extension: Extension,
    pub(crate) state: State,
    /// `None` if sizes were not requested, or its snapshot is gone.
    pub(crate) sizes: Option<Sizes>,
}

/// Disk usage of a container's snapshot, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// The container's own layer.
    pub(crate) written: u64,
    /// The image's layers, which other containers may share.
    pub(crate) below: u64,
}

impl Sizes {
    /// Adds the sizes to a container's JSON, in Docker's fields.
    fn show_in(self, shown: &mut Value) {
        shown["SizeRw"] = json!(self.written);
        shown["SizeRootFs"] = json!(self.written + self.below);
    }
}

impl Engine {
    /// Lists containers for `ps`: the running ones, or all that match.
    pub async fn list(
        &self,
        all: bool,
        filters: Vec<String>,
        last: Option<u64>,
        sizes: bool,
    ) -> Result<Value> {
        let filter = self.blocking(move |engine| engine.container_filter(&filters, KNOWN)).await?;
        let listed = self.list_fitting(filter, all, last, sizes).await?;
        self.rows(&listed).await
    }

    /// All containers, running or not.
    pub(crate) async fn list_all(&self) -> Result<Vec<Listed>> {
        self.list_fitting(Filter::default(), true, None, false).await
    }

    /// All containers that match the filters of a prune, running or not, with their sizes.
    pub(crate) async fn list_to_prune(&self, filters: Vec<String>) -> Result<Vec<Listed>> {
        let filter = self.blocking(move |engine| engine.container_filter(&filters, KNOWN_TO_PRUNE)).await?;
        self.list_fitting(filter, true, None, true).await
    }

    async fn list_fitting(
        &self,
        filter: Filter,
        all: bool,
        last: Option<u64>,
        sizes: bool,
    ) -> Result<Vec<Listed>> {
        let takes_all = all || last.is_some() || filter.means_all();
        // All shims in parallel, so that their timeouts do not add up. Before the records are read, which tell how a
        // container ended since.
        let states = self.parts().shims.states(Some(&self.0.caller.namespace)).await;
        let states: BTreeMap<ContainerId, Process> =
            states.into_iter().map(|(_, process)| (process.container.clone(), process)).collect();
        let containers = self.blocking(Engine::all).await?;
        let exposed = if filter.asks_for_exposed() {
            let extensions = containers.iter().filter_map(|container| Extension::of(container).ok());
            let images: Vec<String> = extensions.map(|extension| extension.image_digest).collect();
            self.exposed_by(images.into_iter()).await?
        } else {
            BTreeMap::new()
        };
        let mut found = Vec::new();
        for container in containers {
            let Ok(extension) = Extension::of(&container) else { continue };
            let state = match states.get(&container.id) {
                Some(process) => self.state_from(&container.id, &extension, Some(process)).await,
                // It has no task, or got one after the states were queried.
                None => self.state_of(&container.id, &extension).await,
            };
            let health = self.0.healths.status(&container.id, &extension);
            let of_image = exposed.get(&extension.image_digest).into_iter().flatten();
            let Create { ports, extras, .. } = &extension.create;
            if (takes_all || state.is_alive())
                && filter.fits(&container, &extension, &state, health)
                && filter.fits_exposed(ports, of_image.chain(&extras.exposed))
            {
                found.push(Listed { container, extension, state, sizes: None });
            }
        }
        found.sort_by_key(|one| std::cmp::Reverse(one.container.created));
        found.truncate(last.map_or(usize::MAX, |last| usize::try_from(last).unwrap_or(usize::MAX)));
        if !sizes {
            return Ok(found);
        }
        self.blocking(move |engine| {
            for one in &mut found {
                one.sizes = engine.sizes_if_there(&one.container)?;
            }
            Ok(found)
        })
        .await
    }

    /// The rows of `ps`.
    async fn rows(&self, listed: &[Listed]) -> Result<Value> {
        let alive = listed.iter().filter(|one| one.state.is_alive());
        let exposed = self.exposed_by(alive.map(|one| one.extension.image_digest.clone())).await?;
        Ok(listed.iter().map(|one| self.row(one, &exposed)).collect())
    }

    /// The sizes of a container's snapshot; `None` if it is gone.
    fn sizes_if_there(&self, container: &Container) -> Result<Option<Sizes>> {
        match self.sizes(container) {
            Err(error) if error.is(ErrorKind::NotFound) => Ok(None),
            sizes => sizes.map(Some),
        }
    }

    fn sizes(&self, container: &Container) -> Result<Sizes> {
        let snapshots = self.parts().metadata.snapshots(&self.0.caller, &container.snapshotter)?;
        let written = snapshots.usage(&container.snapshot_key)?.bytes;
        let (mut below, mut parent) = (0, snapshots.stat(&container.snapshot_key)?.parent);
        while !parent.is_empty() {
            below += snapshots.usage(&parent)?.bytes;
            parent = snapshots.stat(&parent)?.parent;
        }
        Ok(Sizes { written, below })
    }

    /// The ports that these images expose, by image; images that are gone are skipped.
    async fn exposed_by(
        &self,
        images: impl Iterator<Item = String>,
    ) -> Result<BTreeMap<String, BTreeSet<String>>> {
        let images: BTreeSet<String> = images.collect();
        self.blocking(move |engine| {
            let exposed = |image: &String| {
                let config = engine.image_config(image).unwrap_or_default();
                config.exposed_ports.into_keys().collect()
            };
            Ok(images.into_iter().map(|image| (image.clone(), exposed(&image))).collect())
        })
        .await
    }

    fn row(&self, listed: &Listed, exposed: &BTreeMap<String, BTreeSet<String>>) -> Value {
        let Listed { container, extension, state, sizes } = listed;
        let exposed = exposed.get(&extension.image_digest).into_iter().flatten();
        let exposed = exposed.chain(&extension.create.extras.exposed);
        let create = &extension.create;
        let network = NetworkMode::of(create);
        let mut row = json!({
            "ID": container.id.as_str(),
            "Image": familiar(&extension.image),
            "Command": extension.command.join(" "),
            "CreatedAt": container.created.to_string(),
            "Platform": extension.platform,
            "State": state.phase.name(),
            "HealthStatus": if state.is_alive() { self.0.healths.status(&container.id, extension) } else { "" },
            "ExitCode": state.exit.map(|exit| exit.code),
            "StartedAt": extension.started.map(|time| time.to_string()),
            "FinishedAt": state.exit.map(|exit| exit.at.to_string()),
            "Ports": self.ports_text(container.id.as_str(), exposed),
            "Names": extension.name,
            "Labels": create.labels,
            "Networks": network.driver().map_or_else(String::new, |_| network.to_string()),
            "Mounts": create.mounts.iter().map(|mount| &mount.source).collect::<Vec<_>>(),
            "LocalVolumes": create.mounts.iter().filter(|mount| mount.kind == VOLUME).count(),
            "Pid": state.pid,
        });
        if let Some(sizes) = sizes {
            sizes.show_in(&mut row);
        }
        row
    }

    /// The namespace of the engine's containers.
    pub fn namespace(&self) -> &Namespace {
        &self.0.caller.namespace
    }

    /// The attributes of a container for events about it, even if it has just been removed; `None` if it is not the
    /// engine's.
    pub async fn describe(&self, id: &str) -> Option<BTreeMap<String, String>> {
        let id = ContainerId::new(id).ok()?;
        let own = id.clone();
        let found = self.blocking(move |engine| {
            let container = engine.parts().metadata.containers(&engine.0.caller).get(&id)?;
            Extension::of(&container)
        });
        match found.await {
            Ok(extension) => Some(attributes(&extension)),
            Err(_) => self.recall_removed(own.as_str()),
        }
    }

    /// The column PORTS: first ports that are exposed only, then published ones; empty without a network of its own.
    fn ports_text<'a>(&self, id: &str, exposed: impl Iterator<Item = &'a String>) -> String {
        let Some(attachment) = self.parts().network.attachment(id) else { return String::new() };
        let published = port_bindings(&attachment);
        let alone = exposed_ports(exposed).filter(|port| !published.contains_key(port));
        let published = attachment.ports.iter().map(|port| {
            let protocol = protocol(port.transport);
            format!("{}:{}->{}/{protocol}", port.host_address, port.host_port, port.container_port)
        });
        alone.chain(published).collect::<Vec<_>>().join(", ")
    }

    /// `inspect`: a container in Docker's format; with `sizes`, with its disk usage.
    pub async fn inspect(&self, text: &str, sizes: bool) -> Result<Value> {
        let (container, extension) = self.find_own(text).await?;
        let state = self.state_of(&container.id, &extension).await;
        let health = self.health(&container.id, &extension).await;
        let create = &extension.create;
        let network = NetworkMode::of(create);
        let attachment = self.parts().network.attachment(container.id.as_str());
        let address = attachment.as_ref().map(|one| one.address.to_string()).unwrap_or_default();
        let gateway = attachment.as_ref().map(|one| one.gateway.to_string()).unwrap_or_default();
        let mac = attachment.as_ref().map(network::Attachment::mac_text).unwrap_or_default();
        let prefix_len = attachment.as_ref().map_or(0, |one| one.prefix_len);
        let sandbox = attachment.as_ref().map(|_| self.parts().network.namespace_path(container.id.as_str()));
        let sandbox = sandbox.unwrap_or_default();
        let log_path =
            (create.extras.log.driver != NO_LOG).then(|| self.files(container.id.as_str()).join(LOG_FILE));
        let mut shown = json!({
            "Id": container.id.as_str(),
            "Name": format!("/{}", extension.name),
            "Created": container.created.to_string(),
            "Path": extension.command.first(),
            "Args": extension.command.iter().skip(1).collect::<Vec<_>>(),
            "Image": extension.image_digest,
            "RestartCount": extension.restarts,
            "Driver": container.snapshotter,
            "Platform": "linux",
            "ExecIDs": null,
            "LogPath": log_path.unwrap_or_default(),
            "ResolvConfPath": self.files(container.id.as_str()).join("resolv.conf"),
            "HostnamePath": self.files(container.id.as_str()).join("hostname"),
            "HostsPath": self.files(container.id.as_str()).join("hosts"),
            "State": {
                "Status": state.phase.name(),
                "Running": state.is_alive(),
                "Paused": state.phase == Phase::Paused,
                "Restarting": state.phase == Phase::Restarting,
                "Dead": false,
                "Error": "",
                "Pid": state.pid,
                "ExitCode": state.exit.map_or(0, |exit| exit.code),
                "OOMKilled": state.exit.is_some_and(|exit| exit.oom_killed),
                "StartedAt": extension.started.map_or(NEVER.to_owned(), |time| time.to_string()),
                "FinishedAt": state.exit.map_or(NEVER.to_owned(), |exit| exit.at.to_string()),
            },
            "Config": self.config_of_container(&extension).await,
            "HostConfig": host_config(&extension),
            "Mounts": create.mounts.iter().map(|mount| self.mount_row(mount)).collect::<Vec<_>>(),
            "NetworkSettings": {
                "SandboxKey": sandbox,
                "IPAddress": address,
                "IPPrefixLen": prefix_len,
                "Gateway": gateway,
                "MacAddress": mac,
                "Ports": attachment.as_ref().map(port_bindings).unwrap_or_default(),
                "Networks": {
                    (network.to_string()): {
                        "NetworkID": self.network_id(&network),
                        "EndpointID": attachment.as_ref().map_or("", |_| container.id.as_str()),
                        "Aliases": null,
                        "IPAddress": address,
                        "IPPrefixLen": prefix_len,
                        "Gateway": gateway,
                        "GlobalIPv6Address": "",
                        "MacAddress": mac,
                    },
                },
            },
        });
        if attachment.is_some() {
            // Exposed ports that are not published.
            let exposed = shown["Config"]["ExposedPorts"].as_object().cloned().unwrap_or_default();
            let ports = shown["NetworkSettings"]["Ports"].as_object_mut().expect("created above");
            for port in exposed_ports(exposed.keys()) {
                ports.entry(port).or_insert(Value::Null);
            }
        }
        if matches!(network, NetworkMode::Of(_)) {
            shown["NetworkSettings"]["Networks"] = json!({});
        }
        // As in Docker, the fields are present and null without a health check: templates test them.
        shown["Config"]["Healthcheck"] = json!(extension.health);
        shown["State"]["Health"] = json!(extension.health.as_ref().and(health).map(|health| health.shown()));
        if sizes {
            let sizes = self.blocking(move |engine| engine.sizes(&container)).await?;
            sizes.show_in(&mut shown);
        }
        Ok(shown)
    }

    fn mount_row(&self, mount: &api::engine::Mount) -> Value {
        let mut row = json!({
            "Type": mount.kind, "Source": mount.source, "Destination": mount.target, "RW": !mount.read_only,
            "Mode": if mount.read_only { "ro" } else { "" }, "Propagation": "",
        });
        if mount.kind == "bind" {
            row["Propagation"] = json!(mount.options.first().map_or("rprivate", String::as_str));
        }
        if mount.kind == VOLUME {
            row["Name"] = json!(mount.source);
            row["Driver"] = json!("local");
            row["Source"] = json!(self.data_of_volume(&mount.source));
        }
        row
    }
}

/// Docker's timestamp for "never" (Go's zero time).
const NEVER: &str = "0001-01-01T00:00:00Z";

/// `HostConfig`: the requested options that concern the host.
fn host_config(extension: &Extension) -> Value {
    let create = &extension.create;
    // Docker's `HostConfig` does not list anonymous volumes.
    let own = &extension.own_volumes;
    let is_named = |mount: &&api::engine::Mount| !(mount.kind == VOLUME && own.contains(&mount.source));
    let extras = &create.extras;
    let (restart, retries) = match create.restart {
        Restart::No => ("no", 0),
        Restart::Always => ("always", 0),
        Restart::UnlessStopped => ("unless-stopped", 0),
        Restart::OnFailure(max) => ("on-failure", max),
    };
    let binds: Vec<_> = create.mounts.iter().filter(is_named).filter_map(bind_text).collect();
    let tmpfs = create.mounts.iter().filter(|mount| mount.kind == "tmpfs");
    let tmpfs: Map<String, Value> =
        tmpfs.map(|mount| (mount.target.clone(), mount.options.join(",").into())).collect();
    let hosts: Vec<_> = extras.hosts.iter().map(|(name, at)| format!("{name}:{at}")).collect();
    let ulimits: Vec<_> = extras.ulimits.iter().map(ulimit_row).collect();
    let devices: Vec<_> = extras.devices.iter().map(device_row).collect();
    let mut config = json!({
        "NetworkMode": create.network,
        "Binds": binds,
        "Tmpfs": Some(tmpfs).filter(|tmpfs| !tmpfs.is_empty()),
        "PortBindings": ports_asked_for(&create.ports),
        "LogConfig": {"Type": log_driver::driver(&extras.log), "Config": extras.log.options},
        "RestartPolicy": {"Name": restart, "MaximumRetryCount": retries},
        "AutoRemove": create.auto_remove,
        "Privileged": create.privileged,
        "ReadonlyRootfs": create.read_only,
        "CapAdd": create.cap_add,
        "CapDrop": create.cap_drop,
        "PublishAllPorts": create.publish_all,
        "VolumesFrom": Some(&extras.volumes_from).filter(|from| !from.is_empty()),
        "Init": extras.init,
        "GroupAdd": extras.groups,
        "PidMode": extras.pid,
        "UTSMode": extras.uts,
        "Annotations": extras.annotations,
        "CgroupParent": extras.cgroup_parent,
        "DeviceCgroupRules": Some(&extras.device_rules).filter(|rules| !rules.is_empty()),
        "Runtime": if extras.runtime.is_empty() { OUR_RUNTIME } else { &extras.runtime },
        "IpcMode": if extras.ipc.is_empty() { "private" } else { &extras.ipc },
        "SecurityOpt": extras.security,
        "Sysctls": extras.sysctls,
        "Ulimits": ulimits,
        "Devices": devices,
        "DeviceRequests": device_requests(&extras.cdi),
        "ExtraHosts": hosts,
        "Dns": extras.dns.servers,
        "DnsSearch": extras.dns.search,
        "DnsOptions": extras.dns.options,
    });
    config.as_object_mut().expect("an object").extend(limits(create));
    config
}

/// The resource limits in `HostConfig`.
fn limits(create: &Create) -> Map<String, Value> {
    let extras = &create.extras;
    let all = json!({
        "Memory": create.memory.unwrap_or(0),
        "NanoCpus": create.milli_cpus.unwrap_or(0) * 1_000_000,
        "PidsLimit": create.pids_limit,
        "CpuShares": extras.cpu_shares.unwrap_or(0),
        "CpuPeriod": extras.cpu_period.unwrap_or(0),
        "CpuQuota": extras.cpu_quota.unwrap_or(0),
        "CpusetCpus": extras.cpuset,
        "CpusetMems": extras.cpuset_mems,
        "BlkioWeight": extras.blkio_weight.unwrap_or(0),
        "MemoryReservation": extras.memory_reservation.unwrap_or(0),
        "MemorySwap": memory_and_swap(create).unwrap_or(0),
        "OomScoreAdj": extras.oom_score_adj.unwrap_or(0),
        "ShmSize": extras.shm_bytes.unwrap_or(64 << 20),
        "MemorySwappiness": extras.swappiness,
        "OomKillDisable": extras.oom_kill_disable,
    });
    let Value::Object(all) = all else { unreachable!("it is written as one") };
    all
}

/// A mount in the syntax of `-v`; `None` if it has no source.
fn bind_text(mount: &api::engine::Mount) -> Option<String> {
    if mount.kind == "tmpfs" || mount.source.is_empty() {
        return None;
    }
    let access = mount.read_only.then_some("ro");
    let options: Vec<&str> = access.into_iter().chain(mount.options.iter().map(String::as_str)).collect();
    let options = if options.is_empty() { String::new() } else { format!(":{}", options.join(",")) };
    Some(format!("{}:{}{options}", mount.source, mount.target))
}

/// Docker shows no limit as -1.
fn ulimit_row(limit: &Ulimit) -> Value {
    let number = |limit: Option<u64>| limit.map_or(-1, |limit| i64::try_from(limit).unwrap_or(i64::MAX));
    json!({"Name": limit.name, "Soft": number(limit.soft), "Hard": number(limit.hard)})
}

/// CDI devices in Docker's format.
fn device_requests(names: &[String]) -> Value {
    if names.is_empty() {
        return json!([]);
    }
    json!([{"Driver": "cdi", "Count": 0, "DeviceIDs": names, "Capabilities": [], "Options": {}}])
}

fn device_row(device: &Device) -> Value {
    json!({"PathOnHost": device.source, "PathInContainer": device.target, "CgroupPermissions": device.access})
}

pub(crate) fn attributes(extension: &Extension) -> BTreeMap<String, String> {
    let mut attributes = extension.create.labels.clone();
    attributes.insert("name".to_owned(), extension.name.clone());
    attributes.insert("image".to_owned(), familiar(&extension.image));
    attributes
}

/// Published ports by container port.
fn port_bindings(attachment: &network::Attachment) -> Map<String, Value> {
    let mut bindings = Map::new();
    for port in &attachment.ports {
        let inside = format!("{}/{}", port.container_port, protocol(port.transport));
        let all = bindings.entry(inside).or_insert_with(|| json!([]));
        let binding =
            json!({"HostIp": port.host_address.to_string(), "HostPort": port.host_port.to_string()});
        all.as_array_mut().expect("created above").push(binding);
    }
    bindings
}

/// Each exposed port in Docker's syntax.
fn exposed_ports<'a>(exposed: impl Iterator<Item = &'a String>) -> impl Iterator<Item = String> {
    exposed::each(exposed).into_iter().map(|(number, protocol)| format!("{number}/{protocol}"))
}

fn protocol(transport: Transport) -> &'static str {
    if transport == Transport::Tcp { "tcp" } else { "udp" }
}

/// [`familiar`] with the tag, even if that is `latest`.
pub(crate) fn familiar_with_tag(name: &str) -> String {
    let reference: Option<types::Reference> = name.parse().ok();
    let tagged = reference.and_then(|own| Some(format!("{}:{}", own.familiar_name(), own.tag()?)));
    tagged.unwrap_or_else(|| familiar(name))
}

pub(crate) fn familiar(name: &str) -> String {
    let Ok(reference) = name.parse::<types::Reference>() else { return name.to_owned() };
    match (reference.tag(), reference.digest()) {
        (Some("latest"), None) => reference.familiar_name(),
        (Some(tag), _) => format!("{}:{tag}", reference.familiar_name()),
        (None, Some(digest)) => format!("{}@{digest}", reference.familiar_name()),
        (None, None) => reference.familiar_name(),
    }
}
