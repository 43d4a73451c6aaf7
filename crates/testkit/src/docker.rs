//! Debian's dockerd on its own directories, with its own `docker`.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{Finished, eventually, run};

/// The client of the package `docker.io`: another version in `PATH` may not speak with its dockerd.
const DOCKER: &str = "/usr/bin/docker";
const DOCKERD: &str = "/usr/sbin/dockerd";

/// A running dockerd without a network. Dropping it stops it and its containerd, and deletes its directories.
pub struct Docker {
    /// None between [`Docker::kill`] and [`Docker::start_again`].
    process: Option<Child>,
    dir: TempDir,
    /// On a tmpfs, as `/run` is.
    state: TempDir,
    /// The containerd's socket that dockerd was told to use. Without one, dockerd starts its own containerd.
    containerd: Option<PathBuf>,
    /// A directory that comes first in dockerd's PATH.
    programs: Option<PathBuf>,
}

impl Docker {
    /// None if the package `docker.io` is not installed; prints that the test is skipped.
    pub fn start() -> Option<Docker> {
        Docker::prepare(None, None)
    }

    /// Starts a dockerd that, with its containerd and its builders, finds programs in this directory first.
    pub fn start_with_programs(programs: &Path) -> Option<Docker> {
        Docker::prepare(None, Some(programs.to_owned()))
    }

    /// Starts a dockerd on a daemon that listens on `containerd` in containerd's place. The containers outlive dockerd.
    pub fn start_on(containerd: &Path) -> Option<Docker> {
        Docker::prepare(Some(containerd.to_owned()), None)
    }

    fn prepare(containerd: Option<PathBuf>, programs: Option<PathBuf>) -> Option<Docker> {
        if !Path::new(DOCKERD).exists() || !Path::new(DOCKER).exists() {
            stdx::testing::skip("dockerd is not there; try: apt-get install docker.io");
            return None;
        }
        let dir = TempDir::with_prefix_in("dk-", "/var/tmp").expect("a temporary directory");
        let mut docker = Docker { process: None, dir, state: crate::memory_dir(), containerd, programs };
        docker.start_again();
        Some(docker)
    }

    /// Starts it on the same directories, after [`Docker::kill`].
    pub fn start_again(&mut self) {
        assert!(self.process.is_none(), "dockerd is running");
        let log = fs::File::options().create(true).append(true).open(self.dir.path().join("log"));
        let mut command = Command::new(DOCKERD);
        if let Some(containerd) = &self.containerd {
            command.arg("--live-restore").arg("--containerd").arg(containerd);
        }
        if let Some(programs) = &self.programs {
            let others = std::env::var("PATH").expect("a path");
            command.env("PATH", format!("{}:{others}", programs.display()));
        }
        let process = command
            .arg("--data-root")
            .arg(self.dir.path().join("root"))
            .arg("--exec-root")
            .arg(self.state.path().join("exec"))
            .arg("--pidfile")
            .arg(self.state.path().join("pid"))
            .arg(format!("--host=unix://{}", self.socket().display()))
            .arg(format!("--cgroup-parent=/{}", cgroup_of(self.dir.path())))
            // Keeps dockerd from changing anything of the machine but its directories and cgroups.
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=vfs"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("a writable temporary directory"))
            .spawn()
            .expect("dockerd starts");
        self.process = Some(process);
        eventually("dockerd answers", || (self.docker(["version"]).code == 0).then_some(()));
    }

    /// Kills dockerd with SIGKILL. Its containers keep running.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("dockerd is running");
        process.kill().expect("a child of ours");
        process.wait().expect("a child of ours");
        // dockerd takes the pid file of a dead one for its own unless another process has that pid.
        let _ = fs::remove_file(self.state.path().join("pid"));
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

    /// Runs `docker ARGS` to its end.
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
        if self.containerd.is_some() && self.process.is_some() {
            // The containers would outlive dockerd.
            let ids = self.docker(["ps", "--all", "--quiet"]).stdout;
            self.docker(["rm", "--force"].into_iter().chain(ids.split_whitespace()));
        }
        // SIGTERM, so that dockerd stops the containerd that it started.
        if let Some(process) = &mut self.process {
            let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw);
            if pid.is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok()) {
                let _ = process.wait();
            }
        }
        // dockerd bind-mounts this directory on itself, and leaves the mount if one that was killed had made it.
        run(Command::new("umount").arg(self.dir.path().join("root")));
        remove_cgroups(&cgroup_of(self.dir.path()));
    }
}

/// Removes the cgroup of a dockerd and the one of its builds in every hierarchy. A cgroup that is not empty stays.
fn remove_cgroups(name: &str) {
    let tops = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|top| top.path());
    for top in tops.chain(["/sys/fs/cgroup".into()]) {
        for cgroup in [top.join(name).join("buildkit"), top.join(name)] {
            let _ = fs::remove_dir(cgroup);
        }
    }
}

/// The cgroup above all containers of a dockerd.
fn cgroup_of(dir: &Path) -> String {
    dir.file_name().expect("a temporary directory has a name").to_string_lossy().into_owned()
}
