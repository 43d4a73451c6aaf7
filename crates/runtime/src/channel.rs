//! The protocol between parent and child from clone to exec.
//!
//! A pair of `SOCK_SEQPACKET` sockets; each message is one packet: a letter, then its text. A process in the container
//! that may trace the child can take the child's descriptor (ptrace(2), pidfd_getfd(2)). So the parent asks the kernel
//! who sent a message (`SO_PASSCRED`), and accepts only those of the process that it made.
//!
//! ```text
//! parent                          child
//!   Go ───────────────────────────▶        identity maps are written, if there are any
//!   Cgroup (+ fds) ───────────────▶        files to enter its cgroup by, which was made and limited meanwhile
//!   Filter (+ fd) ────────────────▶        the seccomp filter, compiled meanwhile
//!        ◀──────────── RunHooks            mounts are done, the root is not changed yet
//!   Go ───────────────────────────▶
//!        ◀──────────── Console (+ fd)      with a terminal
//!        ◀──────────── Warning …           something was left out
//!        ◀──────────── Listener            the number of the seccomp listener, if the filter has a supervisor
//!   Go ───────────────────────────▶        the supervisor has the listener
//!        ◀──────────── Ready | Failed      waits to be started | exits
//! ```
//!
//! In exec the intermediate process speaks first; `Pid` is its last message. Then the process itself speaks.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use linux::fd_passing::{ask_for_senders, receive, send_with_fds};
use linux::process::wait_readable;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};
use types::{Context, Error, ErrorKind, Result};

/// Bytes. Longer texts are cut off.
const MESSAGE_LEN_MAX: usize = 8192;

/// How many messages are searched for a failure: a child sends a few warnings before it.
const DRAINED_MAX: usize = 64;

#[derive(Debug)]
pub(crate) enum Message {
    Go,
    /// The `tasks` files by which the child enters its cgroup, one for each hierarchy of version 1.
    Cgroup(Vec<OwnedFd>),
    /// The file with the compiled seccomp filter.
    Filter(OwnedFd),
    RunHooks,
    Console(OwnedFd),
    Warning(String),
    /// The number of the seccomp listener's descriptor in the child (seccomp_unotify(2)).
    Listener(i32),
    /// From the intermediate child of exec: the pid of the process, which is a child of the receiver.
    Pid(u32),
    /// From the process that becomes criu: the socket of its RPC service.
    Socket(OwnedFd),
    Ready,
    Failed(ErrorKind, String),
}

/// One end of the socket pair.
pub(crate) struct Channel {
    socket: OwnedFd,
    /// The only process whose messages are accepted; any if none.
    accepted_sender: Option<u32>,
    /// Until when `receive` waits.
    deadline: Option<Instant>,
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Channel {
    pub(crate) fn pair() -> Result<(Channel, Channel)> {
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(io::Error::from)
            .context(|| "make a socket pair")?;
        ask_for_senders(one.as_fd()).context(|| "ask for who speaks")?;
        let end = |socket| Channel { socket, accepted_sender: None, deadline: None };
        Ok((end(one), end(other)))
    }

    /// From now on messages of any other process are errors. Only for the first end of a pair.
    pub(crate) fn accept_only_from(&mut self, pid: u32) {
        self.accepted_sender = Some(pid);
    }

    pub(crate) fn send(&self, message: &Message) -> Result<()> {
        self.try_send(message).context(|| "send to the peer process")
    }

    /// As [`Channel::send`], but a peer that has ended is no error: its last messages are still to be read.
    pub(crate) fn send_unless_closed(&self, message: &Message) -> Result<()> {
        match self.try_send(message) {
            Err(error)
                if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
            {
                Ok(())
            }
            other => other.context(|| "send to the peer process"),
        }
    }

    fn try_send(&self, message: &Message) -> io::Result<()> {
        let (bytes, fds) = encode(message);
        match &fds[..] {
            [] => Ok(rustix::net::send(&self.socket, &bytes, SendFlags::NOSIGNAL).map(drop)?),
            fds => send_with_fds(self.socket.as_fd(), &bytes, fds),
        }
    }

    /// From now on [`Channel::receive`] waits for this long in total; then it fails with `DeadlineExceeded`.
    pub(crate) fn limit(&mut self, limit: Duration) {
        self.deadline = Some(Instant::now() + limit);
    }

    /// Announces a filter's listener, and waits until the supervisor has it.
    pub(crate) fn announce_listener(&self, listener: BorrowedFd<'_>) -> io::Result<()> {
        self.write(&Message::Listener(listener.as_raw_fd()))?;
        self.wait_for_go()
    }

    /// Sends a message without descriptors from under a filter: with write(2), the one system call that no filter may
    /// pass to its supervisor. The caller handles SIGPIPE.
    pub(crate) fn write(&self, message: &Message) -> io::Result<()> {
        let (bytes, _) = encode(message);
        rustix::io::write(&self.socket, &bytes)?;
        Ok(())
    }

    /// Waits for [`Message::Go`], the only message that can come: with read(2), which works under every filter too.
    pub(crate) fn wait_for_go(&self) -> io::Result<()> {
        match rustix::io::read(&self.socket, &mut [0; 16])? {
            0 => Err(io::ErrorKind::BrokenPipe.into()),
            _ => Ok(()),
        }
    }

    /// Why the peer, which has ended, did not do its work: its own last failure, or else `error`.
    pub(crate) fn explain(mut self, error: Error) -> Error {
        self.last_failure().unwrap_or(error)
    }

    /// The failure that the peer, which has ended, reported before.
    fn last_failure(&mut self) -> Option<Error> {
        // A process that the kernel does not let die yet is not waited for here.
        self.limit(Duration::from_millis(1));
        for _ in 0..DRAINED_MAX {
            if let Message::Failed(kind, words) = self.receive().ok()?? {
                return Some(Error::new(kind, words));
            }
        }
        None
    }

    /// `None` once the peer has closed its end.
    pub(crate) fn receive(&self) -> Result<Option<Message>> {
        let what = || "receive from the peer process";
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            if !wait_readable(self.socket.as_fd(), Some(left)).context(what)? {
                return Err(Error::deadline_exceeded("no message from the new process"));
            }
        }
        let mut buffer = [0; MESSAGE_LEN_MAX];
        let received = receive(self.socket.as_fd(), &mut buffer).context(what)?;
        if received.len == 0 {
            return Ok(None);
        }
        if let Some(accepted_sender) = self.accepted_sender
            && received.sender != Some(accepted_sender)
        {
            return Err(Error::permission_denied("a message came from another process than the new one"));
        }
        decode(&buffer[..received.len], received.fds)
            .map(Some)
            .ok_or_else(|| Error::internal("the peer process sent an invalid message"))
    }
}

fn encode(message: &Message) -> (Vec<u8>, Vec<BorrowedFd<'_>>) {
    let text = |letter: u8, text: &str| {
        let mut bytes = vec![letter];
        bytes.extend(text.bytes().take(MESSAGE_LEN_MAX - 16));
        bytes
    };
    match message {
        Message::Go => (text(b'G', ""), Vec::new()),
        Message::Cgroup(cgroup_fds) => {
            (text(b'D', &cgroup_fds.len().to_string()), cgroup_fds.iter().map(AsFd::as_fd).collect())
        }
        Message::Filter(fd) => (text(b'P', ""), vec![fd.as_fd()]),
        Message::RunHooks => (text(b'H', ""), Vec::new()),
        Message::Console(fd) => (text(b'C', ""), vec![fd.as_fd()]),
        Message::Warning(words) => (text(b'W', words), Vec::new()),
        Message::Listener(number) => (text(b'L', &number.to_string()), Vec::new()),
        Message::Pid(pid) => (text(b'B', &pid.to_string()), Vec::new()),
        Message::Socket(fd) => (text(b'S', ""), vec![fd.as_fd()]),
        Message::Ready => (text(b'R', ""), Vec::new()),
        Message::Failed(kind, words) => (text(b'F', &format!("{}:{words}", kind.code())), Vec::new()),
    }
}

fn decode(bytes: &[u8], mut fds: Vec<OwnedFd>) -> Option<Message> {
    let (letter, text) = bytes.split_first()?;
    let text = String::from_utf8_lossy(text);
    Some(match letter {
        b'G' => Message::Go,
        // A process with some of the files missing would stay outside of some of its cgroups.
        b'D' => (text.parse() == Ok(fds.len())).then_some(Message::Cgroup(fds))?,
        b'P' => Message::Filter(fds.pop()?),
        b'H' => Message::RunHooks,
        b'C' => Message::Console(fds.pop()?),
        b'W' => Message::Warning(text.into_owned()),
        b'L' => Message::Listener(text.parse().ok()?),
        b'B' => Message::Pid(text.parse().ok()?),
        b'S' => Message::Socket(fds.pop()?),
        b'R' => Message::Ready,
        b'F' => {
            let (code, words) = text.split_once(':')?;
            Message::Failed(ErrorKind::from_code(code.parse().ok()?), words.to_owned())
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::event::{PollFd, PollFlags};

    use super::*;

    #[test]
    fn messages_arrive_as_they_were_sent() {
        let (one, mut other) = Channel::pair().unwrap();
        one.send(&Message::Failed(ErrorKind::NotFound, "no such: file".into())).unwrap();
        one.send(&Message::Console(rustix::io::dup(io::stdout()).unwrap())).unwrap();
        let Some(Message::Failed(kind, words)) = other.receive().unwrap() else { panic!() };
        assert_eq!((kind, words.as_str()), (ErrorKind::NotFound, "no such: file"));
        assert!(matches!(other.receive().unwrap(), Some(Message::Console(_))));
        other.limit(Duration::from_millis(1));
        assert_eq!(other.receive().unwrap_err().kind(), ErrorKind::DeadlineExceeded);
        // A limit that a busy machine does not reach.
        other.limit(Duration::from_secs(60));
        let cgroup_fds = vec![rustix::io::dup(io::stdout()).unwrap(), rustix::io::dup(io::stdout()).unwrap()];
        one.send(&Message::Cgroup(cgroup_fds)).unwrap();
        assert!(
            matches!(other.receive().unwrap(), Some(Message::Cgroup(cgroup_fds)) if cgroup_fds.len() == 2)
        );
        drop_for_all(one, &other);
        assert!(other.receive().unwrap().is_none());
    }

    /// Waits until no process has the other end: children that other tests fork have a copy until they exec.
    fn drop_for_all(other: Channel, one: &Channel) {
        drop(other);
        let mut end = [PollFd::new(&one.socket, PollFlags::empty())];
        rustix::event::poll(&mut end, None).unwrap();
        assert!(end[0].revents().contains(PollFlags::HUP));
    }

    #[test]
    fn a_cgroup_message_with_missing_descriptors_is_refused() {
        let cgroup_fd = || rustix::io::dup(io::stdout()).unwrap();
        assert!(decode(b"D2", vec![cgroup_fd()]).is_none());
        assert!(decode(b"D1", Vec::new()).is_none());
        assert!(decode(b"D", Vec::new()).is_none());
        assert!(decode(b"D0", Vec::new()).is_some());
    }

    #[test]
    fn a_closed_peer_alone_is_no_error_of_sending() {
        let (one, other) = Channel::pair().unwrap();
        let cgroup_fd = rustix::io::dup(io::stdout()).unwrap();
        let too_many = Message::Cgroup((0..64).map(|_| cgroup_fd.try_clone().unwrap()).collect());
        assert_eq!(one.send_unless_closed(&too_many).unwrap_err().kind(), ErrorKind::InvalidArgument);
        drop_for_all(other, &one);
        one.send_unless_closed(&Message::Cgroup(vec![cgroup_fd])).unwrap();
        assert!(one.send(&Message::Go).is_err());
    }

    #[test]
    fn the_failure_that_a_killed_peer_reported_is_read() {
        let (mut one, other) = Channel::pair().unwrap();
        other.send(&Message::Warning("left out".into())).unwrap();
        assert!(one.last_failure().is_none(), "and it is not waited for");
        other.send(&Message::Warning("left out".into())).unwrap();
        other.send(&Message::Failed(ErrorKind::NotFound, "no such file".into())).unwrap();
        drop(other);
        let failure = one.last_failure().unwrap();
        assert_eq!((failure.kind(), failure.message()), (ErrorKind::NotFound, "no such file"));
        assert!(one.last_failure().is_none());
    }

    /// A process in the container may hold the other end.
    #[test]
    fn messages_of_other_processes_are_refused() {
        let (mut one, other) = Channel::pair().unwrap();
        let say = |word: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", &format!("printf {word} >&0; read -r line")]);
            command.stdin(other.as_fd().try_clone_to_owned().unwrap()).spawn().unwrap()
        };
        let mut sender = say("B17");
        one.accept_only_from(sender.id());
        assert!(matches!(one.receive().unwrap(), Some(Message::Pid(17))));
        let mut stranger = say("B18");
        assert_eq!(one.receive().unwrap_err().kind(), ErrorKind::PermissionDenied);
        other.send(&Message::Pid(19)).unwrap();
        assert_eq!(one.receive().unwrap_err().kind(), ErrorKind::PermissionDenied);
        drop((one, other));
        sender.wait().unwrap();
        stranger.wait().unwrap();
    }

    #[test]
    fn a_peer_that_never_stops_sending_is_not_drained_for_ever() {
        let (mut one, other) = Channel::pair().unwrap();
        let flood = std::thread::spawn(move || while other.send(&Message::Warning("x".into())).is_ok() {});
        assert!(one.last_failure().is_none());
        drop(one);
        flood.join().unwrap();
    }

    #[test]
    fn the_peers_own_failure_replaces_an_error_of_sending() {
        let (one, other) = Channel::pair().unwrap();
        other.send(&Message::Failed(ErrorKind::PermissionDenied, "no rights".into())).unwrap();
        drop_for_all(other, &one);
        let error = one.send(&Message::Go).unwrap_err();
        assert!(error.chain().contains("send to the peer process"), "{}", error.chain());
        let error = one.explain(error);
        assert_eq!((error.kind(), error.message()), (ErrorKind::PermissionDenied, "no rights"));
    }
}
