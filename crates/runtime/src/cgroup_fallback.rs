//! What becomes of a container for which no cgroup may be made.

use types::spec::runtime::{Linux, LinuxResources, Spec};
use types::{Error, Result};

/// What to do if no cgroup may be made, as with runc: root gets a warning; a user without privileges gets an error if
/// the spec has limits or names a cgroup, and otherwise at most a warning that the container's processes cannot be
/// found. The errors are all `PermissionDenied`, and begin with words of runc's that programs match on.
pub(crate) fn without_cgroup(spec: &Spec) -> Result<Option<String>> {
    cgroup_fallback(spec, rustix::process::geteuid().is_root())
}

fn cgroup_fallback(spec: &Spec, is_root: bool) -> Result<Option<String>> {
    let none = Linux::default();
    let linux = spec.linux.as_ref().unwrap_or(&none);
    let path = &linux.cgroups_path;
    let limit = linux.resources.as_ref().and_then(first_limit);
    if is_root {
        let warning = match limit {
            Some(_) => Some("no cgroup may be made here: limits are not applied".to_owned()),
            None if path.is_empty() => None,
            None => Some(format!("no cgroup may be made at {path}: the container has none of its own")),
        };
        return Ok(warning);
    }
    if !path.is_empty() {
        return Err(Error::permission_denied(format!(
            "unable to apply cgroup configuration: cgroup {path}: permission denied: this user may make none there; name \
             one that is its own as cgroupsPath, or none"
        )));
    }
    if let Some(limit) = limit {
        return Err(Error::permission_denied(format!(
            "cannot set {limit} limit: container could not join or create cgroup: linux.resources asks for limits, and \
             this user may make no cgroup for them; name one that is its own as cgroupsPath, or ask for none"
        )));
    }
    let has_own_pids = spec.namespace("pid").is_some_and(|namespace| namespace.path.is_empty());
    Ok((!has_own_pids).then(|| {
        "the container has no cgroup and no private pid namespace: what its first process leaves behind is not found, and \
         goes on when that is killed; give it a pid namespace of its own"
            .to_owned()
    }))
}

/// The first limit that the spec sets, by runc's name for it and in runc's order. Device rules do not count.
fn first_limit(resources: &LinuxResources) -> Option<&'static str> {
    fn says<T: Default + PartialEq>(part: Option<&T>) -> bool {
        part.is_some_and(|part| *part != T::default())
    }
    let LinuxResources { devices: _, memory, cpu, pids, block_io, hugepage_limits, network, rdma, unified } =
        resources;
    let has_set = cpu.as_ref().is_some_and(|cpu| !cpu.cpus.is_empty() || !cpu.mems.is_empty());
    let parts = [
        (has_set, "cpuset"),
        (says(memory.as_ref()), "memory"),
        (says(cpu.as_ref()), "cpu"),
        (says(pids.as_ref()), "pids"),
        (says(block_io.as_ref()), "blkio"),
        (!hugepage_limits.is_empty(), "hugetlb"),
        (says(network.as_ref()), "network"),
        (!rdma.is_empty(), "rdma"),
        (!unified.is_empty(), "unified"),
    ];
    parts.into_iter().find(|(is_asked, _)| *is_asked).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use types::ErrorKind;

    use super::*;

    #[test]
    fn without_cgroup_rights_limits_are_a_warning_or_an_error() {
        let check = |linux: serde_json::Value, is_root: bool, expected: std::result::Result<&str, &str>| {
            let document = serde_json::json!({ "linux": linux });
            let told = cgroup_fallback(&serde_json::from_value(document).unwrap(), is_root);
            match (told, expected) {
                (Ok(warning), Ok("")) => assert_eq!(warning, None, "{linux}"),
                (Ok(Some(said)), Ok(words)) => assert!(said.contains(words), "{linux}: {said}"),
                (Err(error), Err(words)) => {
                    assert!(error.is(ErrorKind::PermissionDenied), "{linux}: {error}");
                    assert!(error.message().contains(words), "{linux}: {error}");
                }
                (other, _) => panic!("{linux}: {other:?}"),
            }
        };
        let pid = serde_json::json!([{"type": "pid"}]);
        let none = serde_json::json!({ "namespaces": pid });
        let limited = |limit: serde_json::Value| serde_json::json!({"namespaces": pid, "resources": limit});
        let pids = limited(serde_json::json!({"pids": {"limit": 9}, "devices": [{"allow": false}]}));
        let named = serde_json::json!({"namespaces": pid, "cgroupsPath": "/some"});
        check(none.clone(), true, Ok(""));
        check(pids.clone(), true, Ok("limits are not applied"));
        check(named.clone(), true, Ok("/some"));
        check(none, false, Ok(""));
        check(pids, false, Err("cannot set pids limit: container could not join or create cgroup"));
        let set = limited(serde_json::json!({"cpu": {"cpus": "0"}, "pids": {"limit": 9}}));
        check(set, false, Err("cannot set cpuset limit: "));
        check(named, false, Err("unable to apply cgroup configuration: cgroup /some: permission denied"));
        let shared = "no cgroup and no private pid namespace";
        check(serde_json::json!({}), false, Ok(shared));
        let joined = serde_json::json!({"namespaces": [{"type": "pid", "path": "/proc/1/ns/pid"}]});
        check(joined, false, Ok(shared));
    }
}
