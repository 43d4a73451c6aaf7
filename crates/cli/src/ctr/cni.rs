//! CNI networks, for `ctr run --cni`: the first network configuration in `/etc/cni/net.d`.
//!
//! ```text
//! 10-mynet.conflist ─▶ plugins[0] ─result▶ plugins[1] ─▶ …      ADD; DEL goes the other way round
//!                          │ stdin: its part, name, cniVersion, prevResult
//!                          └ CNI_COMMAND CNI_CONTAINERID CNI_NETNS CNI_IFNAME CNI_PATH
//! /var/lib/cni/results/NETWORK-CONTAINER-eth0     the result, for the later DEL (libcni's cache format)
//! ```
//!
//! As with containerd's clients, one network is attached, its interface in the container is `eth0`, and the container
//! id for plugins is `NAMESPACE-ID`. The environment variables of cnitool override paths: `NETCONFPATH`, `CNI_PATH`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use api::grpc::containers::Container;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost_types::Any;
use serde_json::{Map, Value, json};
use types::{Context, Error, Result};

const CONFIGS: &str = "/etc/cni/net.d";
/// Directories of plugins: the upstream default, and Debian's.
const PLUGINS: &str = "/opt/cni/bin:/usr/lib/cni";
const RESULTS: &str = "/var/lib/cni/results";
const LINK: &str = "eth0";
const KIND: &str = "cniCacheV1";
/// The container extension by which containerd's clients note a CNI network.
const EXTENSION: &str = "ctr.cni-containerd.metadata";
const EXTENSION_URL: &str = "github.com/containerd/containerd/v2/cmd/ctr/commands/NetworkMetaData";

/// A network configuration of this machine.
pub(super) struct Network {
    name: String,
    version: String,
    plugins: Vec<Map<String, Value>>,
    /// The file's content.
    text: Vec<u8>,
    path: String,
}

/// Notes in the container record that it has a CNI network, so that the client which ends it removes the network.
pub(super) fn note(container: &mut Container) {
    let value = json!({ "EnableCni": true }).to_string().into_bytes();
    let note = Any { type_url: EXTENSION_URL.to_owned(), value };
    container.extensions.insert(EXTENSION.to_owned(), note);
}

pub(super) fn is_noted(container: &Container) -> bool {
    let note = container.extensions.get(EXTENSION);
    let note = note.and_then(|note| serde_json::from_slice::<Value>(&note.value).ok());
    note.is_some_and(|note| note["EnableCni"] == true)
}

/// The container id for plugins.
pub(super) fn container_id(namespace: &str, id: &str) -> String {
    format!("{namespace}-{id}")
}

fn variable(name: &str, default: &str) -> String {
    std::env::var(name).ok().filter(|value| !value.is_empty()).unwrap_or_else(|| default.to_owned())
}

impl Network {
    /// The first network of the machine, by file name.
    pub(super) fn first() -> Result<Network> {
        Network::first_in(Path::new(&variable("NETCONFPATH", CONFIGS)), variable("CNI_PATH", PLUGINS))
    }

    fn first_in(directory: &Path, path: String) -> Result<Network> {
        let about = || format!("read the networks in {}", directory.display());
        let is_config = |file: &PathBuf| {
            let extension = file.extension().and_then(|extension| extension.to_str());
            matches!(extension, Some("conf" | "conflist" | "json"))
        };
        let mut files = Vec::new();
        for entry in std::fs::read_dir(directory).context(about)? {
            files.push(entry.context(about)?.path());
        }
        files.retain(is_config);
        let file = files.into_iter().min().ok_or_else(|| {
            Error::failed_precondition(format!(
                "no network config found in {}: write one there, such as 10-mynet.conflist",
                directory.display()
            ))
        })?;
        let text = std::fs::read(&file).context(|| format!("read {}", file.display()))?;
        let is_list = file.extension().is_some_and(|extension| extension == "conflist");
        Network::parse(text, is_list, path).map_err(|error| error.context(file.display().to_string()))
    }

    fn parse(text: Vec<u8>, is_list: bool, path: String) -> Result<Network> {
        let bad = |what: &str| Error::invalid_argument(what.to_owned());
        let document: Map<String, Value> = serde_json::from_slice(&text)
            .map_err(|error| bad("not a JSON object of a network").with_source(error))?;
        let word = |key: &str| document.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (name, version) = (word("name"), word("cniVersion"));
        let plugins = match document.get("plugins") {
            Some(Value::Array(plugins)) if is_list => {
                plugins.iter().filter_map(|plugin| plugin.as_object().cloned()).collect()
            }
            _ if is_list => return Err(bad("it has no list of plugins")),
            // A configuration of one plugin is a list of one.
            _ => vec![document.clone()],
        };
        if plugins.is_empty() {
            return Err(bad("it has no plugins"));
        }
        if plugins.iter().any(|plugin| plugin_type(plugin).is_empty()) {
            return Err(bad("a plugin without a type"));
        }
        let is_name = |char: char| char.is_ascii_alphanumeric() || matches!(char, '_' | '.' | '-');
        if !name.starts_with(|char: char| char.is_ascii_alphanumeric()) || !name.chars().all(is_name) {
            return Err(bad(&format!("{name:?} is no name of a network")));
        }
        let version = if version.is_empty() { "0.2.0".to_owned() } else { version };
        Ok(Network { name, version, plugins, text, path })
    }

    /// Attaches the network to a namespace. After a failure, what was set up is removed.
    pub(super) fn add(&self, container: &str, namespace: &str) -> Result<()> {
        let added = self.add_all(container, namespace);
        if added.is_err() {
            // The first error is the cause.
            let _ = self.remove(container, namespace);
        }
        added
    }

    fn add_all(&self, container: &str, namespace: &str) -> Result<()> {
        let mut result = None;
        for plugin in &self.plugins {
            let said = self.call("ADD", plugin, container, namespace, result.as_ref())?;
            let said = serde_json::from_slice(&said).map_err(|error| {
                let what = format!("CNI plugin {} answered ADD with no JSON", plugin_type(plugin));
                Error::unavailable(what).with_source(error)
            })?;
            result = Some(said);
        }
        let note = json!({
            "kind": KIND,
            "containerId": container,
            "config": STANDARD.encode(&self.text),
            "ifName": LINK,
            "networkName": self.name,
            "netns": namespace,
            "result": result,
        });
        let file = self.result_file(container);
        let about = || format!("write {}", file.display());
        std::fs::create_dir_all(RESULTS).context(about)?;
        std::fs::write(&file, note.to_string()).context(about)
    }

    /// Detaches the network. `namespace` is empty if it no longer exists.
    pub(super) fn remove(&self, container: &str, namespace: &str) -> Result<()> {
        let file = self.result_file(container);
        let note = std::fs::read(&file).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        let result = note.map(|note| note["result"].clone()).filter(|result| !result.is_null());
        let mut failed = None;
        for plugin in self.plugins.iter().rev() {
            match self.call("DEL", plugin, container, namespace, result.as_ref()) {
                // Some plugins fail if the namespace no longer exists.
                Err(error) if !is_gone(&error, namespace) => failed = failed.or(Some(error)),
                _ => {}
            }
        }
        // Keep the cached result, so that DEL can be tried again.
        if let Some(error) = failed {
            return Err(error);
        }
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context(|| format!("remove {}", file.display()))
            }
            _ => Ok(()),
        }
    }

    fn result_file(&self, container: &str) -> PathBuf {
        Path::new(RESULTS).join(format!("{}-{container}-{LINK}", self.name))
    }

    /// Runs a plugin and returns its result.
    fn call(
        &self,
        command: &str,
        plugin: &Map<String, Value>,
        container: &str,
        namespace: &str,
        result: Option<&Value>,
    ) -> Result<Vec<u8>> {
        let kind = plugin_type(plugin);
        let program = self.find(kind)?;
        let mut config = plugin.clone();
        config.insert("name".to_owned(), self.name.clone().into());
        config.insert("cniVersion".to_owned(), self.version.clone().into());
        if let Some(result) = result {
            config.insert("prevResult".to_owned(), result.clone());
        }
        let about = || format!("run CNI plugin {}", program.display());
        let mut child = Command::new(&program)
            .envs([
                ("CNI_COMMAND", command),
                ("CNI_CONTAINERID", container),
                ("CNI_NETNS", namespace),
                ("CNI_IFNAME", LINK),
                ("CNI_PATH", self.path.as_str()),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context(about)?;
        let mut input = child.stdin.take().expect("stdin is a pipe");
        // A plugin that fails may exit without reading; its output tells the error.
        let _ = input.write_all(Value::Object(config).to_string().as_bytes());
        drop(input);
        let ended = child.wait_with_output().context(about)?;
        if ended.status.success() {
            return Ok(ended.stdout);
        }
        Err(refusal(kind, command, &ended.stdout, &ended.status.to_string()))
    }

    fn find(&self, kind: &str) -> Result<PathBuf> {
        if kind.contains('/') {
            return Err(Error::invalid_argument(format!("{kind:?} is no type of a CNI plugin")));
        }
        let places = self.path.split(':').map(|folder| Path::new(folder).join(kind));
        places.into_iter().find(|place| place.is_file()).ok_or_else(|| {
            Error::not_found(format!(
                "CNI plugin {kind} is not in {}; install it, or name its folder in CNI_PATH",
                self.path
            ))
        })
    }
}

fn plugin_type(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn is_gone(error: &Error, namespace: &str) -> bool {
    let words = error.chain();
    (namespace.is_empty() && words.contains("no such file or directory"))
        || (words.contains("not found") && !error.is(types::ErrorKind::NotFound))
}

/// The error that a plugin reports (CNI specification, "Error").
fn refusal(kind: &str, command: &str, said: &[u8], status: &str) -> Error {
    let document: Value = serde_json::from_slice(said).unwrap_or_default();
    let word = |key: &str| document[key].as_str().unwrap_or_default().to_owned();
    let words = match (word("msg"), word("details")) {
        (message, _) if message.is_empty() => status.to_owned(),
        (message, details) if details.is_empty() => message,
        (message, details) => format!("{message}; {details}"),
    };
    Error::unavailable(format!("CNI plugin {kind} failed ({command}): {words}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, is_list: bool) -> Result<Network> {
        Network::parse(text.as_bytes().to_vec(), is_list, String::new())
    }

    #[test]
    fn cni_configurations_are_lists_of_plugins_or_one() {
        let list =
            parse(r#"{"name":"n","cniVersion":"0.4.0","plugins":[{"type":"a","x":1},{"type":"b"}]}"#, true);
        let list = list.unwrap();
        let types: Vec<_> = list.plugins.iter().map(plugin_type).collect();
        assert_eq!((list.name.as_str(), list.version.as_str(), &types[..]), ("n", "0.4.0", &["a", "b"][..]));
        let one = parse(r#"{"name":"n","type":"a"}"#, false).unwrap();
        assert_eq!((one.plugins.len(), one.version.as_str()), (1, "0.2.0"));
        for (text, is_list) in [
            ("{", true),
            ("[]", false),
            (r#"{"name":"n"}"#, true),
            (r#"{"name":"n","plugins":[]}"#, true),
            (r#"{"name":"n","plugins":[{"x":1}]}"#, true),
            (r#"{"name":"n"}"#, false),
            (r#"{"name":"../n","type":"a"}"#, false),
            (r#"{"type":"a"}"#, false),
        ] {
            assert!(parse(text, is_list).is_err(), "{text}");
        }
    }

    #[test]
    fn the_first_cni_configuration_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let none = Network::first_in(dir.path(), String::new()).err().expect("there is none").chain();
        assert!(none.contains("no network config found"), "{none}");
        for (file, name) in [("20.conf", "b"), ("10.json", "a"), ("00.lock", "c")] {
            let text = format!(r#"{{"name":"{name}","type":"x"}}"#);
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        assert_eq!(Network::first_in(dir.path(), String::new()).unwrap().name, "a");
    }

    #[test]
    fn the_error_of_a_cni_plugin_is_reported() {
        let said = br#"{"code":7,"msg":"it does not","details":"for a reason"}"#;
        let told = refusal("bridge", "ADD", said, "exit status: 1").chain();
        assert_eq!(told, "CNI plugin bridge failed (ADD): it does not; for a reason");
        assert!(refusal("bridge", "ADD", b"x", "exit status: 1").chain().ends_with("exit status: 1"));
    }
}
