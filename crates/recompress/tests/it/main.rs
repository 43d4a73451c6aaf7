//! Blobs of several compressors, rebuilt from their recipes.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder};
use proptest::prelude::*;
use recompress::{Plain, make, rebuild};

/// Text as layers have it: words that come again, numbers, noise and zeros.
fn text(len: usize) -> Vec<u8> {
    let mut seed = 7_u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 40).unwrap()
    };
    let words: Vec<String> = (0..3000).map(|_| format!("{:x}", random() * random() % 100_000_007)).collect();
    let mut bytes = Vec::new();
    while bytes.len() < len {
        match random() % 1000 {
            0 => bytes.extend(vec![0; random() % 5000]),
            1..4 => (0..random() % 500).for_each(|_| bytes.push(u8::try_from(random() & 255).unwrap())),
            _ => {
                bytes.extend(words[random() % words.len()].as_bytes());
                bytes.push(b' ');
            }
        }
    }
    bytes.truncate(len);
    bytes
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// The recipe of a blob; `None` if it has none.
fn recipe_of(blob: &[u8], plain: &File) -> Option<Vec<u8>> {
    let len = plain.metadata().unwrap().len();
    let mut recipe = Vec::new();
    make(blob, &Plain::new(plain, len), &mut recipe, u64::MAX).unwrap().then_some(recipe)
}

fn again(recipe: &[u8], plain: &File) -> std::io::Result<Vec<u8>> {
    let mut blob = Vec::new();
    rebuild(recipe, &Plain::new(plain, plain.metadata()?.len()), &mut blob).map(|()| blob)
}

/// Checks that a blob is rebuilt, and that its recipe has at most this share of its bytes.
fn check(what: &str, blob: &[u8], plain: &[u8], share: f64) {
    // With what follows the archive in a layer's file.
    let plain = file(&[plain, &[0; 300]].concat());
    let recipe = recipe_of(blob, &plain).unwrap_or_else(|| panic!("{what}: no recipe"));
    assert!(again(&recipe, &plain).unwrap() == blob, "{what}");
    let found = recipe.len() as f64 / blob.len() as f64;
    println!("{what}: {} bytes, recipe {} ({:.2} %)", blob.len(), recipe.len(), found * 100.0);
    assert!(found <= share, "{what}: {found}");
}

fn gzip(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn filter(program: &str, args: &[&str], bytes: &[u8]) -> Option<Vec<u8>> {
    let spawned = Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut child) = spawned else {
        println!("skipped: {program} is not installed");
        return None;
    };
    let mut stdin = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&bytes));
    let mut out = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut out).unwrap();
    writer.join().unwrap().unwrap();
    assert!(child.wait().unwrap().success());
    Some(out)
}

#[test]
fn gzip_of_every_level_is_rebuilt() {
    let plain = text(700_000);
    for level in 0..=9 {
        check(&format!("flate2 {level}"), &gzip(&plain, level), &plain, if level < 4 { 0.3 } else { 0.15 });
    }
    for level in ["-1", "-6", "-9"] {
        if let Some(blob) = filter("gzip", &[level], &plain) {
            check(&format!("gzip {level}"), &blob, &plain, 0.15);
        }
    }
    for level in ["-1", "-6", "-9"] {
        // In blocks side by side, each of which looks back into the one before.
        if let Some(blob) = filter("pigz", &[level], &plain) {
            check(&format!("pigz {level}"), &blob, &plain, 0.15);
        }
    }
    if let Some(blob) = filter("busybox", &["gzip"], &plain) {
        check("busybox gzip", &blob, &plain, 0.15);
    }
    let python = "import sys, zlib; d = sys.stdin.buffer.read(); c = zlib.compressobj(LEVEL, zlib.DEFLATED, 31); \
                  sys.stdout.buffer.write(c.compress(d) + c.flush())";
    for level in ["1", "6"] {
        if let Some(blob) = filter("python3", &["-c", &python.replace("LEVEL", level)], &plain) {
            check(&format!("zlib {level}"), &blob, &plain, 0.15);
        }
    }
}

/// As docker, BuildKit and containerd compress layers.
#[test]
fn gzip_of_go_is_rebuilt() {
    const PROGRAM: &str = r#"package main

import (
	"compress/gzip"
	"io"
	"os"
	"strconv"
)

func main() {
	level, _ := strconv.Atoi(os.Args[1])
	to, _ := gzip.NewWriterLevel(os.Stdout, level)
	io.Copy(to, os.Stdin)
	to.Close()
}
"#;
    let dir = tempfile::tempdir().unwrap();
    let (source, program) = (dir.path().join("main.go"), dir.path().join("main"));
    std::fs::write(&source, PROGRAM).unwrap();
    let go =
        Command::new("go").args(["build", "-o"]).arg(&program).arg(&source).env("HOME", dir.path()).status();
    let Ok(built) = go else {
        println!("skipped: go is not installed");
        return;
    };
    assert!(built.success());
    let plain = text(700_000);
    for level in ["-2", "-1", "1", "6", "9"] {
        let blob = filter(program.to_str().unwrap(), &[level], &plain).expect("it was built");
        // Level 1 looks at one place, by a table of its own; -2 only counts letters.
        check(&format!("Go {level}"), &blob, &plain, if level == "1" { 0.3 } else { 0.15 });
    }
}

#[test]
fn streams_of_unusual_form_are_rebuilt() {
    let plain = text(400_000);
    let half = plain.len() / 2;
    let two = [gzip(&plain[..half], 6), gzip(&plain[half..], 1)].concat();
    check("two members", &two, &plain, 0.3);
    check("padded", &[&gzip(&plain, 6)[..], &[0; 512]].concat(), &plain, 0.2);
    let mut named = flate2::GzBuilder::new()
        .filename("layer.tar")
        .comment("with a name")
        .extra(vec![1, 2, 3])
        .mtime(77)
        .write(Vec::new(), Compression::default());
    named.write_all(&plain).unwrap();
    check("named", &named.finish().unwrap(), &plain, 0.2);
    // As parallel compressors do, and writers that flush.
    let mut flushed = GzEncoder::new(Vec::new(), Compression::default());
    for piece in plain.chunks(30_000) {
        flushed.write_all(piece).unwrap();
        flushed.flush().unwrap();
    }
    check("flushed", &flushed.finish().unwrap(), &plain, 0.2);
    check("nothing", &gzip(b"", 6), b"", 9.0);
    check("one byte", &gzip(b"x", 6), b"x", 9.0);
    let mut seed = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u8::try_from(seed >> 56).unwrap()
    })
    .take(200_000)
    .collect();
    check("stored", &gzip(&noise, 6), &noise, 0.05);
    check("plain", &plain, &plain, 0.01);
}

/// A file of gzip members of up to `len_max` plain bytes, each with another level, and its plain bytes.
fn members(count: usize, len_max: usize) -> (Vec<u8>, Vec<u8>) {
    let mut plain = text(count * len_max / 2);
    let mut seed = 99_u64;
    let (mut at, mut blob) = (0, Vec::new());
    for number in 0..count {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let len = usize::try_from(seed >> 40).unwrap() % len_max;
        let end = plain.len().min(at + len);
        blob.extend(gzip(&plain[at..end], [6, 9, 1, 3][number % 4]));
        at = end;
    }
    plain.truncate(at);
    (blob, plain)
}

/// Short ones by the habits of those before, long ones by their own, in tables that all of them use.
#[test]
fn files_of_many_gzip_members_are_rebuilt() {
    for (count, len_max, share) in [(2000, 300, 0.6), (500, 3000, 0.15), (50, 130_000, 0.15)] {
        let (blob, plain) = members(count, len_max);
        check(&format!("{count} members"), &blob, &plain, share);
    }
}

/// A stored recipe must stay valid, since its blob was deleted.
#[test]
fn a_recipe_of_an_earlier_version_gives_the_same_blob() {
    const RECIPE: &[u8] = include_bytes!("../data/members.recipe");
    const BLOB: &str = "sha256:cd617c9fe2af6e51b4f4d7467cbd98b5415b77f4fc45da14af041780c23457c1";
    let (_, plain) = members(24, 12_000);
    let blob = again(RECIPE, &file(&plain)).unwrap();
    assert_eq!(types::Digest::of(&blob).to_string(), BLOB);
}

/// Longer, or of more blocks, than the sample by which the compressor is known.
#[test]
fn blocks_of_unusual_length_are_rebuilt() {
    const HEADER: &[u8] = b"\x1f\x8b\x08\0\0\0\0\0\0\0";
    // One block of the fixed code: its head, so many literals of nine bits each, and its end.
    let literals = 80_005;
    let block = [&[0xFB][..], &vec![0xFF; literals * 9 / 8], &[0]].concat();
    check("one block", &[HEADER, &block, b"checksum"].concat(), &vec![0xFF; literals], f64::MAX);
    // Empty ones of ten bits each, and the last.
    let blocks = [&[0x02, 0x08, 0x20, 0x80, 0][..]; 500].concat();
    check("empty blocks", &[HEADER, &blocks, &[3, 0], b"checksum"].concat(), b"", f64::MAX);
}

#[test]
fn zstd_of_libzstd_is_rebuilt() {
    for len in [0, 1000, 3_000_000] {
        let plain = text(len);
        for level in [1, 3, 9] {
            let blob = zstd::encode_all(&plain[..], level).unwrap();
            check(&format!("zstd {level} of {len}"), &blob, &plain, 9.0);
        }
    }
}

#[test]
fn a_blob_that_cannot_be_rebuilt_has_no_recipe() {
    let plain = file(&text(100_000));
    let good = gzip(&text(100_000), 6);
    assert!(recipe_of(&good[..good.len() / 2], &plain).is_none(), "cut off");
    assert!(recipe_of(b"\x1f\x8b\x08\0\0\0\0\0\0\0\xff\xff", &plain).is_none(), "no deflate");
    assert!(recipe_of(b"\x28\xb5\x2f\xfdrubbish", &plain).is_none(), "no zstd");
    let mut recipe = Vec::new();
    let len = plain.metadata().unwrap().len();
    assert!(!make(&good[..], &Plain::new(&plain, len), &mut recipe, 100).unwrap(), "too large");
}

/// A corrupt recipe gives an error or other bytes, but no panic or endless loop.
#[test]
fn a_corrupt_recipe_causes_no_panic() {
    let plain_bytes = text(20_000);
    let (plain, blob) = (file(&plain_bytes), gzip(&plain_bytes, 6));
    let recipe = recipe_of(&blob, &plain).unwrap();
    for at in (0..recipe.len()).step_by(3) {
        let mut rotten = recipe.clone();
        rotten[at] ^= 1 << (at % 8);
        let _ = again(&rotten, &plain);
        let _ = again(&recipe[..at], &plain);
    }
    let other = file(&text(30_000));
    let _ = again(&recipe, &other);
}

/// Words of a small alphabet: much to match, also over itself.
fn words() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(proptest::collection::vec(0_u8..4, 1..200), 0..200)
        .prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_text_at_any_level(bytes in words(), level in 0_u32..=9) {
        check("random", &gzip(&bytes, level), &bytes, f64::MAX);
    }

    /// Any bytes behind a gzip header.
    #[test]
    fn any_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let blob = [&b"\x1f\x8b\x08\0\0\0\0\0\0\0"[..], &bytes].concat();
        let plain = file(&bytes);
        if let Some(recipe) = recipe_of(&blob, &plain) {
            let _ = again(&recipe, &plain);
        }
        let _ = again(&[&b"hoistrcp\x01"[..], &bytes].concat(), &plain);
    }

    /// A stream without a frame is what is inside of one.
    #[test]
    fn raw_deflate_is_read_to_its_end(bytes in words()) {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&bytes).unwrap();
        let stream = encoder.finish().unwrap();
        let blob = [&b"\x1f\x8b\x08\0\0\0\0\0\0\0"[..], &stream, b"no checksum"].concat();
        check("without a checksum", &blob, &bytes, f64::MAX);
    }
}
