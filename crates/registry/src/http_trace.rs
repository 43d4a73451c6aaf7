//! Traces of HTTP requests, answers and connections.
//!
//! ```text
//! GET /v2/x/manifests/1 HTTP/1.1       heads of requests and answers, a line for each header, then an empty line
//! Authorization: [not shown]           secrets
//! {"schemaVersion":2,…}                documents and error texts; no layers, and no tokens
//! ```
//!
//! Requests never wait for the reader of a trace: what it does not take in time is dropped, and counted.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use http::{HeaderMap, Method, StatusCode, Uri, Version};
use tokio::sync::mpsc;

/// Texts that wait for the reader at most.
const WAITING_MAX: usize = 256;
/// Bytes of a document that are shown at most.
const DOCUMENT_LEN_MAX: usize = 64 << 10;

/// What to trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceOptions {
    pub messages: bool,
    pub connections: bool,
}

/// The writing end of a trace. Clones write to the same trace.
#[derive(Clone, Debug)]
pub struct HttpTrace {
    options: TraceOptions,
    texts: mpsc::Sender<String>,
    left_out: Arc<AtomicUsize>,
}

impl HttpTrace {
    /// Creates a trace. Each text consists of whole lines; the channel closes with the last clone.
    pub fn new(options: TraceOptions) -> (HttpTrace, mpsc::Receiver<String>) {
        let (texts, receive) = mpsc::channel(WAITING_MAX);
        (HttpTrace { options, texts, left_out: Arc::default() }, receive)
    }

    fn show(&self, text: String) {
        let left_out = self.left_out.swap(0, Ordering::Relaxed);
        let text = match left_out {
            0 => text,
            count => format!("[{count} left out: they came faster than they were taken]\n{text}"),
        };
        if self.texts.try_send(text).is_err() {
            self.left_out.fetch_add(left_out + 1, Ordering::Relaxed);
        }
    }

    pub(crate) fn request(&self, method: &Method, at: &Uri, headers: &HeaderMap) {
        if !self.options.messages {
            return;
        }
        let path = at.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let host = at.authority().map_or("", http::uri::Authority::as_str);
        let mut text = format!("{method} {path} HTTP/1.1\nHost: {host}\n");
        write_headers(&mut text, headers);
        self.show(text);
    }

    pub(crate) fn answer(&self, version: Version, status: StatusCode, headers: &HeaderMap) {
        if self.options.messages {
            let mut text = format!("{version:?} {status}\n");
            write_headers(&mut text, headers);
            self.show(text);
        }
    }

    /// Shows a body that is text.
    pub(crate) fn document(&self, bytes: &[u8]) {
        if !self.options.messages || bytes.is_empty() {
            return;
        }
        let shown = &bytes[..bytes.len().min(DOCUMENT_LEN_MAX)];
        let mut text = String::from_utf8_lossy(shown).into_owned();
        if shown.len() < bytes.len() {
            let _ = write!(text, "[and {} bytes more]", bytes.len() - shown.len());
        }
        text.push('\n');
        self.show(text);
    }

    fn connection(&self, text: String) {
        if self.options.connections {
            self.show(text + "\n");
        }
    }
}

/// Writes `Content-Type: text/plain`, as in HTTP/1.1; values marked as sensitive are not shown.
fn write_headers(text: &mut String, headers: &HeaderMap) {
    for (name, value) in headers {
        let mut begins = true;
        for char in name.as_str().chars() {
            text.push(if begins { char.to_ascii_uppercase() } else { char });
            begins = char == '-';
        }
        let shown = match value.is_sensitive() {
            true => "[not shown]".into(),
            false => String::from_utf8_lossy(value.as_bytes()),
        };
        let _ = writeln!(text, ": {shown}");
    }
    text.push('\n');
}

/// The connection of one request. Task-local, since the connector does not know the request.
pub(crate) struct ConnectionTrace {
    trace: Option<HttpTrace>,
    /// Whether a new connection was made for it.
    is_new: AtomicBool,
}

tokio::task_local! {
    static CONNECTION_TRACE: ConnectionTrace;
}

impl ConnectionTrace {
    /// Runs a request such that the connector reports to this trace.
    pub(crate) async fn with<T>(trace: Option<HttpTrace>, request: impl Future<Output = T>) -> T {
        CONNECTION_TRACE.scope(ConnectionTrace { trace, is_new: AtomicBool::new(false) }, request).await
    }

    fn show(text: impl FnOnce() -> String) {
        let _ = CONNECTION_TRACE.try_with(|trace| trace.trace.as_ref().map(|trace| trace.connection(text())));
    }

    pub(crate) fn looks_up(name: &str) {
        ConnectionTrace::show(|| format!("DNS lookup host={name:?}"));
    }

    pub(crate) fn found(addresses: &[std::net::SocketAddr]) {
        let text = || {
            let addresses: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
            format!("DNS lookup complete result={:?}", addresses.join(" "))
        };
        ConnectionTrace::show(text);
    }

    pub(crate) fn not_found(why: &str) {
        ConnectionTrace::show(|| format!("DNS lookup error lookup_err={why:?}"));
    }

    pub(crate) fn connects() {
        let _ = CONNECTION_TRACE.try_with(|trace| trace.is_new.store(true, Ordering::Relaxed));
    }

    /// A response came over a connection.
    pub(crate) fn answered(address: Option<std::net::SocketAddr>) {
        let is_new = CONNECTION_TRACE.try_with(|trace| trace.is_new.load(Ordering::Relaxed)).unwrap_or(true);
        let address = address.map_or_else(|| "unknown".to_owned(), |address| address.to_string());
        ConnectionTrace::show(|| format!("Connection successful remote_addr={address:?} reused={}", !is_new));
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::{ACCEPT, AUTHORIZATION};

    use super::*;

    #[test]
    fn heads_are_shown_without_secrets() {
        let (trace, mut texts) = HttpTrace::new(TraceOptions { messages: true, connections: false });
        let mut headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("a/b"))]);
        let mut secret = HeaderValue::from_static("Bearer s3cret");
        secret.set_sensitive(true);
        headers.insert(AUTHORIZATION, secret);
        trace.request(&Method::GET, &Uri::from_static("http://h.example:5000/v2/?a=b"), &headers);
        assert_eq!(
            texts.try_recv().unwrap(),
            "GET /v2/?a=b HTTP/1.1\nHost: h.example:5000\nAccept: a/b\nAuthorization: [not shown]\n\n"
        );
        trace.connection("not asked for".into());
        trace.document(&[b'x'; DOCUMENT_LEN_MAX + 7]);
        assert!(texts.try_recv().unwrap().ends_with("x[and 7 bytes more]\n"));
        assert!(texts.try_recv().is_err());
    }

    #[test]
    fn dropped_trace_texts_are_counted() {
        let (trace, mut texts) = HttpTrace::new(TraceOptions { messages: true, connections: true });
        for _ in 0..WAITING_MAX + 3 {
            trace.document(b"x");
        }
        for _ in 0..WAITING_MAX {
            assert_eq!(texts.try_recv().unwrap(), "x\n");
        }
        trace.document(b"y");
        let words = "[3 left out: they came faster than they were taken]\ny\n";
        assert_eq!(texts.try_recv().unwrap(), words);
    }
}
