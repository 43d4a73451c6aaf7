//! Writing: plain ustar, and a PAX record where ustar has no room. The same input gives the same bytes.

use std::io::{self, Write};

use super::BLOCK;

/// An archive being written. Owners are root and times are given, so that archives can be reproduced.
pub struct Writer<W: Write> {
    to: W,
    mtime: u64,
}

impl<W: Write> Writer<W> {
    pub fn new(to: W, mtime_seconds: u64) -> Writer<W> {
        Writer { to, mtime: mtime_seconds }
    }

    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        self.header(&format!("{}/", path.trim_end_matches('/')), b'5', 0o755, 0)
    }

    /// A file from bytes.
    pub fn file(&mut self, path: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        self.stream(path, mode, data.len() as u64, &mut &data[..])
    }

    /// A file of a size that is known, from a reader that gives just that much.
    pub fn stream(&mut self, path: &str, mode: u32, size: u64, data: &mut dyn io::Read) -> io::Result<()> {
        self.header(path, b'0', mode, size)?;
        let copied = io::copy(&mut io::Read::take(data, size), &mut self.to)?;
        if copied != size {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{path} has {copied} of {size} bytes"),
            ));
        }
        let padding = size.next_multiple_of(BLOCK as u64) - size;
        self.to.write_all(&[0; BLOCK][..usize::try_from(padding).expect("less than a block")])
    }

    /// Ends the archive and returns what it was written to.
    pub fn finish(mut self) -> io::Result<W> {
        self.to.write_all(&[0; 2 * BLOCK])?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn header(&mut self, path: &str, typeflag: u8, mode: u32, size: u64) -> io::Result<()> {
        let mut records = String::new();
        if path.len() > 100 {
            records.push_str(&record("path", path));
        }
        if size >= 1 << 33 {
            records.push_str(&record("size", &size.to_string()));
        }
        if !records.is_empty() {
            let name = format!("PaxHeaders/{}", path.len());
            self.to.write_all(&block(&name, b'x', 0o644, records.len() as u64, self.mtime))?;
            self.to.write_all(records.as_bytes())?;
            let padding = records.len().next_multiple_of(BLOCK) - records.len();
            self.to.write_all(&[0; BLOCK][..padding])?;
        }
        let short = path.get(..path.len().min(100)).unwrap_or("name");
        self.to.write_all(&block(short, typeflag, mode, size & ((1 << 33) - 1), self.mtime))
    }
}

/// A record's length counts its own digits.
fn record(key: &str, value: &str) -> String {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + rest.to_string().len();
    if rest + len.to_string().len() != len {
        len = rest + len.to_string().len();
    }
    format!("{len} {key}={value}\n")
}

fn block(name: &str, typeflag: u8, mode: u32, size: u64, mtime: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, &format!("{mode:07o}"));
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{size:011o}"));
    put(136, &format!("{mtime:011o}"));
    put(148, "        ");
    put(257, "ustar\u{0}00");
    block[156] = typeflag;
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\u{0} ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, Reader};
    use super::*;

    #[test]
    fn what_is_written_is_read() {
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
}
