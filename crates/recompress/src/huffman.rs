//! Huffman codes of deflate (RFC 1951 section 3.2).

use std::io::{self, Read};

use crate::bits::BitReader;
use crate::damaged;

const LEN_MAX: usize = 15;
/// Bits that index the lookup table.
const LOOK: u32 = 10;

/// The code lengths of fixed blocks: of literals and lengths, and of distances (section 3.2.6).
pub(crate) fn fixed() -> (Vec<u8>, Vec<u8>) {
    let literals = (0..288).map(|symbol| match symbol {
        0..=143 => 8,
        144..=255 => 9,
        256..=279 => 7,
        _ => 8,
    });
    (literals.collect(), vec![5; 30])
}

/// The number of bits, and the bits, the first one lowest.
pub(crate) type Code = (u32, u32);

/// The code of each symbol; no bits for unused symbols.
pub(crate) fn codes(lens: &[u8]) -> Vec<Code> {
    let mut next = [0_u32; LEN_MAX + 2];
    for len in lens.iter().filter(|len| **len > 0) {
        next[usize::from(*len) + 1] += 1;
    }
    for len in 1..next.len() {
        next[len] = (next[len] + next[len - 1]) << 1;
    }
    let mut first = next;
    lens.iter()
        .map(|len| {
            if *len == 0 {
                return (0, 0);
            }
            let code = first[usize::from(*len)];
            first[usize::from(*len)] += 1;
            (u32::from(*len), code.reverse_bits() >> (32 - u32::from(*len)))
        })
        .collect()
}

/// Decodes symbols.
pub(crate) struct Table {
    /// By the next [`LOOK`] bits: the symbol and the length of its code; length 0 if the code is longer, or invalid.
    short: Vec<(u16, u8)>,
    /// Longer codes: the bits, their number, and the symbol.
    long: Vec<(u32, u8, u16)>,
}

impl Table {
    pub(crate) fn new(lens: &[u8]) -> io::Result<Table> {
        let room: u32 =
            lens.iter().filter(|len| **len > 0).map(|len| 1 << (LEN_MAX - usize::from(*len))).sum();
        if room > 1 << LEN_MAX {
            return Err(damaged("a code with more symbols than there is room for"));
        }
        let mut table = Table { short: vec![(0, 0); 1 << LOOK], long: Vec::new() };
        for (symbol, (len, code)) in codes(lens).into_iter().enumerate().filter(|(_, (len, _))| *len > 0) {
            let symbol = u16::try_from(symbol).expect("at most 288 symbols");
            let short = u8::try_from(len).expect("at most 15");
            if len > LOOK {
                table.long.push((code, short, symbol));
                continue;
            }
            for above in 0..1_u32 << (LOOK - len) {
                table.short[(above << len | code) as usize] = (symbol, short);
            }
        }
        Ok(table)
    }

    pub(crate) fn read<R: Read>(&self, from: &mut BitReader<R>) -> io::Result<u16> {
        let bits = from.peek(LEN_MAX as u32)?;
        let (symbol, len) = self.short[(bits & ((1 << LOOK) - 1)) as usize];
        if len > 0 {
            from.skip(u32::from(len))?;
            return Ok(symbol);
        }
        let is_it = |(code, len, _): &&(u32, u8, u16)| bits & ((1 << len) - 1) == *code;
        let (_, len, symbol) = self.long.iter().find(is_it).ok_or_else(|| damaged("an invalid code"))?;
        from.skip(u32::from(*len))?;
        Ok(*symbol)
    }
}
