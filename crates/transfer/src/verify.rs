//! Blobs that are on disk hashed again, and those that rotted fetched anew.
//!
//! A blob is worth nothing once its bytes are others, but nothing is taken away before its replacement has
//! been fetched and found right. Where a blob came from, its labels say (see `source`).

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::Arc;

use metadata::{Caller, Mending, Metadata};
use registry::{Brought, Endpoint, Remote, Sources};
use types::descriptor::media_type;
use types::{Context, Descriptor, Digest, ErrorKind, Hasher, Reference, Result};

use crate::unpack::read;
use crate::{blocking, source};

/// Leads to a repository. It may read files.
pub type Remotes = Arc<dyn Fn(&Reference) -> Result<Remote> + Send + Sync>;

/// What a blob was found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Good,
    /// Its bytes were wrong and are right again, from this repository.
    Mended(String),
    /// Its bytes are wrong, and why nothing could be done about it.
    Broken(String),
}

/// One blob that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    pub descriptor: Descriptor,
    /// The image in which it was met first.
    pub image: String,
    pub verdict: Verdict,
}

/// Hashes every blob of images that is here, and mends what is broken. `tell` hears how many bytes were
/// read, and of how many that are known so far.
pub async fn verify(
    metadata: &Metadata,
    caller: &Caller,
    images: Vec<(String, Descriptor)>,
    remote: Remotes,
    tell: impl Fn(u64, u64),
) -> Result<Vec<Checked>> {
    let verifier = Verifier { metadata: metadata.clone(), caller: caller.clone() };
    let mut seen = BTreeSet::new();
    let (mut checked, mut bytes, mut known) = (Vec::new(), 0, 0);
    for (image, target) in images {
        let mut waiting = vec![(target, 0)];
        while let Some((descriptor, depth)) = waiting.pop() {
            if !seen.insert(descriptor.digest.clone()) || !verifier.has(&descriptor.digest).await? {
                continue;
            }
            known += descriptor.size;
            let verdict = verifier.check(&descriptor, &remote).await?;
            bytes += descriptor.size;
            tell(bytes, known);
            let is_readable = !matches!(verdict, Verdict::Broken(_));
            checked.push(Checked { descriptor: descriptor.clone(), image: image.clone(), verdict });
            if is_readable && depth <= image::INDEX_DEPTH_MAX + 1 {
                let children = verifier.children(&descriptor).await?;
                waiting.extend(children.into_iter().rev().map(|child| (child, depth + 1)));
            }
        }
    }
    Ok(checked)
}

struct Verifier {
    metadata: Metadata,
    caller: Caller,
}

impl Verifier {
    async fn has(&self, digest: &Digest) -> Result<bool> {
        let (metadata, caller, digest) = (self.metadata.clone(), self.caller.clone(), digest.clone());
        blocking(move || match metadata.content(&caller).info(&digest) {
            Err(error) if error.is(ErrorKind::NotFound) => Ok(false),
            info => info.map(|_| true),
        })
        .await
    }

    async fn check(&self, descriptor: &Descriptor, remote: &Remotes) -> Result<Verdict> {
        if self.is_right(descriptor).await? {
            return Ok(Verdict::Good);
        }
        let mut failures = Vec::new();
        for reference in self.sources(&descriptor.digest).await? {
            let name = reference.name();
            let remote = remote.clone();
            let mended = async {
                let remote = blocking(move || remote(&reference)).await?;
                self.mend(descriptor, &remote).await
            };
            match mended.await {
                Ok(()) => return Ok(Verdict::Mended(name)),
                Err(error) => failures.push(error.context(format!("fetch it from {name}")).chain()),
            }
        }
        Ok(Verdict::Broken(match failures.is_empty() {
            true => "it did not come from a registry; load or import its image again".to_owned(),
            false => failures.join("; "),
        }))
    }

    async fn is_right(&self, descriptor: &Descriptor) -> Result<bool> {
        let (metadata, caller, descriptor) = (self.metadata.clone(), self.caller.clone(), descriptor.clone());
        blocking(move || {
            let digest = &descriptor.digest;
            let mut reader = match metadata.content(&caller).reader(digest) {
                // The record is there, the file is not.
                Err(error) if error.is(ErrorKind::NotFound) => return Ok(false),
                reader => reader?,
            };
            let mut hasher = Hasher::new(digest.algorithm());
            let mut buffer = vec![0; 256 * 1024];
            loop {
                match reader.read(&mut buffer).context(|| format!("read {digest}"))? {
                    0 => return Ok(hasher.finish() == *digest),
                    len => hasher.update(&buffer[..len]),
                }
            }
        })
        .await
    }

    async fn sources(&self, digest: &Digest) -> Result<Vec<Reference>> {
        let (metadata, caller, digest) = (self.metadata.clone(), self.caller.clone(), digest.clone());
        blocking(move || {
            let labels = metadata.content(&caller).info(&digest)?.labels;
            Ok(source::references(&labels, &digest))
        })
        .await
    }

    /// Fetches the right bytes and puts them in the place of the wrong ones.
    async fn mend(&self, descriptor: &Descriptor, remote: &Remote) -> Result<()> {
        if is_document(descriptor) {
            let bytes = remote.manifest(descriptor).await?;
            let mut mending = self.begin(descriptor).await?;
            return blocking(move || mending.write(&bytes).and_then(|()| mending.finish())).await;
        }
        let mut sources = Sources::new(remote.clone());
        while let Some(remote) = sources.next_remote() {
            let (mending, givers) = match self.bring(descriptor, &remote).await {
                Ok(brought) => brought,
                Err(failure) => {
                    sources.failed(failure);
                    continue;
                }
            };
            let found = mending.digest();
            if found == descriptor.digest {
                return blocking(move || mending.finish()).await;
            }
            sources.wrong(&Brought { remote: &remote, givers: &givers, begun_at: 0 }, &found);
        }
        Err(sources.into_error())
    }

    /// Fetches all of a blob, whatever its digest, and says whose bytes it is.
    async fn bring(&self, blob: &Descriptor, remote: &Remote) -> Result<(Mending, Vec<Arc<Endpoint>>)> {
        let mut mending = self.begin(blob).await?;
        let mut stream = remote.blob(blob, 0).await?;
        while let Some(chunk) = stream.next().await? {
            mending = blocking(move || mending.write(&chunk).map(|()| mending)).await?;
        }
        Ok((mending, stream.givers().to_vec()))
    }

    async fn begin(&self, descriptor: &Descriptor) -> Result<Mending> {
        let (metadata, caller, wanted) = (self.metadata.clone(), self.caller.clone(), descriptor.clone());
        blocking(move || metadata.content(&caller).mend(&wanted.digest, wanted.size)).await
    }

    /// What a document names; nothing for everything else.
    async fn children(&self, descriptor: &Descriptor) -> Result<Vec<Descriptor>> {
        if !is_document(descriptor) {
            return Ok(Vec::new());
        }
        let (metadata, caller, descriptor) = (self.metadata.clone(), self.caller.clone(), descriptor.clone());
        blocking(move || {
            let bytes = read(&metadata, &caller, &descriptor.digest)?;
            let node = image::Node::parse(&descriptor.media_type, &bytes)?;
            Ok(node.children().into_iter().cloned().collect())
        })
        .await
    }
}

fn is_document(descriptor: &Descriptor) -> bool {
    media_type::is_index(&descriptor.media_type) || media_type::is_manifest(&descriptor.media_type)
}
