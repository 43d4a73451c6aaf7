//! A bundle of busybox, and Hoist's OCI runtime with its own state root to run it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Finished, hoist_program, run};

/// The programs of busybox that scripts in a bundle call by name.
const APPLETS: &str = "sh cat chmod cut echo false grep head id kill ls mkdir mknod mount nproc rmdir sed seq sleep sort \
                       stat tail test touch true usleep wc";

/// An OCI bundle and its one container.
///
/// Dropping it deletes the container, even if it runs.
pub struct Bundle {
    dir: TempDir,
    id: String,
    arguments: Vec<String>,
}

impl Bundle {
    /// A container whose first process runs `script` in a shell. [`Bundle::change`] edits its spec.
    pub fn new(script: &str) -> Bundle {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = TempDir::with_prefix("hoist-bundle-").expect("a temporary directory");
        let bin = dir.path().join("rootfs/bin");
        fs::create_dir_all(&bin).expect("a writable directory");
        fs::copy("/bin/busybox", bin.join("busybox")).expect("busybox-static is installed");
        for applet in APPLETS.split_whitespace() {
            symlink("busybox", bin.join(applet)).expect("a writable directory");
        }
        run(Command::new(hoist_program()).args(["runtime", "spec"]).current_dir(dir.path())).ok();
        // The id is unique on the machine, because all tests share its cgroups.
        let id = format!("t{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let bundle = Bundle { dir, id, arguments: Vec::new() };
        bundle.change(|spec| {
            spec["process"]["terminal"] = json!(false);
            spec["process"]["args"] = json!(["sh", "-c", script]);
            spec["root"]["readonly"] = json!(false);
            // `runtime spec` leaves the cgroup namespace out on hosts with cgroups of version 1.
            let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
            let own_cgroups = json!({"type": "cgroup"});
            if !namespaces.contains(&own_cgroups) {
                namespaces.push(own_cgroups);
            }
        })
    }

    /// Adds arguments before the command to every later call.
    #[must_use]
    pub fn with_arguments(mut self, arguments: &[&str]) -> Bundle {
        self.arguments.extend(arguments.iter().map(ToString::to_string));
        self
    }

    #[must_use]
    pub fn change(self, change: impl FnOnce(&mut Value)) -> Bundle {
        let path = self.path().join("config.json");
        let mut spec = serde_json::from_slice(&fs::read(&path).expect("a spec")).expect("JSON");
        change(&mut spec);
        fs::write(path, spec.to_string()).expect("a writable directory");
        self
    }

    /// Sets `linux.resources`.
    #[must_use]
    pub fn with_resources(self, resources: Value) -> Bundle {
        self.change(|spec| spec["linux"]["resources"] = resources)
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn rootfs(&self) -> PathBuf {
        self.path().join("rootfs")
    }

    /// The command `hoist runtime WORDS`.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(hoist_program());
        command.arg("runtime").arg("--root").arg(self.path().join("state"));
        command.args(&self.arguments).args(words).stdin(Stdio::null()).current_dir(self.path());
        command
    }

    /// Runs `hoist runtime WORDS ID` to its end.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> Finished {
        run(self.command(words).arg(&self.id))
    }

    /// Creates and starts the container, and leaves it running without streams.
    #[track_caller]
    pub fn start(&self) {
        let mut create = self.command(&["create"]);
        create.arg(&self.id).stdout(Stdio::null()).stderr(fs::File::create(self.log()).expect("a file"));
        let created = create.status().expect("hoist starts");
        assert!(created.success(), "create: {}", self.output());
        self.run(&["start"]).ok();
    }

    /// What the container wrote to standard error since [`Bundle::start`].
    pub fn output(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn log(&self) -> PathBuf {
        self.path().join("log")
    }

    /// Runs `script` in the container with `runtime exec`.
    #[track_caller]
    pub fn exec(&self, script: &str) -> Finished {
        run(self.command(&["exec", &self.id]).args(["sh", "-c", script]))
    }

    /// The document that `runtime state` prints.
    #[track_caller]
    pub fn state(&self) -> Value {
        serde_json::from_str(&self.run(&["state"]).ok().stdout).expect("state is JSON")
    }

    /// The pid of the container's first process.
    #[track_caller]
    pub fn pid(&self) -> u64 {
        self.state()["pid"].as_u64().expect("state has a pid")
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // The container may be gone already. A failed deletion shows in the tests for leftovers.
        self.run(&["delete", "--force"]);
    }
}
