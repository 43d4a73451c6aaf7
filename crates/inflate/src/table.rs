//! Lookup tables that decode the prefix codes of RFC 1951, section 3.2.
//!
//! The next `ROOT` bits of the stream index the root table. Longer codes with the same first bits share an entry there,
//! which refers to a subtable behind it. So most symbols take one lookup, and the others two.
//!
//! ```text
//! entry   31: a literal    15: one of the kinds below, else a base with extra bits
//!         30…16 value: the literal, the base of a length or distance, or the offset of the subtable
//!         14: a subtable    13: the end of the block    (neither: an invalid code)
//!         12…8 bits of the code, or index bits of the subtable
//!         7…0  bits of the code and the extra bits together
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
/// Entries of whole tables: the root table, and a generous bound of all subtables (for 288 symbols, and for 32).
pub(crate) const LITERAL_ENTRIES: usize = (1 << LITERAL_ROOT) + 1024;
pub(crate) const DISTANCE_ENTRIES: usize = (1 << DISTANCE_ROOT) + 512;
pub(crate) const LEN_ENTRIES: usize = 1 << LEN_ROOT;

/// The entry of a literal, without the bits of its code.
pub(crate) const fn literal(byte: u8) -> u32 {
    LITERAL | (byte as u32) << 16
}

const fn base(value: u32, more: u32) -> u32 {
    value << 16 | more
}

/// A symbol that is invalid in a stream, though it may have a code.
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

/// Builds the table of a code from the lengths of its symbols' codes (0: unused). False if the lengths are invalid: if
/// the code is over-subscribed, or incomplete; `may_lack` allows an incomplete code of one symbol or none.
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

    // Codes are in ascending order; the index has their first bit lowest. A table of n bits consists of two copies of
    // that of n - 1 bits, so that each code is written once and then copied.
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

/// Builds the subtables for codes of more than `root` bits. `code` is the first code of `root + 1` bits, halved.
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
                // The subtable needs as many index bits as the next codes, which have these first bits.
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

/// The entry of a symbol whose code has `own` bits in this table.
fn entry(symbol: u32, own: usize) -> u32 {
    // The lowest byte of a symbol has the number of its extra bits.
    symbol + own as u32 + ((own as u32) << 8)
}
