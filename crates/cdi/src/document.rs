//! A CDI file: a device kind (`VENDOR/CLASS`) and the container edits of each of its devices.

use serde::{Deserialize, Deserializer};
use types::{Error, Result};

use crate::yaml;

/// Supported versions of the specification. A leading `v` is accepted, as by the CDI project's Go library.
const VERSIONS: [&str; 8] = ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];
/// Hook names of the OCI runtime specification (config.md, "POSIX-platform Hooks").
const HOOKS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
/// The serialization of a CDI file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Json,
    Yaml,
}

/// A parsed and validated CDI file. An unknown field is an error, because its edit would silently be dropped.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Document {
    cdi_version: String,
    /// `VENDOR/CLASS`
    kind: String,
    #[serde(default)]
    annotations: serde::de::IgnoredAny,
    #[serde(default, deserialize_with = "or_nothing")]
    pub(crate) devices: Vec<Device>,
    #[serde(default, deserialize_with = "or_nothing")]
    pub(crate) container_edits: ContainerEdits,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Device {
    #[serde(deserialize_with = "text")]
    pub(crate) name: String,
    #[serde(default)]
    annotations: serde::de::IgnoredAny,
    #[serde(default, deserialize_with = "or_nothing")]
    pub(crate) container_edits: ContainerEdits,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct ContainerEdits {
    /// `NAME=VALUE`
    #[serde(deserialize_with = "or_nothing")]
    pub(crate) env: Vec<String>,
    #[serde(deserialize_with = "or_nothing")]
    pub(crate) device_nodes: Vec<DeviceNode>,
    #[serde(deserialize_with = "or_nothing")]
    pub(crate) net_devices: Vec<NetDevice>,
    #[serde(deserialize_with = "or_nothing")]
    pub(crate) hooks: Vec<Hook>,
    #[serde(deserialize_with = "or_nothing")]
    pub(crate) mounts: Vec<Mount>,
    pub(crate) intel_rdt: Option<IntelRdt>,
    #[serde(rename = "additionalGids", deserialize_with = "or_nothing")]
    pub(crate) additional_gids: Vec<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct DeviceNode {
    pub(crate) path: String,
    /// Path on the host; empty means the same as `path`.
    pub(crate) host_path: String,
    /// Empty: taken from the host's device node.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) major: i64,
    pub(crate) minor: i64,
    pub(crate) file_mode: Option<u32>,
    /// A combination of the letters r, w and m, or `none`; empty grants all three.
    pub(crate) permissions: String,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct NetDevice {
    pub(crate) host_interface_name: String,
    pub(crate) name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Hook {
    pub(crate) hook_name: String,
    pub(crate) path: String,
    #[serde(deserialize_with = "or_nothing")]
    pub(crate) args: Vec<String>,
    #[serde(deserialize_with = "or_nothing")]
    pub(crate) env: Vec<String>,
    /// In seconds.
    pub(crate) timeout: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Mount {
    pub(crate) host_path: String,
    pub(crate) container_path: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(deserialize_with = "or_nothing")]
    pub(crate) options: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct IntelRdt {
    #[serde(rename = "closID")]
    pub(crate) clos_id: String,
    pub(crate) l3_cache_schema: String,
    pub(crate) mem_bw_schema: String,
    #[serde(rename = "enableCMT")]
    pub(crate) enable_cmt: bool,
    #[serde(rename = "enableMBM")]
    pub(crate) enable_mbm: bool,
    #[serde(deserialize_with = "or_nothing")]
    pub(crate) schemata: Vec<String>,
    pub(crate) enable_monitoring: bool,
}

/// Device names are often digits only, which YAML parses as numbers.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Text {
        Word(String),
        Number(i64),
    }
    Ok(match Text::deserialize(deserializer)? {
        Text::Word(word) => word,
        Text::Number(number) => number.to_string(),
    })
}

/// Reads null as the default value (an empty list or structure), as Go does.
fn or_nothing<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> std::result::Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Document {
    /// Parses and validates a CDI file. `InvalidArgument` if it is malformed or of an unsupported version.
    pub fn parse(bytes: &[u8], form: Form) -> Result<Document> {
        let bad = |error: serde_json::Error| {
            Error::invalid_argument("it is not a valid CDI document").with_source(error)
        };
        let document: Document = match form {
            Form::Json => serde_json::from_slice(bytes).map_err(bad)?,
            Form::Yaml => {
                let text = std::str::from_utf8(bytes);
                let text =
                    text.map_err(|error| Error::invalid_argument("it is not UTF-8").with_source(error))?;
                serde_json::from_value(yaml::parse(text)?).map_err(bad)?
            }
        };
        document.check()?;
        Ok(document)
    }

    /// The qualified names of its devices, `VENDOR/CLASS=NAME`.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.devices.iter().map(|device| format!("{}={}", self.kind, device.name))
    }

    fn check(&self) -> Result<()> {
        let bad = |why: String| Err(Error::invalid_argument(why));
        let version = self.cdi_version.strip_prefix('v').unwrap_or(&self.cdi_version);
        if !VERSIONS.contains(&version) {
            return bad(format!(
                "unsupported cdiVersion {:?}: expected one of {}",
                self.cdi_version,
                VERSIONS.join(", ")
            ));
        }
        if !is_kind(&self.kind) {
            return bad(format!("kind {:?} is not of the form VENDOR/CLASS", self.kind));
        }
        self.container_edits.check()?;
        let mut names: Vec<&str> = Vec::new();
        for device in &self.devices {
            let about = |error: Error| error.context(format!("device {:?}", device.name));
            if !is_name(&device.name) {
                return bad(format!("invalid device name {:?}", device.name));
            }
            device.container_edits.check().map_err(about)?;
            names.push(&device.name);
        }
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => bad(format!("device {:?} is there twice", pair[0])),
            None => Ok(()),
        }
    }
}

impl ContainerEdits {
    fn check(&self) -> Result<()> {
        let bad = |why: String| Err(Error::invalid_argument(why));
        let is_path = |path: &str| path.starts_with('/') && !path.contains('\0');
        let is_entry = |entry: &String| {
            entry.split_once('=').is_some_and(|(name, _)| !name.is_empty()) && !entry.contains('\0')
        };
        if let Some(entry) = self.env.iter().find(|entry| !is_entry(entry)) {
            return bad(format!("env {entry:?} is not of the form NAME=VALUE"));
        }
        for node in &self.device_nodes {
            if !is_path(&node.path) || !node.host_path.is_empty() && !is_path(&node.host_path) {
                return bad(format!("device node {:?} has a path that is not absolute", node.path));
            }
            if !["", "b", "c", "u", "p"].contains(&node.kind.as_str()) {
                return bad(format!(
                    "device node {} has the type {:?}: it is b, c, u or p",
                    node.path, node.kind
                ));
            }
            let is_access = node.permissions.bytes().all(|letter| b"rwm".contains(&letter));
            if !is_access && node.permissions != "none" {
                return bad(format!(
                    "device node {} has the permissions {:?}: they are of the letters r, w and m",
                    node.path, node.permissions
                ));
            }
        }
        for device in &self.net_devices {
            if device.host_interface_name.is_empty() || device.name.is_empty() {
                return bad("a network device has two names, hostInterfaceName and name".into());
            }
        }
        for hook in &self.hooks {
            if !HOOKS.contains(&hook.hook_name.as_str()) {
                return bad(format!(
                    "unknown hook {:?}: expected one of {}",
                    hook.hook_name,
                    HOOKS.join(", ")
                ));
            }
            if !is_path(&hook.path) {
                return bad(format!(
                    "hook {} has the path {:?}, which is not absolute",
                    hook.hook_name, hook.path
                ));
            }
            if let Some(entry) = hook.env.iter().find(|entry| !is_entry(entry)) {
                return bad(format!(
                    "hook {} has the env {entry:?}, which is not NAME=VALUE",
                    hook.hook_name
                ));
            }
        }
        for mount in &self.mounts {
            if mount.host_path.is_empty() || !is_path(&mount.container_path) {
                return bad(format!(
                    "mount of {:?} at {:?} needs a hostPath, and a containerPath that is absolute",
                    mount.host_path, mount.container_path
                ));
            }
        }
        match &self.intel_rdt {
            Some(rdt) if rdt.clos_id.contains(['/', '\n']) || [".", ".."].contains(&rdt.clos_id.as_str()) => {
                bad(format!("closID {:?} is no name of a class", rdt.clos_id))
            }
            _ => Ok(()),
        }
    }
}

/// Whether `word` is a qualified device name, `VENDOR/CLASS=NAME`, rather than a path.
pub fn is_qualified(word: &str) -> bool {
    word.split_once('=').is_some_and(|(kind, name)| is_kind(kind) && is_name(name))
}

fn is_kind(kind: &str) -> bool {
    kind.split_once('/').is_some_and(|(vendor, class)| {
        let has_ends =
            |word: &str| word.starts_with(|letter: char| letter.is_ascii_alphabetic()) && is_ended(word);
        has_ends(vendor) && is_of(vendor, b"_-.") && has_ends(class) && is_of(class, b"_-")
    })
}

fn is_name(name: &str) -> bool {
    name.starts_with(|letter: char| letter.is_ascii_alphanumeric()) && is_ended(name) && is_of(name, b"_-.:")
}

fn is_ended(word: &str) -> bool {
    word.ends_with(|letter: char| letter.is_ascii_alphanumeric())
}

fn is_of(word: &str, further: &[u8]) -> bool {
    word.bytes().all(|letter| letter.is_ascii_alphanumeric() || further.contains(&letter))
}

#[cfg(test)]
mod tests {
    use types::ErrorKind;

    use super::*;

    #[test]
    fn qualified_device_names_are_told_from_paths() {
        for name in ["nvidia.com/gpu=all", "nvidia.com/gpu=0", "a/b=c", "v-1.x/c_l=gpu0:1.2-3"] {
            assert!(is_qualified(name), "{name}");
        }
        for path in
            ["/dev/x", "/dev/a=b", "a=b", "a/b", "a/b=", "1/b=c", "a/b.c=d", "a/b=c/d", "a./b=c", "a/b=-c"]
        {
            assert!(!is_qualified(path), "{path}");
        }
    }

    #[test]
    fn json_and_yaml_parse_to_the_same_document() {
        let yaml = "cdiVersion: 0.6.0\nkind: a.com/b\nannotations: {x: y}\ndevices:\n- name: 0\n  containerEdits:\n    \
                    deviceNodes:\n    - {path: /dev/x, fileMode: 0660}\ncontainerEdits:\n  env: [A=B]\n  mounts:\n";
        let json = r#"{"cdiVersion": "0.6.0", "kind": "a.com/b", "containerEdits": {"env": ["A=B"], "hooks": null},
            "devices": [{"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/x", "fileMode": 432}]}}]}"#;
        let document = Document::parse(yaml.as_bytes(), Form::Yaml).unwrap();
        assert_eq!(document, Document::parse(json.as_bytes(), Form::Json).unwrap());
        assert_eq!(document.names().collect::<Vec<_>>(), ["a.com/b=0"]);
    }

    #[test]
    fn cdi_versions_may_have_a_leading_v() {
        let is_known = |version: &str| {
            let text = format!(r#"{{"cdiVersion": "{version}", "kind": "a.com/b"}}"#);
            Document::parse(text.as_bytes(), Form::Json).is_ok()
        };
        assert!(is_known("0.6.0") && is_known("v0.6.0"));
        assert!(!is_known("vv0.6.0") && !is_known("V0.6.0") && !is_known("v9.0.0") && !is_known("v"));
    }

    #[test]
    fn null_fields_are_defaults() {
        let parse = |rest: &str| {
            let text = format!(r#"{{"cdiVersion": "0.6.0", "kind": "a.com/b", {rest}}}"#);
            Document::parse(text.as_bytes(), Form::Json).unwrap()
        };
        let bare = parse(r#""devices": [{"name": "0"}]"#);
        assert_eq!(
            parse(r#""devices": [{"name": "0", "containerEdits": null}], "containerEdits": null"#),
            bare
        );
        assert_eq!(parse(r#""devices": null"#), parse(r#""devices": []"#));
        let yaml =
            "cdiVersion: 0.6.0\nkind: a.com/b\ncontainerEdits:\ndevices:\n- name: 0\n  containerEdits:\n";
        assert_eq!(Document::parse(yaml.as_bytes(), Form::Yaml).unwrap(), bare);
    }

    #[test]
    fn invalid_cdi_documents_are_refused_by_the_wrong_field() {
        let check = |rest: &str, words: &str| {
            let text = format!(r#"{{"cdiVersion": "0.8.0", "kind": "a/b", {rest}}}"#);
            let refused = Document::parse(text.as_bytes(), Form::Json).unwrap_err();
            assert!(refused.is(ErrorKind::InvalidArgument), "{refused}");
            assert!(refused.chain().contains(words), "{}", refused.chain());
        };
        let device = |edits: &str| format!(r#""devices": [{{"name": "x", "containerEdits": {edits}}}]"#);
        check(r#""kind": "a/b""#, "duplicate field");
        check(r#""future": 1"#, "future");
        check(r#""devices": [{"name": "a b"}]"#, "a b");
        check(r#""devices": [{"name": "a"}, {"name": "a"}]"#, "twice");
        check(&device(r#"{"env": ["A"]}"#), "NAME=VALUE");
        check(&device(r#"{"env": ["A"]}"#), "device \"x\"");
        check(&device(r#"{"deviceNodes": [{"path": "dev/x"}]}"#), "not absolute");
        check(&device(r#"{"deviceNodes": [{"path": "/x", "type": "d"}]}"#), "it is b, c, u or p");
        check(&device(r#"{"deviceNodes": [{"path": "/x", "permissions": "rx"}]}"#), "letters r, w and m");
        check(&device(r#"{"hooks": [{"hookName": "odd", "path": "/x"}]}"#), "odd");
        check(&device(r#"{"hooks": [{"hookName": "poststop", "path": "x"}]}"#), "not absolute");
        check(&device(r#"{"mounts": [{"hostPath": "/x", "containerPath": "y"}]}"#), "absolute");
        check(&device(r#"{"intelRdt": {"closID": "../x"}}"#), "closID");
        for (text, words) in [
            (r#"{"cdiVersion": "9.0.0", "kind": "a/b"}"#, "9.0.0"),
            (r#"{"cdiVersion": "0.5.0", "kind": "a"}"#, "VENDOR/CLASS"),
        ] {
            let refused = Document::parse(text.as_bytes(), Form::Json).unwrap_err();
            assert!(refused.message().contains(words), "{refused}");
        }
    }
}
