//! Hooks: programs that the spec's author wants run at points of a container's life (`config.md`,
//! "POSIX-platform Hooks"). Each gets the state document on its standard input.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use linux::process::PidFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use types::spec::runtime::Hook;
use types::{Context, Error, Result};

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
    if let Some(mut stdin) = child.stdin.take() {
        // A hook that does not care for the state closes its input.
        let _ = stdin.write_all(state.to_string().as_bytes());
    }
    wait(&mut child, &pidfd, hook.timeout)
}

fn wait(child: &mut Child, pidfd: &PidFd, timeout_seconds: Option<i64>) -> Result<()> {
    let timeout =
        timeout_seconds.filter(|seconds| *seconds > 0).map(|tv_sec| Timespec { tv_sec, tv_nsec: 0 });
    let mut waited = [PollFd::new(pidfd, PollFlags::IN)];
    let ready = poll(&mut waited, timeout.as_ref()).map_err(io::Error::from).context(|| "wait for it")?;
    if ready == 0 {
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
