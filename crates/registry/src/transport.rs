//! The HTTP transport: connections, timeouts, redirects, retries.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderValue, LOCATION, PROXY_AUTHORIZATION, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use stdx::Mutex;
use tokio::time::Instant;
use types::{Context, Error, ErrorKind, Result};

use crate::blob::Pace;
use crate::dial::{Dialer, RemoteAddress};
use crate::http_trace::{ConnectionTrace, HttpTrace};
use crate::proxy::Proxies;
use crate::request::{Body, Sending};
use crate::tls::Tls;
use crate::token::Tokens;
use crate::url::{host_of, origin, resolve};

/// In each such time a body that is read whole must advance at the least pace of a stream.
const BODY_WINDOW: Duration = Duration::from_secs(30);
/// For all of such a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(300);
pub(crate) const ATTEMPTS_MAX: u32 = 6;
/// To find out whether a loopback host speaks TLS.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
const REDIRECTS_MAX: usize = 10;
/// For a registry to answer once it has all bytes to store: some then copy and hash them again.
const STORE_TIMEOUT: Duration = Duration::from_secs(900);
/// A host that asks for a longer delay counts as down.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Bytes of the read buffer of a connection at most.
const READ_LEN_MAX: usize = 128 << 10;
/// Bytes of an error body that are read.
const ERROR_LEN_MAX: usize = 4096;
/// Characters of an error body that are reported.
const WORDS_LEN_MAX: usize = 200;
/// HTTP clients kept at most. All hosts with default options share one.
const CLIENTS_MAX: usize = 32;
/// How long a host that failed is asked after the others.
const REST: Duration = Duration::from_secs(60);
const RESTING_MAX: usize = 256;

type HttpClient = Client<HttpsConnector<Dialer>, Sending>;

/// A complete request.
pub(crate) struct Outgoing<'a> {
    pub(crate) method: &'a Method,
    pub(crate) url: &'a Uri,
    pub(crate) headers: &'a HeaderMap,
    /// Headers that are omitted once a redirect leads away from `origin`.
    pub(crate) private: &'a HeaderMap,
    /// `https://host`: the origin that may see the private headers.
    pub(crate) origin: String,
    pub(crate) body: &'a Body,
    /// Whether a redirect away from `origin` is refused, instead of followed with the body.
    pub(crate) is_body_private: bool,
    /// Whether to repeat the request after a broken connection or a transient status.
    pub(crate) is_repeatable: bool,
    pub(crate) tls: &'a Tls,
    pub(crate) dial_timeout: Duration,
    pub(crate) retry: RetryPolicy,
    pub(crate) trace: Option<&'a HttpTrace>,
}

/// When to give up on a host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RetryPolicy {
    attempts_max: u32,
    /// Lower, as a host that refuses connections rarely recovers within moments.
    connect_attempts_max: u32,
    /// From the request to the answer's headers, or between two chunks of the request's body.
    answer_timeout: Duration,
    /// Whether to wait for a host that sends `Retry-After`.
    waits: bool,
}

impl RetryPolicy {
    /// For the last host.
    pub(crate) const LAST: RetryPolicy = RetryPolicy {
        attempts_max: ATTEMPTS_MAX,
        connect_attempts_max: 3,
        answer_timeout: Duration::from_secs(60),
        waits: true,
    };

    /// For a host after which another can be asked.
    fn mirror(answer_timeout: Duration) -> RetryPolicy {
        RetryPolicy { attempts_max: 2, connect_attempts_max: 1, answer_timeout, waits: false }
    }

    /// The timeout for the next progress of a request.
    fn timeout(&self, method: &Method, is_sent: bool) -> Duration {
        match is_sent && matches!(*method, Method::PUT | Method::PATCH) {
            true => STORE_TIMEOUT,
            false => self.answer_timeout,
        }
    }

    /// A single attempt, for diagnosis.
    pub(crate) fn once() -> RetryPolicy {
        RetryPolicy { attempts_max: 1, ..RetryPolicy::mirror(Duration::from_secs(10)) }
    }
}

/// An answer and the URL that gave it.
pub(crate) struct Reply {
    pub(crate) response: Response<Incoming>,
    pub(crate) address: Uri,
}

/// Points in time, by host.
type Until = HashMap<String, Instant>;

/// Connection pools for the whole process, and what was learned about hosts.
pub(crate) struct Transport {
    proxies: Arc<Proxies>,
    mirror_timeout: Mutex<Duration>,
    /// In order of use, the most recent last.
    clients: Mutex<Vec<(ClientKey, HttpClient)>>,
    /// Hosts that failed, and until when other hosts are asked before them.
    resting: Mutex<Until>,
    /// Hosts that sent `Retry-After`, and until when requests that cannot go elsewhere wait.
    postponed: Mutex<Until>,
    pub(crate) tokens: Tokens,
}

#[derive(Clone, PartialEq)]
struct ClientKey {
    tls: Tls,
    dial_timeout: Duration,
}

impl Transport {
    pub(crate) fn new(proxies: Proxies, mirror_timeout: Duration) -> Transport {
        Transport {
            proxies: Arc::new(proxies),
            mirror_timeout: Mutex::new(mirror_timeout),
            clients: Mutex::default(),
            resting: Mutex::default(),
            postponed: Mutex::default(),
            tokens: Tokens::default(),
        }
    }

    /// The URL of the proxy for a URL.
    pub(crate) fn proxy(&self, address: &Uri) -> Option<String> {
        self.proxies.choose(address).map(|proxy| proxy.address.to_string())
    }

    /// The retry policy for a host after which another can be asked.
    pub(crate) fn mirror_retry(&self) -> RetryPolicy {
        RetryPolicy::mirror(*self.mirror_timeout.lock())
    }

    pub(crate) fn set_mirror_timeout(&self, timeout: Duration) {
        *self.mirror_timeout.lock() = timeout;
    }

    fn client(&self, tls: &Tls, dial_timeout: Duration) -> Result<HttpClient> {
        let key = ClientKey { tls: tls.clone(), dial_timeout };
        let take = |clients: &mut Vec<(ClientKey, HttpClient)>| {
            let found = clients.iter().position(|(known, _)| *known == key)?;
            let entry = clients.remove(found);
            clients.push(entry.clone());
            Some(entry.1)
        };
        if let Some(client) = take(&mut self.clients.lock()) {
            return Ok(client);
        }
        let https = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls.config()?)
            .https_or_http()
            .enable_all_versions()
            .wrap_connector(Dialer::new(self.proxies.clone(), dial_timeout));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .http1_max_buf_size(READ_LEN_MAX)
            .http2_initial_stream_window_size(2 << 20)
            .http2_initial_connection_window_size(16 << 20)
            .build(https);
        let mut clients = self.clients.lock();
        if let Some(other) = take(&mut clients) {
            return Ok(other);
        }
        if clients.len() >= CLIENTS_MAX {
            clients.remove(0);
        }
        clients.push((key, client.clone()));
        Ok(client)
    }

    /// Whether a host failed a short while ago.
    pub(crate) fn is_resting(&self, host: &str) -> bool {
        let resting = self.resting.lock();
        resting.get(host).is_some_and(|until| *until > Instant::now())
    }

    /// Records that a host failed.
    pub(crate) fn rest(&self, host: &str, time: Option<Duration>) {
        remember(&self.resting, host, time.unwrap_or(REST).min(10 * REST));
    }

    /// Records a host's `Retry-After`, so that other requests wait, too.
    fn postpone(&self, address: &Uri, time: Duration) {
        let host = host_of(address);
        self.rest(host, Some(time));
        remember(&self.postponed, host, time);
    }

    /// Waits until a host's `Retry-After` is over. Other requests may extend it, so the wait is bounded.
    async fn wait_for(&self, address: &Uri) {
        let host = host_of(address);
        let wanted = || self.postponed.lock().get(host).copied();
        let at_most = Instant::now() + WAIT_MAX;
        while let Some(until) = wanted().filter(|until| *until > Instant::now()) {
            tokio::time::sleep_until(until.min(at_most)).await;
            if until >= at_most {
                return;
            }
        }
    }

    pub(crate) fn wake(&self, host: &str) {
        self.resting.lock().remove(host);
    }

    /// Sends a request, follows redirects, and retries transient failures.
    ///
    /// Answers are returned whatever their status; 408, 429 and 5xx only once the retries are used up, or if the
    /// request must not be repeated.
    pub(crate) async fn send(&self, request: &Outgoing<'_>) -> Result<Reply> {
        let retry = request.retry;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let wait = match self.follow(request).await {
                Ok(reply) if is_transient_status(reply.response.status()) => {
                    let asked = retry_after(reply.response.headers());
                    let is_patient = asked.is_none_or(|wait| retry.waits && wait <= WAIT_MAX);
                    if let Some(wait) = asked.filter(|_| is_patient) {
                        self.postpone(&reply.address, wait);
                    }
                    // An upload must first ask for its offset.
                    if attempt >= retry.attempts_max || !is_patient || !request.is_repeatable {
                        return Ok(reply);
                    }
                    // The next attempt waits for `Retry-After`, if there was one.
                    pause(attempt)
                }
                Ok(reply) => return Ok(reply),
                // Certificate errors are permanent.
                Err(Failure { error, at_connect })
                    if error.is(ErrorKind::Unavailable) || error.is(ErrorKind::DeadlineExceeded) =>
                {
                    let attempts = match at_connect {
                        true => retry.connect_attempts_max,
                        // A silent host gets one attempt if another can be asked.
                        false if error.is(ErrorKind::DeadlineExceeded) && !retry.waits => 1,
                        false => retry.attempts_max,
                    };
                    if attempt >= attempts || !(at_connect || request.is_repeatable) {
                        return Err(error);
                    }
                    pause(attempt)
                }
                Err(failure) => return Err(failure.error),
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Whether a loopback host speaks TLS. An untrusted certificate also means yes: the request itself then fails.
    pub(crate) async fn speaks_tls(&self, host: &str, tls: &Tls) -> bool {
        let request = Request::builder().method(Method::GET).uri(format!("https://{host}/v2/"));
        let Ok(request) = request.body(Body::Empty.open().0) else { return true };
        let Ok(client) = self.client(tls, PROBE_TIMEOUT) else { return true };
        match tokio::time::timeout(PROBE_TIMEOUT, client.request(request)).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => is_certificate_error(&error),
            Err(_) => false,
        }
    }

    async fn follow(&self, request: &Outgoing<'_>) -> Result<Reply, Failure> {
        let Outgoing { method, url, .. } = request;
        let mut seen = vec![(*url).clone()];
        loop {
            let at = seen.last().expect("it begins with one");
            let response = self.once(request, at).await?;
            if !should_follow(method, response.status()) {
                return Ok(Reply { response, address: at.clone() });
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let location = location
                .ok_or_else(|| Error::failed_precondition(format!("{method} {at}: a redirect to nowhere")))?;
            let next =
                resolve(at, location).context(|| format!("{method} {at}: a redirect to {location:?}"))?;
            if request.is_body_private && origin(&next) != request.origin {
                let words = format!("{method} {at}: a redirect to {next}, which must not see what is sent");
                return Err(Error::permission_denied(words).into());
            }
            if seen.contains(&next) {
                return Err(
                    Error::failed_precondition(format!("{method} {url}: redirects in a circle")).into()
                );
            }
            if seen.len() > REDIRECTS_MAX {
                let words = format!("{method} {url}: more than {REDIRECTS_MAX} redirects");
                return Err(Error::failed_precondition(words).into());
            }
            seen.push(next);
        }
    }

    async fn once(&self, request: &Outgoing<'_>, at: &Uri) -> Result<Response<Incoming>, Failure> {
        let method = request.method;
        if request.retry.waits {
            self.wait_for(at).await;
        }
        let (body, sent) = request.body.open();
        let has_no_bytes = hyper::body::Body::is_end_stream(&body);
        let mut message = Request::new(body);
        *message.method_mut() = method.clone();
        *message.uri_mut() = at.clone();
        let headers = message.headers_mut();
        headers.extend(request.headers.clone());
        let agent = concat!("hoist/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        // The HTTP library omits Content-Length for an empty body, and some servers require it (RFC 9110, 8.6).
        if has_no_bytes && matches!(*method, Method::POST | Method::PUT | Method::PATCH) {
            headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        let client = if origin(at) == request.origin {
            headers.extend(request.private.clone());
            self.client(request.tls, request.dial_timeout)?
        } else {
            self.client(&request.tls.without_client(), request.dial_timeout)?
        };
        if at.scheme_str() == Some("http")
            && let Some(value) = self.proxies.choose(at).and_then(|proxy| proxy.authorization.clone())
        {
            headers.insert(PROXY_AUTHORIZATION, value);
        }
        if let Some(trace) = request.trace {
            trace.request(method, at, message.headers());
            if let Body::Bytes(bytes) = request.body
                && !request.is_body_private
            {
                trace.document(bytes);
            }
        }
        let sending = ConnectionTrace::with(request.trace.cloned(), async {
            let answer = client.request(message).await;
            if let Ok(answer) = &answer {
                ConnectionTrace::answered(
                    answer.extensions().get::<RemoteAddress>().map(|address| address.0),
                );
            }
            answer
        });
        tokio::pin!(sending);
        let answer = loop {
            let timeout = request.retry.timeout(method, sent.is_whole());
            match tokio::time::timeout(timeout, &mut sending).await {
                Ok(answer) => break answer,
                // A large body may take long as long as it advances.
                Err(_) if sent.has_moved() => {}
                Err(_) => {
                    let words = format!("{method} {at}: no answer within {timeout:?}");
                    return Err(Error::deadline_exceeded(words).into());
                }
            }
        };
        if let (Some(trace), Ok(answer)) = (request.trace, &answer) {
            trace.answer(answer.version(), answer.status(), answer.headers());
        }
        answer.map_err(|error| Failure::of(&error, at))
    }
}

fn remember(hosts: &Mutex<Until>, host: &str, time: Duration) {
    let now = Instant::now();
    let mut hosts = hosts.lock();
    hosts.retain(|_, until| *until > now);
    if hosts.len() < RESTING_MAX {
        let until = hosts.entry(host.to_owned()).or_insert(now);
        *until = (*until).max(now + time);
    }
}

/// Why there is no answer.
struct Failure {
    error: Error,
    /// The request was not sent.
    at_connect: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure { error, at_connect: false }
    }
}

impl Failure {
    fn of(error: &hyper_util::client::legacy::Error, at: &Uri) -> Failure {
        let host = host_of(at);
        let tls = tls_error(error);
        let error_said = match tls {
            Some(rustls::Error::InvalidCertificate(why)) => Error::failed_precondition(format!(
                "nobody known here vouches for the certificate of {host} ({why:?}); put its authority into \
                 /etc/hoist/certs.d/{host}/ca.crt (of a mirror, into the directory of the registry that it stands for), or, \
                 where that directory has a hosts.toml, name it there (ca = \"ca.crt\"); one added to the system's counts \
                 once the daemon is restarted"
            )),
            Some(rustls::Error::InvalidMessage(_)) => Error::failed_precondition(format!(
                "{host} does not speak TLS; if it is meant to be spoken to without, write server = \"http://{host}\" \
                 into {host}/hosts.toml of certs.d"
            )),
            Some(rustls::Error::AlertReceived(alert)) => Error::failed_precondition(format!(
                "{host} refuses our TLS ({alert:?}); it may want a client certificate, which certs.d can name"
            )),
            _ => Error::unavailable(format!("{host} cannot be reached: {}", reason(error))),
        };
        Failure { error: error_said, at_connect: error.is_connect() }
    }
}

/// The underlying cause, without the wrapping messages of the HTTP library.
fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = String::new();
    let mut advice = "";
    let mut next = Some(error);
    while let Some(cause) = next {
        let text = cause.to_string();
        if !text.starts_with("client error (") && text != "tcp connect error" && !line.ends_with(&text) {
            let separator = if line.is_empty() { "" } else { ": " };
            write!(line, "{separator}{text}").expect("a string takes all");
        }
        let io = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        advice = match io {
            _ if text.starts_with("dns error") => "; check the spelling, and the DNS of this machine",
            Some(std::io::ErrorKind::ConnectionRefused) => "; check host and port: nothing listens there",
            Some(std::io::ErrorKind::TimedOut) => {
                "; check the network, and HTTPS_PROXY of the daemon if there is a proxy"
            }
            _ => advice,
        };
        next = cause.source();
    }
    line + advice
}

/// Whether to follow a redirect: one that keeps the method always, others only for GET and HEAD. An upload's
/// `Location` is for its next step.
fn should_follow(method: &Method, status: StatusCode) -> bool {
    match status.as_u16() {
        307 | 308 => true,
        301..=303 => matches!(*method, Method::GET | Method::HEAD),
        _ => false,
    }
}

/// Whether a status may be transient.
pub(crate) fn is_transient_status(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// Whether a host may succeed later.
pub(crate) fn is_transient(error: &Error) -> bool {
    is_unavailable(error) || error.is(ErrorKind::DeadlineExceeded)
}

/// Whether a host is temporarily unavailable. A silent one has been waited for long enough.
pub(crate) fn is_unavailable(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::ResourceExhausted)
}

/// The delay that a host asks for.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    parse_retry_after(headers, SystemTime::now())
}

/// Parses `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3).
fn parse_retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    Some(httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default())
}

/// The pause before an attempt: doubles from 100 ms, with up to 50 % jitter, so that clients do not retry in step.
pub(crate) fn pause(attempt: u32) -> Duration {
    let base = Duration::from_millis(100 << attempt.min(6));
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    base + base * (clock.subsec_nanos() % 512) / 1024
}

/// The text of an error answer: the registry's own message if there is one (distribution-spec, "Error Codes").
pub(crate) async fn error_text(answer: Response<Incoming>) -> String {
    let Ok(body) = read_body(answer.into_body(), ERROR_LEN_MAX).await else { return String::new() };
    let parsed: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
    let first = parsed.as_ref().map(|value| &value["errors"][0]);
    // HTML pages are not shown.
    let is_page = body.trim_ascii_start().starts_with(b"<");
    let text = match first.and_then(|error| error["message"].as_str().or(error["code"].as_str())) {
        Some(message) => message.to_owned(),
        None if is_page => String::new(),
        None => String::from_utf8_lossy(&body).into_owned(),
    };
    text.chars().filter(|found| !found.is_control()).take(WORDS_LEN_MAX).collect()
}

/// Reads a whole body of up to `len_max` bytes.
pub(crate) async fn read_body<B>(mut body: B, len_max: usize) -> Result<Vec<u8>>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let len_min = Pace::default().len_min(BODY_WINDOW);
    let end = Instant::now() + BODY_TIMEOUT;
    let mut bytes = Vec::new();
    let (mut window_end, mut len_before) = (Instant::now() + BODY_WINDOW, 0);
    loop {
        // Available data is read before the time is checked.
        match tokio::time::timeout_at(window_end, body.frame()).await {
            Ok(None) => return Ok(bytes),
            Ok(Some(Err(error))) => {
                return Err(Error::unavailable("the answer broke off").with_source(error));
            }
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    if bytes.len() + data.len() > len_max {
                        return Err(Error::resource_exhausted(format!(
                            "the answer is longer than the {len_max} bytes allowed"
                        )));
                    }
                    bytes.extend_from_slice(&data);
                }
            }
            Err(_) => {}
        }
        let now = Instant::now();
        if now >= end {
            let len = bytes.len();
            let words = format!("{len} bytes came in {BODY_TIMEOUT:?}, and that was not all");
            return Err(Error::deadline_exceeded(words));
        }
        if now >= window_end {
            let brought = bytes.len() - len_before;
            if (brought as u64) < len_min {
                let words = format!("the answer is too slow: {brought} bytes in {BODY_WINDOW:?}");
                return Err(Error::deadline_exceeded(words));
            }
            len_before = bytes.len();
            window_end = (now + BODY_WINDOW).min(end);
        }
    }
}

fn is_certificate_error(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(tls_error(error), Some(rustls::Error::InvalidCertificate(_) | rustls::Error::AlertReceived(_)))
}

/// The TLS error, if TLS failed.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return Some(error);
    }
    // An `io::Error` does not return what it wraps as its `source`.
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    let wrapped = wrapped.and_then(|wrapped| tls_error(wrapped));
    wrapped.or_else(|| error.source().and_then(tls_error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Registries take longer to store bytes than to answer other requests.
    #[tokio::test]
    async fn a_registry_that_stores_a_body_gets_a_longer_timeout() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: Uri = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let slow = Duration::from_millis(400);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut chunk) = (0, [0; 4096]);
                    // A request's head is shorter than the test's bodies.
                    let has_body =
                        |chunk: &[u8]| String::from_utf8_lossy(chunk).contains("content-length: 1000");
                    while read == 0 || read < 1000 && has_body(&chunk) {
                        read += tokio::io::AsyncReadExt::read(&mut stream, &mut chunk[read..]).await.unwrap();
                    }
                    tokio::time::sleep(slow).await;
                    let answer = b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n";
                    drop(tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await);
                });
            }
        });
        let transport = Transport::new(Proxies::default(), slow);
        let body = Body::Bytes(vec![0; 1000].into());
        let retry = RetryPolicy { answer_timeout: slow / 4, ..RetryPolicy::once() };
        for (method, body, is_answered) in [
            (Method::PUT, &body, true),
            (Method::PUT, &Body::Empty, true),
            (Method::POST, &body, false),
            (Method::GET, &Body::Empty, false),
        ] {
            let outgoing = Outgoing {
                method: &method,
                url: &url,
                headers: &HeaderMap::new(),
                private: &HeaderMap::new(),
                origin: String::new(),
                body,
                is_body_private: false,
                is_repeatable: false,
                tls: &Tls::default(),
                dial_timeout: PROBE_TIMEOUT,
                retry,
                trace: None,
            };
            let answered = transport.send(&outgoing).await.map(|reply| reply.response.status());
            match answered {
                Ok(status) => assert!(is_answered && status == 201, "{method}: {status}"),
                Err(error) => assert!(
                    !is_answered && error.is(ErrorKind::DeadlineExceeded),
                    "{method}: {}",
                    error.chain()
                ),
            }
        }
    }

    #[test]
    fn retry_after_is_in_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let asked = |value: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_str(value).unwrap())]);
            parse_retry_after(&headers, now).map(|wait| wait.as_secs())
        };
        assert_eq!(asked("120"), Some(120));
        assert_eq!(asked("Sun, 06 Nov 1994 08:49:47 GMT"), Some(10));
        assert_eq!(asked("Sun, 06 Nov 1994 08:49:27 GMT"), Some(0), "it is over");
        assert_eq!(asked("999999999999999999999"), Some(u64::MAX), "more than a number holds");
        for none in ["soon", "", "-1", "+1", "1.5", "1 s"] {
            assert_eq!(asked(none), None, "{none:?}");
        }
    }

    #[test]
    fn pauses_double_with_jitter() {
        for attempt in 1..=20 {
            let base = Duration::from_millis(100 << attempt.min(6));
            let found = pause(attempt);
            assert!(found >= base && found <= base * 3 / 2, "{attempt}: {found:?}");
        }
    }

    /// A body that repeats the same chunk a number of times.
    struct Again {
        bytes: &'static [u8],
        every: Duration,
        times: usize,
        pause: std::pin::Pin<Box<tokio::time::Sleep>>,
    }

    fn again(bytes: &'static [u8], every: Duration, times: usize) -> Again {
        Again { bytes, every, times, pause: Box::pin(tokio::time::sleep(every)) }
    }

    impl hyper::body::Body for Again {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            context: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<std::io::Result<hyper::body::Frame<Bytes>>>> {
            if self.times == 0 {
                return std::task::Poll::Ready(None);
            }
            std::task::ready!(self.pause.as_mut().poll(context));
            let next = Instant::now() + self.every;
            self.pause.as_mut().reset(next);
            self.times -= 1;
            let frame = hyper::body::Frame::data(Bytes::from_static(self.bytes));
            std::task::Poll::Ready(Some(Ok(frame)))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_dribbles_is_not_waited_for() {
        let second = Duration::from_secs(1);
        for (bytes, every) in [(&b"x"[..], second), (b"", second), (b"x", 25 * second), (b"", second / 1000)]
        {
            let since = Instant::now();
            let error = read_body(again(bytes, every, 1_000_000), 10_000).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{}", error.chain());
            assert!(since.elapsed() <= 2 * BODY_WINDOW, "{:?}", since.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_read_at_the_pace_of_a_slow_line_but_not_for_ever() {
        let second = Duration::from_secs(1);
        // Slow at first, on a line of 8 KiB/s, and one that would take half an hour.
        assert_eq!(read_body(again(b"late", 25 * second, 1), 10).await.unwrap(), b"late");
        let read = read_body(again(&[0; 8192], second, 60), 1 << 20).await.unwrap();
        assert_eq!(read.len(), 60 * 8192);
        let since = Instant::now();
        let read = read_body(again(&[0; 8192], second, 1800), usize::MAX).await;
        let error = read.map(|bytes| bytes.len()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{}", error.chain());
        assert_eq!(since.elapsed().as_secs(), BODY_TIMEOUT.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_failed_rests_for_a_while() {
        let transport = Transport::new(Proxies::default(), REST);
        transport.rest("a", None);
        transport.rest("b", Some(Duration::from_secs(5)));
        transport.rest("c", Some(Duration::from_secs(1 << 40)));
        let resting = |hosts: [&str; 3]| hosts.map(|host| transport.is_resting(host));
        let all = ["a", "b", "c"];
        assert_eq!(resting(all), [true, true, true]);
        transport.wake("b");
        assert_eq!(resting(all), [true, false, true]);
        tokio::time::advance(REST).await;
        assert_eq!(resting(all), [false, false, true]);
        tokio::time::advance(10 * REST).await;
        assert_eq!(resting(all), [false, false, false], "no host decides that it is left alone for a year");
    }
}
