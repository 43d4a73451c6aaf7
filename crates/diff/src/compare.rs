//! Writes the differences between two trees as a layer: applied to the lower tree, it gives the upper one.
//!
//! Invariants
//! - The same trees give the same bytes.
//! - The entries of all directories above a name come before it, changed or not, so that they have the right metadata
//!   if the layer is unpacked on its own.
//! - Each deleted name gets a whiteout of its own, never an opaque one, as image-spec `layer.md` asks. Nor does a layer
//!   have sparse files, as it asks too: holes are written as zeros, though not read.
//! - If one link of an inode changed, the layer has all its links, the first with the data: a hard link to a file that
//!   the layer does not hold could not be unpacked on its own.

use std::collections::HashMap;
use std::io::{self, BufWriter, IntoInnerError, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};
use rustix::io::{Errno, pread};
use types::{Algorithm, Context, Digest, Error, ErrorKind, Hasher, Result};

use crate::tar::{Entry, Kind, Writer};
use crate::tree::Node;
use crate::{Change, ChangeKind, Compression, Encoder, Trees};

/// Bytes of the plain stream hashed and compressed at a time.
const BUFFER_LEN: usize = 128 * 1024;

#[derive(Clone, Copy, Debug)]
pub struct CompareOptions {
    pub compression: Compression,
    /// Later modification times are clamped to this one, in seconds and nanoseconds since 1970, for reproducible builds
    /// (reproducible-builds.org, `SOURCE_DATE_EPOCH`).
    pub mtime_max: Option<(i64, u32)>,
}

/// The plain stream of a layer that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compared {
    /// The digest of the plain stream.
    pub diff_id: Digest,
    /// Bytes of the plain stream.
    pub size: u64,
}

/// Writes the layer that turns the lower tree into the upper one.
///
/// `Aborted` if a file changed while it was read: the caller should pause the processes that write to the tree.
pub fn compare(trees: &Trees, options: CompareOptions, to: impl Write) -> Result<Compared> {
    let what = || "write layer";
    let encoder = Encoder::new(options.compression, to).context(what)?;
    let plain = Plain { to: encoder, hasher: Hasher::new(Algorithm::Sha256), size: 0 };
    let archive = Writer::new(BufWriter::with_capacity(BUFFER_LEN, plain), 0);
    let mut layer = Layer { trees, options, archive, directories: Vec::new(), links: HashMap::new() };
    trees.changes(|change| layer.add(change))?;
    let plain = layer.archive.finish().context(what)?;
    let Plain { to, hasher, size } = plain.into_inner().map_err(IntoInnerError::into_error).context(what)?;
    to.finish().and_then(|mut to| to.flush()).context(what)?;
    Ok(Compared { diff_id: hasher.finish(), size })
}

/// Hashes and counts the plain stream on its way to the encoder.
struct Plain<W: Write> {
    to: Encoder<W>,
    hasher: Hasher,
    size: u64,
}

impl<W: Write> Write for Plain<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.to.write(bytes)?;
        self.hasher.update(&bytes[..len]);
        self.size += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

struct Layer<'a, W: Write> {
    trees: &'a Trees,
    options: CompareOptions,
    archive: Writer<W>,
    /// The directory that was written last, and those above it, outermost first.
    directories: Vec<PathBuf>,
    /// The links of each inode of the upper tree that has several.
    links: HashMap<(u64, u64), Links>,
}

/// The links of an inode that were found so far.
#[derive(Default)]
struct Links {
    /// The inode that the unchanged links have in the lower tree.
    lower: Option<(u64, u64)>,
    /// The link that was written with the data.
    written: Option<PathBuf>,
    /// The unchanged links, which are written only if another one changed.
    same: Vec<PathBuf>,
}

impl<W: Write> Layer<'_, W> {
    fn add(&mut self, change: &Change<'_>) -> Result<()> {
        match change.upper {
            None => self.white_out(change.path),
            Some(node) if node.is_directory() => self.directory(change.path, node),
            Some(node) if node.links > 1 => self.linked(change, node),
            Some(node) => self.plain(change.path, node),
        }
    }

    fn white_out(&mut self, path: &Path) -> Result<()> {
        self.parents_of(path)?;
        let name = path.file_name().unwrap_or_default().as_bytes();
        let parent = path.parent().unwrap_or(Path::new(""));
        let whiteout = parent.join(std::ffi::OsStr::from_bytes(&[b".wh.", name].concat()));
        self.write(&whiteout, Entry::new("", Kind::File), &mut io::empty())
    }

    fn directory(&mut self, path: &Path, node: &Node) -> Result<()> {
        self.parents_of(path)?;
        self.write(path, node.entry.clone(), &mut io::empty())?;
        if !path.as_os_str().is_empty() {
            self.directories.push(path.to_owned());
        }
        Ok(())
    }

    /// Adds a link of an inode that has several.
    fn linked(&mut self, change: &Change<'_>, node: &Node) -> Result<()> {
        let path = change.path;
        let links = self.links.entry(node.inode).or_default();
        let lower = change.lower.map(|lower| lower.inode);
        // Unchanged names are links of one inode still if they were so in the lower tree.
        let is_same = change.kind == ChangeKind::Same && (links.same.is_empty() || links.lower == lower);
        if is_same && links.written.is_none() {
            links.lower = lower;
            links.same.push(path.to_owned());
            return Ok(());
        }
        let mut pending = std::mem::take(&mut links.same);
        pending.push(path.to_owned());
        for path in pending {
            let written = self.links.get(&node.inode).and_then(|links| links.written.clone());
            match written {
                None => {
                    self.plain(&path, node)?;
                    self.links.entry(node.inode).or_default().written = Some(path);
                }
                Some(written) => {
                    self.parents_of(&path)?;
                    let kind = Kind::HardLink(written.as_os_str().as_bytes().to_vec());
                    self.write(&path, Entry { kind, size: 0, ..node.entry.clone() }, &mut io::empty())?;
                }
            }
        }
        Ok(())
    }

    /// Writes a name that is no directory, with its data.
    fn plain(&mut self, path: &Path, node: &Node) -> Result<()> {
        self.parents_of(path)?;
        if node.entry.kind != Kind::File || node.entry.size == 0 {
            return self.write(path, node.entry.clone(), &mut io::empty());
        }
        let file = self.trees.upper.file(path)?;
        let mut data = Data { file, at: 0, size: node.entry.size, known: 0..0 };
        self.write(path, node.entry.clone(), &mut data)
    }

    /// Writes the directories above a path that are not in `directories`.
    fn parents_of(&mut self, path: &Path) -> Result<()> {
        while self.directories.last().is_some_and(|last| !path.starts_with(last) || path == last) {
            self.directories.pop();
        }
        let mut missing: Vec<&Path> = path
            .ancestors()
            .skip(1)
            .take_while(|above| self.directories.last().is_none_or(|last| last != above))
            .filter(|above| !above.as_os_str().is_empty())
            .collect();
        while let Some(above) = missing.pop() {
            let node = self.trees.upper.node(above)?.filter(Node::is_directory);
            let node = node.ok_or_else(|| changed(above))?;
            self.write(above, node.entry, &mut io::empty())?;
            self.directories.push(above.to_owned());
        }
        Ok(())
    }

    fn write(&mut self, path: &Path, mut entry: Entry, data: &mut dyn Read) -> Result<()> {
        let is_root = path.as_os_str().is_empty();
        entry.path = if is_root { b"./".to_vec() } else { path.as_os_str().as_bytes().to_vec() };
        if let Some(max) = self.options.mtime_max {
            entry.mtime = entry.mtime.min(max);
        }
        self.archive.entry(&entry, data).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => changed(path),
            _ => Error::new(ErrorKind::from(error.kind()), format!("write {} to the layer", path.display()))
                .with_source(error),
        })
    }
}

fn changed(path: &Path) -> Error {
    Error::aborted(format!("/{} changed while it was read; pause whoever writes to it", path.display()))
}

/// Reads a file up to a size. Holes are skipped with lseek(2), and read as zeros.
struct Data {
    file: OwnedFd,
    at: u64,
    size: u64,
    /// The last data region that was found: `at` is before it or in it.
    known: std::ops::Range<u64>,
}

impl Data {
    /// Finds the next data region; an empty one at the end of the file.
    fn find(&mut self) -> io::Result<()> {
        self.known = match seek(&self.file, SeekFrom::Data(self.at)) {
            Ok(start) => start..seek(&self.file, SeekFrom::Hole(start))?,
            // The rest is a hole, or the file was truncated: its size tells.
            Err(Errno::NXIO) => {
                let end = seek(&self.file, SeekFrom::End(0))?;
                end..end
            }
            // The file system does not report holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => self.at..self.size,
            Err(errno) => return Err(errno.into()),
        };
        Ok(())
    }
}

impl Read for Data {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.known.end {
            self.find()?;
        }
        let bound =
            |end: u64| usize::try_from(end.saturating_sub(self.at)).unwrap_or(usize::MAX).min(buffer.len());
        if self.at < self.known.start {
            let len = bound(self.known.start.min(self.size));
            buffer[..len].fill(0);
            self.at += len as u64;
            return Ok(len);
        }
        let len = bound(self.known.end.min(self.size));
        loop {
            match pread(&self.file, &mut buffer[..len], self.at) {
                Ok(read) => {
                    self.at += read as u64;
                    return Ok(read);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}
