//! Makes images of one layer from root file systems.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use content::Expected;
use diff::tar::Reader;
use diff::{CompareOptions, Compression, Decoder, Trees, compare};
use linux::pipe::Pipe;
use metadata::{Caller, Image, Metadata};
use types::descriptor::media_type;
use types::spec::image::{ExecConfig, History, ImageConfig, Manifest, RootFs};
use types::{
    Algorithm, Context, Descriptor, Digest, Error, ErrorKind, Hasher, IngestRef, Labels, Platform, Reference,
    Result, Timestamp,
};

use super::{ImportOptions, Importer, unnamed};
use crate::{IngestSink, Lease, Unpack};

/// The config of an image made from a root file system.
#[derive(Clone, Debug, Default)]
pub struct TreeConfig {
    pub comment: String,
    pub platform: Option<Platform>,
    pub exec: ExecConfig,
}

/// Makes an image of one layer from a root file system: a directory, or a tar, uncompressed or in gzip or zstd.
/// `name` defaults to the digest.
pub fn import_tree(
    metadata: &Metadata,
    caller: &Caller,
    snapshotter: &str,
    source: &Path,
    name: Option<&Reference>,
    tree: &TreeConfig,
) -> Result<Image> {
    let imported = Lease::hold(metadata, caller, |caller| {
        let importer = Importer { metadata, caller, compresses: false };
        let (layer, size) = match source.is_dir() {
            true => importer.store_folder(source)?,
            false => {
                let mut source = Pipe::open_source(source, caller.cancel.clone())?;
                importer.store("tree", "", None, None, &mut source)?
            }
        };
        let target = importer.image_of(layer, size, tree)?;
        let unpack = Unpack { platform: Platform::host(), snapshotter: snapshotter.to_owned() };
        importer.admit(&target, &ImportOptions { unpacks: vec![unpack], ..ImportOptions::default() })?;
        importer.record(
            &name.map_or_else(|| unnamed(&target.digest), ToString::to_string),
            target,
            &Labels::new(),
        )
    });
    imported.map_err(|error| error.context(format!("import {}", source.display())))
}

impl Importer<'_> {
    /// Stores a directory as a layer. The same files give the same bytes.
    fn store_folder(&self, folder: &Path) -> Result<(Digest, u64)> {
        let what = || format!("read {}", folder.display());
        let upper = File::open(folder).context(what)?;
        let trees = Trees::new(None, Some(upper.into()));
        let lease = self.caller.lease.as_ref().map(ToString::to_string).unwrap_or_default();
        let reference = IngestRef::new(format!("import-{lease}-folder"))?;
        let mut writer = self.metadata.content(self.caller).begin(&reference, Expected::default())?;
        let options = CompareOptions { compression: Compression::Gzip, mtime_max: None };
        compare(&trees, options, IngestSink(&mut writer))?;
        let (digest, size) = (writer.digest(), writer.offset());
        match writer.commit(Expected::new(digest.clone(), size), Labels::new()) {
            Err(error) if !error.is(ErrorKind::AlreadyExists) => Err(error.context(what())),
            _ => Ok((digest, size)),
        }
    }

    fn image_of(&self, layer: Digest, size: u64, tree: &TreeConfig) -> Result<Descriptor> {
        let now = Timestamp::now().to_string();
        let config = ImageConfig {
            created: Some(now.clone()),
            platform: tree.platform.clone().unwrap_or_else(Platform::host),
            config: Some(tree.exec.clone()),
            rootfs: RootFs { kind: "layers".into(), diff_ids: vec![self.diff_id(&layer)?] },
            history: vec![History {
                created: Some(now),
                comment: Some(tree.comment.clone()),
                ..History::default()
            }],
            ..ImageConfig::default()
        };
        let config = self.document("config", media_type::OCI_CONFIG, &config)?;
        let kind = match self.compression(&layer)? {
            Compression::None => media_type::OCI_LAYER,
            Compression::Gzip => media_type::OCI_LAYER_GZIP,
            Compression::Zstd => media_type::OCI_LAYER_ZSTD,
        };
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.into()),
            artifact_type: None,
            config,
            layers: vec![Descriptor::new(kind, layer, size)],
            subject: None,
            annotations: BTreeMap::new(),
        };
        self.document("manifest", media_type::OCI_MANIFEST, &manifest)
    }

    /// The diff id of a layer. `InvalidArgument` if it is not an archive.
    fn diff_id(&self, layer: &Digest) -> Result<Digest> {
        let what = || "it is no tar archive, plain or in gzip or zstd";
        let plain = Decoder::new(self.metadata.content(self.caller).reader(layer)?).context(what)?;
        let plain = Hashed { from: plain, hasher: Hasher::new(Algorithm::Sha256), len: 0 };
        let mut plain = BufReader::with_capacity(256 * 1024, plain);
        let mut archive = Reader::new(&mut plain);
        while archive.next_entry().context(what)?.is_some() {}
        // Bytes after the end of the archive count, too.
        io::copy(&mut plain, &mut io::sink()).context(what)?;
        let plain = plain.into_inner();
        if plain.len == 0 {
            return Err(Error::invalid_argument(
                "it is empty, and so no archive; an image without files is made of a tar without any",
            ));
        }
        Ok(plain.hasher.finish())
    }
}

/// Hashes bytes while they are read.
struct Hashed<R> {
    from: R,
    hasher: Hasher,
    len: u64,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.from.read(buffer)?;
        self.hasher.update(&buffer[..len]);
        self.len += len as u64;
        Ok(len)
    }
}
