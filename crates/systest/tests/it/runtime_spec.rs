//! Features of the runtime spec, each seen from inside a container. Where Debian's runc has the feature, both run the
//! same bundle and must print the same.

mod features;
mod hooks;
mod mounts;
mod namespaces;
mod scheduling;
mod seccomp;
mod validation;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::disk::Disk;

use crate::runtime_bundle::{Runtime, bundle, same, script};

/// What a script says in a container of ours.
#[track_caller]
pub(crate) fn ours(text: &str, change: impl Fn(&mut Value)) -> String {
    let bundle = bundle(|spec| {
        script(spec, text);
        change(spec);
    });
    let runtime = Runtime::ours();
    let path = bundle.path().display().to_string();
    runtime.run(&["run", "--bundle", &path, &runtime.id("spec")]).ok().text().to_owned()
}

fn add_namespace(spec: &mut Value, namespace: Value) {
    let list = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
    list.retain(|other| other["type"] != namespace["type"]);
    list.push(namespace);
}

pub(crate) fn map_users(spec: &mut Value, ranges: &[(u32, u32, u32)]) {
    add_namespace(spec, json!({"type": "user"}));
    let maps = ranges
        .iter()
        .map(|(inside, outside, size)| json!({"containerID": inside, "hostID": outside, "size": size}));
    let maps = Value::Array(maps.collect());
    spec["linux"]["uidMappings"] = maps.clone();
    spec["linux"]["gidMappings"] = maps;
}

/// A file system whose owners can be mapped, which kernels before 6.3 cannot with one in memory. Everybody may pass through.
pub(crate) fn mappable_disk() -> Disk {
    let disk = Disk::new(16 << 20);
    let parent = disk.path().parent().expect("a path below").to_owned();
    fs::set_permissions(parent, fs::Permissions::from_mode(0o755)).expect("ours");
    disk
}

/// A directory that everybody may pass through.
pub(crate) fn open_dir() -> TempDir {
    let dir = TempDir::new().expect("a temporary directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    dir
}

pub(crate) fn chown(path: &Path, id: u32) {
    std::os::unix::fs::chown(path, Some(id), Some(id)).expect("root may");
}

/// Programs in Go write `null` for lists and maps that they have not made; runc reads it as nothing, wherever it is.
#[test]
fn null_in_a_spec_counts_as_absent() {
    let said = same("id -u; hostname; echo $HOME; pwd; grep Cap /proc/self/status", |spec| {
        for field in [
            "/process/consoleSize",
            "/process/rlimits",
            "/process/user/additionalGids",
            "/process/oomScoreAdj",
            "/process/capabilities/ambient",
            "/process/apparmorProfile",
            "/hooks",
            "/annotations",
            "/domainname",
            "/linux/uidMappings",
            "/linux/sysctl",
            "/linux/devices",
            "/linux/seccomp",
            "/linux/rootfsPropagation",
            "/linux/resources/devices",
            "/linux/resources/memory",
            "/linux/resources/pids",
            "/linux/resources/unified",
            "/linux/maskedPaths",
            "/linux/readonlyPaths",
            "/root/readonly",
        ] {
            let (object, name) = field.rsplit_once('/').expect("a path");
            spec.pointer_mut(object).expect("an object")[name] = Value::Null;
        }
        for mount in spec["mounts"].as_array_mut().expect("mounts") {
            mount["uidMappings"] = Value::Null;
            if mount["type"] == "proc" {
                mount["options"] = Value::Null;
            }
        }
    });
    assert!(said.starts_with("0\n"), "{said}");
}
