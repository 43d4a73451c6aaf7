//! Whom to ask for a blob of which wrong bytes came.
//!
//! ```text
//! all hosts ─ one host brought it all, and wrong ─▶ the hosts but that one
//!           └ it came from several ───────────────▶ each host by itself: then it shows which one lies
//! ```
//!
//! Only a digest tells, and only at the end, so whoever takes a blob's bytes says what came of them. A host
//! that lied rests: the next blob does not begin with it.

use std::collections::VecDeque;
use std::sync::Arc;

use types::{Descriptor, Digest, Error, Hasher, Result};

use crate::endpoint::Endpoint;
use crate::host::Capability;
use crate::remote::{Remote, told_together};

/// The hosts that are left for one blob, and what went wrong with those before.
pub struct Sources {
    /// Each stands for the hosts that may be asked in one attempt.
    waiting: VecDeque<Remote>,
    failures: Vec<Error>,
}

/// What one attempt to fetch a blob brought.
pub struct Brought<'a> {
    /// Whose hosts were asked.
    pub remote: &'a Remote,
    /// Those of them whose bytes it was; see [`BlobStream::givers`](crate::BlobStream::givers).
    pub givers: &'a [Arc<Endpoint>],
    /// Bytes that were there before any of those hosts was asked.
    pub begun_at: u64,
}

impl Sources {
    pub fn new(remote: Remote) -> Sources {
        Sources { waiting: VecDeque::from([remote]), failures: Vec::new() }
    }

    /// Where the blob can be fetched from, from its beginning on; none if there is nobody left.
    pub fn next_remote(&mut self) -> Option<Remote> {
        self.waiting.pop_front()
    }

    /// All of the blob came, with another digest.
    pub fn wrong(&mut self, brought: &Brought<'_>, found: &Digest) {
        let names: Vec<&str> = brought.givers.iter().map(|giver| giver.name()).collect();
        let from = if names.is_empty() { String::new() } else { format!(" from {}", names.join(" and ")) };
        self.failures.push(Error::data_loss(format!("the bytes that came{from} have the digest {found}")));
        let remote = brought.remote;
        match brought.givers {
            // Whoever brought the beginning may be the one.
            _ if brought.begun_at > 0 => self.waiting.push_front(remote.clone()),
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

    /// The blob could not be fetched.
    pub fn failed(&mut self, failure: Error) {
        self.failures.push(failure);
    }

    /// What all attempts came to.
    pub fn into_error(mut self) -> Error {
        let last = self.failures.pop();
        let last = last.unwrap_or_else(|| Error::internal("a blob was not asked for"));
        told_together(self.failures, last)
    }
}

impl Remote {
    /// A small blob, whole and with the right digest.
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
            sources.wrong(&Brought { remote: &remote, givers: &givers, begun_at: 0 }, &found);
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
