//! Delivery of events to the daemon: kept and sent again until acknowledged.
//!
//! ```text
//! publish ─▶ journal ─▶ queue ─▶ [one in flight] ─▶ Events.Forward ─▶ acknowledged: next
//!                                  │ no connection, no response, Unavailable
//!                                  └──▶ pause, 50 ms to 10 s, and again
//! ```
//!
//! Invariants
//! - An event is in the journal of its container's bundle before it is sent, and until it is acknowledged.
//! - One event is in flight at a time, so that the daemon gets them in order.
//! - Every event arrives at least once, with the shim's name and the event's number, by which a daemon recognizes
//!   duplicates. An event that a live daemon refuses [`REFUSALS_MAX`] times is dropped and logged.
//! - The queue grows with the daemon's calls and with processes that ended, not with time: OOM reports, which a
//!   container can cause without end, are merged.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use api::shim::events::{FORWARD, ForwardRequest, SEQUENCE_KEY, SERVICE, SOURCE_KEY, topic};
use api::shim::types::{Envelope, TypeUrl};
use prost::Message;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use ttrpc::{Client, Request, StreamId};
use types::{ErrorKind, Timestamp};

use crate::journal::{Entry, Journal};
use crate::log::Log;

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long the daemon may take for one event before the connection is closed.
const ANSWER_MAX: Duration = Duration::from_secs(10);
const REFUSALS_MAX: u32 = 5;

pub(crate) struct Publisher {
    namespace: String,
    /// `None` if no daemon takes events.
    address: Option<PathBuf>,
    /// Identifies this run of this shim.
    source: String,
    /// The number of the last event.
    sequence: u64,
    queue: VecDeque<Queued>,
    journals: BTreeMap<JournalKey, Journal>,
    /// Journals of deleted containers, to be closed after their last event.
    closing: BTreeSet<JournalKey>,
    link: Option<Link>,
    /// The socket of a connection that has failed, until the loop no longer polls it.
    failed: Option<OwnedFd>,
    in_flight: Option<(StreamId, Instant)>,
    refusals: u32,
    pause: Duration,
    retry_at: Option<Instant>,
}

/// A container's journal, by the container's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct JournalKey(pub u32);

struct Queued {
    entry: Entry,
    /// The journal that has it too, unless the write failed.
    journal: Option<JournalKey>,
}

impl Queued {
    fn envelope(&self) -> &Envelope {
        self.entry.envelope.as_ref().expect("every entry of ours has one")
    }
}

struct Link {
    socket: OwnedFd,
    client: Client,
}

/// What the loop has to do about the publisher's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkChange {
    None,
    /// Poll a new connection.
    Opened,
}

impl Publisher {
    pub(crate) fn new(namespace: &str, address: Option<PathBuf>) -> Publisher {
        Publisher {
            namespace: namespace.to_owned(),
            address,
            source: source(),
            sequence: 0,
            queue: VecDeque::new(),
            journals: BTreeMap::new(),
            closing: BTreeSet::new(),
            link: None,
            failed: None,
            in_flight: None,
            refusals: 0,
            pause: PAUSE_MIN,
            retry_at: None,
        }
    }

    /// Begins the journal of a container.
    pub(crate) fn open_journal(&mut self, key: JournalKey, bundle: &Path, log: &mut Log) {
        if self.address.is_none() {
            return;
        }
        match Journal::create(bundle) {
            Ok(journal) => drop(self.journals.insert(key, journal)),
            Err(error) => log.warn(format_args!("keep events of {}: {error}", bundle.display())),
        }
    }

    /// The container is deleted: its journal is closed once all its events are acknowledged.
    pub(crate) fn close_journal(&mut self, key: JournalKey) {
        self.closing.insert(key);
        self.close_finished(key);
    }

    fn close_finished(&mut self, key: JournalKey) {
        if self.closing.contains(&key) && !self.queue.iter().any(|queued| queued.journal == Some(key)) {
            self.closing.remove(&key);
            self.journals.remove(&key);
        }
    }

    /// Queues an event of the container with this journal.
    pub(crate) fn publish<M: Message + TypeUrl>(
        &mut self,
        key: JournalKey,
        topic: &str,
        event: &M,
        log: &mut Log,
    ) {
        if self.address.is_none() {
            return;
        }
        let now = Timestamp::now();
        let event = api::shim::pack(event);
        let same = |queued: &Queued| {
            queued.envelope().topic == topic && queued.envelope().event.as_ref() == Some(&event)
        };
        if topic == topic::OOM && self.queue.iter().skip(1).any(same) {
            return;
        }
        let envelope = Envelope {
            timestamp: Some(wire_time(now)),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(event),
        };
        self.sequence += 1;
        let entry = Entry { source: self.source.clone(), sequence: self.sequence, envelope: Some(envelope) };
        let journal = self.journals.get_mut(&key).and_then(|journal| match journal.append(&entry) {
            Ok(()) => Some(key),
            Err(error) => {
                // The event is still in memory, and sent from there.
                log.warn(format_args!("keep event {topic}: {error}"));
                None
            }
        });
        self.queue.push_back(Queued { entry, journal });
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// Frees the memory of a queue that was long while the daemon was away.
    pub(crate) fn relax(&mut self) {
        self.queue.shrink_to_fit();
    }

    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.link.as_ref().map(|link| link.socket.as_fd())
    }

    /// The socket of a connection that has failed since the last call.
    pub(crate) fn take_failed(&mut self) -> Option<OwnedFd> {
        self.failed.take()
    }

    /// Whether bytes wait to be written to the socket.
    pub(crate) fn wants_write(&self) -> bool {
        self.link.as_ref().is_some_and(|link| !link.client.pending().is_empty())
    }

    /// When [`Publisher::advance`] has to be called again, at the latest.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let answer_due = self.in_flight.map(|(_, sent)| sent + ANSWER_MAX);
        self.retry_at.into_iter().chain(answer_due).min()
    }

    /// Tries again at once, as the daemon has called.
    pub(crate) fn hurry(&mut self) {
        if self.retry_at.is_some() {
            self.retry_at = Some(Instant::now());
            self.pause = PAUSE_MIN;
        }
    }

    /// Does what is possible without blocking: connects, sends, reads responses.
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
        let (Some(link), Some(queued)) = (&mut self.link, self.queue.front()) else { return };
        match link.client.call(&forward(&queued.entry, ANSWER_MAX)) {
            Ok(stream) => self.in_flight = Some((stream, Instant::now())),
            Err(error) if error.is(ErrorKind::Unavailable) => self.fail(log, "connection is used up"),
            Err(error) => {
                log.warn(format_args!("drop event {}: {}", queued.envelope().topic, error.chain()));
                self.delivered();
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
            // The error is not about the event: an overloaded daemon must not lose it.
            Err(error) if is_passing(error.kind()) => self.wait(),
            Err(error) => {
                self.refusals += 1;
                let topic = self.queue.front().map_or("", |queued| &queued.envelope().topic);
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
        if let Some(Queued { entry, journal: Some(key) }) = self.queue.pop_front()
            && let Some(journal) = self.journals.get_mut(&key)
        {
            // If it stays on disk, the daemon recognizes the duplicate by its number.
            let _best_effort = journal.acknowledge(&entry);
            self.close_finished(key);
        }
        self.refusals = 0;
        self.pause = PAUSE_MIN;
        self.retry_at = None;
    }

    /// Closes the connection, to try again later. The event in flight may arrive twice.
    fn fail(&mut self, log: &mut Log, why: &str) {
        if let Some(link) = self.link.take() {
            self.failed = Some(link.socket);
        }
        self.in_flight = None;
        if self.queue.is_empty() {
            return;
        }
        log.debug(format_args!("{} events wait for the daemon: {why}", self.queue.len()));
        self.wait();
    }

    fn wait(&mut self) {
        self.retry_at = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

fn is_passing(kind: ErrorKind) -> bool {
    use ErrorKind::{Aborted, Cancelled, DeadlineExceeded, ResourceExhausted};
    matches!(kind, Aborted | Cancelled | DeadlineExceeded | ResourceExhausted)
}

pub(crate) fn connect(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// The call that delivers an event to the daemon.
pub(crate) fn forward(entry: &Entry, timeout: Duration) -> Request {
    let namespace = entry.envelope.as_ref().map_or("", |envelope| &envelope.namespace);
    Request::new(SERVICE, FORWARD, &ForwardRequest { envelope: entry.envelope.clone() })
        .with_timeout(timeout)
        .with_metadata(ttrpc::NAMESPACE_KEY, namespace)
        .with_metadata(SOURCE_KEY, &entry.source)
        .with_metadata(SEQUENCE_KEY, &entry.sequence.to_string())
}

/// A name that no other shim has had since boot: the pid and the time of the start.
fn source() -> String {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    format!("{}-{}.{:09}", std::process::id(), now.tv_sec, now.tv_nsec)
}

pub(crate) fn wire_time(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.seconds, nanos: time.nanos as i32 }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    use api::shim::events::{TaskExit, TaskOom};
    use ttrpc::Server;

    use super::*;

    const KEY: JournalKey = JournalKey(1);

    struct Fixture {
        directory: tempfile::TempDir,
        publisher: Publisher,
        log: Log,
    }

    impl Fixture {
        fn new() -> Fixture {
            let directory = tempfile::tempdir().unwrap();
            let mut log = Log::new(directory.path().join("log"), false);
            let mut publisher = Publisher::new("default", Some(directory.path().join("events.sock")));
            publisher.open_journal(KEY, directory.path(), &mut log);
            Fixture { publisher, directory, log }
        }

        fn exits(&mut self, id: &str) {
            self.publisher.publish(KEY, topic::EXIT, &exit(id), &mut self.log);
        }

        fn advance(&mut self) -> LinkChange {
            self.publisher.advance(&mut self.log)
        }

        fn listen(&self) -> UnixListener {
            UnixListener::bind(self.directory.path().join("events.sock")).unwrap()
        }

        fn on_disk(&self) -> Vec<String> {
            crate::journal::read(self.directory.path())
                .iter()
                .map(|entry| id(entry.envelope.as_ref().unwrap()))
                .collect()
        }
    }

    fn exit(id: &str) -> TaskExit {
        TaskExit { id: id.into(), ..Default::default() }
    }

    /// Reads one event, and acknowledges it or returns an error. Returns the container's id and the event's number.
    fn receive(
        peer: &mut UnixStream,
        server: &mut Server,
        answer: types::Result<Vec<u8>>,
    ) -> (String, String) {
        let mut buffer = [0; 4096];
        loop {
            if let Some(call) = server.next_call() {
                let request: ForwardRequest = call.request.read().unwrap();
                let number = call.request.metadata(SEQUENCE_KEY).unwrap().to_owned();
                server.reply(call.stream, answer);
                peer.write_all(server.pending()).unwrap();
                server.advance(server.pending().len());
                return (id(&request.envelope.unwrap()), number);
            }
            let len = peer.read(&mut buffer).unwrap();
            server.feed(&buffer[..len]);
        }
    }

    fn id(envelope: &Envelope) -> String {
        api::shim::unpack::<TaskExit>(envelope.event.as_ref().unwrap()).unwrap().unwrap().id
    }

    fn event(id: &str, number: &str) -> (String, String) {
        (id.to_owned(), number.to_owned())
    }

    #[test]
    fn events_wait_for_a_daemon_that_is_away_and_arrive_in_order() {
        let mut fixture = Fixture::new();
        fixture.exits("a");
        assert_eq!(fixture.on_disk(), ["a"], "on disk before it leaves");
        fixture.advance();
        fixture.exits("b");
        assert_eq!(fixture.on_disk(), ["a", "b"]);

        let listener = fixture.listen();
        fixture.publisher.hurry();
        assert_eq!(fixture.advance(), LinkChange::Opened);
        let (mut peer, _) = listener.accept().unwrap();
        let mut server = Server::new();
        assert_eq!(receive(&mut peer, &mut server, Ok(Vec::new())), event("a", "1"));
        fixture.advance();
        assert_eq!(fixture.on_disk(), ["b"]);
        assert_eq!(receive(&mut peer, &mut server, Ok(Vec::new())), event("b", "2"));
        fixture.advance();
        assert!(fixture.publisher.is_idle());
        assert_eq!(fixture.on_disk(), Vec::<String>::new());
    }

    #[test]
    fn an_event_in_flight_is_sent_again_under_its_number_when_the_daemon_dies() {
        let mut fixture = Fixture::new();
        let listener = fixture.listen();
        fixture.exits("a");
        fixture.advance();
        drop(listener.accept().unwrap());
        fixture.advance();
        fixture.publisher.hurry();
        fixture.advance();
        let (mut peer, _) = listener.accept().unwrap();
        assert_eq!(receive(&mut peer, &mut Server::new(), Ok(Vec::new())), event("a", "1"));
    }

    #[test]
    fn the_socket_of_a_failed_connection_is_given_back_once() {
        let mut fixture = Fixture::new();
        let listener = fixture.listen();
        fixture.exits("a");
        fixture.advance();
        drop(listener.accept().unwrap());
        assert!(fixture.publisher.take_failed().is_none(), "it is in use");
        fixture.advance();
        assert!(fixture.publisher.socket().is_none());
        assert!(fixture.publisher.take_failed().is_some() && fixture.publisher.take_failed().is_none());
    }

    #[test]
    fn an_event_the_daemon_refuses_does_not_hold_up_the_rest_for_ever() {
        let mut fixture = Fixture::new();
        let listener = fixture.listen();
        fixture.exits("bad");
        fixture.exits("good");
        fixture.advance();
        let (mut peer, _) = listener.accept().unwrap();
        let mut server = Server::new();
        for _ in 0..REFUSALS_MAX {
            let refused = Err(types::Error::invalid_argument("no"));
            assert_eq!(receive(&mut peer, &mut server, refused), event("bad", "1"));
            fixture.advance();
            fixture.publisher.hurry();
            fixture.advance();
        }
        assert_eq!(receive(&mut peer, &mut server, Ok(Vec::new())), event("good", "2"));
    }

    #[test]
    fn an_event_that_comes_at_a_bad_time_is_not_dropped() {
        let mut fixture = Fixture::new();
        let listener = fixture.listen();
        fixture.exits("a");
        fixture.advance();
        let (mut peer, _) = listener.accept().unwrap();
        let mut server = Server::new();
        for _ in 0..2 * REFUSALS_MAX {
            let busy = Err(types::Error::resource_exhausted("too many events"));
            assert_eq!(receive(&mut peer, &mut server, busy), event("a", "1"));
            fixture.advance();
            fixture.publisher.hurry();
            fixture.advance();
        }
        assert_eq!(fixture.on_disk(), ["a"]);
        assert_eq!(receive(&mut peer, &mut server, Ok(Vec::new())), event("a", "1"));
    }

    #[test]
    fn a_journal_stays_open_until_the_last_event_of_its_container_is_acknowledged() {
        let mut fixture = Fixture::new();
        let listener = fixture.listen();
        fixture.exits("a");
        fixture.advance();
        fixture.publisher.close_journal(KEY);
        assert_eq!(fixture.on_disk(), ["a"]);
        let (mut peer, _) = listener.accept().unwrap();
        receive(&mut peer, &mut Server::new(), Ok(Vec::new()));
        fixture.advance();
        assert!(fixture.publisher.journals.is_empty());
    }

    #[test]
    fn reports_of_lost_memory_are_merged_while_they_wait() {
        let Fixture { mut publisher, mut log, .. } = Fixture::new();
        for _ in 0..1000 {
            publisher.publish(KEY, topic::OOM, &TaskOom { container_id: "c".into() }, &mut log);
        }
        assert!(publisher.queue.len() <= 2);
    }
}
