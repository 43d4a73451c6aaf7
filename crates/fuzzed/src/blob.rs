//! Compressed blobs: recipes and their rebuilds, and the decoders.

use std::io::{Read, Seek, SeekFrom, Write};

use diff::{Compression, Decoder, Helpers};
use recompress::{Plain, make, rebuild};

/// Most plain bytes of an input.
const LEN_MAX: u64 = 1 << 20;

/// A blob that has a recipe with its own plain bytes must be rebuilt. With other plain bytes, and as a recipe, any
/// input must be handled.
pub(crate) fn recipe(bytes: &[u8]) {
    let mut plain = Vec::new();
    let decoded = Decoder::new(bytes).and_then(|decoder| decoder.take(LEN_MAX + 1).read_to_end(&mut plain));
    let is_own = decoded.is_ok() && plain.len() as u64 <= LEN_MAX;
    let text = if is_own { &plain } else { bytes };
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(text).and_then(|()| file.seek(SeekFrom::Start(0))).expect("a writable file");
    let text = Plain::new(&file, text.len() as u64);

    let mut recipe = Vec::new();
    if make(bytes, &text, &mut recipe, LEN_MAX).expect("nothing but memory and a file is read") {
        let mut again = Vec::new();
        let rebuilt = rebuild(&recipe[..], &text, &mut again);
        assert!(!is_own || (rebuilt.is_ok() && again == bytes), "it is not what it was");
    }
    let as_recipe = [b"hoistrcp\x01", bytes].concat();
    let _ = rebuild(&as_recipe[..], &text, &mut Limited(LEN_MAX));
}

/// The decoder must refuse what zlib refuses, and give the same bytes otherwise.
pub(crate) fn gzip(bytes: &[u8]) {
    if Compression::detect(bytes) != Compression::Gzip {
        return;
    }
    let (mut ours, mut zlibs) = (Vec::new(), Vec::new());
    let read = Decoder::new(bytes).and_then(|decoder| decoder.take(LEN_MAX).read_to_end(&mut ours));
    let zlib = flate2::bufread::MultiGzDecoder::new(bytes).take(LEN_MAX).read_to_end(&mut zlibs);
    // Output before damage, and output at the limit, is not compared.
    let is_long = ours.len().max(zlibs.len()) as u64 >= LEN_MAX;
    assert!(is_long || read.is_ok() == zlib.is_ok(), "{read:?}, and zlib {zlib:?}");
    assert!(read.is_err() || zlib.is_err() || ours == zlibs, "other bytes than zlib's");
}

/// Frames and members must unpack to the same bytes with and without helper threads.
pub(crate) fn parts(bytes: &[u8]) {
    let read = |helpers| {
        let mut plain = Vec::new();
        let decoder = Decoder::with_helpers(bytes, Helpers::Fixed(helpers));
        let read = decoder.and_then(|decoder| decoder.take(LEN_MAX).read_to_end(&mut plain));
        (plain, read.map_err(|error| (error.kind(), error.to_string())))
    };
    let ((alone, alone_read), (helped, helped_read)) = (read(0), read(2));
    // libzstd's error for an invalid frame, and when it occurs, depend on the pieces in which it gets the frame.
    if Compression::detect(bytes) != Compression::Zstd {
        assert_eq!(alone_read, helped_read);
    }
    // Output that was not read before an error is lost.
    let is_wrong = alone_read.is_err() || helped_read.is_err();
    assert!(is_wrong || alone == helped, "other bytes with helpers");
}

/// Fails after this many bytes: a recipe may ask for plain bytes again and again.
struct Limited(u64);

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len() as u64).ok_or(std::io::ErrorKind::FileTooLarge)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
