//! The supervisor of a seccomp filter: the process that listens at `seccomp.listenerPath`, and decides on the system
//! calls of the action `SCMP_ACT_NOTIFY` (`config-linux.md`, "The Container Process State").
//!
//! It gets one message for each process: the state document, with the listener's descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use linux::fd_passing::send_with_fd;
use linux::process::PidFd;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use types::spec::runtime::LinuxSeccomp;
use types::{Context, Error, Result};

/// Name of the descriptor in the message (`specs-go/state.go`).
const DESCRIPTOR: &str = "seccompFd";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Supervisor {
    pub path: PathBuf,
    pub metadata: String,
}

impl Supervisor {
    /// The supervisor of a profile; None if no rule asks one.
    pub(crate) fn of(profile: &LinuxSeccomp) -> Result<Option<Supervisor>> {
        let asks = profile.syscalls.iter().any(|rule| rule.action == "SCMP_ACT_NOTIFY");
        match (asks, profile.listener_path.is_empty()) {
            (true, true) => {
                Err(Error::invalid_argument("seccomp action SCMP_ACT_NOTIFY needs a listenerPath"))
            }
            (true, false) => Ok(Some(Supervisor {
                path: profile.listener_path.clone().into(),
                metadata: profile.listener_metadata.clone(),
            })),
            (false, true) if !profile.listener_metadata.is_empty() => {
                Err(Error::invalid_argument("seccomp listenerMetadata is of no use without a listenerPath"))
            }
            _ => Ok(None),
        }
    }

    /// Duplicates the listener out of a process, which has it under this number (pidfd_getfd(2)).
    pub(crate) fn listener_of(process: &PidFd, number: i32) -> Result<OwnedFd> {
        process.descriptor(number).context(|| "take the seccomp listener out of the process")
    }

    /// Sends the listener of process `pid` to the supervisor. `state` is the container's state document.
    pub(crate) fn hand_over(&self, pid: u32, listener: BorrowedFd<'_>, state: &Value) -> Result<()> {
        let what = || format!("hand the seccomp listener to {}", self.path.display());
        let message = serde_json::json!({
            "ociVersion": types::spec::runtime::VERSION,
            "fds": [DESCRIPTOR],
            "pid": pid,
            "metadata": self.metadata,
            "state": state,
        });
        // Programs that drive runc match on its words.
        let stream = UnixStream::connect(&self.path)
            .context(|| "failed to connect with seccomp agent specified in the seccomp profile")
            .context(what)?;
        send_with_fd(stream.as_fd(), message.to_string().as_bytes(), listener).context(what)
    }
}

#[cfg(test)]
mod tests {
    use types::spec::runtime::SeccompRule;

    use super::*;

    fn check(action: &str, path: &str, metadata: &str) -> Result<Option<Supervisor>> {
        Supervisor::of(&LinuxSeccomp {
            listener_path: path.into(),
            listener_metadata: metadata.into(),
            syscalls: vec![SeccompRule { action: action.into(), ..SeccompRule::default() }],
            ..LinuxSeccomp::default()
        })
    }

    #[test]
    fn a_notify_action_needs_a_listener_path() {
        assert!(check("SCMP_ACT_NOTIFY", "", "").is_err());
        assert!(check("SCMP_ACT_ERRNO", "", "x").is_err());
        assert_eq!(check("SCMP_ACT_ERRNO", "", "").unwrap(), None);
        assert_eq!(check("SCMP_ACT_NOTIFY", "/s", "x").unwrap().unwrap().metadata, "x");
    }
}
