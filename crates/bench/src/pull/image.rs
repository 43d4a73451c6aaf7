//! Images of any size, of few large files or of many small ones, in any compression, made on the spot.
//!
//! Their bytes are of two kinds in turn, noise and one byte again and again, so that gzip makes a third of them, as
//! of what distributions ship.

use std::io::{self, Write};
use std::path::PathBuf;

use diff::{Compression, Encoder};
use serde_json::json;
use testkit::layout::tar_header;
use testkit::{Layout, images, noise};
use types::descriptor::media_type;
use types::{Algorithm, Hasher};

/// Layers of each image.
const LAYERS: u64 = 3;
/// Of this many bytes, this many are noise.
const PATTERN_LEN: usize = 4096;
const NOISE_LEN: usize = 1260;
/// Bytes of which large files are written.
const NOISE_POOL: usize = 64 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Bytes of all files.
    pub(super) len: u64,
    pub(super) files: u64,
    pub(super) compression: Compression,
}

/// An image in a layout of its own.
pub(super) struct Image {
    pub(super) layout: Layout,
    /// Its layers as they are fetched.
    pub(super) blobs: Vec<PathBuf>,
    pub(super) compressed_len: u64,
    /// Of its layers as archives.
    pub(super) plain_len: u64,
}

impl Image {
    pub(super) fn make(shape: Shape) -> Image {
        let layout = Layout::new();
        let pool = pattern();
        let kind = match shape.compression {
            Compression::None => media_type::OCI_LAYER,
            Compression::Gzip => media_type::OCI_LAYER_GZIP,
            Compression::Zstd => media_type::OCI_LAYER_ZSTD,
        };
        let (mut layers, mut diff_ids, mut blobs) = (Vec::new(), Vec::new(), Vec::new());
        let (mut compressed_len, mut plain_len) = (0, 0);
        for layer in 0..LAYERS {
            let (bytes, diff_id, plain) = archive(shape, layer, &pool).expect("memory takes all");
            compressed_len += bytes.len() as u64;
            plain_len += plain;
            let descriptor = layout.blob(kind, &bytes);
            blobs.push(layout.blob_path(&descriptor));
            layers.push(descriptor);
            diff_ids.push(diff_id);
        }
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = layout.document(media_type::OCI_CONFIG, &config);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": layers,
        });
        layout.tag(&layout.document(media_type::OCI_MANIFEST, &manifest), images::TAG);
        Image { layout, blobs, compressed_len, plain_len }
    }
}

/// A layer's blob, its diff id, and how long it is without compression.
fn archive(shape: Shape, layer: u64, pool: &[u8]) -> io::Result<(Vec<u8>, String, u64)> {
    let mut to = Hashed {
        to: Encoder::new(shape.compression, Vec::new())?,
        hasher: Hasher::new(Algorithm::Sha256),
        len: 0,
    };
    let (files, file_len) = (shape.files / LAYERS, shape.len / shape.files);
    for file in 0..files {
        let path = format!("data/{layer}/{}/{file}", file / 100);
        to.write_all(&tar_header(&path, b'0', "", file_len))?;
        let mut left = usize::try_from(file_len).expect("a file of a benchmark");
        let mut at = usize::try_from(file * 7 * 4096).expect("small") % pool.len();
        while left > 0 {
            let len = left.min(pool.len() - at);
            to.write_all(&pool[at..at + len])?;
            (left, at) = (left - len, 0);
        }
        to.write_all(&[0; 512][..file_len.next_multiple_of(512).wrapping_sub(file_len) as usize])?;
    }
    to.write_all(&[0; 1024])?;
    Ok((to.to.finish()?, to.hasher.finish().to_string(), to.len))
}

fn pattern() -> Vec<u8> {
    let noise = noise("bench", NOISE_POOL);
    let mut pool = Vec::with_capacity(NOISE_POOL / NOISE_LEN * PATTERN_LEN);
    for chunk in noise.chunks_exact(NOISE_LEN) {
        pool.extend_from_slice(chunk);
        pool.resize(pool.len() + PATTERN_LEN - NOISE_LEN, chunk[0]);
    }
    pool
}

struct Hashed {
    to: Encoder<Vec<u8>>,
    hasher: Hasher,
    len: u64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.to.write_all(bytes)?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
