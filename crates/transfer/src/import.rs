//! Imports images from files: OCI layouts, `docker save` archives, and root file systems.
//!
//! ```text
//! archive ─▶ [`archive`] ─┐                      ┌─ names of the index
//! folder  ─▶ [`layout`]  ─┴▶ content ─▶ Found ─▶ ┤
//!                                                └─ manifest.json ─▶ [`docker`] makes manifests
//!         ─▶ every blob of the images is checked ─▶ trees ─▶ image records
//! ```
//!
//! Blobs of an archive are stored as they stream by; which of them are needed is known only at the end, from the
//! index. Blobs that are not needed are held by the lease alone and go with it; if the import fails, so do all.

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

/// Bytes of a JSON file in an archive at most.
const DOCUMENT_LEN_MAX: u64 = image::DOCUMENT_LEN_MAX;

/// Bytes of an image name in an archive at most.
const NAME_LEN_MAX: usize = 1024;

/// Repository of the name of an unnamed image, which its digest completes.
const UNNAMED: &str = "docker.io/library/import";

/// Annotations in an index: containerd's has the full name, the image spec's a tag or a name.
const FULL_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Imports every image of an archive (a file or a pipe) or an OCI layout directory, unpacks those for this platform,
/// and returns their records. `fallback` names an image without a name of its own.
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

/// How the images of an archive are named and unpacked. Without rules only the index gets names.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// The trees to make, if the archive has such an image; empty leaves the layers packed.
    pub unpacks: Vec<Unpack>,
    /// The platforms of an index to keep, in addition to those in `unpacks`; empty keeps all.
    pub platforms: Vec<Platform>,
    /// Each rule may give every image names.
    pub rules: Vec<NameRule>,
    /// Name of the archive's index, which is not kept without a name.
    pub index_name: Option<String>,
    /// Further names of the index.
    pub index_names: Vec<String>,
    /// Repositories for further names, completed with the index's digest.
    pub index_names_with_digest: Vec<String>,
    /// Whether uncompressed layers of Docker archives are compressed with gzip.
    pub compresses: bool,
    /// Labels of the record with `index_name`.
    pub labels: Labels,
    /// Labels of all other records.
    pub labels_beside: Labels,
}

impl ImportOptions {
    /// Whether a document is for one of the wanted platforms, or has no platform.
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
    /// Each image has its full name from the archive. An image without one gets the fallback, which is also the
    /// repository for a bare tag.
    Own { fallback: Option<Reference> },
    /// The rules of containerd's transfer service.
    Base(BaseName),
}

/// A prefix for tags and digests. Names are taken from the archive as they are.
#[derive(Clone, Debug, Default)]
pub struct BaseName {
    pub name: String,
    /// Whether images with full names outside of this prefix are imported, too.
    pub takes_others: bool,
    pub digests: DigestNames,
}

/// Which images get a name with their digest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DigestNames {
    #[default]
    None,
    /// Images without another name.
    Nameless,
    All,
}

impl BaseName {
    /// The names of an entry of the archive's index.
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

    /// Whether a full name is wanted: it has our prefix, which ends at a component boundary, or others are accepted.
    fn admits(&self, name: &str) -> bool {
        let rest = name.strip_prefix(&self.name);
        is_full(name)
            && (self.takes_others || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(BOUNDARY)))
    }
}

/// Separators of a name's components.
const BOUNDARY: [char; 3] = ['/', ':', '@'];

fn with_digest(name: &str, digest: &Digest) -> String {
    format!("{name}@{digest}")
}

/// Whether a name is more than a tag.
fn is_full(name: &str) -> bool {
    name.contains(BOUNDARY)
}

/// As [`import`], from a stream.
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

/// The contents of an archive or directory other than blobs.
#[derive(Default)]
struct Found {
    index: Option<Vec<u8>>,
    docker_manifest: Option<Vec<u8>>,
    /// Whether there is a `repositories` file, which Docker before 1.10 wrote instead of `manifest.json`.
    has_repositories: bool,
    /// By path, for manifests that reference files instead of digests.
    files: BTreeMap<String, (Digest, u64)>,
    /// Symbolic and hard links: link path to target path.
    links: BTreeMap<String, String>,
}

/// The images of an archive with their names, each pair once, in order.
#[derive(Default)]
struct Named {
    all: Vec<(String, Descriptor)>,
    seen: BTreeSet<(String, Digest)>,
}

impl Named {
    /// Adds named images. `InvalidArgument` for names that are too long or unprintable, or too many of them.
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
    /// Records the images of an archive.
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
        // All images are checked before the first is recorded.
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

    /// The archive's own list of images.
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

    /// Stores the index of an archive; for a Docker archive, makes one.
    fn index(&self, found: &Found, manifests: &[Descriptor]) -> Result<Descriptor> {
        let Some(index) = &found.index else {
            // As containerd makes it: without a media type inside.
            let index = Index {
                schema_version: 2,
                media_type: None,
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

    /// Streams a file into the content store. Computes its digest, and checks it against `expected`. `kind` is the
    /// media type for the event of the blob; empty for a file of an archive, whose type only its parent knows.
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
        // A path may be long; its digest identifies it as well.
        let reference = IngestRef::new(format!("import-{lease}-{}", Digest::of(path.as_bytes()).hex()))?;
        let mut writer = match content.begin(&reference, Expected { size, digest: expected.cloned() }) {
            Ok(writer) => writer.of_type(kind),
            Err(error) if error.is(ErrorKind::AlreadyExists) => {
                let digest = expected.cloned().ok_or(error)?;
                return self.mend(&content, digest, data).map_err(|error| error.context(what()));
            }
            Err(error) => return Err(error.context(what())),
        };
        // Drops shared bytes of another namespace, so that the given bytes are checked.
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

    /// Verifies a blob that the store has, and replaces it with the archive's bytes if it is damaged.
    fn mend(&self, content: &Content, digest: Digest, data: &mut dyn Read) -> Result<(Digest, u64)> {
        let size = content.info(&digest)?.size;
        if is_right(content.reader(&digest), &digest)? {
            // Skip the entry's data: the next entry follows it.
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

    /// Stores a document that the import made.
    fn document(&self, name: &str, kind: &str, document: &impl Serialize) -> Result<Descriptor> {
        let bytes = serde_json::to_vec(document).expect("documents of images are plain data");
        let descriptor = Descriptor::new(kind, Digest::of(&bytes), bytes.len() as u64);
        self.store(name, kind, Some(&descriptor.digest), Some(descriptor.size), &mut &bytes[..])?;
        Ok(descriptor)
    }

    /// Checks everything that an image references, sets its garbage collection labels, and makes the requested trees.
    fn admit(&self, target: &Descriptor, options: &ImportOptions) -> Result<()> {
        let contents = contents(self.metadata, self.caller, target)?;
        if let Some(missing) = contents.missing_loose() {
            return Err(Error::not_found(format!("blob {} is missing", missing.digest)));
        }
        let host = Platform::host();
        let best = contents.best(&host);
        // An archive may have some of the platforms, but must have a complete one.
        if best.is_none() && !contents.is_of_use() {
            let layers = contents.variants.iter().filter_map(|variant| variant.manifest.as_ref());
            layers.flat_map(|manifest| &manifest.layers).try_for_each(image::check_distributable)?;
            let missing = contents.missing().next().map_or(&target.digest, |part| &part.descriptor.digest);
            return Err(Error::not_found(format!("blob {missing} is missing")));
        }
        self.label_children(target, &contents, options)?;
        for Unpack { platform, snapshotter } in &options.unpacks {
            let fits =
                |variant: &crate::Variant| variant.platform.as_ref().is_none_or(|own| platform.fit(own) > 0);
            if contents.best(platform).is_some_and(fits) {
                unpack(self.metadata, self.caller, snapshotter, target, platform, None)?;
            }
        }
        Ok(())
    }

    /// Labels each wanted document so that it keeps its children. The image itself is wanted, whatever its platform: it
    /// gets a record, which must not be without its blobs.
    fn label_children(
        &self,
        target: &Descriptor,
        contents: &crate::Contents,
        options: &ImportOptions,
    ) -> Result<()> {
        let content = self.metadata.content(self.caller);
        let is_wanted = |document: &&Descriptor| document.digest == target.digest || options.keeps(document);
        for document in contents.documents().filter(is_wanted) {
            let bytes = read(self.metadata, self.caller, &document.digest)?;
            let labels = image::Node::parse(&document.media_type, &bytes)?.reference_labels();
            add_labels(&content, &document.digest, &labels)?;
        }
        Ok(())
    }

    fn record(&self, name: &str, target: Descriptor, labels: &Labels) -> Result<Image> {
        let images = self.metadata.images(self.caller);
        let now = Timestamp::now();
        // Records have no platform.
        let target = Descriptor { platform: None, ..target };
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

/// The full names in an archive. Removes the annotations with the names.
fn own_names(
    found: &Found,
    manifests: Vec<Descriptor>,
    fallback: Option<&Reference>,
) -> Result<Vec<(String, Descriptor)>> {
    // Archives for both formats have full names in manifest.json, and only tags in the index.
    let docker = found.docker_manifest.as_deref().filter(|_| found.index.is_some() && manifests.len() == 1);
    let docker_tag = docker.and_then(docker::only_tag);
    // An unnamed image of a Docker archive is named by its digest, not by the fallback.
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
