//! Verifies the blobs and unpacked layers on disk, and restores damaged ones.
//!
//! A damaged blob is worthless, but is removed only once its replacement was fetched and verified. Its labels say
//! where it came from (see `source`). An unpacked layer is restored from its blob, which is verified first, or
//! fetched if it is not kept. For layers kept as directories nothing records their bytes: their files are counted,
//! and no more is claimed.

use std::collections::BTreeSet;
use std::sync::Arc;

use content::BlobReader;
use metadata::{Caller, Mending, Metadata};
use registry::{Endpoint, FetchAttempt, Remote, Sources};
use types::descriptor::media_type;
use types::spec::image::Manifest;
use types::{Context, Descriptor, Digest, ErrorKind, Filters, Hasher, Reference, Result, UnlessGone};

use crate::contents::contents;
use crate::kept::{Found, Kept, Unpacked, unpacked};
use crate::unpack::read;
use crate::{blocking, source};

/// Opens a repository. May read files, so it is called on blocking threads.
pub type Remotes = Arc<dyn Fn(&Reference) -> Result<Remote> + Send + Sync>;

/// The kind of a verified object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Blob,
    /// The unpacked form of a layer.
    Layer,
}

/// The result of a verification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Good,
    /// Its bytes were wrong and have been restored, from this repository or this part of the image.
    Mended(String),
    /// Its bytes are wrong, and why they could not be restored.
    Broken(String),
    /// There is nothing to compare its bytes with.
    Unseen,
}

/// A verified blob or layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    pub what: What,
    /// The blob's; for a layer, that of its blob.
    pub descriptor: Descriptor,
    /// Bytes read.
    pub len: u64,
    /// The first image in which it was found.
    pub image: String,
    pub verdict: Verdict,
}

/// A layer that is damaged in a way that shows without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    pub image: String,
    pub layer: Digest,
    pub why: String,
}

/// Finds visibly damaged layers of images: unpacked layers with missing or truncated files, and blobs whose recipe
/// cannot be used.
pub fn damaged(
    metadata: &Metadata,
    caller: &Caller,
    images: &[(String, Descriptor)],
) -> Result<Vec<Damaged>> {
    let content = metadata.content(caller);
    let (mut seen, mut blobs, mut found) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for (image, target) in images {
        let contents = match contents(metadata, caller, target) {
            // Not an image, so it has no layers.
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
                    // Layer blobs may be missing.
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

/// Hashes every blob and every unpacked layer that the stores have of these images, and restores damaged ones. Calls
/// `tell` with the bytes read so far, and the total known so far.
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
    // Layers last: they are restored from blobs.
    let mut seen = BTreeSet::new();
    for (image, manifest) in manifests {
        pass.check_layers(&image, manifest, &mut seen).await?;
    }
    Ok(pass.checked)
}

/// The state of a verification.
struct Pass<T> {
    verifier: Verifier,
    remote: Remotes,
    tell: T,
    /// Bytes read, and bytes known to exist.
    bytes: u64,
    known: u64,
    checked: Vec<Checked>,
}

impl<T: Fn(u64, u64)> Pass<T> {
    /// Verifies the blobs of an image from its target down, except those in `seen`. Returns the readable manifests
    /// among them.
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

    /// Verifies the unpacked layers of a manifest, except trees in `seen`, by snapshotter and name.
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
    /// Hosts, with ports, that names of images begin with.
    registries: BTreeSet<String>,
}

/// Hosts that names of images begin with.
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

    /// The unpacked layers of a manifest.
    async fn unpacked(&self, manifest: Manifest) -> Result<Vec<Unpacked>> {
        let (metadata, caller) = (self.metadata.clone(), self.caller.clone());
        blocking(move || match unpacked(&metadata, &caller, &manifest) {
            // A broken config was reported as a blob; without it the layers are unknown.
            Err(error) if error.is(ErrorKind::DataLoss) || error.is(ErrorKind::InvalidArgument) => {
                Ok(Vec::new())
            }
            unpacked => unpacked,
        })
        .await
    }

    /// Compares the number of files of a layer that is a directory.
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
                // The layer is right without the record, and gets a new one if the store has its blob.
                looked.files().remove_record()?;
                let without = "its archive, without the record of its spans";
                let failure = match looked.replace(&layer) {
                    Ok(()) => return Ok(Ok(Verdict::Mended("its blob".to_owned()))),
                    Err(failure) if failure.is(ErrorKind::NotFound) => {
                        return Ok(Ok(Verdict::Mended(without.to_owned())));
                    }
                    Err(failure) => failure.context("store it from its blob").chain(),
                };
                // A failed replacement may have changed the layer.
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
        // If the blob is not kept, only the image's name says where the layer came from.
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

    /// Fetches a blob, and replaces the damaged one with it.
    async fn mend(&self, descriptor: &Descriptor, remote: &Remote) -> Result<()> {
        if media_type::is_document(&descriptor.media_type) {
            let bytes = remote.manifest(descriptor).await?;
            let mut mending = self.begin(descriptor).await?;
            return blocking(move || mending.write(&bytes).and_then(|()| mending.finish())).await;
        }
        let mut sources = Sources::new(remote.clone());
        while let Some(remote) = sources.next_remote() {
            let (mending, givers) = match self.fetch(descriptor, &remote).await {
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
            sources.wrong(&FetchAttempt { remote: &remote, givers: &givers, begun_at: 0 }, &found);
        }
        Err(sources.into_error())
    }

    /// Fetches all of a blob, whatever its digest. Returns the endpoints that sent it.
    async fn fetch(&self, blob: &Descriptor, remote: &Remote) -> Result<(Mending, Vec<Arc<Endpoint>>)> {
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

    /// Reads an index or manifest; `None` for any other blob.
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

/// Whether an opened blob has this digest.
pub(crate) fn is_right(opened: Result<Box<dyn BlobReader>>, digest: &Digest) -> Result<bool> {
    let mut reader = match opened {
        // The record exists but the file does not, or its recipe cannot be used.
        Err(error) if error.is(ErrorKind::NotFound) || error.is(ErrorKind::DataLoss) => return Ok(false),
        reader => reader?,
    };
    let mut hasher = Hasher::new(digest.algorithm());
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish() == *digest),
            Ok(len) => hasher.update(&buffer[..len]),
            // A bad block of the disk.
            Err(error) if content::is_damage(&error) => return Ok(false),
            Err(error) => return Err(error).context(|| format!("read {digest}")),
        }
    }
}
