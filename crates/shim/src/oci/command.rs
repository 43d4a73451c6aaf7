//! Containers of a runtime program with runc's command line: runc, crun, youki.
//!
//! The program double-forks, so that a container's processes become children of the shim, their subreaper. Their pids
//! come from `--pid-file`, a terminal over `--console-socket`.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio as Streams};
use std::time::Duration;

use api::shim::runc::CheckpointOptions;
use linux::cgroup::Cgroup;
use linux::fd_passing::receive_with_fd;
use linux::process::{PidFd, wait_readable};
use linux::signal::Signal;
use rustix::process::Pid;
use types::{Context, Error, ErrorKind, Result};

use super::{Create, Created, Exec, Executed, Oci, Stdio, criu_work, owns_pids};
use crate::record::RuntimeRecord;

const CONSOLE: &str = ".console";
/// How long the loop waits for a quick command of the runtime.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// A worker waits until it is killed.
const WORK_MAX: Duration = Duration::from_secs(u32::MAX as u64);
/// Bytes of a command's output that are read.
const OUTPUT_LEN_MAX: u64 = 4 << 20;

pub(crate) struct CommandRuntime {
    program: PathBuf,
    root: PathBuf,
    systemd_cgroup: bool,
    /// The default directory of criu's log.
    criu_work: PathBuf,
    id: String,
    bundle: PathBuf,
    /// The first process's cgroup, read at its creation: once the process has ended, its pid may be reused.
    cgroup: Option<String>,
}

impl CommandRuntime {
    /// A container that was made before, perhaps by another process.
    pub(crate) fn load(id: &str, bundle: &Path, record: &RuntimeRecord) -> CommandRuntime {
        CommandRuntime {
            program: PathBuf::from(&record.binary),
            root: record.root.clone(),
            systemd_cgroup: record.systemd_cgroup,
            criu_work: bundle.join("criu-work"),
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            cgroup: None,
        }
    }

    /// A container that a worker has made.
    pub(crate) fn find(create: Create<'_>, pid: Pid) -> CommandRuntime {
        CommandRuntime { cgroup: cgroup_of(pid), ..CommandRuntime::new(create) }
    }

    /// `NotFound` if there is no such program. Checked before anything is recorded, as its containers could not be
    /// removed without it either.
    pub(crate) fn look_for(name: &str) -> Result<()> {
        let is_there = match std::env::var_os("PATH") {
            _ if name.contains('/') => Path::new(name).is_file(),
            Some(path) => linux::search::find(name, &path).is_some(),
            // Without `PATH` the system's default path is searched, which is unknown here.
            None => true,
        };
        let missing = || Error::not_found(format!("no runtime {name:?}, which the container's options name"));
        if is_there { Ok(()) } else { Err(missing()) }
    }

    pub(crate) fn create(create: Create<'_>, stdio: Stdio) -> Result<Created> {
        let runtime = CommandRuntime::new(create);
        let mut command = runtime.command("create");
        if create.options.no_new_keyring {
            command.arg("--no-new-keyring");
        }
        runtime.make_container(command, create, stdio)
    }

    pub(crate) fn restore(create: Create<'_>, images: &Path, stdio: Stdio) -> Result<Created> {
        let runtime = CommandRuntime::new(create);
        let mut command = runtime.command("restore");
        command.arg("--detach").arg("--image-path").arg(images).arg("--work-path").arg(&runtime.criu_work);
        // The options under which the checkpoint was made are not known, so all are allowed.
        command.args(["--tcp-established", "--ext-unix-sk", "--file-locks"]);
        runtime.make_container(command, create, stdio)
    }

    fn new(create: Create<'_>) -> CommandRuntime {
        CommandRuntime {
            program: PathBuf::from(&create.options.binary_name),
            root: create.root.to_owned(),
            systemd_cgroup: create.options.systemd_cgroup,
            criu_work: criu_work(create.options, create.bundle),
            id: create.id.to_owned(),
            bundle: create.bundle.to_owned(),
            cgroup: None,
        }
    }

    /// Runs a command that makes the container.
    fn make_container(mut self, mut command: Command, create: Create<'_>, stdio: Stdio) -> Result<Created> {
        let pid_file = create.bundle.join(".runtime-init.pid");
        command.arg("--bundle").arg(create.bundle).arg("--pid-file").arg(&pid_file);
        if create.options.no_pivot_root {
            command.arg("--no-pivot");
        }
        // A stale pid would be taken for the new one.
        let _absent = std::fs::remove_file(&pid_file);
        let made = self
            .run_with(command, stdio, &[create.id], &self.log())
            .and_then(|console| Ok((read_pid(&pid_file)?, console)));
        let (pid, console) = made.inspect_err(|_| {
            // The container was made if there is a pid; otherwise the id may belong to another.
            if pid_file.exists() {
                let _best_effort = self.delete(true);
            }
        })?;
        self.cgroup = cgroup_of(pid);
        let owns_pids = owns_pids(pid);
        Ok(Created { oci: Oci::Command(self), pid, console, warnings: Vec::new(), owns_pids })
    }

    pub(crate) fn start(&mut self) -> Result<()> {
        let mut command = self.command("start");
        command.arg(&self.id);
        self.run(command, WORK_MAX).map(drop)
    }

    pub(crate) fn exec(&mut self, exec: Exec<'_>, stdio: Stdio) -> Result<Executed> {
        let [spec_file, pid_file, log] = self.exec_files(exec.exec_id);
        // A stale pid would be taken for the new one.
        let _absent = std::fs::remove_file(&pid_file);
        let spec = terminal_as_asked(exec.spec, matches!(stdio, Stdio::Terminal))?;
        std::fs::write(&spec_file, spec).context(|| format!("write {}", spec_file.display()))?;
        let mut command = self.command_with_log("exec", &log);
        command.arg("--process").arg(&spec_file).arg("--pid-file").arg(&pid_file).arg("--detach");
        let id = self.id.clone();
        let outcome = self
            .run_with(command, stdio, &[&id], &log)
            .and_then(|console| Ok(Executed { pid: read_pid(&pid_file)?, console, warnings: Vec::new() }));
        match &outcome {
            Ok(_) => self.forget_exec(exec.exec_id),
            // No caller knows of the process. The first error is reported.
            Err(_) => drop(self.end_exec(exec.exec_id)),
        }
        outcome
    }

    /// Kills a further process that no caller knows of, if it exists, and removes the files of its start.
    pub(crate) fn end_exec(&self, exec_id: &str) -> Result<()> {
        let [_, pid_file, _] = self.exec_files(exec_id);
        let ended = match read_pid(&pid_file) {
            Ok(pid) => self.end_process(super::pid_number(pid)),
            Err(error) if error.is(ErrorKind::NotFound) => Ok(()),
            Err(error) => Err(error),
        };
        self.forget_exec(exec_id);
        ended
    }

    fn end_process(&self, pid: u32) -> Result<()> {
        // Opened first and checked second: it may have ended, and its pid be reused.
        let process = PidFd::open(pid)?;
        if self.cgroup()?.processes()?.contains(&pid) { process.kill() } else { Ok(()) }
    }

    /// Files of a further process: its description, its pid, and its log.
    fn exec_files(&self, exec_id: &str) -> [PathBuf; 3] {
        ["json", "pid", "log"].map(|kind| self.bundle.join(format!(".{exec_id}.{kind}")))
    }

    fn forget_exec(&self, exec_id: &str) {
        for file in self.exec_files(exec_id) {
            // Some may not have been written.
            let _absent = std::fs::remove_file(file);
        }
    }

    pub(crate) fn kill(&mut self, signal: Signal, all: bool) -> Result<()> {
        let mut command = self.command("kill");
        if all {
            command.arg("--all");
        }
        command.arg(&self.id).arg(signal.number().to_string());
        match self.run(command, ANSWER_MAX) {
            Err(error) if is_gone(&error.chain()) => Err(Error::not_found("process already finished")),
            other => other.map(drop),
        }
    }

    pub(crate) fn pause(&mut self) -> Result<()> {
        let mut command = self.command("pause");
        command.arg(&self.id);
        self.run(command, ANSWER_MAX).map(drop)
    }

    pub(crate) fn resume(&mut self) -> Result<()> {
        let mut command = self.command("resume");
        command.arg(&self.id);
        self.run(command, ANSWER_MAX).map(drop)
    }

    pub(crate) fn update(&mut self, resources: &[u8]) -> Result<()> {
        let file = self.bundle.join(".resources.json");
        std::fs::write(&file, resources).context(|| format!("write {}", file.display()))?;
        let mut command = self.command("update");
        command.arg("--resources").arg(&file).arg(&self.id);
        self.run(command, ANSWER_MAX).map(drop)
    }

    pub(crate) fn checkpoint(&mut self, images: &Path, options: &CheckpointOptions) -> Result<()> {
        let mut command = self.command("checkpoint");
        command.arg("--image-path").arg(images);
        let work = match options.work_path.as_str() {
            "" => self.criu_work.clone(),
            path => PathBuf::from(path),
        };
        command.arg("--work-path").arg(work);
        if !options.parent_path.is_empty() {
            command.arg("--parent-path").arg(&options.parent_path);
        }
        for (asked, flag) in [
            (options.open_tcp, "--tcp-established"),
            (options.external_unix_sockets, "--ext-unix-sk"),
            (options.terminal, "--shell-job"),
            (options.file_locks, "--file-locks"),
            (!options.exit, "--leave-running"),
        ] {
            if asked {
                command.arg(flag);
            }
        }
        for namespace in &options.empty_namespaces {
            command.arg("--empty-ns").arg(namespace);
        }
        if !options.cgroups_mode.is_empty() {
            command.arg("--manage-cgroups-mode").arg(&options.cgroups_mode);
        }
        command.arg(&self.id);
        self.run(command, WORK_MAX).map(drop)
    }

    pub(crate) fn pids(&self) -> Result<Vec<u32>> {
        let mut command = self.command("ps");
        command.args(["--format", "json"]).arg(&self.id);
        let text = self.run(command, ANSWER_MAX)?;
        serde_json::from_slice(text.as_bytes()).map_err(|error| {
            Error::internal("the runtime's list of processes is not JSON").with_source(error)
        })
    }

    /// The cgroup that the runtime put the first process into.
    pub(crate) fn cgroup(&self) -> Result<Cgroup> {
        let path = self.cgroup.as_deref();
        Cgroup::open(path.ok_or_else(|| Error::not_found("the container has no cgroup"))?)
    }

    /// Called by the loop, or by a worker, which may wait for ever.
    pub(crate) fn delete(&mut self, by_worker: bool) -> Result<()> {
        let limit = if by_worker { WORK_MAX } else { ANSWER_MAX };
        let mut command = self.command("delete");
        command.arg("--force").arg(&self.id);
        match self.run(command, limit) {
            // An earlier delete was cut off after the runtime had finished.
            Err(error) if is_unknown_container(error.message(), &self.id) => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    /// Removes the rest of the container, unless its id belongs to another bundle by now: the state directory may be
    /// shared.
    pub(crate) fn delete_rest(&mut self) -> Result<()> {
        let canonical = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        match self.bundle_in_state() {
            Ok(owner) if canonical(&owner) != canonical(&self.bundle) => Err(Error::already_exists(format!(
                "container {} in {} is that of the bundle {}, and stays",
                self.id,
                self.root.display(),
                owner.display()
            ))),
            Ok(_) => self.delete(false),
            // A half-made container has no state, but a directory that blocks the next create.
            Err(error) if is_unknown_container(error.message(), &self.id) => self.delete(false),
            // Its owner is unknown.
            Err(error) => Err(error),
        }
    }

    /// The bundle that the container of this id was made from, in the runtime's state.
    fn bundle_in_state(&self) -> Result<PathBuf> {
        #[derive(serde::Deserialize)]
        struct State {
            bundle: PathBuf,
        }
        let mut command = self.command("state");
        command.arg(&self.id);
        let text = self.run(command, ANSWER_MAX)?;
        let state: State = serde_json::from_slice(text.as_bytes()).map_err(|error| {
            Error::internal("the runtime's state is not as the OCI says").with_source(error)
        })?;
        Ok(state.bundle)
    }

    fn command(&self, verb: &str) -> Command {
        self.command_with_log(verb, &self.log())
    }

    fn command_with_log(&self, verb: &str, log: &Path) -> Command {
        let mut command = Command::new(&self.program);
        // It is the daemon's: with it, a runtime waits for the container's readiness.
        command.env_remove("NOTIFY_SOCKET");
        command.arg("--root").arg(&self.root).arg("--log").arg(log).args(["--log-format", "json"]);
        if self.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        command.arg(verb);
        command
    }

    fn log(&self) -> PathBuf {
        self.bundle.join("log.json")
    }

    /// Runs a command that starts a process with the given streams. Returns its console.
    fn run_with(
        &self,
        mut command: Command,
        stdio: Stdio,
        args: &[&str],
        log: &Path,
    ) -> Result<Option<OwnedFd>> {
        match stdio {
            Stdio::Pipes(ends) => {
                command.args(args).stdin(ends.stdin).stdout(ends.stdout).stderr(ends.stderr);
                self.run_quiet(command, log)?;
                Ok(None)
            }
            Stdio::Terminal => {
                let socket = ConsoleSocket::new(&self.bundle)?;
                command.arg("--console-socket").arg(&socket.path).args(args);
                command.stdin(Streams::null()).stdout(Streams::null()).stderr(Streams::null());
                self.run_quiet(command, log)?;
                socket.receive().map(Some)
            }
        }
    }

    /// Runs a command whose standard streams belong to the container: its errors go to the log file alone.
    fn run_quiet(&self, mut command: Command, log: &Path) -> Result<()> {
        // An old error must not be taken for a new one.
        let _absent = std::fs::remove_file(log);
        let status = command.status().context(|| format!("run {}", self.program.display()))?;
        if status.success() { Ok(()) } else { Err(self.failure(log, "", status)) }
    }

    /// Runs a command, and returns its output. A command that takes too long is killed.
    ///
    /// Slow commands are run by a worker, which can be killed: see [`WORK_MAX`] and [`ANSWER_MAX`].
    fn run(&self, mut command: Command, limit: Duration) -> Result<String> {
        let about = || format!("run {}", self.program.display());
        let _absent = std::fs::remove_file(self.log());
        // Files in memory, on which the program never blocks.
        let output = || -> std::io::Result<File> {
            Ok(rustix::fs::memfd_create("output", rustix::fs::MemfdFlags::CLOEXEC)?.into())
        };
        let (mut printed, mut said) = (output().context(about)?, output().context(about)?);
        let copy = |file: &File| file.try_clone().context(about);
        command.stdin(Streams::null()).stdout(copy(&printed)?).stderr(copy(&said)?);
        let mut child = command.spawn().context(about)?;
        let process = PidFd::open(child.id())?;
        if !wait_readable(process.as_fd(), Some(limit)).context(about)? {
            process.end();
            return Err(Error::deadline_exceeded(format!(
                "{} did not answer within {} s and was killed",
                self.program.display(),
                limit.as_secs()
            )));
        }
        let status = child.wait().context(about)?;
        if status.success() {
            return text_of(&mut printed);
        }
        Err(self.failure(&self.log(), &text_of(&mut said)?, status))
    }

    /// The last error in the runtime's log, or its output, or its exit status.
    fn failure(&self, log: &Path, printed: &str, status: ExitStatus) -> Error {
        let log = std::fs::read_to_string(log).unwrap_or_default();
        let logged = log.lines().rev().find_map(|line| {
            let entry: serde_json::Value = serde_json::from_slice(line.as_bytes()).ok()?;
            let is_complaint = ["error", "fatal", "panic"].iter().any(|level| entry["level"] == *level);
            is_complaint.then(|| entry["msg"].as_str().map(str::to_owned))?
        });
        let mut message = logged.unwrap_or_else(|| printed.trim().to_owned());
        if message.is_empty() {
            message = format!("it ended with {status} and said nothing");
        }
        let kind = if is_gone(&message) || message.contains("no such file or directory") {
            ErrorKind::NotFound
        } else {
            ErrorKind::Unknown
        };
        Error::new(kind, format!("{}: {message}", self.program.display()))
    }
}

fn text_of(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    let read = file.rewind().and_then(|()| file.take(OUTPUT_LEN_MAX).read_to_end(&mut bytes));
    read.context(|| "read what the runtime printed")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The messages of runtimes for a process that has ended.
fn is_gone(message: &str) -> bool {
    ["process already finished", "container not running", "no such process", "does not exist"]
        .iter()
        .any(|words| message.contains(words))
}

/// The messages of runtimes for an unknown id (runc; youki and Hoist's; crun). They are matched as whole sentences:
/// other errors use the same words for other missing things while the container runs.
fn is_unknown_container(message: &str, id: &str) -> bool {
    let sentences = [
        ": container does not exist".to_owned(),
        format!("container {id} does not exist"),
        format!("container `{id}` does not exist"),
        format!("/{id}/status`: No such file or directory"),
        format!("/{id}': No such file or directory"),
    ];
    sentences.iter().any(|sentence| message.ends_with(sentence))
}

/// The path of a process's cgroup: in version 1, of the memory controller.
fn cgroup_of(pid: Pid) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero())).ok()?;
    let line = |wanted: fn(&str) -> bool| {
        text.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let controllers = parts.next()?;
            wanted(controllers).then(|| parts.next()).flatten()
        })
    };
    let path = line(|controllers| controllers.split(',').any(|name| name == "memory"));
    path.or_else(|| line(str::is_empty)).map(str::to_owned)
}

fn read_pid(file: &Path) -> Result<Pid> {
    let text = std::fs::read_to_string(file).context(|| format!("read {}", file.display()))?;
    let pid = text.trim().parse().ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| Error::internal(format!("{} holds no pid", file.display())))
}

/// The request decides about the terminal, not the process spec.
fn terminal_as_asked(spec: &[u8], terminal: bool) -> Result<Vec<u8>> {
    let bad = |error| Error::invalid_argument("the process spec is not JSON").with_source(error);
    let mut spec: serde_json::Value = serde_json::from_slice(spec).map_err(bad)?;
    spec["terminal"] = terminal.into();
    serde_json::to_vec(&spec).map_err(bad)
}

/// The socket to which the runtime sends the terminal's master: in the bundle, where no other user can create it first.
struct ConsoleSocket {
    listener: UnixListener,
    file: PathBuf,
    /// By the bundle's descriptor: its own path may be too long for a socket.
    path: PathBuf,
    _bundle: File,
}

impl ConsoleSocket {
    fn new(bundle: &Path) -> Result<ConsoleSocket> {
        let about = || format!("make a console socket in {}", bundle.display());
        // Each worker has its own.
        let own = std::process::id();
        let name = format!("{CONSOLE}.{own}");
        let file = bundle.join(&name);
        // A shim that died may have left one.
        let _absent = std::fs::remove_file(&file);
        let bundle = File::open(bundle).context(about)?;
        let path = PathBuf::from(format!("/proc/{own}/fd/{}/{name}", bundle.as_raw_fd()));
        let listener = UnixListener::bind(&path).context(about)?;
        Ok(ConsoleSocket { listener, file, path, _bundle: bundle })
    }

    fn receive(&self) -> Result<OwnedFd> {
        let about = || "receive the console from the runtime";
        // The runtime has succeeded, so it has connected.
        self.listener.set_nonblocking(true).context(about)?;
        let (stream, _) = self.listener.accept().context(about)?;
        let (_name, console) = receive_with_fd(stream.as_fd(), 4096).context(about)?;
        console.ok_or_else(|| Error::internal("the runtime sent no console"))
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _best_effort = std::fs::remove_file(&self.file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fake runtime that records deletes, and answers them and `state` as a script says.
    fn runtime(dir: &Path, answers: &str) -> CommandRuntime {
        let binary = dir.join("runtime");
        let script = format!(
            "#!/bin/sh\nfor verb in \"$@\"; do case $verb in delete) echo >> {0}/deleted;; esac; done\n{answers}\n",
            dir.display()
        );
        testkit::executable(&binary, &script);
        let record = RuntimeRecord {
            version: 1,
            binary: binary.display().to_string(),
            root: dir.join("root"),
            systemd_cgroup: false,
            rootfs_mounted: false,
        };
        CommandRuntime::load("one", dir, &record)
    }

    #[test]
    fn only_exact_messages_count_as_container_does_not_exist() {
        let dir = tempfile::tempdir().unwrap();
        for (words, is_gone) in [
            ("time=now level=error msg=x", false),
            ("config file /etc/one.toml does not exist", false),
            ("container runtime config does not exist", false),
            ("the image of container two does not exist", false),
            ("delete: container does not exist", true),
            ("container `one` does not exist", true),
            ("cannot open directory '/run/crun/one': No such file or directory", true),
        ] {
            let deleted = runtime(dir.path(), &format!("cat >&2 <<'end'\n{words}\nend\nexit 1")).delete(true);
            assert_eq!(deleted.is_ok(), is_gone, "{words}: {deleted:?}");
        }
    }

    #[test]
    fn a_container_that_may_belong_to_another_bundle_is_not_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().display();
        for (state, goes) in [
            (format!("echo '{{\"bundle\": \"{own}\"}}'"), true),
            ("echo '{\"bundle\": \"/of/another\"}'".to_owned(), false),
            ("echo container two does not exist >&2; exit 1".to_owned(), false),
            ("echo load: container does not exist >&2; exit 1".to_owned(), true),
            ("echo nothing that is JSON".to_owned(), false),
            ("echo the disk is busy >&2; exit 1".to_owned(), false),
        ] {
            let _absent = std::fs::remove_file(dir.path().join("deleted"));
            let answers = format!("case \" $* \" in *' state '*) {state};; esac");
            let deleted = runtime(dir.path(), &answers).delete_rest();
            assert_eq!(
                (deleted.is_ok(), dir.path().join("deleted").exists()),
                (goes, goes),
                "{state}: {deleted:?}"
            );
        }
    }
}
