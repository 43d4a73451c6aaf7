//! Makes a layer from two trees, and stores it.

use std::io::{self, BufWriter, Write};

use content::Expected;
use diff::{CompareOptions, Compression, Trees, compare};
use metadata::{Caller, ContentWriter, Metadata};
use types::descriptor::media_type;
use types::{Descriptor, Digest, Error, ErrorKind, IngestRef, Labels, Result, Timestamp};

use crate::random_name;

/// The label with the diff id of a compressed layer (containerd's `labels.LabelUncompressed`).
pub(crate) const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// Bytes of a tar archive without an entry.
const EMPTY_LEN: u64 = 1024;

/// Bytes buffered for the content store.
const BUFFER_LEN: usize = 256 * 1024;

/// How a layer is stored.
#[derive(Clone, Debug)]
pub struct LayerRequest {
    /// For the layer's descriptor, and for the event of the new blob.
    pub media_type: String,
    pub compression: Compression,
    /// The name of the ingest; `None` for a new one.
    pub reference: Option<IngestRef>,
    pub labels: Labels,
    /// Upper bound of file times (`SOURCE_DATE_EPOCH`).
    pub source_date_epoch: Option<Timestamp>,
}

/// A layer in the content store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    pub descriptor: Descriptor,
    /// Digest of the uncompressed archive.
    pub diff_id: Digest,
    /// Bytes of the uncompressed archive.
    size: u64,
}

impl Layer {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.size == EMPTY_LEN
    }
}

/// The compression that a layer media type, OCI's or Docker's, stands for.
///
/// `Unimplemented` for media types of layers that Hoist cannot make.
pub fn layer_compression(media_type: &str) -> Result<Compression> {
    match media_type {
        media_type::OCI_LAYER | media_type::DOCKER_LAYER => Ok(Compression::None),
        media_type::OCI_LAYER_GZIP | media_type::DOCKER_LAYER_GZIP => Ok(Compression::Gzip),
        media_type::OCI_LAYER_ZSTD | media_type::DOCKER_LAYER_ZSTD => Ok(Compression::Zstd),
        other => Err(Error::unimplemented(format!("unsupported diff media type: {other}"))),
    }
}

/// Stores the layer that turns the lower tree into the upper. If the blob exists, it gets the labels.
pub fn store_layer(
    metadata: &Metadata,
    caller: &Caller,
    trees: &Trees,
    request: LayerRequest,
) -> Result<Layer> {
    let compression = request.compression;
    let mtime_max = request.source_date_epoch.map(|epoch| (epoch.seconds, epoch.nanos));
    let is_named_here = request.reference.is_none();
    let reference = request.reference.map_or_else(|| IngestRef::new(random_name("diff")?), Ok)?;
    let content = metadata.content(caller);
    let mut writer = content.begin(&reference, Expected::default())?.of_type(&request.media_type);
    // Discards an earlier attempt under the same name, which compared an older tree.
    writer.truncate()?;
    let mut into_store = BufWriter::with_capacity(BUFFER_LEN, IntoStore(writer));
    let compared = compare(trees, CompareOptions { compression, mtime_max }, &mut into_store);
    let (IntoStore(writer), _) = into_store.into_parts();
    let compared = match compared {
        Ok(compared) => compared,
        Err(error) => {
            // The comparison's error counts; if aborting fails, the ingest expires.
            let _ = writer.abort();
            return Err(error);
        }
    };
    let (digest, size) = (writer.digest(), writer.offset());
    let mut labels = request.labels;
    if compression != Compression::None {
        labels.insert(UNCOMPRESSED.to_owned(), compared.diff_id.to_string());
    }
    match writer.commit(Expected::new(digest.clone(), size), labels.clone()) {
        Err(error) if error.is(ErrorKind::AlreadyExists) => {
            let paths: Vec<String> = labels.keys().map(|key| format!("labels.{key}")).collect();
            if !paths.is_empty() {
                content.update(&digest, &labels, &paths)?;
            }
        }
        Err(error) => {
            // The name is random, so no client could resume the ingest.
            if is_named_here {
                let _ = content.abort(&reference);
            }
            return Err(error.context("store a layer"));
        }
        Ok(_) => {}
    }
    let descriptor = Descriptor::new(request.media_type, digest, size);
    Ok(Layer { descriptor, diff_id: compared.diff_id, size: compared.size })
}

/// Writes into an ingest.
struct IntoStore(ContentWriter);

impl Write for IntoStore {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
