//! Pipes whose peer is another party's process (pipe(7)).

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use stdx::CancelToken;
use types::{Context, Error, Result};

/// How long the peer may be silent: as long as a person may read a page of output.
pub const SILENCE_MAX: Duration = Duration::from_secs(600);

/// How long the writer of a pipe may take to its first byte, if it cannot be told whether it still means to write.
const WRITER_LIMIT: Duration = Duration::from_secs(30);

/// How often a wait checks for cancellation.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// One end of a pipe. A read or write fails once the peer has been silent for too long, or the operation was cancelled;
/// with a plain `File` it would block its thread for ever. A regular file can be in its place.
#[derive(Debug)]
pub struct Pipe {
    /// Non-blocking.
    file: File,
    give_up: GiveUp,
}

#[derive(Debug)]
enum GiveUp {
    After(Duration),
    WhenCancelled(CancelToken),
}

impl Pipe {
    /// The open file description must not be shared: it becomes non-blocking.
    pub fn new(file: File, silence_max: Duration) -> io::Result<Pipe> {
        rustix::io::ioctl_fionbio(&file, true)?;
        Ok(Pipe { file, give_up: GiveUp::After(silence_max) })
    }

    /// A pipe whose peer may be silent until the operation is cancelled.
    pub fn cancellable(file: File, cancel: CancelToken) -> io::Result<Pipe> {
        rustix::io::ioctl_fionbio(&file, true)?;
        Ok(Pipe { file, give_up: GiveUp::WhenCancelled(cancel) })
    }

    /// Opens a path for reading: a file, or a pipe that the caller writes. `Unavailable` if the pipe gets no writer.
    pub fn open_source(path: &Path, cancel: CancelToken) -> Result<Pipe> {
        let what = || format!("open {}", path.display());
        // A blocking open would wait for a writer for ever.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from);
        let file = File::from(opened.context(what)?);
        let stat = rustix::fs::fstat(&file).map_err(io::Error::from).context(what)?;
        let has_end = cancel.is_never();
        let pipe = Pipe::cancellable(file, cancel).context(what)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {}
            // Before the first writer has opened the pipe, a read would return the end of file.
            FileType::Fifo if has_end => {
                if !crate::process::wait_readable(pipe.file.as_fd(), Some(WRITER_LIMIT)).context(what)? {
                    return Err(Error::unavailable(format!("{}: it has no writer", what())));
                }
            }
            FileType::Fifo => pipe.wait(PollFlags::IN).context(what)?,
            _ => {
                return Err(Error::invalid_argument(format!("{}: it is neither a file nor a pipe", what())));
            }
        }
        Ok(pipe)
    }

    /// Opens a pipe for writing that its caller reads. `Unavailable` if it has no reader.
    pub fn open_target(path: &Path, cancel: CancelToken) -> Result<Pipe> {
        let what = || format!("open pipe {}", path.display());
        // A blocking open would wait for a reader for ever.
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::open(path, flags, Mode::empty()) {
            Err(Errno::NXIO) => return Err(Error::unavailable(format!("{}: it has no reader", what()))),
            opened => File::from(opened.map_err(io::Error::from).context(what)?),
        };
        let stat = rustix::fs::fstat(&file).map_err(io::Error::from).context(what)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
            return Err(Error::invalid_argument(format!("{}: it is no pipe", what())));
        }
        Pipe::cancellable(file, cancel).context(what)
    }

    fn wait(&self, events: PollFlags) -> io::Result<()> {
        let ready = |limit: Duration| -> io::Result<bool> {
            let timeout = Timespec::try_from(limit).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&self.file, events)], Some(&timeout)) {
                Ok(count) => Ok(count > 0),
                Err(Errno::INTR) => Ok(true),
                Err(errno) => Err(errno.into()),
            }
        };
        match &self.give_up {
            GiveUp::After(limit) if ready(*limit)? => Ok(()),
            GiveUp::After(limit) => Err(silent(*limit)),
            GiveUp::WhenCancelled(cancel) => {
                while !ready(LOOK_EVERY)? {
                    cancel.check()?;
                }
                Ok(())
            }
        }
    }
}

/// The error for a peer that was silent for too long.
pub fn silent(time: Duration) -> io::Error {
    let words = format!("the other end was silent for {time:?}");
    io::Error::new(ErrorKind::TimedOut, words)
}

impl Read for Pipe {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.file.read(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait(PollFlags::IN)?,
                done => return done,
            }
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.file.write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait(PollFlags::OUT)?,
                done => return done,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    fn pipe(silence_max: Duration) -> (Pipe, Pipe) {
        let (reader, writer) = io::pipe().unwrap();
        let end = |fd: OwnedFd| Pipe::new(fd.into(), silence_max).unwrap();
        (end(reader.into()), end(writer.into()))
    }

    #[test]
    fn a_silent_pipe_times_out() {
        let (mut reader, mut writer) = pipe(Duration::from_millis(1));
        assert_eq!(reader.read(&mut [0]).unwrap_err().kind(), ErrorKind::TimedOut);
        let full = writer.write_all(&vec![0; 4 << 20]).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::TimedOut);
        assert!(full.to_string().contains("for 1ms"), "{full}");
    }

    #[test]
    fn a_cancellable_pipe_may_be_silent_until_it_is_cancelled() {
        let owner = stdx::CancelOnDrop::new();
        let (reader, mut writer) = io::pipe().unwrap();
        let mut reader = Pipe::cancellable(OwnedFd::from(reader).into(), owner.token()).unwrap();
        let reading = std::thread::spawn(move || {
            let mut bytes = [0];
            let first = reader.read(&mut bytes);
            (first.map(|_| bytes[0]), reader.read(&mut bytes))
        });
        writer.write_all(b"x").unwrap();
        drop(owner);
        let (first, second) = reading.join().unwrap();
        assert_eq!(first.unwrap(), b'x');
        assert!(second.unwrap_err().to_string().contains("gone away"));
    }

    #[test]
    fn bytes_pass_and_the_end_is_seen() {
        let (mut reader, mut writer) = pipe(SILENCE_MAX);
        let sent: Vec<u8> = (0..1 << 20).map(|number: u32| number.to_le_bytes()[1]).collect();
        let expected = sent.clone();
        let sender = std::thread::spawn(move || writer.write_all(&sent));
        let mut received = Vec::new();
        reader.read_to_end(&mut received).unwrap();
        sender.join().unwrap().unwrap();
        assert!(received == expected);
    }
}
