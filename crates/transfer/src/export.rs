//! From the stores into an archive: one tar that is an OCI layout and what `docker load` reads at once.
//!
//! ```text
//! oci-layout, index.json      for readers of OCI layouts; names as containerd annotates them
//! manifest.json               for Docker; the images of one platform
//! blobs/<algorithm>/<hex>     as they are in the content store
//! ```
//!
//! Owners, modes and times are fixed, so the same images give the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use diff::tar::Writer;
use metadata::{Caller, Image, Metadata};
use serde_json::json;
use types::descriptor::media_type;
use types::spec::image::{Index, Manifest};
use types::{Context, Descriptor, Digest, Error, ErrorKind, Platform, Reference, Result};

use crate::Lease;
use crate::unpack::{find_manifest, read};

/// The times of the files: all of 1980, as far back as every reader of archives goes.
const MTIME: u64 = 315_532_800;

/// Writes images, with all their platforms that are here. An image of which a part is missing goes in the
/// form that it has for `platform`.
pub fn export(
    metadata: &Metadata,
    caller: &Caller,
    images: &[Image],
    platform: &Platform,
    to: impl Write,
) -> Result<()> {
    // Nothing that is on its way out is collected meanwhile: every blob joins the lease.
    let lease = Lease::begin(metadata, caller)?;
    let exporter = Exporter { metadata, caller: &lease.caller, platform };
    let mut blobs = BTreeSet::new();
    let (mut manifests, mut docker) = (Vec::new(), Vec::new());
    for image in images {
        let what = || format!("save image {}", image.name);
        let manifest = match find_manifest(metadata, &lease.caller, &image.target, platform) {
            Ok(manifest) => Some(manifest),
            Err(error) if error.is(ErrorKind::NotFound) => None,
            Err(error) => return Err(error.context(what())),
        };
        let target = exporter.whole_or_part(&image.target, &mut blobs).context(what)?;
        manifests.push(named(target, &image.name));
        docker.extend(manifest.map(|manifest| docker_entry(&manifest, &image.name)));
    }
    exporter.write(manifests, docker, &blobs, to)?;
    lease.end()
}

struct Exporter<'a> {
    metadata: &'a Metadata,
    caller: &'a Caller,
    platform: &'a Platform,
}

impl Exporter<'_> {
    /// The descriptor to save, whose blobs are added to `blobs`.
    fn whole_or_part(&self, target: &Descriptor, blobs: &mut BTreeSet<Digest>) -> Result<Descriptor> {
        let mut found = BTreeSet::new();
        if self.collect(target, 0, &mut found)? {
            blobs.append(&mut found);
            return Ok(target.clone());
        }
        let mut descriptor = target.clone();
        for _ in 0..=image::INDEX_DEPTH_MAX {
            match self.node(&descriptor)? {
                image::Node::Index(index) => descriptor = image::choose(&index, self.platform)?.clone(),
                image::Node::Manifest(_) => break,
            }
        }
        let mut found = BTreeSet::new();
        if !self.collect(&descriptor, 0, &mut found)? {
            let message = format!("blobs of {} are missing; pull it again", descriptor.digest);
            return Err(Error::not_found(message));
        }
        blobs.append(&mut found);
        Ok(descriptor)
    }

    /// Finds everything below a descriptor. False if something is not here.
    fn collect(&self, descriptor: &Descriptor, depth: usize, found: &mut BTreeSet<Digest>) -> Result<bool> {
        let content = self.metadata.content(self.caller);
        match content.info(&descriptor.digest) {
            Err(error) if error.is(ErrorKind::NotFound) => return Ok(false),
            info => drop(info?),
        }
        self.metadata.leases(self.caller).add_resource(
            self.caller.lease.as_ref().expect("the exporter has a lease"),
            &metadata::Resource::Content(descriptor.digest.clone()),
        )?;
        found.insert(descriptor.digest.clone());
        let kind = &descriptor.media_type;
        if !media_type::is_index(kind) && !media_type::is_manifest(kind) {
            return Ok(true);
        }
        if depth > image::INDEX_DEPTH_MAX {
            return Err(Error::invalid_argument("indexes inside indexes, too deep"));
        }
        for child in self.node(descriptor)?.children() {
            if !self.collect(child, depth + 1, found)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn node(&self, descriptor: &Descriptor) -> Result<image::Node> {
        let bytes = read(self.metadata, self.caller, &descriptor.digest)?;
        image::Node::parse(&descriptor.media_type, &bytes)
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

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

/// The descriptor with the image's name, in containerd's words and in those of the image spec.
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
