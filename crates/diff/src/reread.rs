//! Verifies the data file of a stored layer against its digest, and rebuilds the tree of its metadata.
//!
//! The file does not say where the archive in it ends: zeros follow up to a multiple of 512 bytes, or up to a whole
//! block of the file system if sparse files follow. The end is the position among these zeros where the digest matches.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::unix::fs::FileExt;

use erofs::{Device, Tree};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use types::{Context, Digest, Error, Hasher, Result};

use crate::apply::Limits;
use crate::memory::{Memory, Windows};
use crate::store::{HOLES_AT, Layer};
use crate::tar::Reader;

/// Bytes in which the end is searched for if sparse files follow: more than a block of any file system.
const TAIL_LEN: u64 = 64 * 1024;
const TAIL_LEN_WITHOUT_HOLES: u64 = 512;
/// Bytes read at a time.
const READ_LEN: usize = 256 * 1024;

/// Reads a data file that [`crate::store()`] wrote, and returns an equal tree to the one that `store` returned.
///
/// Any failure is `DataLoss`: the bytes have changed, or cannot be read.
pub fn reread(data: &File, diff_id: &Digest) -> Result<Tree> {
    read(data, diff_id).map_err(|error| match error.kind() {
        types::ErrorKind::DataLoss => error,
        // Corrupt bytes may fail in any way, as an archive or in the disk.
        _ => Error::data_loss("its archive cannot be read").with_source(error),
    })
}

fn read(data: &File, diff_id: &Digest) -> Result<Tree> {
    let len = data.metadata().context(|| "look at the archive")?.len();
    let (end, tail_len) =
        if len > HOLES_AT { (end_of_data(data, HOLES_AT)?, TAIL_LEN) } else { (len, TAIL_LEN_WITHOUT_HOLES) };
    let mut archive = Archive {
        data,
        at: 0,
        hashed_to: end.saturating_sub(tail_len),
        end,
        hasher: Hasher::new(diff_id.algorithm()),
        tail: Vec::new(),
        buffer: Vec::new(),
        taken: 0,
    };
    let limits = Limits::default();
    let memory = Memory::of(Windows::of(limits.origin));
    let mut layer = Layer::new(data, limits, memory, true);
    layer.read_archive(&mut Reader::new(&mut archive))?;
    let Archive { hasher, tail, .. } = archive;
    if !ends_within(hasher, &tail, diff_id) {
        return Err(Error::data_loss(format!("its archive is not {diff_id} any more")));
    }
    Ok(layer.into_tree(Device { tag: diff_id.hex().to_owned(), len }))
}

/// The end of the last data region before `limit`.
fn end_of_data(data: &File, limit: u64) -> Result<u64> {
    let what = || "look for the archive's end";
    let mut end = 0;
    loop {
        let begin = match seek(data, SeekFrom::Data(end)) {
            Err(Errno::NXIO) => return Ok(end),
            begin => begin.map_err(io::Error::from).context(what)?,
        };
        if begin >= limit {
            return Ok(end);
        }
        end = seek(data, SeekFrom::Hole(begin)).map_err(io::Error::from).context(what)?;
        if end >= limit {
            return Err(Error::data_loss("there is no hole between the archive and the sparse files"));
        }
    }
}

/// Whether the stream has this digest if it ends with the tail, or before some of the tail's final zeros.
fn ends_within(mut hasher: Hasher, tail: &[u8], digest: &Digest) -> bool {
    let zeros_at = tail.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    hasher.update(&tail[..zeros_at]);
    let mut zeros = tail[zeros_at..].iter();
    loop {
        if hasher.clone().finish() == *digest {
            return true;
        }
        let Some(_) = zeros.next() else { return false };
        hasher.update(&[0]);
    }
}

/// Reads the archive in the data file and hashes it, except for its last bytes, which are kept in `tail`.
struct Archive<'a> {
    data: &'a File,
    at: u64,
    hashed_to: u64,
    end: u64,
    hasher: Hasher,
    tail: Vec<u8>,
    buffer: Vec<u8>,
    taken: usize,
}

impl BufRead for Archive<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.taken == self.buffer.len() {
            let left = usize::try_from(self.end - self.at).unwrap_or(READ_LEN).min(READ_LEN);
            self.buffer.resize(left, 0);
            self.data.read_exact_at(&mut self.buffer, self.at)?;
            let hashed = usize::try_from(self.hashed_to.saturating_sub(self.at)).unwrap_or(left).min(left);
            self.hasher.update(&self.buffer[..hashed]);
            self.tail.extend_from_slice(&self.buffer[hashed..]);
            self.at += left as u64;
            self.taken = 0;
        }
        Ok(&self.buffer[self.taken..])
    }

    fn consume(&mut self, len: usize) {
        self.taken += len;
    }
}

impl Read for Archive<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let len = self.fill_buf()?.read(to)?;
        self.consume(len);
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Limits, store};

    fn image(tree: &Tree) -> Vec<u8> {
        let mut bytes = Vec::new();
        tree.write(&mut bytes).unwrap();
        bytes
    }

    fn tar(args: &[&str], fill: impl FnOnce(&std::path::Path)) -> Vec<u8> {
        let dir = tempfile::TempDir::new().unwrap();
        fill(dir.path());
        let tar = std::process::Command::new("tar").arg("-C").arg(dir.path()).args(args).output().unwrap();
        assert!(tar.status.success(), "{tar:?}");
        tar.stdout
    }

    /// Stores an archive, rereads it, and checks that a changed bit and a truncated file are detected.
    fn check(archive: &[u8]) {
        let data = tempfile::tempfile().unwrap();
        let stored = store(archive, Limits::default(), &data, None).unwrap();
        let again = reread(&data, &stored.diff_id).unwrap();
        assert!(image(&again) == image(&stored.tree), "the same tree");

        let lost = |what: &str| match reread(&data, &stored.diff_id) {
            Ok(_) => panic!("{what} was not seen"),
            Err(error) => assert!(error.is(types::ErrorKind::DataLoss), "{what}: {error:?}"),
        };
        for at in [0, 156, 700, archive.len() as u64 / 2, archive.len() as u64 - 1] {
            let mut byte = [0];
            data.read_exact_at(&mut byte, at).unwrap();
            data.write_all_at(&[byte[0] ^ 4], at).unwrap();
            lost("a bit");
            data.write_all_at(&byte, at).unwrap();
        }
        reread(&data, &stored.diff_id).unwrap();
        data.set_len(archive.len() as u64 / 2).unwrap();
        lost("a half");
    }

    #[test]
    fn a_stored_layer_is_read_again_and_damage_is_seen() {
        let files = |root: &std::path::Path| {
            for (name, len) in [("empty", 0), ("small", 10), ("large", 300_000)] {
                std::fs::write(root.join(name), vec![7; len]).unwrap();
            }
            std::os::unix::fs::symlink("small", root.join("link")).unwrap();
        };
        let whole = tar(&["-cf", "-", "."], files);
        check(&whole);
        // Without the padding behind the last file's data.
        let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        check(&whole[..end]);
        check(&whole[..end.next_multiple_of(512)]);
        // With rubbish behind the end of the archive.
        check(&[&whole[..], b"rubbish"].concat());
    }

    #[test]
    fn the_end_of_the_archive_is_found_before_sparse_files() {
        let archive = tar(&["-S", "-cf", "-", "."], |root| {
            let file = File::create(root.join("holes")).unwrap();
            file.write_all_at(b"begin", 0).unwrap();
            file.write_all_at(&[9; 100_000], 1 << 22).unwrap();
            file.set_len(1 << 24).unwrap();
            std::fs::write(root.join("plain"), vec![1; 5000]).unwrap();
        });
        assert!(archive.len() < 1 << 20, "tar kept the holes");
        check(&archive);
        let data = tempfile::tempfile().unwrap();
        let stored = store(&archive[..], Limits::default(), &data, None).unwrap();
        data.write_all_at(b"B", HOLES_AT).unwrap();
        assert!(reread(&data, &stored.diff_id).is_err(), "the copy of the sparse file is verified too");
    }
}
