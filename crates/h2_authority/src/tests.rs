//! Client connections, split into pieces of every length.

use super::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const PATH: &str = "%2Frun%2Fhoist%2Fhoist.sock";
const MENDED: &str = "-2Frun-2Fhoist-2Fhoist.sock";
const DATA: u8 = 0;

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let [_, len @ ..] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&len[..], &[kind, flags, 0, 0, 0, 1], payload].concat()
}

/// A connection preface and these frames.
fn connection(frames: &[Vec<u8>]) -> Vec<u8> {
    [PREFACE, &frames.concat()].concat()
}

fn string(text: &str) -> Vec<u8> {
    [&[u8::try_from(text.len()).expect("a short one")][..], text.as_bytes()].concat()
}

/// A header block: `:method POST`, `:scheme http`, then `authority`, `:path /`, and a further field.
fn block(authority: &[u8]) -> Vec<u8> {
    let rest = [&[0x40][..], &string("user-agent-of-mine"), &string("%/%")].concat();
    [&[0x83, 0x86][..], authority, &[0x84], &rest].concat()
}

/// `:authority` as a literal with incremental indexing, its name in the static table.
fn literal(value: &str) -> Vec<u8> {
    [vec![0x41], string(value)].concat()
}

/// The bytes that a server receives if the client's come in these pieces.
fn read(pieces: &[&[u8]]) -> Vec<u8> {
    let (mut rewriter, mut read, mut held) = (Rewriter::default(), Vec::new(), Vec::new());
    for piece in pieces {
        held.extend_from_slice(piece);
        let passed = rewriter.pass(&mut held);
        read.extend(held.drain(..passed));
        assert!(held.len() <= HELD_MAX);
    }
    read.extend(held);
    read
}

#[track_caller]
fn check(sent: &[u8], expected: &[u8]) {
    assert_eq!(read(&[sent]), expected);
    for at in 0..=sent.len() {
        let (one, other) = sent.split_at(at);
        assert_eq!(read(&[one, other]), expected, "in two pieces, the first of {at} bytes");
    }
    let bytes: Vec<&[u8]> = sent.chunks(1).collect();
    assert_eq!(read(&bytes), expected, "byte by byte");
}

/// Checks the rewriting of one header block in one frame.
#[track_caller]
fn check_block(sent: &[u8], expected: &[u8]) {
    let framed = |block: &[u8]| connection(&[frame(HEADERS, END_HEADERS, block), frame(DATA, 1, b"%2F")]);
    check(&framed(sent), &framed(expected));
}

#[test]
fn a_path_becomes_a_name() {
    check_block(&block(&literal(PATH)), &block(&literal(MENDED)));
    check_block(&block(&literal("/run/a:b:c.sock")), &block(&literal("-run-a-b-c.sock")));
    check_block(&block(&literal("/r\u{e4}um")), &block(&literal("-r--um")));
}

#[test]
fn an_authority_stays_as_it_is() {
    for value in ["localhost", "127.0.0.1:80", "[::1]:80", "user@host", ""] {
        check_block(&block(&literal(value)), &block(&literal(value)));
    }
}

#[test]
fn each_form_of_a_literal_is_known() {
    for first in [0x41, 0x01, 0x11] {
        let literal = |value| [vec![first], string(value)].concat();
        check_block(&block(&literal(PATH)), &block(&literal(MENDED)));
    }
    for first in [0x40, 0x00, 0x10] {
        let literal = |value| [vec![first], string(":authority"), string(value)].concat();
        check_block(&block(&literal(PATH)), &block(&literal(MENDED)));
        let in_code = |value| [&[first, 0x88][..], AUTHORITY_NAME_IN_CODE, &string(value)].concat();
        check_block(&block(&in_code(PATH)), &block(&in_code(MENDED)));
        let other = [vec![first], string(":authoritx"), string(PATH)].concat();
        check_block(&block(&other), &block(&other));
    }
}

#[test]
fn a_huffman_coded_value_is_rewritten_in_place() {
    // "/a", and "-a": 011000 00011 and 010110 00011, padded.
    let sent = [0x41, 0x82, 0b0110_0000, 0b0111_1111];
    let expected = [0x41, 0x82, 0b0101_1000, 0b0111_1111];
    check_block(&block(&sent), &block(&expected));
}

#[test]
fn an_indexed_field_and_a_size_of_the_table_are_passed_over() {
    let before = [0x3f, 0xe1, 0x1f, 0xbe, 0xff, 0x80, 0x01];
    let block = |value| block(&[&before[..], &literal(value)].concat());
    check_block(&block(PATH), &block(MENDED));
}

#[test]
fn padding_and_priority_are_no_fields() {
    for (flags, head, tail) in [
        (PADDED, &[3][..], &[0x41, 1, b'/'][..]),
        (PRIORITY, &[0, 0, 0, 0, 9], &[]),
        (PADDED | PRIORITY, &[3, 0x41, 1, b'/', 0, 9], &[0x41, 1, b'/']),
    ] {
        let framed = |value| {
            let payload = [head, &block(&literal(value)), tail].concat();
            connection(&[
                frame(HEADERS, flags | END_HEADERS, &payload),
                frame(HEADERS, END_HEADERS, &literal(value)),
            ])
        };
        check(&framed(PATH), &framed(MENDED));
    }
}

/// Wherever a block is split over frames, all fields after the authority are read right, and the authority too unless
/// the split is inside it.
#[test]
fn a_block_goes_on_in_other_frames() {
    let (sent, mended) = (block(&literal(PATH)), block(&literal(MENDED)));
    let value = 2..2 + literal(PATH).len();
    for at in 0..=sent.len() {
        let framed = |first: &[u8], next: &[u8]| {
            let (one, other) = first.split_at(at);
            connection(&[
                frame(HEADERS, 0, one),
                frame(CONTINUATION, 0, &[]),
                frame(CONTINUATION, END_HEADERS, other),
                frame(HEADERS, END_HEADERS, next),
            ])
        };
        // Splits after the index of the name, or inside the value.
        let is_broken = at > value.start + 1 && at < value.end;
        check(&framed(&sent, &sent), &framed(if is_broken { &sent } else { &mended }, &mended));
    }
}

#[test]
fn a_malformed_block_is_left_to_the_server_and_later_ones_are_rewritten() {
    let good = |value| frame(HEADERS, END_HEADERS, &literal(value));
    let long = [&[0x41, 0x7f, 0x82, 0x07][..], &[b'/'; VALUE_LEN_MAX + 1]].concat();
    for bad in [
        frame(HEADERS, PADDED | END_HEADERS, &[]),
        frame(HEADERS, PRIORITY | END_HEADERS, &[0x41, 1, b'/', 0]),
        frame(HEADERS, PADDED | END_HEADERS, &[4, 0x41, 1, b'/']),
        // A string longer than its block, as a name and as a value.
        frame(HEADERS, END_HEADERS, &[0x41, 2, b'/']),
        frame(HEADERS, END_HEADERS, &[0x40, 2, b'/']),
        frame(HEADERS, END_HEADERS, &[0x40, 60, b'/']),
        // A number that does not end.
        frame(HEADERS, END_HEADERS, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x41, 1, b'/']),
        frame(HEADERS, END_HEADERS, &[0x41, 0x7f, 0xff]),
        frame(HEADERS, END_HEADERS, &[0x41]),
        // Longer than any socket path.
        frame(HEADERS, END_HEADERS, &long),
        // A continuation without a beginning.
        frame(CONTINUATION, END_HEADERS, &literal(PATH)),
    ] {
        let framed = |value| connection(&[good(value), bad.clone(), good(value)]);
        check(&framed(PATH), &framed(MENDED));
    }
}

#[test]
fn a_frame_of_any_length_takes_no_memory() {
    let field = [&[0x40][..], &string("x"), &[0x7f, 0x80, 0x01], &[b'/'; 255]].concat();
    let framed = |value| {
        let large = frame(HEADERS, END_HEADERS, &[field.repeat(1000), literal(value)].concat());
        connection(&[large, frame(DATA, 0, &[b'%'; 100_000])])
    };
    let (sent, expected) = (framed(PATH), framed(MENDED));
    for piece_len in [100, 16_384, sent.len()] {
        assert_eq!(read(&sent.chunks(piece_len).collect::<Vec<_>>()), expected);
    }
}
