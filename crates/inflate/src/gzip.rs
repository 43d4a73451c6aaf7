//! Gzip files (RFC 1952): a sequence of members, each with a header, a deflate stream and a checksum.

use std::ops::Range;

use crate::{Buffer, Damage, Inflater, Stop};

const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];
const HEADER_LEN: usize = 10;
const TRAILER_LEN: usize = 8;

/// Flags of a header (section 2.3.1).
const CHECKSUM: u8 = 2;
const EXTRA: u8 = 4;
const NAME: u8 = 8;
const COMMENT: u8 = 16;
const RESERVED: u8 = 0xe0;

/// Most bytes of a name or a comment.
const TEXT_LEN_MAX: usize = 64 * 1024;

/// The decoder of a gzip file with all its members. [`Gzip::run`] is like [`Inflater::run`], but `Stop::End` is the end
/// of the file.
#[derive(Default)]
pub struct Gzip {
    inflater: Inflater,
    at: At,
    /// Checksum of the current header, or of the current member's output.
    checksum: flate2::Crc,
    /// Whether the current member was inflated from its beginning, so that its checksum can be verified.
    is_whole: bool,
    stops_at_members: bool,
}

/// What comes next in the input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// The first member: a file has at least one.
    #[default]
    First,
    /// Another member, or the end.
    Member,
    Field {
        flags: u8,
        field: Field,
        done: usize,
    },
    Stream,
    Trailer {
        found: [u8; TRAILER_LEN],
        done: usize,
    },
}

/// The optional fields of a header behind its first ten bytes, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    ExtraLen {
        low: u8,
    },
    Extra {
        len: usize,
    },
    Name,
    Comment,
    /// The second byte that is expected, once the first was verified.
    Checksum {
        high: u8,
    },
}

/// A position where another decoder can continue, see [`Gzip::within`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// Before a member, or the end.
    Member,
    /// Between two blocks.
    Block {
        /// The last output of the member, at most 32 KiB.
        window: &'a [u8],
        /// The number of upper bits of the last consumed byte that are not used yet: 0 to 7.
        bit_count: u8,
    },
}

impl Gzip {
    /// A decoder that begins between two blocks, see [`Inflater::restart`]. The checksum of this first member is not
    /// verified.
    pub fn within(window: &[u8], last: u8, bit_count: u8) -> Gzip {
        let mut gzip = Gzip { at: At::Stream, ..Gzip::default() };
        gzip.inflater.restart(window, last, bit_count);
        gzip
    }

    /// The output that was not taken.
    pub fn output(&self) -> &[u8] {
        self.inflater.output()
    }

    /// Takes `len` bytes of the output. Panics if there are fewer.
    pub fn take(&mut self, len: usize) {
        self.inflater.take(len);
    }

    /// Takes output by exchanging the buffers, as [`Inflater::exchange`].
    pub fn exchange(&mut self, buffer: &mut Buffer) -> Range<usize> {
        self.inflater.exchange(buffer)
    }

    /// Sets whether [`Gzip::run`] stops with `Stop::Member` behind each member.
    pub fn stop_at_members(&mut self, stops: bool) {
        self.stops_at_members = stops;
    }

    /// Whether a member has ended, and none has begun behind it.
    pub fn is_between(&self) -> bool {
        self.at == At::Member
    }

    /// The current position. Only valid right after [`Gzip::run`] stopped with `Stop::Block`.
    pub fn place(&self) -> Place<'_> {
        match self.at {
            At::Stream => {
                Place::Block { window: self.inflater.window(), bit_count: self.inflater.bit_count() }
            }
            _ => Place::Member,
        }
    }

    /// Inflates more input, as [`Inflater::run`].
    pub fn run(
        &mut self,
        input: &[u8],
        is_all: bool,
        block_at: Option<usize>,
    ) -> Result<(usize, Stop), Damage> {
        let mut at = 0;
        loop {
            let input = &input[at..];
            match self.at {
                At::Stream => {
                    let before = self.output().len();
                    let (taken, stop) = self.inflater.run(input, is_all, block_at)?;
                    at += taken;
                    if self.is_whole {
                        self.checksum.update(&self.inflater.output()[before..]);
                    }
                    if stop != Stop::End {
                        return Ok((at, stop));
                    }
                    self.at = At::Trailer { found: [0; TRAILER_LEN], done: 0 };
                }
                At::Trailer { mut found, done } if done < TRAILER_LEN => {
                    let Some(byte) = input.first() else { return wants_more(at, is_all) };
                    found[done] = *byte;
                    self.at = At::Trailer { found, done: done + 1 };
                    at += 1;
                }
                At::Trailer { found, .. } => {
                    self.check(found)?;
                    self.at = At::Member;
                    if self.stops_at_members {
                        return Ok((at, Stop::Member));
                    }
                }
                At::First | At::Member => {
                    if self.at == At::Member && input.is_empty() {
                        if !is_all {
                            return Ok((at, Stop::Input));
                        }
                        return Ok((at, if self.output().is_empty() { Stop::End } else { Stop::Output }));
                    }
                    if block_at.is_some_and(|wanted| self.output().len() >= wanted) {
                        return Ok((at, Stop::Block));
                    }
                    let Some(header) = input.get(..HEADER_LEN) else { return wants_more(at, is_all) };
                    self.begin(header)?;
                    at += HEADER_LEN;
                }
                At::Field { flags, field, done } => {
                    let Some(byte) = input.first() else { return wants_more(at, is_all) };
                    self.field(flags, field, done, *byte)?;
                    at += 1;
                }
            }
        }
    }

    fn begin(&mut self, header: &[u8]) -> Result<(), Damage> {
        let flags = header[3];
        if !header.starts_with(&MAGIC) || flags & RESERVED != 0 {
            return Err(Damage::Invalid("this is no gzip header"));
        }
        self.inflater.reset();
        self.checksum.reset();
        self.checksum.update(header);
        self.is_whole = true;
        self.go_on(flags, None);
        Ok(())
    }

    /// Goes to the next field that the header has, or to the stream.
    fn go_on(&mut self, flags: u8, behind: Option<Field>) {
        let next = |flag: u8, field: Field| (flags & flag != 0).then_some(field);
        let fields = [
            next(EXTRA, Field::ExtraLen { low: 0 }),
            next(NAME, Field::Name),
            next(COMMENT, Field::Comment),
            next(CHECKSUM, Field::Checksum { high: 0 }),
        ];
        let first = match behind {
            None => 0,
            Some(Field::ExtraLen { .. } | Field::Extra { .. }) => 1,
            Some(Field::Name) => 2,
            Some(Field::Comment) => 3,
            Some(Field::Checksum { .. }) => 4,
        };
        self.at = match fields[first..].iter().flatten().next() {
            Some(field) => At::Field { flags, field: *field, done: 0 },
            None => {
                self.checksum.reset();
                At::Stream
            }
        };
    }

    /// Consumes the next byte of a field, of which `done` bytes were consumed.
    fn field(&mut self, flags: u8, field: Field, done: usize, byte: u8) -> Result<(), Damage> {
        let expected = self.checksum.sum() & 0xffff;
        self.checksum.update(&[byte]);
        let stay = |field| At::Field { flags, field, done: done + 1 };
        match field {
            Field::ExtraLen { .. } if done == 0 => self.at = stay(Field::ExtraLen { low: byte }),
            Field::ExtraLen { low } => match usize::from(u16::from_le_bytes([low, byte])) {
                0 => self.go_on(flags, Some(field)),
                len => self.at = At::Field { flags, field: Field::Extra { len }, done: 0 },
            },
            Field::Extra { len } if done + 1 < len => self.at = stay(field),
            Field::Name | Field::Comment if byte != 0 => {
                if done >= TEXT_LEN_MAX {
                    return Err(Damage::Invalid("a gzip header with a name that does not end"));
                }
                self.at = stay(field);
            }
            Field::Extra { .. } | Field::Name | Field::Comment => self.go_on(flags, Some(field)),
            // The checksum covers the bytes before it.
            Field::Checksum { .. } if done == 0 => {
                if u32::from(byte) != expected & 0xff {
                    return Err(Damage::Invalid("the checksum of a gzip header is another"));
                }
                self.at = stay(Field::Checksum { high: (expected >> 8) as u8 });
            }
            Field::Checksum { high } => {
                if byte != high {
                    return Err(Damage::Invalid("the checksum of a gzip header is another"));
                }
                self.go_on(flags, Some(field));
            }
        }
        Ok(())
    }

    fn check(&self, [a, b, c, d, e, f, g, h]: [u8; TRAILER_LEN]) -> Result<(), Damage> {
        let (checksum, len) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        if self.is_whole && (checksum, len) != (self.checksum.sum(), self.checksum.amount()) {
            return Err(Damage::Invalid("the checksum of a gzip member is another"));
        }
        Ok(())
    }
}

fn wants_more(at: usize, is_all: bool) -> Result<(usize, Stop), Damage> {
    if is_all { Err(Damage::CutOff) } else { Ok((at, Stop::Input)) }
}
