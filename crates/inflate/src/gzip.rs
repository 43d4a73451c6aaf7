//! Gzip files (RFC 1952): members one after another, each a header, a deflate stream and its checksum.

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

/// Bytes that a name and a comment may have, each.
const TEXT_LEN_MAX: usize = 64 * 1024;

/// All members of a file, as one machine: [`Gzip::run`] as [`Inflater::run`], but that `Stop::End` is the end of the file.
#[derive(Default)]
pub struct Gzip {
    inflater: Inflater,
    at: At,
    /// Of the header at hand, or of what the member at hand unpacked to.
    checksum: flate2::Crc,
    /// Whether the member at hand was inflated from its beginning, so that its checksum is known.
    is_whole: bool,
    stops_at_members: bool,
}

/// What comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// A member, of which a file has at least one.
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

/// Fields of a header behind the first ten bytes, in their order.
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
    /// What the second byte of it has to be, once the first was looked at.
    Checksum {
        high: u8,
    },
}

/// Where a machine has stopped, as far as it must be known to go on from there with another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// Before a member, or the end.
    Member,
    /// Between two blocks.
    Block {
        /// The last output of the member, at most 32 KiB.
        window: &'a [u8],
        /// How many of the upper bits of the last byte that was taken are not used yet: 0 to 7.
        bit_count: u8,
    },
}

impl Gzip {
    /// Begins between two blocks; `last` is the byte before the input. The checksum of this one member is not looked at.
    pub fn within(window: &[u8], last: u8, bit_count: u8) -> Gzip {
        let mut gzip = Gzip { at: At::Stream, ..Gzip::default() };
        gzip.inflater.restart(window, last, bit_count);
        gzip
    }

    /// What was made and not taken.
    pub fn output(&self) -> &[u8] {
        self.inflater.output()
    }

    /// Takes so many bytes of the output.
    pub fn take(&mut self, len: usize) {
        self.inflater.take(len);
    }

    /// Gives the memory with output for another, as [`Inflater::exchange`].
    pub fn exchange(&mut self, buffer: &mut Buffer) -> Range<usize> {
        self.inflater.exchange(buffer)
    }

    /// Whether [`Gzip::run`] stops with `Stop::Member` behind each member.
    pub fn stop_at_members(&mut self, stops: bool) {
        self.stops_at_members = stops;
    }

    /// Whether a member has ended, and none has begun behind it.
    pub fn is_between(&self) -> bool {
        self.at == At::Member
    }

    /// Where it is. What it says between two stops for a block is of no use.
    pub fn place(&self) -> Place<'_> {
        match self.at {
            At::Stream => {
                Place::Block { window: self.inflater.window(), bit_count: self.inflater.bit_count() }
            }
            _ => Place::Member,
        }
    }

    /// Goes on with more input, as [`Inflater::run`].
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

    /// Goes to the first field behind one that there is.
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

    /// Takes the next byte of a field, of which `done` bytes were taken.
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
            // It is of the bytes before it.
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
