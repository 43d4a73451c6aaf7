//! The hosts to ask for a blob after wrong bytes.
//!
//! ```text
//! all hosts ─ one host sent all of it, and wrong ─▶ all hosts but that one
//!           └ several hosts sent it ──────────────▶ each host by itself, which shows the one with wrong bytes
//! ```
//!
//! Only the digest at the end shows wrong bytes, so the caller that computes it reports the result. A host with wrong
//! bytes rests: other blobs start with another host.

use std::collections::VecDeque;
use std::sync::Arc;

use types::{Descriptor, Digest, Error, Hasher, Result};

use crate::endpoint::Endpoint;
use crate::host::Capability;
use crate::remote::{Remote, combine_errors};

/// The hosts left for one blob, and the failures so far.
pub struct Sources {
    /// Each is the set of hosts for one attempt.
    waiting: VecDeque<Remote>,
    failures: Vec<Error>,
}

/// The result of one attempt to fetch a blob.
pub struct FetchAttempt<'a> {
    /// The hosts that were asked.
    pub remote: &'a Remote,
    /// Those that sent the bytes; see [`BlobStream::givers`](crate::BlobStream::givers).
    pub givers: &'a [Arc<Endpoint>],
    /// Bytes that existed before any of those hosts was asked.
    pub begun_at: u64,
}

impl Sources {
    pub fn new(remote: Remote) -> Sources {
        Sources { waiting: VecDeque::from([remote]), failures: Vec::new() }
    }

    /// The hosts for the next attempt, which fetches the blob from its beginning; `None` if none are left.
    pub fn next_remote(&mut self) -> Option<Remote> {
        self.waiting.pop_front()
    }

    /// Reports that all of the blob came, with another digest.
    pub fn wrong(&mut self, attempt: &FetchAttempt<'_>, found: &Digest) {
        let names: Vec<&str> = attempt.givers.iter().map(|giver| giver.name()).collect();
        let from = if names.is_empty() { String::new() } else { format!(" from {}", names.join(" and ")) };
        self.failures.push(Error::data_loss(format!("the bytes that came{from} have the digest {found}")));
        let remote = attempt.remote;
        match attempt.givers {
            // The earlier bytes may be the wrong ones.
            _ if attempt.begun_at > 0 => self.waiting.push_front(remote.clone()),
            [] => {}
            [liar] => {
                liar.rest();
                self.waiting.push_front(remote.where_not(liar));
            }
            _ => {
                let each = remote.endpoints(Capability::Pull);
                self.waiting.extend(each.into_iter().map(|host| remote.where_only(host)));
            }
        }
        self.waiting.retain(|remote| !remote.endpoints(Capability::Pull).is_empty());
    }

    /// Reports that an attempt failed.
    pub fn failed(&mut self, failure: Error) {
        self.failures.push(failure);
    }

    /// The failures of all attempts in one error.
    pub fn into_error(mut self) -> Error {
        let last = self.failures.pop();
        let last = last.unwrap_or_else(|| Error::internal("a blob was not asked for"));
        combine_errors(self.failures, last)
    }
}

impl Remote {
    /// Fetches all of a small blob, and checks its digest.
    pub async fn small_blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let mut sources = Sources::new(self.clone());
        while let Some(remote) = sources.next_remote() {
            let (bytes, givers) = match read(&remote, descriptor).await {
                Ok(read) => read,
                Err(failure) => {
                    sources.failed(failure);
                    continue;
                }
            };
            let mut hasher = Hasher::new(descriptor.digest.algorithm());
            hasher.update(&bytes);
            let found = hasher.finish();
            if found == descriptor.digest {
                return Ok(bytes);
            }
            sources.wrong(&FetchAttempt { remote: &remote, givers: &givers, begun_at: 0 }, &found);
        }
        Err(sources.into_error().context(format!("fetch blob {}", descriptor.digest)))
    }
}

async fn read(remote: &Remote, descriptor: &Descriptor) -> Result<(Vec<u8>, Vec<Arc<Endpoint>>)> {
    let mut stream = remote.blob(descriptor, 0).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok((bytes, stream.givers().to_vec()))
}
