//! A blocking client: one call at a time over a unix socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use prost::Message;
use types::{Context, Result};

use crate::client::Client;
use crate::message::{Request, read_answer};
use crate::socket_path;

pub struct Blocking {
    stream: UnixStream,
    client: Client,
}

impl Blocking {
    /// Connects to `unix:///path` or `/path`.
    pub fn connect(address: &str) -> Result<Blocking> {
        let path = socket_path(address)?;
        let stream = UnixStream::connect(path).context(|| format!("connect to {}", path.display()))?;
        Ok(Blocking::new(stream))
    }

    pub fn new(stream: UnixStream) -> Blocking {
        Blocking { stream, client: Client::new() }
    }

    /// Sends a request and waits for the answer: without a timeout in the request, for ever.
    pub fn call<M: Message + Default>(&mut self, request: &Request) -> Result<M> {
        let deadline = request.timeout().map(|timeout| Instant::now() + timeout);
        let stream = self.client.call(request)?;
        let outcome = self.exchange(stream, deadline);
        if outcome.is_err() {
            self.client.forget(stream);
        }
        let payload = outcome.context(|| format!("{}/{}", request.service, request.method))??;
        read_answer(&payload)
    }

    fn exchange(
        &mut self,
        stream: crate::StreamId,
        deadline: Option<Instant>,
    ) -> io::Result<Result<Vec<u8>>> {
        while !self.client.pending().is_empty() {
            self.stream.set_write_timeout(remaining(deadline)?)?;
            match self.stream.write(self.client.pending()) {
                // With SO_RCVTIMEO or SO_SNDTIMEO the kernel restarts no call after a signal (signal(7)).
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                written => self.client.advance(written.map_err(timed_out)?),
            }
        }
        let mut buffer = vec![0; 16 << 10];
        loop {
            while let Some(answer) = self.client.next_answer() {
                if answer.stream == stream {
                    return Ok(answer.outcome);
                }
            }
            self.stream.set_read_timeout(remaining(deadline)?)?;
            match self.stream.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(timed_out(error)),
                Ok(0) => return Err(io::ErrorKind::ConnectionReset.into()),
                Ok(len) => self.client.feed(&buffer[..len]),
            }
        }
    }
}

fn remaining(deadline: Option<Instant>) -> io::Result<Option<Duration>> {
    let Some(deadline) = deadline else { return Ok(None) };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
}

/// The kernel reports an expired socket timeout as `WouldBlock`.
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Server;
    use types::ErrorKind;

    /// Answers each call with its own payload, except method `Never`.
    fn echo(mut stream: UnixStream) {
        let mut server = Server::new();
        let mut buffer = [0; 512];
        while let Ok(len @ 1..) = stream.read(&mut buffer) {
            server.feed(&buffer[..len]);
            while let Some(call) = server.next_call() {
                match call.request.method.as_str() {
                    "Never" => {}
                    "Echo" => server.reply(call.stream, Ok(call.request.payload)),
                    _ => server.reply(call.stream, Err(call.request.unknown_method())),
                }
            }
            let sent = stream.write(server.pending()).unwrap();
            server.advance(sent);
        }
    }

    #[test]
    fn calls_return_answers_errors_and_timeouts() {
        let (here, there) = UnixStream::pair().unwrap();
        let peer = std::thread::spawn(|| echo(there));
        let mut client = Blocking::new(here);
        let message = crate::Status { code: 3, message: "hello".into() };
        let echoed: crate::Status = client.call(&Request::new("s", "Echo", &message)).unwrap();
        assert_eq!(echoed, message);

        let unknown = client.call::<()>(&Request::new("s", "Other", &())).unwrap_err();
        assert_eq!(unknown.kind(), ErrorKind::Unimplemented);

        let never = Request::new("s", "Never", &()).with_timeout(Duration::from_millis(5));
        assert_eq!(client.call::<()>(&never).unwrap_err().kind(), ErrorKind::DeadlineExceeded);
        let again: crate::Status = client.call(&Request::new("s", "Echo", &message)).unwrap();
        assert_eq!(again, message);
        drop(client);
        peer.join().unwrap();
    }
}
