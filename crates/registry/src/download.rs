//! Downloads of files by URL, for imports: no registry, no credentials.

use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Method, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use types::{Error, Result};

use crate::remote::Connections;
use crate::request::Body;
use crate::tls::Tls;
use crate::transport::{Outgoing, RetryPolicy, error_text};
use crate::url::origin;

const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest time between two chunks.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A download in progress.
pub struct Download {
    address: Uri,
    size: Option<u64>,
    body: Incoming,
}

impl Connections {
    /// Starts downloading the file at a URL, `http://…` or `https://…`. Follows redirects, but none from https to
    /// http. `InvalidArgument` for an invalid URL, `NotFound` if the server has no such file.
    pub async fn download(&self, address: &str) -> Result<Download> {
        let bad = |why: &str| Error::invalid_argument(format!("{address:?} is no address of a file: {why}"));
        let url: Uri = address.parse().map_err(|error| bad("it cannot be read").with_source(error))?;
        if !matches!(url.scheme_str(), Some("http" | "https")) {
            return Err(bad("it begins with neither http:// nor https://"));
        }
        if url.host().is_none_or(str::is_empty) {
            return Err(bad("it names no host"));
        }
        if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(bad("a name and a password in it would be shown to everyone"));
        }
        let (headers, tls) = (HeaderMap::new(), Tls::default());
        let outgoing = Outgoing {
            method: &Method::GET,
            url: &url,
            headers: &headers,
            private: &headers,
            origin: origin(&url),
            body: &Body::Empty,
            is_body_private: false,
            is_repeatable: true,
            tls: &tls,
            dial_timeout: DIAL_TIMEOUT,
            retry: RetryPolicy::LAST,
            trace: None,
        };
        let reply = Box::pin(self.transport().send(&outgoing)).await?;
        let status = reply.response.status();
        if !status.is_success() {
            let words = error_text(reply.response).await;
            let said = if words.is_empty() { words } else { format!(": {words}") };
            let text = format!("{url}: the server answered {status}{said}");
            return Err(match status {
                StatusCode::NOT_FOUND | StatusCode::GONE => Error::not_found(text),
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::permission_denied(text),
                _ => Error::unavailable(text),
            });
        }
        let size = reply.response.headers().get(CONTENT_LENGTH);
        let size = size.and_then(|value| value.to_str().ok()?.parse().ok());
        Ok(Download { address: url, size, body: reply.response.into_body() })
    }
}

impl Download {
    /// Bytes of the file, if the server says.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// The next bytes; `None` at the end. `Unavailable` if the connection breaks before.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            match tokio::time::timeout(SILENCE_MAX, self.body.frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
                Ok(Some(Err(error))) => {
                    let broken = Error::unavailable(format!("{} broke off", self.address));
                    return Err(broken.with_source(error));
                }
                Err(_) => {
                    let words = format!("{} has brought nothing for {SILENCE_MAX:?}", self.address);
                    return Err(Error::deadline_exceeded(words));
                }
            }
        }
    }
}
