//! An adaptive binary range coder: bits that have their expected value cost next to nothing.
//!
//! Writing and reading share their code: [`Coder::bit`] gets the bit to write, and returns the bit that was written or
//! read; a reader ignores its argument. So each part of the format has one function, and not two that must agree.

/// The probability that a bit is 0, in 1/32768, adapted by each bit.
#[derive(Clone, Copy)]
pub(crate) struct Model(u16);

const PROBABILITY_BITS: u32 = 15;
const EVEN: u16 = 1 << (PROBABILITY_BITS - 1);
/// The smaller, the faster a model adapts.
const LEARN_SHIFT: u32 = 5;
/// Below this, a byte is shifted out of the range.
const RANGE_MIN: u32 = 1 << 24;

impl Model {
    pub(crate) const NEW: Model = Model(EVEN);

    fn learn(&mut self, bit: bool) {
        if bit {
            self.0 -= self.0 >> LEARN_SHIFT;
        } else {
            self.0 += ((1 << PROBABILITY_BITS) - self.0) >> LEARN_SHIFT;
        }
    }

    fn split(self, range: u32) -> u32 {
        (range >> PROBABILITY_BITS) * u32::from(self.0)
    }
}

pub(crate) trait Coder {
    /// Whether this is a reader, which ignores the values that it is given.
    const READS: bool;

    fn bit(&mut self, model: &mut Model, bit: bool) -> bool;

    /// Codes a bit whose values are equally likely.
    fn even_bit(&mut self, bit: bool) -> bool {
        self.bit(&mut { Model::NEW }, bit)
    }

    /// Codes the lower `count` bits of a number, each as [`Coder::even_bit`], the highest first.
    fn raw(&mut self, count: u32, value: u32) -> u32 {
        (0..count).rev().fold(0, |read, at| read << 1 | u32::from(self.even_bit(value >> at & 1 == 1)))
    }

    /// Codes a number below `models.len()`, a power of two. The model of each bit depends on the bits above it.
    fn tree(&mut self, models: &mut [Model], value: u32) -> u32 {
        let bits = models.len().trailing_zeros();
        let mut node = 1;
        for at in (0..bits).rev() {
            let bit = self.bit(&mut models[node], value >> at & 1 == 1);
            node = node << 1 | usize::from(bit);
        }
        u32::try_from(node - models.len()).expect("a node below the tree")
    }
}

pub(crate) struct Writer {
    low: u64,
    range: u32,
    /// The last byte that only a carry may still change.
    cache: u8,
    /// How many bytes 0xFF follow it.
    waiting: u64,
    is_first: bool,
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn new() -> Writer {
        Writer { low: 0, range: u32::MAX, cache: 0, waiting: 0, is_first: true, bytes: Vec::new() }
    }

    /// A writer that has written `len` bytes.
    #[cfg(test)]
    pub(crate) fn of_len(len: usize) -> Writer {
        Writer { bytes: vec![0; len], ..Writer::new() }
    }

    /// Bytes written so far, with those that a carry may still change.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len().saturating_add(usize::try_from(self.waiting).unwrap_or(usize::MAX))
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        for _ in 0..5 {
            self.shift();
        }
        self.bytes
    }

    fn shift(&mut self) {
        let carry = u8::try_from(self.low >> 32).expect("one bit of carry");
        if carry == 1 || self.low < 0xFF00_0000 {
            if !self.is_first {
                self.bytes.push(self.cache.wrapping_add(carry));
            }
            self.is_first = false;
            for _ in 0..self.waiting {
                self.bytes.push(0xFF_u8.wrapping_add(carry));
            }
            self.waiting = 0;
            self.cache = u8::try_from(self.low >> 24 & 0xFF).expect("eight bits");
        } else {
            self.waiting += 1;
        }
        self.low = (self.low & 0x00FF_FFFF) << 8;
    }
}

impl Coder for Writer {
    const READS: bool = false;

    fn bit(&mut self, model: &mut Model, bit: bool) -> bool {
        let split = model.split(self.range);
        if bit {
            self.low += u64::from(split);
            self.range -= split;
        } else {
            self.range = split;
        }
        model.learn(bit);
        while self.range < RANGE_MIN {
            self.range <<= 8;
            self.shift();
        }
        bit
    }
}

pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    code: u32,
    range: u32,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Reader<'a> {
        let mut reader = Reader { bytes, at: 0, code: 0, range: u32::MAX };
        for _ in 0..4 {
            reader.next();
        }
        reader
    }

    /// Whether more bytes were read than there are.
    pub(crate) fn is_beyond_end(&self) -> bool {
        self.at > self.bytes.len() + 8
    }

    fn next(&mut self) {
        let byte = self.bytes.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        self.code = self.code << 8 | u32::from(byte);
    }
}

impl Coder for Reader<'_> {
    const READS: bool = true;

    fn bit(&mut self, model: &mut Model, _: bool) -> bool {
        let split = model.split(self.range);
        let bit = self.code >= split;
        if bit {
            self.code -= split;
            self.range -= split;
        } else {
            self.range = split;
        }
        model.learn(bit);
        while self.range < RANGE_MIN {
            self.range <<= 8;
            self.next();
        }
        bit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_coder_reads_what_it_wrote() {
        // Long runs, and carries through many bytes.
        let mut seed = 1_u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            u32::try_from(seed >> 33).unwrap()
        };
        let values: Vec<u32> = (0..200_000)
            .map(|at| match at / 1000 % 3 {
                0 => 0,
                1 => 255,
                _ => random() & 255,
            })
            .collect();
        let mut models = [Model::NEW; 256];
        let mut writer = Writer::new();
        for value in &values {
            writer.tree(&mut models, *value);
            writer.raw(3, value & 7);
        }
        let bytes = writer.finish();
        let mut models = [Model::NEW; 256];
        let mut reader = Reader::new(&bytes);
        for value in &values {
            assert_eq!(reader.tree(&mut models, 0), *value);
            assert_eq!(reader.raw(3, 0), value & 7);
        }
        assert!(!reader.is_beyond_end());
        assert!(bytes.len() < 200_000 * 7 / 8, "{}", bytes.len());
    }
}
