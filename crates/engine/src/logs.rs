//! Reads and follows a container's log: Docker's `json-file` lines, across rotated files.
//!
//! ```text
//! json.log.2 ──end──▶ json.log.1 (the previous one) ──end──▶ json.log (current) ──rotated──▶ the new json.log
//! ```
//!
//! Invariants
//! - A log is read in pieces of bounded size.
//! - A file is kept open while it is read, and left for the next one only when nothing more can be written to it: lines
//!   written during a rotation are not lost.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::engine::{LogLine, Logs};
use tokio::sync::mpsc;
use types::{ContainerId, Context, Error, Result, Timestamp};

use crate::Engine;
use crate::containers::{NO_LOG, Phase};
use crate::record::Extension;
use crate::times::time;

/// Name of the current log file in a container's directory.
pub(crate) const LOG_FILE: &str = "json.log";

/// How often a followed log is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Bytes read at once. Longer than any line: the shim splits output at 16 KiB.
const PIECE_LEN: usize = 256 << 10;

impl Engine {
    /// Sends a container's output. With `follow`, until the container ends.
    pub async fn logs(&self, logs: Logs, to: mpsc::Sender<LogLine>) -> Result<()> {
        let Logs { id, follow, tail, since, until } = logs;
        let (since, until) = (time("since", since)?, time("until", until)?);
        let (container, extension) = self.find_own(&id).await?;
        if extension.create.extras.log.driver == NO_LOG {
            return Err(Error::unimplemented(format!(
                "container {}: configured logging driver does not support reading: it was made with --log-driver {NO_LOG}, \
                 which keeps nothing of what it writes; `hoist attach` shows what comes",
                extension.name
            )));
        }
        let path = self.files(container.id.as_str()).join(LOG_FILE);
        let mut log = self.blocking(move |_| Log::open(&path, tail, follow)).await?;
        let mut has_ended = !follow;
        loop {
            let (lines, same) = self.blocking(move |_| Ok((log.next()?, log))).await?;
            log = same;
            match lines {
                Some(lines) => {
                    for line in lines {
                        // A line without a valid time may match.
                        let written: Option<Timestamp> = line.time.parse().ok();
                        if written.zip(since).is_some_and(|(written, since)| written < since) {
                            continue;
                        }
                        // All further lines are later still.
                        if written.zip(until).is_some_and(|(written, until)| written > until) {
                            return Ok(());
                        }
                        if to.send(line).await.is_err() {
                            return Ok(());
                        }
                    }
                }
                None if has_ended => return Ok(()),
                None => {
                    // Queried before the last read, so that no line is missed.
                    has_ended = self.is_logged(&container.id, &extension).await;
                    if !has_ended {
                        tokio::time::sleep(POLL_INTERVAL).await;
                    }
                }
            }
        }
    }

    /// Whether the log is complete. The shim writes remaining output until the task is deleted.
    async fn is_logged(&self, id: &ContainerId, extension: &Extension) -> bool {
        let state = self.state_of(id, extension).await;
        // `follow` does not wait for a container to be started.
        let never_ran = state.phase == Phase::Created;
        !state.is_alive() && (never_ran || !matches!(self.task_of(id), Ok(Some(_))))
    }
}

/// A position in a container's log.
struct Log {
    path: PathBuf,
    /// `None` while there is no log file.
    file: Option<File>,
    /// Offset of the next byte to read.
    at: u64,
    /// Remaining bytes to read; `None` if the log is followed.
    left: Option<u64>,
}

impl Log {
    /// Opens the log at its first line, or `tail` lines before its end.
    fn open(path: &Path, tail: Option<u64>, follow: bool) -> Result<Log> {
        let mut log = Log { path: path.to_owned(), file: None, at: 0, left: None };
        log.begin(tail, follow).context(|| format!("read log {}", path.display()))?;
        Ok(log)
    }

    fn begin(&mut self, tail: Option<u64>, follow: bool) -> io::Result<()> {
        let (mut wanted, mut left) = (tail, 0);
        for file in files(&self.path) {
            let file = file?;
            if let Some(newer) = &self.file
                && is_same(&file, newer)?
            {
                // The log was rotated in between.
                continue;
            }
            let len = file.metadata()?.len();
            let (at, found) = wanted.map_or(Ok((0, 0)), |lines| before_end(&file, len, lines))?;
            left += len - at;
            (self.file, self.at) = (Some(file), at);
            wanted = wanted.map(|lines| lines - found);
            if at > 0 || wanted == Some(0) {
                break;
            }
        }
        self.left = (!follow).then_some(left);
        Ok(())
    }

    /// The next lines, at most a piece; `None` at the current end.
    fn next(&mut self) -> Result<Option<Vec<LogLine>>> {
        let path = self.path.clone();
        let what = || format!("read log {}", path.display());
        loop {
            // Looked up first: a file that has a successor is complete.
            let successor = self.successor().context(what)?;
            if self.left == Some(0) {
                return Ok(None);
            }
            let piece = self.read().context(what)?;
            if piece.is_some() {
                return Ok(piece);
            }
            if successor.is_none() {
                return Ok(None);
            }
            (self.file, self.at) = (successor, 0);
        }
    }

    fn read(&mut self) -> io::Result<Option<Vec<LogLine>>> {
        let Some(file) = &self.file else { return Ok(None) };
        let len = file.metadata()?.len();
        if len < self.at {
            // A log with a single file was truncated.
            self.at = 0;
        }
        let wanted = self.left.map_or(len - self.at, |left| left.min(len - self.at));
        let mut piece = vec![0; usize::try_from(wanted).unwrap_or(PIECE_LEN).min(PIECE_LEN)];
        let read = file.read_at(&mut piece, self.at)?;
        piece.truncate(read);
        let whole = match piece.iter().rposition(|byte| *byte == b'\n') {
            Some(newline) => newline + 1,
            // No line is that long: the file is damaged.
            None if read == PIECE_LEN => read,
            None => return Ok(None),
        };
        self.at += whole as u64;
        self.left = self.left.map(|left| left.saturating_sub(whole as u64));
        // A line damaged by a crash is skipped.
        let lines = piece[..whole].split_inclusive(|byte| *byte == b'\n');
        Ok(Some(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect()))
    }

    /// The file that follows the current one, if there is one by now.
    fn successor(&self) -> io::Result<Option<File>> {
        let mut newer = None;
        for file in files(&self.path) {
            let file = file?;
            if let Some(own) = &self.file
                && is_same(&file, own)?
            {
                return Ok(newer);
            }
            newer = Some(file);
        }
        // The current file was removed: continue with the oldest remaining one.
        Ok(newer)
    }
}

/// The files of a log, newest first. A concurrent rotation renames files in the same direction, so that a file may
/// appear twice, but none is missed.
pub(crate) fn files(path: &Path) -> impl Iterator<Item = io::Result<File>> {
    let (mut age, mut gap) = (0, 0);
    std::iter::from_fn(move || {
        // During a rotation one file is missing for a moment; the log ends where two are.
        while gap < 2 {
            let name = if age == 0 { path.to_owned() } else { rotated(path, age) };
            age += 1;
            match File::open(name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => gap += 1,
                opened => {
                    gap = 0;
                    return Some(opened);
                }
            }
        }
        None
    })
}

fn rotated(path: &Path, age: u32) -> PathBuf {
    PathBuf::from(format!("{}.{age}", path.display()))
}

fn is_same(one: &File, other: &File) -> io::Result<bool> {
    let (one, other) = (one.metadata()?, other.metadata()?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

/// The offset that is `lines` lines before `end`, and the number of lines found, if fewer. `end` is the length that the
/// caller has read: the file may have grown since.
fn before_end(file: &File, mut end: u64, lines: u64) -> io::Result<(u64, u64)> {
    let mut buffer = vec![0; PIECE_LEN];
    let mut found = 0;
    while end > 0 {
        let begin = end.saturating_sub(PIECE_LEN as u64);
        let piece = &mut buffer[..(end - begin) as usize];
        match file.read_exact_at(piece, begin) {
            // A log with a single file was truncated meanwhile: what is there is all new.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok((0, 0)),
            read => read?,
        }
        for (index, _) in piece.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            if found == lines {
                return Ok((begin + index as u64 + 1, found));
            }
            found += 1;
        }
        end = begin;
    }
    Ok((0, found))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    fn line(number: usize) -> String {
        format!("{{\"log\":\"{number}\\n\",\"stream\":\"stdout\",\"time\":\"\"}}\n")
    }

    fn add(path: &Path, numbers: std::ops::Range<usize>) {
        let mut file = File::options().create(true).append(true).open(path).unwrap();
        for number in numbers {
            file.write_all(line(number).as_bytes()).unwrap();
        }
    }

    /// Rotates like the shim, for a log of `files_max` files.
    fn rotate_of(path: &Path, files_max: u32) {
        for age in (1..files_max - 1).rev() {
            let _none_yet = fs::rename(rotated(path, age), rotated(path, age + 1));
        }
        fs::rename(path, rotated(path, 1)).unwrap();
    }

    fn rotate(path: &Path) {
        rotate_of(path, 2);
    }

    fn rest(log: &mut Log) -> Vec<usize> {
        let pieces = std::iter::from_fn(|| log.next().unwrap());
        pieces.flatten().map(|line| line.log.trim().parse().unwrap()).collect()
    }

    #[test]
    fn the_last_lines_are_found_over_two_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("json.log");
        assert!(rest(&mut Log::open(&path, None, false).unwrap()).is_empty());
        add(&path, 0..20_000);
        rotate(&path);
        add(&path, 20_000..20_010);
        for (tail, first) in
            [(None, 0), (Some(0), 20_010), (Some(3), 20_007), (Some(10), 20_000), (Some(11), 19_999)]
        {
            for follow in [false, true] {
                let lines = rest(&mut Log::open(&path, tail, follow).unwrap());
                assert_eq!(lines, (first..20_010).collect::<Vec<_>>(), "{tail:?} {follow}");
            }
        }
        assert_eq!(rest(&mut Log::open(&path, Some(1 << 40), false).unwrap()).len(), 20_010);
    }

    #[test]
    fn the_last_lines_are_those_before_the_end_that_was_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("json.log");
        add(&path, 0..3);
        let file = File::open(&path).unwrap();
        let (end, line_len) = (file.metadata().unwrap().len(), line(0).len() as u64);
        add(&path, 3..9);
        assert_eq!(before_end(&file, end, 0).unwrap(), (end, 0));
        assert_eq!(before_end(&file, end, 1).unwrap(), (2 * line_len, 1));
        assert_eq!(before_end(&file, end, 9).unwrap(), (0, 3));
        // Truncated, and shorter than it was.
        File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        add(&path, 9..10);
        assert_eq!(before_end(&file, end, 1).unwrap(), (0, 0));
    }

    #[test]
    fn what_is_written_around_a_rotation_is_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("json.log");
        add(&path, 0..5);
        let mut log = Log::open(&path, None, true).unwrap();
        assert_eq!(rest(&mut log), [0, 1, 2, 3, 4]);
        // Written after the last read, before the next one.
        add(&path, 5..7);
        rotate(&path);
        add(&path, 7..9);
        assert_eq!(rest(&mut log), [5, 6, 7, 8]);
        add(&path, 9..10);
        rotate(&path);
        add(&path, 10..12);
        rotate(&path);
        add(&path, 12..14);
        assert_eq!(rest(&mut log), [9, 10, 11, 12, 13], "the one that was held is gone by now, and was read");
        // A log of one file, truncated.
        File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        add(&path, 14..15);
        assert_eq!(rest(&mut log), [14]);
    }

    #[test]
    fn a_log_may_have_many_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("json.log");
        let mut followed = Log::open(&path, None, true).unwrap();
        for file in 0..4 {
            add(&path, file * 10..file * 10 + 10);
            if file < 3 {
                rotate_of(&path, 4);
            }
        }
        for (tail, first) in [(None, 0), (Some(0), 40), (Some(10), 30), (Some(11), 29), (Some(35), 5)] {
            let lines = rest(&mut Log::open(&path, tail, false).unwrap());
            assert_eq!(lines, (first..40).collect::<Vec<_>>(), "{tail:?}");
        }
        assert_eq!(rest(&mut followed), (0..40).collect::<Vec<_>>());
        rotate_of(&path, 4);
        add(&path, 40..41);
        rotate_of(&path, 4);
        add(&path, 41..42);
        assert_eq!(rest(&mut followed), [40, 41]);
        // In the middle of a rotation that has removed the oldest file.
        fs::rename(rotated(&path, 2), rotated(&path, 3)).unwrap();
        assert_eq!(rest(&mut Log::open(&path, None, false).unwrap()), (30..42).collect::<Vec<_>>());
    }

    #[test]
    fn log_reads_are_bounded_even_while_the_log_grows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("json.log");
        add(&path, 0..50_000);
        let mut log = Log::open(&path, None, false).unwrap();
        let mut read = 0;
        while let Some(lines) = log.next().unwrap() {
            assert!(lines.len() * line(0).len() <= PIECE_LEN);
            read += lines.len();
            add(&path, 0..lines.len());
        }
        assert_eq!(read, 50_000);
        // Damaged: a line that is too long, with others after it.
        fs::write(&path, vec![b'x'; PIECE_LEN + 10]).unwrap();
        add(&path, 0..0);
        File::options().append(true).open(&path).unwrap().write_all(b"\n").unwrap();
        add(&path, 1..2);
        assert_eq!(rest(&mut Log::open(&path, None, false).unwrap()), [1]);
    }
}
