//! A worker: a forked copy of the shim for operations that may block, while the loop goes on.
//!
//! ```text
//! loop ── fork ──▶ worker ── waits for a hook, criu, an external runtime ──▶ answer, exit
//!      ◀─────────── readable ────────────────────────────────────────────────┘
//! ```
//!
//! Processes that a worker makes are its own children, and become the shim's when the worker exits. Its answer is sent
//! before that: so the shim knows every process of a container before it can reap it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use linux::fd_passing::{receive_with_fd, send_with_fd};
use linux::process::{PidFd, kill_group, run_in_copy, wait_readable};
use prost::Message;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};
use types::{Context, Error, ErrorKind, Result};

use crate::oci::Stdio;
use crate::stdio::Ends;

/// Bytes of an answer.
const ANSWER_LEN_MAX: usize = 64 << 10;
/// Characters of an error; number of warnings, and characters of each. A character has up to four bytes.
const WORDS_MAX: usize = 8 << 10;
const WARNINGS_MAX: usize = 16;
const WARNING_LEN_MAX: usize = 512;

/// The result of a worker.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// Pid of the process that it made; 0 if it made none.
    pub pid: u32,
    pub warnings: Vec<String>,
    pub console: Option<OwnedFd>,
}

/// The answer on the wire: one message, with the console's descriptor.
#[derive(Clone, PartialEq, Message)]
struct Report {
    #[prost(uint32, tag = "1")]
    pid: u32,
    #[prost(string, repeated, tag = "2")]
    warnings: Vec<String>,
    /// Kind of the error; 0 for success.
    #[prost(int32, tag = "3")]
    code: i32,
    #[prost(string, tag = "4")]
    error: String,
    /// Always true, as an empty message cannot be told from the worker's end.
    #[prost(bool, tag = "5")]
    is_sent: bool,
}

/// The outcome of the work.
pub(crate) enum Answer {
    Done(Done),
    /// It failed; the worker has undone what it could.
    Failed(Error),
    /// The worker died half way, without an answer.
    Lost(Error),
}

impl Answer {
    fn lost() -> Answer {
        Answer::Lost(Error::new(ErrorKind::Aborted, "the worker process of the shim died"))
    }

    pub(crate) fn result(self) -> Result<Done> {
        match self {
            Answer::Done(done) => Ok(done),
            Answer::Failed(error) | Answer::Lost(error) => Err(error),
        }
    }
}

pub(crate) struct Worker {
    pid: u32,
    answer: OwnedFd,
}

impl AsFd for Worker {
    /// Readable once there is an answer.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.answer.as_fd()
    }
}

impl Worker {
    /// Starts work that needs no descriptors of the shim.
    pub(crate) fn begin(work: impl FnOnce() -> Result<Done>) -> Result<Worker> {
        Worker::begin_with(&[], Box::new(work))
    }

    /// Starts work that needs these descriptors.
    pub(crate) fn begin_with(
        kept: &[BorrowedFd<'_>],
        work: Box<dyn FnOnce() -> Result<Done> + '_>,
    ) -> Result<Worker> {
        let about = || "make a socket pair for a worker";
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(io::Error::from)
                .context(about)?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(io::Error::from).context(about)?;
        let kept: Vec<BorrowedFd<'_>> = kept.iter().copied().chain([theirs.as_fd()]).collect();
        let pid = run_in_copy(&kept, Box::new(|| tell(&theirs, work())))?;
        Ok(Worker { pid, answer: ours })
    }

    /// Starts work that makes a process with these streams, or with a terminal.
    pub(crate) fn begin_process(
        ends: Option<Ends>,
        work: impl FnOnce(Stdio) -> Result<Done>,
    ) -> Result<Worker> {
        let kept: Vec<BorrowedFd<'_>> = ends.iter().flat_map(Ends::each).collect();
        let work = || work(ends.as_ref().map(Ends::try_clone).transpose()?.into());
        Worker::begin_with(&kept, Box::new(work))
    }

    /// The answer; None while the worker is running.
    pub(crate) fn answer(&self) -> Option<Answer> {
        match receive_with_fd(self.answer.as_fd(), ANSWER_LEN_MAX) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Ok((bytes, console)) => Some(match Report::decode(bytes.as_slice()) {
                Ok(report) if !report.is_sent => Answer::lost(),
                Ok(Report { pid, warnings, code: 0, .. }) => Answer::Done(Done { pid, warnings, console }),
                Ok(report) => Answer::Failed(Error::new(ErrorKind::from_code(report.code), report.error)),
                Err(_) => Answer::lost(),
            }),
            Err(_) => Some(Answer::lost()),
        }
    }

    /// The answer of a worker that was reaped.
    pub(crate) fn last_answer(&self) -> Answer {
        self.answer().unwrap_or_else(Answer::lost)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Kills the worker, and the programs that it waits for.
    pub(crate) fn kill(&self) {
        kill_group(self.pid);
    }

    /// Waits for the end of a killed worker, after which its children are the shim's. Bounded, as the kernel may keep
    /// it alive.
    pub(crate) fn wait(&self) {
        const END_MAX: Duration = Duration::from_secs(1);
        if let Ok(process) = PidFd::open(self.pid) {
            let _held = wait_readable(process.as_fd(), Some(END_MAX));
        }
    }
}

/// Sends the answer. If that fails the shim is gone, and the worker exits too.
fn tell(shim: &OwnedFd, outcome: Result<Done>) {
    let (report, console) = match outcome {
        Ok(Done { pid, mut warnings, console }) => {
            warnings.truncate(WARNINGS_MAX);
            for warning in &mut warnings {
                *warning = warning.chars().take(WARNING_LEN_MAX).collect();
            }
            (Report { pid, warnings, is_sent: true, ..Report::default() }, console)
        }
        Err(error) => {
            let words = error.chain().chars().take(WORDS_MAX).collect();
            (Report { code: error.kind().code(), error: words, is_sent: true, ..Report::default() }, None)
        }
    };
    let bytes = report.encode_to_vec();
    let _gone = match console {
        Some(console) => send_with_fd(shim.as_fd(), &bytes, console.as_fd()),
        None => rustix::net::send(shim, &bytes, SendFlags::NOSIGNAL).map(drop).map_err(io::Error::from),
    };
}
