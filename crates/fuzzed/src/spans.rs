//! Records of blobs' spans.

use std::io::Write;

use diff::spans::Spans;
use types::Digest;

/// Plain bytes of one read.
const READ_LEN: usize = 64 * 1024;

/// The first four bytes are the length of the windows; the rest is an index, to which a valid digest is added. An index
/// that is accepted must have spans within the blob, and must refuse bytes of another hash.
pub(crate) fn spans(bytes: &[u8]) {
    let Some((windows_len, index)) = bytes.split_first_chunk() else { return };
    let windows_len = u64::from(u32::from_le_bytes(*windows_len)) % (1 << 20);
    let digest = Digest::of(index);
    let hash = digest.hex().as_bytes().chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).expect("digits");
        u8::from_str_radix(pair, 16).expect("digits")
    });
    let mut whole = index.to_vec();
    whole.extend((index.len() as u64).to_le_bytes());
    whole.extend(hash);
    whole.extend(b"hoistsp\x02");
    let _ = Spans::from_bytes(bytes, windows_len);
    let Ok(spans) = Spans::from_bytes(&whole, windows_len) else { return };

    let mut file = tempfile::tempfile().expect("a temporary file");
    file.set_len(windows_len).expect("a length");
    std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).expect("a place");
    file.write_all(&whole).expect("a writable file");
    assert!(Spans::read(&file).expect("it was read from memory") == spans);

    let (mut end, mut plain_end) = (0, 0);
    for span in 0..spans.count() {
        let (range, plain) = (spans.range(span), spans.plain_range(span));
        assert!(range.start <= range.end && range.start <= end && range.start + 1 >= end);
        assert!(plain.start <= plain.end && plain.start == plain_end);
        assert_eq!(spans.span_of(plain.start), span);
        (end, plain_end) = (range.end, plain.end);
        let mut unpacked = Vec::new();
        let is_nothing = spans.unpack(&file, span, b"noise", &mut unpacked).is_err() && unpacked.is_empty();
        assert!(is_nothing, "bytes of another digest");
    }
    assert_eq!(plain_end, spans.plain_len());
    let _ = spans.check_windows(&file);
    let mut buffer = vec![0; READ_LEN];
    for at in [0, plain_end.saturating_sub(1), diff::ARCHIVE_LEN_MAX, diff::ARCHIVE_LEN_MAX + 1000] {
        let _ = spans.read_at(&file, at, &mut buffer, |_| Ok(b"noise".to_vec()));
    }
}
