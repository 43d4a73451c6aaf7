//! The `Config` object of `inspect`: the image's config merged with the options the container was created with.

use std::collections::BTreeMap;

use api::engine::Port;
use serde_json::{Value, json};
use types::spec::image::{ExecConfig, ImageConfig};
use types::{Digest, Result};

use super::familiar;
use crate::Engine;
use crate::record::Extension;
use crate::spec::entrypoint_and_command;

impl Engine {
    /// If the image is gone, without its part.
    pub(super) async fn config_of_container(&self, extension: &Extension) -> Value {
        let digest = extension.image_digest.clone();
        let image = self.blocking(move |engine| engine.image_config(&digest)).await;
        config_row(extension, &image.unwrap_or_default())
    }

    /// The config of a container's image. `NotFound` if the image is gone.
    pub(super) fn image_config(&self, digest: &str) -> Result<ExecConfig> {
        let digest: Digest = digest.parse()?;
        let content = self.parts().metadata.content(&self.0.caller);
        let bytes = content.reader(&digest)?.read_all(image::DOCUMENT_LEN_MAX)?;
        let config = serde_json::from_slice::<ImageConfig>(&bytes).ok().and_then(|config| config.config);
        Ok(config.unwrap_or_default())
    }
}

/// Builds the object in Docker's format, merged by Docker's rules.
fn config_row(extension: &Extension, image: &ExecConfig) -> Value {
    let create = &extension.create;
    let key = |entry: &String| entry.split('=').next().map(str::to_owned);
    let is_own = |entry: &&String| create.env.iter().any(|own| key(own) == key(entry));
    let own = create.env.iter().filter(|entry| entry.contains('='));
    let env: Vec<&String> = own.chain(image.env.iter().filter(|entry| !is_own(entry))).collect();
    let (entrypoint, command) = entrypoint_and_command(create, image);
    let labels: BTreeMap<&String, &String> = image.labels.iter().chain(&create.labels).collect();
    let exposed: BTreeMap<String, Value> = image
        .exposed_ports
        .keys()
        .cloned()
        .chain(create.extras.exposed.iter().cloned())
        .chain(create.ports.iter().map(port))
        .map(|port| (port, json!({})))
        .collect();
    let or_image = |own: &Option<String>, image: &String| own.clone().unwrap_or_else(|| image.clone());
    json!({
        "Hostname": create.hostname,
        "Domainname": create.extras.domainname,
        "Image": familiar(&extension.image),
        "Env": env,
        "Cmd": or_null(command),
        "Entrypoint": or_null(entrypoint),
        "Tty": create.tty,
        "OpenStdin": create.interactive,
        "StdinOnce": create.interactive && create.stdin_once,
        "WorkingDir": or_image(&create.workdir, &image.working_dir),
        "User": or_image(&create.user, &image.user),
        "Labels": labels,
        "Volumes": if image.volumes.is_empty() { Value::Null } else { json!(image.volumes) },
        "StopSignal": extension.stop_signal,
        "ExposedPorts": exposed,
        "StopTimeout": create.extras.stop_timeout,
        "OnBuild": null,
    })
}

/// Docker shows an empty list as null.
fn or_null(words: Vec<String>) -> Option<Vec<String>> {
    Some(words).filter(|words| !words.is_empty())
}

fn port(port: &Port) -> String {
    let protocol = if port.protocol.is_empty() { "tcp" } else { &port.protocol };
    format!("{}/{protocol}", port.container_port)
}

/// The requested port bindings; a port the daemon chooses has an empty number.
pub(super) fn ports_asked_for(ports: &[Port]) -> BTreeMap<String, Vec<Value>> {
    let mut asked: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for one in ports {
        let number = match (one.host_port, one.host_port_last) {
            (None, _) => String::new(),
            (Some(first), Some(last)) if first != last => format!("{first}-{last}"),
            (Some(number), _) => number.to_string(),
        };
        asked.entry(port(one)).or_default().push(json!({"HostIp": one.host_ip, "HostPort": number}));
    }
    asked
}
