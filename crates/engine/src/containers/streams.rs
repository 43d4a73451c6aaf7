//! The streams of a container: what it writes is logged, and goes to whoever looks; what it reads comes from those who type.
//!
//! ```text
//! those who type ─▶ their pipes ─┐
//! ROOT/…/ID/stdin, held open ────┴▶ shim ─▶ container ─▶ shim ─┬▶ json.log
//!                                                             └▶ pipes of those who look
//! ```
//!
//! The bytes pass nothing of the daemon. Those who look and type come and go; whoever starts the container may be the
//! first of them, and misses nothing of it.

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

/// Of a part of a URI all but what stands for itself anywhere (RFC 3986, "Unreserved Characters"), and the slashes of
/// paths.
const PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

impl Engine {
    /// Where the streams of a container that starts go.
    pub(super) fn io(&self, id: &str, extension: &Extension, streams: &Streams) -> Result<Io> {
        // What is not kept goes to those who look alone.
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

    /// A pipe into which nobody writes, and which the shim holds open: the input of a container for those who come later.
    fn input_of_nobody(&self, id: &str) -> Result<PathBuf> {
        let path = self.files(id).join("stdin");
        match mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
            Ok(()) | Err(Errno::EXIST) => Ok(path),
            Err(errno) => {
                Err(io::Error::from(errno)).context(|| format!("make a pipe at {}", path.display()))
            }
        }
    }

    /// Lets somebody look at a container that runs, and type, if it has an input.
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

/// A pipe of a client who does not come again: whoever writes to it goes on when the client has left.
pub(crate) fn once(pipe: &str) -> String {
    if pipe.is_empty() { String::new() } else { format!("fifo://{}?once", utf8_percent_encode(pipe, PART)) }
}
