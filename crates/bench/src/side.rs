//! What is measured, as both sides offer it.

use std::path::PathBuf;
use std::process::Command;

use testkit::{Daemon, run};

/// A daemon with a command line. All commands are whole processes, as a user starts them.
pub(crate) trait Side {
    /// Which one it is, as it says itself.
    fn version(&self) -> String;

    fn daemon_pid(&self) -> u32;

    /// Where containerd's API is served.
    fn socket(&self) -> PathBuf;

    fn pull(&self, image: &str);

    /// Gives an image another name.
    fn tag(&self, image: &str, name: &str);

    /// Pushes to the registry that the name says.
    fn push(&self, name: &str);

    /// Removes the image and everything that was made from it.
    fn remove(&self, image: &str);

    /// `run --rm IMAGE COMMAND`.
    fn run_rm(&self, image: &str, id: &str, command: &[&str]) -> Command;

    /// Starts a container that stays.
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
        // Collects at once, as `ctr images rm --sync` does.
        self.0.hoist(["system", "prune", "--force"]).ok();
    }

    fn run_rm(&self, image: &str, id: &str, command: &[&str]) -> Command {
        // containerd's ctr makes no network of its own, so neither do we here.
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

/// Times a command that must succeed. Milliseconds.
pub(crate) fn time(mut command: Command) -> f64 {
    let start = std::time::Instant::now();
    run(&mut command).ok();
    start.elapsed().as_secs_f64() * 1000.0
}
