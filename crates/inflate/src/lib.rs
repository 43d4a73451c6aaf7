//! Inflate (RFC 1951), as a machine that takes bytes and gives bytes, and that can stop between blocks and begin there.
//!
//! ```text
//! compressed bytes ─▶ Inflater::run ─┬▶ Stop::Input    wants more of them
//!                                    ├▶ Stop::Output   `output` is to be taken first
//!                                    ├▶ Stop::Block    between two blocks, where that was asked for
//!                                    └▶ Stop::End      the stream ended
//! ```
//!
//! Between two blocks nothing is remembered but the last 32 KiB of output and up to seven bits of the last byte. So
//! whoever kept those, with the place in the compressed bytes, can inflate from there without what is before.
//!
//! Invariants
//! - No IO, no unsafe code, memory of one size.
//! - A stream is refused where zlib refuses it.
//! - What is consumed is what was needed: a byte that follows the stream is never taken.
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

/// How far back a match may reach, in bytes.
pub const WINDOW_LEN: usize = 32 * 1024;

/// Bytes of output that are made before they must be taken.
pub const OUTPUT_LEN: usize = 256 * 1024;
/// Bytes behind the output that a match, with what is copied too much, or literals may fill.
const SLACK: usize = 320;
const BUFFER_LEN: usize = WINDOW_LEN + OUTPUT_LEN + SLACK;

/// Bytes that the header of a block takes at most: 14 bits, 19 lengths of lengths, 320 lengths of 14 bits. And those
/// that are looked at beyond.
const HEADER_LEN_MAX: usize = 640;
/// Bytes that one turn of the inner loop looks at.
const TURN_LEN: usize = 24;

/// Why a stream is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// It breaks rules of the format.
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

/// Why the machine stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It wants more input: what was not taken, and more behind it.
    Input,
    /// Its output is full.
    Output,
    /// It is between two blocks, or before the first, and there is as much output as was asked for.
    Block,
    /// A member of a gzip file has ended, and another may follow.
    Member,
    /// The stream has ended; what follows the bytes that were taken does not belong to it.
    End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Between,
    Stored { left: usize },
    Coded,
    Ended,
}

/// One stream on its way.
pub struct Inflater {
    state: State,
    /// Whether the block at hand is the last one.
    is_last: bool,
    bits: Bits,
    literals: Box<[u32; LITERAL_ENTRIES]>,
    distances: Box<[u32; DISTANCE_ENTRIES]>,
    /// Whether the tables are those of the fixed codes: a block of these may be ten bits long.
    has_fixed: bool,
    /// Output: the window, then what was not taken, then room.
    buffer: Buffer,
    /// Where what a match may name begins.
    begin: usize,
    /// Output up to here was taken.
    taken: usize,
    /// Where output ends.
    end: usize,
}

/// Memory that output is made in, with the window before it.
pub struct Buffer(Box<[u8; BUFFER_LEN]>);

impl Buffer {
    /// Bytes of one.
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

/// Bits that were taken from the input and not used: up to seven between calls.
#[derive(Clone, Copy, Default)]
struct Bits {
    /// Lowest first. What is above `count` is what follows, as far as it is known.
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
    /// Begins a stream anew, whose output stands behind what was not taken of the one before.
    pub fn reset(&mut self) {
        self.begin = self.end;
        self.bits = Bits::default();
        self.state = State::Between;
        self.is_last = false;
    }

    /// Begins between two blocks of a stream, of which the output before ends with `window`, and of the last byte of
    /// input before, `last`, the upper `bit_count` bits (0 to 7) are not used yet.
    pub fn restart(&mut self, window: &[u8], last: u8, bit_count: u8) {
        let window = &window[window.len().saturating_sub(WINDOW_LEN)..];
        self.buffer[..window.len()].copy_from_slice(window);
        (self.begin, self.taken, self.end) = (0, window.len(), window.len());
        let count = u32::from(bit_count & 7);
        self.bits = Bits { value: if count == 0 { 0 } else { u64::from(last >> (8 - count)) }, count };
        self.state = State::Between;
        self.is_last = false;
    }

    /// What was made and not taken.
    pub fn output(&self) -> &[u8] {
        &self.buffer[self.taken..self.end]
    }

    /// Takes so many bytes of the output.
    pub fn take(&mut self, len: usize) {
        assert!(len <= self.end - self.taken, "more than there is");
        self.taken += len;
    }

    /// Gives the memory with the first [`OUTPUT_LEN`] bytes of the output, or all there is, for another to go on in, and
    /// says where in it they are. It is the same as taking them, without a copy.
    pub fn exchange(&mut self, buffer: &mut Buffer) -> Range<usize> {
        let given = self.taken..self.end.min(self.taken + OUTPUT_LEN);
        // What is left may name what was given.
        let keep = self.begin.max(given.end.saturating_sub(WINDOW_LEN)).min(given.end);
        buffer[..self.end - keep].copy_from_slice(&self.buffer[keep..self.end]);
        std::mem::swap(&mut self.buffer, buffer);
        self.begin = self.begin.saturating_sub(keep);
        self.taken = given.end - keep;
        self.end -= keep;
        given
    }

    /// The output of this stream that what follows may name: the last 32 KiB, or all there was.
    pub fn window(&self) -> &[u8] {
        &self.buffer[self.begin.max(self.end.saturating_sub(WINDOW_LEN))..self.end]
    }

    /// Bits of the last byte of input that were not used yet, of which they are the upper ones.
    pub fn bit_count(&self) -> u8 {
        (self.bits.count & 7) as u8
    }

    /// Goes on with more input until there is a reason to stop, which it says, with the bytes that it took. `is_all`
    /// says that no input follows: without, some bytes at the end stay until more are there. It stops between blocks
    /// if at least `block_at` bytes of output wait to be taken.
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
        // The end, with zeros behind it that are no part of it.
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

    /// Keeps the window, and what was not taken, and nothing else.
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

    /// The same with input of which only `len` bytes count, and that has `beyond` bytes more that may be looked at.
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

    /// Bytes of output that there is room for, without the slack.
    fn room(&self) -> usize {
        (BUFFER_LEN - SLACK).saturating_sub(self.end)
    }

    /// Reads the header of a block (section 3.2.3) and makes its tables.
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
            _ => return Err(Damage::Invalid("a block of a kind that there is not")),
        }
        self.state = State::Coded;
        Ok(())
    }

    /// Reads the codes of a block that brings its own (section 3.2.7).
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
            return Err(Damage::Invalid("a code of lengths that is none"));
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
            return Err(Damage::Invalid("a code of literals and lengths that is none"));
        }
        if !table::build(distances, &table::DISTANCES, DISTANCE_ROOT, true, &mut self.distances[..]) {
            return Err(Damage::Invalid("a code of distances that is none"));
        }
        Ok(())
    }

    /// Goes on in a block while the input is before `limit` and there is room. Whether the block ended.
    // By itself, since the registers that a turn takes are all there are.
    #[inline(never)]
    fn coded(&mut self, cursor: &mut Cursor<'_>, limit: usize) -> Result<bool, Damage> {
        let (literals, distances) = (&*self.literals, &*self.distances);
        let buffer = &mut *self.buffer.0;
        let (begin, mut end) = (self.begin, self.end);
        let Cursor { input, mut at, bits: Bits { value: mut bits, mut count }, .. } = *cursor;
        // Wide enough that a turn needs no more than two of them.
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
                // Only the lowest bits of the count are meant, until it is looked at.
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
            // Literals follow literals: so many of the root's table are sure to be among 56 bits.
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
                        // A code and what belongs to it are up to 20 bits.
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
                    break Err(Damage::Invalid("a length that there is not"));
                }
            }
            let len = value(entry, bits);
            skip!(entry);
            // Enough for a distance nearly always.
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
                    break Err(Damage::Invalid("a distance that there is not"));
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

/// The base of an entry with the bits that stand behind its code.
#[inline(always)]
fn value(entry: u32, bits: u64) -> usize {
    let (code, all) = (entry >> 8 & 0x1f, entry & 0x3f);
    (entry >> 16) as usize + ((bits & ((1 << all) - 1)) >> code) as usize
}

/// Input as bits.
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

    /// Bytes of which at least a bit was used.
    fn used(&self) -> usize {
        self.at - (self.bits.count >> 3) as usize
    }

    /// Zeros behind the end look like something.
    fn within(&self, len: usize) -> Result<(), Damage> {
        if self.used() > len { Err(Damage::CutOff) } else { Ok(()) }
    }

    /// Looks at input until there are at least 56 bits.
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

    /// Gives whole bytes back that were not used.
    fn give_back(&mut self) {
        self.at = self.used();
        self.bits.count &= 7;
        self.bits.value &= (1 << self.bits.count) - 1;
    }
}
