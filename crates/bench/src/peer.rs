//! The peer, containerd with runc: in directories of its own, driven by `ctr`.

use std::path::PathBuf;
use std::process::Command;

use testkit::Containerd;

use crate::side::Side;

impl Side for Containerd {
    fn version(&self) -> String {
        let said = self.ctr(["version"]).ok();
        // The server's version: the lines above are the client's.
        let mut of_server = said.stdout.lines().skip_while(|line| !line.starts_with("Server"));
        let version = of_server.find_map(|line| line.trim().strip_prefix("Version:"));
        version.unwrap_or_else(|| panic!("no version of the server in {said}")).trim().to_owned()
    }

    fn daemon_pid(&self) -> u32 {
        self.pid()
    }

    fn socket(&self) -> PathBuf {
        Containerd::socket(self)
    }

    fn pull(&self, image: &str) {
        self.ctr(["images", "pull", "--plain-http", image]).ok();
    }

    fn tag(&self, image: &str, name: &str) {
        self.ctr(["images", "tag", image, name]).ok();
    }

    fn push(&self, name: &str) {
        self.ctr(["images", "push", "--plain-http", name]).ok();
    }

    fn remove(&self, image: &str) {
        self.ctr(["images", "rm", "--sync", image]).ok();
    }

    fn run_rm(&self, image: &str, id: &str, command: &[&str]) -> Command {
        self.ctr_command(["run", "--rm", image, id].iter().chain(command))
    }

    fn run_detached(&self, image: &str, id: &str) {
        self.ctr(["run", "-d", image, id, "sleep", "100000"]).ok();
    }

    fn exec(&self, id: &str, exec: &str, command: &[&str]) -> Command {
        self.ctr_command(["tasks", "exec", "--exec-id", exec, id].iter().chain(command))
    }

    fn remove_container(&self, id: &str) {
        self.ctr(["tasks", "rm", "--force", id]).ok();
        self.ctr(["containers", "rm", id]).ok();
    }

    fn init_pid(&self, id: &str) -> u32 {
        let tasks = self.ctr(["tasks", "ls"]).ok();
        let line =
            tasks.stdout.lines().find(|line| line.split_whitespace().next() == Some(id)).expect("a task");
        line.split_whitespace().nth(1).and_then(|pid| pid.parse().ok()).expect("a pid")
    }
}
