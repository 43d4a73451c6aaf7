//! Images of any size and compression, of few large files or of many small ones, made on the spot.
//!
//! Their bytes alternate between noise and runs of one byte, so that gzip shrinks them to about a third, as it does the
//! layers of distributions.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

pub use diff::Compression;
use diff::Encoder;
use serde_json::json;
use tempfile::TempDir;
use types::descriptor::media_type;
use types::{Algorithm, Hasher};

use crate::layout::tar_header;
use crate::{Layout, images, noise};

/// Each pattern of `PATTERN_LEN` bytes begins with `NOISE_LEN` bytes of noise.
const PATTERN_LEN: usize = 4096;
const NOISE_LEN: usize = 1260;
/// Bytes of noise from which the patterns are made.
const NOISE_POOL: usize = 64 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of all files of all layers.
    pub len: u64,
    /// Files of all layers. File n of a layer is `/data/LAYER/n÷100/n`.
    pub files: u64,
    pub compression: Compression,
}

/// An image in its own OCI layout, with the tag [`images::TAG`]. Its lowest layer has a shell and `sleep`.
pub struct Bulk {
    pub layout: Layout,
    /// Blobs of the layers, compressed.
    pub blobs: Vec<PathBuf>,
    /// Bytes of all blobs together.
    pub compressed_len: u64,
    /// Bytes of all layers together, uncompressed.
    pub plain_len: u64,
}

impl Bulk {
    pub const LAYERS: u64 = 3;

    /// Compresses each layer into one zstd frame or gzip member.
    pub fn make(shape: Shape) -> Bulk {
        Bulk::make_in_parts(shape, u64::MAX)
    }

    /// Compresses each layer into several zstd frames or gzip members of `part_len` uncompressed bytes. Gzip members
    /// that fit into 64 KiB carry their length, as in BGZF.
    pub fn make_in_parts(shape: Shape, part_len: u64) -> Bulk {
        let layout = Layout::new();
        let pool = pattern();
        let kind = match shape.compression {
            Compression::None => media_type::OCI_LAYER,
            Compression::Gzip => media_type::OCI_LAYER_GZIP,
            Compression::Zstd => media_type::OCI_LAYER_ZSTD,
        };
        let (mut layers, mut diff_ids, mut blobs) = (Vec::new(), Vec::new(), Vec::new());
        let (mut compressed_len, mut plain_len) = (0, 0);
        let programs = programs();
        for layer in 0..Bulk::LAYERS {
            let head = if layer == 0 { &programs[..] } else { &[] };
            let (bytes, diff_id, plain) =
                archive((shape, part_len), layer, head, &pool).expect("memory takes all");
            compressed_len += bytes.len() as u64;
            plain_len += plain;
            let descriptor = layout.blob(kind, &bytes);
            blobs.push(layout.blob_path(&descriptor));
            layers.push(descriptor);
            diff_ids.push(diff_id);
        }
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = layout.document(media_type::OCI_CONFIG, &config);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": layers,
        });
        layout.tag(&layout.document(media_type::OCI_MANIFEST, &manifest), images::TAG);
        Bulk { layout, blobs, compressed_len, plain_len }
    }
}

/// Archive entries of a static shell and of `sleep`.
fn programs() -> Vec<u8> {
    let root = TempDir::new().expect("a temporary directory");
    let bin = root.path().join("bin");
    fs::create_dir(&bin).expect("a writable directory");
    fs::copy("/bin/busybox", bin.join("sh")).expect("busybox-static is installed");
    symlink("sh", bin.join("sleep")).expect("a writable directory");
    let tar = Command::new("tar").arg("-C").arg(root.path()).args(["-b1", "-cf", "-", "bin"]).output();
    let mut entries = tar.expect("tar is part of Debian").stdout;
    // Cuts off the two blocks of zeros that end the archive.
    entries.truncate(entries.len() - 1024);
    entries
}

/// A layer's compressed blob, its diff ID, and its uncompressed length.
fn archive(
    (shape, part_len): (Shape, u64),
    layer: u64,
    head: &[u8],
    pool: &[u8],
) -> io::Result<(Vec<u8>, String, u64)> {
    let mut to = Hashed {
        compression: shape.compression,
        whole: Vec::new(),
        to: Some(Encoder::new(shape.compression, Vec::new())?),
        hasher: Hasher::new(Algorithm::Sha256),
        len: 0,
        part_len,
        left: part_len,
    };
    to.write_all(head)?;
    let (files, file_len) = (shape.files / Bulk::LAYERS, shape.len / shape.files);
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
    to.end_part()?;
    Ok((to.whole, to.hasher.finish().to_string(), to.len))
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
    compression: Compression,
    /// The finished parts, compressed.
    whole: Vec<u8>,
    to: Option<Encoder<Vec<u8>>>,
    hasher: Hasher,
    len: u64,
    /// Uncompressed bytes of a part, and how many of them are left in the current one.
    part_len: u64,
    left: u64,
}

impl Hashed {
    fn end_part(&mut self) -> io::Result<()> {
        let mut part = self.to.take().expect("it is there between writes").finish()?;
        // The length counts the extra field too, and BGZF stores it minus one (SAM specification, section 4.1).
        if let (Compression::Gzip, Ok(len)) = (self.compression, u16::try_from(part.len() + 8 - 1)) {
            assert_eq!(part[..4], [0x1f, 0x8b, 8, 0], "a member without fields");
            part[3] = 4;
            let [low, high] = len.to_le_bytes();
            part.splice(10..10, [6, 0, b'B', b'C', 2, 0, low, high]);
        }
        self.whole.append(&mut part);
        Ok(())
    }
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.left == 0 {
            self.end_part()?;
            self.to = Some(Encoder::new(self.compression, Vec::new())?);
            self.left = self.part_len;
        }
        let bytes = &bytes[..usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len())];
        self.to.as_mut().expect("it is there between writes").write_all(bytes)?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        self.left -= bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
