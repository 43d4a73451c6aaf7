//! Archives that are made while they are read, since they are larger than memory should be: a million entries, and a file
//! whose length does not fit in 32 bits.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;

use super::{Archive, is_root, with_stored};

const MILLION: u32 = 1_000_000;

/// Directories of a hundred files each, an entry at a time.
struct Million {
    /// A header without a name, and the sum of its bytes.
    blank: (Vec<u8>, u32),
    piece: Vec<u8>,
    at: usize,
    files: u32,
}

impl Million {
    fn new() -> Million {
        let mut blank = Archive::default();
        blank.block(b'0', b"", 0o644, (0, 0));
        let mut blank = blank.0;
        blank[148..156].copy_from_slice(b"        ");
        let sum = blank.iter().map(|byte| u32::from(*byte)).sum();
        Million { blank: (blank, sum), piece: Vec::new(), at: 0, files: 0 }
    }

    fn name(file: u32) -> String {
        format!("{}/{}", file / 100, file % 100)
    }
}

impl Read for Million {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.piece.len() {
            self.piece.clear();
            self.at = 0;
            if self.files < MILLION {
                let name = Million::name(self.files);
                let (blank, sum) = &self.blank;
                let sum = sum + name.bytes().map(u32::from).sum::<u32>();
                self.piece.extend_from_slice(blank);
                self.piece[..name.len()].copy_from_slice(name.as_bytes());
                self.piece[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            } else if self.files == MILLION {
                self.piece.resize(1024, 0);
            }
            self.files += 1;
        }
        let len = buffer.len().min(self.piece.len() - self.at);
        buffer[..len].copy_from_slice(&self.piece[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}

/// Compares the names; other tests compare metadata.
#[test]
fn a_layer_may_have_a_million_entries() {
    if !is_root() {
        return;
    }
    with_stored(Million::new(), |tree| {
        let mut found = Vec::with_capacity(MILLION as usize);
        for directory in fs::read_dir(tree).unwrap() {
            let directory = directory.unwrap();
            let number: u32 = directory.file_name().to_str().unwrap().parse().unwrap();
            for file in fs::read_dir(directory.path()).unwrap() {
                let file = file.unwrap();
                assert!(file.file_type().unwrap().is_file());
                found.push(number * 100 + file.file_name().to_str().unwrap().parse::<u32>().unwrap());
            }
        }
        found.sort_unstable();
        assert!(found.into_iter().eq(0..MILLION), "the files that are in the archive");
        let last = fs::metadata(tree.join(Million::name(MILLION - 1))).unwrap();
        assert_eq!((last.mode() & 0o7777, last.uid(), last.gid(), last.mtime()), (0o644, 3, 4, 7));
    });
}

/// Bytes of a file in an archive: more than 32 bits can say, and no hole among them.
const LARGE_LEN: u64 = (4 << 30) + 12_345;

/// An archive of a large file, made as it is read, and of a small one behind it.
struct Large {
    head: Vec<u8>,
    tail: Vec<u8>,
    at: u64,
}

impl Large {
    fn new() -> Large {
        let mut archive = Archive::default();
        archive.block(b'0', b"", 0o644, (0, 0));
        let mut head = archive.0;
        head[..5].copy_from_slice(b"large");
        head[124..136].copy_from_slice(format!("{LARGE_LEN:011o}\0").as_bytes());
        head[148..156].copy_from_slice(b"        ");
        let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
        head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut behind = Archive::default();
        behind.add(b'0', "behind", "", b"four gibibytes", &[]);
        let mut tail = vec![0; (LARGE_LEN.next_multiple_of(512) - LARGE_LEN) as usize];
        tail.extend_from_slice(&behind.0);
        tail.resize(tail.len() + 1024, 0);
        Large { head, tail, at: 0 }
    }

    /// Its bytes in a page: the page's number again and again.
    fn page(number: u64) -> [u8; 4096] {
        let mut page = [0; 4096];
        page.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&(number + 1).to_le_bytes()));
        page
    }
}

impl Read for Large {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let data_at = self.head.len() as u64;
        let data_end = data_at + LARGE_LEN;
        let mut give = |bytes: &[u8]| {
            let len = buffer.len().min(bytes.len());
            buffer[..len].copy_from_slice(&bytes[..len]);
            len
        };
        let len = if self.at < data_at {
            give(&self.head[self.at as usize..])
        } else if self.at < data_end {
            let at = self.at - data_at;
            let left = usize::try_from(LARGE_LEN - at).unwrap_or(usize::MAX);
            let page = Large::page(at / 4096);
            let rest = &page[(at % 4096) as usize..];
            give(&rest[..rest.len().min(left)])
        } else {
            give(&self.tail[(self.at - data_end) as usize..])
        };
        self.at += len as u64;
        Ok(len)
    }
}

#[test]
fn a_file_may_have_more_than_four_gibibytes() {
    if !is_root() {
        return;
    }
    with_stored(Large::new(), |tree| {
        let file = fs::File::open(tree.join("large")).unwrap();
        assert_eq!(file.metadata().unwrap().len(), LARGE_LEN);
        let mut page = [0; 4096];
        // At both ends, and on both sides of where 31 and 32 bits end.
        for number in [0, 1, (2 << 30) / 4096 - 1, (2 << 30) / 4096, (4 << 30) / 4096 - 1, (4 << 30) / 4096] {
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut page, number * 4096).unwrap();
            assert!(page == Large::page(number), "page {number}");
        }
        let (last, len) = (LARGE_LEN / 4096, (LARGE_LEN % 4096) as usize);
        assert_eq!(std::os::unix::fs::FileExt::read_at(&file, &mut page, last * 4096).unwrap(), len);
        assert!(page[..len] == Large::page(last)[..len]);
        assert_eq!(fs::read(tree.join("behind")).unwrap(), b"four gibibytes");
    });
}
