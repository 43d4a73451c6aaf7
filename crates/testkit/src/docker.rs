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
    /// None between [`Docker::kill`] and [`Docker::start_again`].
    process: Option<Child>,
    dir: TempDir,
    /// In memory, as `/run` is.
    state: TempDir,
    /// The containerd that it was told to use; it starts one of its own without.
    containerd: Option<PathBuf>,
    /// Where it finds programs, before all other places.
    programs: Option<PathBuf>,
}

impl Docker {
    /// None when the package `docker.io` is not there, which it says.
    pub fn start() -> Option<Docker> {
        Docker::prepare(None, None)
    }

    /// One that finds programs in this directory first, as its containerd and builders do.
    pub fn start_with_programs(programs: &Path) -> Option<Docker> {
        Docker::prepare(None, Some(programs.to_owned()))
    }

    /// On what listens there in containerd's place. Its containers outlive it.
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
            // Nothing of the machine is touched but these directories and cgroups.
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=vfs"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("a writable temporary directory"))
            .spawn()
            .expect("dockerd starts");
        self.process = Some(process);
        eventually("dockerd answers", || (self.docker(["version"]).code == 0).then_some(()));
    }

    /// With SIGKILL: what it runs goes on.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("dockerd is running");
        process.kill().expect("a child of ours");
        process.wait().expect("a child of ours");
        // Another start takes a file of a process that is gone for one of its own only if no other has its number.
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
        if self.containerd.is_some() && self.process.is_some() {
            // They would outlive it.
            let ids = self.docker(["ps", "--all", "--quiet"]).stdout;
            self.docker(["rm", "--force"].into_iter().chain(ids.split_whitespace()));
        }
        // Asked, and not killed: it stops the containerd that it started.
        if let Some(process) = &mut self.process {
            let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw);
            if pid.is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok()) {
                let _ = process.wait();
            }
        }
        // It mounts this upon itself, and one that comes after one that was killed leaves it so.
        run(Command::new("umount").arg(self.dir.path().join("root")));
        remove_cgroups(&cgroup_of(self.dir.path()));
    }
}

/// Removes the cgroup of a dockerd in each hierarchy, where there are several, with the one of its builds. One that holds
/// something is not removed.
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
