//! Exports images from the stores into an archive: one tar that is both an OCI layout and a `docker save` archive.
//!
//! ```text
//! oci-layout, index.json      for readers of OCI layouts; image names in containerd's annotations
//! manifest.json               for Docker; each image as for one platform
//! blobs/<algorithm>/<hex>     as in the content store
//! ```
//!
//! Owners, modes and times are fixed, so the same images give the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use content::Expected;
use diff::tar::Writer;
use metadata::{Caller, Image, Metadata, Resource};
use serde_json::json;
use types::descriptor::media_type;
use types::spec::image::{Index, Manifest};
use types::{Context, Descriptor, Digest, Error, ErrorKind, IngestRef, Labels, Platform, Reference, Result};

use crate::{Contents, Lease, Variant, contents};

/// The time of all files: 1980, the earliest that every archive reader supports.
const MTIME: u64 = 315_532_800;

/// Which platforms of an image are exported.
#[derive(Clone, Debug, PartialEq)]
pub enum Platforms {
    /// The image as it is, if the store has all of it; otherwise the manifest for this platform, or the first
    /// complete one.
    Here(Platform),
    /// These. One is exported as its manifest, several under a new index.
    Only(Vec<Platform>),
    /// All; the store must have them.
    All,
}

/// What goes into an archive.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    pub platforms: Platforms,
    /// Omit `manifest.json`, which only Docker reads.
    pub without_docker: bool,
    /// Omit layers that only their vendor may distribute. Readers of the archive fetch them.
    pub without_foreign: bool,
}

impl From<Platforms> for ExportOptions {
    /// All files of these platforms.
    fn from(platforms: Platforms) -> ExportOptions {
        ExportOptions { platforms, without_docker: false, without_foreign: false }
    }
}

/// Writes images into one archive. `NotFound` if the store lacks a blob that must be in it.
pub fn export(
    metadata: &Metadata,
    caller: &Caller,
    images: &[Image],
    options: &ExportOptions,
    to: impl Write,
) -> Result<()> {
    // Every exported blob joins the lease, so that none is collected meanwhile.
    Lease::hold(metadata, caller, |caller| {
        let exporter = Exporter { metadata, caller, without_foreign: options.without_foreign };
        let mut blobs = BTreeSet::new();
        let (mut manifests, mut docker) = (Vec::new(), Vec::new());
        for image in images {
            let chosen = exporter
                .choose(&image.target, &options.platforms)
                .map_err(|error| error.context(format!("save image {}", image.name)))?;
            exporter.hold(&chosen.blobs)?;
            blobs.extend(chosen.blobs);
            manifests.push(named(chosen.target, &image.name));
            let for_docker = chosen.for_docker.filter(|_| !options.without_docker);
            docker.extend(for_docker.map(|manifest| docker_entry(&manifest, &image.name)));
        }
        exporter.write(manifests, docker, &blobs, to)
    })
}

/// The exported part of one image.
struct Chosen {
    target: Descriptor,
    blobs: BTreeSet<Digest>,
    /// For `manifest.json`, which has room for one platform, and none for artifacts.
    for_docker: Option<Manifest>,
}

struct Exporter<'a> {
    metadata: &'a Metadata,
    caller: &'a Caller,
    without_foreign: bool,
}

impl Exporter<'_> {
    fn choose(&self, target: &Descriptor, platforms: &Platforms) -> Result<Chosen> {
        let mut contents = contents(self.metadata, self.caller, target)?;
        let mut foreign = BTreeSet::new();
        if self.without_foreign {
            let manifests = contents.variants.iter().filter_map(|variant| variant.manifest.as_ref());
            let layers = manifests.flat_map(|manifest| &manifest.layers);
            let left_out = layers.filter(|layer| image::check_distributable(layer).is_err());
            foreign.extend(left_out.map(|layer| layer.digest.clone()));
            contents.parts.retain(|part| !foreign.contains(&part.descriptor.digest));
            for variant in &mut contents.variants {
                variant.missing.retain(|digest| !foreign.contains(digest));
            }
        }
        let mut chosen = self.choose_of(target, &contents, platforms)?;
        chosen.blobs.retain(|digest| !foreign.contains(digest));
        Ok(chosen)
    }

    fn choose_of(&self, target: &Descriptor, contents: &Contents, platforms: &Platforms) -> Result<Chosen> {
        Self::check_loose(contents)?;
        match platforms {
            Platforms::Here(host) if contents.is_whole() => Ok(whole(target, contents, host)),
            // A checkpoint has no form for one platform, so whatever the store has of its images goes with it.
            Platforms::Here(_) if !contents.loose.is_empty() => Ok(here(target, contents)),
            Platforms::Only(wanted) if !contents.loose.is_empty() => {
                let mut chosen = here(target, contents);
                let fitting: Vec<&Variant> =
                    wanted.iter().filter_map(|platform| contents.best(platform)).collect();
                let (kept, others): (Vec<_>, Vec<_>) =
                    contents.variants.iter().partition(|variant| fitting.contains(variant));
                let mut others: BTreeSet<Digest> = others.into_iter().flat_map(blobs_of).collect();
                let loose = contents.loose.iter().map(|part| part.descriptor.digest.clone());
                for digest in kept.into_iter().flat_map(blobs_of).chain(loose) {
                    others.remove(&digest);
                }
                chosen.blobs.retain(|digest| !others.contains(digest));
                Ok(chosen)
            }
            Platforms::Here(host) => {
                let first = || contents.variants.iter().find(|variant| variant.is_whole());
                let variant = contents.best(host).or_else(first).ok_or_else(|| {
                    let missing =
                        contents.missing().next().map_or(&target.digest, |part| &part.descriptor.digest);
                    Error::not_found(format!("blob {missing} is not here; pull the image again"))
                })?;
                Ok(part(variant))
            }
            Platforms::All if contents.is_whole() => Ok(whole(target, contents, &Platform::host())),
            Platforms::All => {
                let missing = contents.variants.iter().filter(|variant| !variant.is_whole()).map(name_of);
                let mut missing: Vec<String> = missing.collect();
                if missing.is_empty() {
                    // A nested index is missing, so its platforms are unknown.
                    missing.extend(contents.missing().map(|part| part.descriptor.digest.to_string()));
                }
                Err(Error::not_found(format!(
                    "not all platforms are here: {} missing; pull each (hoist pull --platform), or save those that \
                     are here",
                    missing.join(", ")
                )))
            }
            Platforms::Only(wanted) => {
                let variants = wanted.iter().map(|platform| pick(contents, platform));
                match &variants.collect::<Result<Vec<_>>>()?[..] {
                    [one] => Ok(part(one)),
                    several => self.index_of(several),
                }
            }
        }
    }

    /// `NotFound` unless the store has all blobs that an index consists of.
    fn check_loose(contents: &Contents) -> Result<()> {
        match contents.missing_loose() {
            Some(descriptor) => Err(Error::not_found(format!(
                "blob {} ({}) is not here; pull it again",
                descriptor.digest, descriptor.media_type
            ))),
            None => Ok(()),
        }
    }

    /// A new index over several unchanged manifests.
    fn index_of(&self, variants: &[&Variant]) -> Result<Chosen> {
        let index = index_over(variants);
        let bytes = serde_json::to_vec(&index).expect("an index is plain data");
        let target = Descriptor::new(media_type::OCI_INDEX, Digest::of(&bytes), bytes.len() as u64);
        let expected = Expected::new(target.digest.clone(), target.size);
        let reference = IngestRef::new(format!("index-{}", target.digest))?;
        let content = self.metadata.content(self.caller);
        let written = content.begin(&reference, expected.clone()).and_then(|mut writer| {
            writer.truncate()?;
            writer.write(&bytes)?;
            writer.of_type(&target.media_type).commit(expected, Labels::new())
        });
        if let Err(error) = written
            && !error.is(ErrorKind::AlreadyExists)
        {
            return Err(error.context("store an index"));
        }
        let parts = variants.iter().map(|variant| part(variant));
        let mut chosen = Chosen { target: target.clone(), blobs: BTreeSet::new(), for_docker: None };
        for part in parts {
            chosen.blobs.extend(part.blobs);
            chosen.for_docker = chosen.for_docker.or(part.for_docker);
        }
        chosen.blobs.insert(target.digest);
        Ok(chosen)
    }

    fn hold(&self, blobs: &BTreeSet<Digest>) -> Result<()> {
        let lease = self.caller.lease.as_ref().expect("exports have a lease");
        let leases = self.metadata.leases(self.caller);
        blobs.iter().try_for_each(|digest| leases.add_resource(lease, &Resource::Content(digest.clone())))
    }

    fn write(
        &self,
        manifests: Vec<Descriptor>,
        docker: Vec<serde_json::Value>,
        blobs: &BTreeSet<Digest>,
        to: impl Write,
    ) -> Result<()> {
        let index = Index {
            schema_version: 2,
            media_type: Some(media_type::OCI_INDEX.into()),
            artifact_type: None,
            manifests,
            subject: None,
            annotations: BTreeMap::new(),
        };
        let document = |value: &serde_json::Value| serde_json::to_vec(value).expect("plain data");
        let what = || "write the archive";
        let mut archive = Writer::new(to, MTIME);
        archive.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#).context(what)?;
        archive.file("index.json", 0o644, &serde_json::to_vec(&index).expect("plain data")).context(what)?;
        if !docker.is_empty() {
            archive.file("manifest.json", 0o644, &document(&docker.into())).context(what)?;
        }
        archive.directory("blobs").context(what)?;
        let mut algorithm = "";
        for digest in blobs {
            if digest.algorithm().name() != algorithm {
                algorithm = digest.algorithm().name();
                archive.directory(&format!("blobs/{algorithm}")).context(what)?;
            }
            let mut reader = self.metadata.content(self.caller).reader(digest)?;
            let size = reader.size();
            archive
                .stream(&blob_path(digest), 0o444, size, &mut reader)
                .context(|| format!("write blob {digest} to the archive"))?;
        }
        archive.finish().context(what).map(drop)
    }
}

/// All of an image.
fn whole(target: &Descriptor, contents: &Contents, host: &Platform) -> Chosen {
    Chosen {
        target: target.clone(),
        blobs: contents.parts.iter().map(|part| part.descriptor.digest.clone()).collect(),
        for_docker: contents.best(host).and_then(runnable),
    }
}

/// The index as it is, and the blobs that the store has of it.
fn here(target: &Descriptor, contents: &Contents) -> Chosen {
    let mut chosen = whole(target, contents, &Platform::host());
    for missing in contents.missing() {
        chosen.blobs.remove(&missing.descriptor.digest);
    }
    chosen
}

/// The digests of a manifest and its blobs.
fn blobs_of(variant: &Variant) -> BTreeSet<Digest> {
    let children =
        variant.manifest.iter().flat_map(|manifest| [&manifest.config].into_iter().chain(&manifest.layers));
    children.chain([&variant.descriptor]).map(|child| child.digest.clone()).collect()
}

/// One manifest of an image, with its blobs.
fn part(variant: &Variant) -> Chosen {
    let mut target = variant.descriptor.clone();
    target.annotations.clear();
    Chosen { blobs: blobs_of(variant), target, for_docker: runnable(variant) }
}

fn runnable(variant: &Variant) -> Option<Manifest> {
    // Docker unpacks layers without our stream processors.
    variant.manifest.clone().filter(|manifest| image::artifact_type(manifest, |_| false).is_none())
}

/// The complete manifest for a platform.
pub(crate) fn pick<'a>(contents: &'a Contents, platform: &Platform) -> Result<&'a Variant> {
    contents.best(platform).ok_or_else(|| {
        let here = contents.variants.iter().filter(|variant| variant.is_whole()).map(name_of);
        let here: Vec<String> = here.collect();
        Error::not_found(format!("no image for {platform} is here; there is {}", here.join(", ")))
    })
}

pub(crate) fn index_over(variants: &[&Variant]) -> Index {
    Index {
        schema_version: 2,
        media_type: Some(media_type::OCI_INDEX.into()),
        artifact_type: None,
        manifests: variants.iter().map(|variant| variant.descriptor.clone()).collect(),
        subject: None,
        annotations: BTreeMap::new(),
    }
}

/// A readable name for a manifest of an index.
fn name_of(variant: &Variant) -> String {
    let platform = variant.platform.as_ref().map(ToString::to_string);
    platform.unwrap_or_else(|| variant.descriptor.digest.to_string())
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

/// The descriptor with the image's name in containerd's and in the image spec's annotation.
fn named(mut descriptor: Descriptor, name: &str) -> Descriptor {
    descriptor.annotations.insert("io.containerd.image.name".into(), name.to_owned());
    let tag = name.parse::<Reference>().ok().and_then(|name| name.tag().map(str::to_owned));
    if let Some(tag) = tag {
        descriptor.annotations.insert("org.opencontainers.image.ref.name".into(), tag);
    }
    descriptor
}

fn docker_entry(manifest: &Manifest, name: &str) -> serde_json::Value {
    let reference = name.parse::<Reference>().ok();
    let tags: Vec<String> = reference
        .and_then(|name| name.tag().map(|tag| format!("{}:{tag}", name.familiar_name())))
        .into_iter()
        .collect();
    json!({
        "Config": blob_path(&manifest.config.digest),
        "RepoTags": tags,
        "Layers": manifest.layers.iter().map(|layer| blob_path(&layer.digest)).collect::<Vec<_>>(),
    })
}
