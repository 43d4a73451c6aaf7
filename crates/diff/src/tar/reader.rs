//! Reads an archive entry by entry, and holds only the current entry in memory.

use std::collections::BTreeMap;
use std::io::{self, BufRead};

use super::BLOCK;
use super::header::{Header, bad, sparse_regions};
use super::pax::{self, Records};

/// Most bytes of extensions before an entry: GNU long names and links, and PAX blocks, with their own headers.
const EXTENSIONS_LEN_MAX: u64 = 1 << 20;

/// Most bytes of a file.
const SIZE_MAX: u64 = i64::MAX as u64;

/// Most data regions of a sparse file.
const SPARSE_REGIONS_MAX: usize = 1 << 16;

/// The type of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    /// A symbolic link, with its target.
    Symlink(Vec<u8>),
    /// Another link to the file that the archive or a lower layer has at this path.
    HardLink(Vec<u8>),
    CharacterDevice {
        major: u64,
        minor: u64,
    },
    BlockDevice {
        major: u64,
        minor: u64,
    },
    Fifo,
}

/// One entry, without its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As in the archive: it may be absolute, contain `..`, or be any other bytes but zeros.
    pub path: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// Bytes of the file, holes included.
    pub size: u64,
    /// Extended attributes (xattr(7)).
    pub attributes: BTreeMap<String, Vec<u8>>,
    /// Offset and length of each data region of a sparse file; the rest is holes.
    pub sparse: Option<Vec<(u64, u64)>>,
}

impl Entry {
    /// An entry owned by root, of mode 0, with the time 0 and without data.
    pub fn new(path: impl Into<Vec<u8>>, kind: Kind) -> Entry {
        Entry {
            path: path.into(),
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            size: 0,
            attributes: BTreeMap::new(),
            sparse: None,
        }
    }
}

/// An archive being read. Data that the caller does not read is skipped without a copy.
pub struct Reader<R> {
    source: R,
    /// Bytes read so far.
    offset: u64,
    /// Unread bytes of the current entry's data.
    unread: u64,
    /// Bytes of padding behind this data.
    padding: u64,
    finished: bool,
}

impl<R: BufRead> Reader<R> {
    pub fn new(source: R) -> Reader<R> {
        Reader { source, offset: 0, unread: 0, padding: 0, finished: false }
    }

    /// The next entry; `None` at the end. Unread data of the current entry is skipped.
    ///
    /// `InvalidData` if the archive is malformed or exceeds a limit, `UnexpectedEof` if it is cut off.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        let at = self.offset;
        self.read_entry()
            .map_err(|error| io::Error::new(error.kind(), format!("entry at byte {at}: {error}")))
    }

    /// Bytes read so far. Right after [`Reader::next_entry`], this is where the data of the entry begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Reads data of the current entry; 0 bytes at its end.
    pub fn read_data(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.unread).unwrap_or(usize::MAX).min(buffer.len());
        if len == 0 {
            return Ok(0);
        }
        let read = self.source.read(&mut buffer[..len])?;
        if read == 0 {
            return Err(cut_off());
        }
        self.offset += read as u64;
        self.unread -= read as u64;
        Ok(read)
    }

    /// Reads all data of the current entry. `InvalidData` if it is longer than `len_max` bytes.
    pub fn read_all(&mut self, len_max: u64) -> io::Result<Vec<u8>> {
        if self.unread > len_max {
            return Err(bad(&format!("{} bytes are more than the {len_max} allowed here", self.unread)));
        }
        let mut data = vec![0; usize::try_from(self.unread).map_err(|_| bad("too large"))?];
        let mut filled = 0;
        while filled < data.len() {
            filled += self.read_data(&mut data[filled..])?;
        }
        Ok(data)
    }

    /// Reads to the end of the source, which may have bytes behind the end of the archive.
    pub fn drain(&mut self) -> io::Result<()> {
        self.skip_rest()?;
        while self.skip(u64::MAX)? > 0 {}
        Ok(())
    }

    fn read_entry(&mut self) -> io::Result<Option<Entry>> {
        let mut records = Records::default();
        let (mut long_name, mut long_link) = (None, None);
        let mut room = EXTENSIONS_LEN_MAX;
        loop {
            self.skip_rest()?;
            let Some(block) = self.block()? else { return Ok(None) };
            let header = Header(&block);
            if header.is_end() {
                self.finished = true;
                // Some writers leave out the second of the two blocks that end an archive.
                return match self.raw_block()? {
                    Some(block) if !Header(&block).is_end() => {
                        Err(bad("a block of zeros stands before it, which only ends an archive"))
                    }
                    _ => Ok(None),
                };
            }
            header.check()?;
            match header.typeflag() {
                // Only the last PAX header before an entry counts. POSIX does not define this, nor which of two names
                // of an entry wins. Here the reader does as Go's archive/tar, with which images are built and tested.
                b'x' => {
                    records = Records::default();
                    pax::parse(&self.extension(&header, &mut room)?, &mut records)?;
                }
                // Global headers are ignored, against POSIX, and void the extensions before them, as in Go.
                b'g' => {
                    pax::parse(&self.extension(&header, &mut room)?, &mut Records::default())?;
                    records = Records::default();
                    (long_name, long_link) = (None, None);
                }
                b'L' => long_name = Some(self.long_name(&header, &mut room)?),
                b'K' => long_link = Some(self.long_name(&header, &mut room)?),
                _ => return self.entry(&header, &records, long_name, long_link).map(Some),
            }
        }
    }

    fn entry(
        &mut self,
        header: &Header<'_>,
        records: &Records,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> io::Result<Entry> {
        let take = |key: &str| records.get(key).map(<[u8]>::to_vec);
        let stored = records.number("size")?.map_or_else(|| header.size(), Ok)?;
        if stored > SIZE_MAX {
            return Err(bad(&format!("size {stored} is too large")));
        }
        let non_empty = |name: Option<Vec<u8>>| name.filter(|name| !name.is_empty());
        // For an old GNU sparse file, whose map is in its header, the sparse records do not count.
        let map_is_ahead = match header.typeflag() {
            b'S' => None,
            _ => records.sparse_map_is_ahead(),
        };
        let path = map_is_ahead.and_then(|_| take("GNU.sparse.name")).or(non_empty(long_name));
        let path = path.or_else(|| take("path")).unwrap_or_else(|| header.name());
        let link = non_empty(long_link).or_else(|| take("linkpath")).unwrap_or_else(|| header.link_name());
        if path.contains(&0) || link.contains(&0) {
            return Err(bad("a name contains a zero byte"));
        }
        let device = || -> io::Result<(u64, u64)> {
            let (major, minor) = header.device()?;
            Ok((
                records.number("SCHILY.devmajor")?.unwrap_or(major),
                records.number("SCHILY.devminor")?.unwrap_or(minor),
            ))
        };
        let kind = match header.typeflag() {
            // Before POSIX, a directory was a file whose name ends in a slash.
            0 if path.last() == Some(&b'/') => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink(link),
            b'2' => Kind::Symlink(link),
            b'3' => device().map(|(major, minor)| Kind::CharacterDevice { major, minor })?,
            b'4' => device().map(|(major, minor)| Kind::BlockDevice { major, minor })?,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                return Err(bad(&format!(
                    "type {:?} of {:?} is not known",
                    char::from(other),
                    String::from_utf8_lossy(&path)
                )));
            }
        };
        // Other types have no data, whatever their size field says: the next header follows, as in Go.
        let has_data = kind == Kind::File;
        if !has_data && map_is_ahead.is_some() {
            return Err(bad("an entry that is no file has a sparse map"));
        }
        let stored_here = if has_data { stored } else { 0 };
        let id = |key: &str, own: u64| -> io::Result<u32> {
            let value = records.number(key)?.unwrap_or(own);
            u32::try_from(value).map_err(|_| bad(&format!("{key} {value} is too large")))
        };
        let mut entry = Entry {
            path,
            kind,
            mode: u32::try_from(header.mode()? & 0o7777).expect("masked"),
            uid: id("uid", header.uid()?)?,
            gid: id("gid", header.gid()?)?,
            mtime: records.time("mtime")?.map_or_else(|| header.mtime().map(|seconds| (seconds, 0)), Ok)?,
            size: stored_here,
            attributes: records.attributes()?,
            sparse: None,
        };
        self.unread = stored_here;
        self.padding = stored_here.next_multiple_of(BLOCK as u64) - stored_here;
        if has_data {
            self.read_sparse(header, records, &mut entry)?;
        }
        Ok(entry)
    }

    /// Reads the map of a sparse file, in any of GNU tar's four forms (old GNU, 0.0, 0.1 and 1.0).
    fn read_sparse(&mut self, header: &Header<'_>, records: &Records, entry: &mut Entry) -> io::Result<()> {
        let (regions, real_size) = if header.typeflag() == b'S' {
            let (mut regions, mut more, real_size) = header.old_sparse()?;
            while more {
                let block = self.raw_block()?.ok_or_else(|| bad("the archive ends in a sparse map"))?;
                sparse_regions(&block[..504], &mut regions)?;
                more = block[504] == 1;
                check_regions(&regions)?;
            }
            (regions, real_size)
        } else {
            let Some(map_is_ahead) = records.sparse_map_is_ahead() else { return Ok(()) };
            let real = match records.number("GNU.sparse.size")? {
                None => records.number("GNU.sparse.realsize")?,
                real => real,
            };
            let real = real.ok_or_else(|| bad("a sparse file has no real size"))?;
            (if map_is_ahead { self.read_sparse_map()? } else { records.sparse_map()? }, real)
        };
        check_regions(&regions)?;
        let end = regions.iter().map(|(at, len)| at + len).max().unwrap_or(0);
        let ordered = regions.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0);
        // The sum cannot overflow: `||` evaluates it only for ordered regions, which do not overlap.
        let data = || regions.iter().map(|(_, len)| len).sum::<u64>();
        if !ordered || end > real_size || data() != self.unread {
            return Err(bad("a sparse map does not fit its file"));
        }
        entry.size = real_size;
        entry.sparse = Some(regions);
        Ok(())
    }

    /// Reads a map of form 1.0: decimal lines before the data, padded to a block.
    fn read_sparse_map(&mut self) -> io::Result<Vec<(u64, u64)>> {
        let no_numbers = || bad("a sparse map is no list of numbers");
        let mut bytes = Vec::new();
        let mut numbers: Vec<u64> = Vec::new();
        let mut wanted = None;
        while wanted.is_none_or(|wanted| numbers.len() < wanted) {
            let mut block = vec![0; BLOCK];
            let mut filled = 0;
            while filled < BLOCK {
                match self.read_data(&mut block[filled..])? {
                    0 => return Err(bad("a sparse map is cut off")),
                    read => filled += read,
                }
            }
            bytes.extend_from_slice(&block);
            while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
                if wanted.is_some_and(|wanted| numbers.len() >= wanted) {
                    break;
                }
                let number = std::str::from_utf8(&bytes[..end]).ok().and_then(|text| text.parse().ok());
                let number: u64 = number.ok_or_else(no_numbers)?;
                bytes.drain(..=end);
                match wanted {
                    None => {
                        let count = usize::try_from(number).unwrap_or(usize::MAX);
                        if count > SPARSE_REGIONS_MAX {
                            return Err(bad("a sparse map has too many regions"));
                        }
                        wanted = Some(count * 2);
                    }
                    Some(_) => numbers.push(number),
                }
            }
            // A block without a line end: no number has so many digits.
            if bytes.len() >= BLOCK && !bytes.contains(&b'\n') {
                return Err(no_numbers());
            }
        }
        Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }

    fn long_name(&mut self, header: &Header<'_>, room: &mut u64) -> io::Result<Vec<u8>> {
        let mut name = self.extension(header, room)?;
        while name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    /// Reads the data of an extension header, and takes its bytes from `room`.
    fn extension(&mut self, header: &Header<'_>, room: &mut u64) -> io::Result<Vec<u8>> {
        let size = header.size()?;
        let taken = size.saturating_add(BLOCK as u64);
        *room = room.checked_sub(taken).ok_or_else(|| {
            bad(&format!("more than {EXTENSIONS_LEN_MAX} bytes of headers before an entry"))
        })?;
        self.unread = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        self.read_all(size)
    }

    /// Skips the unread data of the current entry and its padding.
    fn skip_rest(&mut self) -> io::Result<()> {
        while self.unread > 0 {
            match self.skip(self.unread)? {
                0 => return Err(cut_off()),
                skipped => self.unread -= skipped,
            }
        }
        while self.padding > 0 {
            match self.skip(self.padding)? {
                // Some writers leave out the padding of the last entry along with the final blocks.
                0 => {
                    self.finished = true;
                    self.padding = 0;
                }
                skipped => self.padding -= skipped,
            }
        }
        Ok(())
    }

    /// Skips between 1 and `len` bytes and returns how many; 0 at the end of the source.
    fn skip(&mut self, len: u64) -> io::Result<u64> {
        loop {
            match self.source.fill_buf() {
                Ok(bytes) => {
                    let skipped = usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len());
                    self.source.consume(skipped);
                    self.offset += skipped as u64;
                    return Ok(skipped as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn block(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        if self.finished { Ok(None) } else { self.raw_block() }
    }

    /// The next block; `None` at the end of the source, since some writers leave out the final blocks.
    fn raw_block(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        match stdx::fill(&mut self.source, &mut block)? {
            0 => Ok(None),
            BLOCK => {
                self.offset += BLOCK as u64;
                Ok(Some(block))
            }
            _ => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the archive ends in the middle of a header",
            )),
        }
    }
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends in the middle of a file")
}

fn check_regions(regions: &[(u64, u64)]) -> io::Result<()> {
    let fits = regions.iter().all(|(at, len)| at.checked_add(*len).is_some_and(|end| end < 1 << 62));
    if fits && regions.len() <= SPARSE_REGIONS_MAX { Ok(()) } else { Err(bad("a sparse map is too large")) }
}
