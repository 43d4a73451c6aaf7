//! Docker's `json-file` log: one JSON object a line, rotated by size.
//!
//! ```text
//! {"log":"hello\n","stream":"stdout","time":"2026-01-02T03:04:05.000000006Z"}
//! x.log (current)   x.log.1 (previous)   x.log.2 …   at most `files_max` of them
//! ```
//!
//! A line longer than [`LINE_LEN_MAX`] is split; only its last piece ends in `\n`. A last line without a newline is
//! written when its stream ends.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use types::{Context, Result, Timestamp};

use super::Stream;
use super::open::append;
use super::target::JsonFile;

/// Docker's piece length.
pub(crate) const LINE_LEN_MAX: usize = 16 << 10;

pub(crate) struct JsonLog {
    config: JsonFile,
    file: File,
    /// Bytes of the file, including those in `out`.
    size: u64,
    /// Encoded lines of one write; kept to reuse its memory.
    out: Vec<u8>,
}

impl JsonLog {
    pub(crate) fn open(config: JsonFile) -> Result<JsonLog> {
        let about = || format!("open log file {}", config.path.display());
        let mut file = append(&config.path).context(about)?;
        let metadata = file.metadata().context(about)?;
        let mut size = metadata.len();
        // A shim that was killed may have left half a line. If it cannot be ended on a full disk, the shim goes on.
        if metadata.is_file()
            && !ends_a_line(&config.path, size).context(about)?
            && file.write_all(b"\n").is_ok()
        {
            size += 1;
        }
        Ok(JsonLog { config, file, size, out: Vec::new() })
    }

    /// Writes each piece as one line.
    pub(crate) fn write<'a>(
        &mut self,
        stream: Stream,
        time: Timestamp,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> io::Result<()> {
        let time = time.to_string();
        let mut outcome = Ok(());
        for piece in pieces {
            let before = self.out.len();
            push_line(&mut self.out, stream, &time, piece);
            let line_len = (self.out.len() - before) as u64;
            if self.is_full(line_len) {
                let line = self.out.split_off(before);
                outcome = outcome.and(self.flush()).and(self.rotate());
                self.out = line;
            }
            self.size += line_len;
        }
        outcome.and(self.flush())
    }

    fn is_full(&self, more: u64) -> bool {
        self.size > 0 && self.config.size_max.is_some_and(|max| self.size + more > max)
    }

    /// On a full disk whole lines are dropped: half a line would break the next one.
    fn flush(&mut self) -> io::Result<()> {
        let outcome = self.file.write_all(&self.out);
        if outcome.is_err() {
            // The first error is reported.
            let _best_effort = self.cut_to_whole_lines();
        }
        self.out.clear();
        self.out.shrink_to(4 << 10);
        outcome
    }

    fn cut_to_whole_lines(&mut self) -> io::Result<()> {
        let begun = self.size.saturating_sub(self.out.len() as u64);
        let len = self.file.metadata()?.len();
        // Another program may have truncated the file, which must not be extended here.
        let written = usize::try_from(len.saturating_sub(begun)).unwrap_or(usize::MAX).min(self.out.len());
        let whole = self.out[..written].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        self.size = begun + whole as u64;
        if len > self.size { self.file.set_len(self.size) } else { Ok(()) }
    }

    /// `x.log.1` becomes `x.log.2`, and so on; `x.log` becomes `x.log.1` and starts empty. If that fails, logging
    /// continues in the current file.
    fn rotate(&mut self) -> io::Result<()> {
        if self.config.files_max == 1 {
            self.file.set_len(0)?;
            self.size = 0;
            return Ok(());
        }
        // Created before any rename, as it fails on a full disk.
        let mut new = self.config.path.clone().into_os_string();
        new.push(".new");
        let file = append(Path::new(&new))?;
        // Renames existing files only, not up to `files_max`.
        let is_free = |age: &u32| std::fs::symlink_metadata(self.aged(*age)).is_err();
        let oldest = (1..self.config.files_max - 1).find(is_free).unwrap_or(self.config.files_max - 1);
        for age in (0..oldest).rev() {
            match std::fs::rename(self.aged(age), self.aged(age + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(&new, &self.config.path)?;
        (self.file, self.size) = (file, 0);
        Ok(())
    }

    /// The path of a file by age; the current one's is 0.
    fn aged(&self, age: u32) -> PathBuf {
        if age == 0 {
            return self.config.path.clone();
        }
        let mut name = self.config.path.clone().into_os_string();
        name.push(format!(".{age}"));
        name.into()
    }
}

fn ends_a_line(path: &Path, len: u64) -> io::Result<bool> {
    let Some(end) = len.checked_sub(1) else { return Ok(true) };
    let mut last = [0];
    // Nothing is read if another program has truncated the file meanwhile.
    Ok(File::open(path)?.read_at(&mut last, end)? == 0 || last == *b"\n")
}

fn push_line(out: &mut Vec<u8>, stream: Stream, time: &str, piece: &[u8]) {
    out.extend_from_slice(b"{\"log\":");
    push_string(out, piece);
    out.extend_from_slice(b",\"stream\":\"");
    out.extend_from_slice(stream.name().as_bytes());
    out.extend_from_slice(b"\",\"time\":\"");
    out.extend_from_slice(time.as_bytes());
    out.extend_from_slice(b"\"}\n");
}

/// Encodes a JSON string; invalid UTF-8 becomes U+FFFD.
fn push_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    for chunk in bytes.utf8_chunks() {
        for byte in chunk.valid().bytes() {
            match byte {
                b'"' => out.extend_from_slice(b"\\\""),
                b'\\' => out.extend_from_slice(b"\\\\"),
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                b'\t' => out.extend_from_slice(b"\\t"),
                0..0x20 | 0x7f => {
                    const HEX: &[u8; 16] = b"0123456789abcdef";
                    out.extend_from_slice(b"\\u00");
                    out.push(HEX[usize::from(byte >> 4)]);
                    out.push(HEX[usize::from(byte & 15)]);
                }
                _ => out.push(byte),
            }
        }
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    out.push(b'"');
}

/// Splits a stream into pieces: lines, or [`LINE_LEN_MAX`] bytes of a longer one.
#[derive(Default)]
pub(crate) struct Pieces {
    /// An incomplete line.
    rest: Vec<u8>,
}

impl Pieces {
    /// Adds bytes, and passes all complete pieces to `write`.
    pub(crate) fn push<T>(
        &mut self,
        bytes: &[u8],
        write: impl FnOnce(&mut dyn Iterator<Item = &[u8]>) -> T,
    ) -> T {
        self.rest.extend_from_slice(bytes);
        let whole = whole_pieces(&self.rest).last().map_or(0, |(start, len)| start + len);
        let outcome =
            write(&mut whole_pieces(&self.rest[..whole]).map(|(start, len)| &self.rest[start..start + len]));
        self.rest.drain(..whole);
        self.rest.shrink_to(LINE_LEN_MAX / 16);
        outcome
    }

    /// The last line, if it has no newline.
    pub(crate) fn finish(&mut self) -> Option<Vec<u8>> {
        Some(std::mem::take(&mut self.rest)).filter(|rest| !rest.is_empty())
    }
}

/// Start and length of each complete piece in `bytes`.
fn whole_pieces(bytes: &[u8]) -> impl Iterator<Item = (usize, usize)> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = &bytes[start..];
        let len = match rest.iter().take(LINE_LEN_MAX).position(|byte| *byte == b'\n') {
            Some(newline) => newline + 1,
            None if rest.len() >= LINE_LEN_MAX => LINE_LEN_MAX,
            None => return None,
        };
        start += len;
        Some((start - len, len))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(directory: &Path, size_max: Option<u64>, files_max: u32) -> JsonLog {
        let path = directory.join("c.log");
        JsonLog::open(JsonFile { path, size_max, files_max, attach: None }).unwrap()
    }

    fn write(log: &mut JsonLog, text: &[u8]) {
        log.write(Stream::Stdout, Timestamp { seconds: 0, nanos: 1 }, std::iter::once(text)).unwrap();
    }

    #[test]
    fn lines_are_dockers() {
        let directory = tempfile::tempdir().unwrap();
        write(&mut log(directory.path(), None, 1), b"a \"b\"\\\t\x01\xff\n");
        let text = std::fs::read_to_string(directory.path().join("c.log")).unwrap();
        assert_eq!(
            text,
            "{\"log\":\"a \\\"b\\\"\\\\\\t\\u0001\u{fffd}\\n\",\"stream\":\"stdout\",\
             \"time\":\"1970-01-01T00:00:00.000000001Z\"}\n"
        );
        let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(parsed["log"], "a \"b\"\\\t\u{1}\u{fffd}\n");
    }

    #[test]
    fn half_a_line_that_a_killed_shim_left_spoils_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.log");
        std::fs::write(&path, "{\"log\":\"whole\"}\n{\"log\":\"ha").unwrap();
        write(&mut log(directory.path(), None, 1), b"first\n");
        write(&mut log(directory.path(), None, 1), b"second\n");
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert_eq!(lines[1], "{\"log\":\"ha");
        assert!(lines[2].contains("first") && lines[3].contains("second"), "{text}");
        assert_eq!(log(directory.path(), None, 1).size, text.len() as u64);
    }

    #[test]
    fn files_rotate_and_the_oldest_goes() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(directory.path(), Some(200), 3);
        for number in 0..10 {
            write(&mut log, format!("line {number}\n").as_bytes());
        }
        let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
        assert!(read("c.log").contains("line 9"));
        assert!(read("c.log").len() <= 200 && read("c.log.1").len() <= 200);
        assert!(read("c.log.2").contains("line 5"));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_rotation_takes_as_long_as_there_are_files_and_not_as_there_may_be() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(directory.path(), Some(100), u32::MAX);
        for number in 0..4 {
            write(&mut log, format!("line {number}\n").as_bytes());
        }
        let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
        assert!(read("c.log").contains("line 3") && read("c.log.3").contains("line 0"));
    }

    #[test]
    fn a_log_that_cannot_be_rotated_goes_on_and_loses_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(directory.path(), Some(100), 2);
        write(&mut log, b"first\n");
        std::fs::create_dir(directory.path().join("c.log.1")).unwrap();
        let second = std::iter::once(&b"second\n"[..]);
        log.write(Stream::Stdout, Timestamp { seconds: 0, nanos: 1 }, second).unwrap_err();
        let text = std::fs::read_to_string(directory.path().join("c.log")).unwrap();
        assert!(text.contains("first") && text.contains("second"), "{text}");
        assert_eq!(log.size, text.len() as u64);
        std::fs::remove_dir(directory.path().join("c.log.1")).unwrap();
        write(&mut log, b"third\n");
        assert_eq!(std::fs::read_to_string(directory.path().join("c.log.1")).unwrap(), text);
    }

    #[test]
    fn one_file_begins_anew() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(directory.path(), Some(100), 1);
        write(&mut log, b"first\n");
        write(&mut log, b"second\n");
        let text = std::fs::read_to_string(directory.path().join("c.log")).unwrap();
        assert!(text.contains("second") && !text.contains("first"), "{text}");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn pieces_are_lines_however_the_bytes_arrive() {
        let long = [b'x'; LINE_LEN_MAX + 5];
        let mut input = b"one\ntwo\n\n".to_vec();
        input.extend_from_slice(&long);
        input.extend_from_slice(b"\ntail");
        for cut in [1, 7, 4096, input.len()] {
            let mut pieces = Pieces::default();
            let mut found: Vec<Vec<u8>> = Vec::new();
            for chunk in input.chunks(cut) {
                pieces.push(chunk, |whole| found.extend(whole.map(<[u8]>::to_vec)));
            }
            found.extend(pieces.finish());
            let lens: Vec<usize> = found.iter().map(Vec::len).collect();
            assert_eq!(lens, [4, 4, 1, LINE_LEN_MAX, 6, 4]);
            assert_eq!(found.concat(), input);
        }
    }
}
