//! The Huffman code of HPACK (RFC 7541 §5.2 and appendix B), as far as host names need it.
//!
//! A character is replaced by one with a code of the same length, so nothing else moves.

use crate::{is_authority, is_unreserved};

/// Characters with codes of the same length. The code is canonical: codes of one length are consecutive in character
/// order, and the first of a length follows the last of the length before it.
struct Row {
    len: u32,
    characters: &'static [u8],
    /// Replaces characters of this row that a host name may not contain; `None` if the row has no allowed character.
    instead: Option<u8>,
}

const fn row(len: u32, characters: &'static [u8], instead: Option<u8>) -> Row {
    Row { len, characters, instead }
}

/// All codes of up to 13 bits. The others are those of control characters, bytes above 127, and ``^}<`{\``.
const ROWS: [Row; 8] = [
    row(5, b"012aceiost", Some(b'0')),
    row(6, b" %-./3456789=A_bdfghlmnpru", Some(b'-')),
    row(7, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz", Some(b'j')),
    row(8, b"&*,;XZ", Some(b'X')),
    row(10, b"!\"()?", Some(b'!')),
    row(11, b"'+|", Some(b'+')),
    row(12, b"#>", None),
    row(13, b"\0$@[]~", Some(b'~')),
];

/// A decoded character and its place in the value.
struct Placed {
    byte: u8,
    /// Where its code begins, in bits.
    at: usize,
    row: &'static Row,
    /// The code of the row's first character.
    first_code: usize,
}

/// Rewrites a value that is not a valid authority, unless one of its characters has no replacement.
pub(crate) fn mend(value: &mut [u8]) {
    let Some(characters) = decode(value) else { return };
    let text: Vec<u8> = characters.iter().map(|placed| placed.byte).collect();
    let misfits = || characters.iter().filter(|placed| !is_unreserved(placed.byte));
    if is_authority(&text) || misfits().any(|placed| placed.row.instead.is_none()) {
        return;
    }
    for Placed { at, row, first_code, .. } in misfits() {
        let instead = row.characters.iter().position(|byte| Some(*byte) == row.instead);
        let code = first_code + instead.expect("what stands for others of a row is in it");
        (0..row.len).for_each(|bit| set_bit(value, at + bit as usize, code >> (row.len - 1 - bit) & 1));
    }
}

/// `None` if a code is in none of the rows, or the padding is invalid.
fn decode(value: &[u8]) -> Option<Vec<Placed>> {
    let (mut characters, mut at) = (Vec::new(), 0);
    let end = value.len() * 8;
    while let Some(placed) = character(value, at) {
        at += placed.row.len as usize;
        characters.push(placed);
    }
    // Padding is the beginning of the longest code, which is all ones (RFC 7541 §5.2).
    let is_padding = end.checked_sub(at)? < 8 && (at..end).all(|at| bit(value, at) == 1);
    is_padding.then_some(characters)
}

/// The character whose code begins at bit `at`. Bits past the end read as ones, like padding; no code of the rows is
/// all ones.
fn character(value: &[u8], at: usize) -> Option<Placed> {
    let (mut code, mut len, mut first_code) = (0, 0, 0);
    for row in &ROWS {
        while len < row.len {
            code = code << 1 | bit(value, at + len as usize);
            first_code <<= 1;
            len += 1;
        }
        if let Some(byte) = row.characters.get(code - first_code) {
            return Some(Placed { byte: *byte, at, row, first_code });
        }
        first_code += row.characters.len();
    }
    None
}

fn bit(value: &[u8], at: usize) -> usize {
    value.get(at / 8).map_or(1, |byte| usize::from(byte >> (7 - at % 8) & 1))
}

fn set_bit(value: &mut [u8], at: usize, bit: usize) {
    let mask = 0x80 >> (at % 8);
    let byte = &mut value[at / 8];
    *byte = if bit == 1 { *byte | mask } else { *byte & !mask };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Encodes a text by the rows.
    fn encode(text: &[u8]) -> Vec<u8> {
        let mut bits: Vec<usize> = Vec::new();
        for byte in text {
            let (mut first_code, mut before) = (0, 0);
            for row in &ROWS {
                first_code <<= row.len - before;
                if let Some(place) = row.characters.iter().position(|known| known == byte) {
                    bits.extend((0..row.len).rev().map(|bit| (first_code + place) >> bit & 1));
                    break;
                }
                first_code += row.characters.len();
                before = row.len;
            }
        }
        bits.resize(bits.len().next_multiple_of(8), 1);
        let byte = |bits: &[usize]| bits.iter().fold(0, |byte, bit| byte << 1 | *bit);
        bits.chunks(8).map(|bits| u8::try_from(byte(bits)).unwrap()).collect()
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    /// Examples of RFC 7541 appendix C, and each row against the codes of appendix B.
    #[test]
    fn the_code_is_that_of_rfc_7541() {
        for (text, code) in [
            ("www.example.com", "f1e3c2e5f23a6ba0ab90f4ff"),
            ("Mon, 21 Oct 2013 20:13:21 GMT", "d07abe941054d444a8200595040b8166e082a62d1bff"),
            ("https://www.example.com", "9d29ad171863c78f0b97c8e9ae82ae43d3"),
            ("012aceiost", "00443214c7427f"),
            (" %-./3456789=A_bdfghlmnpru", "51559761969b71d79f8218a39259a7a29aabb2df"),
            (":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz", "b976f5fc187163c997367d1a756bd9b776fe1c7973e9d7b77f1e7d7b"),
            ("&*,;XZ", "f8f9fafbfcfd"),
            ("!\"()?", "fe3f9febfbff3f"),
            ("'+|", "ff5feffe7f"),
            ("#>", "ffaffb"),
            ("\0$@[]~", "ffc7fe7ff5ffbffe7ff7"),
        ] {
            let characters = decode(&hex(code)).expect(text);
            assert_eq!(
                String::from_utf8(characters.iter().map(|placed| placed.byte).collect()).unwrap(),
                text
            );
            assert_eq!(encode(text.as_bytes()), hex(code), "{text}");
        }
    }

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let before = encode(text.as_bytes());
        let mut value = before.clone();
        mend(&mut value);
        assert_eq!(value, encode(expected.as_bytes()), "{text}");
        assert_eq!(value.len(), before.len());
    }

    #[test]
    fn invalid_characters_become_valid_ones_with_codes_of_the_same_length() {
        check("%2Frun%2Fhoist%2Fhoist.sock", "-2Frun-2Fhoist-2Fhoist.sock");
        check("/run/a:b:c/x.sock", "-run-ajbjc-x.sock");
        check("/& *,;=/", "-X-XXX--");
        check("/!\"()?", "-!!!!!");
        check("/'+|x", "-+++x");
        check("/$@[]~", "-~~~~~");
    }

    #[test]
    fn an_authority_stays_as_it_is() {
        for text in ["localhost", "localhost:80", "[::1]:443", "user@host", "(a)!$&'+,;=*~"] {
            check(text, text);
        }
    }

    #[test]
    fn a_value_without_a_replacement_stays_as_it_is() {
        check("/a#b", "/a#b");
        check("/a>b", "/a>b");
        // "/", and then the code of "<", which is in no row: 011000 111111111111100, and padding.
        let other = [0b0110_0011, 0b1111_1111, 0b1110_0111];
        let mut value = other;
        mend(&mut value);
        assert_eq!(value, other);
    }

    #[test]
    fn invalid_padding_is_left_to_the_server() {
        for code in [&[0x63, 0xff][..], &[0x60], &[0x63, 0xff, 0xff]] {
            let mut value = code.to_vec();
            mend(&mut value);
            assert_eq!(value, code);
        }
    }
}
