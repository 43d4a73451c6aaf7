//! Writes ustar archives, with PAX records for values that ustar cannot hold. The same input gives the same bytes.

use std::io::{self, Read, Write};

use super::{BLOCK, Entry, Kind};

/// The largest size and time of a ustar header: eleven octal digits.
const ELEVEN_DIGITS_MAX: u64 = 0o777_7777_7777;
/// The largest owner and device number of a ustar header: seven octal digits.
const SEVEN_DIGITS_MAX: u64 = 0o777_7777;
/// Most bytes of a name or a link's target in a header.
const NAME_LEN_MAX: usize = 100;

/// An archive being written. Entries that the caller does not describe by an [`Entry`] are owned by root and have the
/// time that [`Writer::new`] got, so that archives are reproducible.
pub struct Writer<W: Write> {
    to: W,
    mtime: i64,
}

impl<W: Write> Writer<W> {
    /// A writer whose plain entries have this time, in seconds since 1970.
    pub fn new(to: W, mtime_seconds: u64) -> Writer<W> {
        Writer { to, mtime: i64::try_from(mtime_seconds).unwrap_or(i64::MAX) }
    }

    /// Writes a directory of mode 0755.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(&self.plain(path, Kind::Directory, 0o755, 0), &mut io::empty())
    }

    /// Writes a file with this data.
    pub fn file(&mut self, path: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        self.stream(path, mode, data.len() as u64, &mut &data[..])
    }

    /// Writes a file with the first `size` bytes of a reader. `UnexpectedEof` if it ends before.
    pub fn stream(&mut self, path: &str, mode: u32, size: u64, data: &mut dyn Read) -> io::Result<()> {
        self.entry(&self.plain(path, Kind::File, mode, size), data)
    }

    fn plain(&self, path: &str, kind: Kind, mode: u32, size: u64) -> Entry {
        Entry { mode, size, mtime: (self.mtime, 0), ..Entry::new(path, kind) }
    }

    /// Writes an entry, with the first `size` bytes of `data` if it is a file. Its holes are filled: `sparse` is
    /// ignored.
    ///
    /// `UnexpectedEof` if `data` is shorter, `InvalidInput` if a device number is too large for tar.
    pub fn entry(&mut self, entry: &Entry, data: &mut dyn Read) -> io::Result<()> {
        self.header(entry)?;
        if entry.kind != Kind::File {
            return Ok(());
        }
        let copied = io::copy(&mut data.take(entry.size), &mut self.to)?;
        if copied != entry.size {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{} has {copied} of {} bytes", String::from_utf8_lossy(&entry.path), entry.size),
            ));
        }
        self.pad(entry.size)
    }

    /// Ends the archive and returns the underlying writer.
    pub fn finish(mut self) -> io::Result<W> {
        self.to.write_all(&[0; 2 * BLOCK])?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn header(&mut self, entry: &Entry) -> io::Result<()> {
        let header = Header::of(entry)?;
        let records = header.records(entry);
        if !records.is_empty() {
            let carrier = Header {
                path: format!("PaxHeaders/{}", header.path.len()).into_bytes(),
                typeflag: b'x',
                mode: 0o644,
                size: records.len() as u64,
                mtime: header.mtime,
                ..Header::default()
            };
            self.to.write_all(&carrier.block())?;
            self.to.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        self.to.write_all(&header.block())
    }

    fn pad(&mut self, written: u64) -> io::Result<()> {
        let padding = written.next_multiple_of(BLOCK as u64) - written;
        self.to.write_all(&[0; BLOCK][..usize::try_from(padding).expect("less than a block")])
    }
}

/// The fields of a header. In its block, numbers that do not fit are zero and names are cut off: records have them
/// whole.
#[derive(Default)]
struct Header {
    path: Vec<u8>,
    link: Vec<u8>,
    typeflag: u8,
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: u64,
    device: Option<(u64, u64)>,
}

impl Header {
    fn of(entry: &Entry) -> io::Result<Header> {
        let (typeflag, link, device) = match &entry.kind {
            Kind::File => (b'0', &[][..], None),
            Kind::HardLink(target) => (b'1', &target[..], None),
            Kind::Symlink(target) => (b'2', &target[..], None),
            Kind::CharacterDevice { major, minor } => (b'3', &[][..], Some((*major, *minor))),
            Kind::BlockDevice { major, minor } => (b'4', &[][..], Some((*major, *minor))),
            Kind::Directory => (b'5', &[][..], None),
            Kind::Fifo => (b'6', &[][..], None),
        };
        if device.is_some_and(|(major, minor)| major.max(minor) > SEVEN_DIGITS_MAX) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a device number has no room in tar"));
        }
        let mut path = entry.path.clone();
        if entry.kind == Kind::Directory && path.last() != Some(&b'/') {
            path.push(b'/');
        }
        let seconds = u64::try_from(entry.mtime.0).unwrap_or(0);
        Ok(Header {
            path,
            link: link.to_vec(),
            typeflag,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            size: if entry.kind == Kind::File { entry.size } else { 0 },
            mtime: seconds.min(ELEVEN_DIGITS_MAX),
            device,
        })
    }

    /// The PAX records (POSIX.1-2001) for values that do not fit in the block, and for extended attributes as star and
    /// GNU tar write them.
    fn records(&self, entry: &Entry) -> Vec<u8> {
        let mut records = Vec::new();
        let mut add = |key: &str, value: &[u8]| records.extend(record(key, value));
        if self.path.len() > NAME_LEN_MAX {
            add("path", &self.path);
        }
        if self.link.len() > NAME_LEN_MAX {
            add("linkpath", &self.link);
        }
        if self.size > ELEVEN_DIGITS_MAX {
            add("size", self.size.to_string().as_bytes());
        }
        for (key, id) in [("uid", self.uid), ("gid", self.gid)] {
            if u64::from(id) > SEVEN_DIGITS_MAX {
                add(key, id.to_string().as_bytes());
            }
        }
        if entry.mtime != (i64::try_from(self.mtime).unwrap_or(i64::MAX), 0) {
            add("mtime", time(entry.mtime).as_bytes());
        }
        for (name, value) in &entry.attributes {
            add(&format!("SCHILY.xattr.{name}"), value);
        }
        records
    }

    fn block(&self) -> [u8; BLOCK] {
        let room = |value: u64, max: u64| if value > max { 0 } else { value };
        let mut block = [0; BLOCK];
        let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
        put(0, &self.path[..self.path.len().min(NAME_LEN_MAX)]);
        put(100, format!("{:07o}", self.mode).as_bytes());
        put(108, format!("{:07o}", room(self.uid.into(), SEVEN_DIGITS_MAX)).as_bytes());
        put(116, format!("{:07o}", room(self.gid.into(), SEVEN_DIGITS_MAX)).as_bytes());
        put(124, format!("{:011o}", room(self.size, ELEVEN_DIGITS_MAX)).as_bytes());
        put(136, format!("{:011o}", self.mtime).as_bytes());
        put(148, b"        ");
        put(156, &[self.typeflag]);
        put(157, &self.link[..self.link.len().min(NAME_LEN_MAX)]);
        put(257, b"ustar\x0000");
        if let Some((major, minor)) = self.device {
            put(329, format!("{major:07o}").as_bytes());
            put(337, format!("{minor:07o}").as_bytes());
        }
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

/// A PAX record. Its length counts its own digits.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + rest.to_string().len();
    if rest + len.to_string().len() != len {
        len = rest + len.to_string().len();
    }
    [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
}

/// The time as a decimal number; nanoseconds count forward, also from negative seconds.
fn time((seconds, nanos): (i64, u32)) -> String {
    if nanos == 0 {
        return seconds.to_string();
    }
    let (sign, whole, fraction) = if seconds < 0 {
        ("-", seconds.unsigned_abs() - 1, 1_000_000_000 - nanos)
    } else {
        ("", seconds.unsigned_abs(), nanos)
    };
    let text = format!("{sign}{whole}.{fraction:09}");
    text.trim_end_matches('0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::Reader;
    use super::*;

    #[test]
    fn the_reader_reads_what_the_writer_wrote() {
        let long = "a/".repeat(80) + "file";
        let mut writer = Writer::new(Vec::new(), 7);
        writer.directory("dir").unwrap();
        writer.file(&long, 0o755, b"hello").unwrap();
        let bytes = writer.finish().unwrap();
        let mut reader = Reader::new(&bytes[..]);
        let first = reader.next_entry().unwrap().unwrap();
        assert_eq!((first.kind, &first.path[..]), (Kind::Directory, &b"dir/"[..]));
        let second = reader.next_entry().unwrap().unwrap();
        assert_eq!((second.path, second.mode, second.mtime), (long.into_bytes(), 0o755, (7, 0)));
        assert_eq!(reader.read_all(100).unwrap(), b"hello");
        assert!(reader.next_entry().unwrap().is_none());
    }

    /// Writes an entry without data, and reads it back.
    fn check(entry: Entry) {
        let mut writer = Writer::new(Vec::new(), 0);
        writer.entry(&entry, &mut io::empty()).unwrap();
        let bytes = writer.finish().unwrap();
        assert_eq!(Reader::new(&bytes[..]).next_entry().unwrap(), Some(entry));
    }

    #[test]
    fn a_file_may_have_more_bytes_than_a_header_has_digits() {
        for size in [ELEVEN_DIGITS_MAX, ELEVEN_DIGITS_MAX + 1, 1 << 40] {
            let entry = Entry { size, ..Entry::new("large", Kind::File) };
            let mut writer = Writer::new(Vec::new(), 0);
            // The missing data is an error only after the header was written.
            let missed = writer.entry(&entry, &mut io::empty()).unwrap_err();
            assert_eq!(missed.kind(), io::ErrorKind::UnexpectedEof);
            assert_eq!(Reader::new(&writer.to[..]).next_entry().unwrap(), Some(entry));
        }
    }

    #[test]
    fn values_that_do_not_fit_in_a_header_are_in_pax_records() {
        let entry = || Entry { mode: 0o4755, ..Entry::new("x", Kind::Fifo) };
        check(entry());
        check(Entry { uid: 0o777_7777, gid: 0o1000_0000, ..entry() });
        check(Entry { uid: u32::MAX, ..entry() });
        for mtime in [
            (0, 1),
            (1_700_000_000, 123_456_789),
            (5, 500_000_000),
            (-1, 0),
            (-1, 999_999_999),
            (-2, 250_000_000),
            (1 << 40, 0),
        ] {
            check(Entry { mtime, ..entry() });
        }
        check(Entry::new("link", Kind::Symlink(vec![b't'; 300])));
        check(Entry::new("link", Kind::HardLink(b"other".to_vec())));
        check(Entry::new([0xff; 40], Kind::Fifo));
        check(Entry::new("device", Kind::BlockDevice { major: 4095, minor: (1 << 20) - 1 }));
        let attributes =
            [("user.empty", &b""[..]), ("user.bytes", b"\0\n=\xff"), ("security.capability", &[1; 20])];
        let attributes = attributes.into_iter().map(|(name, value)| (name.to_owned(), value.to_vec()));
        check(Entry { attributes: attributes.collect(), ..entry() });
        for len in 80..110 {
            check(Entry::new("n".repeat(len), Kind::Fifo));
        }
    }
}
