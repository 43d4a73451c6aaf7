//! Kills a container without its shim, by the records of the runtime in our shim (docs/design/runtime-state.md).
//!
//! A container can block its shim inside the kernel, where no signal is delivered: a process whose write faults on
//! memory that never arrives (userfaultfd, FUSE) holds the lock of its output pipe, and the shim's read of that pipe
//! waits for the lock. The shim continues once that process is dead.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use linux::cgroup::{Cgroup, Inode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use types::{Context, Error, Result};

use crate::bundle::Bundle;

/// `runtime.json`: the shim's note of the runtime that created the container.
#[derive(Deserialize)]
struct RuntimeRecord {
    binary: String,
    root: PathBuf,
}

/// The fields of the runtime's `state.json` that are needed here.
#[derive(Deserialize)]
struct State {
    version: u32,
    cgroups: BTreeMap<String, PathBuf>,
    #[serde(default)]
    cgroup_inodes: BTreeMap<String, Inode>,
}

/// Sends SIGKILL to all processes of a container. Only processes in a cgroup that was created for the container are
/// killed, not those in a cgroup that existed before or was created later under the same path. Blocks.
pub(crate) fn kill(bundle: &Bundle, id: &str) -> Result<()> {
    let about = || format!("end the processes of container {id}");
    let RuntimeRecord { binary, root } = read(&bundle.path.join("runtime.json")).context(about)?;
    if !binary.is_empty() {
        return Err(Error::failed_precondition(format!("{}: {binary} made it", about())));
    }
    let dir = root.join(id);
    let State { version, cgroups, cgroup_inodes } = read(&dir.join("state.json")).context(about)?;
    if version != 1 {
        return Err(Error::unimplemented(format!("{}: its state has version {version}", about())));
    }
    Cgroup::open_locations(&cgroups)
        .and_then(|cgroup| cgroup.only(&cgroup_inodes))
        .context(about)?
        .without(&found(&dir).context(about)?)
        .kill()
        .context(about)
}

/// The hierarchies in which the container's cgroup existed before. An error if there is no note that one was created.
fn found(dir: &Path) -> Result<Vec<String>> {
    let note = dir.join("cgroup");
    let text = fs::read_to_string(&note).context(|| format!("read {}", note.display()))?;
    Ok(text.split('\0').skip(1).map(str::to_owned).collect())
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read(path).context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::data_loss(format!("{} is damaged", path.display())).with_source(error))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use serde_json::json;

    use super::*;

    #[test]
    fn only_processes_in_a_cgroup_made_for_the_container_are_killed() {
        let path = format!("/hoist-task-{}", std::process::id());
        let Ok(cgroup) = Cgroup::create(&path) else {
            eprintln!("skipped: no rights to make cgroups");
            return;
        };
        let mut process = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        cgroup.add(process.id()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let bundle = Bundle { path: dir.path().to_owned() };
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let record = |binary: &str| json!({ "binary": binary, "root": dir.path() }).to_string();
        fs::create_dir(dir.path().join("one")).unwrap();
        write("runtime.json", &record(""));
        assert!(kill(&bundle, "one").is_err(), "it was not finished");
        write("one/state.json", &json!({ "version": 1, "cgroups": cgroup.locations() }).to_string());
        assert!(kill(&bundle, "one").is_err(), "nothing says that its cgroup was made");
        let all: Vec<String> = [path].into_iter().chain(cgroup.locations().into_keys()).collect();
        write("one/cgroup", &all.join("\0"));
        // The runtime's record is gone, so there is nothing to kill by.
        let _ = kill(&bundle, "one");
        write("runtime.json", &record("/usr/sbin/runc"));
        write("one/cgroup", &all[0]);
        assert!(kill(&bundle, "one").is_err(), "its runtime is another");
        write("runtime.json", &record(""));
        let state = |inodes| {
            json!({ "version": 1, "cgroups": cgroup.locations(), "cgroup_inodes": inodes }).to_string()
        };
        let inodes = cgroup.inodes().unwrap();
        let others = inodes.iter().map(|(kind, (device, number))| (kind.clone(), (*device, number + 1)));
        write("one/state.json", &state(others.collect()));
        assert!(kill(&bundle, "one").is_err(), "its cgroup is gone, and another in its place");
        assert!(process.try_wait().unwrap().is_none(), "it lives");
        write("one/state.json", &state(inodes));
        kill(&bundle, "one").unwrap();
        assert!(!process.wait().unwrap().success(), "it was killed");
        cgroup.delete().unwrap();
    }
}
