//! Hooks: programs of the spec that run at points of a container's life (`config.md`, "POSIX-platform Hooks"). Each
//! gets the state document on its standard input.
//!
//! The specification leaves some things open, in which this code follows runc: the working directory of a hook is the
//! bundle, or the root file system for those that run in the container's namespaces, and a hook without `env` has the
//! environment of the process that runs it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use linux::process::PidFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use types::spec::runtime::{Hook, Hooks};
use types::{Context, Error, Result};

use crate::steps::Steps;

/// In the order in which they run (`config.md`).
pub(crate) const NAMES: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// Refuses what the specification forbids: a path that is not absolute, a timeout that is not positive.
pub(crate) fn check(hooks: &Hooks) -> Result<()> {
    let lists = [
        &hooks.prestart,
        &hooks.create_runtime,
        &hooks.create_container,
        &hooks.start_container,
        &hooks.poststart,
        &hooks.poststop,
    ];
    for (name, list) in NAMES.iter().zip(lists) {
        for (index, hook) in list.iter().enumerate() {
            let bad = |why: String| Err(Error::invalid_argument(format!("hooks.{name}[{index}].{why}")));
            if !Path::new(&hook.path).is_absolute() {
                return bad(format!("path {:?} is not absolute", hook.path));
            }
            if let Some(timeout) = hook.timeout.filter(|timeout| *timeout <= 0) {
                return bad(format!(
                    "timeout {timeout} is no number of seconds to run; leave it out for no limit"
                ));
            }
        }
    }
    Ok(())
}

/// Runs hooks one after another in a directory; the first failure ends the run.
pub(crate) fn run(
    name: &str,
    hooks: &[Hook],
    at: &Path,
    state: &serde_json::Value,
    steps: &Steps,
) -> Result<()> {
    for (index, hook) in hooks.iter().enumerate() {
        let what = || format!("error running {name} hook #{index}: {}", hook.path);
        steps.tell(format_args!("run hook {name} #{index} ({})", hook.path));
        run_one(hook, at, state).context(what)?;
        steps.tell(format_args!("hook {name} #{index} has succeeded"));
    }
    Ok(())
}

/// Runs all hooks, even after a failure, and returns the failures. A directory that no longer exists is not changed to.
pub(crate) fn run_all(
    name: &str,
    hooks: &[Hook],
    at: &Path,
    state: &serde_json::Value,
    steps: &Steps,
) -> Vec<Error> {
    let at = if at.is_dir() { at } else { Path::new("/") };
    let failed = hooks.iter().filter_map(|hook| {
        let what = format!("run hook {name} ({})", hook.path);
        steps.tell(format_args!("{what}"));
        run_one(hook, at, state).err().map(|error| error.context(what))
    });
    failed.collect()
}

fn run_one(hook: &Hook, at: &Path, state: &serde_json::Value) -> Result<()> {
    let mut command = Command::new(&hook.path);
    command.current_dir(at);
    if let [first, rest @ ..] = &hook.args[..] {
        command.arg0(first).args(rest);
    }
    if !hook.env.is_empty() {
        let environment = hook.env.iter().map(|entry| entry.split_once('=').unwrap_or((entry, "")));
        command.env_clear().envs(environment);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    // A runtime in the foreground has blocked the signals that it forwards.
    linux::spawn::unblock_signals(&mut command);
    let mut child = command.spawn().context(|| "start it")?;
    let process = PidFd::open(child.id())?;
    let told = child.stdin.take().map_or(Ok(()), |stdin| tell(stdin, state.to_string().as_bytes()));
    if told.is_err() {
        process.end();
    }
    told.context(|| "write the state to its standard input")?;
    wait(&mut child, &process, hook.timeout)
}

/// Writes everything to the pipe at once, so that a hook that reads slowly, or not at all, does not block.
fn tell(stdin: ChildStdin, mut bytes: &[u8]) -> io::Result<()> {
    // Large enough for any document that a hook can use.
    let _ = rustix::pipe::fcntl_setpipe_size(&stdin, bytes.len().max(4096));
    rustix::io::ioctl_fionbio(&stdin, true)?;
    while !bytes.is_empty() {
        match rustix::io::write(&stdin, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            // A hook that ignores the state closes its input.
            Err(Errno::PIPE) => return Ok(()),
            Err(Errno::AGAIN) => return Err(io::ErrorKind::FileTooLarge.into()),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn wait(child: &mut Child, process: &PidFd, timeout_seconds: Option<i64>) -> Result<()> {
    // Values that are not positive were refused.
    let timeout = timeout_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let deadline = timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut words = Words::of(child)?;
    if !words.hear_until_end(process, deadline).context(|| "wait for it")? {
        process.end();
        let seconds = timeout_seconds.unwrap_or_default();
        return Err(Error::deadline_exceeded(format!(
            "it ran longer than its timeout of {seconds} s and was killed"
        )));
    }
    let status = child.wait().context(|| "wait for it")?;
    if status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&words.kept);
    Err(Error::failed_precondition(format!("it ended with {}: {}", how(status), words.trim())))
}

/// How a program ended, in runc's words, with the number of a signal beside its name.
fn how(status: ExitStatus) -> String {
    /// From signal 1 on (Go's package `syscall`).
    const SIGNALS: [&str; 31] = [
        "hangup",
        "interrupt",
        "quit",
        "illegal instruction",
        "trace/breakpoint trap",
        "aborted",
        "bus error",
        "floating point exception",
        "killed",
        "user defined signal 1",
        "segmentation fault",
        "user defined signal 2",
        "broken pipe",
        "alarm clock",
        "terminated",
        "stack fault",
        "child exited",
        "continued",
        "stopped (signal)",
        "stopped",
        "stopped (tty input)",
        "stopped (tty output)",
        "urgent I/O condition",
        "CPU time limit exceeded",
        "file size limit exceeded",
        "virtual timer expired",
        "profiling timer expired",
        "window changed",
        "I/O possible",
        "power failure",
        "bad system call",
    ];
    let Some(number) = status.signal() else { return status.to_string() };
    let name = usize::try_from(number - 1).ok().and_then(|at| SIGNALS.get(at));
    let core = if status.core_dumped() { " (core dumped)" } else { "" };
    match name {
        Some(name) => format!("signal: {name} ({number}){core}"),
        None => format!("signal: signal {number}{core}"),
    }
}

/// A hook's standard error: read to the end, so that the hook never blocks, of which the beginning is kept.
struct Words {
    pipe: OwnedFd,
    is_open: bool,
    kept: Vec<u8>,
}

impl Words {
    const KEPT_MAX: usize = 2048;

    fn of(child: &mut Child) -> Result<Words> {
        let pipe = OwnedFd::from(child.stderr.take().expect("it is a pipe"));
        rustix::io::ioctl_fionbio(&pipe, true).map_err(io::Error::from).context(|| "listen to it")?;
        Ok(Words { pipe, is_open: true, kept: Vec::new() })
    }

    /// Whether the hook ended before the deadline. A process that it left running may still write to the pipe, which
    /// breaks then.
    fn hear_until_end(&mut self, process: &PidFd, deadline: Option<Instant>) -> io::Result<bool> {
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left.map(Timespec::try_from).transpose().map_err(|_| io::ErrorKind::InvalidInput)?;
            let mut fds = vec![PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
            if self.is_open {
                fds.push(PollFd::new(&self.pipe, PollFlags::IN));
            }
            match poll(&mut fds, left.as_ref()) {
                Ok(0) => return Ok(false),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            let has_ended = !fds[0].revents().is_empty();
            self.hear()?;
            if has_ended {
                return Ok(true);
            }
        }
    }

    /// Reads once, so that the end of a hook that never stops writing is noticed in between.
    fn hear(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        match rustix::io::read(&self.pipe, &mut buffer) {
            Ok(0) => self.is_open = false,
            Ok(len) => {
                let room = Words::KEPT_MAX - self.kept.len();
                self.kept.extend_from_slice(&buffer[..len.min(room)]);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Hook {
        Hook {
            path: "/bin/sh".into(),
            args: ["sh", "-c", script].map(str::to_owned).to_vec(),
            ..Hook::default()
        }
    }

    fn run_here(name: &str, hook: Hook) -> Result<()> {
        run(name, &[hook], Path::new("/"), &serde_json::Value::Null, &Steps::default())
    }

    /// More than fits into a pipe.
    #[test]
    fn the_beginning_of_a_hooks_standard_error_is_kept() {
        let hook = shell("echo first >&2; head -c 1000000 /dev/zero | tr '\\0' x >&2; exit 3");
        let error = run_here("prestart", hook).unwrap_err().chain();
        assert!(
            error.contains("prestart hook #0: /bin/sh") && error.contains("exit status: 3: first"),
            "{error}"
        );
        let said = error.matches('x').count();
        assert!((2000..=Words::KEPT_MAX + 10).contains(&said), "{said}");
    }

    #[test]
    fn a_signal_that_ends_a_hook_has_its_name() {
        for (number, name) in [(1, "hangup"), (9, "killed"), (15, "terminated"), (31, "bad system call")] {
            let error =
                run_here("prestart", shell(&format!("ulimit -c 0; kill -{number} $$"))).unwrap_err().chain();
            assert!(error.contains(&format!("it ended with signal: {name} ({number}): ")), "{error}");
        }
        assert_eq!(how(ExitStatus::from_raw(34)), "signal: signal 34");
        assert_eq!(how(ExitStatus::from_raw(0x80 | 11)), "signal: segmentation fault (11) (core dumped)");
    }

    /// As with runc, which blocks none.
    #[test]
    fn a_hook_begins_with_no_signal_blocked() {
        // In a thread of its own, as the mask is inherited.
        let ended = std::thread::spawn(|| {
            let _blocked = linux::signal::forwarded_signals().unwrap();
            run_here("prestart", shell("kill $$")).map_err(|error| error.chain())
        });
        let error = ended.join().unwrap().unwrap_err();
        assert!(error.contains("it ended with signal: terminated (15)"), "{error}");
    }

    /// A process that inherited standard error is not waited for.
    #[test]
    fn a_process_that_a_hook_leaves_behind_is_not_waited_for() {
        let pid = tempfile::NamedTempFile::new().unwrap();
        let hook = shell(&format!("sleep 1000 & echo $! > {}", pid.path().display()));
        run_here("poststart", hook).unwrap();
        let left = std::fs::read_to_string(pid.path()).unwrap();
        PidFd::open(left.trim().parse().unwrap()).unwrap().kill().unwrap();
    }
}
