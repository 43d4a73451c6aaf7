//! From files into the stores: OCI layouts and what `docker save` writes, and root file systems.
//!
//! ```text
//! archive ─▶ [`archive`] ─┐                      ┌─ names of the index
//! folder  ─▶ [`layout`]  ─┴▶ content ─▶ Found ─▶ ┤
//!                                                └─ manifest.json ─▶ [`docker`] makes manifests
//!         ─▶ everything that is named is looked at ─▶ trees ─▶ image records
//! ```
//!
//! Blobs of an archive go into the content store as they stream by; which are needed is known only at the
//! end, when the index has been read. What is not needed is held by the lease alone and goes with it, and so
//! does everything if the import fails.

mod archive;
mod docker;
mod layout;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

use content::Expected;
use linux::pipe::Pipe;
use metadata::{Caller, Content, Image, Metadata};
use serde::Serialize;
use types::descriptor::media_type;
use types::spec::image::Index;
use types::{
    Algorithm, Context, Descriptor, Digest, Error, ErrorKind, Hasher, IngestRef, Labels, Platform, Reference,
    Result, Timestamp,
};

pub use tree::{TreeConfig, import_tree};

use crate::unpack::read;
use crate::verify::is_right;
use crate::{Lease, Unpack, add_labels, contents, unpack};

/// Bytes of a JSON file in an archive.
const DOCUMENT_LEN_MAX: u64 = image::DOCUMENT_LEN_MAX;

/// Bytes of a name that an archive gives an image.
const NAME_LEN_MAX: usize = 1024;

/// The name of an image that has none, and whose digest alone tells it from others.
const UNNAMED: &str = "docker.io/library/import";

/// Annotations in an index: the name in full, which is containerd's, and a tag or a name.
const FULL_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Imports every image of an archive (a file or a pipe) or of a layout's folder, makes the trees of those
/// for this machine, and returns their records. `fallback` names an image that has no name of its own.
pub fn import(
    metadata: &Metadata,
    caller: &Caller,
    snapshotter: &str,
    source: &Path,
    fallback: Option<&Reference>,
) -> Result<Vec<Image>> {
    let unpack = Unpack { platform: Platform::host(), snapshotter: snapshotter.to_owned() };
    let rule = NameRule::Own { fallback: fallback.cloned() };
    let options = ImportOptions { unpacks: vec![unpack], rules: vec![rule], ..ImportOptions::default() };
    let imported = Lease::hold(metadata, caller, |caller| {
        let importer = Importer { metadata, caller, compresses: options.compresses };
        let found = if source.is_dir() {
            importer.read_layout(source)?
        } else {
            importer.read_archive(Pipe::open_source(source, caller.cancel.clone())?)?
        };
        importer.take(found, &options)
    });
    imported.map_err(|error| error.context(format!("import {}", source.display())))
}

/// How the images of an archive are named and kept. Without rules they are not named.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Whose trees are made, as far as the archive has such an image; none leaves the layers as they are.
    pub unpacks: Vec<Unpack>,
    /// Of an index, the images for these are kept, and those whose trees are made; without, all.
    pub platforms: Vec<Platform>,
    /// Each gives every image its names, or none.
    pub rules: Vec<NameRule>,
    /// Names the index of the archive, which is not kept without a name.
    pub index_name: Option<String>,
    /// Further names of the index.
    pub index_names: Vec<String>,
    /// And such that stand before its digest.
    pub index_names_with_digest: Vec<String>,
    /// Layers of archives of Docker's that are not compressed are, with gzip.
    pub compresses: bool,
    /// Of the index by its first name.
    pub labels: Labels,
    /// Of all other names.
    pub labels_beside: Labels,
}

impl ImportOptions {
    /// Whether a document is for one of the platforms that are wanted, or does not say for which it is.
    fn keeps(&self, document: &Descriptor) -> bool {
        let Some(own) = document.platform.as_ref().filter(|_| !self.platforms.is_empty()) else {
            return true;
        };
        let unpacked = self.unpacks.iter().map(|unpack| &unpack.platform);
        self.platforms.iter().chain(unpacked).any(|wanted| wanted.fit(own) > 0)
    }
}

/// How images get their names.
#[derive(Clone, Debug)]
pub enum NameRule {
    /// Each has the name that the archive says, in full. One that has none gets the fallback, which also stands before a
    /// tag alone.
    Own { fallback: Option<Reference> },
    /// As containerd does it.
    Base(BaseName),
}

/// A name that stands before tags and digests. Names are taken as the archive has them.
#[derive(Clone, Debug, Default)]
pub struct BaseName {
    pub name: String,
    /// Images are taken also by full names that do not begin so.
    pub takes_others: bool,
    pub digests: DigestNames,
}

/// Which images get a name that ends with their digest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DigestNames {
    #[default]
    None,
    /// Those that would have none.
    Nameless,
    All,
}

impl BaseName {
    /// The names of something in an archive.
    fn names(&self, target: &Descriptor) -> Vec<String> {
        let name = self.name_of(&target.annotations);
        let has_digest = match self.digests {
            DigestNames::None => false,
            DigestNames::Nameless => name.is_none(),
            DigestNames::All => true,
        };
        name.into_iter().chain(has_digest.then(|| self.with(&target.digest))).collect()
    }

    fn with(&self, digest: &Digest) -> String {
        with_digest(&self.name, digest)
    }

    fn name_of(&self, annotations: &BTreeMap<String, String>) -> Option<String> {
        let annotation = |key: &str| annotations.get(key).filter(|name| !name.is_empty());
        if let Some(full) = annotation(FULL_NAME) {
            return self.admits(full).then(|| full.clone());
        }
        let short = annotation(REF_NAME)?;
        if is_full(short) {
            self.admits(short).then(|| short.clone())
        } else {
            Some(format!("{}:{short}", self.name))
        }
    }

    /// Whether a full name is one of those that are wanted: it begins with ours, and that does not end within a word.
    fn admits(&self, name: &str) -> bool {
        let rest = name.strip_prefix(&self.name);
        is_full(name)
            && (self.takes_others || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(BOUNDARY)))
    }
}

/// What stands between the words of a name.
const BOUNDARY: [char; 3] = ['/', ':', '@'];

fn with_digest(name: &str, digest: &Digest) -> String {
    format!("{name}@{digest}")
}

/// Whether a name is more than a tag.
fn is_full(name: &str) -> bool {
    name.contains(BOUNDARY)
}

/// As [`import`], from an archive that comes in one piece after the other.
pub fn import_stream(
    metadata: &Metadata,
    caller: &Caller,
    options: &ImportOptions,
    archive: impl Read + Send,
) -> Result<Vec<Image>> {
    Lease::hold(metadata, caller, |caller| {
        let importer = Importer { metadata, caller, compresses: options.compresses };
        let found = importer.read_archive(archive)?;
        importer.take(found, options)
    })
    .context(|| "import an archive")
}

/// What an archive or folder held beside blobs.
#[derive(Default)]
struct Found {
    index: Option<Vec<u8>>,
    docker_manifest: Option<Vec<u8>>,
    /// `repositories` of Docker before 1.10, without which there is nothing to say.
    has_repositories: bool,
    /// By path, for manifests that name files instead of digests.
    files: BTreeMap<String, (Digest, u64)>,
    /// Symbolic and hard links, by path; what they mean, as a path too.
    links: BTreeMap<String, String>,
}

/// The images of an archive by their names, each pair once, in order.
#[derive(Default)]
struct Named {
    all: Vec<(String, Descriptor)>,
    seen: BTreeSet<(String, Digest)>,
}

impl Named {
    /// Refuses names that nobody could read or type, and too many of them.
    fn extend(&mut self, named: impl IntoIterator<Item = (String, Descriptor)>) -> Result<()> {
        for (name, target) in named {
            if name.len() > NAME_LEN_MAX || name.chars().any(char::is_control) {
                return Err(Error::invalid_argument(format!(
                    "it names an image {:?}, of {} bytes: names have up to {NAME_LEN_MAX}, and no control characters",
                    name.chars().take(100).collect::<String>(),
                    name.len()
                )));
            }
            if self.seen.insert((name.clone(), target.digest.clone())) {
                self.all.push((name, target));
                check_count("it", "names of images", self.all.len())?;
            }
        }
        Ok(())
    }
}

fn check_count(document: &str, what: &str, count: usize) -> Result<()> {
    let max = image::CHILDREN_MAX;
    if count > max {
        return Err(Error::invalid_argument(format!("{document} has {count} {what}, and {max} are read")));
    }
    Ok(())
}

struct Importer<'a> {
    metadata: &'a Metadata,
    caller: &'a Caller,
    compresses: bool,
}

impl Importer<'_> {
    /// Makes images of what was found.
    fn take(&self, found: Found, options: &ImportOptions) -> Result<Vec<Image>> {
        let manifests = self.manifests(&found)?;
        let mut named = Named::default();
        let of_rules = options.rules.iter().filter_map(|rule| match rule {
            NameRule::Base(base) if base.digests != DigestNames::None => Some(&base.name),
            _ => None,
        });
        let before_digest: Vec<&String> = of_rules.chain(&options.index_names_with_digest).collect();
        let index_name = options.index_name.iter().chain(&options.index_names);
        if index_name.clone().next().is_some() || !before_digest.is_empty() {
            let index = self.index(&found, &manifests)?;
            let digests = before_digest.into_iter().map(|name| with_digest(name, &index.digest));
            named.extend(index_name.cloned().chain(digests).map(|name| (name, index.clone())))?;
        }
        for rule in &options.rules {
            match rule {
                NameRule::Own { fallback } => {
                    named.extend(own_names(&found, manifests.clone(), fallback.as_ref())?)?;
                }
                NameRule::Base(base) => named.extend(manifests.iter().flat_map(|target| {
                    base.names(target).into_iter().map(move |name| (name, target.clone()))
                }))?,
            }
        }
        if named.all.is_empty() {
            let bases = options.rules.iter().filter_map(|rule| match rule {
                NameRule::Base(base) => Some(base.name.as_str()),
                NameRule::Own { .. } => None,
            });
            let bases = bases.collect::<Vec<_>>().join(" or ");
            return Err(Error::not_found(format!("it holds no image whose name begins with {bases:?}")));
        }
        // All of them are looked at before any is recorded.
        let mut admitted = BTreeSet::new();
        for (name, target) in &named.all {
            if admitted.insert((&target.digest, &target.media_type)) {
                let admitted = self.admit(target, options);
                admitted.map_err(|error| error.context(format!("image {name}")))?;
            }
        }
        let record = |(name, target): (String, Descriptor)| {
            let is_first = options.index_name.as_ref() == Some(&name);
            let labels = if is_first { &options.labels } else { &options.labels_beside };
            self.record(&name, target, labels)
        };
        named.all.into_iter().map(record).collect()
    }

    /// What the archive says it holds, as it says it.
    fn manifests(&self, found: &Found) -> Result<Vec<Descriptor>> {
        let manifests = match (&found.index, &found.docker_manifest) {
            (Some(index), _) => {
                let index: Index = serde_json::from_slice(index).map_err(|error| {
                    Error::invalid_argument("index.json cannot be read").with_source(error)
                })?;
                index.manifests
            }
            (None, Some(_)) => self.manifests_of_docker(found)?,
            (None, None) if found.has_repositories => {
                return Err(Error::unimplemented(
                    "it was saved by a Docker before 1.10, without manifest.json; load it into a current Docker and \
                     save it again",
                ));
            }
            (None, None) => {
                return Err(Error::invalid_argument(
                    "it holds neither index.json nor manifest.json: no OCI layout and no docker archive (a root file \
                     system is for hoist import)",
                ));
            }
        };
        if manifests.is_empty() {
            return Err(Error::invalid_argument("it holds no image"));
        }
        check_count("it", "images", manifests.len())?;
        Ok(manifests)
    }

    /// Keeps the index of an archive; archives of Docker's get one.
    fn index(&self, found: &Found, manifests: &[Descriptor]) -> Result<Descriptor> {
        let Some(index) = &found.index else {
            let index = Index {
                schema_version: 2,
                media_type: Some(media_type::OCI_INDEX.into()),
                artifact_type: None,
                manifests: manifests.to_vec(),
                subject: None,
                annotations: BTreeMap::new(),
            };
            return self.document("index.json", media_type::OCI_INDEX, &index);
        };
        let (digest, size) = (Digest::of(index), index.len() as u64);
        self.store("index.json", "", Some(&digest), Some(size), &mut &index[..])?;
        Ok(Descriptor::new(media_type::OCI_INDEX, digest, size))
    }

    /// Streams a file into the content store. Its digest is found out unless its name says it. Its media type is for those
    /// who hear of the blob; empty for a file of an archive, which is known by what names it.
    fn store(
        &self,
        path: &str,
        kind: &str,
        expected: Option<&Digest>,
        size: Option<u64>,
        data: &mut dyn Read,
    ) -> Result<(Digest, u64)> {
        let what = || format!("store {path}");
        let content = self.metadata.content(self.caller);
        let lease = self.caller.lease.as_ref().map(ToString::to_string).unwrap_or_default();
        // Paths may be long, and say nothing that a digest of them does not.
        let reference = IngestRef::new(format!("import-{lease}-{}", Digest::of(path.as_bytes()).hex()))?;
        let mut writer = match content.begin(&reference, Expected { size, digest: expected.cloned() }) {
            Ok(writer) => writer.of_type(kind),
            Err(error) if error.is(ErrorKind::AlreadyExists) => {
                let digest = expected.cloned().ok_or(error)?;
                return self.mend(&content, digest, data).map_err(|error| error.context(what()));
            }
            Err(error) => return Err(error.context(what())),
        };
        // Another namespace may have it; what we were given is stored or refused all the same.
        writer.truncate()?;
        let mut hasher = Hasher::new(expected.map_or(Algorithm::Sha256, Digest::algorithm));
        let mut buffer = vec![0; 256 * 1024];
        let mut len = 0;
        loop {
            let read = data.read(&mut buffer).context(what)?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            writer.write(&buffer[..read]).map_err(|error| error.context(what()))?;
            len += read as u64;
        }
        let digest = hasher.finish();
        if expected.is_some_and(|expected| *expected != digest) {
            return Err(Error::data_loss(format!("{}: the bytes are {digest}", what())));
        }
        match writer.commit(Expected::new(digest.clone(), len), Labels::new()) {
            Err(error) if !error.is(ErrorKind::AlreadyExists) => Err(error.context(what())),
            _ => Ok((digest, len)),
        }
    }

    /// Sees to it that a blob that is here is right, for which the bytes of the archive are as good as any.
    fn mend(&self, content: &Content, digest: Digest, data: &mut dyn Read) -> Result<(Digest, u64)> {
        let size = content.info(&digest)?.size;
        if is_right(content.reader(&digest), &digest)? {
            // The bytes that follow are the next entry's.
            std::io::copy(data, &mut std::io::sink()).context(|| "read it")?;
            return Ok((digest, size));
        }
        let mut mending = content.mend(&digest, size)?;
        let mut buffer = vec![0; 256 * 1024];
        loop {
            match data.read(&mut buffer).context(|| "read it")? {
                0 => break,
                read => mending.write(&buffer[..read])?,
            }
        }
        mending.finish()?;
        Ok((digest, size))
    }

    /// Stores a document that we made.
    fn document(&self, name: &str, kind: &str, document: &impl Serialize) -> Result<Descriptor> {
        let bytes = serde_json::to_vec(document).expect("documents of images are plain data");
        let descriptor = Descriptor::new(kind, Digest::of(&bytes), bytes.len() as u64);
        self.store(name, kind, Some(&descriptor.digest), Some(descriptor.size), &mut &bytes[..])?;
        Ok(descriptor)
    }

    /// Looks at everything that an image names, keeps it by labels, and makes the trees that are asked for.
    fn admit(&self, target: &Descriptor, options: &ImportOptions) -> Result<()> {
        let contents = contents(self.metadata, self.caller, target)?;
        if let Some(missing) = contents.missing_loose() {
            return Err(Error::not_found(format!("blob {} is missing", missing.digest)));
        }
        let host = Platform::host();
        let best = contents.best(&host);
        // Archives may hold a part of the platforms only, but nothing at all is none.
        if best.is_none() && !contents.is_of_use() {
            let layers = contents.variants.iter().filter_map(|variant| variant.manifest.as_ref());
            layers.flat_map(|manifest| &manifest.layers).try_for_each(image::check_distributable)?;
            let missing = contents.missing().next().map_or(&target.digest, |part| &part.descriptor.digest);
            return Err(Error::not_found(format!("blob {missing} is missing")));
        }
        self.label_children(&contents, options)?;
        for Unpack { platform, snapshotter } in &options.unpacks {
            let fits =
                |variant: &crate::Variant| variant.platform.as_ref().is_none_or(|own| platform.fit(own) > 0);
            if contents.best(platform).is_some_and(fits) {
                unpack(self.metadata, self.caller, snapshotter, target, platform, None)?;
            }
        }
        Ok(())
    }

    /// Sets on each document that is wanted the labels that keep its children.
    fn label_children(&self, contents: &crate::Contents, options: &ImportOptions) -> Result<()> {
        let content = self.metadata.content(self.caller);
        for document in contents.documents().filter(|document| options.keeps(document)) {
            let bytes = read(self.metadata, self.caller, &document.digest)?;
            let labels = image::Node::parse(&document.media_type, &bytes)?.reference_labels();
            add_labels(&content, &document.digest, &labels)?;
        }
        Ok(())
    }

    fn record(&self, name: &str, target: Descriptor, labels: &Labels) -> Result<Image> {
        let images = self.metadata.images(self.caller);
        let now = Timestamp::now();
        let image =
            Image { name: name.to_owned(), labels: labels.clone(), target, created: now, updated: now };
        images.assign(image)
    }
}

/// `blobs/sha256/HEX`
fn blob_digest(path: &str) -> Option<Digest> {
    let rest = path.strip_prefix("blobs/")?;
    rest.replacen('/', ":", 1).parse().ok()
}

fn unnamed(digest: &Digest) -> String {
    format!("{UNNAMED}@{digest}")
}

/// The names that an archive says, in full; without what says them.
fn own_names(
    found: &Found,
    manifests: Vec<Descriptor>,
    fallback: Option<&Reference>,
) -> Result<Vec<(String, Descriptor)>> {
    // Archives for both worlds have full names in manifest.json, and tags alone in the index.
    let docker = found.docker_manifest.as_deref().filter(|_| found.index.is_some() && manifests.len() == 1);
    let docker_tag = docker.and_then(docker::only_tag);
    // What docker saved without a name has its digest for one, and no other's.
    let fallback = fallback.filter(|_| found.index.is_some());
    let mut named = Vec::new();
    for mut target in manifests {
        let full = target.annotations.remove(FULL_NAME).or_else(|| docker_tag.clone());
        let short = target.annotations.remove(REF_NAME);
        let name = match (full, short, fallback) {
            (Some(full), _, _) => full.parse::<Reference>()?.to_string(),
            (None, Some(short), _) if short.contains(['/', ':']) => short.parse::<Reference>()?.to_string(),
            (None, Some(tag), Some(fallback)) => {
                format!("{}:{tag}", fallback.name()).parse::<Reference>()?.to_string()
            }
            (None, None, Some(fallback)) => fallback.to_string(),
            (None, Some(tag), None) => format!("{UNNAMED}:{tag}").parse::<Reference>()?.to_string(),
            (None, None, None) => unnamed(&target.digest),
        };
        target.annotations.clear();
        named.push((name, target));
    }
    Ok(named)
}
