//! Frames, the unit of a ttrpc connection.
//!
//! ```text
//!  0        4        8      9       10
//!  +--------+--------+------+-------+-----------------+
//!  | length | stream | kind | flags | length bytes …  |     integers are big endian
//!  +--------+--------+------+-------+-----------------+
//! ```
//!
//! Invariants
//! - A frame's content is at most [`CONTENT_LEN_MAX`] bytes. [`Inbox`] skips a longer one without buffering it, and
//!   still returns its header, so that the server can answer the client.
//! - [`Inbox`] holds at most one incomplete frame beyond the bytes of the last [`Inbox::feed`].

use std::fmt;

/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 10;
/// The largest content of a frame, in bytes: the limit of the Go package.
pub const CONTENT_LEN_MAX: usize = 4 << 20;
/// An empty buffer with a larger capacity, in bytes, is freed.
const KEEP_CAPACITY: usize = 4 << 10;

/// One call on a connection. Clients choose odd numbers, each larger than the one before.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u32);

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stream {}", self.0)
    }
}

/// The type of a frame. Types outside the protocol keep their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Request,
    Response,
    Data,
    Other(u8),
}

impl Kind {
    fn from_byte(byte: u8) -> Kind {
        match byte {
            1 => Kind::Request,
            2 => Kind::Response,
            3 => Kind::Data,
            other => Kind::Other(other),
        }
    }

    fn byte(self) -> u8 {
        match self {
            Kind::Request => 1,
            Kind::Response => 2,
            Kind::Data => 3,
            Kind::Other(other) => other,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub len: u32,
    pub stream: StreamId,
    pub kind: Kind,
    pub flags: u8,
}

impl Header {
    pub fn encode(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..4].copy_from_slice(&self.len.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.stream.0.to_be_bytes());
        bytes[8] = self.kind.byte();
        bytes[9] = self.flags;
        bytes
    }

    pub fn decode(bytes: [u8; HEADER_LEN]) -> Header {
        let [a, b, c, d, e, f, g, h, kind, flags] = bytes;
        Header {
            len: u32::from_be_bytes([a, b, c, d]),
            stream: StreamId(u32::from_be_bytes([e, f, g, h])),
            kind: Kind::from_byte(kind),
            flags,
        }
    }
}

/// A received frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub header: Header,
    /// `None` when the content was longer than [`CONTENT_LEN_MAX`] and has been skipped.
    pub content: Option<Vec<u8>>,
}

/// A parser of received bytes into frames.
#[derive(Default)]
pub struct Inbox {
    bytes: Vec<u8>,
    /// The bytes still to be skipped of a content that was too long.
    skip: usize,
}

impl Inbox {
    pub fn feed(&mut self, mut bytes: &[u8]) {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        bytes = &bytes[skipped..];
        self.bytes.extend_from_slice(bytes);
    }

    /// The next complete frame.
    pub fn pop(&mut self) -> Option<Frame> {
        let header = Header::decode(*self.bytes.first_chunk::<HEADER_LEN>()?);
        let len = header.len as usize;
        if len > CONTENT_LEN_MAX {
            let here = (self.bytes.len() - HEADER_LEN).min(len);
            self.skip = len - here;
            self.take(HEADER_LEN + here);
            return Some(Frame { header, content: None });
        }
        let content = self.bytes.get(HEADER_LEN..HEADER_LEN + len)?.to_vec();
        self.take(HEADER_LEN + len);
        Some(Frame { header, content: Some(content) })
    }

    fn take(&mut self, len: usize) {
        self.bytes.drain(..len);
        if self.bytes.is_empty() && self.bytes.capacity() > KEEP_CAPACITY {
            self.bytes = Vec::new();
        }
    }
}

/// A buffer of frames to be sent.
#[derive(Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outbox {
    /// Queues a frame. Panics if `content` is longer than [`CONTENT_LEN_MAX`], which the caller has checked.
    pub fn push(&mut self, stream: StreamId, kind: Kind, content: &[u8]) {
        assert!(content.len() <= CONTENT_LEN_MAX, "content is checked before it is framed");
        let header = Header { len: content.len() as u32, stream, kind, flags: 0 };
        self.bytes.reserve(HEADER_LEN + content.len());
        self.bytes.extend_from_slice(&header.encode());
        self.bytes.extend_from_slice(content);
    }

    /// The bytes to write next.
    pub fn pending(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// Notes that the first `len` bytes of [`Outbox::pending`] were written.
    pub fn advance(&mut self, len: usize) {
        self.sent += len;
        assert!(self.sent <= self.bytes.len(), "no more is sent than was pending");
        if self.sent == self.bytes.len() {
            self.sent = 0;
            self.bytes.clear();
            if self.bytes.capacity() > KEEP_CAPACITY {
                self.bytes = Vec::new();
            }
        } else if self.sent > KEEP_CAPACITY.max(self.bytes.len() / 2) {
            // A slow peer may keep the buffer from ever being empty: drop the written bytes once they outnumber the
            // pending.
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(stream: u32, content: &[u8]) -> Vec<u8> {
        let mut outbox = Outbox::default();
        outbox.push(StreamId(stream), Kind::Request, content);
        outbox.pending().to_vec()
    }

    #[test]
    fn the_frame_header_is_that_of_the_go_package() {
        let header = Header { len: 0x0102_0304, stream: StreamId(5), kind: Kind::Response, flags: 2 };
        assert_eq!(header.encode(), [1, 2, 3, 4, 0, 0, 0, 5, 2, 2]);
        assert_eq!(Header::decode(header.encode()), header);
    }

    #[test]
    fn frames_come_out_whole_however_they_are_cut() {
        let mut wire = framed(1, b"hello");
        wire.extend(framed(3, b""));
        wire.extend(framed(5, &[7; 5000]));
        for cut in [1, 2, 9, 10, 11, 4096] {
            let mut inbox = Inbox::default();
            let mut frames = Vec::new();
            for chunk in wire.chunks(cut) {
                inbox.feed(chunk);
                frames.extend(std::iter::from_fn(|| inbox.pop()));
            }
            let streams: Vec<u32> = frames.iter().map(|frame| frame.header.stream.0).collect();
            assert_eq!(streams, [1, 3, 5]);
            assert_eq!(frames[0].content.as_deref(), Some(&b"hello"[..]));
            assert_eq!(frames[2].content.as_ref().map(Vec::len), Some(5000));
        }
    }

    #[test]
    fn the_outbox_frees_sent_bytes_though_some_are_always_pending() {
        let mut outbox = Outbox::default();
        let content = vec![7; 10_000];
        outbox.push(StreamId(1), Kind::Response, &content);
        for _ in 0..1000 {
            outbox.push(StreamId(1), Kind::Response, &content);
            outbox.advance(HEADER_LEN + content.len());
            assert_eq!(outbox.pending().len(), HEADER_LEN + content.len());
            assert!(outbox.bytes.len() <= 4 * content.len(), "{}", outbox.bytes.len());
        }
        let mut inbox = Inbox::default();
        inbox.feed(outbox.pending());
        assert_eq!(inbox.pop().and_then(|frame| frame.content), Some(content));
    }

    #[test]
    fn a_frame_that_is_too_long_is_skipped_and_not_buffered() {
        let len = CONTENT_LEN_MAX + 1;
        let header = Header { len: len as u32, stream: StreamId(1), kind: Kind::Request, flags: 0 };
        let mut inbox = Inbox::default();
        inbox.feed(&header.encode());
        assert_eq!(inbox.pop(), Some(Frame { header, content: None }));
        for _ in 0..len / 1000 {
            inbox.feed(&[0; 1000]);
            assert!(inbox.bytes.is_empty());
        }
        inbox.feed(&vec![0; len % 1000]);
        inbox.feed(&framed(3, b"next"));
        assert_eq!(inbox.pop().and_then(|frame| frame.content).as_deref(), Some(&b"next"[..]));
    }
}
