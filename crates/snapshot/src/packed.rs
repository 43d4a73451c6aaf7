//! Compressed metadata images, of layers that are not mounted by themselves but merged with others.
//!
//! | offset | bytes | content |
//! |---|---|---|
//! | 0 | 8 | the header of a skippable zstd frame of 8 bytes |
//! | 8 | 8 | its data: the length of the file, so that truncation is detected without reading the file |
//! | 16 | … | the image, a zstd frame with its checksum |
//!
//! So `zstd -dc layer.erofs.zst` gives the image.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use erofs::Tree;
use types::{Context, Result};

/// The file extension of a packed image.
const EXTENSION: &str = "zst";
/// The header of a skippable frame of 8 bytes (RFC 8878, section 3.1.2).
const SKIPPED: [u8; 8] = [0x50, 0x2a, 0x4d, 0x18, 8, 0, 0, 0];
const HEADER_LEN: u64 = 16;
/// The zstd level: it takes a tenth of the time of the next one, for a sixth more bytes.
const LEVEL: i32 = 1;
const BUFFER_LEN: usize = 256 * 1024;

/// Whether an image is packed, by its name.
pub(crate) fn is_packed(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == EXTENSION)
}

/// Writes the packed image of a tree to an empty file, and returns the file.
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

/// A reader of the image in a packed file, and the length that the file must have. `InvalidData` or `UnexpectedEof` if
/// it is no packed image.
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

/// Reads an image as a whole. `InvalidData` if it is longer than an image may be.
pub(crate) fn whole(image: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    image.take(erofs::IMAGE_LEN_MAX + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > erofs::IMAGE_LEN_MAX {
        true => Err(io::Error::new(io::ErrorKind::InvalidData, "it is longer than an image may be")),
        false => Ok(bytes),
    }
}

/// Reads the image in a packed file. `InvalidData` or `UnexpectedEof` if it is no packed image, or too long.
pub fn read(file: File) -> io::Result<Vec<u8>> {
    let (image, _) = open(file)?;
    whole(image)
}
