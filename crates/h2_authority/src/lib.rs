//! Rewrites an invalid `:authority` in HTTP/2 requests while their bytes pass. Bytes in, bytes out, no IO.
//!
//! Clients built on gRPC's C core (Python, C++, Ruby, PHP) since 1.57 send the percent-encoded socket path as
//! `:authority`, and Java clients send it unencoded. RFC 3986 allows neither as a host, so HTTP libraries refuse the
//! call, although on a Unix socket nobody uses the name. Each byte of such a value that a host name may not contain
//! is replaced by one that it may:
//!
//! ```text
//! connection  preface │ frame …
//! frame       length u24 │ type u8 │ flags u8 │ stream u32 │ payload                         RFC 9113 §4.1
//! HEADERS     pad length u8, if PADDED │ 5 bytes, if PRIORITY │ fragment │ padding           §6.2
//! CONTINUATION  fragment: continues the header block                                         §6.10
//! block       field …: an index │ a size │ a name, by index or as a string, and a value      RFC 7541 §6
//! value       :authority  %2Frun%2Fhoist%2Fhoist.sock  ──▶  -2Frun-2Fhoist-2Fhoist.sock
//! ```
//!
//! Invariants
//! - No byte is added or removed, and a value keeps its decoded length: frames keep their lengths, and the dynamic
//!   tables of both sides evict the same entries. A later reference to a table entry finds it rewritten.
//! - A valid authority stays as it is, and so does everything else.
//! - Nothing is refused here. If a header block is malformed, or split over frames in the middle of a number or of
//!   this one value (which stands at the beginning of a block), the rest of it is passed unchanged, for the server to judge.
//! - At most [`HELD_MAX`] bytes are held back, and the server could not process those alone.
#![forbid(unsafe_code)]

mod huffman;

use http::uri::Authority;

/// The length of `PRI * HTTP/2.0…`, the client's connection preface (RFC 9113 §3.4).
const PREFACE_LEN: usize = 24;
const FRAME_HEADER_LEN: usize = 9;
const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const PRIORITY_LEN: usize = 5;

/// Index of `:authority` in the static table (RFC 7541 appendix A).
const AUTHORITY_INDEX: usize = 1;
const AUTHORITY_NAME: &[u8] = b":authority";
const AUTHORITY_NAME_IN_CODE: &[u8] = &[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f];
/// Longer than any socket path (unix(7)) with each byte percent-encoded.
const VALUE_LEN_MAX: usize = 1024;
/// Bytes of a number at most: enough for any length or index that a server accepts.
const NUMBER_LEN_MAX: usize = 5;
/// Bytes held back at most: a whole value and its length.
pub const HELD_MAX: usize = NUMBER_LEN_MAX + VALUE_LEN_MAX;

/// The client-to-server direction of a connection.
pub struct Rewriter {
    next: Next,
    block: Block,
}

/// What the next byte belongs to.
#[derive(Clone, Copy)]
enum Next {
    FrameHeader,
    /// This many bytes pass unread.
    Skipped(usize),
    /// The pad length and the priority of a HEADERS frame.
    FragmentHead {
        payload: usize,
        flags: u8,
    },
    Fragment {
        left: usize,
        padding: usize,
        is_last: bool,
    },
}

/// Position in a header block, whose fragments may come in several frames.
#[derive(Clone, Copy)]
enum Block {
    Field,
    Name,
    Value {
        is_authority: bool,
    },
    /// This many bytes of a string pass, then comes a value or the next field.
    Skipped {
        left: usize,
        then_value: bool,
    },
    /// The rest of the block passes unread. Also the state between blocks.
    Left,
}

/// Length of a unit that must be seen whole before it passes.
enum Unit {
    /// Its length in bytes.
    Whole(usize),
    /// More bytes are needed.
    Short,
    Malformed,
}

impl Default for Rewriter {
    fn default() -> Rewriter {
        Rewriter { next: Next::Skipped(PREFACE_LEN), block: Block::Left }
    }
}

impl Rewriter {
    /// Rewrites `bytes` in place, and returns how many of them, from the front, may be sent to the server. The caller
    /// must pass the others again, before those that follow: they are at most [`HELD_MAX`]. At the end of the stream
    /// they may be sent too.
    pub fn pass(&mut self, bytes: &mut [u8]) -> usize {
        let mut passed = 0;
        while passed < bytes.len() {
            match self.step(&mut bytes[passed..]) {
                Some(len) => passed += len,
                None => break,
            }
        }
        passed
    }

    /// Processes one unit at the front: its length, or `None` if more bytes are needed.
    fn step(&mut self, bytes: &mut [u8]) -> Option<usize> {
        match self.next {
            Next::FrameHeader => {
                let header = bytes.first_chunk::<FRAME_HEADER_LEN>()?;
                self.next = self.frame(*header);
                Some(FRAME_HEADER_LEN)
            }
            Next::Skipped(left) => {
                let len = left.min(bytes.len());
                self.next = if left == len { Next::FrameHeader } else { Next::Skipped(left - len) };
                Some(len)
            }
            Next::FragmentHead { payload, flags } => {
                let pad_len = usize::from(flags & PADDED != 0);
                let len = pad_len + if flags & PRIORITY != 0 { PRIORITY_LEN } else { 0 };
                if payload < len {
                    (self.next, self.block) = (skipped(payload), Block::Left);
                    return Some(0);
                }
                let head = bytes.get(..len)?;
                let padding = if pad_len > 0 { usize::from(head[0]) } else { 0 };
                self.next = match (payload - len).checked_sub(padding) {
                    Some(left) => fragment(left, padding, flags),
                    None => {
                        self.block = Block::Left;
                        skipped(payload - len)
                    }
                };
                Some(len)
            }
            Next::Fragment { left: 0, padding, is_last } => {
                if is_last {
                    self.block = Block::Left;
                }
                self.next = skipped(padding);
                Some(0)
            }
            Next::Fragment { left, padding, is_last } => {
                let here = left.min(bytes.len());
                let len = match self.field(&mut bytes[..here], left) {
                    Unit::Whole(len) => len,
                    Unit::Short if here < left => return None,
                    Unit::Short | Unit::Malformed => {
                        self.block = Block::Left;
                        here
                    }
                };
                self.next = Next::Fragment { left: left - len, padding, is_last };
                Some(len)
            }
        }
    }

    /// The state after a frame header.
    fn frame(&mut self, header: [u8; FRAME_HEADER_LEN]) -> Next {
        let [high, middle, low, kind, flags, ..] = header;
        let payload = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        match kind {
            HEADERS => {
                self.block = Block::Field;
                Next::FragmentHead { payload, flags }
            }
            CONTINUATION => fragment(payload, 0, flags),
            _ => skipped(payload),
        }
    }

    /// Processes one unit at the front of a fragment of a header block. `left` is how many bytes of the fragment
    /// remain, with `bytes`.
    fn field(&mut self, bytes: &mut [u8], left: usize) -> Unit {
        match self.block {
            Block::Field => {
                let Some(&first) = bytes.first() else { return Unit::Short };
                // RFC 7541 §6: indexed field, literal with incremental indexing, table size update, literal without
                // indexing.
                let (prefix, is_literal) = match first {
                    0x80.. => (7, false),
                    0x40.. => (6, true),
                    0x20.. => (5, false),
                    _ => (4, true),
                };
                let (index, len) = match number(bytes, prefix) {
                    Ok(read) => read,
                    Err(unit) => return unit,
                };
                self.block = match index {
                    _ if !is_literal => Block::Field,
                    0 => Block::Name,
                    _ => Block::Value { is_authority: index == AUTHORITY_INDEX },
                };
                Unit::Whole(len)
            }
            Block::Name => {
                let (string_len, head_len) = match number(bytes, 7) {
                    Ok(read) => read,
                    Err(unit) => return unit,
                };
                if string_len > AUTHORITY_NAME.len() {
                    self.block = Block::Skipped { left: string_len, then_value: true };
                    return Unit::Whole(head_len);
                }
                let Some(name) = bytes.get(head_len..head_len + string_len) else { return Unit::Short };
                let wanted = if is_in_code(bytes) { AUTHORITY_NAME_IN_CODE } else { AUTHORITY_NAME };
                self.block = Block::Value { is_authority: name == wanted };
                Unit::Whole(head_len + string_len)
            }
            Block::Value { is_authority } => {
                let (string_len, head_len) = match number(bytes, 7) {
                    Ok(read) => read,
                    Err(unit) => return unit,
                };
                if !is_authority || string_len > VALUE_LEN_MAX || string_len > left - head_len {
                    self.block = Block::Skipped { left: string_len, then_value: false };
                    return Unit::Whole(head_len);
                }
                let is_in_code = is_in_code(bytes);
                let Some(value) = bytes.get_mut(head_len..head_len + string_len) else { return Unit::Short };
                if is_in_code {
                    huffman::mend(value);
                } else {
                    mend(value);
                }
                self.block = Block::Field;
                Unit::Whole(head_len + string_len)
            }
            Block::Skipped { left: string_len, then_value } => {
                let len = string_len.min(bytes.len());
                self.block = match string_len - len {
                    0 if then_value => Block::Value { is_authority: false },
                    0 => Block::Field,
                    left => Block::Skipped { left, then_value },
                };
                Unit::Whole(len)
            }
            Block::Left => Unit::Whole(bytes.len()),
        }
    }
}

fn skipped(len: usize) -> Next {
    if len > 0 { Next::Skipped(len) } else { Next::FrameHeader }
}

fn fragment(left: usize, padding: usize, flags: u8) -> Next {
    Next::Fragment { left, padding, is_last: flags & END_HEADERS != 0 }
}

/// An integer with a `prefix`-bit prefix (RFC 7541 §5.1), and how many bytes it takes.
fn number(bytes: &[u8], prefix: u32) -> Result<(usize, usize), Unit> {
    let first = bytes.first().ok_or(Unit::Short)?;
    let most = (1 << prefix) - 1;
    let mut number = usize::from(*first) & most;
    if number < most {
        return Ok((number, 1));
    }
    for at in 1..NUMBER_LEN_MAX {
        let byte = bytes.get(at).ok_or(Unit::Short)?;
        number += usize::from(byte & 0x7f) << (7 * (at - 1));
        if byte & 0x80 == 0 {
            return Ok((number, at + 1));
        }
    }
    Err(Unit::Malformed)
}

/// Whether a string with this first byte is Huffman-coded (RFC 7541 §5.2).
fn is_in_code(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|first| first & 0x80 != 0)
}

fn is_authority(value: &[u8]) -> bool {
    Authority::try_from(value).is_ok()
}

/// Whether a host name may contain the byte anywhere (RFC 3986 §3.2.2, unreserved).
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

fn mend(value: &mut [u8]) {
    if !is_authority(value) {
        value.iter_mut().filter(|byte| !is_unreserved(**byte)).for_each(|byte| *byte = b'-');
    }
}

#[cfg(test)]
mod tests;
