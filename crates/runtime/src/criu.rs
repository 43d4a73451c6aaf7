//! criu, the program that dumps and restores processes, and its RPC protocol (`images/rpc.proto` of criu).
//!
//! ```text
//! runtime ── clone ─▶ child ── exec ─▶ criu swrk N
//!    │ request ────────────────────▶ │
//!    │ ◀──────────── notification(s) │   criu waits for each to be acknowledged
//!    │ acknowledgement ────────────▶ │
//!    │ ◀─────────────────── response │
//! ```
//!
//! One criu serves one request. The processes that it restores are children of the caller, criu's siblings.

mod messages;

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use linux::fd_passing::receive_with_fd;
use linux::process::{self, Cloned, ExitStatus, PidFd, clone_process};
use prost::Message as _;
use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
use types::{Context, Error, ErrorKind, Result};

pub use self::messages::CgroupMode;
pub(crate) use self::messages::{
    CgroupRoot, ExternalMount, Features, InheritedFd, JoinedNamespace, Kind, Options, PageServer, Request,
    Response,
};
use crate::channel::{Channel, Message};

/// Major, minor. Older versions lack features that this code relies on: external pid namespaces, the freezer of version
/// 2, security labels given at restore.
const VERSION_MIN: (i32, i32) = (3, 16);

/// Bytes of one message.
const MESSAGE_LEN_MAX: usize = 64 << 10;

/// A notification of criu's.
pub(crate) struct Notice {
    /// The step that criu is at: `setup-namespaces`, `post-restore`, `orphan-pts-master`, …
    pub(crate) step: String,
    /// The first process, in the caller's pid namespace; 0 while there is none.
    pub(crate) pid: u32,
    /// The master of a restored terminal.
    pub(crate) descriptor: Option<OwnedFd>,
}

/// The cloned process that will execute criu.
pub(crate) struct ClonedCriu {
    pub(crate) pid: u32,
    process: Process,
    channel: Channel,
}

/// A running criu, waiting for its request.
pub(crate) struct Criu {
    process: Process,
    socket: OwnedFd,
}

/// Killed and reaped when dropped.
struct Process(PidFd);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended and been reaped already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Options of the clone that becomes criu.
#[derive(Default)]
pub(crate) struct CloneOptions<'a> {
    /// Namespaces to make (`CLONE_NEW…`).
    pub(crate) namespaces: u64,
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// Descriptors that criu inherits under the same numbers.
    pub(crate) inherited: &'a [BorrowedFd<'a>],
    /// Directories that criu inherits, reopened in its own mount namespace.
    pub(crate) dirs: Option<&'a mut ImageDirs>,
}

impl ClonedCriu {
    /// Lets the child execute criu, and returns once it has.
    pub(crate) fn execute(self) -> Result<Criu> {
        self.channel.send(&Message::Go)?;
        let socket = match self.channel.receive()? {
            Some(Message::Socket(socket)) => socket,
            Some(Message::Failed(kind, words)) => return Err(Error::new(kind, words)),
            _ => {
                return Err(Error::internal(
                    "the process that was to execute criu sent an unexpected message",
                ));
            }
        };
        match self.channel.receive()? {
            // End of file: the channel is close-on-exec, so criu was executed.
            None => Ok(Criu { process: self.process, socket }),
            Some(Message::Failed(kind, words)) => Err(Error::new(kind, words)),
            Some(_) => {
                Err(Error::internal("the process that was to execute criu sent an unexpected message"))
            }
        }
    }
}

impl Criu {
    /// Starts a criu to ask for its version; `FailedPrecondition` if it is missing or too old.
    pub(crate) fn check() -> Result<()> {
        let response = Criu::answer(&Request::new(Kind::Version)).context(|| "ask criu for its version")?;
        let version = response.version.unwrap_or_default();
        let found = (version.major, version.minor);
        if found < VERSION_MIN {
            return Err(Error::failed_precondition(format!(
                "criu {}.{} is installed; {}.{} is the oldest that will do",
                found.0, found.1, VERSION_MIN.0, VERSION_MIN.1
            )));
        }
        Ok(())
    }

    /// Asks whether criu and this kernel have these features; `FailedPrecondition` if one is missing.
    pub(crate) fn check_features(wanted: Features) -> Result<()> {
        let request = Request { features: Some(wanted), ..Request::new(Kind::FeatureCheck) };
        let found =
            Criu::answer(&request).context(|| "ask criu what it can do")?.features.unwrap_or_default();
        let lacks = |wanted: Option<bool>, found: Option<bool>| wanted == Some(true) && found != Some(true);
        if lacks(wanted.mem_track, found.mem_track) {
            return Err(Error::failed_precondition("criu cannot track changes of memory on this kernel"));
        }
        if lacks(wanted.lazy_pages, found.lazy_pages) {
            return Err(Error::failed_precondition("criu cannot restore memory lazily on this kernel"));
        }
        Ok(())
    }

    fn answer(request: &Request) -> Result<Response> {
        let criu = Criu::clone(CloneOptions::default(), || Ok(()))?.execute()?;
        let response = criu.ask(request, |_| Ok(()))?;
        criu.finish()?;
        Ok(response)
    }

    /// Clones the process that will be criu. Once [`ClonedCriu::execute`] is called, the child runs `prepare` and
    /// executes criu.
    ///
    /// The calling process must have a single thread.
    pub(crate) fn clone(
        options: CloneOptions<'_>,
        prepare: impl FnOnce() -> Result<()>,
    ) -> Result<ClonedCriu> {
        let program = find_program()?;
        let (channel, theirs) = Channel::pair()?;
        // SAFETY: the caller has a single thread (the documentation demands it), and the child ends in
        // `child`, which never returns.
        #[expect(unsafe_code, reason = "what criu restores must be prepared in namespaces of criu's own")]
        let cloned = unsafe { clone_process(options.namespaces, options.cgroup) }?;
        match cloned {
            Cloned::Child => {
                drop(channel);
                child(&program, options, &theirs, prepare)
            }
            Cloned::Parent { pid, pidfd } => Ok(ClonedCriu { pid, process: Process(pidfd), channel }),
        }
    }

    /// Sends the request, and acknowledges notifications until criu responds.
    ///
    /// `Unknown` if criu reports a failure.
    pub(crate) fn ask(
        &self,
        request: &Request,
        mut notified: impl FnMut(Notice) -> Result<()>,
    ) -> Result<Response> {
        let mut converse = || -> Result<Response> {
            self.send(request)?;
            loop {
                let (response, descriptor) = self.receive()?;
                if response.kind() != Kind::Notify || !response.success {
                    return Ok(response);
                }
                let notify = response.notify.unwrap_or_default();
                notified(Notice {
                    step: notify.script.unwrap_or_default(),
                    pid: notify.pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
                    descriptor,
                })?;
                self.send(&Request { notify_success: Some(true), ..Request::new(Kind::Notify) })?;
            }
        };
        let response = converse()?;
        if response.success {
            return Ok(response);
        }
        let words = response.cr_errmsg.clone().unwrap_or_default();
        let errno = io::Error::from_raw_os_error(response.cr_errno.unwrap_or(0));
        let why = match (words.trim(), response.cr_errno) {
            ("", None | Some(0)) => String::new(),
            ("", Some(_)) => format!(": {errno}"),
            (words, _) => format!(": {words}"),
        };
        Err(Error::new(ErrorKind::Unknown, format!("criu failed{why}")))
    }

    fn send(&self, request: &Request) -> Result<()> {
        send(&self.socket, &request.encode_to_vec(), SendFlags::NOSIGNAL)
            .map_err(io::Error::from)
            .map(drop)
            .context(|| "send a request to criu")
    }

    fn receive(&self) -> Result<(Response, Option<OwnedFd>)> {
        let (bytes, descriptor) =
            receive_with_fd(self.socket.as_fd(), MESSAGE_LEN_MAX).context(|| "receive from criu")?;
        if bytes.is_empty() {
            return Err(Error::new(
                ErrorKind::Unknown,
                "criu ended without an answer; what it cannot do on this kernel says: criu check",
            ));
        }
        let response = Response::decode(&bytes[..])
            .map_err(|error| Error::internal("criu sent an invalid message").with_source(error))?;
        Ok((response, descriptor))
    }

    /// Waits for a criu that has responded to exit.
    pub(crate) fn finish(self) -> Result<ExitStatus> {
        let Criu { process, socket } = self;
        // After a pre-dump criu waits for more requests; closing the socket ends it.
        drop(socket);
        process.0.wait()
    }
}

fn child(
    program: &CString,
    options: CloneOptions<'_>,
    channel: &Channel,
    prepare: impl FnOnce() -> Result<()>,
) -> ! {
    let run = || -> Result<Error> {
        match channel.receive()? {
            Some(Message::Go) => {}
            _ => return Err(Error::aborted("the parent went away")),
        }
        prepare()?;
        if let Some(dirs) = options.dirs {
            dirs.reopen()?;
        }
        // Made in the child, as criu looks up descriptors of a request in the process that made its socket.
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(io::Error::from)
                .context(|| "make a socket pair")?;
        for fd in options.inherited.iter().copied().chain([ours.as_fd()]) {
            rustix::io::fcntl_setfd(fd, FdFlags::empty())
                .map_err(io::Error::from)
                .context(|| "keep a descriptor open for criu")?;
        }
        channel.send(&Message::Socket(theirs))?;
        let number = CString::new(ours.as_raw_fd().to_string()).expect("digits");
        let args = [c"criu".to_owned(), c"swrk".to_owned(), number];
        let environment = std::env::vars_os()
            .filter_map(|(key, value)| CString::new([key.into_vec(), value.into_vec()].join(&b'=')).ok());
        process::reset_signals();
        let error = process::execute(program, &args, &environment.collect::<Vec<_>>());
        Ok(Error::new(error.kind().into(), "execute criu").with_source(error))
    };
    let error = run().unwrap_or_else(|error| error);
    let _ = channel.send(&Message::Failed(error.kind(), error.chain()));
    process::exit_now(1)
}

/// The path of criu, looked up in the caller's `PATH`.
fn find_program() -> Result<CString> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    let found = linux::search::find("criu", &path).ok_or_else(|| {
        Error::failed_precondition(format!(
            "criu is not installed (not found in {}); install it, for instance: apt-get install criu",
            path.to_string_lossy()
        ))
    })?;
    CString::new(found.into_os_string().into_vec())
        .map_err(|_| Error::invalid_argument("the path of criu has a zero byte"))
}

/// The directories of a request: that of the images, and that of the log.
pub(crate) struct ImageDirs {
    pub(crate) images: OwnedFd,
    pub(crate) work: Option<OwnedFd>,
    paths: (PathBuf, Option<PathBuf>),
    log: PathBuf,
}

impl ImageDirs {
    /// Opens the directories; makes that of the log if it is missing.
    pub(crate) fn open(images: &Path, work: Option<&Path>, log: &str) -> Result<ImageDirs> {
        let opened = open_dir(images)?;
        let work_dir = match work {
            Some(work) => {
                make_dir(work)?;
                Some(open_dir(work)?)
            }
            None => None,
        };
        let paths = (images.to_owned(), work.map(Path::to_owned));
        Ok(ImageDirs { images: opened, work: work_dir, paths, log: work.unwrap_or(images).join(log) })
    }

    /// Reopens the directories under the same numbers in the mount namespace of the calling process, to be inherited by
    /// criu, which mounts inside them.
    fn reopen(&mut self) -> Result<()> {
        let put = |path: &Path, at: &mut OwnedFd| {
            rustix::io::dup2(&open_dir(path)?, at)
                .map_err(io::Error::from)
                .context(|| "keep a directory open")
        };
        put(&self.paths.0, &mut self.images)?;
        match (&self.paths.1, &mut self.work) {
            (Some(path), Some(at)) => put(path, at),
            _ => Ok(()),
        }
    }

    /// Adds the first error of criu's log to an error, and the log's path.
    pub(crate) fn explain(&self, error: Error) -> Error {
        let log = self.log.display();
        match first_complaint(&self.log) {
            Some(words) => error.context(format!("{words} (see {log})")),
            None => error.context(format!("see {log}")),
        }
    }
}

pub(crate) fn make_dir(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    // Images hold the memory of processes: only the owner may read them.
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .context(|| format!("make {}", path.display()))
}

fn open_dir(path: &Path) -> Result<OwnedFd> {
    let file = fs::File::open(path).context(|| format!("open {}", path.display()))?;
    let is_dir = file.metadata().context(|| format!("look at {}", path.display()))?.is_dir();
    if is_dir {
        Ok(file.into())
    } else {
        Err(Error::failed_precondition(format!("{} is not a directory", path.display())))
    }
}

/// The first error in the log: later ones follow from it.
fn first_complaint(log: &Path) -> Option<String> {
    let text = fs::read(log).ok()?;
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find(|line| line.contains("Error (criu/") || line.contains("Error ("))?;
    let words = line.find("Error (").map_or(line, |at| &line[at..]);
    Some(words.trim().to_owned())
}
