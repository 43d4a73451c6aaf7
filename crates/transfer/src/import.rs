//! From archives into the stores: OCI layouts and what `docker save` writes, as one tar stream of any
//! compression, or an OCI layout as a directory.
//!
//! Blobs go into the content store as they stream by; which are needed is known only at the end, when the
//! index or manifest has been read. What is not needed is held by the lease alone and goes with it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use content::Expected;
use diff::Decoder;
use diff::tar::{Kind, Reader};
use metadata::{Caller, Image, Metadata};
use serde::Serialize;
use serde_json::Value;
use types::descriptor::media_type;
use types::spec::image::{History, ImageConfig, Index, Manifest, RootFs};
use types::{
    Algorithm, Context, Descriptor, Digest, Error, ErrorKind, Hasher, IngestRef, Labels, Platform, Reference,
    Result, Timestamp,
};

use crate::unpack::read;
use crate::{Lease, unpack};

/// Bytes of a JSON file in an archive.
const DOCUMENT_LEN_MAX: u64 = image::DOCUMENT_LEN_MAX;

/// Imports every image of an archive or layout directory, makes the trees of those for this platform, and
/// returns their records. `fallback` names an image that has no name of its own.
pub fn import(
    metadata: &Metadata,
    caller: &Caller,
    snapshotter: &str,
    source: &Path,
    fallback: Option<&Reference>,
) -> Result<Vec<Image>> {
    let what = || format!("import {}", source.display());
    let lease = Lease::begin(metadata, caller)?;
    let importer = Importer { metadata, caller: &lease.caller };
    let found = if source.is_dir() {
        importer.read_layout(source).context(what)?
    } else {
        let file = File::open(source).context(what)?;
        importer.read_archive(file).context(what)?
    };
    let named = importer.images(found, fallback).context(what)?;
    let mut images = Vec::new();
    for (name, target) in named {
        importer.label_children(&target, 0).context(what)?;
        unpack(metadata, &lease.caller, snapshotter, &target, &Platform::host(), None).context(what)?;
        images.push(importer.record(&name, target)?);
    }
    lease.end()?;
    Ok(images)
}

/// Makes an image of one layer from a tar of a root file system, of any compression. Without a name it is
/// named by its digest.
pub fn import_tree(
    metadata: &Metadata,
    caller: &Caller,
    snapshotter: &str,
    source: &Path,
    name: Option<&Reference>,
    comment: &str,
) -> Result<Image> {
    let what = || format!("import {}", source.display());
    let lease = Lease::begin(metadata, caller)?;
    let importer = Importer { metadata, caller: &lease.caller };
    let mut file = File::open(source).context(what)?;
    let size = file.metadata().context(what)?.len();
    let (layer, size) = importer.store("tree", None, size, &mut file).context(what)?;
    let now = Timestamp::now().to_string();
    let config = ImageConfig {
        created: Some(now.clone()),
        platform: Platform::host(),
        rootfs: RootFs { kind: "layers".into(), diff_ids: vec![importer.diff_id(&layer).context(what)?] },
        history: vec![History {
            created: Some(now),
            comment: Some(comment.to_owned()),
            ..History::default()
        }],
        ..ImageConfig::default()
    };
    let config = importer.document("config", media_type::OCI_CONFIG, &config)?;
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.into()),
        artifact_type: None,
        config,
        layers: vec![Descriptor::new(importer.layer_type(&layer)?, layer, size)],
        subject: None,
        annotations: BTreeMap::new(),
    };
    let target = importer.document("manifest", media_type::OCI_MANIFEST, &manifest)?;
    importer.label_children(&target, 0).context(what)?;
    unpack(metadata, &lease.caller, snapshotter, &target, &Platform::host(), None).context(what)?;
    let unnamed = || format!("docker.io/library/import@{}", target.digest);
    let image = importer.record(&name.map_or_else(unnamed, ToString::to_string), target.clone())?;
    lease.end()?;
    Ok(image)
}

/// What an archive held beside blobs.
#[derive(Default)]
struct Found {
    index: Option<Vec<u8>>,
    docker_manifest: Option<Vec<u8>>,
    /// Blobs of the form that `docker save` used before layouts: path to digest and size.
    files: BTreeMap<String, (Digest, u64)>,
    links: BTreeMap<String, String>,
}

struct Importer<'a> {
    metadata: &'a Metadata,
    caller: &'a Caller,
}

impl Importer<'_> {
    fn read_archive(&self, source: impl Read + Send) -> Result<Found> {
        let mut found = Found::default();
        let decoder = Decoder::new(source).context(|| "read archive")?;
        let mut archive = Reader::new(decoder);
        while let Some(entry) = archive.next_entry().context(|| "read archive")? {
            let path = String::from_utf8_lossy(&entry.path).into_owned();
            let path = path.trim_start_matches("./").to_owned();
            match &entry.kind {
                Kind::File => {}
                Kind::Symlink(target) | Kind::HardLink(target) => {
                    found.links.insert(path, String::from_utf8_lossy(target).into_owned());
                    continue;
                }
                _ => continue,
            }
            let document = |archive: &mut Reader<_>| {
                archive.read_all(DOCUMENT_LEN_MAX).context(|| format!("read {path}"))
            };
            match path.as_str() {
                "index.json" => found.index = Some(document(&mut archive)?),
                "manifest.json" => found.docker_manifest = Some(document(&mut archive)?),
                "oci-layout" | "repositories" => {}
                _ => {
                    let expected = blob_digest(&path);
                    let stored = self.store(&path, expected.as_ref(), entry.size, &mut Data(&mut archive))?;
                    found.files.insert(path, stored);
                }
            }
        }
        Ok(found)
    }

    fn read_layout(&self, folder: &Path) -> Result<Found> {
        let index = folder.join("index.json");
        let bytes =
            std::fs::read(&index).context(|| format!("read {} (is this an OCI layout?)", index.display()))?;
        let mut found = Found { index: Some(bytes), ..Found::default() };
        for algorithm in Algorithm::ALL {
            let blobs = folder.join("blobs").join(algorithm.name());
            let Ok(entries) = std::fs::read_dir(&blobs) else { continue };
            for entry in entries {
                let path: PathBuf = entry.context(|| format!("read {}", blobs.display()))?.path();
                let name = format!(
                    "blobs/{}/{}",
                    algorithm.name(),
                    path.file_name().unwrap_or_default().to_string_lossy()
                );
                let Some(expected) = blob_digest(&name) else { continue };
                let mut file = File::open(&path).context(|| format!("open {}", path.display()))?;
                let size = file.metadata().context(|| format!("stat {}", path.display()))?.len();
                let stored = self.store(&name, Some(&expected), size, &mut file)?;
                found.files.insert(name, stored);
            }
        }
        Ok(found)
    }

    /// Streams a file into the content store. Its digest is found out unless its name says it.
    fn store(
        &self,
        path: &str,
        expected: Option<&Digest>,
        size: u64,
        data: &mut dyn Read,
    ) -> Result<(Digest, u64)> {
        let what = || format!("store {path}");
        let content = self.metadata.content(self.caller);
        if let Some(digest) = expected
            && content.info(digest).is_ok()
        {
            // Read all the same: the bytes that follow are the next entry's.
            std::io::copy(data, &mut std::io::sink()).context(what)?;
            return Ok((digest.clone(), size));
        }
        let lease = self.caller.lease.as_ref().map(ToString::to_string).unwrap_or_default();
        let reference = IngestRef::new(format!("import-{lease}-{path}"))?;
        let wanted = Expected { size: Some(size), digest: expected.cloned() };
        let mut writer = match content.begin(&reference, wanted.clone()) {
            Ok(writer) => writer,
            Err(error) if error.is(ErrorKind::AlreadyExists) => {
                std::io::copy(data, &mut std::io::sink()).context(what)?;
                return Ok((expected.cloned().ok_or(error)?, size));
            }
            Err(error) => return Err(error.context(what())),
        };
        let mut hasher = Hasher::new(expected.map_or(Algorithm::Sha256, Digest::algorithm));
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let len = data.read(&mut buffer).context(what)?;
            if len == 0 {
                break;
            }
            hasher.update(&buffer[..len]);
            writer.write(&buffer[..len])?;
        }
        let digest = hasher.finish();
        if expected.is_some_and(|expected| *expected != digest) {
            return Err(Error::data_loss(format!("{}: the bytes are {digest}", what())));
        }
        match writer.commit(Expected::new(digest.clone(), size), Labels::new()) {
            Err(error) if !error.is(ErrorKind::AlreadyExists) => Err(error.context(what())),
            _ => Ok((digest, size)),
        }
    }

    /// The images of the archive, by name.
    fn images(&self, found: Found, fallback: Option<&Reference>) -> Result<Vec<(String, Descriptor)>> {
        let named = match (&found.index, &found.docker_manifest) {
            (Some(index), _) => named_by_index(index, found.docker_manifest.as_deref(), fallback)?,
            (None, Some(manifest)) => self.named_by_docker(manifest, &found)?,
            (None, None) => {
                return Err(Error::invalid_argument(
                    "it holds neither index.json nor manifest.json: no OCI layout and no docker archive",
                ));
            }
        };
        if named.is_empty() {
            return Err(Error::invalid_argument("it holds no image"));
        }
        Ok(named)
    }

    /// The form of `docker save` before layouts: a manifest is made, since there is none.
    fn named_by_docker(&self, bytes: &[u8], found: &Found) -> Result<Vec<(String, Descriptor)>> {
        let broken = |why: &str| Error::invalid_argument(format!("manifest.json: {why}"));
        let list: Vec<Value> =
            serde_json::from_slice(bytes).map_err(|error| broken("no list").with_source(error))?;
        let mut named = Vec::new();
        for item in list {
            let file = |path: &Value| -> Result<(Digest, u64)> {
                let path = path.as_str().ok_or_else(|| broken("a path is no text"))?;
                let direct = found.files.get(path).cloned();
                let linked = || {
                    let target = found.links.get(path)?;
                    let clean = target.trim_start_matches("../");
                    found.files.get(clean).cloned()
                };
                direct.or_else(linked).ok_or_else(|| broken(&format!("{path} is not in the archive")))
            };
            let (config, config_size) = file(&item["Config"])?;
            let parsed: ImageConfig = serde_json::from_slice(&read(self.metadata, self.caller, &config)?)
                .map_err(|error| broken("the config cannot be read").with_source(error))?;
            let empty = Vec::new();
            let paths = item["Layers"].as_array().unwrap_or(&empty);
            if paths.len() != parsed.rootfs.diff_ids.len() {
                return Err(broken("config and archive differ in the number of layers"));
            }
            let mut layers = Vec::new();
            for path in paths {
                let (digest, size) = file(path)?;
                layers.push(Descriptor::new(self.layer_type(&digest)?, digest, size));
            }
            let manifest = Manifest {
                schema_version: 2,
                media_type: Some(media_type::OCI_MANIFEST.into()),
                artifact_type: None,
                config: Descriptor::new(media_type::OCI_CONFIG, config, config_size),
                layers,
                subject: None,
                annotations: BTreeMap::new(),
            };
            let target = self.document("manifest", media_type::OCI_MANIFEST, &manifest)?;
            for tag in item["RepoTags"].as_array().unwrap_or(&empty).iter().filter_map(Value::as_str) {
                named.push((tag.parse::<Reference>()?.to_string(), target.clone()));
            }
            if item["RepoTags"].as_array().is_none_or(Vec::is_empty) {
                named.push((format!("docker.io/library/import@{}", target.digest), target));
            }
        }
        Ok(named)
    }

    /// Stores a document that we made.
    fn document(&self, name: &str, kind: &str, document: &impl Serialize) -> Result<Descriptor> {
        let bytes = serde_json::to_vec(document).expect("documents of images are plain data");
        let descriptor = Descriptor::new(kind, Digest::of(&bytes), bytes.len() as u64);
        self.store(name, Some(&descriptor.digest), descriptor.size, &mut &bytes[..])?;
        Ok(descriptor)
    }

    /// The digest of a layer's plain bytes.
    fn diff_id(&self, layer: &Digest) -> Result<Digest> {
        let what = || format!("read {layer}");
        let mut plain = Decoder::new(self.metadata.content(self.caller).reader(layer)?).context(what)?;
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut buffer = vec![0; 256 * 1024];
        loop {
            match plain.read(&mut buffer).context(what)? {
                0 => return Ok(hasher.finish()),
                len => hasher.update(&buffer[..len]),
            }
        }
    }

    fn layer_type(&self, digest: &Digest) -> Result<&'static str> {
        let mut reader = self.metadata.content(self.caller).reader(digest)?;
        let mut prefix = [0; 4];
        let len = reader.read(&mut prefix).context(|| format!("read {digest}"))?;
        Ok(match diff::Compression::detect(&prefix[..len]) {
            diff::Compression::None => media_type::OCI_LAYER,
            diff::Compression::Gzip => media_type::OCI_LAYER_GZIP,
            diff::Compression::Zstd => media_type::OCI_LAYER_ZSTD,
        })
    }

    /// Sets on each document the labels that keep its children.
    fn label_children(&self, descriptor: &Descriptor, depth: usize) -> Result<()> {
        let is_document =
            media_type::is_index(&descriptor.media_type) || media_type::is_manifest(&descriptor.media_type);
        if !is_document || depth > image::INDEX_DEPTH_MAX {
            return Ok(());
        }
        let bytes = match read(self.metadata, self.caller, &descriptor.digest) {
            Ok(bytes) => bytes,
            // Archives may hold a part of the platforms only.
            Err(error) if error.is(ErrorKind::NotFound) && depth > 0 => return Ok(()),
            Err(error) => return Err(error),
        };
        let node = image::Node::parse(&descriptor.media_type, &bytes)?;
        let labels = node.reference_labels();
        let paths: Vec<String> = labels.keys().map(|key| format!("labels.{key}")).collect();
        self.metadata.content(self.caller).update(&descriptor.digest, &labels, &paths)?;
        node.children().into_iter().try_for_each(|child| self.label_children(child, depth + 1))
    }

    fn record(&self, name: &str, target: Descriptor) -> Result<Image> {
        let images = self.metadata.images(self.caller);
        let now = Timestamp::now();
        let image =
            Image { name: name.to_owned(), labels: Labels::new(), target, created: now, updated: now };
        match images.create(image.clone(), None) {
            Err(error) if error.is(ErrorKind::AlreadyExists) => {
                images.update(&image, &["target".to_owned()], None)
            }
            other => other,
        }
    }
}

/// `blobs/sha256/HEX`
fn blob_digest(path: &str) -> Option<Digest> {
    let rest = path.strip_prefix("blobs/")?;
    rest.replacen('/', ":", 1).parse().ok()
}

fn named_by_index(
    bytes: &[u8],
    docker: Option<&[u8]>,
    fallback: Option<&Reference>,
) -> Result<Vec<(String, Descriptor)>> {
    let index: Index = serde_json::from_slice(bytes)
        .map_err(|error| Error::invalid_argument("index.json cannot be read").with_source(error))?;
    // Archives for both worlds have full names in manifest.json, and tags alone in the index.
    let docker_tags = docker.and_then(|bytes| serde_json::from_slice::<Value>(bytes).ok());
    let docker_tag = docker_tags.as_ref().and_then(|list| list[0]["RepoTags"][0].as_str()).map(str::to_owned);
    let mut named = Vec::new();
    let single = index.manifests.len() == 1;
    for descriptor in index.manifests {
        let annotation = |key: &str| descriptor.annotations.get(key).cloned();
        let full = annotation("io.containerd.image.name").or_else(|| docker_tag.clone().filter(|_| single));
        let short = annotation("org.opencontainers.image.ref.name");
        let name = match (full, short, fallback) {
            (Some(full), _, _) => full.parse::<Reference>()?.to_string(),
            (None, Some(short), _) if short.contains(['/', ':']) => short.parse::<Reference>()?.to_string(),
            (None, Some(tag), Some(fallback)) => {
                format!("{}:{tag}", fallback.name()).parse::<Reference>()?.to_string()
            }
            (None, None, Some(fallback)) => fallback.to_string(),
            (None, Some(tag), None) => {
                format!("docker.io/library/import:{tag}").parse::<Reference>()?.to_string()
            }
            (None, None, None) => format!("docker.io/library/import@{}", descriptor.digest),
        };
        let mut target = descriptor;
        target.annotations.clear();
        named.push((name, target));
    }
    Ok(named)
}

/// The data of the entry at hand as a reader.
struct Data<'a, R>(&'a mut Reader<R>);

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read_data(buffer)
    }
}
