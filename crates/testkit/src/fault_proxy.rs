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

/// Bytes that are moved at once: a fault in the middle of a body hits within so many.
const STEP_LEN: usize = 16 * 1024;
/// Bytes of a request's or an answer's head.
const HEAD_LEN_MAX: u64 = 64 * 1024;
/// Bytes that [`Fault::Endless`] goes on with, for a client that never hangs up.
const ENDLESS_LEN: u64 = 1 << 30;

/// What is wrong with an answer. Several may be.
#[derive(Clone)]
pub enum Fault {
    /// The request waits so long before it goes on.
    Delay(Duration),
    /// The request waits for the gate before it goes on.
    Wait(Gate),
    /// The registry is not asked: this is the answer.
    Answer { status: u16, headers: Vec<(&'static str, String)>, body: Vec<u8> },
    /// Nothing is answered until the client goes away.
    Silence,
    /// The registry sees this header instead of the client's; none takes it away.
    Ask { name: &'static str, value: Option<String> },
    /// The client sees this header instead of the registry's; none takes it away.
    Say { name: &'static str, value: Option<String> },
    /// The client sees this status instead of the registry's.
    Status(u16),
    /// The client sees this body, with its own length.
    Body(Vec<u8>),
    /// The connection breaks after so many bytes of the body.
    Cut(u64),
    /// The connection breaks once the registry has answered, and the client does not hear it.
    CutAnswer,
    /// The connection breaks after so many bytes of the request's body went on to the registry.
    CutUpload(u64),
    /// The byte at this place of the blob is another.
    Corrupt(u64),
    /// The body waits for the gate when it has come to this place of the blob.
    Hold { at: u64, gate: Gate },
    /// So many bytes of the body in each such time.
    Throttle { bytes: usize, every: Duration },
    /// The body has no length, and never ends.
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

    /// The registry is asked for the whole, whatever range the client wants.
    pub fn ignore_range() -> Fault {
        Fault::Ask { name: "Range", value: None }
    }
}

/// A place where answers wait until a test lets them go.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Default)]
struct GateState {
    arrived: usize,
    is_open: bool,
}

impl Gate {
    /// Lets through those who wait, and all who come.
    pub fn open(&self) {
        self.lock().is_open = true;
        self.0.1.notify_all();
    }

    /// Returns when so many have come.
    #[track_caller]
    pub fn arrivals(&self, count: usize) {
        let few = |state: &mut GateState| state.arrived < count;
        let (state, _) = self.0.1.wait_timeout_while(self.lock(), DEADLINE, few);
        assert!(state.arrived >= count, "{} of {count} came to the gate within {DEADLINE:?}", state.arrived);
    }

    /// Waits until it is open.
    pub fn pass(&self) {
        let mut state = self.lock();
        state.arrived += 1;
        self.0.1.notify_all();
        // A gate that a test forgot lets go, so that the test ends.
        drop(self.0.1.wait_timeout_while(state, DEADLINE, |state| !state.is_open));
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.0.0.lock()
    }
}

/// A request, as a rule sees it.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    /// With the query.
    pub path: String,
    headers: Vec<(String, String)>,
    /// Requests of the same method for the same path before this one.
    pub before: usize,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// The digest of the blob that is read or looked for.
    pub fn blob(&self) -> Option<&str> {
        self.object("/blobs/").filter(|object| object.contains(':'))
    }

    /// The tag or digest of a manifest.
    pub fn manifest(&self) -> Option<&str> {
        self.object("/manifests/")
    }

    /// What stands behind a part of the path, without the question that a mirror is asked.
    fn object(&self, after: &str) -> Option<&str> {
        let (_, object) = self.path.split_once(after)?;
        object.split('?').next()
    }

    pub fn is_upload(&self) -> bool {
        self.path.contains("/blobs/uploads/")
    }

    /// Where the range begins that is asked for.
    pub fn start(&self) -> Option<u64> {
        self.header("range")?.strip_prefix("bytes=")?.split('-').next()?.parse().ok()
    }
}

/// What became of a request.
#[derive(Clone, Debug)]
pub struct Served {
    pub asked: Asked,
    pub status: u16,
    /// Bytes of the body that the client sent.
    pub received: u64,
    /// Bytes of the body that the client was sent.
    pub sent: u64,
}

type Rule = dyn Fn(&Asked) -> Vec<Fault> + Send + Sync;

/// A running proxy. Dropping it closes its port; connections end with their clients.
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
    /// The rule gets each request, and names what is wrong with its answer: nothing, mostly.
    pub fn start(
        registry: &Registry,
        rule: impl Fn(&Asked) -> Vec<Fault> + Send + Sync + 'static,
    ) -> FaultProxy {
        FaultProxy::start_at(registry.address(), rule)
    }

    /// In front of whatever speaks HTTP there.
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
                // An error here is a client or a registry that went away, as some tests mean it to.
                std::thread::spawn(move || drop(serve(&shared, &client)));
            }
        });
        FaultProxy { address, shared }
    }

    /// `127.0.0.1:PORT`, as it stands in references.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// An image of the registry, to be fetched through the proxy.
    pub fn through(&self, reference: &str) -> String {
        let (_, name) = reference.split_once('/').expect("a reference with a host");
        format!("{}/{name}", self.host())
    }

    /// All requests so far, in the order in which they came.
    pub fn log(&self) -> Vec<Served> {
        self.shared.log().clone()
    }

    /// The requests so far that match.
    pub fn requests(&self, matches: impl Fn(&Asked) -> bool) -> Vec<Served> {
        self.log().into_iter().filter(|served| matches(&served.asked)).collect()
    }

    /// Reads of one blob.
    pub fn reads(&self, digest: &str) -> Vec<Served> {
        self.requests(|asked| asked.method == "GET" && asked.blob() == Some(digest))
    }

    /// Bytes of all blobs that clients were sent.
    pub fn blob_bytes(&self) -> u64 {
        self.requests(|asked| asked.blob().is_some()).iter().map(|served| served.sent).sum()
    }

    /// Returns when as many requests as `count` match.
    pub fn until(&self, what: &str, count: usize, matches: impl Fn(&Asked) -> bool) {
        eventually(what, || (self.requests(&matches).len() >= count).then_some(()));
    }

    /// Forgets what was counted.
    pub fn clear(&self) {
        self.shared.log().clear();
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts; if nobody answers it is gone already.
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

    /// A line in the log, which grows while the request is served.
    fn begin(&self, asked: &Asked) -> impl Fn(&dyn Fn(&mut Served)) + '_ {
        let mut log = self.log();
        log.push(Served { asked: asked.clone(), status: 0, received: 0, sent: 0 });
        let at = log.len() - 1;
        // A log that was cleared meanwhile has no such line.
        move |change| {
            if let Some(line) = self.log().get_mut(at) {
                change(line);
            }
        }
    }
}

/// The first line and the headers of a message.
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
    // The beginning of a TLS handshake: nobody here speaks it.
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
        // What the client still sends is taken, or it would not read what we say.
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
        // The registry has seen the end when it hangs up in its turn.
        io::copy(&mut &registry, &mut io::sink())?;
        return client.shutdown(Shutdown::Both);
    }
    if faults.iter().any(|fault| matches!(fault, Fault::CutAnswer)) {
        io::copy(&mut &registry, &mut io::sink())?;
        return client.shutdown(Shutdown::Both);
    }
    answer(&asked, &faults, &registry, client, &log)
}

/// Sends a request to the registry; says whether it was cut in the middle.
fn send_on(
    head: &Head,
    asked: &Asked,
    from_client: &mut impl BufRead,
    client: &TcpStream,
    registry: &TcpStream,
    cut: Option<u64>,
    count: &dyn Fn(u64),
) -> io::Result<bool> {
    // HTTP/1.0: the answer ends with the connection, and is not in chunks.
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

/// A body in chunks (RFC 9112 section 7.1), whole.
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

/// Brings the registry's answer to the client, with what the faults make of it.
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
    // Where the body begins within the blob.
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

/// `io::copy` takes steps of its own; ours are those that faults count by.
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

/// The way to the client.
struct Faulty<'a, L> {
    client: &'a TcpStream,
    faults: &'a [Fault],
    /// Where the body begins within the blob.
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
        // Counted first: whoever has the bytes finds them counted.
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
