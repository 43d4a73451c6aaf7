//! Events on their way to the daemon: kept and sent again until the daemon has them.
//!
//! ```text
//! publish ─▶ queue ─▶ [one in flight] ─▶ Events.Forward ─▶ acknowledged: next
//!                        │ no connection, no answer, Unavailable
//!                        └──▶ pause, 50 ms to 10 s, and again; the queue is in the file `events`
//! ```
//!
//! Invariants
//! - One event is in flight at a time, so the daemon gets them in the order they happened.
//! - Every event arrives at least once. One that a live daemon refuses [`REFUSALS_MAX`] times is
//!   dropped and logged.
//! - While the daemon is away the queue is also in the bundle's file `events`, so that the `delete`
//!   command can send it if this process dies as well.
//! - The queue grows with what daemons asked for and processes that ended, not with time: reports of
//!   lost memory, which a container can cause without end, are merged.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use api::shim::events::{FORWARD, ForwardRequest, SERVICE, topic};
use api::shim::types::{Envelope, TypeUrl};
use prost::Message;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use ttrpc::{Client, Request, StreamId};
use types::{ErrorKind, Timestamp};

use crate::log::Log;

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long the daemon may take for one event before the connection is given up.
const ANSWER_MAX: Duration = Duration::from_secs(10);
const REFUSALS_MAX: u32 = 5;

pub(crate) struct Publisher {
    namespace: String,
    /// `None`: nobody wants events.
    address: Option<PathBuf>,
    queue: VecDeque<Envelope>,
    link: Option<Link>,
    in_flight: Option<(StreamId, Instant)>,
    refusals: u32,
    pause: Duration,
    retry_at: Option<Instant>,
    spill: Spill,
}

struct Link {
    socket: OwnedFd,
    client: Client,
}

/// What the loop has to do about the publisher's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkChange {
    None,
    /// A new connection is to be watched.
    Opened,
}

impl Publisher {
    pub(crate) fn new(namespace: &str, address: Option<PathBuf>, spill: PathBuf) -> Publisher {
        Publisher {
            namespace: namespace.to_owned(),
            address,
            queue: VecDeque::new(),
            link: None,
            in_flight: None,
            refusals: 0,
            pause: PAUSE_MIN,
            retry_at: None,
            spill: Spill { path: spill, written: false },
        }
    }

    pub(crate) fn publish<M: Message + TypeUrl>(&mut self, topic: &str, event: &M) {
        if self.address.is_none() {
            return;
        }
        let now = Timestamp::now();
        let event = api::shim::pack(event);
        let same = |queued: &Envelope| queued.topic == topic && queued.event.as_ref() == Some(&event);
        if topic == topic::OOM && self.queue.iter().skip(1).any(same) {
            return;
        }
        let envelope = Envelope {
            timestamp: Some(wire_time(now)),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(event),
        };
        if self.spill.written {
            self.spill.append(&envelope);
        }
        self.queue.push_back(envelope);
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.link.as_ref().map(|link| link.socket.as_fd())
    }

    /// Whether bytes wait for the socket to take them.
    pub(crate) fn wants_write(&self) -> bool {
        self.link.as_ref().is_some_and(|link| !link.client.pending().is_empty())
    }

    /// When [`Publisher::advance`] has to be called again even if the socket is quiet.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let answer_due = self.in_flight.map(|(_, sent)| sent + ANSWER_MAX);
        self.retry_at.into_iter().chain(answer_due).min()
    }

    /// The daemon was heard of: try again at once.
    pub(crate) fn hurry(&mut self) {
        if self.retry_at.is_some() {
            self.retry_at = Some(Instant::now());
            self.pause = PAUSE_MIN;
        }
    }

    /// Does what can be done now: connects, sends, reads answers.
    pub(crate) fn advance(&mut self, log: &mut Log) -> LinkChange {
        let now = Instant::now();
        let mut change = LinkChange::None;
        if self.in_flight.is_some_and(|(_, sent)| now >= sent + ANSWER_MAX) {
            self.fail(log, "no answer");
        }
        loop {
            if self.link.is_some() {
                self.read(log);
            }
            if self.queue.is_empty() || self.retry_at.is_some_and(|at| now < at) {
                break;
            }
            self.retry_at = None;
            if self.link.is_none() {
                if !self.connect(log) {
                    break;
                }
                change = LinkChange::Opened;
            }
            if self.in_flight.is_some() {
                self.write(log);
                break;
            }
            self.send_first(log);
            self.write(log);
        }
        change
    }

    fn connect(&mut self, log: &mut Log) -> bool {
        let Some(address) = &self.address else { return false };
        match connect(address) {
            Ok(socket) => {
                self.link = Some(Link { socket, client: Client::new() });
                true
            }
            Err(error) => {
                self.fail(log, &format!("connect to {}: {error}", address.display()));
                false
            }
        }
    }

    fn send_first(&mut self, log: &mut Log) {
        let (Some(link), Some(envelope)) = (&mut self.link, self.queue.front()) else { return };
        let request = Request::new(SERVICE, FORWARD, &ForwardRequest { envelope: Some(envelope.clone()) })
            .with_timeout(ANSWER_MAX)
            .with_metadata(ttrpc::NAMESPACE_KEY, &self.namespace);
        match link.client.call(&request) {
            Ok(stream) => self.in_flight = Some((stream, Instant::now())),
            Err(error) if error.is(ErrorKind::Unavailable) => self.fail(log, "connection is used up"),
            Err(error) => {
                log.warn(format_args!("drop event {}: {}", envelope.topic, error.chain()));
                self.queue.pop_front();
            }
        }
    }

    fn write(&mut self, log: &mut Log) {
        while let Some(link) = &mut self.link {
            let pending = link.client.pending();
            if pending.is_empty() {
                return;
            }
            match rustix::net::send(&link.socket, pending, rustix::net::SendFlags::NOSIGNAL) {
                Ok(len) => link.client.advance(len),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(error) => return self.fail(log, &error.to_string()),
            }
        }
    }

    fn read(&mut self, log: &mut Log) {
        let mut buffer = [0; 1024];
        while let Some(link) = &mut self.link {
            match rustix::io::read(&link.socket, &mut buffer) {
                Ok(0) => return self.fail(log, "the daemon hung up"),
                Ok(len) => {
                    link.client.feed(&buffer[..len]);
                    while let Some(answer) = self.link.as_mut().and_then(|link| link.client.next_answer()) {
                        self.take(answer, log);
                    }
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(error) => return self.fail(log, &error.to_string()),
            }
        }
    }

    fn take(&mut self, answer: ttrpc::Answer, log: &mut Log) {
        if self.in_flight.is_none_or(|(stream, _)| stream != answer.stream) {
            return;
        }
        self.in_flight = None;
        match answer.outcome {
            Ok(_) => self.delivered(),
            Err(error) if error.is(ErrorKind::Unavailable) => self.fail(log, &error.chain()),
            Err(error) => {
                self.refusals += 1;
                let topic = self.queue.front().map_or("", |envelope| &envelope.topic);
                log.warn(format_args!("event {topic} was refused: {}", error.chain()));
                if self.refusals >= REFUSALS_MAX {
                    self.delivered();
                } else {
                    self.wait();
                }
            }
        }
    }

    fn delivered(&mut self) {
        self.queue.pop_front();
        self.refusals = 0;
        self.pause = PAUSE_MIN;
        self.retry_at = None;
        if self.queue.is_empty() {
            self.spill.clear();
        }
    }

    /// The connection is of no use: close it and try again later. What is in flight may arrive twice.
    fn fail(&mut self, log: &mut Log, why: &str) {
        self.link = None;
        self.in_flight = None;
        if self.queue.is_empty() {
            return;
        }
        log.debug(format_args!("{} events wait for the daemon: {why}", self.queue.len()));
        self.wait();
    }

    fn wait(&mut self) {
        if !self.spill.written {
            self.queue.iter().for_each(|envelope| self.spill.append(envelope));
        }
        self.retry_at = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

fn connect(path: &std::path::Path) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

pub(crate) fn wire_time(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.seconds, nanos: time.nanos as i32 }
}

/// The queue on disk: envelopes, each behind its length (32 bits, big endian).
struct Spill {
    path: PathBuf,
    written: bool,
}

impl Spill {
    fn append(&mut self, envelope: &Envelope) {
        let bytes = envelope.encode_to_vec();
        let mut entry = (bytes.len() as u32).to_be_bytes().to_vec();
        entry.extend_from_slice(&bytes);
        let file = OpenOptions::new().append(true).create(true).open(&self.path);
        // The file only helps if this process dies as well; the queue itself is in memory.
        let _best_effort = file.and_then(|mut file| file.write_all(&entry));
        self.written = true;
    }

    fn clear(&mut self) {
        if self.written {
            let _gone = std::fs::remove_file(&self.path);
            self.written = false;
        }
    }
}

/// The name of the queue's file in a bundle.
pub(crate) const SPILL: &str = "events";

/// Reads what a dead shim left. A half-written last entry is ignored.
pub(crate) fn read_spill(path: &std::path::Path) -> Vec<Envelope> {
    let bytes = std::fs::read(path).unwrap_or_default();
    let mut rest = bytes.as_slice();
    let mut envelopes = Vec::new();
    while let Some((len, tail)) = rest.split_first_chunk::<4>() {
        let Some((entry, tail)) = tail.split_at_checked(u32::from_be_bytes(*len) as usize) else { break };
        envelopes.extend(Envelope::decode(entry));
        rest = tail;
    }
    envelopes
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::{UnixListener, UnixStream};

    use api::shim::events::{TaskExit, TaskOom};
    use ttrpc::Server;

    use super::*;

    struct Fixture {
        directory: tempfile::TempDir,
        publisher: Publisher,
        log: Log,
    }

    fn fixture() -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let address = directory.path().join("events.sock");
        let spill = directory.path().join(SPILL);
        let log = Log::new(directory.path().join("log"), false);
        Fixture { publisher: Publisher::new("default", Some(address), spill), directory, log }
    }

    fn exit(id: &str) -> TaskExit {
        TaskExit { id: id.into(), ..Default::default() }
    }

    /// Reads one event and acknowledges it, or answers with an error.
    fn receive(peer: &mut UnixStream, server: &mut Server, answer: types::Result<Vec<u8>>) -> Envelope {
        let mut buffer = [0; 4096];
        loop {
            if let Some(call) = server.next_call() {
                let request: ForwardRequest = call.request.read().unwrap();
                server.reply(call.stream, answer);
                peer.write_all(server.pending()).unwrap();
                server.advance(server.pending().len());
                return request.envelope.unwrap();
            }
            let len = peer.read(&mut buffer).unwrap();
            server.feed(&buffer[..len]);
        }
    }

    fn id(envelope: &Envelope) -> String {
        api::shim::unpack::<TaskExit>(envelope.event.as_ref().unwrap()).unwrap().unwrap().id
    }

    #[test]
    fn events_wait_for_a_daemon_that_is_away_and_arrive_in_order() {
        let Fixture { directory, mut publisher, mut log } = fixture();
        publisher.publish(topic::EXIT, &exit("a"));
        publisher.advance(&mut log);
        publisher.publish(topic::EXIT, &exit("b"));
        let spill = directory.path().join(SPILL);
        let spilled: Vec<String> = read_spill(&spill).iter().map(id).collect();
        assert_eq!(spilled, ["a", "b"]);

        let listener = UnixListener::bind(directory.path().join("events.sock")).unwrap();
        publisher.hurry();
        assert_eq!(publisher.advance(&mut log), LinkChange::Opened);
        let (mut peer, _) = listener.accept().unwrap();
        let mut server = Server::new();
        assert_eq!(id(&receive(&mut peer, &mut server, Ok(Vec::new()))), "a");
        publisher.advance(&mut log);
        assert_eq!(id(&receive(&mut peer, &mut server, Ok(Vec::new()))), "b");
        publisher.advance(&mut log);
        assert!(publisher.is_idle());
        assert!(!spill.exists());
    }

    #[test]
    fn an_event_in_flight_is_sent_again_when_the_daemon_dies() {
        let Fixture { directory, mut publisher, mut log } = fixture();
        let listener = UnixListener::bind(directory.path().join("events.sock")).unwrap();
        publisher.publish(topic::EXIT, &exit("a"));
        publisher.advance(&mut log);
        drop(listener.accept().unwrap());
        publisher.advance(&mut log);
        publisher.hurry();
        publisher.advance(&mut log);
        let (mut peer, _) = listener.accept().unwrap();
        assert_eq!(id(&receive(&mut peer, &mut Server::new(), Ok(Vec::new()))), "a");
    }

    #[test]
    fn an_event_the_daemon_refuses_does_not_hold_up_the_rest_for_ever() {
        let Fixture { directory, mut publisher, mut log } = fixture();
        let listener = UnixListener::bind(directory.path().join("events.sock")).unwrap();
        publisher.publish(topic::EXIT, &exit("bad"));
        publisher.publish(topic::EXIT, &exit("good"));
        publisher.advance(&mut log);
        let (mut peer, _) = listener.accept().unwrap();
        let mut server = Server::new();
        for _ in 0..REFUSALS_MAX {
            let refused = Err(types::Error::invalid_argument("no"));
            assert_eq!(id(&receive(&mut peer, &mut server, refused)), "bad");
            publisher.advance(&mut log);
            publisher.hurry();
            publisher.advance(&mut log);
        }
        assert_eq!(id(&receive(&mut peer, &mut server, Ok(Vec::new()))), "good");
    }

    #[test]
    fn reports_of_lost_memory_are_merged_while_they_wait() {
        let Fixture { mut publisher, .. } = fixture();
        for _ in 0..1000 {
            publisher.publish(topic::OOM, &TaskOom { container_id: "c".into() });
        }
        assert!(publisher.queue.len() <= 2);
    }
}
