//! A containerd on its own directories, with its own `ctr`: Debian's, or the one that `HOIST_TEST_CONTAINERD` names.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::daemon::kill_shims_below;
use crate::{Finished, clean_up, eventually, run, unmount_below};

/// The environment variable with a directory of `containerd`, `ctr` and `containerd-shim-runc-v2` to use in place of
/// those in PATH.
const PEER: &str = "HOIST_TEST_CONTAINERD";

/// A running containerd. Dropping it removes its tasks, stops it and deletes its directories.
pub struct Containerd {
    process: Child,
    dir: TempDir,
    /// On a tmpfs, as `/run` is.
    state: TempDir,
    is_stopped: bool,
    /// Major version: 1 for 1.6.
    major: u32,
}

/// The path of one of containerd's programs.
fn program(name: &str) -> PathBuf {
    match std::env::var_os(PEER) {
        Some(dir) => Path::new(&dir).join(name),
        None => name.into(),
    }
}

/// The major version, from `containerd github.com/containerd/containerd/v2 v2.3.4 REVISION`.
fn major() -> Option<u32> {
    let said = Command::new(program("containerd")).arg("--version").output().ok()?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let version = said.split_whitespace().nth(2)?.trim_start_matches('v').split('.').next()?.parse();
    Some(version.unwrap_or_else(|_| panic!("no version in {said:?}")))
}

impl Containerd {
    /// Whether a containerd and its ctr are in PATH, or in the directory that `HOIST_TEST_CONTAINERD` names. Prints why
    /// the test is skipped if not.
    #[track_caller]
    pub fn is_installed() -> bool {
        let is_there = major().is_some() && Command::new(program("ctr")).arg("--version").output().is_ok();
        if !is_there {
            let place = std::env::var_os(PEER).map_or("PATH".to_owned(), |dir| dir.display().to_string());
            stdx::testing::skip(&format!(
                "no containerd and ctr in {place} to compare with; try: apt-get install containerd"
            ));
        }
        is_there
    }

    /// None if containerd is not installed ([`Containerd::is_installed`]).
    #[track_caller]
    pub fn start() -> Option<Containerd> {
        Containerd::start_with_programs(None)
    }

    /// Starts a containerd that looks for shims in this directory first.
    #[track_caller]
    pub fn start_with_programs(programs: Option<&Path>) -> Option<Containerd> {
        Containerd::start_with(programs, "")
    }

    /// Starts a containerd with more tables in its configuration.
    #[track_caller]
    pub fn start_with(programs: Option<&Path>, tables: &str) -> Option<Containerd> {
        if !Containerd::is_installed() {
            return None;
        }
        let major = major()?;
        let dir = TempDir::with_prefix_in("cd-", "/var/tmp").expect("a temporary directory");
        let state = crate::memory_dir();
        let config = dir.path().join("config.toml");
        // CRI, by its names in all versions, is disabled: no test uses it, and it would look for network plugins. So is
        // NRI, whose socket all containerds of a machine share.
        let text = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \
             \"io.containerd.cri.v1.images\", \"io.containerd.cri.v1.runtime\", \
             \"io.containerd.podsandbox.controller.v1.podsandbox\", \"io.containerd.nri.v1.nri\"]\n\
             [grpc]\naddress = {:?}\n{tables}",
            dir.path().join("root"),
            state.path().join("state"),
            dir.path().join("c.sock"),
        );
        fs::write(&config, text).expect("a writable temporary directory");
        let log = fs::File::create(dir.path().join("log")).expect("a writable temporary directory");
        let path = [programs.map(OsString::from), std::env::var_os(PEER), std::env::var_os("PATH")];
        let path: Vec<OsString> = path.into_iter().flatten().collect();
        let process = Command::new(program("containerd"))
            .arg("--config")
            .arg(&config)
            .env("PATH", path.join(OsStr::new(":")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .ok()?;
        let started = Containerd { process, dir, state, is_stopped: false, major };
        eventually("containerd listens", || UnixStream::connect(started.socket()).ok());
        Some(started)
    }

    /// The major version.
    pub fn major(&self) -> u32 {
        self.major
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The directory of its metadata and blobs.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Stops the process and keeps its directories.
    pub fn stop(&mut self) {
        let pid = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, Signal::TERM).expect("it is a child of ours");
        self.process.wait().expect("it is a child of ours");
        self.is_stopped = true;
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("c.sock")
    }

    pub fn ctr_command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        Containerd::client(&self.socket(), args)
    }

    /// The `ctr` of this containerd, connected to any daemon's socket.
    pub fn client<S: AsRef<OsStr>>(socket: &Path, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(program("ctr"));
        command.arg("--address").arg(socket).args(args).stdin(Stdio::null());
        command
    }

    #[track_caller]
    pub fn ctr<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Finished {
        run(&mut self.ctr_command(args))
    }
}

impl Containerd {
    fn take_down(&mut self) {
        if !self.is_stopped {
            let namespaces = self.ctr(["namespaces", "ls", "--quiet"]).stdout;
            for namespace in namespaces.split_whitespace() {
                let tasks = self.ctr(["--namespace", namespace, "tasks", "ls", "--quiet"]).stdout;
                for id in tasks.split_whitespace() {
                    self.ctr(["--namespace", namespace, "tasks", "rm", "--force", id]);
                }
            }
            // A containerd that does not stop is killed: its directories are deleted anyway.
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
        // Shims of sandboxes have no task, so removing tasks does not end them.
        kill_shims_below(self.state.path());
        unmount_below(self.state.path());
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            eprintln!("--- containerd's log ({})\n{log}", self.dir.path().display());
        }
        clean_up(|| self.take_down());
    }
}
