//! Stores a layer as its plain archive in one file, with a tree of metadata that maps files to positions in it.
//!
//! ```text
//! source ─▶ pipeline (inflate, sha256) ──chunks──┬▶ data file
//!                                                └▶ tar headers ─▶ erofs::Tree
//! ```
//!
//! The data file is the plain archive, byte for byte. The archive has only the data regions of sparse files, but the
//! file system maps a file in one piece, so the data file has sparse files a second time, with their holes, from
//! [`HOLES_AT`] on; in between is one large hole.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use erofs::{BLOCK_LEN, Device, Entry, EntryKind, Metadata, Tree};
use linux::writeback::Writeback;
use types::{Context, Digest, Error, Result};

use crate::apply::{AUFS, Limits, bounded, checked_name, clean};
use crate::memory::Memory;
use crate::pipeline::{Chunks, Plain, bad_input, read_plain};
use crate::spans::{About, Pieces, Record, Recorder};
use crate::tar::{self, Kind, Reader};

/// Offset in bytes of the sparse files in a data file: half of what 32-bit block numbers can address.
pub const HOLES_AT: u64 = 1 << 40;
/// Alignment of sparse files in the data file.
const PAGE_LEN: u64 = 4096;
/// Bytes copied at a time.
const COPY_LEN: usize = 64 * 1024;

/// A layer that was stored.
pub struct Stored {
    /// The digest of the plain stream, to its very end.
    pub diff_id: Digest,
    /// Bytes of the plain stream.
    pub size: u64,
    /// The bytes among them that helper threads inflated.
    pub helped_len: u64,
    /// The layer's metadata, which maps its files to the data file.
    pub tree: Tree,
}

/// Stores the plain bytes of a layer of any compression in `data`, an empty file, front to back, and writes a record of
/// the blob's spans if `record` asks for it. A layer with more pieces of sparse files than a record can hold gets no
/// record: its file is empty.
///
/// `InvalidArgument` if the bytes are no layer, `ResourceExhausted` if a limit is exceeded or the disk is full,
/// `Unavailable` if a passing layer gets no memory. After an error the file is incomplete, and the caller discards it.
pub fn store(
    source: impl Read + Send,
    limits: Limits,
    data: &File,
    record: Option<Record<'_>>,
) -> Result<Stored> {
    // An archive must end before the sparse files begin.
    let limits = Limits { bytes: limits.bytes.min(HOLES_AT - PAGE_LEN), ..limits };
    let recorder = record.as_ref().map(|record| Recorder::new(record.to)).transpose();
    let recorder = recorder.context(|| "record the spans of a layer")?;
    let (mut plain, mut layer) = read_plain(source, limits, recorder, |chunks, memory| {
        let mut layer = Layer::new(data, limits, memory, false);
        layer.read(chunks).map(|()| layer)
    })?;
    if let (Some(record), Some((recorder, compression))) = (record, plain.recorded.take()) {
        match std::mem::take(&mut layer.pieces).into_list() {
            Some(pieces) => {
                let Plain { diff_id, size: plain_len, .. } = &plain;
                recorder.finish(About {
                    compression,
                    blob: record.blob,
                    diff_id,
                    plain_len: *plain_len,
                    pieces,
                })?;
            }
            None => {
                drop(recorder); // flushes its buffer to the file
                record.to.set_len(0).context(|| "take back the record of a layer's spans")?;
            }
        }
    }
    layer.finish(plain)
}

pub(crate) struct Layer<'a> {
    data: &'a File,
    /// Whether the data file is complete: sparse files are then compared with the archive instead of written.
    is_complete: bool,
    tree: Tree,
    memory: Memory,
    limits: Limits,
    entries: u64,
    /// Bytes of all files, their holes filled.
    bytes: u64,
    /// End of the last sparse file in the data file.
    holes_end: u64,
    pieces: Pieces,
}

impl<'a> Layer<'a> {
    pub(crate) fn new(data: &'a File, limits: Limits, memory: Memory, is_complete: bool) -> Layer<'a> {
        let tree = Tree::new(Device { tag: String::new(), len: 0 });
        Layer {
            data,
            is_complete,
            tree,
            memory,
            limits,
            entries: 0,
            bytes: 0,
            holes_end: HOLES_AT,
            pieces: Pieces::default(),
        }
    }

    fn read(&mut self, chunks: Chunks) -> Result<()> {
        let recorded = Recorded { chunks, data: self.data, len: 0, writeback: Writeback::default() };
        self.read_archive(&mut Reader::new(recorded))
    }

    /// Reads an archive to the very end of its source.
    pub(crate) fn read_archive<R: BufRead>(&mut self, archive: &mut Reader<R>) -> Result<()> {
        let what = || "read layer";
        while let Some(entry) = archive.next_entry().map_err(bad_input).context(what)? {
            self.check(&entry)?;
            let shown = || format!("unpack {}", String::from_utf8_lossy(&entry.path));
            let added = self.entry(&entry, archive);
            let added = added.and_then(|()| self.memory.grow_to(self.tree.memory()));
            added.map_err(|error| error.context(shown()))?;
        }
        self.tree.remove_from_root(AUFS);
        archive.drain().map_err(bad_input).context(what)
    }

    fn check(&mut self, entry: &tar::Entry) -> Result<()> {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(entry.size);
        let Limits { entries, bytes, .. } = self.limits;
        if self.entries > entries {
            return Err(Error::resource_exhausted(format!(
                "more than the {entries} entries that a layer may have"
            )));
        }
        if self.bytes > bytes {
            return Err(Error::resource_exhausted(format!(
                "more than the {bytes} bytes that a layer may have"
            )));
        }
        Ok(())
    }

    fn entry<R: BufRead>(&mut self, entry: &tar::Entry, archive: &mut Reader<R>) -> Result<()> {
        let path = path_in_root(&entry.path);
        let name = path.file_name().unwrap_or_default().as_bytes();
        if let Some(rest) = name.strip_prefix(b".wh.") {
            return self.white_out(path.parent().unwrap_or(Path::new("")), rest);
        }
        let number = |value: u64| {
            u32::try_from(value).map_err(|_| Error::invalid_argument(format!("device number {value}")))
        };
        let kind = match &entry.kind {
            Kind::File => {
                let at = match &entry.sparse {
                    Some(regions) => self.fill(entry.size, regions, archive)?,
                    None => archive.offset(),
                };
                EntryKind::File { len: entry.size, at }
            }
            Kind::Directory => EntryKind::Directory,
            Kind::Symlink(target) => EntryKind::Symlink(target),
            Kind::HardLink(target) => EntryKind::HardLink(target),
            Kind::CharacterDevice { major, minor } => {
                EntryKind::CharacterDevice { major: number(*major)?, minor: number(*minor)? }
            }
            Kind::BlockDevice { major, minor } => {
                EntryKind::BlockDevice { major: number(*major)?, minor: number(*minor)? }
            }
            Kind::Fifo => EntryKind::Fifo,
        };
        let metadata = Metadata {
            mode: u16::try_from(entry.mode & 0o7777).expect("twelve bits"),
            uid: entry.uid,
            gid: entry.gid,
            mtime: bounded(entry.mtime),
            attributes: &entry.attributes,
        };
        self.tree.add(&Entry { path: path.as_os_str().as_bytes(), kind, metadata })
    }

    /// Applies a whiteout file (image-spec `layer.md`, "Whiteouts") to the tree.
    fn white_out(&mut self, parent: &Path, name: &[u8]) -> Result<()> {
        match name {
            b".wh..opq" => self.tree.make_opaque(parent.as_os_str().as_bytes()),
            name if name.starts_with(b".wh.") => Ok(()), // a file of aufs itself
            name => self.tree.white_out(parent.join(checked_name(name)?).as_os_str().as_bytes()),
        }
    }

    /// Writes a sparse file to the data file with its holes, or compares it, and returns its offset.
    fn fill<R: BufRead>(&mut self, len: u64, regions: &[(u64, u64)], archive: &mut Reader<R>) -> Result<u64> {
        let begin = self.holes_end;
        let mut buffer = vec![0; COPY_LEN];
        let mut stored = vec![0; if self.is_complete { COPY_LEN } else { 0 }];
        for (at, len) in regions {
            let (mut at, end) = (begin + at, begin + at + len);
            self.pieces.add(at, archive.offset(), *len);
            while at < end {
                let want = usize::try_from(end - at).unwrap_or(COPY_LEN).min(COPY_LEN);
                let read = archive.read_data(&mut buffer[..want]).map_err(bad_input).context(|| "read")?;
                if read == 0 {
                    return Err(Error::invalid_argument("the data is shorter than its size"));
                }
                if self.is_complete {
                    self.data.read_exact_at(&mut stored[..read], at).context(|| "read")?;
                    if stored[..read] != buffer[..read] {
                        return Err(Error::data_loss(
                            "the copy of a sparse file is not what the archive has",
                        ));
                    }
                } else {
                    self.data.write_all_at(&buffer[..read], at).context(|| "write")?;
                }
                at += read as u64;
            }
        }
        self.holes_end = (begin + len).next_multiple_of(PAGE_LEN);
        Ok(begin)
    }

    /// The tree, which keeps the layer's [`Memory`] until it is dropped.
    pub(crate) fn into_tree(self, device: Device) -> Tree {
        let mut tree = self.tree;
        tree.set_device(device);
        tree.keep(self.memory);
        tree
    }

    fn finish(self, Plain { diff_id, size, helped_len, .. }: Plain) -> Result<Stored> {
        let end = if self.holes_end > HOLES_AT { self.holes_end } else { size };
        let len = end.next_multiple_of(BLOCK_LEN);
        // Pads the archive to whole blocks: some archives end before the padding of their last file.
        self.data.set_len(len).context(|| "set the length of a layer's file")?;
        let tree = self.into_tree(Device { tag: diff_id.hex().to_owned(), len });
        Ok(Stored { diff_id, size, helped_len, tree })
    }
}

/// The path inside the root that an entry names (see [`clean`]), without a copy if it is clean already, as nearly all
/// are.
fn path_in_root(path: &[u8]) -> Cow<'_, Path> {
    let own = path.strip_prefix(b"./").unwrap_or(path);
    let own = own.strip_suffix(b"/").unwrap_or(own);
    match own.split(|byte| *byte == b'/').all(|name| !matches!(name, b"" | b"." | b"..")) {
        true => Cow::Borrowed(Path::new(OsStr::from_bytes(own))),
        false => Cow::Owned(clean(path)),
    }
}

/// Reads the plain stream, and writes all of it to the data file.
struct Recorded<'a> {
    chunks: Chunks,
    data: &'a File,
    /// Bytes written so far.
    len: u64,
    writeback: Writeback,
}

impl BufRead for Recorded<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.chunks.is_used_up() {
            let chunk = self.chunks.next_chunk();
            self.data.write_all(chunk)?;
            self.len += chunk.len() as u64;
            match chunk.is_empty() {
                true => self.writeback.finish(self.data, self.len),
                false => self.writeback.advance(self.data, self.len),
            }
        }
        self.chunks.fill_buf()
    }

    fn consume(&mut self, len: usize) {
        self.chunks.consume(len);
    }
}

impl Read for Recorded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.fill_buf()?.read(buffer)?;
        self.consume(len);
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_entries_stay_inside_the_root() {
        let check = |path: &str, is_borrowed: bool| {
            let found = path_in_root(path.as_bytes());
            assert_eq!(found.as_os_str(), clean(path.as_bytes()).as_os_str(), "{path:?}");
            assert_eq!(matches!(found, Cow::Borrowed(_)), is_borrowed, "{path:?}");
        };
        for path in ["a", "a/b/c", "./a/b", "a/b/", "./a/", ".a/..b/...", "a /\n"] {
            check(path, true);
        }
        for path in
            ["", ".", "./", "/", "..", "/a", "a//b", "a/./b", "a/../b", "../a", "a//", "././a", ".//a", "a/."]
        {
            check(path, false);
        }
    }
}
