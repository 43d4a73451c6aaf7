//! A daemon for one test, and the command lines that talk to it.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use linux::cgroup::Cgroup;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use types::Digest;

use crate::{Finished, eventually, hoist_program, images, run};

/// `hoist daemon` on temporary root and state directories.
///
/// Dropping it removes all containers, stops the daemon and deletes the directories. If the test failed, it prints the
/// daemon's log.
pub struct Daemon {
    /// The program to start: `hoist`, or a link to it under a name by which it runs as the daemon without a subcommand.
    program: PathBuf,
    process: Option<Child>,
    dir: TempDir,
    /// On a tmpfs, as `/run` is.
    state: TempDir,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

/// The directories and the socket of a daemon, for its configuration.
pub struct Places {
    pub root: PathBuf,
    pub state: PathBuf,
    pub socket: PathBuf,
}

/// Sets the form of layers from `HOIST_TEST_LAYERS` where the test's configuration does not, so that the same tests run
/// on both forms.
fn form_of_layers(config: &str) -> String {
    match std::env::var("HOIST_TEST_LAYERS") {
        Ok(form) if !config.contains("[snapshots]") => format!("\n[snapshots]\nlayers = {form:?}\n"),
        _ => String::new(),
    }
}

impl Daemon {
    /// Starts the program under another name. Its directories come from the configuration alone.
    pub fn start_as(name: &str, config: impl FnOnce(&Places) -> String) -> Daemon {
        let mut daemon = Daemon::prepared(&[], "", &[]);
        let places = Places { root: daemon.root(), state: daemon.state(), socket: daemon.socket() };
        fs::write(daemon.dir.path().join("config.toml"), config(&places))
            .expect("a writable temporary directory");
        daemon.program = daemon.dir.path().join(name);
        std::os::unix::fs::symlink(hoist_program(), &daemon.program).expect("a writable temporary directory");
        daemon.start_again();
        daemon
    }

    pub fn start() -> Daemon {
        Daemon::start_with(&[], "")
    }

    /// Starts a daemon and loads the image `busybox`.
    pub fn with_busybox() -> Daemon {
        let daemon = Daemon::start();
        daemon.load(&images::busybox_archive());
        daemon
    }

    /// Starts a daemon with more arguments and this text as its configuration file.
    pub fn start_with(arguments: &[&str], config: &str) -> Daemon {
        Daemon::start_in(arguments, config, &[])
    }

    /// Starts a daemon with more environment variables.
    pub fn start_in(arguments: &[&str], config: &str, environment: &[(&str, &str)]) -> Daemon {
        let mut daemon = Daemon::prepared(arguments, config, environment);
        daemon.start_again();
        daemon
    }

    fn prepared(arguments: &[&str], config: &str, environment: &[(&str, &str)]) -> Daemon {
        // The prefix is short, because paths of Unix sockets have at most 107 bytes (unix(7)).
        let dir = TempDir::with_prefix_in("ht-", "/var/tmp").expect("a temporary directory");
        let text = format!("{config}\n{}{}", network_of_its_own(), form_of_layers(config));
        fs::write(dir.path().join("config.toml"), text).expect("a writable temporary directory");
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let state = crate::memory_dir();
        Daemon {
            program: hoist_program(),
            process: None,
            dir,
            state,
            arguments,
            environment: environment.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
        }
    }

    /// Starts the daemon on the same directories, after [`Daemon::kill`] or [`Daemon::terminate`].
    pub fn start_again(&mut self) {
        assert!(self.process.is_none(), "the daemon is running");
        let log =
            fs::File::options().create(true).append(true).open(self.log_path()).expect("a writable log");
        let mut command = Command::new(&self.program);
        if self.program == hoist_program() {
            command
                .arg("daemon")
                .args(["--root".as_ref(), self.root().as_os_str()])
                .args(["--state".as_ref(), self.state().as_os_str()])
                .args(["--address".as_ref(), self.socket().as_os_str()]);
        }
        let child = command
            .args(["--config".as_ref(), self.dir.path().join("config.toml").as_os_str()])
            .args(&self.arguments)
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            .spawn()
            .expect("hoist starts");
        self.process = Some(child);
        eventually("the daemon listens", || {
            let exited = self.process.as_mut().and_then(|child| child.try_wait().ok()).flatten();
            assert!(exited.is_none(), "the daemon ended: {exited:?}\n{}", self.log());
            UnixStream::connect(self.socket()).ok()
        });
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the daemon is running").id()
    }

    /// Sends SIGKILL and waits for the end. Fails the test if the process stays, as only the kernel can cause.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        eventually("the kernel lets the daemon end", || (!self.is_there()).then_some(()));
        self.wait();
    }

    /// The kernel stack of each thread of the daemon (proc_pid_stack(5)).
    pub fn threads(&self) -> String {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid())).into_iter().flatten().flatten();
        let told = |thread: &Path| {
            ["comm", "stack"].map(|name| fs::read_to_string(thread.join(name)).unwrap_or_default()).concat()
        };
        threads.map(|thread| told(&thread.path())).collect()
    }

    /// Sends SIGTERM and waits for the end. Returns the exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        self.begin_to_terminate();
        self.terminated()
    }

    /// Sends SIGTERM and does not wait.
    pub fn begin_to_terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Waits for the end after [`Daemon::begin_to_terminate`]. Returns the exit code.
    pub fn terminated(&mut self) -> Option<i32> {
        self.wait()
    }

    /// Whether the daemon's process still runs.
    pub fn is_there(&mut self) -> bool {
        self.process.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).expect("the daemon is a child of ours");
    }

    fn wait(&mut self) -> Option<i32> {
        self.process.take().expect("the daemon is running").wait().expect("a child of ours").code()
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub fn state(&self) -> PathBuf {
        self.state.path().join("state")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("hoist.sock")
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("daemon.log")
    }

    /// The daemon's log since the test began.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The command `hoist ARGS`, connected to this daemon.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(hoist_program());
        command.args(args).env("HOIST_ADDRESS", self.socket()).stdin(Stdio::null());
        command
    }

    /// Runs `hoist ARGS` to its end.
    #[track_caller]
    pub fn hoist<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Finished {
        run(&mut self.command(args))
    }

    /// Loads the images of an archive or of a layout's directory.
    #[track_caller]
    pub fn load(&self, images: &Path) {
        self.hoist([OsStr::new("load"), OsStr::new("-i"), images.as_os_str()]).ok();
    }

    /// Debian's `ctr`, connected to this daemon.
    pub fn ctr_command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.socket()).args(args).stdin(Stdio::null());
        command
    }

    #[track_caller]
    pub fn ctr<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Finished {
        run(&mut self.ctr_command(args))
    }

    /// Hoist's own `ctr`, called by that name, connected to this daemon.
    pub fn own_ctr_command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let link = self.dir.path().join("ctr");
        if !link.exists() {
            std::os::unix::fs::symlink(hoist_program(), &link).expect("a writable temporary directory");
        }
        let mut command = Command::new(link);
        command.arg("--address").arg(self.socket()).args(args).stdin(Stdio::null());
        command
    }

    #[track_caller]
    pub fn own_ctr<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Finished {
        run(&mut self.own_ctr_command(args))
    }

    fn take_down(&mut self) -> io::Result<()> {
        if self.process.is_some() {
            let ids = run(&mut self.command(["ps", "--all", "--quiet", "--no-trunc"]));
            let ids: Vec<&str> = ids.stdout.split_whitespace().collect();
            if !ids.is_empty() {
                run(&mut self.command(["rm", "--force"].iter().chain(&ids)));
            }
            self.terminate();
        }
        Ok(())
    }

    /// The cgroup above those of the daemon's containers. The daemon names it after its root, and removes it when it
    /// stops in order.
    pub fn cgroup(&self) -> String {
        format!("/hoist/{}", Digest::of(self.root().as_os_str().as_encoded_bytes()).short())
    }

    /// Removes the cgroup of a daemon that was killed, with the processes in it.
    fn remove_cgroup(&self) {
        if let Ok(cgroup) = Cgroup::open(&self.cgroup()) {
            // A failure only leaves a cgroup behind.
            let _left = cgroup.kill().and_then(|()| cgroup.delete());
        }
    }

    /// Ends the shims that are left: those of pods and of other namespaces, and all of them if the daemon could not be
    /// asked.
    fn end_shims(&self) {
        kill_shims_below(self.state.path());
        for bundle in self.bundles() {
            let id = bundle.file_name().unwrap_or_default();
            let namespace = bundle.parent().and_then(Path::file_name).unwrap_or_default();
            let mut delete = Command::new(crate::shim_program());
            delete.arg("-namespace").arg(namespace).arg("-id").arg(id).arg("-address").arg(self.socket());
            delete.arg("-bundle").arg(&bundle).arg("delete").current_dir(&bundle).stdin(Stdio::null());
            match delete.output() {
                Ok(done) if done.status.success() => {}
                Ok(done) => eprintln!("daemon: {}", String::from_utf8_lossy(&done.stderr)),
                Err(error) => eprintln!("daemon: take down {}: {error}", bundle.display()),
            }
        }
    }

    /// The bundles of tasks and pods, in all namespaces.
    fn bundles(&self) -> Vec<PathBuf> {
        let entries =
            |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let kinds = ["tasks", "sandboxes"].into_iter().map(|kind| self.state().join(kind));
        kinds.flat_map(entries).flat_map(entries).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the daemon's log ({})\n{}", self.dir.path().display(), self.log());
        }
        clean_up(|| {
            // A daemon that does not stop in order is killed; all that it leaves is in the test's directories.
            if let Err(error) = self.take_down() {
                eprintln!("daemon: {error}");
            }
            self.end_shims();
            self.remove_cgroup();
            unmount_below(self.dir.path());
            unmount_below(self.state.path());
        });
    }
}

/// Runs clean-up at the end of a test. If the test has failed, a panic of the clean-up is caught, since a second panic
/// would abort the whole test program.
pub fn clean_up(work: impl FnOnce()) {
    let failed = std::thread::panicking();
    if let Err(panic) = catch_unwind(AssertUnwindSafe(work))
        && !failed
    {
        resume_unwind(panic);
    }
}

/// Kills the shims whose bundles are below a state directory: the current directory of a shim is its bundle.
pub(crate) fn kill_shims_below(state: &Path) {
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = process.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let is_shim = fs::read_link(process.path().join("cwd")).is_ok_and(|bundle| bundle.starts_with(state));
        if let Some(pid) = pid.filter(|_| is_shim) {
            // The shim may have ended meanwhile.
            let _gone = kill_process(pid, Signal::KILL);
        }
    }
}

/// Configuration of a bridge and a subnet that no other daemon of this machine uses.
fn network_of_its_own() -> String {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = std::process::id() * 16 + COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let (third, second) = (number % 256, 210 + number / 256 % 40);
    format!("[network]\nbridge = \"ht{}\"\nsubnet = \"10.{second}.{third}.0/24\"\n\n", number % 100_000)
}

/// Unmounts all on and below a directory when dropped, also after a failed test. Must be dropped before the directory.
pub struct MountsBelow(pub PathBuf);

impl Drop for MountsBelow {
    fn drop(&mut self) {
        clean_up(|| unmount_below(&self.0));
    }
}

/// Detaches every mount on and below `dir`, innermost first, so that the directory can be deleted.
pub fn unmount_below(dir: &Path) {
    let mounts = linux::mount::mount_points().unwrap_or_default();
    for mount in mounts.iter().rev().filter(|mount| mount.path.starts_with(dir)) {
        run(Command::new("umount").arg("--lazy").arg(&mount.path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fails;

    impl Drop for Fails {
        fn drop(&mut self) {
            clean_up(|| panic!("not taken down"));
        }
    }

    #[test]
    fn the_failure_of_a_test_comes_before_that_of_its_end() {
        let words = |work: fn()| *catch_unwind(work).unwrap_err().downcast::<&str>().unwrap();
        let both = words(|| {
            let _fails = Fails;
            panic!("failed");
        });
        assert_eq!(both, "failed");
        assert_eq!(words(|| drop(Fails)), "not taken down");
    }
}
