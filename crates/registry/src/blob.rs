//! A blob as a stream of chunks that survives broken connections, slow hosts and malicious hosts.
//!
//! ```text
//! offset ─▶ front: a body, read as it comes        ahead: parts that are fetched beside it
//!           [offset ....... end of the part)       [part)[part)[part)      ▶ next_at
//! ```
//!
//! A body that breaks off, or is too slow, is requested again from where it ended, from the next host; a host that
//! violates the protocol is not asked again. A large blob is fetched in parts in parallel, if its host supports
//! ranges; chunks come out in order all the same. Parts fetched ahead wait in memory, so all streams of a process
//! share a number of them. Each request costs a host some time beside its bytes: while the host is faster than the
//! reader, the stream requests long stretches, and fetches nothing ahead.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_RANGE, RANGE};
use http::{HeaderValue, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use types::{Descriptor, Error, ErrorKind, Result};

use crate::endpoint::Endpoint;
use crate::host::Capability;
use crate::remote::Remote;
use crate::request::Request;
use crate::transport::{ATTEMPTS_MAX, is_transient, is_unavailable, pause};

/// Bytes from which a blob is worth several connections.
const LARGE_LEN: u64 = 16 << 20;
/// Bytes of a part of a large blob.
const PART_LEN: u64 = 2 << 20;
/// Bytes of a stretch, a long request without parts ahead. After it the stream tries parts again.
const STRETCH_LEN: u64 = 64 << 20;
/// Parts of one blob fetched ahead at most.
const PARTS_AHEAD: usize = 3;
/// Parts that all streams of a process together may fetch ahead.
static PARTS: Semaphore = Semaphore::const_new(4);
/// Bytes of the chunks of a part fetched ahead.
const CHUNK_LEN: usize = 256 << 10;

/// The minimum throughput of a host; a slower one is abandoned.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The longest time between two chunks.
    pub idle_timeout: Duration,
    /// The waiting time in which at least `window_len_min` bytes must come.
    pub window: Duration,
    pub window_len_min: u64,
    /// Consecutive failures allowed; `window_len_min` bytes in between reset the count.
    pub failures_max: u32,
}

impl Default for Pace {
    /// 4 KiB a second over 20 seconds: less than any usable line.
    fn default() -> Pace {
        Pace {
            idle_timeout: Duration::from_secs(30),
            window: Duration::from_secs(20),
            window_len_min: 80 << 10,
            failures_max: ATTEMPTS_MAX,
        }
    }
}

impl Pace {
    /// The least bytes that a host must send in this time.
    pub fn len_min(&self, time: Duration) -> u64 {
        (self.window_len_min as f64 * time.div_duration_f64(self.window)) as u64
    }
}

/// The chunks of a blob, in order, each byte once.
pub struct BlobStream {
    descriptor: Descriptor,
    /// Hosts that may be asked. Those without the blob, or that sent invalid answers, are removed.
    hosts: Vec<Arc<Endpoint>>,
    /// Index of the host that is asked next.
    host: usize,
    pace: Pace,
    /// Bytes of the blob that were returned, or skipped.
    offset: u64,
    front: Front,
    ahead: VecDeque<Ahead>,
    /// Where the part after the last requested one begins.
    next_at: u64,
    /// The rest is large and its first part is requested, so parts may be fetched ahead.
    comes_in_parts: bool,
    /// Whether the front is a stretch.
    is_stretch: bool,
    /// How many of the latest parts in a row were complete before they were needed.
    in_time: usize,
    /// One per part that may be fetched ahead.
    permits: Vec<SemaphorePermit<'static>>,
    /// Tasks that fetch parts ahead. Dropping the stream aborts them.
    readers: JoinSet<()>,
    /// Consecutive failures; see [`Pace::failures_max`].
    failures: u32,
    /// Bytes since the last failure.
    since_failure: u64,
    /// The hosts whose bytes were returned.
    givers: Vec<Arc<Endpoint>>,
}

/// The part that chunks come from at the moment.
enum Front {
    Body(Box<Part>),
    Ahead(Ahead),
    /// All bytes before `next_at` were returned.
    Nothing,
}

/// A part that is fetched ahead. Its task sends an error if it fails.
struct Ahead {
    range: Range<u64>,
    chunks: mpsc::Receiver<Result<Bytes>>,
    host: Arc<Endpoint>,
}

impl BlobStream {
    pub(crate) async fn open(remote: Remote, descriptor: Descriptor, offset: u64) -> Result<BlobStream> {
        let size = descriptor.size;
        let mut stream = BlobStream {
            descriptor,
            hosts: remote.endpoints(Capability::Pull),
            host: 0,
            pace: Pace::default(),
            offset,
            front: Front::Nothing,
            ahead: VecDeque::new(),
            next_at: offset,
            comes_in_parts: false,
            is_stretch: false,
            in_time: 0,
            permits: Vec::new(),
            readers: JoinSet::new(),
            failures: 0,
            since_failure: 0,
            givers: Vec::new(),
        };
        if offset >= size {
            return Ok(stream); // there is nothing to ask for
        }
        if stream.hosts.is_empty() {
            let name = remote.reference().name();
            return Err(Error::failed_precondition(format!("no host of {name} is allowed to pull")));
        }
        let first = stream.first_part();
        stream.ask(first).await?;
        Ok(stream)
    }

    /// Requires another pace from here on.
    #[must_use]
    pub fn with_pace(self, pace: Pace) -> BlobStream {
        BlobStream { pace, ..self }
    }

    /// The next chunk; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            self.read_ahead();
            let pace = self.pace;
            let (read, end, giver) = match &mut self.front {
                Front::Nothing if self.next_at >= self.descriptor.size => return Ok(None),
                Front::Nothing => (Ok(None), self.next_at, None),
                Front::Body(part) => (part.next(&pace).await, part.range.end, Some(part.host.clone())),
                Front::Ahead(part) => {
                    (part.chunks.recv().await.transpose(), part.range.end, Some(part.host.clone()))
                }
            };
            match read {
                Ok(Some(chunk)) => {
                    if let Some(giver) = giver
                        && !self.givers.iter().any(|known| Arc::ptr_eq(known, &giver))
                    {
                        self.givers.push(giver);
                    }
                    self.count(chunk.len() as u64);
                    return Ok(Some(chunk));
                }
                Ok(None) if self.offset >= end => self.advance().await?,
                Ok(None) => {
                    let (at, size) = (self.offset, self.descriptor.size);
                    let broken = Error::unavailable(format!("it ended after {at} of {size} bytes"));
                    self.retry(broken, giver, end).await?;
                }
                // All bytes are here, so an unfinished body does not matter, unless it has more bytes.
                Err(failure) if self.offset >= end && !failure.is(ErrorKind::DataLoss) => {
                    self.advance().await?;
                }
                Err(failure) if self.offset >= end => return Err(self.context(failure)),
                Err(failure) => self.retry(failure, giver, end).await?,
            }
        }
    }

    /// The hosts whose bytes were returned, in the order of their first chunk.
    pub fn givers(&self) -> &[Arc<Endpoint>] {
        &self.givers
    }

    fn context(&self, failure: Error) -> Error {
        failure.context(format!("fetch blob {}", self.descriptor.digest))
    }

    fn count(&mut self, len: u64) {
        self.offset += len;
        self.since_failure += len;
        if self.since_failure >= self.pace.window_len_min {
            self.failures = 0;
        }
    }

    /// Moves on to the next part once the front is complete.
    async fn advance(&mut self) -> Result<()> {
        match self.ahead.pop_front() {
            Some(part) => {
                self.in_time = if part.chunks.is_closed() { self.in_time + 1 } else { 0 };
                if self.in_time > self.permits.len() {
                    // Also releases parts in progress: the reader is the bottleneck.
                    self.permits.clear();
                }
                self.front = Front::Ahead(part);
            }
            None if self.next_at >= self.descriptor.size => self.front = Front::Nothing,
            None => {
                let next = if self.is_stretch { self.first_part() } else { self.stretch() };
                self.ask_with_retries(next).await?;
            }
        }
        Ok(())
    }

    /// The range to request before parts are fetched ahead: all the rest, if that is not large.
    fn first_part(&mut self) -> Range<u64> {
        let (at, size) = (self.next_at, self.descriptor.size);
        self.comes_in_parts = size - at >= LARGE_LEN;
        (self.is_stretch, self.in_time) = (false, 0);
        at..if self.comes_in_parts { at + PART_LEN } else { size }
    }

    /// The range of a stretch.
    fn stretch(&mut self) -> Range<u64> {
        self.is_stretch = true;
        self.next_at..self.descriptor.size.min(self.next_at + STRETCH_LEN)
    }

    /// Requests what is missing before `end` from the next host. `giver`, whose part failed, need not be the host
    /// that is asked now, as parts ahead may come from earlier ones.
    async fn retry(&mut self, failure: Error, giver: Option<Arc<Endpoint>>, end: u64) -> Result<()> {
        self.front = Front::Nothing;
        self.failures += 1;
        self.since_failure = 0;
        if let Some(giver) = giver {
            if failure.is(ErrorKind::DataLoss) || failure.is(ErrorKind::DeadlineExceeded) {
                // Other blobs start with another host than a malicious or slow one, if there is one.
                giver.rest();
            }
            if failure.is(ErrorKind::DataLoss) {
                self.remove_host(&giver);
            } else if self.place_of(&giver) == Some(self.host % self.hosts.len()) {
                self.host += 1;
            }
        }
        if self.hosts.is_empty() || self.failures >= self.pace.failures_max {
            return Err(self.context(failure));
        }
        if self.host >= self.hosts.len() {
            // All hosts were tried, so it is the first one's turn again, after a pause.
            tokio::time::sleep(pause(self.failures)).await;
        }
        let missing = self.offset..end;
        self.ask_with_retries(missing).await
    }

    /// Removes a host.
    fn remove_host(&mut self, host: &Arc<Endpoint>) {
        let Some(at) = self.place_of(host) else { return };
        let next = self.host % self.hosts.len();
        self.hosts.remove(at);
        self.host = if at < next { next - 1 } else { next };
    }

    fn place_of(&self, host: &Arc<Endpoint>) -> Option<usize> {
        self.hosts.iter().position(|known| Arc::ptr_eq(known, host))
    }

    /// Opens the front for a range. If all hosts are unavailable it tries again, and each time counts as a failure.
    async fn ask_with_retries(&mut self, range: Range<u64>) -> Result<()> {
        loop {
            let is_borne = self.failures + 1 < self.pace.failures_max && !self.hosts.is_empty();
            match self.ask(range.clone()).await {
                Err(error) if is_borne && is_unavailable(&error) => {
                    self.failures += 1;
                    self.since_failure = 0;
                    tokio::time::sleep(pause(self.failures)).await;
                }
                asked => return asked.map_err(|error| self.context(error)),
            }
        }
    }

    /// Opens the front for a range, at the first host that serves it.
    async fn ask(&mut self, range: Range<u64>) -> Result<()> {
        let mut failure = None;
        for _ in 0..self.hosts.len() {
            self.host %= self.hosts.len();
            let host = self.hosts[self.host].clone();
            match Part::open(&host, &self.descriptor, range.clone()).await {
                Ok(part) => {
                    self.next_at = self.next_at.max(part.range.end);
                    if part.range.end > range.end {
                        // The host does not support ranges and sends the rest, so nothing is fetched ahead.
                        self.ahead.clear();
                        self.readers.abort_all();
                        self.comes_in_parts = false;
                        self.permits.clear();
                    }
                    self.front = Front::Body(Box::new(part));
                    return Ok(());
                }
                Err(error) => {
                    match is_transient(&error) {
                        true => self.host += 1,
                        false => self.remove_host(&host),
                    }
                    failure = Some(error);
                }
            }
        }
        Err(failure.expect("there is a host"))
    }

    /// Starts fetching as many parts ahead as allowed.
    fn read_ahead(&mut self) {
        while self.readers.try_join_next().is_some() {}
        if std::mem::take(&mut self.comes_in_parts) {
            // Only now, as the stream is read: one that waits for its host, or that nobody reads, must not hold
            // permits that others need.
            self.permits.extend((0..PARTS_AHEAD).map_while(|_| PARTS.try_acquire().ok()));
        }
        while self.ahead.len() < self.permits.len() && self.next_at < self.descriptor.size {
            let end = (self.next_at + PART_LEN).min(self.descriptor.size);
            let range = self.next_at..end;
            let (send, chunks) = mpsc::channel(PART_LEN as usize / CHUNK_LEN + 2);
            let host = self.hosts[self.host % self.hosts.len()].clone();
            self.readers.spawn(read_part(
                host.clone(),
                self.descriptor.clone(),
                range.clone(),
                self.pace,
                send,
            ));
            self.ahead.push_back(Ahead { range, chunks, host });
            self.next_at = end;
        }
    }
}

/// Fetches a part into a channel with room for all of it.
async fn read_part(
    host: Arc<Endpoint>,
    descriptor: Descriptor,
    range: Range<u64>,
    pace: Pace,
    to: mpsc::Sender<Result<Bytes>>,
) {
    let read = async {
        let mut part = Part::open(&host, &descriptor, range.clone()).await?;
        if part.range != range {
            return Err(Error::unavailable(format!("{} ignores ranges now and then", host.name())));
        }
        // Chunks of equal size: many small ones would fill the channel before the part is complete.
        let mut chunk = BytesMut::with_capacity(CHUNK_LEN);
        while let Some(bytes) = part.next(&pace).await? {
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(CHUNK_LEN - chunk.len()));
                chunk.extend_from_slice(now);
                rest = later;
                if chunk.len() == CHUNK_LEN {
                    let full = std::mem::replace(&mut chunk, BytesMut::with_capacity(CHUNK_LEN));
                    // The receiver is gone if the stream was dropped.
                    let _ = to.send(Ok(full.freeze())).await;
                }
            }
        }
        if !chunk.is_empty() {
            let _ = to.send(Ok(chunk.freeze())).await;
        }
        Ok(())
    };
    if let Err(error) = read.await {
        let _ = to.send(Err(error)).await;
    }
}

/// A response body with the bytes of a range.
struct Part {
    /// The range it covers: up to the end of the blob if the host does not support ranges.
    range: Range<u64>,
    body: Incoming,
    /// Bytes before the range, which a host without ranges also sends.
    skip: u64,
    left: u64,
    /// The response has a Content-Length, which the connection enforces.
    has_length: bool,
    /// Time spent waiting for the host in the current window, and the bytes it sent.
    waited: Duration,
    brought: u64,
    host: Arc<Endpoint>,
}

impl Part {
    /// Requests a range of a blob from a host.
    async fn open(host: &Arc<Endpoint>, descriptor: &Descriptor, range: Range<u64>) -> Result<Part> {
        let (object, size) = (&descriptor.digest, descriptor.size);
        let mut request = Request::get(format!("blobs/{object}"), Capability::Pull);
        if range != (0..size) {
            let wanted = format!("bytes={}-{}", range.start, range.end - 1);
            request = request.header(RANGE, HeaderValue::from_str(&wanted).expect("plain text"));
        }
        let answer = host.send(&request).await?.checked().await?;
        let lie = |what: String| {
            let name = host.name();
            Error::data_loss(format!("{name} lies about blob {object}: {what}"))
        };
        let (range, skip) = match answer.status() {
            StatusCode::PARTIAL_CONTENT => {
                let given = answer.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                let given = given.unwrap_or("no range at all");
                if !is_range(given, &range, size) {
                    let (first, last) = (range.start, range.end - 1);
                    return Err(lie(format!("{given} is answered, {first}-{last}/{size} was asked for")));
                }
                (range, 0)
            }
            StatusCode::OK => (range.start..size, range.start),
            other => return Err(lie(format!("{other} is no answer with a blob"))),
        };
        let left = range.end - range.start;
        let announced = answer.content_length();
        if let Some(announced) = announced.filter(|announced| *announced != skip + left) {
            return Err(lie(format!("{announced} bytes are announced, its manifest says {}", skip + left)));
        }
        let has_length = announced.is_some();
        let (host, waited) = (host.clone(), Duration::ZERO);
        Ok(Part { range, body: answer.into_body(), skip, left, has_length, waited, brought: 0, host })
    }

    /// The next bytes of the range; `None` when the body ends, possibly early.
    async fn next(&mut self, pace: &Pace) -> Result<Option<Bytes>> {
        loop {
            if self.left == 0 && self.has_length {
                return Ok(None);
            }
            let since = Instant::now();
            let frame = tokio::time::timeout(pace.idle_timeout, self.body.frame()).await;
            let name = self.host.name();
            let frame = match frame {
                Ok(Some(frame)) => frame.map_err(|error| {
                    Error::unavailable(format!("the connection to {name} broke")).with_source(error)
                })?,
                Ok(None) => return Ok(None),
                Err(_) => {
                    let idle = pace.idle_timeout;
                    return Err(Error::deadline_exceeded(format!("{name} sent nothing for {idle:?}")));
                }
            };
            let Ok(mut data) = frame.into_data() else { continue };
            self.check_pace(pace, since.elapsed(), data.len() as u64)?;
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(data.len());
            self.skip -= skipped as u64;
            let data = data.split_off(skipped);
            if data.len() as u64 > self.left {
                return Err(Error::data_loss(format!(
                    "what {} sends is longer than the manifest says",
                    self.host.name()
                )));
            }
            self.left -= data.len() as u64;
            if !data.is_empty() {
                return Ok(Some(data));
            }
        }
    }

    /// Counts only time spent waiting: a slow local disk does not make a host slow.
    fn check_pace(&mut self, pace: &Pace, waited: Duration, brought: u64) -> Result<()> {
        self.waited += waited;
        self.brought += brought;
        if self.waited < pace.window {
            return Ok(());
        }
        let brought = std::mem::take(&mut self.brought);
        let waited = std::mem::take(&mut self.waited);
        if brought >= pace.window_len_min {
            return Ok(());
        }
        Err(Error::deadline_exceeded(format!(
            "{} is too slow: {brought} bytes in {waited:.0?}",
            self.host.name()
        )))
    }
}

/// Whether a `Content-Range` matches the requested range (RFC 9110 section 14.4).
fn is_range(given: &str, range: &Range<u64>, size: u64) -> bool {
    let parse = || {
        let (bounds, whole) = given.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = bounds.split_once('-')?;
        let whole = if whole == "*" { size } else { whole.parse().ok()? };
        Some((first.trim().parse::<u64>().ok()?, last.trim().parse::<u64>().ok()?, whole))
    };
    parse() == Some((range.start, range.end - 1, size))
}

#[cfg(test)]
mod tests {
    use testkit::{Fault, FaultProxy, Gate, Layout, Registry, digest_of};
    use types::descriptor::media_type;

    use super::*;

    const COUNT: usize = 20;

    /// How many requests a blob of several parts takes, if each part fetched ahead is complete when it is needed, or
    /// none is.
    async fn requests(comes_in_time: bool) -> usize {
        const LEN: usize = COUNT * PART_LEN as usize;
        let (layout, registry) = (Layout::new(), Registry::start());
        let layer = layout.blob(media_type::OCI_LAYER, &testkit::noise("parts", LEN));
        layout.tag(&layout.image("amd64", std::slice::from_ref(&layer)), "parts");
        let name = registry.push(layout.path(), "parts", "parts:1");
        let gates: [Gate; COUNT] = Default::default();
        let held = gates.clone();
        let proxy = FaultProxy::start(&registry, move |asked| match asked.start() {
            Some(start @ 1..) if !comes_in_time => {
                let gate = held[usize::try_from(start / PART_LEN).unwrap()].clone();
                vec![Fault::Hold { at: start + PART_LEN - 1, gate }]
            }
            _ => Vec::new(),
        });
        let digest = digest_of(&layer);
        let descriptor = Descriptor::new(media_type::OCI_LAYER, digest.parse().unwrap(), LEN as u64);
        let remote = Remote::new(&proxy.through(&name).parse().unwrap(), None);
        let mut stream = remote.blob(&descriptor, 0).await.unwrap();
        let mut len = 0;
        loop {
            while comes_in_time && stream.ahead.iter().any(|part| !part.chunks.is_closed()) {
                tokio::task::yield_now().await;
            }
            if let Front::Ahead(part) = &stream.front {
                gates[usize::try_from(part.range.start / PART_LEN).unwrap()].open();
            }
            match stream.next().await.unwrap() {
                Some(chunk) => len += chunk.len(),
                None => break,
            }
        }
        assert_eq!(len, LEN);
        proxy.reads(&digest).len()
    }

    #[tokio::test]
    async fn a_reader_slower_than_the_host_makes_few_requests() {
        assert_eq!(requests(false).await, COUNT, "each part");
        assert_eq!(requests(true).await, 2 * PARTS_AHEAD + 2, "the first ones, and all the rest");
    }

    #[test]
    fn a_range_is_the_one_asked_for_or_none() {
        for good in ["bytes 10-19/100", "bytes 10-19/*", " bytes 10-19/100 "] {
            assert!(is_range(good, &(10..20), 100), "{good}");
        }
        for bad in [
            "bytes 10-18/100",
            "bytes 11-19/100",
            "bytes 10-19/99",
            "bytes */100",
            "10-19/100",
            "",
            "bytes -/",
        ] {
            assert!(!is_range(bad, &(10..20), 100), "{bad}");
        }
    }
}
