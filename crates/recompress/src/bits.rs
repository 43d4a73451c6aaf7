//! Reads and writes the bits of a deflate stream (RFC 1951 section 3.1.1), the lowest of a byte first.

use std::io::{self, Read, Write};

const BUFFER_LEN: usize = 64 * 1024;

pub(crate) struct BitReader<R> {
    source: R,
    buffer: Vec<u8>,
    at: usize,
    bits: u64,
    count: u32,
    ended: bool,
}

impl<R: Read> BitReader<R> {
    pub(crate) fn new(source: R) -> BitReader<R> {
        BitReader { source, buffer: Vec::new(), at: 0, bits: 0, count: 0, ended: false }
    }

    /// The next bits, with zeros behind the end of the source.
    pub(crate) fn peek(&mut self, count: u32) -> io::Result<u32> {
        while self.count < count {
            let Some(byte) = self.next_byte()? else { break };
            self.bits |= u64::from(byte) << self.count;
            self.count += 8;
        }
        Ok(u32::try_from(self.bits & ((1 << count) - 1)).expect("at most 32 bits"))
    }

    /// Consumes bits that were peeked.
    pub(crate) fn skip(&mut self, count: u32) -> io::Result<()> {
        if count > self.count {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.bits >>= count;
        self.count -= count;
        Ok(())
    }

    pub(crate) fn take(&mut self, count: u32) -> io::Result<u32> {
        let bits = self.peek(count)?;
        self.skip(count).map(|()| bits)
    }

    /// Consumes the remaining bits of the current byte, and returns their number and value.
    pub(crate) fn align(&mut self) -> io::Result<(u32, u32)> {
        let count = self.count % 8;
        Ok((count, self.take(count)?))
    }

    /// The next whole byte; `None` at the end.
    pub(crate) fn byte(&mut self) -> io::Result<Option<u8>> {
        if self.count >= 8 {
            let byte = u8::try_from(self.bits & 0xFF).expect("eight bits");
            self.skip(8)?;
            return Ok(Some(byte));
        }
        self.next_byte()
    }

    fn next_byte(&mut self) -> io::Result<Option<u8>> {
        if self.at == self.buffer.len() {
            if self.ended {
                return Ok(None);
            }
            self.buffer.resize(BUFFER_LEN, 0);
            let len = self.source.read(&mut self.buffer)?;
            self.buffer.truncate(len);
            self.at = 0;
            self.ended = len == 0;
            if self.ended {
                return Ok(None);
            }
        }
        self.at += 1;
        Ok(Some(self.buffer[self.at - 1]))
    }
}

pub(crate) struct BitWriter<W: Write> {
    to: W,
    bits: u64,
    count: u32,
}

impl<W: Write> BitWriter<W> {
    pub(crate) fn new(to: W) -> BitWriter<W> {
        BitWriter { to, bits: 0, count: 0 }
    }

    pub(crate) fn put(&mut self, count: u32, bits: u32) -> io::Result<()> {
        self.bits |= u64::from(bits) << self.count;
        self.count += count;
        if self.count >= 32 {
            self.to.write_all(&u32::try_from(self.bits & 0xFFFF_FFFF).expect("32 bits").to_le_bytes())?;
            self.bits >>= 32;
            self.count -= 32;
        }
        Ok(())
    }

    /// The number of bits that are missing to a whole byte.
    pub(crate) fn missing(&self) -> u32 {
        (8 - self.count % 8) % 8
    }

    /// Writes whole bytes. [`BitWriter::missing`] must be 0.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        let whole = usize::try_from(self.count / 8).expect("at most four");
        self.to.write_all(&self.bits.to_le_bytes()[..whole])?;
        (self.bits, self.count) = (0, 0);
        self.to.write_all(bytes)
    }
}
