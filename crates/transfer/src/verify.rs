//! Blobs and unpacked layers that are on disk hashed again, and those that rotted made anew.
//!
//! A blob is worth nothing once its bytes are others, but nothing is taken away before its replacement has
//! been fetched and found right. Where a blob came from, its labels say (see `source`). An unpacked layer is
//! made anew from its blob, which was looked at before, or fetched where that is not kept. Of layers that are kept
//! as directories nothing says what their bytes should be: their files are counted, and no more is claimed.

use std::collections::BTreeSet;
use std::sync::Arc;

use content::BlobReader;
use metadata::{Caller, Mending, Metadata};
use registry::{Brought, Endpoint, Remote, Sources};
use types::descriptor::media_type;
use types::spec::image::Manifest;
use types::{Context, Descriptor, Digest, ErrorKind, Filters, Hasher, Reference, Result, UnlessGone};

use crate::contents::contents;
use crate::kept::{Found, Kept, Unpacked, unpacked};
use crate::unpack::read;
use crate::{blocking, source};

/// Leads to a repository. It may read files.
pub type Remotes = Arc<dyn Fn(&Reference) -> Result<Remote> + Send + Sync>;

/// What was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Blob,
    /// What a layer's blob was unpacked to.
    Layer,
}

/// What it was found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Good,
    /// Its bytes were wrong and are right again, from this repository or part of the image.
    Mended(String),
    /// Its bytes are wrong, and why nothing could be done about it.
    Broken(String),
    /// There is nothing that its bytes could be compared with.
    Unseen,
}

/// One blob or layer that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    pub what: What,
    /// Of the blob.
    pub descriptor: Descriptor,
    /// Bytes that were read.
    pub len: u64,
    /// The image in which it was met first.
    pub image: String,
    pub verdict: Verdict,
}

/// A layer that can be seen to be wrong without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    pub image: String,
    pub layer: Digest,
    pub why: String,
}

/// Looks for layers of images that are visibly damaged: unpacked, with files that are gone or cut off, and blobs that cannot
/// be made again.
pub fn damaged(
    metadata: &Metadata,
    caller: &Caller,
    images: &[(String, Descriptor)],
) -> Result<Vec<Damaged>> {
    let content = metadata.content(caller);
    let (mut seen, mut blobs, mut found) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for (image, target) in images {
        let contents = match contents(metadata, caller, target) {
            // It is no image, and has no layers to look at.
            Err(error) if error.is(ErrorKind::Unimplemented) || error.is(ErrorKind::InvalidArgument) => {
                continue;
            }
            contents => contents.map_err(|error| error.context(image.clone()))?,
        };
        let manifests = contents.variants.iter().filter_map(|variant| variant.manifest.as_ref());
        for manifest in manifests {
            for layer in &manifest.layers {
                if !blobs.insert(layer.digest.clone()) {
                    continue;
                }
                match content.form(&layer.digest) {
                    Err(error) if error.is(ErrorKind::DataLoss) => {
                        let (layer, why) = (layer.digest.clone(), error.chain());
                        found.push(Damaged { image: image.clone(), layer, why });
                    }
                    // It need not be here.
                    Err(error) if error.is(ErrorKind::NotFound) => {}
                    form => drop(form?),
                }
            }
            for Unpacked { at, snapshotter, name, kept } in unpacked(metadata, caller, manifest)? {
                let Some(kept) = kept.filter(|_| seen.insert((snapshotter, name))) else { continue };
                match kept.files().look() {
                    Err(error) if error.is(ErrorKind::DataLoss) => {
                        let (layer, why) = (manifest.layers[at].digest.clone(), error.chain());
                        found.push(Damaged { image: image.clone(), layer, why });
                    }
                    looked => looked?,
                }
            }
        }
    }
    Ok(found)
}

/// Hashes every blob and every unpacked layer of images that is here, and mends what is broken. `tell` hears how many bytes were
/// read, and of how many that are known so far.
pub async fn verify(
    metadata: &Metadata,
    caller: &Caller,
    images: Vec<(String, Descriptor)>,
    remote: Remotes,
    tell: impl Fn(u64, u64),
) -> Result<Vec<Checked>> {
    let registries = registries(metadata, caller).await?;
    let verifier = Verifier { metadata: metadata.clone(), caller: caller.clone(), registries };
    let mut pass = Pass { verifier, remote, tell, bytes: 0, known: 0, checked: Vec::new() };
    let (mut seen, mut manifests) = (BTreeSet::new(), Vec::new());
    for (image, target) in images {
        let found = pass.check_blobs(&image, target, &mut seen).await?;
        manifests.extend(found.into_iter().map(|manifest| (image.clone(), manifest)));
    }
    // Layers come last: they are mended from blobs.
    let mut seen = BTreeSet::new();
    for (image, manifest) in manifests {
        pass.check_layers(&image, manifest, &mut seen).await?;
    }
    Ok(pass.checked)
}

/// What a verification has looked at so far.
struct Pass<T> {
    verifier: Verifier,
    remote: Remotes,
    tell: T,
    /// That were read, of all that are known to be there.
    bytes: u64,
    known: u64,
    checked: Vec<Checked>,
}

impl<T: Fn(u64, u64)> Pass<T> {
    /// Hashes the blobs of an image from its target down, but for those that were `seen`. Returns the manifests among them
    /// that can be read.
    async fn check_blobs(
        &mut self,
        image: &str,
        target: Descriptor,
        seen: &mut BTreeSet<Digest>,
    ) -> Result<Vec<Manifest>> {
        let (mut manifests, mut waiting) = (Vec::new(), vec![(target, 0)]);
        while let Some((descriptor, depth)) = waiting.pop() {
            if !seen.insert(descriptor.digest.clone()) || !self.verifier.has(&descriptor.digest).await? {
                continue;
            }
            self.known += descriptor.size;
            let verdict = self.verifier.check(&descriptor, &self.remote).await?;
            self.was_read(descriptor.size);
            let is_readable = !matches!(verdict, Verdict::Broken(_));
            self.note(What::Blob, descriptor.clone(), descriptor.size, image, verdict);
            if !is_readable || depth > image::INDEX_DEPTH_MAX + 1 {
                continue;
            }
            let Some(node) = self.verifier.node(&descriptor).await? else { continue };
            let children: Vec<Descriptor> = node.children().into_iter().cloned().collect();
            waiting.extend(children.into_iter().rev().map(|child| (child, depth + 1)));
            if let image::Node::Manifest(manifest) = node {
                manifests.push(*manifest);
            }
        }
        Ok(manifests)
    }

    /// Looks at what the layers of a manifest were unpacked to, but for trees that were `seen`, which are known by their
    /// snapshotters and names.
    async fn check_layers(
        &mut self,
        image: &str,
        manifest: Manifest,
        seen: &mut BTreeSet<(String, String)>,
    ) -> Result<()> {
        for unpacked in self.verifier.unpacked(manifest.clone()).await? {
            if !seen.insert((unpacked.snapshotter.clone(), unpacked.name.clone())) {
                continue;
            }
            let descriptor = manifest.layers[unpacked.at].clone();
            let Some(kept) = &unpacked.kept else {
                let verdict = self.verifier.count_files(unpacked).await?;
                self.note(What::Layer, descriptor, 0, image, verdict);
                continue;
            };
            let len = kept.len();
            self.known += len;
            let verdict = self.verifier.check_layer(image, &descriptor, kept, &self.remote).await?;
            self.was_read(len);
            self.note(What::Layer, descriptor, len, image, verdict);
        }
        Ok(())
    }

    fn was_read(&mut self, len: u64) {
        self.bytes += len;
        (self.tell)(self.bytes, self.known);
    }

    fn note(&mut self, what: What, descriptor: Descriptor, len: u64, image: &str, verdict: Verdict) {
        self.checked.push(Checked { what, descriptor, len, image: image.to_owned(), verdict });
    }
}

struct Verifier {
    metadata: Metadata,
    caller: Caller,
    /// Hosts that images are named after, with their ports.
    registries: BTreeSet<String>,
}

/// Hosts that images are named after.
async fn registries(metadata: &Metadata, caller: &Caller) -> Result<BTreeSet<String>> {
    let images = metadata.images(caller);
    let images = blocking(move || images.list(&Filters::all())).await?;
    let names = images.iter().filter_map(|image| image.name.parse::<Reference>().ok());
    Ok(names.map(|name| name.host().to_owned()).collect())
}

impl Verifier {
    async fn has(&self, digest: &Digest) -> Result<bool> {
        let (metadata, caller, digest) = (self.metadata.clone(), self.caller.clone(), digest.clone());
        let blob = blocking(move || metadata.content(&caller).info(&digest).unless_gone());
        Ok(blob.await?.is_some())
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

    /// What an image has unpacked.
    async fn unpacked(&self, manifest: Manifest) -> Result<Vec<Unpacked>> {
        let (metadata, caller) = (self.metadata.clone(), self.caller.clone());
        blocking(move || match unpacked(&metadata, &caller, &manifest) {
            // A config that is broken has been told as such, and without it nothing is known of layers.
            Err(error) if error.is(ErrorKind::DataLoss) || error.is(ErrorKind::InvalidArgument) => {
                Ok(Vec::new())
            }
            unpacked => unpacked,
        })
        .await
    }

    /// All that can be seen of a directory without knowing what was in it.
    async fn count_files(&self, layer: Unpacked) -> Result<Verdict> {
        let (metadata, caller) = (self.metadata.clone(), self.caller.clone());
        blocking(move || {
            let snapshots = metadata.snapshots(&caller, &layer.snapshotter)?;
            let counted = match snapshots.recount(&layer.name) {
                Err(error) if error.is(ErrorKind::DataLoss) => return Ok(Verdict::Broken(error.chain())),
                counted => counted?,
            };
            let recorded = snapshots.usage(&layer.name)?.inodes;
            Ok(match counted {
                Some(found) if found.inodes != recorded => Verdict::Broken(format!(
                    "it is a directory of {} files instead of {recorded}; remove the image and pull it again",
                    found.inodes
                )),
                _ => Verdict::Unseen,
            })
        })
        .await
    }

    async fn check_layer(
        &self,
        image: &str,
        blob: &Descriptor,
        kept: &Kept,
        remote: &Remotes,
    ) -> Result<Verdict> {
        let (looked, layer) = (kept.clone(), blob.clone());
        let found = blocking(move || match looked.check()? {
            Found::Good if !looked.is_record_right()? => {
                // The layer is right without it, and gets another one if its blob is here.
                looked.files().remove_record()?;
                let without = "its archive, without the record of its spans";
                let failure = match looked.replace(&layer) {
                    Ok(()) => return Ok(Ok(Verdict::Mended("its blob".to_owned()))),
                    Err(failure) if failure.is(ErrorKind::NotFound) => {
                        return Ok(Ok(Verdict::Mended(without.to_owned())));
                    }
                    Err(failure) => failure.context("store it from its blob").chain(),
                };
                // It may have ended half way.
                Ok(match looked.check()? {
                    Found::Lost(error) => Err(vec![error.chain(), failure]),
                    Found::Good | Found::Mended => {
                        looked.files().remove_record()?;
                        Ok(Verdict::Mended(format!("{without}: {failure}")))
                    }
                })
            }
            Found::Good if !looked.mend_derived()? => Ok(Ok(Verdict::Good)),
            Found::Good => Ok(Ok(Verdict::Mended("the layers of the image".to_owned()))),
            Found::Mended => Ok(Ok(Verdict::Mended("its archive".to_owned()))),
            Found::Lost(error) => Ok(match looked.replace(&layer) {
                Ok(()) => Ok(Verdict::Mended("its blob".to_owned())),
                Err(failure) if failure.is(ErrorKind::NotFound) => {
                    Err(vec![error.chain(), "its blob is not kept".to_owned()])
                }
                Err(failure) => Err(vec![error.chain(), failure.context("store it from its blob").chain()]),
            }),
        });
        let mut failures = match found.await? {
            Ok(verdict) => return Ok(verdict),
            Err(failures) => failures,
        };
        let mut sources = self.sources(&blob.digest).await?;
        // Where the blob is not kept, the image's name is all that says where it came from.
        let named = image.parse::<Reference>().ok();
        let named = named.and_then(|name| format!("{}@{}", name.name(), blob.digest).parse().ok());
        sources.extend(named.filter(|named| !sources.contains(named)));
        for reference in sources {
            let name = reference.name();
            let remote = remote.clone();
            let fetched = async {
                let remote = blocking(move || remote(&reference)).await?;
                kept.fetch(blob, &remote).await
            };
            match fetched.await {
                Ok(()) => return Ok(Verdict::Mended(name)),
                Err(error) => failures.push(error.context(format!("fetch it from {name}")).chain()),
            }
        }
        Ok(Verdict::Broken(failures.join("; ")))
    }

    async fn is_right(&self, descriptor: &Descriptor) -> Result<bool> {
        let content = self.metadata.content(&self.caller);
        let digest = descriptor.digest.clone();
        blocking(move || is_right(content.reader(&digest), &digest)).await
    }

    async fn sources(&self, digest: &Digest) -> Result<Vec<Reference>> {
        let (metadata, caller, wanted) = (self.metadata.clone(), self.caller.clone(), digest.clone());
        let blob = blocking(move || metadata.content(&caller).info(&wanted).unless_gone());
        let labels = blob.await?.map(|blob| blob.labels).unwrap_or_default();
        Ok(source::references(&labels, digest, &self.registries))
    }

    /// Fetches the right bytes and puts them in the place of the wrong ones.
    async fn mend(&self, descriptor: &Descriptor, remote: &Remote) -> Result<()> {
        if media_type::is_document(&descriptor.media_type) {
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

    /// A document; none for everything else.
    async fn node(&self, descriptor: &Descriptor) -> Result<Option<image::Node>> {
        if !media_type::is_document(&descriptor.media_type) {
            return Ok(None);
        }
        let (metadata, caller, descriptor) = (self.metadata.clone(), self.caller.clone(), descriptor.clone());
        blocking(move || {
            let bytes = read(&metadata, &caller, &descriptor.digest)?;
            image::Node::parse(&descriptor.media_type, &bytes).map(Some)
        })
        .await
    }
}

/// Whether what is opened has this digest.
pub(crate) fn is_right(opened: Result<Box<dyn BlobReader>>, digest: &Digest) -> Result<bool> {
    let mut reader = match opened {
        // The record is there, the file is not; or it cannot be made again.
        Err(error) if error.is(ErrorKind::NotFound) || error.is(ErrorKind::DataLoss) => return Ok(false),
        reader => reader?,
    };
    let mut hasher = Hasher::new(digest.algorithm());
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish() == *digest),
            Ok(len) => hasher.update(&buffer[..len]),
            // A block of the disk is bad.
            Err(error) if content::is_damage(&error) => return Ok(false),
            Err(error) => return Err(error).context(|| format!("read {digest}")),
        }
    }
}
