//! Tables that lead from the next bits of a stream to what they mean: prefix codes of RFC 1951, section 3.2.
//!
//! The first `ROOT` bits choose an entry. Codes that are longer share an entry of their first bits, which leads to
//! a table of their own behind the first. So most symbols cost one look and the rest two.
//!
//! ```text
//! entry   31: a literal    15: one of the kinds below, else a base with more bits
//!         30…16 value: the literal, the base of a length or distance, or where the further table begins
//!         14: a further table    13: the end of the block    (neither: a code that is none)
//!         12…8 bits of the code, or bits that choose from the further table
//!         7…0  bits that the symbol takes altogether
//! ```

/// Bits of the longest code.
const CODE_LEN_MAX: usize = 15;

pub(crate) const LITERAL: u32 = 1 << 31;
pub(crate) const SPECIAL: u32 = 1 << 15;
pub(crate) const FURTHER: u32 = 1 << 14;
pub(crate) const END: u32 = 1 << 13;

pub(crate) const LITERAL_ROOT: usize = 11;
pub(crate) const DISTANCE_ROOT: usize = 9;
pub(crate) const LEN_ROOT: usize = 7;
/// Entries of whole tables: the root, and the most that further tables can be (of 288 symbols and of 32), generously.
pub(crate) const LITERAL_ENTRIES: usize = (1 << LITERAL_ROOT) + 1024;
pub(crate) const DISTANCE_ENTRIES: usize = (1 << DISTANCE_ROOT) + 512;
pub(crate) const LEN_ENTRIES: usize = 1 << LEN_ROOT;

/// What a symbol means, without the bits of its code.
pub(crate) const fn literal(byte: u8) -> u32 {
    LITERAL | (byte as u32) << 16
}

const fn base(value: u32, more: u32) -> u32 {
    value << 16 | more
}

/// What takes part in no stream, though it may have a code.
const NONE: u32 = SPECIAL;

/// Literals, the end, and lengths of matches (section 3.2.5).
pub(crate) static LITERALS: [u32; 288] = {
    let mut symbols = [NONE; 288];
    let mut at = 0;
    while at < 256 {
        symbols[at] = literal(at as u8);
        at += 1;
    }
    symbols[256] = SPECIAL | END;
    let (mut at, mut len) = (0, 3);
    while at < 28 {
        let more = if at < 8 { 0 } else { at / 4 - 1 };
        symbols[257 + at as usize] = base(len, more);
        len += 1 << more;
        at += 1;
    }
    symbols[285] = base(258, 0);
    symbols
};

/// Distances of matches.
pub(crate) static DISTANCES: [u32; 32] = {
    let mut symbols = [NONE; 32];
    let (mut at, mut distance) = (0, 1);
    while at < 30 {
        let more = if at < 4 { 0 } else { at / 2 - 1 };
        symbols[at as usize] = base(distance, more);
        distance += 1 << more;
        at += 1;
    }
    symbols
};

/// The code that code lengths are written in (section 3.2.7): its symbols are values.
pub(crate) static LENS: [u32; 19] = {
    let mut symbols = [0; 19];
    let mut at = 0;
    while at < 19 {
        symbols[at] = base(at as u32, 0);
        at += 1;
    }
    symbols
};

/// Makes the table of a code from the lengths of its symbols' codes (0: not used). Whether it is one: not if there are
/// more codes than fit, nor if some are missing, but for a code of one symbol or none if `may_lack`.
pub(crate) fn build(lens: &[u8], symbols: &[u32], root: usize, may_lack: bool, table: &mut [u32]) -> bool {
    let mut counts = [0_u16; CODE_LEN_MAX + 1];
    for len in lens {
        counts[usize::from(*len)] += 1;
    }
    counts[0] = 0;
    let longest = counts.iter().rposition(|count| *count > 0).unwrap_or(0);
    let mut left = 1_i32;
    for count in &counts[1..] {
        left = (left << 1) - i32::from(*count);
        if left < 0 {
            return false;
        }
    }
    if left > 0 && !(may_lack && longest <= 1) {
        return false;
    }
    // Symbols by the length of their codes, and by their numbers.
    let mut places = [0_u16; CODE_LEN_MAX + 1];
    for len in 1..CODE_LEN_MAX {
        places[len + 1] = places[len] + counts[len];
    }
    let mut sorted = [0_u16; 288];
    for (symbol, len) in lens.iter().enumerate().filter(|(_, len)| **len > 0) {
        let place = &mut places[usize::from(*len)];
        sorted[usize::from(*place)] = symbol as u16;
        *place += 1;
    }
    let used = usize::from(counts.iter().sum::<u16>());
    let mut sorted = sorted[..used].iter().map(|symbol| symbols[usize::from(*symbol)]);

    // Codes grow from the one before; what is looked up has their first bit lowest. A table of n bits is two of
    // n - 1 behind each other, so each code is written once.
    table[0] = NONE | 1;
    let mut code = 0_u32;
    let mut size = 1;
    for len in 1..=root {
        table.copy_within(..size, size);
        size *= 2;
        code <<= 1;
        for _ in 0..counts[len] {
            let symbol = sorted.next().expect("as many as were counted");
            table[reversed(code, len)] = entry(symbol, len);
            code += 1;
        }
    }
    if longest <= root {
        return true;
    }
    further(&counts, code, longest, root, &mut sorted, table);
    true
}

/// The tables of the codes that are longer than `root` bits; `code` is the first of one bit more, halved.
fn further(
    counts: &[u16; CODE_LEN_MAX + 1],
    mut code: u32,
    longest: usize,
    root: usize,
    sorted: &mut impl Iterator<Item = u32>,
    table: &mut [u32],
) {
    let mut free = 1 << root;
    let (mut begin, mut bits) = (0, 0);
    let mut prefix = None;
    for len in root + 1..=longest {
        code <<= 1;
        for nth in 0..counts[len] {
            let first = reversed(code >> (len - root), root);
            if prefix != Some(first) {
                // As many bits as the codes with these first bits need, which are the next ones.
                bits = len - root;
                let mut room = (1 << bits) - i32::from(counts[len] - nth);
                while room > 0 && root + bits < longest {
                    bits += 1;
                    room = (room << 1) - i32::from(counts[root + bits]);
                }
                prefix = Some(first);
                begin = free;
                free += 1 << bits;
                table[first] = SPECIAL | FURTHER | (begin as u32) << 16 | (bits as u32) << 8 | root as u32;
            }
            let last = reversed(code & ((1 << (len - root)) - 1), len - root);
            let symbol = entry(sorted.next().expect("as many as were counted"), len - root);
            for at in (last..1 << bits).step_by(1 << (len - root)) {
                table[begin + at] = symbol;
            }
            code += 1;
        }
    }
}

fn reversed(code: u32, len: usize) -> usize {
    (code.reverse_bits() >> (32 - len)) as usize
}

/// A symbol whose code has `own` bits that are not taken yet when it is found.
fn entry(symbol: u32, own: usize) -> u32 {
    // The bits behind a base are in its lowest byte.
    symbol + own as u32 + ((own as u32) << 8)
}
