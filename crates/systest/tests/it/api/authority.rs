//! gRPC clients that send the socket's path as the `:authority` of their calls, as gRPC's C core and Java do. The test
//! writes HTTP/2 by hand, because Hoist's own client does not send such a name.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use api::grpc::version::VersionResponse;
use prost::Message;
use testkit::{Containerd, Daemon};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GO_AWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A connection of HTTP/2 (RFC 9113), on which calls follow each other.
struct Connection {
    stream: UnixStream,
    last: u32,
}

impl Connection {
    fn open(socket: &Path) -> Connection {
        let stream = UnixStream::connect(socket).expect("the daemon listens");
        stream.set_read_timeout(Some(testkit::DEADLINE)).expect("a limit");
        let mut connection = Connection { stream, last: 0 };
        connection.stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("it reads");
        connection.send(SETTINGS, 0, 0, &[]);
        connection
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let [_, len @ ..] = u32::try_from(payload.len()).expect("a short one").to_be_bytes();
        let frame = [&len[..], &[kind, flags], &stream.to_be_bytes(), payload].concat();
        self.stream.write_all(&frame).expect("it reads");
    }

    /// Asks for the version with a header block: the message that is answered, or the frame that refuses the call.
    fn version(&mut self, block: &[u8]) -> Result<VersionResponse, String> {
        self.last = if self.last == 0 { 1 } else { self.last + 2 };
        self.send(HEADERS, END_HEADERS, self.last, block);
        self.send(DATA, END_STREAM, self.last, &[0; 5]);
        let mut message = Vec::new();
        loop {
            let mut header = [0; 9];
            self.stream.read_exact(&mut header).map_err(|error| format!("no answer: {error}"))?;
            let [high, middle, low, kind, flags, stream @ ..] = header;
            let mut payload = vec![0; u32::from_be_bytes([0, high, middle, low]) as usize];
            self.stream.read_exact(&mut payload).map_err(|error| format!("no answer: {error}"))?;
            let is_ours = u32::from_be_bytes(stream) == self.last;
            match kind {
                GO_AWAY => return Err(format!("GOAWAY {payload:?}")),
                RST_STREAM if is_ours => return Err(format!("RST_STREAM {payload:?}")),
                SETTINGS if flags == 0 => self.send(SETTINGS, 1, 0, &[]),
                DATA if is_ours => message.extend(payload),
                HEADERS if is_ours && flags & END_STREAM != 0 => {
                    let message = message.get(5..).ok_or("an answer without a message")?;
                    return VersionResponse::decode(message).map_err(|error| error.to_string());
                }
                _ => {}
            }
        }
    }
}

fn string(text: &str) -> Vec<u8> {
    [&[u8::try_from(text.len()).expect("a short one")][..], text.as_bytes()].concat()
}

/// A header block (RFC 7541) with this string as its `:authority`, whose fields are put into the table.
fn block(authority: &[u8]) -> Vec<u8> {
    let path = [&[0x83, 0x86, 0x44][..], &string("/containerd.services.version.v1.Version/Version")].concat();
    let rest =
        [&[0x40][..], &string("te"), &string("trailers"), &[0x5f], &string("application/grpc")].concat();
    [&path, &[0x41][..], authority, &rest].concat()
}

#[test]
fn the_path_of_the_socket_is_taken_for_a_host() {
    let daemon = Daemon::start();
    let containerd = Containerd::start();
    let sockets = [Some(daemon.socket()), containerd.as_ref().map(Containerd::socket)];
    // "%2Frun%2Fhoist%2Fhoist.sock" in Huffman's code.
    let in_code = &b"\x93\x54\x58\x6c\xb6\xa5\x45\x86\x73\x99\x09\x54\x58\x67\x39\x90\x95\xd0\x72\x75"[..];
    for socket in sockets.into_iter().flatten() {
        let path = socket.display().to_string();
        for authority in
            [&string(&path.replace('/', "%2F"))[..], &string(&path), in_code, &string("localhost")]
        {
            let mut connection = Connection::open(&socket);
            let first = connection.version(&block(authority));
            assert!(first.as_ref().is_ok_and(|answer| !answer.version.is_empty()), "{path}: {first:?}");
            // The same fields, by their indexes in the table.
            let again = connection.version(&[0x83, 0x86, 0xc1, 0xc0, 0xbf, 0xbe]);
            assert_eq!(again, first, "{path}");
        }
    }
}
