//! Debian's dockerd on directories of its own, with its own `docker`.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{Finished, eventually, run};

/// Where the package `docker.io` has them: other versions in `PATH` may not speak with each other.
const DOCKER: &str = "/usr/bin/docker";
const DOCKERD: &str = "/usr/sbin/dockerd";

/// A running dockerd without a network. Dropping it stops it and its containerd, and deletes its directories.
pub struct Docker {
    process: Child,
    dir: TempDir,
    /// In memory, as `/run` is.
    state: TempDir,
}

impl Docker {
    /// None when the package `docker.io` is not there.
    pub fn start() -> Option<Docker> {
        if !Path::new(DOCKERD).exists() || !Path::new(DOCKER).exists() {
            println!("skipped: dockerd is not there; try: apt-get install docker.io");
            return None;
        }
        let dir = TempDir::with_prefix_in("dk-", "/var/tmp").expect("a temporary directory");
        let state = crate::memory_dir();
        let log = fs::File::create(dir.path().join("log")).expect("a writable temporary directory");
        let process = Command::new(DOCKERD)
            .arg("--data-root")
            .arg(dir.path().join("root"))
            .arg("--exec-root")
            .arg(state.path().join("exec"))
            .arg("--pidfile")
            .arg(state.path().join("pid"))
            .arg(format!("--host=unix://{}", state.path().join("d.sock").display()))
            .arg(format!("--cgroup-parent=/{}", cgroup_of(dir.path())))
            // Nothing of the machine is touched but these directories and cgroups.
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=vfs"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("dockerd starts");
        let docker = Docker { process, dir, state };
        eventually("dockerd answers", || (docker.docker(["version"]).code == 0).then_some(()));
        Some(docker)
    }

    pub fn socket(&self) -> PathBuf {
        self.state.path().join("d.sock")
    }

    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(DOCKER);
        command.arg(format!("--host=unix://{}", self.socket().display())).args(args).stdin(Stdio::null());
        command.env("DOCKER_CONFIG", self.dir.path()).env_remove("DOCKER_CONTEXT").env_remove("DOCKER_HOST");
        command
    }

    /// `docker ARGS`, to its end.
    #[track_caller]
    pub fn docker<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Finished {
        run(&mut self.command(args))
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            eprintln!("--- dockerd's log ({})\n{log}", self.dir.path().display());
        }
        // Asked, and not killed: it stops the containerd that it started.
        let pid = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw);
        if pid.is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok()) {
            let _ = self.process.wait();
        }
        // In each hierarchy, where there are several; one that holds something is not removed.
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = fs::remove_dir(hierarchy.path().join(cgroup_of(self.dir.path())));
        }
        let _ = fs::remove_dir(Path::new("/sys/fs/cgroup").join(cgroup_of(self.dir.path())));
    }
}

/// The cgroup above all containers of a dockerd.
fn cgroup_of(dir: &Path) -> String {
    dir.file_name().expect("a temporary directory has a name").to_string_lossy().into_owned()
}
