//! Finds the end of the next frame of a zstd stream, or the next member of a gzip file, without inflating it.
//!
//! ```text
//! zstd  header ─▶ header of a block ─▶ … of the last ─▶ checksum         RFC 8878, section 3.1.1
//! gzip  header with the field `BC` ─▶ length                             SAM specification, section 4.1
//!       header without              ─▶ the next header that is like it   RFC 1952, section 2.2
//! ```
//!
//! The result is a guess: it counts once the part before it was inflated and ended there.

use crate::Compression;

/// Most plain and compressed bytes of a part. The ends of longer parts are not searched for.
pub(super) const PLAIN_LEN_MAX: usize = 4 << 20;
pub(super) const LEN_MAX: usize = PLAIN_LEN_MAX + (64 << 10);
/// Most bytes that are searched for the header of the next gzip member.
const SEARCH_LEN: usize = 1 << 20;

/// Most bytes of a zstd frame header.
pub(super) const HEADER_LEN_MAX: usize = 18;
/// Longest window that a decoder accepts, in bytes.
const WINDOW_LEN_MAX: u64 = 1 << 27;
/// Most plain bytes of a zstd block.
const BLOCK_LEN_MAX: u64 = 128 << 10;

/// Bytes of an empty gzip member, and of its header.
const MEMBER_LEN_MIN: usize = 18;
const MEMBER_HEADER_LEN: usize = 10;

/// A zstd frame or a gzip member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Compressed bytes.
    pub(super) len: usize,
    /// Most plain bytes.
    pub(super) plain_len_max: usize,
    /// Bytes of a window that the decoder holds beside its output.
    pub(super) window_len: usize,
}

/// The result of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Part(Part),
    /// The search needs this many bytes of the part to go on.
    More(usize),
    /// The end cannot be told without inflating the part, or the part is too long.
    Unknown,
}

/// The search for the end of one part, which goes on as more of its bytes arrive.
#[derive(Default)]
pub(super) struct BoundarySearch {
    /// Bytes that were searched.
    seen: usize,
    /// zstd blocks in them.
    blocks: u64,
}

impl BoundarySearch {
    /// Searches `bytes`, which begin where the part does.
    pub(super) fn search(&mut self, compression: Compression, bytes: &[u8]) -> Next {
        match compression {
            Compression::None => Next::Unknown,
            Compression::Gzip => self.member(bytes),
            Compression::Zstd => self.frame(bytes),
        }
    }

    fn frame(&mut self, bytes: &[u8]) -> Next {
        if let [0x50..=0x5f, 0x2a, 0x4d, 0x18, rest @ ..] = bytes {
            let Some(len) = rest.first_chunk() else { return Next::More(8) };
            return part(bytes, 8 + u32::from_le_bytes(*len) as usize, 0, 0);
        }
        if bytes.len() < HEADER_LEN_MAX {
            return Next::More(HEADER_LEN_MAX);
        }
        let Some(header) = FrameHeader::read(bytes).filter(|header| header.is_usual) else {
            return Next::Unknown;
        };
        self.seen = self.seen.max(header.len);
        let block_len_max = header.window_len.min(BLOCK_LEN_MAX);
        loop {
            let Some(field) = bytes.get(self.seen..self.seen + 3) else { return Next::More(self.seen + 3) };
            let field = u32::from_le_bytes([field[0], field[1], field[2], 0]);
            let (is_last, kind, len) = (field & 1 == 1, field >> 1 & 3, u64::from(field >> 3));
            if kind == 3 || len > block_len_max {
                return Next::Unknown;
            }
            // An RLE block has one byte, which it repeats `len` times; others have `len` bytes.
            let end = self.seen + 3 + if kind == 1 { 1 } else { len as usize };
            let blocks = self.blocks + 1;
            let plain_len_max = header.content_len.unwrap_or(blocks * block_len_max);
            if plain_len_max > PLAIN_LEN_MAX as u64 || end > LEN_MAX {
                return Next::Unknown;
            }
            if is_last {
                let end = end + if header.has_checksum { 4 } else { 0 };
                // If the header does not state the content's length, the decoder may keep a window, as far as it is
                // filled, since it cannot know that the output fits into the caller's buffer.
                let window_len = if header.content_len.is_some() { 0 } else { header.window_len };
                return part(bytes, end, plain_len_max as usize, window_len.min(plain_len_max) as usize);
            }
            (self.seen, self.blocks) = (end, blocks);
        }
    }

    fn member(&mut self, bytes: &[u8]) -> Next {
        let Some(header) = bytes.get(..MEMBER_LEN_MIN) else { return Next::More(MEMBER_LEN_MIN) };
        if !header.starts_with(&[0x1f, 0x8b, 8]) {
            return Next::Unknown;
        }
        if header[3] & 4 != 0 {
            let end = 12 + usize::from(u16::from_le_bytes([header[10], header[11]]));
            let Some(extra) = bytes.get(12..end) else { return Next::More(end) };
            if let Some(len) = len_by_extra(extra) {
                return member(bytes, len);
            }
        }
        // Members of one file have equal headers, but for the time.
        let is_like = |other: &[u8]| other[..4] == header[..4] && other[8..] == header[8..MEMBER_HEADER_LEN];
        let mut at = self.seen.max(MEMBER_LEN_MIN);
        while let Some(ahead) = bytes.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == 0x1f)) {
            at += ahead;
            match bytes.get(at..at + MEMBER_HEADER_LEN) {
                Some(other) if is_like(other) => return member(bytes, at),
                Some(_) => at += 1,
                None => break,
            }
        }
        // The last bytes may be the beginning of a header.
        self.seen = bytes.len().saturating_sub(MEMBER_HEADER_LEN - 1).max(self.seen);
        if bytes.len() < SEARCH_LEN { Next::More(bytes.len() + 1) } else { Next::Unknown }
    }
}

fn part(bytes: &[u8], len: usize, plain_len_max: usize, window_len: usize) -> Next {
    match len {
        0..=LEN_MAX if len <= bytes.len() => Next::Part(Part { len, plain_len_max, window_len }),
        0..=LEN_MAX => Next::More(len),
        _ => Next::Unknown,
    }
}

/// A gzip member of `len` bytes. Its last four are the length of its plain bytes (ISIZE).
fn member(bytes: &[u8], len: usize) -> Next {
    if len < MEMBER_LEN_MIN {
        return Next::Unknown;
    }
    let Some(plain_len) = bytes.get(len - 4..len).and_then(|field| field.first_chunk()) else {
        return Next::More(len);
    };
    match u32::from_le_bytes(*plain_len) as usize {
        plain_len @ 0..=PLAIN_LEN_MAX => part(bytes, len, plain_len, 0),
        _ => Next::Unknown,
    }
}

/// The length of a BGZF member, from the extra field of its header.
fn len_by_extra(mut extra: &[u8]) -> Option<usize> {
    while let [first, second, low, high, rest @ ..] = extra {
        let (field, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes([*low, *high])))?;
        if let (b'B', b'C', [low, high]) = (first, second, field) {
            return Some(usize::from(u16::from_le_bytes([*low, *high])) + 1);
        }
        extra = rest;
    }
    None
}

/// The header of a zstd frame (RFC 8878, section 3.1.1.1).
struct FrameHeader {
    /// Bytes of the header itself.
    len: usize,
    /// Bytes of history.
    window_len: u64,
    /// Plain bytes, if the header states them.
    content_len: Option<u64>,
    has_checksum: bool,
    /// Whether the frame needs no dictionary, sets no reserved bit and has a window that the decoder accepts.
    is_usual: bool,
}

impl FrameHeader {
    fn read(bytes: &[u8]) -> Option<FrameHeader> {
        let [0x28, 0xb5, 0x2f, 0xfd, descriptor, rest @ ..] = bytes else { return None };
        let is_single_segment = descriptor & 0x20 != 0;
        let window_field_len = if is_single_segment { 0 } else { 1 };
        let dictionary_len = [0, 1, 2, 4][usize::from(descriptor & 3)];
        let content_field_len = match (descriptor >> 6, is_single_segment) {
            (0, false) => 0,
            (0, true) => 1,
            (flag, _) => 1 << flag,
        };
        let window = *rest.first()?;
        let begin = window_field_len + dictionary_len;
        let field = rest.get(begin..begin + content_field_len)?;
        let number = field.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let content_len = match content_field_len {
            0 => None,
            2 => Some(number + 256),
            _ => Some(number),
        };
        let base = 1_u64 << (10 + (window >> 3));
        let window_len =
            if is_single_segment { content_len? } else { base + base / 8 * u64::from(window & 7) };
        Some(FrameHeader {
            len: 5 + begin + content_field_len,
            window_len,
            content_len,
            has_checksum: descriptor & 4 != 0,
            is_usual: dictionary_len == 0 && descriptor & 8 == 0 && window_len <= WINDOW_LEN_MAX,
        })
    }
}

/// Window length of a zstd frame, in bytes; 0 for a skippable frame. A header that cannot be read counts as the longest
/// window that a decoder accepts.
pub(super) fn window_len(prefix: &[u8]) -> u64 {
    if let [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] = prefix {
        return 0;
    }
    FrameHeader::read(prefix).map_or(WINDOW_LEN_MAX, |header| header.window_len.min(WINDOW_LEN_MAX))
}
