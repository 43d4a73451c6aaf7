//! The peer: containerd with runc, on directories of its own, driven by `ctr`.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use testkit::{eventually, run};

use crate::side::Side;

pub(crate) struct Containerd {
    process: Child,
    dir: TempDir,
}

impl Containerd {
    /// None when containerd or ctr is not in PATH.
    pub(crate) fn start() -> Option<Containerd> {
        Command::new("ctr").arg("--version").output().ok()?;
        let dir = TempDir::with_prefix_in("cd-", "/var/tmp").expect("a temporary directory");
        let config = dir.path().join("config.toml");
        // Without CRI: it is not measured, and it would look for network plugins.
        let text = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {:?}\n",
            dir.path().join("root"),
            dir.path().join("state"),
            dir.path().join("c.sock"),
        );
        fs::write(&config, text).expect("a writable temporary directory");
        let process = Command::new("containerd")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let peer = Containerd { process, dir };
        eventually("containerd listens", || UnixStream::connect(peer.socket()).ok());
        Some(peer)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("c.sock")
    }

    fn ctr<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.socket()).args(args).stdin(Stdio::null());
        command
    }
}

impl Side for Containerd {
    fn daemon_pid(&self) -> u32 {
        self.process.id()
    }

    fn pull(&self, image: &str) {
        run(&mut self.ctr(["images", "pull", "--plain-http", image])).ok();
    }

    fn remove(&self, image: &str) {
        run(&mut self.ctr(["images", "rm", "--sync", image])).ok();
    }

    fn run_rm(&self, image: &str, id: &str, command: &[&str]) -> Command {
        self.ctr(["run", "--rm", image, id].iter().chain(command))
    }

    fn run_detached(&self, image: &str, id: &str) {
        run(&mut self.ctr(["run", "-d", image, id, "sleep", "100000"])).ok();
    }

    fn exec(&self, id: &str, exec: &str, command: &[&str]) -> Command {
        self.ctr(["tasks", "exec", "--exec-id", exec, id].iter().chain(command))
    }

    fn remove_container(&self, id: &str) {
        run(&mut self.ctr(["tasks", "rm", "--force", id])).ok();
        run(&mut self.ctr(["containers", "rm", id])).ok();
    }

    fn init_pid(&self, id: &str) -> u32 {
        let tasks = run(&mut self.ctr(["tasks", "ls"])).ok();
        let line =
            tasks.stdout.lines().find(|line| line.split_whitespace().next() == Some(id)).expect("a task");
        line.split_whitespace().nth(1).and_then(|pid| pid.parse().ok()).expect("a pid")
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // The directory goes with us; a peer that does not stop has nothing left to write to.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
