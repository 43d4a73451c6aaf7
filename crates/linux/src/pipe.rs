//! Pipes whose other end is a stranger's (pipe(7)).

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long the other end may do nothing: as long as a person may look at a page of what comes.
pub const SILENCE_MAX: Duration = Duration::from_secs(600);

/// One end of a pipe. A read or write that finds the other end silent for too long fails, where one of a plain file would
/// hold its thread for ever. Files, which are never silent, may be in its place.
#[derive(Debug)]
pub struct Pipe {
    /// It does not block.
    file: File,
    silence_max: Duration,
}

impl Pipe {
    /// The description must be ours alone: it does not block from here on.
    pub fn new(file: File, silence_max: Duration) -> io::Result<Pipe> {
        rustix::io::ioctl_fionbio(&file, true)?;
        Ok(Pipe { file, silence_max })
    }

    fn wait(&self, events: PollFlags) -> io::Result<()> {
        let timeout = Timespec::try_from(self.silence_max).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.file, events)], Some(&timeout)) {
            Ok(0) => Err(silent(self.silence_max)),
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Why whoever falls silent is given up.
pub fn silent(time: Duration) -> io::Error {
    let words = format!("the other end neither sent nor took anything for {time:?}");
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
    fn whoever_is_silent_is_given_up() {
        let (mut reader, mut writer) = pipe(Duration::from_millis(1));
        assert_eq!(reader.read(&mut [0]).unwrap_err().kind(), ErrorKind::TimedOut);
        let full = writer.write_all(&vec![0; 4 << 20]).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::TimedOut);
        assert!(full.to_string().contains("for 1ms"), "{full}");
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
