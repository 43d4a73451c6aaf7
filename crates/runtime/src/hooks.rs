//! Hooks: programs that the spec's author wants run at points of a container's life (`config.md`,
//! "POSIX-platform Hooks"). Each gets the state document on its standard input.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use linux::process::PidFd;
use rustix::fs::MemfdFlags;
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
    // Not a pipe: a hook that has much to say would wait for somebody to read it.
    let words = rustix::fs::memfd_create("hook", MemfdFlags::CLOEXEC).map_err(io::Error::from);
    let words = words.context(|| "make a file for its words")?;
    let theirs = words.try_clone().context(|| "make a file for its words")?;
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(theirs);
    let mut child = command.spawn().context(|| "start it")?;
    let process = PidFd::open(child.id())?;
    let told = child.stdin.take().map_or(Ok(()), |stdin| tell(stdin, state.to_string().as_bytes()));
    if told.is_err() {
        process.end();
    }
    told.context(|| "write the state to its standard input")?;
    wait(&mut child, &process, hook.timeout, &words)
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

fn wait(child: &mut Child, process: &PidFd, timeout_seconds: Option<i64>, words: &OwnedFd) -> Result<()> {
    let timeout =
        timeout_seconds.and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0);
    let timeout = timeout.map(Duration::from_secs);
    let ready = linux::process::wait_readable(process.as_fd(), timeout).context(|| "wait for it")?;
    if !ready {
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
    let mut buffer = [0; 2048];
    let len = rustix::io::pread(words, &mut buffer, 0).unwrap_or(0);
    let words = String::from_utf8_lossy(&buffer[..len]);
    Err(Error::failed_precondition(format!("it ended with {status}: {}", words.trim())))
}
