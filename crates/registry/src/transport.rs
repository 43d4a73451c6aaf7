//! Requests: connections, time limits, redirects, and trying again.

use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::header::{HeaderValue, LOCATION, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use types::{Context, Error, ErrorKind, Result};

use crate::request::{Body, Sending};

/// From the request to the answer's headers, or between two parts of the request's body.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two chunks of a body.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
pub(crate) const ATTEMPTS_MAX: u32 = 6;
/// For a host of this machine to say whether it speaks TLS.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
const REDIRECTS_MAX: u32 = 10;
/// A server that asks for more patience than this is down.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Bytes of an error's text that are read.
const ERROR_LEN_MAX: usize = 4096;

type HttpClient = Client<HttpsConnector<HttpConnector>, Sending>;

/// A request in full.
pub(crate) struct Outgoing<'a> {
    pub(crate) method: &'a Method,
    pub(crate) url: &'a Uri,
    pub(crate) headers: &'a HeaderMap,
    /// Headers that are left out once a redirect leads away from `origin`.
    pub(crate) private: &'a HeaderMap,
    /// `https://host`: who may see the private headers.
    pub(crate) origin: String,
    pub(crate) body: &'a Body,
    /// Whether a broken connection is a reason to send it again.
    pub(crate) is_repeatable: bool,
}

/// An answer and the address that gave it.
pub(crate) struct Reply {
    pub(crate) response: Response<Incoming>,
    pub(crate) address: Uri,
}

/// One pool of connections for the whole process.
pub(crate) struct Transport {
    client: OnceLock<HttpClient>,
}

impl<'a> Outgoing<'a> {
    /// A request for something small, at an address of its own.
    pub(crate) fn get(url: &'a Uri, headers: &'a HeaderMap, private: &'a HeaderMap) -> Outgoing<'a> {
        Outgoing {
            method: &Method::GET,
            url,
            headers,
            private,
            origin: origin(url),
            body: &Body::Empty,
            is_repeatable: true,
        }
    }
}

impl Transport {
    pub(crate) fn new() -> Transport {
        // Certificates are read with the first request: most daemons of tests and laptops never need them.
        Transport { client: OnceLock::new() }
    }

    fn client(&self) -> &HttpClient {
        self.client.get_or_init(|| {
            let mut http = HttpConnector::new();
            http.enforce_http(false);
            http.set_connect_timeout(Some(CONNECT_TIMEOUT));
            http.set_nodelay(true);
            let found = rustls_native_certs::load_native_certs();
            let mut roots = rustls::RootCertStore::empty();
            roots.add_parsable_certificates(found.certs);
            let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
            let config = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .expect("ring knows the default versions")
                .with_root_certificates(roots)
                .with_no_client_auth();
            let https = hyper_rustls::HttpsConnectorBuilder::new()
                .with_tls_config(config)
                .https_or_http()
                .enable_all_versions()
                .wrap_connector(http);
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(Duration::from_secs(30))
                .http2_initial_stream_window_size(8 << 20)
                .http2_initial_connection_window_size(16 << 20)
                .build(https)
        })
    }

    /// Sends a request, follows redirects, and tries again what may pass by itself.
    ///
    /// Answers other than 429 and 5xx are returned whatever they say.
    pub(crate) async fn send(&self, request: &Outgoing<'_>) -> Result<Reply> {
        let mut failure = None;
        for attempt in 0..ATTEMPTS_MAX {
            if attempt > 0 {
                tokio::time::sleep(pause(attempt)).await;
            }
            match self.follow(request).await {
                Ok(reply) if should_retry(reply.response.status()) => {
                    let wait = retry_after(reply.response.headers());
                    let status = reply.response.status();
                    let words = error_text(reply.response).await;
                    let (method, url) = (request.method, request.url);
                    failure = Some(Error::unavailable(format!("{method} {url}: {status} {words}")));
                    match wait {
                        Some(wait) if wait <= WAIT_MAX => tokio::time::sleep(wait).await,
                        Some(_) => break,
                        None => {}
                    }
                }
                Ok(reply) => return Ok(reply),
                // Names that do not exist and wrong certificates do not get better.
                Err(error)
                    if request.is_repeatable
                        && (error.is(ErrorKind::Unavailable) || error.is(ErrorKind::DeadlineExceeded)) =>
                {
                    failure = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(failure.expect("at least one attempt was made"))
    }

    /// Whether a host of this machine answers in TLS. A certificate that nobody vouches for is an answer too:
    /// it is refused when it comes to it.
    pub(crate) async fn speaks_tls(&self, host: &str) -> bool {
        let request = Request::builder().method(Method::GET).uri(format!("https://{host}/v2/"));
        let Ok(request) = request.body(Body::Empty.open().0) else { return true };
        match tokio::time::timeout(PROBE_TIMEOUT, self.client().request(request)).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => is_certificate_error(&error),
            Err(_) => false,
        }
    }

    async fn follow(&self, request: &Outgoing<'_>) -> Result<Reply> {
        let Outgoing { method, url, .. } = request;
        let mut at = (*url).clone();
        for _ in 0..REDIRECTS_MAX {
            let response = self.once(request, &at).await?;
            if !should_follow(method, response.status()) {
                return Ok(Reply { response, address: at });
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let location = location
                .ok_or_else(|| Error::unavailable(format!("{method} {at}: a redirect to nowhere")))?;
            at = resolve(&at, location).context(|| format!("{method} {at}: a redirect to {location:?}"))?;
        }
        Err(Error::failed_precondition(format!("{method} {url}: more than {REDIRECTS_MAX} redirects")))
    }

    async fn once(&self, request: &Outgoing<'_>, at: &Uri) -> Result<Response<Incoming>> {
        let method = request.method;
        let (body, moved) = request.body.open();
        let mut message = Request::new(body);
        *message.method_mut() = method.clone();
        *message.uri_mut() = at.clone();
        let headers = message.headers_mut();
        headers.extend(request.headers.clone());
        let agent = concat!("hoist/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        if origin(at) == request.origin {
            headers.extend(request.private.clone());
        }
        let sending = self.client().request(message);
        tokio::pin!(sending);
        let sent = loop {
            match tokio::time::timeout(ANSWER_TIMEOUT, &mut sending).await {
                Ok(sent) => break sent,
                // A large body takes its time, but it moves.
                Err(_) if moved.swap(false, Ordering::Relaxed) => {}
                Err(_) => {
                    return Err(Error::deadline_exceeded(format!(
                        "{method} {at}: no answer within {ANSWER_TIMEOUT:?}"
                    )));
                }
            }
        };
        sent.map_err(|error| {
            match is_certificate_error(&error) {
                true => Error::failed_precondition(format!(
                    "{method} {at}: nobody known here vouches for the server's certificate; add its CA to the \
                     system's, or name a file of CAs in SSL_CERT_FILE of the daemon"
                )),
                false => Error::unavailable(format!("{method} {at}")),
            }
            .with_source(error)
        })
    }
}

/// A redirect that keeps the method is followed with any; others only where GET is meant anyway. What an
/// upload's answer says in `Location` is for the next step of the upload.
fn should_follow(method: &Method, status: StatusCode) -> bool {
    match status.as_u16() {
        307 | 308 => true,
        301..=303 => matches!(*method, Method::GET | Method::HEAD),
        _ => false,
    }
}

/// `https://host`: scheme and authority of an address.
fn origin(address: &Uri) -> String {
    let authority = address.authority().map_or("", http::uri::Authority::as_str);
    format!("{}://{authority}", address.scheme_str().unwrap_or("https"))
}

/// An address relative to another (RFC 3986, what occurs of it).
pub(crate) fn resolve(base: &Uri, location: &str) -> Result<Uri> {
    let text = if location.contains("://") {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{}://{rest}", base.scheme_str().unwrap_or("https"))
    } else {
        let path = if location.starts_with('/') { location.to_owned() } else { format!("/{location}") };
        let authority = base.authority().map_or("", http::uri::Authority::as_str);
        format!("{}://{authority}{path}", base.scheme_str().unwrap_or("https"))
    };
    let uri: Uri = text.parse().map_err(|error| Error::unavailable("not an address").with_source(error))?;
    match uri.scheme_str() {
        // From the protected into the open: never.
        Some("http") if base.scheme_str() == Some("https") => {
            Err(Error::permission_denied("from https to http"))
        }
        Some("http" | "https") => Ok(uri),
        _ => Err(Error::unavailable("neither http nor https")),
    }
}

fn should_retry(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Doubling from 100 ms, with up to half of it added by chance, so that many clients do not come at once.
pub(crate) fn pause(attempt: u32) -> Duration {
    let base = Duration::from_millis(100 << attempt.min(6));
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    base + base * (clock.subsec_nanos() % 512) / 1024
}

/// What an error says of itself: the registry's own words if it has some (distribution-spec, "Error Codes").
pub(crate) async fn error_text(answer: Response<Incoming>) -> String {
    let Ok(body) = read_body(answer.into_body(), ERROR_LEN_MAX).await else { return String::new() };
    let parsed: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
    let first = parsed.as_ref().map(|value| &value["errors"][0]);
    match first.and_then(|error| error["message"].as_str()) {
        Some(message) => message.to_owned(),
        None => String::from_utf8_lossy(&body).chars().filter(|c| !c.is_control()).take(200).collect(),
    }
}

/// A whole body of up to `len_max` bytes.
pub(crate) async fn read_body(mut body: Incoming, len_max: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let frame = tokio::time::timeout(IDLE_TIMEOUT, body.frame()).await;
        match frame.map_err(|_| Error::deadline_exceeded(format!("no data for {IDLE_TIMEOUT:?}")))? {
            None => return Ok(bytes),
            Some(Err(error)) => return Err(Error::unavailable("the answer broke off").with_source(error)),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    if bytes.len() + data.len() > len_max {
                        return Err(Error::resource_exhausted(format!(
                            "the answer is longer than the {len_max} bytes allowed"
                        )));
                    }
                    bytes.extend_from_slice(&data);
                }
            }
        }
    }
}

/// Whether a request failed for what the other side's certificate says.
fn is_certificate_error(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return matches!(error, rustls::Error::InvalidCertificate(_));
    }
    // An `io::Error` hides what it wraps from `source`.
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    wrapped.is_some_and(|wrapped| is_certificate_error(wrapped))
        || error.source().is_some_and(is_certificate_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved_and_never_leave_tls() {
        let base: Uri = "https://a.example/v2/x/blobs/y".parse().unwrap();
        let to = |location: &str| resolve(&base, location).map(|uri| uri.to_string());
        assert_eq!(to("/z").unwrap(), "https://a.example/z");
        assert_eq!(to("https://b.example/q?s=1").unwrap(), "https://b.example/q?s=1");
        assert_eq!(to("//b.example/q").unwrap(), "https://b.example/q");
        assert!(to("http://b.example/q").is_err());
        assert!(to("file:///etc/passwd").is_err());
    }
}
