//! Hooks: programs that the spec's author wants run at points of a container's life (`config.md`,
//! "POSIX-platform Hooks"). Each gets the state document on its standard input.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use linux::process::PidFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use types::spec::runtime::Hook;
use types::{Context, Error, Result};

/// In the order in which they come (`config.md`).
pub(crate) const NAMES: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// Runs hooks one after another; the first that fails ends it.
pub(crate) fn run(name: &str, hooks: &[Hook], state: &serde_json::Value) -> Result<()> {
    for (index, hook) in hooks.iter().enumerate() {
        run_one(hook, state).context(|| format!("run hook {name} #{index} ({})", hook.path))?;
    }
    Ok(())
}

/// Runs all hooks, whatever becomes of each, and returns what failed.
pub(crate) fn run_all(name: &str, hooks: &[Hook], state: &serde_json::Value) -> Vec<Error> {
    let failed = hooks.iter().filter_map(|hook| {
        run_one(hook, state).err().map(|error| error.context(format!("run hook {name} ({})", hook.path)))
    });
    failed.collect()
}

fn run_one(hook: &Hook, state: &serde_json::Value) -> Result<()> {
    let mut command = Command::new(&hook.path);
    if let [first, rest @ ..] = &hook.args[..] {
        command.arg0(first).args(rest);
    }
    let environment = hook.env.iter().map(|entry| entry.split_once('=').unwrap_or((entry, "")));
    command.env_clear().envs(environment);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().context(|| "start it")?;
    let pidfd = PidFd::open(child.id())?;
    if let Some(stdin) = child.stdin.take() {
        tell(stdin, state.to_string().as_bytes()).context(|| "write the state to its standard input")?;
    }
    wait(&mut child, &pidfd, hook.timeout)
}

/// Writes all of it into the pipe at once, so that a hook that reads slowly, or not at all, is not waited
/// for.
fn tell(stdin: ChildStdin, mut bytes: &[u8]) -> io::Result<()> {
    // A pipe of this size takes any document that a hook could make sense of.
    let _ = rustix::pipe::fcntl_setpipe_size(&stdin, bytes.len().max(4096));
    rustix::io::ioctl_fionbio(&stdin, true)?;
    while !bytes.is_empty() {
        match rustix::io::write(&stdin, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(rustix::io::Errno::INTR) => {}
            // A hook that does not care for the state closes its input.
            Err(rustix::io::Errno::PIPE) => return Ok(()),
            Err(rustix::io::Errno::AGAIN) => return Err(io::ErrorKind::FileTooLarge.into()),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn wait(child: &mut Child, pidfd: &PidFd, timeout_seconds: Option<i64>) -> Result<()> {
    let timeout =
        timeout_seconds.and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0);
    let timeout = timeout.map(Duration::from_secs);
    let ready = linux::process::wait_readable(pidfd.as_fd(), timeout).context(|| "wait for it")?;
    if !ready {
        let _ = pidfd.kill();
        let _ = child.wait();
        let seconds = timeout_seconds.unwrap_or_default();
        return Err(Error::deadline_exceeded(format!(
            "it ran longer than its timeout of {seconds} s and was killed"
        )));
    }
    let status = child.wait().context(|| "wait for it")?;
    if status.success() {
        return Ok(());
    }
    let words = child.stderr.take().map(OwnedFd::from).map(|stderr| first_bytes(&stderr)).unwrap_or_default();
    Err(Error::failed_precondition(format!("it ended with {status}: {}", words.trim())))
}

/// What is in the pipe now. A process that the hook left behind may hold it open, so nothing is awaited.
fn first_bytes(pipe: &OwnedFd) -> String {
    let mut buffer = [0; 2048];
    let mut readable = [PollFd::new(pipe, PollFlags::IN)];
    match poll(&mut readable, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
        Ok(1..) => {
            let len = rustix::io::read(pipe.as_fd(), &mut buffer).unwrap_or(0);
            String::from_utf8_lossy(&buffer[..len]).into_owned()
        }
        _ => String::new(),
    }
}
