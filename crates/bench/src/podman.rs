//! podman, a peer without a daemon, in directories of its own.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;
use testkit::{Finished, run};

pub(crate) struct Podman {
    dir: TempDir,
    state: PathBuf,
}

impl Podman {
    /// `None` if podman is not in PATH.
    pub(crate) fn find() -> Option<Podman> {
        Command::new("podman").arg("--version").output().ok()?;
        let dir = TempDir::with_prefix_in("pm-", "/var/tmp").expect("a temporary directory");
        let state = dir.path().join("state");
        Some(Podman { dir, state })
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command.arg("--root").arg(self.dir.path().join("root")).arg("--runroot").arg(&self.state);
        command.args(["--storage-driver", "overlay", "--log-level", "error"]).args(words);
        command
    }

    /// The version that it reports.
    pub(crate) fn version(&self) -> String {
        let said = run(Command::new("podman").arg("--version")).ok();
        said.text().trim_start_matches("podman version ").to_owned()
    }

    pub(crate) fn pull(&self, image: &str) -> Command {
        self.command(&["pull", "--quiet", "--tls-verify=false", image])
    }

    pub(crate) fn remove(&self, image: &str) -> Finished {
        run(&mut self.command(&["rmi", "--force", image])).ok()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        run(&mut self.command(&["rmi", "--all", "--force"]));
        testkit::unmount_below(self.dir.path());
    }
}
