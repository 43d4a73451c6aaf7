//! Deflate streams (RFC 1951) as blocks and tokens: parsing and composing them, and coding their differences from a
//! prediction.

use std::io::{self, Read, Write};

use crate::bits::{BitReader, BitWriter};
use crate::coder::{self, Coder, Model};
use crate::damaged;
use crate::huffman::{Code, Table, codes, fixed};
use crate::predictor::{DISTANCE_MAX, HABITS, MATCH_LEN_MIN, Predictor, Token};
use crate::text::Plain;

/// Most tokens in memory at a time.
const RUN_LEN_MAX: usize = 1 << 16;
/// Tokens by which the habits of the compressor are found.
const SAMPLE_LEN: usize = 1 << 15;
/// Most blocks of this sample: blocks may be empty.
const SAMPLE_BLOCKS_MAX: usize = 256;
/// A stream of fewer tokens takes the habits that were found before, if they were found by as many tokens: a search
/// would cost more than it saves.
const SEARCH_LEN_MIN: usize = 512;
/// Plain bytes after which a piece ends with the current block.
const PIECE_LEN: u64 = 1 << 20;
/// Most bytes of one piece: far more than its blocks have in the stream.
const PIECE_CODE_LEN_MAX: u32 = 64 << 20;

const END_OF_BLOCK: u16 = 256;
/// Shortest length and number of extra bits, by symbol from 257 on (section 3.2.5).
const LENGTHS: [(u16, u8); 29] = [
    (3, 0),
    (4, 0),
    (5, 0),
    (6, 0),
    (7, 0),
    (8, 0),
    (9, 0),
    (10, 0),
    (11, 1),
    (13, 1),
    (15, 1),
    (17, 1),
    (19, 2),
    (23, 2),
    (27, 2),
    (31, 2),
    (35, 3),
    (43, 3),
    (51, 3),
    (59, 3),
    (67, 4),
    (83, 4),
    (99, 4),
    (115, 4),
    (131, 5),
    (163, 5),
    (195, 5),
    (227, 5),
    (258, 0),
];

/// Shortest distance and number of extra bits, by symbol.
fn distance_of(symbol: u16) -> Option<(u32, u32)> {
    let symbol = u32::from(symbol);
    match symbol {
        0..=3 => Some((symbol + 1, 0)),
        4..=29 => {
            let bits = symbol / 2 - 1;
            Some((((2 + symbol % 2) << bits) + 1, bits))
        }
        _ => None,
    }
}

/// The symbol for a distance.
fn symbol_of(distance: u32) -> u16 {
    let before = distance - 1;
    if before < 4 {
        return u16::try_from(before).expect("below four");
    }
    let bits = before.ilog2() - 1;
    u16::try_from(2 * bits + 2 + (before >> bits & 1)).expect("below thirty")
}

/// The header of a block.
#[derive(Clone, Debug, Default, PartialEq)]
struct Block {
    is_last: bool,
    kind: Kind,
}

#[derive(Clone, Debug, Default, PartialEq)]
enum Kind {
    /// Uncompressed bytes; `padding` is the bits that fill the byte before their length.
    Stored {
        padding: u32,
        len: u32,
    },
    #[default]
    Fixed,
    Dynamic(Codes),
}

/// The codes in the header of a dynamic block (section 3.2.7).
#[derive(Clone, Debug, Default, PartialEq)]
struct Codes {
    literals: u32,
    distances: u32,
    lens: Vec<u32>,
    /// Symbols of the code of code lengths, with their extra bits.
    symbols: Vec<(u32, u32)>,
}

const LENS_ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// The number of extra bits of a symbol of the code of code lengths, and the number of lengths that it stands for.
fn repeats(symbol: u32, extra: u32) -> (u32, u32) {
    match symbol {
        16 => (2, 3 + extra),
        17 => (3, 3 + extra),
        18 => (7, 11 + extra),
        _ => (0, 1),
    }
}

impl Codes {
    fn lens_of_lens(&self) -> Vec<u8> {
        let mut lens = vec![0; LENS_ORDER.len()];
        for (place, len) in LENS_ORDER.iter().zip(&self.lens) {
            lens[*place] = u8::try_from(*len).expect("three bits");
        }
        lens
    }

    fn count(&self) -> u32 {
        self.literals + 257 + self.distances + 1
    }

    /// The code lengths of literals and lengths, and of distances.
    fn lens(&self) -> io::Result<(Vec<u8>, Vec<u8>)> {
        let mut lens = Vec::new();
        for (symbol, extra) in &self.symbols {
            let (_, count) = repeats(*symbol, *extra);
            let value = match symbol {
                16 => *lens.last().ok_or_else(|| damaged("there is no code length to repeat"))?,
                17 | 18 => 0,
                len => u8::try_from(*len).expect("below 16"),
            };
            lens.extend((0..count).map(|_| value));
        }
        let literals = usize::try_from(self.literals + 257).expect("below 288");
        if lens.len() != usize::try_from(self.count()).expect("below 320") {
            return Err(damaged("more lengths of codes than symbols"));
        }
        let distances = lens.split_off(literals);
        Ok((lens, distances))
    }
}

/// Reads the blocks of a stream.
pub(crate) struct Parser<R> {
    bits: BitReader<R>,
    tables: Option<(Table, Table)>,
}

impl<R: Read> Parser<R> {
    pub(crate) fn new(source: R) -> Parser<R> {
        Parser { bits: BitReader::new(source), tables: None }
    }

    /// The next whole byte; `None` at the end.
    pub(crate) fn byte(&mut self) -> io::Result<Option<u8>> {
        self.bits.byte()
    }

    fn block(&mut self) -> io::Result<Block> {
        let is_last = self.bits.take(1)? == 1;
        let kind = match self.bits.take(2)? {
            0 => {
                let (_, padding) = self.bits.align()?;
                let (len, complement) = (self.bits.take(16)?, self.bits.take(16)?);
                if len ^ complement != 0xFFFF {
                    return Err(damaged("a stored block whose length does not match its complement"));
                }
                Kind::Stored { padding, len }
            }
            1 => Kind::Fixed,
            2 => Kind::Dynamic(self.codes()?),
            _ => return Err(damaged("a block of the reserved type")),
        };
        let lens = match &kind {
            Kind::Stored { .. } => None,
            Kind::Fixed => Some(fixed()),
            Kind::Dynamic(codes) => Some(codes.lens()?),
        };
        self.tables = match lens {
            Some((literals, distances)) => Some((Table::new(&literals)?, Table::new(&distances)?)),
            None => None,
        };
        Ok(Block { is_last, kind })
    }

    fn codes(&mut self) -> io::Result<Codes> {
        let (literals, distances) = (self.bits.take(5)?, self.bits.take(5)?);
        let count = self.bits.take(4)? + 4;
        let lens = (0..count).map(|_| self.bits.take(3)).collect::<io::Result<_>>()?;
        let mut codes = Codes { literals, distances, lens, symbols: Vec::new() };
        let table = Table::new(&codes.lens_of_lens())?;
        let mut known = 0;
        while known < codes.count() {
            let symbol = u32::from(table.read(&mut self.bits)?);
            let (bits, _) = repeats(symbol, 0);
            let extra = self.bits.take(bits)?;
            known += repeats(symbol, extra).1;
            codes.symbols.push((symbol, extra));
        }
        Ok(codes)
    }

    /// Reads tokens of the block, and returns whether it ended.
    fn tokens(&mut self, tokens: &mut Vec<Token>) -> io::Result<bool> {
        let Some((literals, distances)) = &self.tables else { return Ok(true) };
        while tokens.len() < RUN_LEN_MAX {
            match literals.read(&mut self.bits)? {
                0..END_OF_BLOCK => tokens.push(Token::Literal),
                END_OF_BLOCK => return Ok(true),
                symbol => {
                    let (base, bits) = *LENGTHS
                        .get(usize::from(symbol - 257))
                        .ok_or_else(|| damaged("an invalid length symbol"))?;
                    let extra = self.bits.take(u32::from(bits))?;
                    if symbol == 284 && extra == 31 {
                        // Another encoding of 258, which a recipe cannot tell from the usual symbol 285.
                        return Err(damaged("an unusual encoding of length 258"));
                    }
                    let len = usize::from(base) + usize::try_from(extra).expect("five bits");
                    let (base, bits) = distance_of(distances.read(&mut self.bits)?)
                        .ok_or_else(|| damaged("an invalid distance symbol"))?;
                    let distance = base + self.bits.take(bits)?;
                    tokens.push(Token::Match { len, distance });
                }
            }
        }
        Ok(false)
    }

    /// Skips stored bytes.
    fn skip(&mut self, len: u32) -> io::Result<()> {
        for _ in 0..len {
            self.bits.byte()?.ok_or(io::ErrorKind::UnexpectedEof)?;
        }
        Ok(())
    }
}

/// Writes the blocks of a stream.
struct Composer<W: Write> {
    bits: BitWriter<W>,
    /// Codes of literals and lengths, and of distances.
    codes: Option<(Vec<Code>, Vec<Code>)>,
}

impl<W: Write> Composer<W> {
    fn block(&mut self, block: &Block) -> io::Result<()> {
        self.bits.put(1, u32::from(block.is_last))?;
        match &block.kind {
            Kind::Stored { padding, len } => {
                self.bits.put(2, 0)?;
                self.pad(*padding)?;
                self.bits.put(16, *len)?;
                self.bits.put(16, len ^ 0xFFFF)?;
                self.codes = None;
            }
            Kind::Fixed => {
                self.bits.put(2, 1)?;
                let (literals, distances) = fixed();
                self.codes = Some((codes(&literals), codes(&distances)));
            }
            Kind::Dynamic(own) => {
                self.bits.put(2, 2)?;
                self.bits.put(5, own.literals)?;
                self.bits.put(5, own.distances)?;
                let count = u32::try_from(own.lens.len()).expect("at most 19");
                self.bits.put(4, count.saturating_sub(4))?;
                own.lens.iter().try_for_each(|len| self.bits.put(3, *len))?;
                let of_lens = codes(&own.lens_of_lens());
                for (symbol, extra) in &own.symbols {
                    let (len, code) = of_lens[usize::try_from(*symbol).expect("below 19")];
                    self.bits.put(len, code)?;
                    self.bits.put(repeats(*symbol, 0).0, *extra)?;
                }
                let (literals, distances) = own.lens()?;
                self.codes = Some((codes(&literals), codes(&distances)));
            }
        }
        Ok(())
    }

    fn literal(&mut self, byte: u8) -> io::Result<()> {
        self.symbol(u16::from(byte))
    }

    fn matched(&mut self, len: usize, distance: u32) -> io::Result<()> {
        let place = LENGTHS.partition_point(|(base, _)| usize::from(*base) <= len) - 1;
        let (base, bits) = LENGTHS[place];
        self.symbol(257 + u16::try_from(place).expect("below 29"))?;
        self.bits.put(u32::from(bits), u32::try_from(len - usize::from(base)).expect("five bits"))?;
        let symbol = symbol_of(distance);
        let (base, bits) = distance_of(symbol).expect("a symbol that there is");
        let Some((_, distances)) = &self.codes else { return Err(damaged("tokens without a code")) };
        let (len, code) = distances.get(usize::from(symbol)).copied().unwrap_or_default();
        self.bits.put(len, code)?;
        self.bits.put(bits, distance - base)
    }

    fn symbol(&mut self, symbol: u16) -> io::Result<()> {
        let Some((literals, _)) = &self.codes else { return Err(damaged("tokens without a code")) };
        let (len, code) = literals.get(usize::from(symbol)).copied().unwrap_or_default();
        self.bits.put(len, code)
    }

    fn pad(&mut self, padding: u32) -> io::Result<()> {
        let missing = self.bits.missing();
        self.bits.put(missing, padding & ((1 << missing) - 1))
    }
}

/// The adaptive models of a stream.
struct Models {
    hit: [Model; 64],
    is_match: [Model; 8],
    is_longest: [Model; 8],
    lens: [Model; 256],
    is_ranked: Model,
    rank: [Model; 16],
    rank_bits: [Model; 16],
    block: [Model; 4],
    code_symbols: [Model; 32],
    /// Whether the last three predictions were right, a bit each.
    history: usize,
}

impl Models {
    fn new() -> Models {
        Models {
            hit: [Model::NEW; 64],
            is_match: [Model::NEW; 8],
            is_longest: [Model::NEW; 8],
            lens: [Model::NEW; 256],
            is_ranked: Model::NEW,
            rank: [Model::NEW; 16],
            rank_bits: [Model::NEW; 16],
            block: [Model::NEW; 4],
            code_symbols: [Model::NEW; 32],
            history: 7,
        }
    }

    fn block<C: Coder>(&mut self, coder: &mut C, block: Block) -> io::Result<Block> {
        let is_last = coder.even_bit(block.is_last);
        let number = match block.kind {
            Kind::Stored { .. } => 0,
            Kind::Fixed => 1,
            Kind::Dynamic(_) => 2,
        };
        let kind = match coder.tree(&mut self.block, number) {
            0 => {
                let (padding, len) = match block.kind {
                    Kind::Stored { padding, len } => (padding, len),
                    _ => (0, 0),
                };
                Kind::Stored { padding: coder.raw(7, padding), len: coder.raw(16, len) }
            }
            1 => Kind::Fixed,
            2 => {
                let codes = match block.kind {
                    Kind::Dynamic(codes) => codes,
                    _ => Codes::default(),
                };
                Kind::Dynamic(self.codes(coder, &codes)?)
            }
            _ => return Err(damaged("a block of the reserved type")),
        };
        Ok(Block { is_last, kind })
    }

    fn codes<C: Coder>(&mut self, coder: &mut C, codes: &Codes) -> io::Result<Codes> {
        let (literals, distances) = (coder.raw(5, codes.literals), coder.raw(5, codes.distances));
        let count = coder.raw(4, u32::try_from(codes.lens.len().saturating_sub(4)).expect("at most 15")) + 4;
        let given = |at: u32| codes.lens.get(usize::try_from(at).expect("at most 19")).copied();
        let lens = (0..count).map(|at| coder.raw(3, given(at).unwrap_or(0))).collect();
        let mut read = Codes { literals, distances, lens, symbols: Vec::new() };
        let (mut known, mut at) = (0, 0);
        while known < read.count() {
            let (symbol, extra) = codes.symbols.get(at).copied().unwrap_or_default();
            let symbol = coder.tree(&mut self.code_symbols, symbol);
            if symbol > 18 {
                return Err(damaged("an invalid code length symbol"));
            }
            let extra = coder.raw(repeats(symbol, 0).0, extra);
            known += repeats(symbol, extra).1;
            read.symbols.push((symbol, extra));
            at += 1;
        }
        Ok(read)
    }

    fn token<C: Coder, R: Read>(
        &mut self,
        coder: &mut C,
        predictor: &mut Predictor<R>,
        token: Token,
    ) -> io::Result<Token> {
        let predicted = predictor.predict()?;
        let kind = match predicted.token {
            Token::Literal if predicted.longest == 0 => 0,
            Token::Literal => 1,
            Token::Match { len: 3, .. } => 2,
            Token::Match { len: 4, .. } => 3,
            Token::Match { len: 5..=7, .. } => 4,
            Token::Match { len: 8..=31, .. } => 5,
            Token::Match { len: 32..=257, .. } => 6,
            Token::Match { .. } => 7,
        };
        let missed = coder.bit(&mut self.hit[kind * 8 + self.history], token != predicted.token);
        self.history = (self.history << 1 | usize::from(!missed)) & 7;
        if !missed {
            return Ok(predicted.token);
        }
        if predicted.token != Token::Literal && !coder.bit(&mut self.is_match[kind], token != Token::Literal)
        {
            return Ok(Token::Literal);
        }
        let (len, distance) = match token {
            Token::Match { len, distance } => (len, distance),
            Token::Literal => (MATCH_LEN_MIN, 1), // only when reading, which ignores these values
        };
        let is_longest =
            predicted.longest > 0 && coder.bit(&mut self.is_longest[kind], len == predicted.longest);
        let len = match is_longest {
            true => predicted.longest,
            false => {
                let above = u32::try_from(len - MATCH_LEN_MIN).expect("eight bits");
                MATCH_LEN_MIN + usize::try_from(coder.tree(&mut self.lens, above)).expect("eight bits")
            }
        };
        let rank = if C::READS { None } else { predictor.rank(len, distance) };
        if !coder.bit(&mut self.is_ranked, rank.is_some()) {
            let distance = 1 + coder.raw(DISTANCE_MAX.ilog2(), distance - 1);
            return Ok(Token::Match { len, distance });
        }
        let rank = self.rank(coder, rank.unwrap_or(0));
        let distance = match C::READS {
            true => predictor.distance(len, rank).ok_or_else(|| damaged("no match where one was"))?,
            false => distance,
        };
        Ok(Token::Match { len, distance })
    }

    /// Codes a number below 2¹⁵, small ones in few bits.
    fn rank<C: Coder>(&mut self, coder: &mut C, rank: u32) -> u32 {
        let wanted = (rank + 1).ilog2();
        let mut bits = 0;
        while bits < 15 && coder.bit(&mut self.rank[bits as usize], bits < wanted) {
            bits += 1;
        }
        if bits == 0 {
            return 0;
        }
        let first = coder.bit(&mut self.rank_bits[bits as usize], (rank + 1) >> (bits - 1) & 1 == 1);
        let rest = coder.raw(bits - 1, (rank + 1) & ((1 << (bits - 1)) - 1));
        (1 << bits | u32::from(first) << (bits - 1) | rest) - 1
    }
}

/// A part of the sample, which is coded after the habits were found.
enum Sampled {
    Block(Block),
    Tokens { tokens: Vec<Token>, ended: bool },
}

/// Writes the recipes of streams, one after another.
pub(crate) struct Dissector<'a> {
    predictor: Predictor<Plain<'a>>,
    /// Index in [`HABITS`] of the habits that were found last.
    number: usize,
    /// The most tokens by which habits were found.
    learnt: usize,
}

impl<'a> Dissector<'a> {
    pub(crate) fn new(plain: Plain<'a>) -> Dissector<'a> {
        Dissector { predictor: Predictor::new(plain, HABITS[0]), number: 0, learnt: 0 }
    }

    /// Reads a stream to its end, writes its recipe for rebuilding it from `plain`, and returns how many bytes of that
    /// it unpacks to.
    pub(crate) fn dissect<R: Read>(
        &mut self,
        parser: &mut Parser<R>,
        plain: &Plain<'a>,
        to: &mut impl Write,
    ) -> io::Result<u64> {
        let sample = sample(parser)?;
        let number = self.habits(&sample, plain);
        to.write_all(&[u8::try_from(number).expect("few")])?;
        let predictor = &mut self.predictor;
        predictor.restart(plain.clone(), HABITS[number]);
        let mut models = Models::new();
        let mut waiting = sample.into_iter();
        let mut is_last = false;
        while !is_last {
            let (mut coder, begin) = (coder::Writer::new(), predictor.at());
            loop {
                is_last = code_block(parser, &mut waiting, &mut coder, &mut models, predictor)?;
                let ends = is_last || predictor.at() - begin >= PIECE_LEN;
                coder.even_bit(ends);
                if ends {
                    break;
                }
            }
            if is_last {
                let (_, padding) = parser.bits.align()?;
                coder.raw(7, padding);
            }
            let code = coder.finish();
            to.write_all(&u32::try_from(code.len()).map_err(io::Error::other)?.to_le_bytes())?;
            to.write_all(&code)?;
        }
        Ok(predictor.at())
    }

    /// The habits with which the sample takes the fewest bytes. Those that were found last are tried first, since the
    /// streams of a file mostly are of one compressor; trying others stops as soon as they are no better.
    fn habits(&mut self, sample: &[Sampled], plain: &Plain<'a>) -> usize {
        let len = tokens(sample).count();
        if len < SEARCH_LEN_MIN && len <= self.learnt {
            return self.number;
        }
        let (last, mut least) = (self.number, usize::MAX);
        for tried in std::iter::once(last).chain((0..HABITS.len()).filter(|tried| *tried != last)) {
            self.predictor.restart(plain.clone(), HABITS[tried]);
            if let Some(cost) = cost(sample, &mut self.predictor, least) {
                (self.number, least) = (tried, cost);
            }
        }
        self.learnt = self.learnt.max(len);
        self.number
    }
}

/// Codes a block, and returns whether it is the last.
fn code_block<R: Read, P: Read>(
    parser: &mut Parser<R>,
    waiting: &mut impl Iterator<Item = Sampled>,
    coder: &mut coder::Writer,
    models: &mut Models,
    predictor: &mut Predictor<P>,
) -> io::Result<bool> {
    let block = match waiting.next() {
        Some(Sampled::Block(block)) => block,
        Some(Sampled::Tokens { .. }) => unreachable!("tokens follow a block"),
        None => parser.block()?,
    };
    let (is_last, stored) = (block.is_last, stored_len(&block));
    models.block(coder, block)?;
    check_len(coder)?;
    if let Some(len) = stored {
        parser.skip(len)?;
        advance_stored(predictor, len)?;
        return Ok(is_last);
    }
    loop {
        let (tokens, ended) = match waiting.next() {
            Some(Sampled::Tokens { tokens, ended }) => (tokens, ended),
            Some(Sampled::Block(_)) => unreachable!("a block's tokens end before the next"),
            None => {
                let mut tokens = Vec::new();
                let ended = parser.tokens(&mut tokens)?;
                (tokens, ended)
            }
        };
        coder.raw(17, u32::try_from(tokens.len()).expect("a run"));
        coder.even_bit(ended);
        for token in tokens {
            models.token(coder, predictor, token)?;
            predictor.advance(token.len())?;
        }
        check_len(coder)?;
        if ended {
            return Ok(is_last);
        }
    }
}

/// Bounds the length of a piece. Called after each block header and each run of tokens, which have a bounded length: a
/// block may be as long as the stream.
fn check_len(coder: &coder::Writer) -> io::Result<()> {
    match coder.len() > PIECE_CODE_LEN_MAX as usize {
        true => Err(damaged("a stream that cannot be predicted at all")),
        false => Ok(()),
    }
}

fn stored_len(block: &Block) -> Option<u32> {
    match block.kind {
        Kind::Stored { len, .. } => Some(len),
        _ => None,
    }
}

fn advance_stored<P: Read>(predictor: &mut Predictor<P>, len: u32) -> io::Result<()> {
    let len = usize::try_from(len).expect("16 bits");
    predictor.ahead(len)?;
    predictor.advance(len)
}

/// Reads the sample of a stream: whole blocks, and the first run of tokens of a long one.
fn sample<R: Read>(parser: &mut Parser<R>) -> io::Result<Vec<Sampled>> {
    const { assert!(RUN_LEN_MAX >= SAMPLE_LEN, "a run that does not end its block is enough") };
    let (mut read, mut count) = (Vec::new(), 0);
    for _ in 0..SAMPLE_BLOCKS_MAX {
        let block = parser.block()?;
        let (is_last, is_stored) = (block.is_last, stored_len(&block).is_some());
        read.push(Sampled::Block(block));
        if is_stored {
            // It has no tokens, and its bytes must be read next.
            break;
        }
        let mut tokens = Vec::new();
        let ended = parser.tokens(&mut tokens)?;
        count += tokens.len();
        read.push(Sampled::Tokens { tokens, ended });
        if is_last || !ended || count >= SAMPLE_LEN {
            break;
        }
    }
    Ok(read)
}

/// The first [`SAMPLE_LEN`] tokens of the sample.
fn tokens(sample: &[Sampled]) -> impl Iterator<Item = Token> {
    let tokens = sample.iter().filter_map(|read| match read {
        Sampled::Tokens { tokens, .. } => Some(tokens),
        Sampled::Block(_) => None,
    });
    tokens.flatten().copied().take(SAMPLE_LEN)
}

/// Bytes that the sample's tokens take with the predictor's habits; `None` if they are at least `others`.
fn cost<P: Read>(sample: &[Sampled], predictor: &mut Predictor<P>, others: usize) -> Option<usize> {
    let (mut models, mut coder) = (Models::new(), coder::Writer::new());
    for token in tokens(sample) {
        let coded = models.token(&mut coder, predictor, token);
        if coded.and_then(|_| predictor.advance(token.len())).is_err() || coder.len() >= others {
            return None;
        }
    }
    Some(coder.len())
}

/// Rebuilds a stream from the recipe that [`Dissector::dissect`] wrote, and returns how many bytes of `plain` it used.
/// The predictor is restarted, so that callers can reuse one.
pub(crate) fn compose<'a>(
    from: &mut impl Read,
    plain: &Plain<'a>,
    predictor: &mut Predictor<Plain<'a>>,
    to: &mut impl Write,
) -> io::Result<u64> {
    let mut number = [0];
    from.read_exact(&mut number)?;
    let habits = HABITS.get(usize::from(number[0])).ok_or_else(|| damaged("unknown habits"))?;
    predictor.restart(plain.clone(), *habits);
    let mut models = Models::new();
    let mut composer = Composer { bits: BitWriter::new(to), codes: None };
    let mut is_last = false;
    while !is_last {
        let mut len = [0; 4];
        from.read_exact(&mut len)?;
        let len = u32::from_le_bytes(len);
        if len > PIECE_CODE_LEN_MAX * 2 {
            return Err(damaged("a piece that is too long"));
        }
        let mut code = Vec::new();
        from.by_ref().take(u64::from(len)).read_to_end(&mut code)?;
        let mut coder = coder::Reader::new(&code);
        loop {
            is_last = compose_block(&mut coder, &mut models, predictor, &mut composer)?;
            if coder.is_beyond_end() {
                return Err(damaged("a piece that ends too early"));
            }
            if coder.even_bit(false) {
                break;
            }
        }
        if is_last {
            composer.pad(coder.raw(7, 0))?;
        }
    }
    composer.bits.bytes(&[])?;
    Ok(predictor.at())
}

fn compose_block<P: Read, W: Write>(
    coder: &mut coder::Reader<'_>,
    models: &mut Models,
    predictor: &mut Predictor<P>,
    composer: &mut Composer<W>,
) -> io::Result<bool> {
    let block = models.block(coder, Block::default())?;
    composer.block(&block)?;
    if let Some(len) = stored_len(&block) {
        let bytes = predictor.ahead(usize::try_from(len).expect("16 bits"))?;
        composer.bits.bytes(bytes)?;
        advance_stored(predictor, len)?;
        return Ok(block.is_last);
    }
    loop {
        let count = coder.raw(17, 0);
        let ended = coder.even_bit(false);
        for _ in 0..count {
            let token = models.token(coder, predictor, Token::Literal)?;
            match token {
                Token::Literal => {
                    let byte = predictor.ahead(1)?.first().copied();
                    composer.literal(byte.ok_or_else(|| damaged("the text ends too early"))?)?;
                }
                Token::Match { len, distance } => composer.matched(len, distance)?,
            }
            predictor.advance(token.len())?;
        }
        if ended {
            composer.symbol(END_OF_BLOCK)?;
            return Ok(block.is_last);
        }
        if coder.is_beyond_end() {
            return Err(damaged("a block that does not end"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Far longer than a sample.
    const STREAM_LEN: u64 = 1 << 20;
    /// The beginning of a fixed block that does not end: all further bits are literals.
    const LONG_BLOCK: [u8; 1] = [0xFA];
    /// Four empty blocks of the fixed code, of ten bits each.
    const EMPTY_BLOCKS: [u8; 5] = [0x02, 0x08, 0x20, 0x80, 0x00];

    fn long_block() -> impl Read {
        LONG_BLOCK.chain(io::repeat(0xFF)).take(STREAM_LEN)
    }

    #[test]
    fn a_sample_ends_within_a_block_and_among_empty_ones() {
        let empty_blocks = EMPTY_BLOCKS.repeat(usize::try_from(STREAM_LEN).unwrap() / EMPTY_BLOCKS.len());
        let streams: [(&str, Box<dyn Read>); 2] =
            [("long block", Box::new(long_block())), ("empty blocks", Box::new(&empty_blocks[..]))];
        for (what, stream) in streams {
            let sample = sample(&mut Parser::new(stream)).unwrap();
            let tokens: usize = sample
                .iter()
                .map(|read| match read {
                    Sampled::Block(_) => 0,
                    Sampled::Tokens { tokens, .. } => tokens.len(),
                })
                .sum();
            assert!(sample.len() <= 2 * SAMPLE_BLOCKS_MAX, "{what}: {}", sample.len());
            assert!(tokens < SAMPLE_LEN + RUN_LEN_MAX, "{what}: {tokens}");
        }
    }

    #[test]
    fn a_piece_that_grows_too_long_ends_within_a_block() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(STREAM_LEN).unwrap();
        let plain = Plain::new(&file, STREAM_LEN);
        let mut coder = coder::Writer::of_len(PIECE_CODE_LEN_MAX as usize - 16);
        let coded = code_block(
            &mut Parser::new(long_block()),
            &mut std::iter::empty(),
            &mut coder,
            &mut Models::new(),
            &mut Predictor::new(plain, HABITS[0]),
        );
        // And not because the stream ended.
        assert_eq!(coded.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(coder.len() < PIECE_CODE_LEN_MAX as usize + RUN_LEN_MAX, "{}", coder.len());
    }
}
