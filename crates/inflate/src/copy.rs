//! Copies a match: earlier bytes of the output, which may overlap with the copy itself.

/// Bytes copied at a time, and bytes of a repeated pattern.
const PIECE: usize = 16;
const WORD: usize = 8;
/// Least length of a run for which calling memset is worthwhile.
const LONG: usize = 48;

/// Copies `len` bytes to `end` from `distance` before it. Up to two pieces behind the copy are overwritten.
#[inline(always)]
pub(crate) fn within<const N: usize>(buffer: &mut [u8; N], end: usize, distance: usize, len: usize) {
    if distance >= PIECE {
        // Nearly all matches are no longer than two pieces.
        let (mut from, mut to, until) = (end - distance, end, end + len);
        piece(buffer, from, to);
        piece(buffer, from + PIECE, to + PIECE);
        while to + 2 * PIECE < until {
            (from, to) = (from + PIECE, to + PIECE);
            piece(buffer, from + PIECE, to + PIECE);
        }
    } else {
        near(buffer, end, distance, len);
    }
}

#[inline(always)]
fn piece<const N: usize>(buffer: &mut [u8; N], from: usize, to: usize) {
    let piece: [u8; PIECE] = buffer[from..from + PIECE].try_into().expect("so many bytes");
    buffer[to..to + PIECE].copy_from_slice(&piece);
}

fn near<const N: usize>(buffer: &mut [u8; N], end: usize, distance: usize, len: usize) {
    let (mut from, mut to, until) = (end - distance, end, end + len);
    if distance >= WORD {
        while to < until {
            put(buffer, to, word(buffer, from));
            (from, to) = (from + WORD, to + WORD);
        }
        return;
    }
    if distance == 1 && len >= LONG {
        let byte = buffer[from];
        buffer[to..until].fill(byte);
        return;
    }
    // Repeats the last `distance` bytes; each word begins at a whole repetition.
    let (repeated, step) = PATTERNS[distance];
    let pattern = (word(buffer, from) & ((1 << (8 * distance)) - 1)).wrapping_mul(repeated);
    while to < until {
        put(buffer, to, pattern);
        to += step;
    }
}

/// By distance: the factor that repeats as many bytes in a word, and how many bytes of the word are whole repetitions.
static PATTERNS: [(u64, usize); WORD] = {
    let mut patterns = [(0, WORD); WORD];
    let mut distance = 1;
    while distance < WORD {
        let mut at = 0;
        while at < WORD {
            patterns[distance].0 |= 1 << (8 * at);
            at += distance;
        }
        patterns[distance].1 = WORD - WORD % distance;
        distance += 1;
    }
    patterns
};

#[inline(always)]
fn word<const N: usize>(buffer: &[u8; N], at: usize) -> u64 {
    u64::from_le_bytes(buffer[at..at + WORD].try_into().expect("so many bytes"))
}

#[inline(always)]
fn put<const N: usize>(buffer: &mut [u8; N], at: usize, word: u64) {
    buffer[at..at + WORD].copy_from_slice(&word.to_le_bytes());
}
