//! Inflate (RFC 1951) as a push decoder without I/O, which can stop between two blocks and be restarted there.
//!
//! ```text
//! compressed bytes ─▶ Inflater::run ─┬▶ Stop::Input    needs more input
//!                                    ├▶ Stop::Output   the caller must take output first
//!                                    ├▶ Stop::Block    between two blocks, if the caller asked for it
//!                                    └▶ Stop::End      the stream ended
//! ```
//!
//! Between two blocks the state is only the last 32 KiB of output and up to seven bits of the last byte. A caller that
//! kept these with the offset in the compressed bytes can inflate from there without the bytes before.
//!
//! Invariants
//! - No I/O, no unsafe code, memory of constant size.
//! - It refuses the same streams as zlib.
//! - It consumes only bytes of the stream, never one behind it.
#![forbid(unsafe_code)]

mod copy;
mod gzip;
mod table;

pub use gzip::{Gzip, Place};

use std::ops::Range;

use table::{
    DISTANCE_ENTRIES, DISTANCE_ROOT, END, FURTHER, LEN_ENTRIES, LEN_ROOT, LITERAL, LITERAL_ENTRIES,
    LITERAL_ROOT, SPECIAL,
};

/// Largest distance of a match, in bytes.
pub const WINDOW_LEN: usize = 32 * 1024;

/// Bytes of output that the buffer holds until the caller must take some.
pub const OUTPUT_LEN: usize = 256 * 1024;
/// Bytes behind the output that a turn of the inner loop may fill: a match with its excess copy, or literals.
const SLACK: usize = 320;
const BUFFER_LEN: usize = WINDOW_LEN + OUTPUT_LEN + SLACK;

/// Most bytes of a block's header, with those that [`Cursor::refill`] reads beyond: 14 bits, 19 lengths of lengths, and
/// 320 lengths of 14 bits.
const HEADER_LEN_MAX: usize = 640;
/// Most bytes that a turn of the inner loop reads.
const TURN_LEN: usize = 24;

/// Why a stream is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// It violates the format.
    Invalid(&'static str),
    /// It ends too early.
    CutOff,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Damage::Invalid(why) => f.write_str(why),
            Damage::CutOff => f.write_str("the compressed stream is cut off"),
        }
    }
}

impl std::error::Error for Damage {}

impl From<Damage> for std::io::Error {
    fn from(damage: Damage) -> std::io::Error {
        let kind = match damage {
            Damage::Invalid(_) => std::io::ErrorKind::InvalidData,
            Damage::CutOff => std::io::ErrorKind::UnexpectedEof,
        };
        std::io::Error::new(kind, damage)
    }
}

/// Why [`Inflater::run`] stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It needs more input: the bytes that it did not consume, and more behind them.
    Input,
    /// The output buffer is full.
    Output,
    /// It is between two blocks, or before the first, and there is as much output as the caller asked for.
    Block,
    /// A member of a gzip file has ended, and another may follow.
    Member,
    /// The stream has ended. Bytes behind the consumed ones do not belong to it.
    End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Between,
    Stored { left: usize },
    Coded,
    Ended,
}

/// The decoder of a deflate stream.
pub struct Inflater {
    state: State,
    /// Whether the current block is the last one.
    is_last: bool,
    bits: Bits,
    literals: Box<[u32; LITERAL_ENTRIES]>,
    distances: Box<[u32; DISTANCE_ENTRIES]>,
    /// Whether the tables are those of the fixed codes. They are not built again for each such block, which may have
    /// ten bits only.
    has_fixed: bool,
    /// The window, then the output that was not taken, then free space.
    buffer: Buffer,
    /// Begin of the window: a match must not begin before it.
    begin: usize,
    /// End of the output that was taken.
    taken: usize,
    /// End of the output.
    end: usize,
}

/// The memory of output, with the window before it.
pub struct Buffer(Box<[u8; BUFFER_LEN]>);

impl Buffer {
    /// Bytes of a buffer.
    pub const LEN: usize = BUFFER_LEN;
}

impl Default for Buffer {
    fn default() -> Buffer {
        Buffer(vec![0; BUFFER_LEN].try_into().expect("so many bytes"))
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0[..]
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0[..]
    }
}

/// Bits of the input that were read and not used: up to seven between calls.
#[derive(Clone, Copy, Default)]
struct Bits {
    /// The next bit is the lowest. Bits above `count` are zeros, or those that follow in the input.
    value: u64,
    count: u32,
}

impl Default for Inflater {
    fn default() -> Inflater {
        Inflater {
            state: State::Between,
            is_last: false,
            bits: Bits::default(),
            literals: Box::new([0; LITERAL_ENTRIES]),
            distances: Box::new([0; DISTANCE_ENTRIES]),
            has_fixed: false,
            buffer: Buffer::default(),
            begin: 0,
            taken: 0,
            end: 0,
        }
    }
}

impl Inflater {
    /// Begins a new stream. Its output follows the output of the last one that was not taken.
    pub fn reset(&mut self) {
        self.begin = self.end;
        self.bits = Bits::default();
        self.state = State::Between;
        self.is_last = false;
    }

    /// Begins between two blocks of a stream: `window` is the end of its output before, and the upper `bit_count` bits
    /// (0 to 7) of `last`, the last byte of its input before, belong to the next block.
    pub fn restart(&mut self, window: &[u8], last: u8, bit_count: u8) {
        let window = &window[window.len().saturating_sub(WINDOW_LEN)..];
        self.buffer[..window.len()].copy_from_slice(window);
        (self.begin, self.taken, self.end) = (0, window.len(), window.len());
        let count = u32::from(bit_count & 7);
        self.bits = Bits { value: if count == 0 { 0 } else { u64::from(last >> (8 - count)) }, count };
        self.state = State::Between;
        self.is_last = false;
    }

    /// The output that was not taken.
    pub fn output(&self) -> &[u8] {
        &self.buffer[self.taken..self.end]
    }

    /// Takes `len` bytes of the output. Panics if there are fewer.
    pub fn take(&mut self, len: usize) {
        assert!(len <= self.end - self.taken, "more than there is");
        self.taken += len;
    }

    /// Takes the first [`OUTPUT_LEN`] bytes of the output, or all if there are fewer, by exchanging the buffers instead
    /// of copying. Returns the position of these bytes in `buffer`.
    pub fn exchange(&mut self, buffer: &mut Buffer) -> Range<usize> {
        let given = self.taken..self.end.min(self.taken + OUTPUT_LEN);
        // Later matches may refer to the output that was taken.
        let keep = self.begin.max(given.end.saturating_sub(WINDOW_LEN)).min(given.end);
        buffer[..self.end - keep].copy_from_slice(&self.buffer[keep..self.end]);
        std::mem::swap(&mut self.buffer, buffer);
        self.begin = self.begin.saturating_sub(keep);
        self.taken = given.end - keep;
        self.end -= keep;
        given
    }

    /// The output of this stream that later matches may refer to: the last 32 KiB, or all if there is less.
    pub fn window(&self) -> &[u8] {
        &self.buffer[self.begin.max(self.end.saturating_sub(WINDOW_LEN))..self.end]
    }

    /// The number of upper bits of the last byte of input that are not used yet.
    pub fn bit_count(&self) -> u8 {
        (self.bits.count & 7) as u8
    }

    /// Inflates more input until it must stop, and returns how many bytes it consumed, and why it stopped. `is_all`
    /// means that no input follows: without it, some bytes at the end are left until there are more. With `block_at`,
    /// it stops between blocks if there are at least as many bytes of output.
    pub fn run(
        &mut self,
        input: &[u8],
        is_all: bool,
        block_at: Option<usize>,
    ) -> Result<(usize, Stop), Damage> {
        self.make_room();
        let (mut at, stop) = self.run_in(input, 0, input.len(), block_at)?;
        if stop != Stop::Input || !is_all {
            return Ok((at, stop));
        }
        // The end of the input is copied and padded with zeros, as the inner loop reads beyond it.
        let rest = input.len() - at;
        let mut padded = [0; HEADER_LEN_MAX + 2 * TURN_LEN + 8];
        padded[..rest].copy_from_slice(&input[at..]);
        let (taken, stop) = self.run_in(&padded, TURN_LEN, rest, block_at)?;
        if stop == Stop::Input {
            return Err(Damage::CutOff);
        }
        at += taken;
        Ok((at, stop))
    }

    /// Moves the window and the output that was not taken to the beginning of the buffer.
    fn make_room(&mut self) {
        if self.end < WINDOW_LEN + OUTPUT_LEN / 2 {
            return;
        }
        let keep = self.taken.min(self.end.saturating_sub(WINDOW_LEN));
        self.buffer.copy_within(keep..self.end, 0);
        self.begin = self.begin.saturating_sub(keep);
        self.taken -= keep;
        self.end -= keep;
    }

    /// Inflates the first `len` bytes of `input`, which has at least `beyond` bytes more that may be read but not
    /// consumed.
    fn run_in(
        &mut self,
        input: &[u8],
        beyond: usize,
        len: usize,
        block_at: Option<usize>,
    ) -> Result<(usize, Stop), Damage> {
        let mut cursor = Cursor { input, at: 0, bits: self.bits, end: len };
        let is_padded = beyond > 0;
        let stop = loop {
            match self.state {
                State::Ended => break Stop::End,
                State::Between => {
                    if self.is_last {
                        self.state = State::Ended;
                        continue;
                    }
                    if block_at.is_some_and(|wanted| self.end - self.taken >= wanted) {
                        break Stop::Block;
                    }
                    if !is_padded && cursor.left() < HEADER_LEN_MAX {
                        break Stop::Input;
                    }
                    let read = self.header(&mut cursor);
                    cursor.within(len)?;
                    read?;
                }
                State::Stored { left: 0 } => self.state = State::Between,
                State::Stored { left } => {
                    let count = left.min(len.saturating_sub(cursor.at)).min(self.room());
                    if count == 0 {
                        break if self.room() == 0 { Stop::Output } else { Stop::Input };
                    }
                    let bytes = &input[cursor.at..cursor.at + count];
                    self.buffer[self.end..self.end + count].copy_from_slice(bytes);
                    self.end += count;
                    cursor.at += count;
                    self.state = State::Stored { left: left - count };
                }
                State::Coded => {
                    let limit = if is_padded { len + 8 } else { len.saturating_sub(TURN_LEN) };
                    let has_ended = self.coded(&mut cursor, limit);
                    cursor.within(len)?;
                    if has_ended? {
                        self.state = State::Between;
                    } else {
                        break if self.room() == 0 { Stop::Output } else { Stop::Input };
                    }
                }
            }
        };
        cursor.give_back();
        if stop == Stop::End {
            cursor.bits = Bits::default();
        }
        self.bits = cursor.bits;
        Ok((cursor.at, stop))
    }

    /// Free bytes in the buffer, without the slack.
    fn room(&self) -> usize {
        (BUFFER_LEN - SLACK).saturating_sub(self.end)
    }

    /// Reads the header of a block (section 3.2.3) and builds its tables.
    fn header(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Damage> {
        cursor.refill()?;
        self.is_last = cursor.take(1) == 1;
        match cursor.take(2) {
            0 => {
                cursor.give_back();
                cursor.bits = Bits::default();
                let field = cursor.input.get(cursor.at..cursor.at + 4).ok_or(Damage::CutOff)?;
                let (len, not_len) =
                    (u16::from_le_bytes([field[0], field[1]]), u16::from_le_bytes([field[2], field[3]]));
                if len != !not_len {
                    return Err(Damage::Invalid("a stored block whose length contradicts itself"));
                }
                cursor.at += 4;
                self.state = State::Stored { left: usize::from(len) };
                return Ok(());
            }
            1 if self.has_fixed => {}
            1 => {
                let lens: [u8; 288] = std::array::from_fn(|symbol| match symbol {
                    0..144 => 8,
                    144..256 => 9,
                    256..280 => 7,
                    _ => 8,
                });
                self.tables(&lens, &[5; 32])?;
                self.has_fixed = true;
            }
            2 => {
                self.has_fixed = false;
                self.dynamic(cursor)?;
            }
            _ => return Err(Damage::Invalid("a block of the reserved type")),
        }
        self.state = State::Coded;
        Ok(())
    }

    /// Reads the codes of a dynamic block (section 3.2.7).
    fn dynamic(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Damage> {
        const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
        let literal_count = cursor.take(5) as usize + 257;
        let distance_count = cursor.take(5) as usize + 1;
        let len_count = cursor.take(4) as usize + 4;
        if literal_count > 286 || distance_count > 30 {
            return Err(Damage::Invalid("more lengths or distances than there are"));
        }
        let mut lens_of_lens = [0; 19];
        for place in &ORDER[..len_count] {
            cursor.refill()?;
            lens_of_lens[*place] = cursor.take(3) as u8;
        }
        let mut table = [0; LEN_ENTRIES];
        if !table::build(&lens_of_lens, &table::LENS, LEN_ROOT, false, &mut table) {
            return Err(Damage::Invalid("the code of code lengths is invalid"));
        }
        let mut lens = [0; 286 + 30];
        let count = literal_count + distance_count;
        let mut at = 0;
        while at < count {
            cursor.refill()?;
            let entry = table[cursor.bits.value as usize & (LEN_ENTRIES - 1)];
            cursor.skip(entry & 0xff);
            let (len, repeat) = match (entry >> 16 & 0x7fff) as u8 {
                16 if at == 0 => return Err(Damage::Invalid("a repetition of no length")),
                16 => (lens[at - 1], 3 + cursor.take(2)),
                17 => (0, 3 + cursor.take(3)),
                18 => (0, 11 + cursor.take(7)),
                len => (len, 1),
            };
            let end = at + repeat as usize;
            if end > count {
                return Err(Damage::Invalid("more lengths of codes than there are codes"));
            }
            lens[at..end].fill(len);
            at = end;
        }
        if lens[256] == 0 {
            return Err(Damage::Invalid("a block without a code for its end"));
        }
        let (literals, distances) = lens[..count].split_at(literal_count);
        self.tables(literals, distances)
    }

    fn tables(&mut self, literals: &[u8], distances: &[u8]) -> Result<(), Damage> {
        if !table::build(literals, &table::LITERALS, LITERAL_ROOT, true, &mut self.literals[..]) {
            return Err(Damage::Invalid("the code of literals and lengths is invalid"));
        }
        if !table::build(distances, &table::DISTANCES, DISTANCE_ROOT, true, &mut self.distances[..]) {
            return Err(Damage::Invalid("the code of distances is invalid"));
        }
        Ok(())
    }

    /// Decodes a block while the input is before `limit` and the buffer has room. Returns whether the block ended.
    // Never inlined, since the loop needs all registers.
    #[inline(never)]
    fn coded(&mut self, cursor: &mut Cursor<'_>, limit: usize) -> Result<bool, Damage> {
        let (literals, distances) = (&*self.literals, &*self.distances);
        let buffer = &mut *self.buffer.0;
        let (begin, mut end) = (self.begin, self.end);
        let Cursor { input, mut at, bits: Bits { value: mut bits, mut count }, .. } = *cursor;
        // Reads at least 56 bits, so that a turn needs at most two refills.
        macro_rules! refill {
            () => {
                let word = u64::from_le_bytes(input[at..at + 8].try_into().expect("eight bytes"));
                count &= 0x3f;
                bits |= word << count;
                at += (63 - count as usize) >> 3;
                count |= 56;
            };
        }
        macro_rules! skip {
            ($entry:expr) => {
                // The upper bits of the count are garbage until it is masked.
                bits >>= $entry & 0x3f;
                count = count.wrapping_sub($entry);
            };
        }
        let outcome = loop {
            if at >= limit || end >= BUFFER_LEN - SLACK {
                break Ok(false);
            }
            refill!();
            let mut entry = literals[bits as usize & ((1 << LITERAL_ROOT) - 1)];
            // Runs of literals: 56 bits have at least as many codes of the root table.
            macro_rules! literal {
                () => {
                    skip!(entry);
                    buffer[end] = (entry >> 16) as u8;
                    end += 1;
                    entry = literals[bits as usize & ((1 << LITERAL_ROOT) - 1)];
                };
            }
            if entry & LITERAL != 0 {
                literal!();
                if entry & LITERAL != 0 {
                    literal!();
                    if entry & LITERAL != 0 {
                        literal!();
                        if entry & LITERAL != 0 {
                            literal!();
                            if entry & LITERAL != 0 {
                                skip!(entry);
                                buffer[end] = (entry >> 16) as u8;
                                end += 1;
                                continue;
                            }
                        }
                        // A code and its extra bits are up to 20 bits.
                        if count & 0x3f < 20 {
                            refill!();
                        }
                    }
                }
            }
            if entry & SPECIAL != 0 {
                if entry & FURTHER != 0 {
                    skip!(entry);
                    let more = bits as usize & ((1 << (entry >> 8 & 0x1f)) - 1);
                    entry = literals[(entry >> 16 & 0x7fff) as usize + more];
                    if entry & LITERAL != 0 {
                        skip!(entry);
                        buffer[end] = (entry >> 16) as u8;
                        end += 1;
                        continue;
                    }
                }
                if entry & END != 0 {
                    skip!(entry);
                    break Ok(true);
                }
                if entry & SPECIAL != 0 {
                    break Err(Damage::Invalid("an invalid length symbol"));
                }
            }
            let len = value(entry, bits);
            skip!(entry);
            // 28 bits are a distance code and its extra bits.
            if count & 0x3f < 28 {
                refill!();
            }
            let mut entry = distances[bits as usize & ((1 << DISTANCE_ROOT) - 1)];
            if entry & SPECIAL != 0 {
                if entry & FURTHER != 0 {
                    skip!(entry);
                    let more = bits as usize & ((1 << (entry >> 8 & 0x1f)) - 1);
                    entry = distances[(entry >> 16 & 0x7fff) as usize + more];
                }
                if entry & SPECIAL != 0 {
                    break Err(Damage::Invalid("an invalid distance symbol"));
                }
            }
            let distance = value(entry, bits);
            skip!(entry);
            if distance > end - begin {
                break Err(Damage::Invalid("a match that begins before the stream"));
            }
            copy::within(buffer, end, distance, len);
            end += len;
        };
        self.end = end;
        (cursor.at, cursor.bits) = (at, Bits { value: bits, count: count & 0x3f });
        outcome
    }
}

/// The base of an entry plus the extra bits behind its code.
#[inline(always)]
fn value(entry: u32, bits: u64) -> usize {
    let (code, all) = (entry >> 8 & 0x1f, entry & 0x3f);
    (entry >> 16) as usize + ((bits & ((1 << all) - 1)) >> code) as usize
}

/// A position in the input, in bits.
struct Cursor<'a> {
    input: &'a [u8],
    at: usize,
    bits: Bits,
    end: usize,
}

impl Cursor<'_> {
    fn left(&self) -> usize {
        self.end.saturating_sub(self.at)
    }

    /// The number of bytes that have at least one used bit.
    fn used(&self) -> usize {
        self.at - (self.bits.count >> 3) as usize
    }

    /// `CutOff` if bits behind the first `len` bytes were used: the zeros of the padding may be decoded as symbols.
    fn within(&self, len: usize) -> Result<(), Damage> {
        if self.used() > len { Err(Damage::CutOff) } else { Ok(()) }
    }

    /// Reads input until there are at least 56 bits.
    fn refill(&mut self) -> Result<(), Damage> {
        let word = self.input.get(self.at..self.at + 8).ok_or(Damage::CutOff)?;
        self.bits.value |= u64::from_le_bytes(word.try_into().expect("eight bytes")) << self.bits.count;
        self.at += (63 - self.bits.count as usize) >> 3;
        self.bits.count |= 56;
        Ok(())
    }

    fn skip(&mut self, count: u32) {
        self.bits.value >>= count;
        self.bits.count -= count;
    }

    fn take(&mut self, count: u32) -> u64 {
        let taken = self.bits.value & ((1 << count) - 1);
        self.skip(count);
        taken
    }

    /// Gives back whole bytes without a used bit.
    fn give_back(&mut self) {
        self.at = self.used();
        self.bits.count &= 7;
        self.bits.value &= (1 << self.bits.count) - 1;
    }
}
