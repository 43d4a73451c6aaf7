//! Reads with an upper bound.

use std::io::{self, ErrorKind, Read};

/// All bytes of a source; `None` if there are more than `len_max`.
pub fn read_at_most(from: impl Read, len_max: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let len = from.take(len_max.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((len as u64 <= len_max).then_some(bytes))
}

/// Fills the buffer, and returns how many bytes it read: fewer than its length only at the end of the source.
pub fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte at a time, and is interrupted before each.
    struct Trickle<'a>(&'a [u8], bool);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(ErrorKind::Interrupted.into());
            }
            let len = buffer.len().min(1);
            self.0.read(&mut buffer[..len])
        }
    }

    #[test]
    fn a_source_longer_than_the_limit_is_none() {
        let all = Some(&b"hello"[..]);
        for (len_max, expected) in [(4, None), (5, all), (u64::MAX, all)] {
            let read = read_at_most(Trickle(b"hello", false), len_max).unwrap();
            assert_eq!(read.as_deref(), expected, "{len_max}");
        }
    }

    #[test]
    fn fill_reads_until_the_buffer_is_full_or_the_source_ends() {
        let (mut source, mut buffer) = (Trickle(b"hello", false), [0; 3]);
        assert_eq!(fill(&mut source, &mut buffer).unwrap(), 3);
        assert_eq!(&buffer, b"hel");
        assert_eq!(fill(&mut source, &mut buffer).unwrap(), 2);
        assert_eq!(&buffer[..2], b"lo");
        assert_eq!(fill(&mut source, &mut buffer).unwrap(), 0);
    }
}
