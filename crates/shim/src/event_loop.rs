//! The event loop: the one place where the shim waits.
//!
//! ```text
//! listener ──▶ connections ──▶ calls ──▶ sandbox ──▶ answers, now or later
//! children ──▶ exits ─────────────────▶ sandbox ──▶ events ──▶ publisher
//! workers ──▶ answers ────────────────▶ sandbox
//! pipes and fifos ──▶ copies
//! ```
//!
//! Nothing else here blocks. A call does no more work than one create or exec takes, and leaves operations that wait
//! for other programs to workers.
//!
//! A shim mostly waits while its container runs. After [`QUIET`] without an event it releases the pages of its program,
//! and sleeps without a timer: the pages are unmodified, and the few that the next call needs come back from the page
//! cache.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use ttrpc::{Request, Server};
use types::{Context, Result};

use crate::log_driver;
use crate::poll::{Interest, Poll, Source};
use crate::publisher::LinkChange;
use crate::sandbox::Sandbox;
use crate::service::{self, Outcome, ReplyTo};

/// How long the last events may take to be delivered after `Shutdown`.
const EXIT_MAX: Duration = Duration::from_secs(3);
/// How long no connection is accepted after descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// After this time without events a shim is at rest: longer than a client pauses between the calls that start a
/// container.
const QUIET: Duration = Duration::from_secs(2);
/// Bytes of one read from a connection.
const READ_LEN: usize = 16 << 10;
/// Reads from one connection before the others get their turn.
const READS_MAX: usize = 16;

pub(crate) struct EventLoop {
    sandbox: Sandbox,
    listener: UnixListener,
    socket_path: PathBuf,
    children: OwnedFd,
    connections: BTreeMap<u32, Connection>,
    next_connection: u32,
    /// When to accept again, after descriptors ran out.
    accept_at: Option<Instant>,
    /// When to exit, at the latest, after `Shutdown`.
    exit_at: Option<Instant>,
    /// When to release memory, unless something happens.
    rest_at: Option<Instant>,
}

struct Connection {
    socket: UnixStream,
    server: Server,
    interest: Interest,
    /// The peer has closed its sending half.
    read_closed: bool,
}

impl EventLoop {
    pub(crate) fn new(
        sandbox: Sandbox,
        listener: UnixListener,
        socket_path: PathBuf,
        children: OwnedFd,
    ) -> Result<EventLoop> {
        listener.set_nonblocking(true).context(|| "make the listener non-blocking")?;
        let poll = sandbox.poll();
        poll.add(&listener, Source::Listener, Interest::Read).context(|| "watch the listener")?;
        poll.add(&children, Source::Children, Interest::Read).context(|| "watch for children")?;
        Ok(EventLoop {
            sandbox,
            listener,
            socket_path,
            children,
            connections: BTreeMap::new(),
            next_connection: 0,
            accept_at: None,
            exit_at: None,
            rest_at: None,
        })
    }

    /// Serves until a daemon has asked for `Shutdown` and the last events are delivered, and then waits for log
    /// drivers.
    pub(crate) fn run(mut self) -> Result<()> {
        let mut ready = Vec::new();
        loop {
            self.sandbox.poll().wait(self.timeout(), &mut ready).context(|| "wait for events")?;
            if self.accept_at.is_some_and(|at| Instant::now() >= at) {
                self.listen_again();
            }
            self.rest(ready.is_empty());
            for source in ready.drain(..) {
                self.take(source);
            }
            self.serve_queue();
            self.sandbox.take_turns();
            self.sandbox.finish_deletes();
            self.sandbox.finish_stops();
            self.sandbox.finish_waits();
            self.sandbox.signal_late_drivers();
            self.send_replies();
            self.publish();
            if self.exit_at.is_some_and(|until| self.sandbox.publisher.is_idle() || Instant::now() >= until) {
                // The daemon sees the shim's connection close. The process stays for the log drivers alone, which get
                // time to write the rest of their input.
                let drivers = self.sandbox.take_drivers();
                drop(self);
                log_driver::wait_for_exit(drivers);
                return Ok(());
            }
        }
    }

    fn timeout(&self) -> Option<Duration> {
        if self.sandbox.has_turns() {
            return Some(Duration::ZERO);
        }
        let sandbox = &self.sandbox;
        let deadlines =
            [sandbox.deadline(), sandbox.publisher.deadline(), self.accept_at, self.exit_at, self.rest_at];
        let next = deadlines.into_iter().flatten().min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// Releases memory after a quiet period.
    fn rest(&mut self, quiet: bool) {
        if !quiet {
            self.rest_at = Some(Instant::now() + QUIET);
        } else if self.rest_at.is_some_and(|at| Instant::now() >= at) {
            self.rest_at = None;
            self.sandbox.publisher.relax();
            linux::memory::trim_heap();
            // A failure costs memory only.
            if let Err(error) = linux::memory::release_program() {
                self.sandbox.log.debug(format_args!("at rest: {}", error.chain()));
            }
        }
    }

    fn take(&mut self, source: Source) {
        match source {
            Source::Listener => self.accept(),
            Source::Connection(id) => self.serve(id),
            Source::Children => {
                linux::signal::drain(&self.children);
                self.sandbox.reap();
            }
            // Handled in `publish`.
            Source::Publisher => {}
            Source::Worker(key) => self.sandbox.advance_job(key),
            Source::Oom(key) => self.sandbox.oom(key),
            Source::Copy(key, stream) => self.sandbox.advance_copy(key, stream),
        }
    }

    fn accept(&mut self) {
        loop {
            let socket = match self.listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return self.pause_listening(&error),
            };
            let id = self.next_connection;
            self.next_connection += 1;
            let watched = socket
                .set_nonblocking(true)
                .and_then(|()| self.sandbox.poll().add(&socket, Source::Connection(id), Interest::Read));
            match watched {
                Ok(()) => {
                    let connection = Connection {
                        socket,
                        server: Server::new(),
                        interest: Interest::Read,
                        read_closed: false,
                    };
                    self.connections.insert(id, connection);
                }
                Err(error) => self.sandbox.log.warn(format_args!("accept a connection: {error}")),
            }
            // A daemon that connects is alive, and can take waiting events.
            self.sandbox.publisher.hurry();
        }
    }

    /// Most likely out of descriptors. Clients stay in the backlog, and the loop must not spin on it.
    fn pause_listening(&mut self, error: &io::Error) {
        self.sandbox.log.warn(format_args!("accept a connection: {error}"));
        if self.sandbox.poll().remove(&self.listener).is_ok() {
            self.accept_at = Some(Instant::now() + ACCEPT_PAUSE);
        }
    }

    fn listen_again(&mut self) {
        let added = self.sandbox.poll().add(&self.listener, Source::Listener, Interest::Read);
        self.accept_at = added.is_err().then(|| Instant::now() + ACCEPT_PAUSE);
    }

    /// Reads calls from a connection and executes them.
    fn serve(&mut self, id: u32) {
        let mut buffer = [0; READ_LEN];
        for _ in 0..READS_MAX {
            let Some(connection) = self.connections.get_mut(&id) else { return };
            if !connection.reads() {
                break;
            }
            match rustix::io::read(&connection.socket, &mut buffer) {
                Ok(0) => connection.read_closed = true,
                Ok(len) => {
                    connection.server.feed(&buffer[..len]);
                    self.carry_out(id);
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => return self.drop_connection(id),
            }
        }
        self.send(id);
    }

    fn carry_out(&mut self, id: u32) {
        while let Some(call) =
            self.connections.get_mut(&id).and_then(|connection| connection.server.next_call())
        {
            let until = call.request.timeout().map(|timeout| Instant::now() + timeout);
            self.call(&call.request, ReplyTo { connection: id, stream: call.stream, until });
            // Sent before the next call, which may take its time.
            self.send(id);
        }
    }

    fn call(&mut self, request: &Request, reply: ReplyTo) {
        let outcome = match service::call(&mut self.sandbox, request, reply) {
            Ok(Outcome::Later) => return,
            Ok(Outcome::Now(payload)) => Ok(payload),
            Err(error) => {
                self.sandbox.log.debug(format_args!("{}: {}", request.method, error.chain()));
                Err(error)
            }
        };
        // Before the response, after which the daemon may start another shim at the same path.
        if self.sandbox.is_closing() && self.exit_at.is_none() {
            self.leave();
        }
        if let Some(connection) = self.connections.get_mut(&reply.connection) {
            connection.server.reply(reply.stream, outcome);
        }
    }

    /// Executes calls that waited for a job.
    fn serve_queue(&mut self) {
        for (request, reply) in self.sandbox.take_queue() {
            self.call(&request, reply);
            self.send(reply.connection);
        }
    }

    fn send_replies(&mut self) {
        for (reply, outcome) in self.sandbox.take_replies() {
            if let Some(connection) = self.connections.get_mut(&reply.connection) {
                connection.server.reply(reply.stream, outcome);
                self.send(reply.connection);
            }
        }
    }

    /// Writes pending bytes, then polls for what the connection needs next.
    fn send(&mut self, id: u32) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match connection.write(self.sandbox.poll(), id) {
            Ok(()) if connection.is_finished() => self.drop_connection(id),
            Ok(()) => {}
            Err(_) => self.drop_connection(id),
        }
    }

    fn drop_connection(&mut self, id: u32) {
        if let Some(connection) = self.connections.remove(&id) {
            // A process that is stuck on its way into a container may hold a copy of the socket, which would keep
            // reporting events. If it was never added, there is nothing to remove.
            let _gone = self.sandbox.poll().remove(&connection.socket);
        }
        self.sandbox.forget(id);
    }

    fn publish(&mut self) {
        let sandbox = &mut self.sandbox;
        let change = sandbox.publisher.advance(&mut sandbox.log);
        if let Some(socket) = sandbox.publisher.take_failed() {
            // As with clients' connections, a process may hold a copy. If it was never added, there is nothing to remove.
            let _gone = sandbox.poll().remove(&socket);
        }
        let interest = if sandbox.publisher.wants_write() { Interest::ReadAndWrite } else { Interest::Read };
        let Some(socket) = sandbox.publisher.socket() else { return };
        let watched = match change {
            LinkChange::Opened => sandbox.poll().add(socket, Source::Publisher, interest),
            LinkChange::None => sandbox.poll().change(socket, Source::Publisher, interest),
        };
        if let Err(error) = watched {
            sandbox.log.warn(format_args!("watch the connection for events: {error}"));
        }
    }

    /// Stops listening; open connections are served until the last events are delivered.
    fn leave(&mut self) {
        // Another process may have removed it before.
        let _gone = std::fs::remove_file(&self.socket_path);
        self.exit_at = Some(Instant::now() + EXIT_MAX);
    }
}

impl Connection {
    fn write(&mut self, poll: &Poll, id: u32) -> io::Result<()> {
        loop {
            let pending = self.server.pending();
            if pending.is_empty() {
                break;
            }
            match rustix::net::send(&self.socket, pending, rustix::net::SendFlags::NOSIGNAL) {
                Ok(len) => self.server.advance(len),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let interest = match (self.server.pending().is_empty(), self.reads()) {
            (true, _) => Interest::Read,
            (false, true) => Interest::ReadAndWrite,
            (false, false) => Interest::Write,
        };
        if interest != self.interest {
            poll.change(self.socket.as_fd(), Source::Connection(id), interest)?;
            self.interest = interest;
        }
        Ok(())
    }

    /// Whether to read more from the peer now.
    fn reads(&self) -> bool {
        !self.read_closed && self.server.accepts_input()
    }

    /// A peer that hung up gets no response, unless it closed its sending half only.
    fn is_finished(&self) -> bool {
        self.read_closed && self.server.pending().is_empty()
    }
}
