//! The operations that are measured, for either daemon.

use std::path::PathBuf;
use std::process::Command;

use testkit::{Daemon, run};

/// A daemon and its command line. Every command is a process of its own, as a user starts it.
pub(crate) trait Side {
    /// The version that it reports.
    fn version(&self) -> String;

    fn daemon_pid(&self) -> u32;

    /// The socket of containerd's API.
    fn socket(&self) -> PathBuf;

    fn pull(&self, image: &str);

    /// Tags an image.
    fn tag(&self, image: &str, name: &str);

    /// Pushes an image to the registry in its name.
    fn push(&self, name: &str);

    /// Removes the image and all its snapshots and blobs.
    fn remove(&self, image: &str);

    /// `run --rm IMAGE COMMAND`.
    fn run_rm(&self, image: &str, id: &str, command: &[&str]) -> Command;

    /// Starts a container in the background.
    fn run_detached(&self, image: &str, id: &str);

    fn exec(&self, id: &str, exec: &str, command: &[&str]) -> Command;

    fn remove_container(&self, id: &str);

    /// The pid of the container's first process.
    fn init_pid(&self, id: &str) -> u32;
}

pub(crate) struct Hoist(Daemon);

impl Hoist {
    pub(crate) fn start() -> Hoist {
        Hoist(Daemon::start())
    }
}

impl Side for Hoist {
    fn version(&self) -> String {
        let said = self.0.hoist(["--version"]).ok();
        said.text().trim_start_matches("hoist ").to_owned()
    }

    fn daemon_pid(&self) -> u32 {
        self.0.pid()
    }

    fn socket(&self) -> PathBuf {
        self.0.socket()
    }

    fn pull(&self, image: &str) {
        self.0.hoist(["pull", "-q", image]).ok();
    }

    fn tag(&self, image: &str, name: &str) {
        self.0.hoist(["tag", image, name]).ok();
    }

    fn push(&self, name: &str) {
        self.0.hoist(["push", "-q", name]).ok();
    }

    fn remove(&self, image: &str) {
        self.0.hoist(["rmi", "-f", image]).ok();
        // Collects garbage at once, as `ctr images rm --sync` does.
        self.0.hoist(["system", "prune", "--force"]).ok();
    }

    fn run_rm(&self, image: &str, id: &str, command: &[&str]) -> Command {
        // Without a network, as containerd's ctr makes none.
        let words = ["run", "--rm", "--network", "none", "--name", id, image];
        self.0.command(words.iter().chain(command))
    }

    fn run_detached(&self, image: &str, id: &str) {
        self.0.hoist(["run", "-d", "--network", "none", "--name", id, image, "sleep", "100000"]).ok();
    }

    fn exec(&self, id: &str, _exec: &str, command: &[&str]) -> Command {
        self.0.command(["exec", id].iter().chain(command))
    }

    fn remove_container(&self, id: &str) {
        self.0.hoist(["rm", "-f", id]).ok();
    }

    fn init_pid(&self, id: &str) -> u32 {
        let pid = self.0.hoist(["inspect", "-f", "{{.State.Pid}}", id]).ok();
        pid.text().parse().expect("a pid")
    }
}

/// Runs a command, which must succeed. Milliseconds.
pub(crate) fn time(mut command: Command) -> f64 {
    let start = std::time::Instant::now();
    run(&mut command).ok();
    start.elapsed().as_secs_f64() * 1000.0
}
