//! Stray shims, which no task uses: a daemon that dies after starting a shim and before recording its address leaves
//! one that waits for its first call forever.
//!
//! They are recognized by their command lines: our shims name the daemon that started them, by its address and by the
//! directory of their sockets. The same address with another state directory is another daemon. A process in a
//! container may have any command line, so only processes in the daemon's mount and PID namespaces count: containers
//! have a mount namespace of their own. A shim is stray if no task uses it and its bundle is known to be gone; then it
//! has no container, or has ended it already.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use types::{Context, Result};

use crate::Shims;
use crate::task::end_soon;

/// A shim of this daemon, found by its command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stray {
    pid: i32,
    namespace: String,
    id: String,
    socket: PathBuf,
}

impl fmt::Display for Stray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shim of {}/{}, process {}", self.namespace, self.id, self.pid)
    }
}

impl Stray {
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// The container that the shim was started for.
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// The running shims of the daemon with this address and directory of sockets. The daemon itself need not run. Blocks.
pub fn shims_of(address: &Path, sockets: &Path) -> Result<Vec<Stray>> {
    let mut shims = running(address)?;
    shims.retain(|shim| shim.socket.starts_with(sockets));
    Ok(shims)
}

fn running(address: &Path) -> Result<Vec<Stray>> {
    let home = namespaces("self").context(|| "read our own namespaces")?;
    let mut shims = Vec::new();
    for entry in fs::read_dir("/proc").context(|| "read /proc")? {
        let name = entry.context(|| "read /proc")?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        shims.extend(read(pid, &home, address));
    }
    Ok(shims)
}

impl Shims {
    /// The stray shims. Blocks, for up to a second in all if some of them are about to exit.
    pub fn strays(&self) -> Result<Vec<Stray>> {
        let config = self.config();
        let running = running(&config.grpc_address)?;
        // Queried second: a shim that was started in between has its task by now.
        let in_use: BTreeSet<PathBuf> = self.sockets();
        let is_stray = |stray: &Stray| {
            let has_no_bundle = |bundles: &PathBuf| {
                let bundle = bundles.join(&stray.namespace).join(&stray.id);
                bundle.try_exists().is_ok_and(|is_there| !is_there)
            };
            stray.socket.starts_with(&config.sockets)
                && !in_use.contains(&stray.socket)
                && has_no_bundle(&config.bundles)
                && has_no_bundle(&config.sandboxes)
        };
        let strays = running.into_iter().filter(is_stray);
        let (strays, pidfds): (Vec<Stray>, Vec<OwnedFd>) =
            strays.filter_map(|stray| self.open(&stray).map(|pidfd| (stray, pidfd))).unzip();
        let ended = end_soon(&pidfds);
        Ok(strays.into_iter().zip(ended).filter_map(|(stray, ended)| (!ended).then_some(stray)).collect())
    }

    /// The shim that listens on this socket.
    pub(crate) fn shim_at(&self, socket: &Path) -> Result<Option<Stray>> {
        let running = running(&self.config().grpc_address)?;
        Ok(running.into_iter().find(|shim| shim.socket == socket))
    }

    /// Kills a stray shim. No error if it is gone.
    pub fn end_stray(&self, stray: &Stray) -> Result<()> {
        let Some(pidfd) = self.open(stray) else { return Ok(()) };
        match pidfd_send_signal(&pidfd, Signal::KILL) {
            Err(Errno::SRCH) => Ok(()),
            sent => sent.map_err(io::Error::from).context(|| format!("kill {stray}")),
        }
    }

    /// A pidfd of the process, if it still is the one that was found.
    fn open(&self, stray: &Stray) -> Option<OwnedFd> {
        let pidfd = pidfd_open(Pid::from_raw(stray.pid)?, PidfdFlags::empty()).ok()?;
        // The pid may have been reused before `pidfd_open`; if the process still matches, it is the same one.
        let again = read(stray.pid, &namespaces("self").ok()?, &self.config().grpc_address);
        (again.as_ref() == Some(stray)).then_some(pidfd)
    }
}

/// The mount and PID namespaces of a process, as the kernel names them.
fn namespaces(process: &str) -> io::Result<[PathBuf; 2]> {
    let name = |kind| fs::read_link(format!("/proc/{process}/ns/{kind}"));
    Ok([name("mnt")?, name("pid")?])
}

fn read(pid: i32, home: &[PathBuf; 2], address: &Path) -> Option<Stray> {
    // Checked first: a container's process can make the read of its command line block forever.
    if namespaces(&pid.to_string()).ok()? != *home {
        return None;
    }
    let words = read_words(pid)?;
    let text = |flag| value(&words, flag).map(str::to_owned);
    let (namespace, id, socket) = (text("-namespace")?, text("-id")?, PathBuf::from(text("-socket")?));
    let is_ours = words.last().is_some_and(|word| word == "serve")
        && value(&words, "-address").map(Path::new) == Some(address);
    is_ours.then_some(Stray { pid, namespace, id, socket })
}

/// The command line of a process (proc_pid_cmdline(5)); `None` if the process is gone or the text is not UTF-8.
fn read_words(pid: i32) -> Option<Vec<String>> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    Some(text.trim_end_matches('\0').split('\0').map(str::to_owned).collect())
}

fn value<'a>(words: &'a [String], flag: &str) -> Option<&'a str> {
    let at = words.iter().position(|word| word == flag)?;
    words.get(at + 1).map(String::as_str)
}
