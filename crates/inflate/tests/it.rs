//! Streams of many compressors, inflated as a whole and from the middle, and compared with zlib.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use inflate::{Buffer, Damage, Gzip, OUTPUT_LEN, Place, Stop};
use proptest::prelude::*;

/// A position to restart from.
struct Checkpoint {
    input: usize,
    output: usize,
    window: Vec<u8>,
    bit_count: u8,
}

/// Inflates a file that arrives in pieces of `piece` bytes, with a checkpoint every `every` bytes of output.
fn inflate(file: &[u8], piece: usize, every: Option<usize>) -> Result<(Vec<u8>, Vec<Checkpoint>), Damage> {
    run(Gzip::default(), file, 0, piece, every)
}

fn run(
    mut gzip: Gzip,
    file: &[u8],
    begin: usize,
    piece: usize,
    every: Option<usize>,
) -> Result<(Vec<u8>, Vec<Checkpoint>), Damage> {
    let (mut at, mut seen) = (begin, begin);
    let (mut output, mut checkpoints) = (Vec::new(), Vec::<Checkpoint>::new());
    let mut buffer = Buffer::default();
    loop {
        let last = checkpoints.last().map_or(0, |checkpoint| checkpoint.output);
        let block_at = every.map(|every| (last + every).saturating_sub(output.len()));
        let (taken, stop) = gzip.run(&file[at..seen], seen == file.len(), block_at)?;
        at += taken;
        match stop {
            Stop::Input => {
                assert!(seen < file.len(), "there is no more");
                seen = (seen + piece).min(file.len());
            }
            Stop::Output => {
                // Some output is copied, some taken by exchanging buffers, and some may be left.
                let len = gzip.output().len() / 3;
                output.extend_from_slice(&gzip.output()[..len]);
                gzip.take(len);
                let given = gzip.exchange(&mut buffer);
                assert!(given.len() <= OUTPUT_LEN);
                output.extend_from_slice(&buffer[given]);
            }
            Stop::End => {
                assert_eq!((at, gzip.output()), (file.len(), &[][..]));
                return Ok((output, checkpoints));
            }
            Stop::Member => unreachable!("nobody asked for that"),
            Stop::Block => {
                let (window, bit_count) = match gzip.place() {
                    Place::Member => (Vec::new(), 0),
                    Place::Block { window, bit_count } => (window.to_vec(), bit_count),
                };
                let output = output.len() + gzip.output().len();
                checkpoints.push(Checkpoint { input: at, output, window, bit_count });
            }
        }
    }
}

fn resume(file: &[u8], checkpoint: &Checkpoint) -> Vec<u8> {
    let gzip = match &checkpoint.window[..] {
        [] => Gzip::default(),
        window => Gzip::within(window, file[checkpoint.input - 1], checkpoint.bit_count),
    };
    run(gzip, file, checkpoint.input, 1 << 16, None).unwrap().0
}

fn zlib(file: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    flate2::bufread::MultiGzDecoder::new(file).read_to_end(&mut plain).map(|_| plain)
}

fn gzip(plain: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// Inflated in pieces of any length it is `plain`, and from each place between blocks on it is the rest of it.
#[track_caller]
fn check(file: &[u8], plain: &[u8]) {
    for (piece, every) in
        [(1 << 17, None), (1 << 16, Some(1 << 15)), (1000, Some(1 << 18)), (file.len(), Some(1))]
    {
        let (output, checkpoints) = inflate(file, piece.max(1), every).unwrap();
        assert!(output == plain, "{piece} {every:?}");
        for checkpoint in checkpoints.iter().step_by(1 + checkpoints.len() / 20) {
            assert!(resume(file, checkpoint) == plain[checkpoint.output..], "from {}", checkpoint.output);
        }
    }
}

/// Words of few letters, runs, repetitions near and far, and noise.
fn text(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut text: Vec<u8> = Vec::new();
    while text.len() < len {
        let count = 1 + random() as usize % 400;
        match random() % 6 {
            0 => text.extend(std::iter::repeat_n(random() as u8, count)),
            1 => text.extend((0..count).map(|_| random() as u8)),
            2 | 3 if !text.is_empty() => {
                let distance =
                    1 + random() as usize % text.len().min(if count.is_multiple_of(2) { 20 } else { 40_000 });
                (0..count).for_each(|_| text.push(text[text.len() - distance]));
            }
            _ => text.extend((0..count).map(|_| b"etaoin shrdlu\n"[random() as usize % 14])),
        }
    }
    text.truncate(len);
    text
}

#[test]
fn streams_of_all_levels_are_inflated_from_anywhere() {
    for level in [0, 1, 6, 9] {
        for len in [0, 1, 300, 70_000, 1_500_000] {
            let plain = text(len, len as u64 + u64::from(level));
            check(&gzip(&plain, level), &plain);
        }
    }
}

#[test]
fn codes_of_all_lengths_are_known() {
    // Frequencies of Fibonacci make the longest codes.
    let (mut plain, mut counts) = (Vec::new(), (1_usize, 1_usize));
    for byte in 0..24_u8 {
        plain.extend(std::iter::repeat_n(byte * 9, counts.0));
        counts = (counts.1, counts.0 + counts.1);
    }
    let mut shuffled = plain.clone();
    let len = shuffled.len();
    for at in 0..len {
        shuffled.swap(at, (at * 7919 + 13) % len);
    }
    for plain in [plain, shuffled] {
        for strategy in [0, 2] {
            let mut child = std::process::Command::new("python3")
                .arg("-c")
                .arg(format!(
                    "import sys,zlib;c=zlib.compressobj(9,8,31,9,{strategy});\
                     sys.stdout.buffer.write(c.compress(sys.stdin.buffer.read())+c.flush())"
                ))
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .expect("python3 is installed");
            let mut input = child.stdin.take().unwrap();
            let given = plain.clone();
            let writer = std::thread::spawn(move || input.write_all(&given).unwrap());
            let file = child.wait_with_output().unwrap().stdout;
            writer.join().unwrap();
            check(&file, &plain);
        }
    }
}

#[test]
fn gzip_members_follow_each_other() {
    let (one, other) = (text(200_000, 1), text(90_000, 2));
    let file = [gzip(&one, 6), gzip(&[], 6), gzip(&other, 1), gzip(&one, 0)].concat();
    check(&file, &[&one[..], &other, &one].concat());
}

#[test]
fn the_decoder_stops_behind_members_if_asked() {
    let members = [gzip(&text(3000, 1), 6), gzip(&[], 6), gzip(&text(70, 2), 0)];
    let file = members.concat();
    let mut gzip = Gzip::default();
    gzip.stop_at_members(true);
    let mut at = 0;
    for member in &members {
        assert!(!gzip.is_between() || at > 0);
        let (taken, stop) = gzip.run(&file[at..], true, None).unwrap();
        assert_eq!((taken, stop), (member.len(), Stop::Member));
        assert!(gzip.is_between());
        at += taken;
    }
    gzip.take(3070);
    assert_eq!(gzip.run(&[], true, None), Ok((0, Stop::End)));
}

/// What a reader takes at a time does not depend on how a stream is cut into members.
#[test]
fn small_members_fill_the_same_memory() {
    let plain = text(600_000, 4);
    let file: Vec<u8> = plain.chunks(500).flat_map(|chunk| gzip(chunk, 6)).collect();
    check(&file, &plain);
    let mut gzip = Gzip::default();
    let (taken, stop) = gzip.run(&file, true, None).unwrap();
    assert!(stop == Stop::Output && taken < file.len());
    assert!(gzip.exchange(&mut Buffer::default()).len() == OUTPUT_LEN);
}

#[test]
fn gzip_headers_with_all_fields_are_read() {
    let plain = text(5000, 3);
    let file = flate2::GzBuilder::new()
        .extra(vec![7; 300])
        .filename("a name")
        .comment("a comment")
        .write(Vec::new(), Compression::default());
    let mut file = file;
    file.write_all(&plain).unwrap();
    let file = file.finish().unwrap();
    check(&file, &plain);
    // The same with a checksum of the header (bit 1 of the flags).
    let header_len = 10 + 2 + 300 + 7 + 10;
    let mut header = file[..header_len].to_vec();
    header[3] |= 2;
    let mut crc = flate2::Crc::new();
    crc.update(&header);
    let sum = (crc.sum() as u16).to_le_bytes();
    let checked = [&header[..], &sum, &file[header_len..]].concat();
    check(&checked, &plain);
    let wrong = [&header[..], &[sum[0], sum[1] ^ 1], &file[header_len..]].concat();
    assert!(matches!(inflate(&wrong, 1 << 16, None), Err(Damage::Invalid(_))));
}

#[test]
fn truncated_streams_and_trailing_bytes_are_refused() {
    let file = gzip(&text(100_000, 5), 6);
    for len in (0..file.len()).step_by(97).chain(file.len() - 20..file.len()) {
        assert_eq!(inflate(&file[..len], 1 << 14, None).err(), Some(Damage::CutOff), "{len} bytes");
    }
    // Zeros too, as in Go: tapes are filled with them, layers are not.
    for more in [&b"something else that is here"[..], &[0; 512], &[0]] {
        assert!(inflate(&[&file[..], more].concat(), 1 << 14, None).is_err(), "{more:?}");
    }
    let mut wrong = file.clone();
    let at = wrong.len() - 6;
    wrong[at] ^= 1;
    assert!(matches!(inflate(&wrong, 1 << 14, None), Err(Damage::Invalid(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Streams that zlib refuses are refused, and others give the same bytes.
    #[test]
    fn damaged_streams_are_refused_as_by_zlib(
        seed in any::<u64>(), len in 0_usize..5000, level in 0_u32..10, piece in 1_usize..3000,
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..8), 0..4),
        tail in prop::collection::vec(any::<u8>(), 0..3),
    ) {
        let mut file = gzip(&text(len, seed), level);
        for (at, bit) in flips {
            let at = at.index(file.len());
            file[at] ^= 1 << bit;
        }
        file.extend(tail);
        let ours = inflate(&file, piece, Some(1000)).map(|(output, _)| output);
        match zlib(&file) {
            Ok(plain) => prop_assert!(ours == Ok(plain)),
            Err(_) => prop_assert!(ours.is_err()),
        }
    }

    /// Any bits as a deflate stream, after a header that is right.
    #[test]
    fn any_bytes_are_inflated_or_refused_as_by_zlib(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let file = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3], &bytes[..]].concat();
        let ours = inflate(&file, 100, None).map(|(output, _)| output);
        match zlib(&file) {
            Ok(plain) => prop_assert!(ours == Ok(plain)),
            Err(_) => prop_assert!(ours.is_err()),
        }
    }
}
