//! Containers as lists and documents show them, in Docker's shapes.

use api::engine::Restart;
use metadata::Container;
use network::Transport;
use serde_json::{Value, json};
use types::Result;

use super::State;
use crate::Engine;
use crate::record::Extension;
use crate::volumes::VOLUME;

impl Engine {
    /// All containers, as `ps` wants them.
    pub async fn list(&self, all: bool) -> Result<Value> {
        let containers = self.blocking(Engine::all).await?;
        let mut rows = Vec::new();
        for container in containers {
            let Ok(extension) = Extension::of(&container) else { continue };
            let state = self.state_of(&container.id, &extension).await;
            if all || state.is_alive {
                rows.push((container.created, self.row(&container, &extension, &state)));
            }
        }
        rows.sort_by_key(|(created, _)| std::cmp::Reverse(*created));
        Ok(Value::Array(rows.into_iter().map(|(_, row)| row).collect()))
    }

    fn row(&self, container: &Container, extension: &Extension, state: &State) -> Value {
        let create = &extension.create;
        json!({
            "ID": container.id.as_str(),
            "Image": familiar(&extension.image),
            "Command": extension.command.join(" "),
            "CreatedAt": container.created.to_string(),
            "State": state.name,
            "ExitCode": extension.exit.map(|exit| exit.code),
            "StartedAt": extension.started.map(|time| time.to_string()),
            "FinishedAt": extension.exit.map(|exit| exit.at.to_string()),
            "Ports": self.ports_text(container.id.as_str()),
            "Names": extension.name,
            "Labels": create.labels,
            "Networks": create.network,
            "Pid": state.pid,
        })
    }

    fn ports_text(&self, id: &str) -> String {
        let attachment = self.parts().network.attachment(id);
        let ports = attachment.iter().flat_map(|attachment| &attachment.ports);
        let each = ports.map(|port| {
            let protocol = if port.transport == Transport::Tcp { "tcp" } else { "udp" };
            format!("{}:{}->{}/{protocol}", port.host_address, port.host_port, port.container_port)
        });
        each.collect::<Vec<_>>().join(", ")
    }

    /// A container in Docker's shape.
    pub async fn inspect(&self, text: &str) -> Result<Value> {
        let text = text.to_owned();
        let (container, extension) = self
            .blocking(move |engine| {
                let container = engine.find(&text)?;
                let extension = Extension::of(&container)?;
                Ok((container, extension))
            })
            .await?;
        let state = self.state_of(&container.id, &extension).await;
        let create = &extension.create;
        let attachment = self.parts().network.attachment(container.id.as_str());
        let address = attachment.as_ref().map(|one| one.address.to_string()).unwrap_or_default();
        let gateway = attachment.as_ref().map(|one| one.gateway.to_string()).unwrap_or_default();
        let mac = attachment.as_ref().map(network::Attachment::mac_text).unwrap_or_default();
        let (restart, retries) = match create.restart {
            Restart::No => ("no", 0),
            Restart::Always => ("always", 0),
            Restart::UnlessStopped => ("unless-stopped", 0),
            Restart::OnFailure(max) => ("on-failure", max),
        };
        Ok(json!({
            "Id": container.id.as_str(),
            "Name": format!("/{}", extension.name),
            "Created": container.created.to_string(),
            "Path": extension.command.first(),
            "Args": extension.command.iter().skip(1).collect::<Vec<_>>(),
            "Image": extension.image_digest,
            "RestartCount": extension.restarts,
            "LogPath": self.files(container.id.as_str()).join("json.log"),
            "State": {
                "Status": state.name,
                "Running": state.is_alive,
                "Paused": state.name == "paused",
                "Restarting": state.name == "restarting",
                "Pid": state.pid,
                "ExitCode": extension.exit.map_or(0, |exit| exit.code),
                "OOMKilled": extension.exit.is_some_and(|exit| exit.oom_killed),
                "StartedAt": extension.started.map(|time| time.to_string()),
                "FinishedAt": extension.exit.map(|exit| exit.at.to_string()),
            },
            "Config": {
                "Hostname": create.hostname,
                "Image": familiar(&extension.image),
                "Env": create.env,
                "Cmd": create.command,
                "Tty": create.tty,
                "OpenStdin": create.interactive,
                "WorkingDir": create.workdir,
                "User": create.user,
                "Labels": create.labels,
                "StopSignal": extension.stop_signal,
            },
            "HostConfig": {
                "NetworkMode": create.network,
                "RestartPolicy": {"Name": restart, "MaximumRetryCount": retries},
                "AutoRemove": create.auto_remove,
                "Privileged": create.privileged,
                "ReadonlyRootfs": create.read_only,
                "Memory": create.memory.unwrap_or(0),
                "NanoCpus": create.milli_cpus.unwrap_or(0) * 1_000_000,
                "PidsLimit": create.pids_limit,
                "CapAdd": create.cap_add,
                "CapDrop": create.cap_drop,
            },
            "Mounts": create.mounts.iter().map(|mount| self.mount_row(mount)).collect::<Vec<_>>(),
            "NetworkSettings": {
                "IPAddress": address,
                "Gateway": gateway,
                "MacAddress": mac,
                "Ports": self.ports_text(container.id.as_str()),
            },
        }))
    }

    fn mount_row(&self, mount: &api::engine::Mount) -> Value {
        let mut row = json!({
            "Type": mount.kind, "Source": mount.source, "Destination": mount.target, "RW": !mount.read_only,
        });
        if mount.kind == VOLUME {
            row["Name"] = json!(mount.source);
            row["Source"] = json!(self.data_of_volume(&mount.source));
        }
        row
    }
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
