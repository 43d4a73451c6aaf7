//! A registry that misbehaves as a test says: an HTTP/1.1 proxy in front of a real one.
//!
//! ```text
//! client ──▶ FaultProxy ──▶ docker-registry
//!              │ a rule looks at each request and names the faults of its answer
//!              └ counts requests, and bytes in both directions
//! ```
//!
//! One request a connection. What a rule does not touch goes through as it is. The registry takes its own
//! address from the `Host` header, so that the uploads that it names lead through the proxy too.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use stdx::{Condvar, Mutex};

use crate::wait::{DEADLINE, wait_for};
use crate::{Registry, eventually};

/// Bytes that are moved at a time: a fault inside a body hits within this many.
const STEP_LEN: usize = 16 * 1024;
/// The largest head of a request or an answer, in bytes.
const HEAD_LEN_MAX: u64 = 64 * 1024;
/// Bytes after which [`Fault::Endless`] gives up on a client that never hangs up.
const ENDLESS_LEN: u64 = 1 << 30;

/// A fault of an answer. An answer may have several.
#[derive(Clone)]
pub enum Fault {
    /// The request waits this long before it is passed on.
    Delay(Duration),
    /// The request waits at the gate before it is passed on.
    Wait(Gate),
    /// The proxy answers by itself, without asking the registry.
    Answer { status: u16, headers: Vec<(&'static str, String)>, body: Vec<u8> },
    /// The proxy never answers, and keeps the connection until the client closes it.
    Silence,
    /// Replaces a header of the request that the registry gets; `None` removes it.
    Ask { name: &'static str, value: Option<String> },
    /// Replaces a header of the answer that the client gets; `None` removes it.
    Say { name: &'static str, value: Option<String> },
    /// Replaces the status of the answer.
    Status(u16),
    /// Replaces the body of the answer, and its length.
    Body(Vec<u8>),
    /// Breaks the connection after this many bytes of the answer's body.
    Cut(u64),
    /// Breaks the connection once the registry has answered: the client does not get the answer.
    CutAnswer,
    /// Breaks the connection after this many bytes of the request's body have reached the registry.
    CutUpload(u64),
    /// Changes the byte at this offset of the blob.
    Corrupt(u64),
    /// The body waits at the gate once it has reached this offset of the blob.
    Hold { at: u64, gate: Gate },
    /// Limits the body to `bytes` in each interval of `every`.
    Throttle { bytes: usize, every: Duration },
    /// The body has no length and never ends.
    Endless,
}

impl Fault {
    pub fn answer(status: u16) -> Fault {
        Fault::Answer { status, headers: Vec::new(), body: Vec::new() }
    }

    pub fn redirect(to: impl Into<String>) -> Fault {
        Fault::Answer { status: 307, headers: vec![("Location", to.into())], body: Vec::new() }
    }

    pub fn say(name: &'static str, value: impl Into<String>) -> Fault {
        Fault::Say { name, value: Some(value.into()) }
    }

    /// Removes the `Range` header, so that the registry sends the whole blob.
    pub fn ignore_range() -> Fault {
        Fault::Ask { name: "Range", value: None }
    }
}

/// A gate at which requests wait until a test opens it.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Default)]
struct GateState {
    arrived: usize,
    is_open: bool,
}

impl Gate {
    /// Lets all waiting requests through, and all later ones.
    pub fn open(&self) {
        self.lock().is_open = true;
        self.0.1.notify_all();
    }

    /// Waits until this many requests have arrived at the gate.
    #[track_caller]
    pub fn arrivals(&self, count: usize) {
        let few = |state: &mut GateState| state.arrived < count;
        let (state, _) = self.0.1.wait_timeout_while(self.lock(), DEADLINE, few);
        assert!(state.arrived >= count, "{} of {count} came to the gate within {DEADLINE:?}", state.arrived);
    }

    /// Waits until the gate is open.
    pub fn pass(&self) {
        let mut state = self.lock();
        state.arrived += 1;
        self.0.1.notify_all();
        // A gate that the test never opens gives way after the deadline, so that the test ends.
        drop(self.0.1.wait_timeout_while(state, DEADLINE, |state| !state.is_open));
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.0.0.lock()
    }
}

/// A request, as the rule of a proxy gets it.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    /// The path with its query.
    pub path: String,
    headers: Vec<(String, String)>,
    /// Earlier requests with the same method and path.
    pub before: usize,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// The digest, if the request is for a blob.
    pub fn blob(&self) -> Option<&str> {
        self.object("/blobs/").filter(|object| object.contains(':'))
    }

    /// The tag or digest, if the request is for a manifest.
    pub fn manifest(&self) -> Option<&str> {
        self.object("/manifests/")
    }

    /// The rest of the path behind `after`, without the query that mirrors get.
    fn object(&self, after: &str) -> Option<&str> {
        let (_, object) = self.path.split_once(after)?;
        object.split('?').next()
    }

    pub fn is_upload(&self) -> bool {
        self.path.contains("/blobs/uploads/")
    }

    /// The first byte of the requested range.
    pub fn start(&self) -> Option<u64> {
        self.header("range")?.strip_prefix("bytes=")?.split('-').next()?.parse().ok()
    }
}

/// What the proxy recorded of a request.
#[derive(Clone, Debug)]
pub struct Served {
    pub asked: Asked,
    pub status: u16,
    /// Bytes of the request's body.
    pub received: u64,
    /// Bytes of the answer's body that reached the client.
    pub sent: u64,
}

type Rule = dyn Fn(&Asked) -> Vec<Fault> + Send + Sync;

/// A running proxy. Dropping it closes its port; a connection ends with its client.
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    registry: SocketAddr,
    rule: Box<Rule>,
    log: Mutex<Vec<Served>>,
    counts: Mutex<HashMap<(String, String), usize>>,
    is_over: AtomicBool,
}

impl FaultProxy {
    /// Starts a proxy in front of a registry. `rule` names the faults of the answer to each request, mostly none.
    pub fn start(
        registry: &Registry,
        rule: impl Fn(&Asked) -> Vec<Fault> + Send + Sync + 'static,
    ) -> FaultProxy {
        FaultProxy::start_at(registry.address(), rule)
    }

    /// Starts a proxy in front of any HTTP server.
    pub fn start_at(
        registry: SocketAddr,
        rule: impl Fn(&Asked) -> Vec<Fault> + Send + Sync + 'static,
    ) -> FaultProxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            registry,
            rule: Box::new(rule),
            log: Mutex::default(),
            counts: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.is_over.load(Ordering::SeqCst) {
                    return;
                }
                let shared = accepting.clone();
                // An error means that the client or the registry closed the connection, which some tests provoke.
                std::thread::spawn(move || drop(serve(&shared, &client)));
            }
        });
        FaultProxy { address, shared }
    }

    /// `127.0.0.1:PORT`, as references name the host.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// The reference of an image of the registry, by way of the proxy.
    pub fn through(&self, reference: &str) -> String {
        let (_, name) = reference.split_once('/').expect("a reference with a host");
        format!("{}/{name}", self.host())
    }

    /// All requests so far, in order of arrival.
    pub fn log(&self) -> Vec<Served> {
        self.shared.log().clone()
    }

    /// The requests so far for which `matches` holds.
    pub fn requests(&self, matches: impl Fn(&Asked) -> bool) -> Vec<Served> {
        self.log().into_iter().filter(|served| matches(&served.asked)).collect()
    }

    /// GET requests for one blob.
    pub fn reads(&self, digest: &str) -> Vec<Served> {
        self.requests(|asked| asked.method == "GET" && asked.blob() == Some(digest))
    }

    /// Bytes of all blobs that clients received.
    pub fn blob_bytes(&self) -> u64 {
        self.requests(|asked| asked.blob().is_some()).iter().map(|served| served.sent).sum()
    }

    /// Waits until `matches` holds for `count` requests.
    pub fn until(&self, what: &str, count: usize, matches: impl Fn(&Asked) -> bool) {
        eventually(what, || (self.requests(&matches).len() >= count).then_some(()));
    }

    /// Empties the log.
    pub fn clear(&self) {
        self.shared.log().clear();
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts. If connecting fails, the thread is gone already.
        drop(TcpStream::connect(self.address));
    }
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Vec<Served>> {
        self.log.lock()
    }

    fn count(&self, method: &str, path: &str) -> usize {
        let mut counts = self.counts.lock();
        let count = counts.entry((method.to_owned(), path.to_owned())).or_default();
        *count += 1;
        *count - 1
    }

    /// Adds a line to the log, which is updated while the request is served.
    fn begin(&self, asked: &Asked) -> impl Fn(&dyn Fn(&mut Served)) + '_ {
        let mut log = self.log();
        log.push(Served { asked: asked.clone(), status: 0, received: 0, sent: 0 });
        let at = log.len() - 1;
        // The log may have been cleared since.
        move |change| {
            if let Some(line) = self.log().get_mut(at) {
                change(line);
            }
        }
    }
}

/// The first line and the headers of a request or an answer.
struct Head {
    first: String,
    headers: Vec<(String, String)>,
}

impl Head {
    fn read(from: &mut impl BufRead) -> io::Result<Head> {
        let mut from = from.take(HEAD_LEN_MAX);
        let mut line = || -> io::Result<String> {
            let mut line = String::new();
            match from.read_line(&mut line)? {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                _ => Ok(line.trim_end().to_owned()),
            }
        };
        let first = line()?;
        let mut headers = Vec::new();
        loop {
            let line = line()?;
            let Some((name, value)) = line.split_once(':') else { return Ok(Head { first, headers }) };
            headers.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    fn length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    fn set(&mut self, name: &str, value: Option<&str>) {
        self.headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
        self.headers.extend(value.map(|value| (name.to_owned(), value.to_owned())));
    }

    fn write(&self, mut to: impl Write) -> io::Result<()> {
        let mut text = format!("{}\r\n", self.first);
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        to.write_all((text + "\r\n").as_bytes())
    }
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

fn serve(shared: &Shared, client: &TcpStream) -> io::Result<()> {
    let mut from_client = BufReader::new(client);
    // A byte 22 begins a TLS handshake (RFC 8446, section 5.1), which the proxy does not speak.
    if from_client.fill_buf()?.first() == Some(&22) {
        return Ok(());
    }
    let mut head = Head::read(&mut from_client)?;
    let mut words = head.first.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (method, path) = (method.to_owned(), path.to_owned());
    let before = shared.count(&method, &path);
    let asked = Asked { method, path, headers: head.headers.clone(), before };
    let log = shared.begin(&asked);
    let faults = (shared.rule)(&asked);

    for fault in &faults {
        match fault {
            Fault::Delay(time) => wait_for(*time),
            Fault::Wait(gate) => gate.pass(),
            Fault::Silence => return io::copy(&mut from_client, &mut io::sink()).map(drop),
            Fault::Ask { name, value } => head.set(name, value.as_deref()),
            _ => {}
        }
    }
    let answered = faults.iter().find_map(|fault| match fault {
        Fault::Answer { status, headers, body } => Some((*status, headers, body)),
        _ => None,
    });
    if let Some((status, headers, body)) = answered {
        log(&|line| line.status = status);
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let mut head = Head { first: format!("HTTP/1.1 {status} Said"), headers };
        head.set("Content-Length", Some(&body.len().to_string()));
        head.set("Connection", Some("close"));
        head.write(client)?;
        // Reads what the client still sends: with unread data the close would reset the connection, and lose the
        // answer.
        let mut to_client = client;
        to_client.write_all(body)?;
        log(&|line| line.sent = body.len() as u64);
        client.shutdown(Shutdown::Write)?;
        return io::copy(&mut from_client, &mut io::sink()).map(drop);
    }

    let registry = TcpStream::connect(shared.registry)?;
    let cut = faults.iter().find_map(|fault| match fault {
        Fault::CutUpload(bytes) => Some(*bytes),
        _ => None,
    });
    let was_cut = send_on(&head, &asked, &mut from_client, client, &registry, cut, &|bytes| {
        log(&|line| line.received += bytes);
    })?;
    if was_cut {
        registry.shutdown(Shutdown::Write)?;
        // The registry closes its end once it has seen ours close.
        io::copy(&mut &registry, &mut io::sink())?;
        return client.shutdown(Shutdown::Both);
    }
    if faults.iter().any(|fault| matches!(fault, Fault::CutAnswer)) {
        io::copy(&mut &registry, &mut io::sink())?;
        return client.shutdown(Shutdown::Both);
    }
    answer(&asked, &faults, &registry, client, &log)
}

/// Sends a request to the registry. Returns whether a fault cut it off.
fn send_on(
    head: &Head,
    asked: &Asked,
    from_client: &mut impl BufRead,
    client: &TcpStream,
    registry: &TcpStream,
    cut: Option<u64>,
    count: &dyn Fn(u64),
) -> io::Result<bool> {
    // With HTTP/1.0 the answer ends with the connection, and is not chunked.
    let mut own = Head { first: format!("{} {} HTTP/1.0", asked.method, asked.path), headers: Vec::new() };
    own.headers = head.headers.clone();
    for name in ["Connection", "Transfer-Encoding", "Expect", "Content-Length"] {
        own.set(name, None);
    }
    if head.header("expect").is_some() {
        let mut client = client;
        client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let is_chunked = head.header("transfer-encoding").is_some_and(|coding| coding.contains("chunked"));
    let mut registry = registry;
    if is_chunked {
        let body = read_chunks(from_client)?;
        count(body.len() as u64);
        own.set("Content-Length", Some(&body.len().to_string()));
        own.write(registry)?;
        let len = cut.map_or(body.len(), |cut| body.len().min(usize::try_from(cut).unwrap_or(usize::MAX)));
        registry.write_all(&body[..len])?;
        return Ok(len < body.len());
    }
    let length = head.length().unwrap_or(0);
    if head.length().is_some() || matches!(asked.method.as_str(), "POST" | "PUT" | "PATCH") {
        own.set("Content-Length", Some(&length.to_string()));
    }
    own.write(registry)?;
    let wanted = cut.map_or(length, |cut| cut.min(length));
    let mut step = [0; STEP_LEN];
    let mut done = 0;
    while done < wanted {
        let len = usize::try_from(wanted - done).unwrap_or(STEP_LEN).min(STEP_LEN);
        from_client.read_exact(&mut step[..len])?;
        registry.write_all(&step[..len])?;
        done += len as u64;
        count(len as u64);
    }
    Ok(wanted < length)
}

/// Reads a whole chunked body (RFC 9112, section 7.1).
fn read_chunks(from: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let size = line.trim().split(';').next().unwrap_or_default();
        let len = u64::from_str_radix(size, 16).map_err(|_| io::ErrorKind::InvalidData)?;
        if len == 0 {
            return Ok(body);
        }
        let before = body.len() as u64;
        from.take(len).read_to_end(&mut body)?;
        if body.len() as u64 != before + len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut end = [0; 2];
        from.read_exact(&mut end)?;
    }
}

/// Passes the registry's answer on to the client, changed by the faults.
fn answer(
    asked: &Asked,
    faults: &[Fault],
    registry: &TcpStream,
    client: &TcpStream,
    log: &impl Fn(&dyn Fn(&mut Served)),
) -> io::Result<()> {
    let mut from_registry = BufReader::new(registry);
    let mut head = Head::read(&mut from_registry)?;
    let mut status: u16 = head.first.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    // The offset of the body's first byte in the blob.
    let start = if status == 206 { asked.start().unwrap_or(0) } else { 0 };
    head.set("Connection", Some("close"));
    let mut replaced = None;
    for fault in faults {
        match fault {
            Fault::Status(other) => status = *other,
            Fault::Body(body) => {
                head.set("Content-Length", Some(&body.len().to_string()));
                replaced = Some(body.as_slice());
            }
            Fault::Endless => head.set("Content-Length", None),
            _ => {}
        }
    }
    for fault in faults {
        if let Fault::Say { name, value } = fault {
            head.set(name, value.as_deref());
        }
    }
    head.first = format!("HTTP/1.1 {status} Said");
    log(&|line| line.status = status);
    head.write(client)?;
    if asked.method == "HEAD" {
        return Ok(());
    }
    let mut to_client = Faulty { client, faults, start, position: 0, log };
    match replaced {
        Some(mut body) => copy(&mut body, &mut to_client)?,
        None => copy(&mut from_registry, &mut to_client)?,
    };
    if faults.iter().any(|fault| matches!(fault, Fault::Endless)) {
        copy(&mut io::repeat(b' ').take(ENDLESS_LEN), &mut to_client)?;
    }
    client.shutdown(Shutdown::Write)
}

/// As `io::copy`, in the steps by which faults count.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut step = [0; STEP_LEN];
    loop {
        let len = from.read(&mut step)?;
        if len == 0 {
            return Ok(());
        }
        to.write_all(&step[..len])?;
    }
}

/// The connection to the client, with the faults of a body.
struct Faulty<'a, L> {
    client: &'a TcpStream,
    faults: &'a [Fault],
    /// The offset of the body's first byte in the blob.
    start: u64,
    /// Bytes of the body so far.
    position: u64,
    log: &'a L,
}

impl<L: Fn(&dyn Fn(&mut Served))> Write for Faulty<'_, L> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut bytes = bytes.to_vec();
        let at = self.start + self.position;
        for fault in self.faults {
            let room = |end: u64, from: u64| usize::try_from(end.saturating_sub(from)).unwrap_or(usize::MAX);
            match fault {
                Fault::Cut(end) => bytes.truncate(room(*end, self.position)),
                Fault::Hold { at: place, gate } if *place >= at && *place < at + bytes.len() as u64 => {
                    match room(*place, at) {
                        0 => gate.pass(),
                        before => bytes.truncate(before),
                    }
                }
                Fault::Throttle { bytes: count, every } => {
                    bytes.truncate(*count);
                    wait_for(*every);
                }
                Fault::Corrupt(place) if *place >= at && *place < at + bytes.len() as u64 => {
                    bytes[room(*place, at)] ^= 0x55;
                }
                _ => {}
            }
        }
        if bytes.is_empty() {
            self.client.shutdown(Shutdown::Both)?;
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let mut client = self.client;
        // Counted before they are sent, so that a client that has the bytes finds them in the log.
        let len = bytes.len() as u64;
        (self.log)(&|line| line.sent += len);
        if let Err(error) = client.write_all(&bytes) {
            (self.log)(&|line| line.sent -= len);
            return Err(error);
        }
        self.position += len;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
