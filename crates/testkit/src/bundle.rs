//! A bundle of busybox and our OCI runtime to run it with, on a state root of its own.

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

/// A bundle, and the one container that is made of it.
///
/// Dropping it deletes the container, whatever it does.
pub struct Bundle {
    dir: TempDir,
    id: String,
    arguments: Vec<String>,
}

impl Bundle {
    /// A container that runs `script` in a shell, with what [`Bundle::change`] makes of its spec.
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
        // A name that nobody else uses: cgroups are the machine's.
        let id = format!("t{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let bundle = Bundle { dir, id, arguments: Vec::new() };
        bundle.change(|spec| {
            spec["process"]["terminal"] = json!(false);
            spec["process"]["args"] = json!(["sh", "-c", script]);
            spec["root"]["readonly"] = json!(false);
            // On hosts of version 1 it is not in a new spec.
            let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
            let own_cgroups = json!({"type": "cgroup"});
            if !namespaces.contains(&own_cgroups) {
                namespaces.push(own_cgroups);
            }
        })
    }

    /// Arguments before the command, for all commands from here on.
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

    /// `hoist runtime WORDS`.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(hoist_program());
        command.arg("runtime").arg("--root").arg(self.path().join("state"));
        command.args(&self.arguments).args(words).stdin(Stdio::null()).current_dir(self.path());
        command
    }

    /// `hoist runtime WORDS ID` to its end.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> Finished {
        run(self.command(words).arg(&self.id))
    }

    /// Creates and starts, and leaves it running without streams.
    #[track_caller]
    pub fn start(&self) {
        let mut create = self.command(&["create"]);
        create.arg(&self.id).stdout(Stdio::null()).stderr(fs::File::create(self.log()).expect("a file"));
        let created = create.status().expect("hoist starts");
        assert!(created.success(), "create: {}", self.output());
        self.run(&["start"]).ok();
    }

    /// What a container that was started wrote to its error output.
    pub fn output(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn log(&self) -> PathBuf {
        self.path().join("log")
    }

    /// Runs `script` in the container.
    #[track_caller]
    pub fn exec(&self, script: &str) -> Finished {
        run(self.command(&["exec", &self.id]).args(["sh", "-c", script]))
    }

    /// What `state` prints.
    #[track_caller]
    pub fn state(&self) -> Value {
        serde_json::from_str(&self.run(&["state"]).ok().stdout).expect("state is JSON")
    }

    /// The number of the first process.
    #[track_caller]
    pub fn pid(&self) -> u64 {
        self.state()["pid"].as_u64().expect("state has a pid")
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // There may be nothing to delete; what cannot be deleted shows in the tests for leftovers.
        self.run(&["delete", "--force"]);
    }
}
