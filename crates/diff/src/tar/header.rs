//! The 512 bytes before each entry (tar(5)).

use std::io;
use std::ops::Range;

use super::BLOCK;

/// The position of the checksum field.
const CHECKSUM: Range<usize> = 148..156;

/// Most octal digits that always fit in an `i64`. No field has so many.
const OCTAL_LEN_MAX: usize = 20;

/// Offset and length of each data region in a sparse file.
pub(super) type Regions = Vec<(u64, u64)>;

pub(super) struct Header<'a>(pub(super) &'a [u8; BLOCK]);

impl<'a> Header<'a> {
    pub(super) fn is_end(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    pub(super) fn typeflag(&self) -> u8 {
        self.0[156]
    }

    pub(super) fn name(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        // The prefix field is POSIX's. GNU headers, with another magic number, use its bytes for other fields; star's,
        // with `tar` at the end, have a shorter one.
        let prefix = match (&self.0[257..263], &self.0[508..]) {
            (b"ustar\0", b"tar\0") => text(&self.0[345..476]),
            (b"ustar\0", _) => text(&self.0[345..500]),
            _ => b"",
        };
        if prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    pub(super) fn link_name(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    pub(super) fn mode(&self) -> io::Result<u64> {
        number(&self.0[100..108], "mode")
    }

    pub(super) fn uid(&self) -> io::Result<u64> {
        number(&self.0[108..116], "uid")
    }

    pub(super) fn gid(&self) -> io::Result<u64> {
        number(&self.0[116..124], "gid")
    }

    pub(super) fn size(&self) -> io::Result<u64> {
        number(&self.0[124..136], "size")
    }

    /// Seconds since 1970, negative in some GNU archives.
    pub(super) fn mtime(&self) -> io::Result<i64> {
        signed(&self.0[136..148], "mtime")
    }

    pub(super) fn device(&self) -> io::Result<(u64, u64)> {
        Ok((number(&self.0[329..337], "device major")?, number(&self.0[337..345], "device minor")?))
    }

    /// Of an old GNU sparse file: its first data regions, whether a block with more follows, and the file's size.
    pub(super) fn old_sparse(&self) -> io::Result<(Regions, bool, u64)> {
        let mut regions = Vec::new();
        sparse_regions(&self.0[386..386 + 4 * 24], &mut regions)?;
        Ok((regions, self.0[482] == 1, number(&self.0[483..495], "sparse size")?))
    }

    /// Verifies the checksum: the sum of all bytes, those of the checksum field taken as blanks. POSIX sums unsigned
    /// bytes; some old programs summed signed ones.
    pub(super) fn check(&self) -> io::Result<()> {
        let stored = number(&self.0[CHECKSUM], "checksum")?;
        let blanks = u32::from(b' ') * 8;
        // Summing the whole block first, without a branch for each byte, lets the compiler vectorize the loop.
        let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        if stored == u64::from(sum(&self.0[..]) - sum(&self.0[CHECKSUM]) + blanks) {
            return Ok(());
        }
        self.check_signed(stored)
    }

    /// Verifies the checksum as a sum of signed bytes.
    fn check_signed(&self, stored: u64) -> io::Result<()> {
        let blanks = i64::from(b' ') * 8;
        let sum = |bytes: &[u8]| bytes.iter().map(|byte| i64::from(byte.cast_signed())).sum::<i64>();
        if i64::try_from(stored) == Ok(sum(&self.0[..]) - sum(&self.0[CHECKSUM]) + blanks) {
            return Ok(());
        }
        Err(bad("the header's checksum is wrong: this is no tar archive, or it is damaged"))
    }
}

/// Adds the regions of an old GNU map, a 12-byte offset and size each, up to the first empty one.
pub(super) fn sparse_regions(bytes: &[u8], regions: &mut Vec<(u64, u64)>) -> io::Result<()> {
    for region in bytes.chunks_exact(24) {
        if region[0] == 0 {
            return Ok(());
        }
        regions.push((number(&region[..12], "sparse offset")?, number(&region[12..], "sparse size")?));
    }
    Ok(())
}

fn text(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    &bytes[..end]
}

fn number(bytes: &[u8], what: &str) -> io::Result<u64> {
    u64::try_from(signed(bytes, what)?).map_err(|_| bad(&format!("{what} is negative")))
}

/// Octal digits, or GNU's base 256 when the first bit is set.
fn signed(bytes: &[u8], what: &str) -> io::Result<i64> {
    let wrong = || bad(&format!("{what} is not a number"));
    if bytes[0] & 0x80 != 0 {
        let negative = bytes[0] & 0x40 != 0;
        let first = if negative { bytes[0] } else { bytes[0] & 0x7f };
        let mut value = if negative { i128::from(first.cast_signed()) } else { i128::from(first) };
        for byte in &bytes[1..] {
            value = value.checked_mul(256).ok_or_else(wrong)? + i128::from(*byte);
        }
        return i64::try_from(value).map_err(|_| wrong());
    }
    // Some writers pad with zero bytes before the digits too, which Go skips. Sizes must be read as other readers read
    // them, since they decide where the next header is.
    let mut digits = bytes;
    while let [0 | b' ', rest @ ..] | [rest @ .., 0 | b' '] = digits {
        digits = rest;
    }
    let digits = text(digits);
    if digits.len() > OCTAL_LEN_MAX || !digits.iter().all(|digit| matches!(digit, b'0'..=b'7')) {
        return Err(wrong());
    }
    // An empty field is 0.
    Ok(digits.iter().fold(0, |value, digit| value * 8 + i64::from(digit - b'0')))
}

pub(super) fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_with_blanks_around_or_of_base_256() {
        let numbers: [(&[u8], Option<i64>); 15] = [
            (b"0000644\0", Some(0o644)),
            (b" 644 \0\0\0", Some(0o644)),
            (b"77777777777 ", Some(0o77_777_777_777)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"\0\0 644\0 ", Some(0o644)),
            (b"644\0junk", Some(0o644)),
            (b"     -7\0", None),
            (b"+000644\0", None),
            (b"1000 \0junk", None),
            (b"6 4\0", None),
            (b"648\0", None),
            (b"777777777777777777777777", None),
            (b"\x80\0\0\0\0\0\x01\x02", Some(0x102)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
        ];
        for (bytes, value) in numbers {
            assert_eq!(signed(bytes, "number").ok(), value, "{:?}", bytes.escape_ascii().to_string());
        }
    }

    #[test]
    fn a_checksum_is_of_unsigned_bytes_or_of_signed_ones() {
        let mut block = [0; BLOCK];
        block[..4].copy_from_slice(b"na\xc3\xaf");
        // Of the name, and of the checksum's own eight bytes as blanks.
        let (unsigned, signed) = (0x6e + 0x61 + 0xc3 + 0xaf + 256, 0x6e + 0x61 + 0xc3 + 0xaf + 256 - 512);
        for (sum, is_right) in [(unsigned, true), (signed, true), (unsigned + 1, false), (signed - 1, false)]
        {
            block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            assert_eq!(Header(&block).check().is_ok(), is_right, "{sum}");
        }
    }
}
