//! A blob as a stream of chunks that survives broken connections.

use bytes::Bytes;
use http::header::RANGE;
use http::{HeaderValue, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use types::{Descriptor, Error, Result};

use crate::host::Capability;
use crate::remote::Remote;
use crate::request::Request;
use crate::transport::{ATTEMPTS_MAX, IDLE_TIMEOUT, pause};

/// Chunks of a blob, in order, each byte once.
pub struct BlobStream {
    remote: Remote,
    descriptor: Descriptor,
    body: Incoming,
    /// Bytes of the blob that have been given out, or skipped.
    offset: u64,
    /// Bytes that a server without ranges sends again.
    skip: u64,
    /// Times that the stream broke without any byte in between.
    failures: u32,
}

impl BlobStream {
    pub(crate) async fn open(remote: Remote, descriptor: Descriptor, offset: u64) -> Result<BlobStream> {
        let (body, skip) = request(&remote, &descriptor, offset).await?;
        Ok(BlobStream { remote, descriptor, body, offset, skip, failures: 0 })
    }

    /// The next chunk; none at the end. A body that breaks off is asked for again from where it ended.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if self.offset >= self.descriptor.size {
                return Ok(None);
            }
            let frame = tokio::time::timeout(IDLE_TIMEOUT, self.body.frame()).await;
            let failure = match frame {
                Ok(Some(Ok(frame))) => match frame.into_data().ok().and_then(|data| self.take(data)) {
                    Some(data) => return self.count(data).map(Some),
                    None => continue,
                },
                Ok(Some(Err(error))) => Error::unavailable("the connection broke").with_source(error),
                Ok(None) => Error::unavailable(format!(
                    "it ended after {} of {} bytes",
                    self.offset, self.descriptor.size
                )),
                Err(_) => Error::deadline_exceeded(format!("no data for {IDLE_TIMEOUT:?}")),
            };
            self.reopen(failure).await?;
        }
    }

    /// Leaves out what was given before.
    fn take(&mut self, mut data: Bytes) -> Option<Bytes> {
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(data.len());
        self.skip -= skipped as u64;
        let rest = data.split_off(skipped);
        (!rest.is_empty()).then_some(rest)
    }

    fn count(&mut self, data: Bytes) -> Result<Bytes> {
        self.offset += data.len() as u64;
        self.failures = 0;
        if self.offset > self.descriptor.size {
            return Err(self.remote.context(Error::data_loss(format!(
                "blob {} is longer than the {} bytes that its manifest says",
                self.descriptor.digest, self.descriptor.size
            ))));
        }
        Ok(data)
    }

    async fn reopen(&mut self, failure: Error) -> Result<()> {
        self.failures += 1;
        if self.failures >= ATTEMPTS_MAX {
            return Err(self
                .remote
                .context(failure.context(format!("fetch blob {}", self.descriptor.digest))));
        }
        tokio::time::sleep(pause(self.failures)).await;
        (self.body, self.skip) = request(&self.remote, &self.descriptor, self.offset).await?;
        Ok(())
    }
}

/// Asks for a blob from an offset on. Returns the body, and how many of its bytes come before the offset.
async fn request(remote: &Remote, descriptor: &Descriptor, offset: u64) -> Result<(Incoming, u64)> {
    let object = &descriptor.digest;
    let mut request = Request::get(format!("blobs/{object}"), Capability::Pull);
    if offset > 0 {
        let range = format!("bytes={offset}-{}", descriptor.size.saturating_sub(1));
        request = request.header(RANGE, HeaderValue::from_str(&range).expect("plain text"));
    }
    let answer = remote.send(&request).await?;
    let skip = if answer.status() == StatusCode::PARTIAL_CONTENT { 0 } else { offset };
    let expected = descriptor.size - offset + skip;
    if let Some(announced) = answer.content_length().filter(|announced| *announced != expected) {
        return Err(remote.context(Error::data_loss(format!(
            "blob {object}: {announced} bytes are announced, its manifest says {expected}"
        ))));
    }
    Ok((answer.into_body(), skip))
}
