//! Properties of the local store beyond the contract of all stores.

use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use content::{Expected, LocalStore, Step, Store as _, Watch};
use types::{Digest, ErrorKind, IngestRef};

fn reference(text: &str) -> IngestRef {
    text.parse().unwrap()
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn the_contract_holds() {
    let dir = tempfile::tempdir().unwrap();
    let count = std::cell::Cell::new(0);
    content::suite::run(|| {
        count.set(count.get() + 1);
        Box::new(LocalStore::open(dir.path().join(count.get().to_string())).unwrap())
    });
}

#[test]
fn an_ingest_that_is_written_is_left_to_its_writer() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path()).unwrap();
    let mut writer = store.begin(&reference("r"), Expected::default()).unwrap();
    assert_eq!(store.abort(&reference("r")).unwrap_err().kind(), ErrorKind::Unavailable);
    writer.write(b"hello").unwrap();
    writer.commit(Expected::default()).unwrap();
    assert_eq!(store.abort(&reference("r")).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_blob_is_a_read_only_file_named_by_its_digest() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path()).unwrap();
    let mut writer = store.begin(&reference("r"), Expected::default()).unwrap();
    writer.write(b"hello").unwrap();
    let blob = writer.commit(Expected::default()).unwrap();
    let path = dir.path().join("blobs/sha256").join(blob.digest.hex());
    assert_eq!(std::fs::read(&path).unwrap(), b"hello");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o444);
    assert_eq!(files(&dir.path().join("ingest")), [""; 0]);
}

/// Large files are moved away, and deleted in steps, also after the store was opened again.
#[test]
fn large_blobs_are_set_aside_and_go_in_pieces() {
    const LEN: usize = 130 << 20;
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let removed = || files(&dir.path().join("removed")).len();
    let store = LocalStore::open(dir.path()).unwrap();
    let commit = |bytes: &[u8]| {
        let mut writer = store.begin(&reference("r"), Expected::default()).unwrap();
        writer.write(bytes).unwrap();
        writer.commit(Expected::default()).unwrap().digest
    };
    let (small, large) = (commit(b"small"), commit(&vec![7; LEN]));
    let mut reader = store.reader(&large).unwrap();
    for digest in [&small, &large] {
        store.delete(digest).unwrap();
        assert_eq!(store.info(digest).unwrap_err().kind(), ErrorKind::NotFound);
    }
    assert_eq!(removed(), 1, "the large one");
    drop(store);

    let store = LocalStore::open(dir.path()).unwrap();
    assert!(store.list().unwrap().is_empty() && store.statuses().unwrap().is_empty());
    // A reader that has the blob open reads it to its end.
    assert_eq!(std::io::copy(&mut reader, &mut std::io::sink()).unwrap(), LEN as u64);
    drop(reader);
    let mut steps = 1;
    while !store.reclaim(&|| false).unwrap() {
        steps += 1;
    }
    assert_eq!((removed(), steps), (0, 3), "a piece, the rest, and a look that finds none");
}

/// Aborted ingests, and those that a crash left, may be as large as a blob.
#[test]
fn large_ingests_are_set_aside_and_go_in_pieces() {
    const LEN: usize = 130 << 20;
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let removed = || files(&dir.path().join("removed")).len();
    let store = LocalStore::open(dir.path()).unwrap();
    let begin = |store: &LocalStore, name: &str, bytes: &[u8]| {
        store.begin(&reference(name), Expected::default()).unwrap().write(bytes).unwrap();
    };
    begin(&store, "small", b"small");
    begin(&store, "large", &vec![7; LEN]);
    for name in ["small", "large"] {
        store.abort(&reference(name)).unwrap();
        assert_eq!(store.status(&reference(name)).unwrap_err().kind(), ErrorKind::NotFound);
    }
    assert_eq!((removed(), files(&dir.path().join("ingest"))), (1, Vec::new()), "the large one");

    begin(&store, "cut", &vec![7; LEN]);
    drop(store);
    let ingest = dir.path().join("ingest");
    let half = files(&ingest).into_iter().find(|name| name.ends_with(".ref")).unwrap();
    std::fs::remove_file(ingest.join(half)).unwrap();
    let store = LocalStore::open(dir.path()).unwrap();
    assert_eq!((removed(), files(&ingest)), (2, Vec::new()), "half of one");
    let mut steps = 1;
    while !store.reclaim(&|| false).unwrap() {
        steps += 1;
    }
    assert_eq!((removed(), steps), (0, 5), "a piece and the rest of each, and a look that finds none");
}

/// An ingest that begins anew does not wait until its old bytes are freed.
#[test]
fn large_ingests_that_begin_anew_are_set_aside_and_go_in_pieces() {
    const LEN: usize = 130 << 20;
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let removed = || {
        let files = files(&dir.path().join("removed"));
        files.iter().map(|name| dir.path().join("removed").join(name).metadata().unwrap().len()).sum::<u64>()
    };
    let store = LocalStore::open(dir.path()).unwrap();
    let mut writer = store.begin(&reference("r"), Expected::default()).unwrap();
    for (bytes, aside) in [(&b"small"[..], 0), (&vec![7; LEN], LEN), (b"small", LEN)] {
        writer.write(bytes).unwrap();
        assert_eq!(writer.status().unwrap().offset, bytes.len() as u64);
        writer.truncate().unwrap();
        assert_eq!((writer.offset(), writer.status().unwrap().offset), (0, 0));
        assert_eq!(removed(), aside as u64, "after {} bytes", bytes.len());
    }
    let mut steps = 1;
    while !store.reclaim(&|| false).unwrap() {
        steps += 1;
    }
    assert_eq!((removed(), steps), (0, 3), "a piece, the rest, and a look that finds none");
    writer.write(b"hello").unwrap();
    let blob = writer.commit(Expected::default()).unwrap();
    assert_eq!(std::fs::read(dir.path().join("blobs/sha256").join(blob.digest.hex())).unwrap(), b"hello");
    assert_eq!(files(&dir.path().join("ingest")), [""; 0]);
}

#[test]
fn a_blob_committed_again_replaces_a_corrupt_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path()).unwrap();
    let bytes: &[u8] = &[7; 400];
    let digest = Digest::of(bytes);
    let commit = || {
        let mut writer = store.begin(&reference("r"), Expected::default()).unwrap();
        writer.write(bytes).unwrap();
        writer.commit(Expected::default())
    };
    commit().unwrap();
    let path = dir.path().join("blobs/sha256").join(digest.hex());
    let rot = |path: &Path| {
        std::fs::remove_file(path).unwrap();
        std::fs::write(path, [8; 400]).unwrap();
    };
    rot(&path);
    assert_eq!(commit().unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(store.reader(&digest).unwrap().read_all(400).unwrap(), bytes);
    assert_eq!(files(&dir.path().join("ingest")), [""; 0]);

    let plain = dir.path().join("plain");
    std::fs::write(&plain, bytes).unwrap();
    assert!(store.keep_recipe(&digest, &plain, 400).unwrap());
    std::fs::write(&plain, [8; 400]).unwrap();
    assert_eq!(commit().unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(store.reader(&digest).unwrap().read_all(400).unwrap(), bytes);
    assert_eq!(files(&dir.path().join("recipes/sha256")), [""; 0]);
}

#[test]
fn an_ingest_resumes_after_the_store_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let sized = Expected { size: Some(11), digest: None };
    let mut writer = LocalStore::open(dir.path()).unwrap().begin(&reference("r"), sized.clone()).unwrap();
    writer.write(b"hello ").unwrap();
    drop(writer);
    let store = LocalStore::open(dir.path()).unwrap();
    assert_eq!(store.status(&reference("r")).unwrap().total, Some(11));
    let mut writer = store.begin(&reference("r"), sized).unwrap();
    writer.write(b"world").unwrap();
    assert_eq!(writer.commit(Expected::new(Digest::of(b"hello world"), 11)).unwrap().size, 11);
}

#[test]
fn bytes_that_changed_on_disk_do_not_become_a_blob() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path()).unwrap();
    let mut writer = store.begin(&reference("r"), Expected::default()).unwrap();
    writer.write(b"hello").unwrap();
    drop(writer);
    let data = files(&dir.path().join("ingest")).into_iter().find(|name| name.ends_with(".data")).unwrap();
    std::fs::write(dir.path().join("ingest").join(data), b"jello").unwrap();
    let writer = store.begin(&reference("r"), Expected::default()).unwrap();
    let error = writer.commit(Expected::new(Digest::of(b"hello"), 5)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
}

#[test]
fn opening_the_store_removes_halves_of_ingests_and_no_foreign_files() {
    let dir = tempfile::tempdir().unwrap();
    drop(LocalStore::open(dir.path()).unwrap());
    let ingest = dir.path().join("ingest");
    let hash = Digest::of(b"r");
    std::fs::write(ingest.join(format!("{}.data", hash.hex())), b"x").unwrap();
    std::fs::write(ingest.join("README.txt"), b"x").unwrap();
    std::fs::write(dir.path().join("blobs/sha256/not-a-digest"), b"x").unwrap();
    let store = LocalStore::open(dir.path()).unwrap();
    assert_eq!(files(&ingest), ["README.txt"]);
    assert!(store.list().unwrap().is_empty());
    assert!(store.statuses().unwrap().is_empty());
}

#[test]
fn an_ingest_with_a_cut_ref_file_is_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path()).unwrap();
    let mut writer = store.begin(&reference("some ref"), Expected::default()).unwrap();
    writer.write(b"hello").unwrap();
    drop(writer);
    let file = files(&dir.path().join("ingest")).into_iter().find(|name| name.ends_with(".ref")).unwrap();
    let path = dir.path().join("ingest").join(file);
    let whole = std::fs::read(&path).unwrap();
    for len in 0..whole.len() {
        std::fs::write(&path, &whole[..len]).unwrap();
        assert_eq!(store.status(&reference("some ref")).unwrap_err().kind(), ErrorKind::NotFound, "{len}");
    }
    assert_eq!(store.begin(&reference("some ref"), Expected::default()).unwrap().offset(), 0);
}

/// More than half of a disk can be downloaded in two goes.
#[test]
fn bytes_that_an_ingest_has_need_no_free_space() {
    if !stdx::testing::is_root("a mount") {
        return;
    }
    let options = linux::mount::Options::parse(&["size=1m".to_owned()]);
    let disk = linux::mount::new_filesystem("tmpfs", "tmpfs", &options).unwrap();
    let store = LocalStore::open(format!("/proc/self/fd/{}", disk.as_raw_fd())).unwrap();
    let sized = Expected { size: Some(700 << 10), digest: None };
    let mut writer = store.begin(&reference("r"), sized.clone()).unwrap();
    writer.write(&[7; 600 << 10]).unwrap();
    drop(writer);
    let refused = |name| store.begin(&reference(name), sized.clone()).map(drop).unwrap_err().kind();
    assert_eq!(refused("another"), ErrorKind::ResourceExhausted);
    let mut writer = store.begin(&reference("r"), sized.clone()).unwrap();
    writer.write(&[7; 100 << 10]).unwrap();
    assert_eq!(writer.commit(sized).unwrap().size, 700 << 10);
}

#[test]
fn a_symlink_in_the_place_of_a_blob_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path()).unwrap();
    let digest = Digest::of(b"secret");
    std::fs::write(dir.path().join("secret"), b"secret").unwrap();
    let link = dir.path().join("blobs/sha256").join(digest.hex());
    std::os::unix::fs::symlink(dir.path().join("secret"), link).unwrap();
    assert!(store.reader(&digest).is_err());
}

#[test]
fn many_commits_at_the_same_time_all_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let store = &store;
            scope.spawn(move || {
                for number in 0..20 {
                    let text = format!("{thread} {number}");
                    let mut writer = store.begin(&reference(&text), Expected::default()).unwrap();
                    writer.write(text.as_bytes()).unwrap();
                    writer.commit(Expected::default()).unwrap();
                }
            });
        }
    });
    assert_eq!(store.list().unwrap().len(), 160);
}

/// A bad block is reported as `DataLoss`, so that the caller fetches the blob again.
#[test]
fn a_read_error_of_a_blob_is_data_loss() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = [b'x'; 400];
    let digest = Digest::of(&bytes);
    let store = LocalStore::open(dir.path()).unwrap();
    let mut writer = store.begin(&reference("r"), Expected::default()).unwrap();
    writer.write(&bytes).unwrap();
    writer.commit(Expected::default()).unwrap();
    drop(store);
    let failing = |step: fn(&Step) -> bool, at: usize| -> Watch {
        let count = AtomicUsize::new(0);
        Arc::new(move |seen| match step(seen) && count.fetch_add(1, Ordering::SeqCst) == at {
            true => Err(std::io::Error::from_raw_os_error(5)),
            false => Ok(()),
        })
    };
    let is_open = |step: &Step| matches!(step, Step::Open(name) if name.starts_with("blobs"));
    let store = LocalStore::open_watched(dir.path(), Some(failing(is_open, 0))).unwrap();
    assert_eq!(store.reader(&digest).err().unwrap().kind(), ErrorKind::DataLoss);
    drop(store);
    // The header of the recipe, and what follows it.
    let plain = dir.path().join("plain");
    std::fs::write(&plain, bytes).unwrap();
    assert!(LocalStore::open(dir.path()).unwrap().keep_recipe(&digest, &plain, 400).unwrap());
    let is_read = |step: &Step| matches!(step, Step::Read(name) if name.ends_with(".recipe"));
    for at in 0..2 {
        let store = LocalStore::open_watched(dir.path(), Some(failing(is_read, at))).unwrap();
        let error = store.reader(&digest).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::DataLoss, "read {at}: {}", error.chain());
        assert_eq!(store.reader(&digest).unwrap().read_all(1000).unwrap(), bytes);
    }
}

/// The same for reads at an offset.
#[test]
fn a_read_error_at_an_offset_is_data_loss() {
    let dir = tempfile::tempdir().unwrap();
    let digest = Digest::of(b"hello");
    let watch: Watch = Arc::new(|step| match step {
        Step::Read(name) if name.starts_with("blobs") => Err(std::io::Error::from_raw_os_error(5)),
        _ => Ok(()),
    });
    let store = LocalStore::open_watched(dir.path(), Some(watch)).unwrap();
    put(&store, b"hello");
    let reader = store.reader(&digest).unwrap();
    assert_eq!(reader.read_at(&mut [0; 5], 0).unwrap_err().kind(), ErrorKind::DataLoss);
    assert_eq!(reader.read_all(5).unwrap_err().kind(), ErrorKind::DataLoss);
}

fn put(store: &LocalStore, bytes: &[u8]) -> Digest {
    let digest = Digest::of(bytes);
    let expected = Expected::new(digest.clone(), bytes.len() as u64);
    let mut writer = store.begin(&reference(digest.hex()), expected.clone()).unwrap();
    writer.write(bytes).unwrap();
    writer.commit(expected).unwrap().digest
}

/// Committing a blob removes the plain bytes of its unfinished recipe.
#[test]
fn a_blob_that_is_committed_again_while_its_recipe_is_made_stays() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = [b'x'; 400];
    let digest = put(&LocalStore::open(dir.path()).unwrap(), &bytes);
    let plain = dir.path().join("plain");
    std::fs::write(&plain, bytes).unwrap();
    let (place, commits) = (Arc::new(OnceLock::<LocalStore>::new()), AtomicUsize::new(0));
    let inside = place.clone();
    let watch: Watch = Arc::new(move |step| {
        let is_sealed = matches!(step, Step::Sync(name) if name.ends_with(".new"));
        if is_sealed && commits.fetch_add(1, Ordering::SeqCst) == 0 {
            let store = inside.get().unwrap();
            let mut writer = store.begin(&reference("again"), Expected::default()).unwrap();
            writer.write(&bytes).unwrap();
            assert_eq!(writer.commit(Expected::default()).unwrap_err().kind(), ErrorKind::AlreadyExists);
        }
        Ok(())
    });
    let store = place.get_or_init(|| LocalStore::open_watched(dir.path(), Some(watch)).unwrap());
    store.keep_recipe(&digest, &plain, 400).unwrap();
    assert_eq!(store.reader(&digest).unwrap().read_all(400).unwrap(), bytes);
    let next = LocalStore::open(dir.path()).unwrap();
    assert_eq!(next.reader(&digest).unwrap().read_all(400).unwrap(), bytes);
}

#[test]
fn a_recipe_that_rotted_hides_no_blob_but_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path()).unwrap();
    let bytes = [b'x'; 400];
    let (digest, other) = (put(&store, &bytes), put(&store, b"other"));
    let plain = dir.path().join("plain");
    std::fs::write(&plain, bytes).unwrap();
    assert!(store.keep_recipe(&digest, &plain, 400).unwrap());
    let recipe = dir.path().join("recipes/sha256").join(format!("{}.recipe", digest.hex()));
    let right = std::fs::read(&recipe).unwrap();
    std::fs::remove_file(&recipe).unwrap();
    std::fs::write(&recipe, [b"?", &right[1..]].concat()).unwrap();

    let listed: Vec<Digest> = store.list().unwrap().into_iter().map(|blob| blob.digest).collect();
    assert_eq!(listed, [other]);
    let error = store.info(&digest).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss);
    assert!(error.chain().contains("hoist image verify"), "{}", error.chain());
    assert_eq!(store.form(&digest).unwrap_err().kind(), ErrorKind::DataLoss);
    assert!(recipe.exists(), "it is nobody's to remove");

    // The blob can be committed again.
    put(&store, &bytes);
    assert_eq!(store.reader(&digest).unwrap().read_all(400).unwrap(), bytes);
    assert_eq!(store.list().unwrap().len(), 2);
    assert!(store.keep_recipe(&digest, &plain, 400).unwrap());
    assert_eq!(std::fs::read(&recipe).unwrap(), right);
}
