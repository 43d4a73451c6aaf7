//! Orphans in the host's pid namespace: the shim adopts them, reaps them, and kills them with their container.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use testkit::{ShimHost, eventually, is_root};

/// A process that nobody waits for: its parent ends at once. It says its number in `/tmp/NAME`, and ends
/// when there is a `/tmp/NAME.end`.
fn orphan(name: &str) -> String {
    format!(
        "(busybox sh -c 'echo $$ > /tmp/{name}.draft; busybox mv /tmp/{name}.draft /tmp/{name}; \
         while ! [ -e /tmp/{name}.end ]; do busybox usleep 5000; done' &)"
    )
}

/// A field of `/proc/PID/status`; none if the process is gone, reaped and all.
fn status(pid: u32, field: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|line| Some(line.strip_prefix(field)?.strip_prefix(':')?.trim().to_owned()))
}

/// The number that an orphan wrote.
fn number(root: &Path, name: &str) -> u32 {
    eventually("the orphan says its number", || {
        fs::read_to_string(root.join("tmp").join(name)).ok()?.trim().parse().ok()
    })
}

#[test]
fn orphans_are_reaped_by_their_shim() {
    if !is_root("a container") {
        return;
    }
    // Our own runtime, and one that the shim calls.
    for runtime in ["", "runc"] {
        let host = ShimHost::new();
        let _events = host.listen();
        let script = format!("{}; {}; exec busybox sleep 1000", orphan("ends"), orphan("stays"));
        let task = host
            .container("orphans", &script)
            .with(|container| {
                container.options.binary_name = runtime.to_owned();
                container.spec["linux"]["namespaces"] =
                    json!([{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}]);
            })
            .create();
        let init = task.start("");
        let root = PathBuf::from(format!("/proc/{init}/root"));
        let shim = task.shim_pid();
        let is_shims = |pid: u32| (status(pid, "PPid")? == shim.to_string()).then_some(());
        let [ends, stays] = ["ends", "stays"].map(|name| number(&root, name));
        // Of a further process, too: its parent was a child of the shim, or of the runtime it called.
        assert_eq!(task.run_exec("exec", &orphan("executed")), 0, "{runtime}");
        let executed = number(&root, "executed");
        for pid in [ends, stays, executed] {
            eventually("the shim inherits it", || is_shims(pid));
        }
        for name in ["ends", "executed"] {
            fs::write(root.join("tmp").join(name.to_owned() + ".end"), "").expect("a writable /tmp");
        }
        for pid in [ends, executed] {
            eventually("it is reaped", || status(pid, "State").is_none().then_some(()));
        }
        assert!(is_shims(stays).is_some(), "{runtime}: the other one lives on");
        task.kill("", 9).unwrap();
        assert_eq!(task.wait(""), 137, "{runtime}");
        eventually("what is left ends with its container", || status(stays, "State").is_none().then_some(()));
        task.delete("").unwrap();
        // What the killed ones had begun themselves comes last.
        eventually("no zombie is left", || {
            let children = fs::read_to_string(format!("/proc/{shim}/task/{shim}/children"));
            children.expect("the shim lives").trim().is_empty().then_some(())
        });
        task.shutdown().unwrap();
    }
}
