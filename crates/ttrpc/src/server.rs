//! The server side of one connection, without IO.
//!
//! ```text
//! socket ──feed──▶ Server ──next_call──▶ Call ──▶ handler
//!        ◀─pending─       ◀────reply─────────── (now or later, in any order)
//! ```
//!
//! Invariants
//! - Each call is answered exactly once; a second answer, or one to an unknown stream, is a bug and panics.
//! - At most [`CALLS_MAX`] calls are open. Further ones are refused rather than left unread: one of them may be the
//!   call that ends the others.
//! - At most [`PENDING_MAX`] bytes wait for a peer that does not read: beyond that [`Server::accepts_input`] is
//!   false, and the owner stops reading the socket.

use std::collections::BTreeSet;

use prost::Message;
use types::{Error, Result};

use crate::frame::{CONTENT_LEN_MAX, Inbox, Kind, Outbox, StreamId};
use crate::message::{Request, Response};

/// The number of open calls on one connection. Some may wait for ever on behalf of clients that gave up: the protocol
/// cannot cancel a call. A service lets at most half of them wait for the end of a process.
pub const CALLS_MAX: usize = 8192;
/// The number of bytes that may wait for a peer that does not read.
pub const PENDING_MAX: usize = 1 << 20;

/// A received request, and the stream on which it is answered.
#[derive(Debug)]
pub struct Call {
    pub stream: StreamId,
    pub request: Request,
}

#[derive(Default)]
pub struct Server {
    inbox: Inbox,
    outbox: Outbox,
    open: BTreeSet<StreamId>,
    newest: Option<StreamId>,
}

impl Server {
    pub fn new() -> Server {
        Server::default()
    }

    /// Takes bytes that were read from the peer.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.inbox.feed(bytes);
    }

    /// The next complete request. Requests that violate the protocol are answered here with an error.
    pub fn next_call(&mut self) -> Option<Call> {
        loop {
            let frame = self.inbox.pop()?;
            let stream = frame.header.stream;
            match self.accept(stream, frame.header.kind, frame.content) {
                Ok(Some(request)) => return Some(Call { stream, request }),
                Ok(None) => {}
                Err(error) => self.send(stream, Err(error)),
            }
        }
    }

    fn accept(&mut self, stream: StreamId, kind: Kind, content: Option<Vec<u8>>) -> Result<Option<Request>> {
        match kind {
            Kind::Request => {}
            // No caller waits for an answer to these: data of a stream that was refused, or of none.
            Kind::Data | Kind::Response | Kind::Other(_) => return Ok(None),
        }
        if stream.0.is_multiple_of(2) {
            return Err(Error::invalid_argument("StreamID must be odd for client initiated streams"));
        }
        if self.newest.is_some_and(|newest| stream <= newest) {
            return Err(Error::invalid_argument("StreamID cannot be re-used and must increment"));
        }
        self.newest = Some(stream);
        let content = content.ok_or_else(|| {
            Error::resource_exhausted(format!("message is longer than {CONTENT_LEN_MAX} bytes"))
        })?;
        if self.open.len() >= CALLS_MAX {
            return Err(Error::resource_exhausted(format!("{CALLS_MAX} calls are open on this connection")));
        }
        let request = Request::decode(content.as_slice())
            .map_err(|error| Error::invalid_argument("malformed ttrpc request").with_source(error))?;
        self.open.insert(stream);
        Ok(Some(request))
    }

    /// Queues the answer to a call. Panics if the call was answered already.
    pub fn reply(&mut self, stream: StreamId, outcome: Result<Vec<u8>>) {
        assert!(self.open.remove(&stream), "a stream is answered once");
        self.send(stream, outcome);
    }

    fn send(&mut self, stream: StreamId, outcome: Result<Vec<u8>>) {
        let mut content = Response::from(outcome).encode_to_vec();
        if content.len() > CONTENT_LEN_MAX {
            let error = Error::resource_exhausted(format!("answer is longer than {CONTENT_LEN_MAX} bytes"));
            content = Response::from(Err(error)).encode_to_vec();
        }
        self.outbox.push(stream, Kind::Response, &content);
    }

    /// Whether more input may be read from the peer now.
    pub fn accepts_input(&self) -> bool {
        self.outbox.pending().len() < PENDING_MAX
    }

    /// Whether a call still waits for its answer.
    pub fn has_open_calls(&self) -> bool {
        !self.open.is_empty()
    }

    /// Bytes to write to the peer. Report how many were written with [`Server::advance`].
    pub fn pending(&self) -> &[u8] {
        self.outbox.pending()
    }

    pub fn advance(&mut self, len: usize) {
        self.outbox.advance(len);
    }
}

#[cfg(test)]
mod tests {
    use types::ErrorKind;

    use super::*;
    use crate::client::{Answer, Client};
    use crate::frame::Header;

    fn request(method: &str) -> Request {
        Request::new("test.Service", method, &())
    }

    /// Moves all pending bytes in both directions.
    fn exchange(client: &mut Client, server: &mut Server) {
        server.feed(client.pending());
        client.advance(client.pending().len());
        client.feed(server.pending());
        server.advance(server.pending().len());
    }

    #[test]
    fn answers_find_their_calls_in_any_order() {
        let (mut client, mut server) = (Client::new(), Server::new());
        let first = client.call(&request("Wait")).unwrap();
        let second = client.call(&request("State")).unwrap();
        exchange(&mut client, &mut server);
        let waiting = server.next_call().unwrap();
        let quick = server.next_call().unwrap();
        assert_eq!((waiting.request.method.as_str(), quick.request.method.as_str()), ("Wait", "State"));
        server.reply(quick.stream, Ok(b"quick".to_vec()));
        exchange(&mut client, &mut server);
        let Answer { stream, outcome } = client.next_answer().unwrap();
        assert_eq!((stream, outcome.unwrap()), (second, b"quick".to_vec()));
        assert!(client.next_answer().is_none());
        server.reply(waiting.stream, Err(Error::not_found("gone")));
        exchange(&mut client, &mut server);
        let answer = client.next_answer().unwrap();
        assert_eq!(answer.stream, first);
        assert!(answer.outcome.unwrap_err().is(ErrorKind::NotFound));
    }

    /// Feeds one malformed frame and returns the kind of the error that answers it, if any.
    fn answer_to(server: &mut Server, header: Header, content: &[u8]) -> Option<ErrorKind> {
        server.feed(&header.encode());
        server.feed(content);
        assert!(server.next_call().is_none());
        let mut inbox = Inbox::default();
        inbox.feed(server.pending());
        server.advance(server.pending().len());
        let content = inbox.pop()?.content.unwrap();
        let response = Response::decode(content.as_slice()).unwrap();
        Some(Result::from(response).unwrap_err().kind())
    }

    #[test]
    fn frames_that_violate_the_protocol_are_refused() {
        let frame = |stream, kind, len| Header { len, stream: StreamId(stream), kind, flags: 0 };
        let mut server = Server::new();
        let mut check = |header, content: &[u8], expected| {
            assert_eq!(answer_to(&mut server, header, content), expected, "{header:?}");
        };
        check(frame(2, Kind::Request, 0), b"", Some(ErrorKind::InvalidArgument));
        check(frame(1, Kind::Request, 3), b"\xff\xff\xff", Some(ErrorKind::InvalidArgument));
        check(frame(1, Kind::Request, 0), b"", Some(ErrorKind::InvalidArgument));
        check(frame(9, Kind::Data, 1), b"x", None);
        check(frame(9, Kind::Response, 1), b"x", None);
        check(frame(9, Kind::Other(77), 1), b"x", None);
        check(frame(11, Kind::Request, u32::MAX), b"", Some(ErrorKind::ResourceExhausted));
    }

    #[test]
    fn calls_beyond_the_limit_are_refused_and_the_next_ones_are_read() {
        let (mut client, mut server) = (Client::new(), Server::new());
        let mut waiting = Vec::new();
        for _ in 0..CALLS_MAX {
            client.call(&request("Wait")).unwrap();
            exchange(&mut client, &mut server);
            waiting.push(server.next_call().unwrap().stream);
        }
        client.call(&request("Kill")).unwrap();
        exchange(&mut client, &mut server);
        assert!(server.next_call().is_none());
        exchange(&mut client, &mut server);
        let refused = client.next_answer().unwrap().outcome.unwrap_err();
        assert!(refused.is(ErrorKind::ResourceExhausted), "{refused:?}");
        assert!(server.accepts_input());
        server.reply(waiting[0], Ok(Vec::new()));
        client.call(&request("Kill")).unwrap();
        exchange(&mut client, &mut server);
        assert_eq!(server.next_call().unwrap().request.method, "Kill");
    }

    #[test]
    fn a_peer_that_does_not_read_is_not_read_from() {
        let (mut client, mut server) = (Client::new(), Server::new());
        client.call(&request("Big")).unwrap();
        server.feed(client.pending());
        let call = server.next_call().unwrap();
        server.reply(call.stream, Ok(vec![0; PENDING_MAX]));
        assert!(!server.accepts_input());
        server.advance(server.pending().len());
        assert!(server.accepts_input());
    }
}
