//! A connection whose client may use a socket's path as the `:authority` of its calls: see [`h2_authority`].

use std::io::{Error, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use h2_authority::Rewriter;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// Bytes read at once while other bytes are held back.
const PIECE_LEN: usize = 256;

/// Rewrites what is read in place, in the reader's buffer; passes on what is written.
pub(crate) struct AuthorityStream<S> {
    stream: S,
    rewriter: Rewriter,
    /// Bytes to be read, followed by bytes that are held back until more arrive.
    held: Vec<u8>,
    ready: usize,
}

impl<S> AuthorityStream<S> {
    pub(crate) fn new(stream: S) -> AuthorityStream<S> {
        AuthorityStream { stream, rewriter: Rewriter::default(), held: Vec::new(), ready: 0 }
    }
}

impl<S: AsyncRead + Unpin> AuthorityStream<S> {
    /// Waits for the first bytes or the end of the stream.
    pub(crate) async fn begin(&mut self) -> Result<(), Error> {
        let mut first = [0; PIECE_LEN];
        let len = self.stream.read(&mut first).await?;
        self.held.extend_from_slice(&first[..len]);
        self.ready = self.rewriter.pass(&mut self.held);
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AuthorityStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), Error>> {
        let this = &mut *self;
        if this.held.is_empty() {
            let before = into.filled().len();
            ready!(Pin::new(&mut this.stream).poll_read(cx, into))?;
            let read = &mut into.filled_mut()[before..];
            let passed = this.rewriter.pass(read);
            if passed == read.len() {
                return Poll::Ready(Ok(()));
            }
            this.held.extend_from_slice(&read[passed..]);
            into.set_filled(before + passed);
            if passed > 0 {
                return Poll::Ready(Ok(()));
            }
        }
        while this.ready == 0 {
            let mut piece = [0; PIECE_LEN];
            let mut piece = ReadBuf::new(&mut piece);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut piece))?;
            this.held.extend_from_slice(piece.filled());
            let has_ended = piece.filled().is_empty();
            this.ready = if has_ended { this.held.len() } else { this.rewriter.pass(&mut this.held) };
        }
        let len = this.ready.min(into.remaining());
        into.put_slice(&this.held[..len]);
        this.held.drain(..len);
        this.ready -= len;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AuthorityStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize, Error>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<Result<usize, Error>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::poll_fn;

    use http::{Request, Response};
    use http_body_util::Empty;
    use hyper::body::{Bytes, Incoming};
    use hyper::server::conn::http2;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::sync::mpsc;

    use super::*;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

    /// A client that has sent these pieces and then has closed the connection, or sends nothing more.
    struct Sent {
        pieces: Vec<Vec<u8>>,
        has_ended: bool,
    }

    impl AsyncRead for Sent {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            into: &mut ReadBuf<'_>,
        ) -> Poll<Result<(), Error>> {
            if self.pieces.is_empty() {
                return if self.has_ended { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
            let piece = &mut self.pieces[0];
            let len = piece.len().min(into.remaining());
            into.put_slice(&piece[..len]);
            piece.drain(..len);
            if piece.is_empty() {
                self.pieces.remove(0);
            }
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Sent {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, Error>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
            Poll::Ready(Ok(()))
        }
    }

    /// A HEADERS frame whose header block has this authority.
    fn request(stream: u8, authority: &[u8]) -> Vec<u8> {
        let block = [&[0x83, 0x86, 0x84][..], authority].concat();
        let len = u8::try_from(block.len()).unwrap();
        [&[0, 0, len, 0x1, 0x5, 0, 0, 0, stream], &block[..]].concat()
    }

    /// Reads everything, `room` bytes at a time, with or without a call of `begin` first.
    fn read(sent: Sent, room: usize, begin: bool) -> Vec<u8> {
        let (mut stream, mut read) = (AuthorityStream::new(sent), Vec::new());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            if begin {
                stream.begin().await.unwrap();
            }
            loop {
                let mut bytes = vec![0; room];
                let mut into = ReadBuf::new(&mut bytes);
                poll_fn(|cx| Pin::new(&mut stream).poll_read(cx, &mut into)).await.unwrap();
                if into.filled().is_empty() {
                    return read;
                }
                read.extend_from_slice(into.filled());
            }
        })
    }

    #[test]
    fn a_connection_is_read_whole_in_any_pieces() {
        let whole = |authority: &[u8]| [PREFACE, &request(1, authority), &request(3, authority)].concat();
        let (sent, expected) = (whole(b"\x41\x04/a/b"), whole(b"\x41\x04-a-b"));
        for piece_len in 1..sent.len() {
            for room in [1, 2, 7, 8192] {
                for begin in [false, true] {
                    let pieces = sent.chunks(piece_len).map(<[u8]>::to_vec).collect();
                    let read = read(Sent { pieces, has_ended: true }, room, begin);
                    assert_eq!(read, expected, "{piece_len}, {room}, {begin}");
                }
            }
        }
    }

    #[test]
    fn a_truncated_connection_is_read_to_its_end() {
        let sent = [PREFACE, &request(1, b"\x41\x04/a/b")].concat();
        for len in 0..sent.len() {
            let sent = sent[..len].to_vec();
            for begin in [false, true] {
                let pieces = if sent.is_empty() { Vec::new() } else { vec![sent.clone()] };
                let read = read(Sent { pieces, has_ended: true }, 8192, begin);
                assert_eq!(read, sent, "{len} bytes, {begin}");
            }
        }
    }

    /// The header as decoded by another HPACK implementation, the server's.
    #[tokio::test]
    async fn a_server_sees_rewritten_authorities() {
        // A literal, then a reference to the dynamic table entry that it made, then "%2Frun%2Fhoist%2Fhoist.sock"
        // Huffman-coded.
        let plain = request(1, b"\x41\x13/run/a:b/hoist.sock");
        let in_code = request(
            5,
            b"\x41\x93\x54\x58\x6c\xb6\xa5\x45\x86\x73\x99\x09\x54\x58\x67\x39\x90\x95\xd0\x72\x75",
        );
        let pieces = vec![[PREFACE, &plain, &request(3, b"\xbe"), &in_code].concat()];
        let (tell, mut told) = mpsc::unbounded_channel();
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let authority = request.uri().authority().map(ToString::to_string);
            let _ = tell.send(authority.unwrap_or_default());
            async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }
        });
        let stream = TokioIo::new(AuthorityStream::new(Sent { pieces, has_ended: false }));
        let serving =
            tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service));
        for name in ["-run-a-b-hoist.sock", "-run-a-b-hoist.sock", "-2Frun-2Fhoist-2Fhoist.sock"] {
            assert_eq!(told.recv().await.as_deref(), Some(name));
        }
        serving.abort();
    }
}
