//! Images of any size, of few large files or of many small ones, in any compression, made on the spot.
//!
//! Their bytes are of two kinds in turn, noise and one byte again and again, so that gzip makes a third of them, as
//! of what distributions ship.

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

/// Of this many bytes, this many are noise.
const PATTERN_LEN: usize = 4096;
const NOISE_LEN: usize = 1260;
/// Bytes of which large files are written.
const NOISE_POOL: usize = 64 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of all files.
    pub len: u64,
    /// The n-th one of a layer is `/data/LAYER/n÷100/n`.
    pub files: u64,
    pub compression: Compression,
}

/// An image in a layout of its own, with the tag [`images::TAG`]. A shell and `sleep` are in its lowest layer.
pub struct Bulk {
    pub layout: Layout,
    /// Its layers as they are fetched.
    pub blobs: Vec<PathBuf>,
    /// Bytes of them.
    pub compressed_len: u64,
    /// Bytes of its layers as archives.
    pub plain_len: u64,
}

impl Bulk {
    pub const LAYERS: u64 = 3;

    /// Each layer one frame, or one member.
    pub fn make(shape: Shape) -> Bulk {
        Bulk::make_in_parts(shape, u64::MAX)
    }

    /// Layers of several frames, or members, of so many plain bytes. Members that are short enough for it say how long
    /// they are, as BGZF has it.
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

/// Entries of a static shell, and of `sleep`.
fn programs() -> Vec<u8> {
    let root = TempDir::new().expect("a temporary directory");
    let bin = root.path().join("bin");
    fs::create_dir(&bin).expect("a writable directory");
    fs::copy("/bin/busybox", bin.join("sh")).expect("busybox-static is installed");
    symlink("sh", bin.join("sleep")).expect("a writable directory");
    let tar = Command::new("tar").arg("-C").arg(root.path()).args(["-b1", "-cf", "-", "bin"]).output();
    let mut entries = tar.expect("tar is part of Debian").stdout;
    // Without the two blocks of zeros at the end.
    entries.truncate(entries.len() - 1024);
    entries
}

/// A layer's blob, its diff id, and how long it is without compression.
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
    /// The parts that are done.
    whole: Vec<u8>,
    to: Option<Encoder<Vec<u8>>>,
    hasher: Hasher,
    len: u64,
    /// Plain bytes of a part, and those that the one at hand has room for.
    part_len: u64,
    left: u64,
}

impl Hashed {
    fn end_part(&mut self) -> io::Result<()> {
        let mut part = self.to.take().expect("it is there between writes").finish()?;
        // What the field takes is counted, and the length that it says is one less (SAM specification, section 4.1).
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
