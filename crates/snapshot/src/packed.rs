//! Images of metadata that nobody mounts, packed: of layers that are shown merged with others.
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 8 | a zstd frame of 8 bytes that decoders skip |
//! | 8 | 8 | bytes of the file: whether it is cut off shows without reading it |
//! | 16 | … | the image, a zstd frame with its checksum |
//!
//! So `zstd -dc layer.erofs.zst` gives the image.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use erofs::Tree;
use types::{Context, Result};

/// How a packed image's name ends.
const EXTENSION: &str = "zst";
/// RFC 8878, section 3.1.2.
const SKIPPED: [u8; 8] = [0x50, 0x2a, 0x4d, 0x18, 8, 0, 0, 0];
const HEADER_LEN: u64 = 16;
/// It takes a tenth of the time of the next level, for a sixth more bytes.
const LEVEL: i32 = 1;
const BUFFER_LEN: usize = 256 * 1024;

/// Whether an image is packed: its name says so.
pub(crate) fn is_packed(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == EXTENSION)
}

/// Writes the image of a tree to an empty file.
pub fn write(tree: &Tree, mut to: File) -> Result<File> {
    let what = || "pack a metadata image";
    to.write_all(&SKIPPED).and_then(|()| to.write_all(&[0; 8])).context(what)?;
    let mut packer = zstd::Encoder::new(to, LEVEL).context(what)?;
    packer.include_checksum(true).context(what)?;
    let mut image = BufWriter::with_capacity(BUFFER_LEN, packer);
    tree.write(&mut image)?;
    let packer = image.into_inner().map_err(io::IntoInnerError::into_error).context(what)?;
    let to = packer.finish().context(what)?;
    let len = to.metadata().context(what)?.len();
    to.write_all_at(&len.to_le_bytes(), SKIPPED.len() as u64).context(what)?;
    Ok(to)
}

/// The image in a packed file, to be read, and how long the file is if it is whole. What is no such file ends early.
pub(crate) fn open(mut file: File) -> io::Result<(impl Read, u64)> {
    let mut header = [0; HEADER_LEN as usize];
    file.read_exact(&mut header)?;
    let (skipped, len) = header.split_at(SKIPPED.len());
    if skipped != SKIPPED {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no packed image of ours"));
    }
    let len = u64::from_le_bytes(len.try_into().expect("eight bytes"));
    let image = zstd::Decoder::with_buffer(BufReader::new(file))?.single_frame();
    Ok((image, len))
}

/// The bytes of an image, which has a limit.
pub(crate) fn whole(image: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    image.take(erofs::IMAGE_LEN_MAX + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > erofs::IMAGE_LEN_MAX {
        true => Err(io::Error::new(io::ErrorKind::InvalidData, "it is longer than an image may be")),
        false => Ok(bytes),
    }
}

/// The bytes of the image in a packed file.
pub fn read(file: File) -> io::Result<Vec<u8>> {
    let (image, _) = open(file)?;
    whole(image)
}
