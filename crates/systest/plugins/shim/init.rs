//! `init ROOT CWD UID GID STDIN PROGRAM [ARGUMENT...]`: becomes a process of the container.
//!
//! Its environment, output and errors are the container's already. Its standard input is the gate, a socket to the shim, at
//! which it waits to be started. Then it becomes the program, which closes the gate, or says there why it cannot.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

use types::{Context, Error, Result};

pub(crate) fn init(words: &[OsString]) -> Result<()> {
    // Signals of the shim's terminal, if it has one, must not reach the process.
    rustix::process::setsid().map_err(std::io::Error::from).context(|| "begin a session")?;
    let gate = std::io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from);
    let mut gate = gate.context(|| "take the gate")?;
    // If the shim dies before, its end of the gate closes.
    gate.read_exact(&mut [0]).context(|| "wait to be started")?;
    let Err(error) = become_program(words);
    gate.write_all(error.chain().as_bytes()).context(|| "tell the shim")?;
    Err(error)
}

fn become_program(words: &[OsString]) -> Result<Infallible> {
    let [root, cwd, uid, gid, stdin, program, arguments @ ..] = words else {
        return Err(Error::invalid_argument("init is called by the shim: too few words"));
    };
    // Opened before the root is entered, where these paths may be missing.
    let stdin = if stdin.is_empty() { OsStr::new("/dev/null") } else { stdin };
    let stdin = File::open(stdin).context(|| format!("open {}", stdin.display()))?;
    let about = || format!("enter {}", root.display());
    rustix::process::chroot(root.as_os_str()).map_err(std::io::Error::from).context(about)?;
    std::env::set_current_dir("/").context(about)?;
    std::env::set_current_dir(cwd).context(|| format!("enter {} in the container", cwd.display()))?;
    let mut command = Command::new(program);
    command.args(arguments).uid(number(uid)?).gid(number(gid)?).stdin(stdin);
    // Found in the container's PATH, since environment and root are the container's.
    Err(command.exec()).context(|| format!("run {}", program.display()))
}

fn number(word: &OsStr) -> Result<u32> {
    let parsed = word.to_str().and_then(|word| word.parse().ok());
    parsed.ok_or_else(|| Error::invalid_argument(format!("{} is no id", word.display())))
}
