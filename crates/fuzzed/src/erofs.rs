//! Metadata images, packed and not.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

use ::erofs::{HEAD_LEN, Head, Tree};
use snapshot::parsers::{pack_image, unpack_image};

/// Any input must be handled as a packed image and as an image.
pub(crate) fn erofs(bytes: &[u8]) {
    if let Ok(unpacked) = unpack_image(file_of(bytes)) {
        image(&unpacked);
    }
    image(bytes);
}

/// A tree that was read must give an image that is read as the same tree, packed or not.
fn image(bytes: &[u8]) {
    let _ = Head::read(&bytes[..bytes.len().min(HEAD_LEN)]);
    let Ok(tree) = Tree::read(bytes) else { return };
    let mut first = Vec::new();
    // A tree that no layer can have may be refused.
    if tree.write(&mut first).is_err() {
        return;
    }
    let head = Head::read(&first).expect("an image of ours has a beginning");
    assert_eq!(head.len, first.len() as u64);
    let read = Tree::read(&first).unwrap_or_else(|error| panic!("what is written can be read: {error}"));
    let mut again = Vec::new();
    read.write(&mut again).expect("it was written before");
    assert!(first == again, "other bytes of the same tree");

    let mut packed = pack_image(&read, file_of(b"")).expect("a writable file");
    packed.seek(SeekFrom::Start(0)).expect("a file");
    assert!(unpack_image(packed).expect("what is packed can be unpacked") == first);
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(bytes).and_then(|()| file.rewind()).expect("a writable file");
    file
}
