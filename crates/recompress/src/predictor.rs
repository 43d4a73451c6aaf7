//! Predicts the next token of a deflate compressor.
//!
//! Deflate compressors search for the longest match among the last positions with the same hash of a few bytes, and
//! most prefer a longer match that begins a byte later (lazy matching). They differ in how many positions they try, and
//! in how many bytes they hash. The predictor imitates one of several [`Habits`], and is told the actual token after
//! each prediction. It need not be right, but must be deterministic: its errors are recorded.

use std::io::{self, Read};

use crate::text::Text;

/// The greatest length and distance of a match in deflate.
pub(crate) const MATCH_LEN_MAX: usize = 258;
pub(crate) const DISTANCE_MAX: u32 = 32 * 1024;
pub(crate) const MATCH_LEN_MIN: usize = 3;

const CHAIN_LEN: usize = 32 * 1024;
const HASH_BITS: u32 = 16;
/// After at most this many positions, their entries are cleared one by one instead of the whole table.
const FORGOTTEN_SINGLY_MAX: u64 = 4096;
/// Largest distance of a match of three bytes: beyond it, the match costs more than its literals.
const SHORT_DISTANCE_MAX: u32 = 4096;
/// Most positions among which [`Predictor::rank`] searches.
const PLACES_MAX: u32 = 512;

/// The parameters of a compressor; `good`, `lazy` and `nice` are those of zlib's `configuration_table`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Habits {
    /// Bytes that are hashed, and so the length of the shortest match that is found.
    pub(crate) hashed: usize,
    /// Most positions that are tried (zlib's `max_chain`).
    pub(crate) places: u32,
    /// After a match of at least this length, only a quarter of these positions is tried for a lazy match.
    pub(crate) good: usize,
    /// A match of this length ends the search.
    pub(crate) nice: usize,
    /// After a match shorter than this, the next position is tried too.
    pub(crate) lazy: usize,
    /// Largest distance.
    pub(crate) distance: u32,
}

const fn zlib(places: u32, good: usize, nice: usize, lazy: usize) -> Habits {
    Habits { hashed: 3, places, good, nice, lazy, distance: DISTANCE_MAX - 262 }
}

const fn go(places: u32, good: usize, nice: usize, lazy: usize) -> Habits {
    Habits { hashed: 4, places, good, nice, lazy, distance: DISTANCE_MAX }
}

/// The habits that are tried. A recipe refers to one by its index, so that new ones must be appended. zlib's levels are
/// in `configuration_table` of its `deflate.c`; those of Go's `compress/flate`, in `levels`, differ only in the lowest
/// ones.
pub(crate) const HABITS: &[Habits] = &[
    zlib(128, 8, 128, 16),
    go(128, 8, 128, 16),
    zlib(4, 4, 8, 0),
    zlib(8, 4, 16, 0),
    zlib(32, 4, 32, 0),
    zlib(16, 4, 16, 4),
    zlib(32, 8, 32, 16),
    zlib(256, 8, 128, 32),
    zlib(1024, 32, 258, 128),
    zlib(4096, 32, 258, 258),
    go(16, 4, 16, 4),
    go(32, 8, 32, 16),
    go(256, 8, 128, 32),
    go(1024, 32, 258, 128),
    go(4096, 32, 258, 258),
    go(1, 258, 258, 0),
    go(1, 258, 258, 258),
    go(2, 258, 258, 0),
    go(2, 258, 258, 258),
    go(4, 258, 258, 258),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Literal,
    Match { len: usize, distance: u32 },
}

impl Token {
    pub(crate) fn len(self) -> usize {
        match self {
            Token::Literal => 1,
            Token::Match { len, .. } => len,
        }
    }
}

pub(crate) struct Prediction {
    pub(crate) token: Token,
    /// Length of the longest match that was found here, whether it is predicted or not; 0 without a match.
    pub(crate) longest: usize,
}

#[derive(Clone, Copy, Default)]
struct Match {
    len: usize,
    distance: u32,
}

pub(crate) struct Predictor<R> {
    text: Text<R>,
    habits: Habits,
    /// By hash: the last position with it. Positions count from 1, modulo 2³²; 0 is none.
    last: Vec<u32>,
    /// By position: the one before with the same hash.
    before: Vec<u32>,
    /// Positions below this one are in the tables.
    known_to: u64,
    /// The match that was already found at the next position.
    found: Option<(u64, Match)>,
}

impl<R: Read> Predictor<R> {
    pub(crate) fn new(source: R, habits: Habits) -> Predictor<R> {
        Predictor {
            text: Text::new(source),
            habits,
            last: vec![0; 1 << HASH_BITS],
            before: vec![0; CHAIN_LEN],
            known_to: 0,
            found: None,
        }
    }

    /// Begins another text with other habits, in the same memory. It is equal to a new predictor, but faster.
    pub(crate) fn restart(&mut self, source: R, habits: Habits) {
        // `before` need not be cleared: it is only read at positions that `last` leads to, which were entered since.
        if self.known_to <= FORGOTTEN_SINGLY_MAX {
            for at in 0..self.known_to {
                if let Some(hash) = self.hash(at) {
                    self.last[hash] = 0;
                }
            }
        } else {
            self.last.fill(0);
        }
        self.text.restart(source);
        (self.habits, self.known_to, self.found) = (habits, 0, None);
    }

    pub(crate) fn at(&self) -> u64 {
        self.text.at()
    }

    /// The next `len` bytes; fewer at the end of the text.
    pub(crate) fn ahead(&mut self, len: usize) -> io::Result<&[u8]> {
        self.text.fill(len)?;
        let ahead = self.text.ahead();
        Ok(&ahead[..len.min(ahead.len())])
    }

    pub(crate) fn predict(&mut self) -> io::Result<Prediction> {
        self.text.fill(0)?;
        let at = self.at();
        let here = match self.found.take() {
            Some((place, found)) if place == at => found,
            _ => self.longest(at, MATCH_LEN_MIN - 1, self.habits.places),
        };
        if here.len < MATCH_LEN_MIN {
            return Ok(Prediction { token: Token::Literal, longest: 0 });
        }
        if here.len < self.habits.lazy {
            self.know_to(at + 1);
            let places = self.habits.places >> if here.len >= self.habits.good { 2 } else { 0 };
            let next = self.longest(at + 1, here.len, places);
            if next.len > here.len {
                self.found = Some((at + 1, next));
                return Ok(Prediction { token: Token::Literal, longest: here.len });
            }
        }
        let token = Token::Match { len: here.len, distance: here.distance };
        Ok(Prediction { token, longest: here.len })
    }

    /// Advances by the length of the actual token.
    pub(crate) fn advance(&mut self, len: usize) -> io::Result<()> {
        self.know_to(self.at() + len as u64);
        self.text.advance(len)
    }

    /// The index of a distance among those of matches of at least this length, the nearest first. `None` if it is not
    /// among the first [`PLACES_MAX`] positions.
    pub(crate) fn rank(&self, len: usize, distance: u32) -> Option<u32> {
        let mut rank = 0;
        self.places(self.at(), PLACES_MAX).find_map(|found| {
            if found == distance {
                return Some(Some(rank));
            }
            rank += u32::from(self.match_len(self.at(), found, len) >= len);
            (found > distance).then_some(None)
        })?
    }

    /// The distance with this rank: the reverse of [`Predictor::rank`].
    pub(crate) fn distance(&self, len: usize, rank: u32) -> Option<u32> {
        let mut fitting =
            self.places(self.at(), PLACES_MAX).filter(|found| self.match_len(self.at(), *found, len) >= len);
        fitting.nth(usize::try_from(rank).ok()?)
    }

    fn longest(&self, at: u64, beaten: usize, places: u32) -> Match {
        let mut best = Match { len: beaten, distance: 0 };
        let here = self.text.from(at);
        let max = here.len().min(MATCH_LEN_MAX);
        if beaten >= max {
            return Match::default();
        }
        for distance in self.places(at, places) {
            let there = self.text.from(at - u64::from(distance));
            // Most positions are ruled out by the byte that a longer match must have.
            if there[best.len] != here[best.len] {
                continue;
            }
            let len = common_len(&here[..max], &there[..max]);
            if len <= best.len || (len == MATCH_LEN_MIN && distance > SHORT_DISTANCE_MAX) {
                continue;
            }
            best = Match { len, distance };
            if len >= self.habits.nice || len == max {
                break;
            }
        }
        if best.distance == 0 { Match::default() } else { best }
    }

    /// Distances of the last positions with the same hash, the nearest first.
    fn places(&self, at: u64, count: u32) -> impl Iterator<Item = u32> {
        let place = place(at);
        let mut next = self.hash(at).map_or(0, |hash| self.last[hash]);
        let mut last_distance = 0;
        let mut left = count;
        std::iter::from_fn(move || {
            let distance = place.wrapping_sub(next);
            let is_behind = distance > last_distance && distance <= self.habits.distance;
            if next == 0 || left == 0 || !is_behind || u64::from(distance) > at {
                return None;
            }
            (left, last_distance) = (left - 1, distance);
            next = self.before[slot(at - u64::from(distance))];
            Some(distance)
        })
    }

    fn match_len(&self, at: u64, distance: u32, max: usize) -> usize {
        let (here, there) = (self.text.from(at), self.text.from(at.saturating_sub(u64::from(distance))));
        let max = max.min(here.len()).min(there.len());
        common_len(&here[..max], &there[..max])
    }

    fn hash(&self, at: u64) -> Option<usize> {
        let bytes = self.text.from(at).get(..self.habits.hashed)?;
        let value = bytes.iter().fold(0_u32, |value, byte| value << 8 | u32::from(*byte));
        usize::try_from(value.wrapping_mul(0x9E37_79B1) >> (32 - HASH_BITS)).ok()
    }

    fn know_to(&mut self, end: u64) {
        for at in self.known_to..end {
            let Some(hash) = self.hash(at) else { break };
            self.before[slot(at)] = self.last[hash];
            self.last[hash] = place(at);
        }
        self.known_to = end.max(self.known_to);
    }
}

/// Length of the common prefix, compared a word at a time.
fn common_len(one: &[u8], other: &[u8]) -> usize {
    let (words, rest) = one.as_chunks();
    let (other_words, other_rest) = other.as_chunks();
    let mut same = 0;
    for (word, other) in words.iter().zip(other_words) {
        let differ = u64::from_le_bytes(*word) ^ u64::from_le_bytes(*other);
        if differ != 0 {
            return same + differ.trailing_zeros() as usize / 8;
        }
        same += size_of_val(word);
    }
    same + rest.iter().zip(other_rest).take_while(|(one, other)| one == other).count()
}

#[expect(clippy::cast_possible_truncation, reason = "modulo 2³²")]
fn place(at: u64) -> u32 {
    (at as u32).wrapping_add(1)
}

fn slot(at: u64) -> usize {
    usize::try_from(at % CHAIN_LEN as u64).expect("below the length")
}
