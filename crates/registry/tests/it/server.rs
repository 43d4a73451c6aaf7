//! A scripted registry, for faults that a real one cannot produce.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

/// A received request.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

impl Seen {
    /// The values of a repeated header.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }
}

/// A scripted response.
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Bytes of the body after which the connection is cut.
    cut: usize,
    length: Option<u64>,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        let body = body.into();
        let length = Some(body.len() as u64);
        Reply { status, headers: Vec::new(), body, cut: usize::MAX, length }
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Reply {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Cuts the connection after this many bytes of the body.
    pub(crate) fn cut_after(self, bytes: usize) -> Reply {
        Reply { cut: bytes, ..self }
    }

    /// Announces a wrong length, or none.
    pub(crate) fn announce(self, length: Option<u64>) -> Reply {
        Reply { length, ..self }
    }
}

type Handler = dyn Fn(&Seen, usize) -> Reply + Send + Sync;

/// A running server. Its threads end with the test process.
pub(crate) struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    /// The handler gets each request and the number of requests before it.
    pub(crate) fn start(handler: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (handler, log): (Arc<Handler>, _) = (Arc::new(handler), seen.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (handler, log) = (handler.clone(), log.clone());
                // The client hung up.
                std::thread::spawn(move || drop(serve(&stream, &*handler, &log)));
            }
        });
        Server { address, seen }
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.seen.lock().expect("no handler panics")
    }
}

/// Serves one request per connection.
fn serve(stream: &TcpStream, handler: &Handler, log: &Mutex<Vec<Seen>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream);
    let mut first = [0];
    lines.read_exact(&mut first)?;
    // The first byte of a TLS handshake, which this server does not support.
    if first[0] == 22 {
        return Ok(());
    }
    let mut line = String::new();
    lines.read_line(&mut line)?;
    let mut words = line.split(' ').map(str::to_owned);
    // The first byte was already read, to detect TLS.
    let method = format!("{}{}", char::from(first[0]), words.next().unwrap_or_default());
    let path = words.next().unwrap_or_default();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        lines.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        headers.push((name.to_owned(), value.to_owned()));
    }
    let mut request = Seen { method, path, headers, body: Vec::new() };
    let len = request.header("content-length").and_then(|len| len.parse().ok()).unwrap_or(0);
    request.body.resize(len, 0);
    lines.read_exact(&mut request.body)?;
    let before = {
        let mut log = log.lock().expect("no handler panics");
        log.push(request.clone());
        log.len() - 1
    };
    // Many proxies and some registries refuse such requests.
    let is_without_length = matches!(request.method.as_str(), "POST" | "PUT" | "PATCH")
        && request.header("content-length").is_none();
    let reply = if is_without_length { Reply::new(411, "") } else { handler(&request, before) };
    let mut stream = stream;
    write!(stream, "HTTP/1.1 {} Said\r\nConnection: close\r\n", reply.status)?;
    for (name, value) in &reply.headers {
        write!(stream, "{name}: {value}\r\n")?;
    }
    if let Some(length) = reply.length {
        write!(stream, "Content-Length: {length}\r\n")?;
    }
    stream.write_all(b"\r\n")?;
    stream.write_all(&reply.body[..reply.body.len().min(reply.cut)])
}

pub(crate) fn range(request: &Seen) -> Option<(usize, usize)> {
    let (first, last) = request.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?))
}

/// Answers range requests correctly.
pub(crate) fn give(blob: &[u8], request: &Seen) -> Reply {
    match range(request) {
        None => Reply::new(200, blob),
        Some((first, last)) => Reply::new(206, &blob[first..=last])
            .header("Content-Range", format!("bytes {first}-{last}/{}", blob.len())),
    }
}
