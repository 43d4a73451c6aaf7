//! Layers of every compression: any part is read from its spans alone, and compared with the whole.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::Command;

use diff::spans::{Record, Spans};
use diff::{Compression, Encoder, Limits, Stored, store};
use erofs::Tree;
use proptest::prelude::*;
use tempfile::{TempDir, tempfile};
use types::{Digest, ErrorKind, Result};

/// A layer that was stored, with its record.
struct Layer {
    blob: Vec<u8>,
    plain: Vec<u8>,
    data: File,
    record: File,
    stored: Stored,
    spans: Spans,
}

impl Layer {
    fn store(plain: Vec<u8>, blob: Vec<u8>) -> Layer {
        let (data, record) = (tempfile().unwrap(), tempfile().unwrap());
        let digest = Digest::of(&blob);
        let kept = Record { blob: &digest, to: &record };
        let stored = store(&blob[..], Limits::default(), &data, Some(kept)).unwrap();
        let spans = Spans::read(&record).unwrap();
        assert_eq!((spans.blob(), spans.diff_id()), (&digest, &Digest::of(&plain)));
        assert_eq!(spans.plain_len(), plain.len() as u64);
        Layer { blob, plain, data, record, stored, spans }
    }

    fn fetch(&self, range: Range<u64>) -> Result<Vec<u8>> {
        Ok(self.blob[range.start as usize..range.end as usize].to_vec())
    }

    fn read_at(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![1; len];
        self.spans.read_at(&self.record, at, &mut bytes, |range| self.fetch(range)).unwrap();
        bytes
    }

    /// The spans are the blob, and unpack to the archive; files are in them where the tree says.
    fn check(&self) {
        let Layer { spans, .. } = self;
        let (mut end, mut plain_end) = (0, 0);
        for span in 0..spans.count() {
            let (range, plain) = (spans.range(span), spans.plain_range(span));
            assert!(range.start <= end && range.start + 1 >= end, "{range:?} follows {end}");
            assert_eq!(plain.start, plain_end);
            (end, plain_end) = (range.end, plain.end);
            let mut unpacked = Vec::new();
            spans.unpack(&self.record, span, &self.fetch(range).unwrap(), &mut unpacked).unwrap();
            assert!(unpacked == self.plain[plain.start as usize..plain.end as usize], "span {span}");
        }
        assert_eq!((end, plain_end), (self.blob.len() as u64, self.plain.len() as u64));
        spans.check_windows(&self.record).unwrap();

        let mut image = Vec::new();
        self.stored.tree.write(&mut image).unwrap();
        let files = Tree::read(&image).unwrap().files();
        assert!(!files.is_empty());
        for file in files.iter().step_by(1 + files.len() / 100) {
            let mut expected = vec![0; file.len as usize];
            self.data.read_exact_at(&mut expected, file.at).unwrap();
            let shown = String::from_utf8_lossy(&file.path).into_owned();
            assert!(self.read_at(file.at, expected.len()) == expected, "{shown}");
        }
    }
}

fn compress(plain: &[u8], compression: Compression) -> Vec<u8> {
    let mut encoder = Encoder::new(compression, Vec::new()).unwrap();
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn tar(args: &[&str], root: &Path) -> Vec<u8> {
    let tar = Command::new("tar").arg("-C").arg(root).args(args).output().unwrap();
    assert!(tar.status.success(), "{tar:?}");
    tar.stdout
}

/// Text, noise, zeros, and small files, about 24 MiB.
fn archive() -> Vec<u8> {
    let root = TempDir::new().unwrap();
    let mut state = 7_u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    let words = ["layer", "span", "window", "a", "of", "the", "\n", "0123", "checkpoint"];
    let text: String = (0..2_000_000).map(|_| words[random() % words.len()]).collect();
    fs::write(root.path().join("text"), &text).unwrap();
    let noise: Vec<u8> = (0..5_000_000).map(|_| random() as u8).collect();
    fs::write(root.path().join("noise"), noise).unwrap();
    fs::write(root.path().join("zeros"), vec![0; 9_000_000]).unwrap();
    fs::create_dir(root.path().join("small")).unwrap();
    for at in 0..300 {
        fs::write(root.path().join(format!("small/{at}")), &text.as_bytes()[at * 500..][..at * 11]).unwrap();
    }
    symlink("text", root.path().join("link")).unwrap();
    tar(&["--sort=name", "-cf", "-", "."], root.path())
}

#[test]
fn any_file_of_a_layer_is_read_from_its_spans() {
    let plain = archive();
    for compression in [Compression::None, Compression::Gzip] {
        let layer = Layer::store(plain.clone(), compress(&plain, compression));
        assert_eq!(layer.spans.compression(), compression);
        assert!(layer.spans.count() >= plain.len() / (5 << 20), "{} spans", layer.spans.count());
        layer.check();
        let kept = layer.record.metadata().unwrap().len();
        assert!(kept * 50 < layer.blob.len() as u64, "{kept} bytes of {}", layer.blob.len());
    }
}

#[test]
fn members_and_frames_are_spans_if_they_are_long() {
    let plain = archive();
    for (compression, len) in
        [(Compression::Gzip, 300_000), (Compression::Zstd, 300_000), (Compression::Zstd, 9 << 20)]
    {
        let blob: Vec<u8> = plain.chunks(len).flat_map(|part| compress(part, compression)).collect();
        let layer = Layer::store(plain.clone(), blob);
        assert!(layer.spans.count() >= plain.len() / len.max(5 << 20), "{} spans", layer.spans.count());
        layer.check();
    }
    // Between frames stands what is none: the table of contents of zstd:chunked.
    let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"toc!"].concat();
    let parts = plain.chunks(6 << 20).map(|part| compress(part, Compression::Zstd));
    let blob: Vec<u8> =
        parts.flat_map(|part| [&skipped[..], &part].concat()).chain(skipped.clone()).collect();
    let layer = Layer::store(plain.clone(), blob);
    assert!(layer.spans.count() > 2);
    layer.check();
    // One frame is one span.
    let layer = Layer::store(plain.clone(), compress(&plain, Compression::Zstd));
    assert_eq!(layer.spans.count(), 1);
    layer.check();
}

#[test]
fn sparse_files_are_read_from_spans() {
    let root = TempDir::new().unwrap();
    for name in ["one", "two"] {
        let file = File::create(root.path().join(name)).unwrap();
        file.write_all_at(b"begin", 0).unwrap();
        file.write_all_at(&[9; 100_000], 1 << 22).unwrap();
        file.write_all_at(name.as_bytes(), 6 << 20).unwrap();
        file.set_len(7 << 20).unwrap();
    }
    fs::write(root.path().join("plain"), vec![1; 5000]).unwrap();
    let plain = tar(&["-S", "-cf", "-", "."], root.path());
    assert!(plain.len() < 1 << 20, "tar kept the holes");
    let layer = Layer::store(plain.clone(), compress(&plain, Compression::Gzip));
    layer.check();
    let asked = RefCell::new(0);
    let begin = diff::ARCHIVE_LEN_MAX + (1 << 20);
    let mut hole = [1; 4096];
    let fetch = |range| {
        *asked.borrow_mut() += 1;
        layer.fetch(range)
    };
    layer.spans.read_at(&layer.record, begin, &mut hole, fetch).unwrap();
    assert!(hole.iter().all(|byte| *byte == 0) && *asked.borrow() == 0, "a hole is not fetched");
}

/// Files of Debian's packages, compressed by gzip(1).
#[test]
fn debian_packages_are_read_from_their_spans() {
    let plain =
        tar(&["-cf", "-", "bin/bash", "lib/x86_64-linux-gnu/libc.so.6", "share/perl"], Path::new("/usr"));
    for args in [&["gzip", "-1"][..], &["gzip", "-9"]] {
        let mut child = Command::new(args[0])
            .args(&args[1..])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        let given = plain.clone();
        let writer = std::thread::spawn(move || input.write_all(&given).unwrap());
        let mut blob = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut blob).unwrap();
        writer.join().unwrap();
        assert!(child.wait().unwrap().success());
        Layer::store(plain.clone(), blob).check();
    }
}

#[test]
fn only_needed_spans_are_fetched_and_wrong_ones_are_refused() {
    let plain = archive();
    let layer = Layer::store(plain.clone(), compress(&plain, Compression::Gzip));
    let wanted = layer.spans.count() / 2;
    let at = layer.spans.plain_range(wanted).start + 1000;
    let asked = RefCell::new(Vec::new());
    let mut bytes = vec![0; 1000];
    let fetch = |range: Range<u64>| {
        asked.borrow_mut().push(range.clone());
        layer.fetch(range)
    };
    layer.spans.read_at(&layer.record, at, &mut bytes, fetch).unwrap();
    assert_eq!(asked.into_inner(), [layer.spans.range(wanted)]);
    assert!(bytes == plain[at as usize..][..1000]);

    let range = layer.spans.range(wanted);
    for bit in [0, 1000, (range.end - range.start) * 8 - 1] {
        let mut wrong = layer.fetch(range.clone()).unwrap();
        wrong[bit as usize / 8] ^= 1 << (bit % 8);
        let mut unpacked = Vec::new();
        let refused = layer.spans.unpack(&layer.record, wanted, &wrong, &mut unpacked).unwrap_err();
        assert!(refused.is(ErrorKind::DataLoss) && unpacked.is_empty(), "{refused:?}");
    }
    let short = &layer.fetch(range).unwrap()[1..];
    assert!(layer.spans.unpack(&layer.record, wanted, short, &mut Vec::new()).is_err());
    let behind =
        layer.spans.read_at(&layer.record, plain.len() as u64 - 1, &mut [0; 2], |range| layer.fetch(range));
    assert!(behind.unwrap_err().is(ErrorKind::DataLoss));
}

#[test]
fn a_record_that_was_damaged_is_refused() {
    let plain = archive();
    let layer = Layer::store(plain.clone(), compress(&plain, Compression::Gzip));
    let len = layer.record.metadata().unwrap().len();
    let mut refused = 0;
    for at in (0..len).step_by(61).chain(len - 60..len) {
        let mut byte = [0];
        layer.record.read_exact_at(&mut byte, at).unwrap();
        layer.record.write_all_at(&[byte[0] ^ 16], at).unwrap();
        let checked = Spans::read(&layer.record).and_then(|spans| spans.check_windows(&layer.record));
        assert!(checked.unwrap_err().is(ErrorKind::DataLoss), "byte {at} of {len}");
        refused += 1;
        layer.record.write_all_at(&byte, at).unwrap();
    }
    assert!(refused > 100);
    // Reads fail there as those of a bad block do: nothing is at the beginning of our memory.
    let unreadable = File::open("/proc/self/mem").unwrap();
    assert!(layer.spans.check_windows(&unreadable).unwrap_err().is(ErrorKind::DataLoss));
    for short in [0, 10, len / 2, len - 1] {
        layer.record.set_len(short).unwrap();
        assert!(Spans::read(&layer.record).is_err(), "{short} bytes of {len}");
    }
}

#[test]
fn a_layer_that_is_cut_off_has_no_record() {
    let plain = archive();
    let blob = compress(&plain, Compression::Gzip);
    let (data, record) = (tempfile().unwrap(), tempfile().unwrap());
    let kept = Record { blob: &Digest::of(&blob), to: &record };
    assert!(store(&blob[..blob.len() / 2], Limits::default(), &data, Some(kept)).is_err());
    assert!(Spans::read(&record).is_err());
}

thread_local! {
    static LAYERS: Vec<Layer> = {
        let plain = archive();
        let members: Vec<u8> =
            plain.chunks(700_000).flat_map(|part| compress(part, Compression::Gzip)).collect();
        let frames: Vec<u8> =
            plain.chunks(500_000).flat_map(|part| compress(part, Compression::Zstd)).collect();
        let blobs = [plain.clone(), compress(&plain, Compression::Gzip), members, frames];
        blobs.into_iter().map(|blob| Layer::store(plain.clone(), blob)).collect()
    };
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_bytes_are_those_of_the_archive(
        at in any::<prop::sample::Index>(), len in any::<prop::sample::Index>(), nth in 0_usize..4,
    ) {
        LAYERS.with(|layers| {
            let layer = &layers[nth];
            let at = at.index(layer.plain.len());
            let len = 1 + len.index((layer.plain.len() - at).min(9 << 20));
            prop_assert!(layer.read_at(at as u64, len) == layer.plain[at..at + len], "{len} bytes at {at}");
            Ok(())
        })?;
    }
}
