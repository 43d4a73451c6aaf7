//! Container edits, and how they are applied to an OCI spec.

use std::io;

use rustix::fs::FileType;
use types::spec::runtime::{DeviceRule, Hook, Hooks, IntelRdt, LinuxDevice, Mount, NetDevice, Process, Spec};
use types::{Context, Error, Result};

use crate::document::{ContainerEdits, DeviceNode};

/// The container edits of all requested devices, in the order in which they are applied.
#[derive(Debug, Default)]
pub struct Edits(Vec<ContainerEdits>);

impl Edits {
    pub(crate) fn add(&mut self, edits: &ContainerEdits) {
        self.0.push(edits.clone());
    }

    /// Applies the edits to a spec. They replace an existing variable of the same name, device of the same path, or
    /// mount of the same destination. Type and numbers that a device node omits are read from the host's node:
    /// `NotFound` if there is none.
    pub fn apply(&self, spec: &mut Spec) -> Result<()> {
        for edits in &self.0 {
            edits.apply(spec)?;
        }
        if self.0.iter().any(|edits| !edits.mounts.is_empty()) {
            // A nested mount must come after the mount that contains it, whether the spec or a device asked for either.
            spec.mounts
                .sort_by_key(|mount| mount.destination.split('/').filter(|name| !name.is_empty()).count());
        }
        Ok(())
    }

    /// Applies environment variables and supplementary groups to a further process (exec) of such a container.
    pub fn apply_to_process(&self, process: &mut Process) {
        self.0.iter().for_each(|edits| edits.apply_to_process(process));
    }
}

impl ContainerEdits {
    fn apply(&self, spec: &mut Spec) -> Result<()> {
        self.apply_to_process(spec.process.get_or_insert_default());
        for node in &self.device_nodes {
            self.apply_node(node, spec)?;
        }
        for mount in &self.mounts {
            spec.mounts.retain(|own| own.destination != mount.container_path);
            spec.mounts.push(Mount {
                destination: mount.container_path.clone(),
                kind: mount.kind.clone(),
                source: mount.host_path.clone(),
                options: mount.options.clone(),
                ..Mount::default()
            });
        }
        for hook in &self.hooks {
            let list = hooks(spec.hooks.get_or_insert_default(), &hook.hook_name);
            list.push(Hook {
                path: hook.path.clone(),
                args: hook.args.clone(),
                env: hook.env.clone(),
                timeout: hook.timeout,
            });
        }
        let linux = spec.linux.get_or_insert_default();
        for device in &self.net_devices {
            let inside = NetDevice { name: device.name.clone() };
            linux.net_devices.insert(device.host_interface_name.clone(), inside);
        }
        if let Some(rdt) = &self.intel_rdt {
            linux.intel_rdt = Some(IntelRdt {
                clos_id: rdt.clos_id.clone(),
                schemata: rdt.schemata.clone(),
                l3_cache_schema: rdt.l3_cache_schema.clone(),
                mem_bw_schema: rdt.mem_bw_schema.clone(),
                enable_monitoring: rdt.enable_monitoring || rdt.enable_cmt || rdt.enable_mbm,
            });
        }
        Ok(())
    }

    fn apply_to_process(&self, process: &mut Process) {
        for entry in &self.env {
            let name = entry.split('=').next();
            process.env.retain(|own| own.split('=').next() != name);
            process.env.push(entry.clone());
        }
        for gid in &self.additional_gids {
            // No device grants membership of root's group.
            if *gid != 0 && !process.user.additional_gids.contains(gid) {
                process.user.additional_gids.push(*gid);
            }
        }
    }

    fn apply_node(&self, node: &DeviceNode, spec: &mut Spec) -> Result<()> {
        let user = &spec.process.get_or_insert_default().user;
        // The node belongs to the container's user, so that a process without root can open it.
        let owner = |id: u32| Some(id).filter(|id| *id != 0);
        let (uid, gid) = (node.uid.or(owner(user.uid)), node.gid.or(owner(user.gid)));
        let (kind, major, minor) = numbers(node)?;
        let linux = spec.linux.get_or_insert_default();
        linux.devices.retain(|own| own.path != node.path);
        if kind != "p" && node.permissions != "none" {
            let access = if node.permissions.is_empty() { "rwm" } else { &node.permissions };
            linux.resources.get_or_insert_default().devices.push(DeviceRule {
                allow: true,
                // An unbuffered device (`u`) is a character device.
                kind: if kind == "b" { "b" } else { "c" }.into(),
                major: Some(major),
                minor: Some(minor),
                access: access.into(),
            });
        }
        linux.devices.push(LinuxDevice {
            path: node.path.clone(),
            kind,
            major,
            minor,
            file_mode: node.file_mode,
            uid,
            gid,
        });
        Ok(())
    }
}

/// Type, major and minor number of a device node: from the edit, or else from the host's node.
fn numbers(node: &DeviceNode) -> Result<(String, i64, i64)> {
    let has_number = node.kind == "p" || node.major != 0 || node.minor != 0;
    if !node.kind.is_empty() && has_number {
        return Ok((node.kind.clone(), node.major, node.minor));
    }
    let path = if node.host_path.is_empty() { &node.path } else { &node.host_path };
    let stat = rustix::fs::stat(path.as_str()).map_err(io::Error::from);
    let stat = stat.context(|| format!("find device {path}, which is to be given to the container"))?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => "c",
        FileType::BlockDevice => "b",
        FileType::Fifo => "p",
        _ => return Err(Error::failed_precondition(format!("{path} is no device"))),
    };
    let said = if node.kind == "u" { "c" } else { node.kind.as_str() };
    if !said.is_empty() && said != kind {
        return Err(Error::failed_precondition(format!(
            "device {path} is of type {kind:?}, and is said to be of {:?}",
            node.kind
        )));
    }
    let (major, minor) = match (kind, has_number) {
        ("p", _) => (0, 0),
        (_, true) => (node.major, node.minor),
        _ => (rustix::fs::major(stat.st_rdev).into(), rustix::fs::minor(stat.st_rdev).into()),
    };
    Ok((kind.to_owned(), major, minor))
}

fn hooks<'a>(hooks: &'a mut Hooks, name: &str) -> &'a mut Vec<Hook> {
    match name {
        "prestart" => &mut hooks.prestart,
        "createRuntime" => &mut hooks.create_runtime,
        "createContainer" => &mut hooks.create_container,
        "startContainer" => &mut hooks.start_container,
        "poststart" => &mut hooks.poststart,
        _ => &mut hooks.poststop,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use types::ErrorKind;

    use super::*;

    /// A spec with these edits, as JSON.
    fn applied(edits: Value, spec: Value) -> Result<Value> {
        let mut spec: Spec = serde_json::from_value(spec).unwrap();
        Edits(vec![serde_json::from_value(edits).unwrap()]).apply(&mut spec)?;
        Ok(serde_json::to_value(spec).unwrap())
    }

    #[test]
    fn all_container_edits_are_applied_to_the_spec() {
        let edits = json!({
            "env": ["A=new", "B=1"], "additionalGids": [7, 0, 8],
            "mounts": [{"hostPath": "/lib/x", "containerPath": "/opt", "options": ["ro", "rbind"]},
                       {"hostPath": "t", "containerPath": "/t", "type": "tmpfs"}],
            "hooks": [{"hookName": "createContainer", "path": "/bin/h", "args": ["h", "1"], "timeout": 3}],
            "intelRdt": {"closID": "gold", "enableCMT": true},
            "netDevices": [{"hostInterfaceName": "eth7", "name": "in0"}],
        });
        let spec = json!({
            "process": {"env": ["A=old", "C=2"], "user": {"uid": 0, "gid": 0, "additionalGids": [7]}},
            "mounts": [{"destination": "/opt/below", "source": "kept"}, {"destination": "/opt", "source": "gone"}],
        });
        let spec = applied(edits, spec).unwrap();
        assert_eq!(spec["process"]["env"], json!(["C=2", "A=new", "B=1"]));
        assert_eq!(spec["process"]["user"]["additionalGids"], json!([7, 8]));
        let places: Vec<_> =
            spec["mounts"].as_array().unwrap().iter().map(|mount| &mount["destination"]).collect();
        assert_eq!(places, ["/opt", "/t", "/opt/below"], "outer ones first");
        assert_eq!(spec["mounts"][0]["source"], "/lib/x");
        assert_eq!(spec["mounts"][1]["type"], "tmpfs");
        let hook = json!([{"path": "/bin/h", "args": ["h", "1"], "timeout": 3}]);
        assert_eq!(spec["hooks"]["createContainer"], hook);
        assert_eq!(spec["linux"]["intelRdt"], json!({"closID": "gold", "enableMonitoring": true}));
        assert_eq!(spec["linux"]["netDevices"], json!({"eth7": {"name": "in0"}}));
    }

    #[test]
    fn omitted_device_numbers_are_the_hosts() {
        let device = |node: Value, uid: u32| {
            let spec = json!({"process": {"user": {"uid": uid, "gid": uid}}});
            let spec = applied(json!({"deviceNodes": [node]}), spec)?;
            Ok((spec["linux"]["devices"][0].clone(), spec["linux"]["resources"]["devices"].clone()))
        };
        let check = |node: Value, uid: u32, expected: (Value, Value)| {
            let found: Result<_> = device(node, uid);
            assert_eq!(found.unwrap(), expected);
        };
        let rule = |major: u32, minor: u32, access: &str| json!([{"allow": true, "type": "c", "major": major, "minor": minor, "access": access}]);
        let zero = json!({"path": "/dev/zero", "type": "c", "major": 1, "minor": 5});
        check(json!({"path": "/dev/zero"}), 0, (zero, rule(1, 5, "rwm")));
        let inside = json!({"path": "/dev/in", "type": "c", "major": 1, "minor": 5, "uid": 9, "gid": 3, "fileMode": 0o600});
        let node = json!({"path": "/dev/in", "hostPath": "/dev/zero", "permissions": "rw", "gid": 3, "fileMode": 0o600});
        check(node, 9, (inside, rule(1, 5, "rw")));
        let told = json!({"path": "/dev/nosuch", "type": "c", "major": 99, "minor": 1});
        check(told.clone(), 0, (told, rule(99, 1, "rwm")));
        let pipe = json!({"path": "/p", "type": "p", "major": 0, "minor": 0});
        check(json!({"path": "/p", "type": "p"}), 0, (pipe, Value::Null));
        let closed = json!({"path": "/dev/null", "type": "c", "major": 1, "minor": 3});
        check(json!({"path": "/dev/null", "permissions": "none"}), 0, (closed, Value::Null));
        let refused = |node: Value| device(node, 0).map(drop).unwrap_err();
        assert!(refused(json!({"path": "/dev/nosuch"})).is(ErrorKind::NotFound));
        assert!(refused(json!({"path": "/etc/passwd"})).message().contains("no device"));
        assert!(refused(json!({"path": "/dev/null", "type": "b"})).message().contains("said to be"));
    }
}
