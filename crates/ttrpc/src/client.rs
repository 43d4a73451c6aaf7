//! The client side of one connection, without IO.

use std::collections::BTreeSet;

use prost::Message;
use types::{Error, Result};

use crate::frame::{CONTENT_LEN_MAX, Inbox, Kind, Outbox, StreamId};
use crate::message::{Request, Response};

/// The response to a call.
#[derive(Debug)]
pub struct Answer {
    pub stream: StreamId,
    pub outcome: Result<Vec<u8>>,
}

pub struct Client {
    inbox: Inbox,
    outbox: Outbox,
    open: BTreeSet<StreamId>,
    next: u32,
}

impl Default for Client {
    fn default() -> Client {
        Client { inbox: Inbox::default(), outbox: Outbox::default(), open: BTreeSet::new(), next: 1 }
    }
}

impl Client {
    pub fn new() -> Client {
        Client::default()
    }

    /// Queues a request.
    ///
    /// `ResourceExhausted` if it is longer than a frame may be; `Unavailable` when this connection
    /// has used up its stream numbers.
    pub fn call(&mut self, request: &Request) -> Result<StreamId> {
        let content = request.encode_to_vec();
        if content.len() > CONTENT_LEN_MAX {
            return Err(Error::resource_exhausted(format!(
                "{}/{}: request is longer than {CONTENT_LEN_MAX} bytes",
                request.service, request.method
            )));
        }
        let stream = StreamId(self.next);
        self.next = self
            .next
            .checked_add(2)
            .ok_or_else(|| Error::unavailable("this connection has no stream numbers left"))?;
        self.open.insert(stream);
        self.outbox.push(stream, Kind::Request, &content);
        Ok(stream)
    }

    /// Drops the answer to this call when it arrives: the caller no longer waits.
    pub fn forget(&mut self, stream: StreamId) {
        self.open.remove(&stream);
    }

    /// Takes bytes that were read from the peer.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.inbox.feed(bytes);
    }

    /// The next complete answer. Answers to unknown or forgotten calls are dropped.
    pub fn next_answer(&mut self) -> Option<Answer> {
        loop {
            let frame = self.inbox.pop()?;
            let stream = frame.header.stream;
            if frame.header.kind != Kind::Response || !self.open.remove(&stream) {
                continue;
            }
            return Some(Answer { stream, outcome: outcome_of(frame.content) });
        }
    }

    pub fn pending(&self) -> &[u8] {
        self.outbox.pending()
    }

    pub fn advance(&mut self, len: usize) {
        self.outbox.advance(len);
    }
}

fn outcome_of(content: Option<Vec<u8>>) -> Result<Vec<u8>> {
    let content = content
        .ok_or_else(|| Error::resource_exhausted(format!("answer is longer than {CONTENT_LEN_MAX} bytes")))?;
    let response = Response::decode(content.as_slice())
        .map_err(|error| Error::internal("malformed ttrpc response").with_source(error))?;
    response.into()
}
