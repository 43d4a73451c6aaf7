//! The streams of a container: its output goes to the log and to attached clients; attached clients write its input.
//!
//! ```text
//! clients' stdin pipes ──────────┐
//! ROOT/…/ID/stdin, held open ────┴▶ shim ─▶ container ─▶ shim ─┬▶ json.log
//!                                                             └▶ clients' stdout and stderr pipes
//! ```
//!
//! The daemon does not touch the bytes. Clients attach and detach at any time; a client that attaches as it starts the
//! container misses no output.

use std::io;
use std::path::PathBuf;

use api::engine::Streams;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::io::Errno;
use serde_json::{Value, json};
use task::Io;
use types::{Context, Error, ErrorKind, Result};

use super::Phase;
use super::log_driver::{self, Limits};
use crate::Engine;
use crate::logs::LOG_FILE;
use crate::record::Extension;

/// Percent-encodes a path in a URI: everything except unreserved characters (RFC 3986, 2.3) and slashes.
const PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

impl Engine {
    /// Where the streams of a container that is being started are connected.
    pub(super) fn io(&self, id: &str, extension: &Extension, streams: &Streams) -> Result<Io> {
        // Without a log, only attached clients see the output.
        let (log, limits) = match log_driver::limits(&extension.create.extras.log)? {
            Some(Limits { size, files }) => {
                (self.files(id).join(LOG_FILE), format!("max-size={size}&max-file={files}"))
            }
            None => ("/dev/null".into(), String::new()),
        };
        let target = |attach: &str| {
            let attach = if attach.is_empty() {
                String::new()
            } else {
                format!("&attach={}", utf8_percent_encode(attach, PART))
            };
            format!("json-file://{}?{limits}{attach}", log.display())
        };
        let terminal = extension.create.tty;
        let stdin = if streams.stdin.is_empty() && extension.create.interactive {
            self.input_of_nobody(id)?.display().to_string()
        } else {
            streams.stdin.clone()
        };
        Ok(Io {
            stdin,
            stdout: target(&streams.stdout),
            stderr: if terminal { String::new() } else { target(&streams.stderr) },
            terminal,
        })
    }

    /// A named pipe that the shim holds open and into which the daemon never writes: stdin for clients that attach
    /// later.
    fn input_of_nobody(&self, id: &str) -> Result<PathBuf> {
        let path = self.files(id).join("stdin");
        match mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
            Ok(()) | Err(Errno::EXIST) => Ok(path),
            Err(errno) => {
                Err(io::Error::from(errno)).context(|| format!("make a pipe at {}", path.display()))
            }
        }
    }

    /// Attaches a client to a running container: its output, and its input if it has one.
    pub(crate) async fn attach(&self, text: &str, streams: Streams) -> Result<Value> {
        let (container, extension) = self.find_own(text).await?;
        let name = &extension.name;
        let refused =
            |why: &str, what: &str| Error::failed_precondition(format!("container {name} {why}: {what}"));
        match self.state_of(&container.id, &extension).await.phase {
            Phase::Running | Phase::Unknown => {}
            Phase::Paused => return Err(refused("is paused", "unpause it before attaching to it")),
            Phase::Restarting => return Err(refused("is being started again", "attach to it when it runs")),
            Phase::Created | Phase::Exited => {
                return Err(refused("does not run", "start it, or use `hoist start -a`"));
            }
        }
        let Streams { stdin, stdout, stderr } = streams;
        let attached = self.running(&container.id)?.attach(stdin, stdout, stderr).await;
        if attached.is_ok() {
            self.tell(&container.id, "attach", &[]);
        }
        attached.map(|()| json!({})).map_err(|error| {
            let error = match error.kind() {
                ErrorKind::Unimplemented => {
                    error.context("its shim is of an earlier version, until it is started again")
                }
                _ => error,
            };
            error.context(format!("attach to container {name}"))
        })
    }
}

/// The URI of a client's pipe that is not reopened: the shim goes on when the client has left.
pub(crate) fn once(pipe: &str) -> String {
    if pipe.is_empty() { String::new() } else { format!("fifo://{}?once", utf8_percent_encode(pipe, PART)) }
}
