//! Counts gRPC messages in the body of a request or response.
//!
//! ```text
//! HTTP/2 data frames   [.........][......]
//! gRPC messages        1 byte, length (4), bytes │ 1 byte, length (4), bytes │ …
//! ```

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use hyper::body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

const HEAD_LEN: usize = 5;

/// Wraps a body to count its messages.
pub(super) fn count(body: Body, counter: Arc<AtomicU64>) -> Body {
    Body::new(Counted { body, counter, framing: Framing::default() })
}

/// Position of the next byte within a message.
#[derive(Default)]
struct Framing {
    head: [u8; HEAD_LEN],
    head_len: usize,
    /// Remaining bytes of the message, once its header is complete.
    left: usize,
}

impl Framing {
    /// How many messages these bytes complete.
    fn pass(&mut self, mut bytes: &[u8]) -> u64 {
        let mut whole = 0;
        while !bytes.is_empty() {
            if self.head_len < HEAD_LEN {
                let taken = bytes.len().min(HEAD_LEN - self.head_len);
                self.head[self.head_len..self.head_len + taken].copy_from_slice(&bytes[..taken]);
                self.head_len += taken;
                bytes = &bytes[taken..];
                if self.head_len < HEAD_LEN {
                    break;
                }
                let [_, length @ ..] = self.head;
                self.left = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
            }
            let taken = bytes.len().min(self.left);
            self.left -= taken;
            bytes = &bytes[taken..];
            if self.left == 0 {
                self.head_len = 0;
                whole += 1;
            }
        }
        whole
    }
}

struct Counted {
    body: Body,
    counter: Arc<AtomicU64>,
    framing: Framing,
}

impl hyper::body::Body for Counted {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            let whole = self.framing.pass(data);
            self.counter.fetch_add(whole, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let message = |length: u8| [&[0, 0, 0, 0, length][..], &vec![7; length.into()]].concat();
        let stream = [message(3), message(0), message(20), message(1)].concat();
        for size in 1..=stream.len() {
            let mut framing = Framing::default();
            let whole: u64 = stream.chunks(size).map(|piece| framing.pass(piece)).sum();
            assert_eq!(whole, 4, "in pieces of {size}");
        }
        assert_eq!(Framing::default().pass(&message(9)[..13]), 0, "the last byte is missing");
    }
}
