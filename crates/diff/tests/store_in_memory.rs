//! The memory of layers' metadata trees. A program of its own with one test, since the figures are those of the whole
//! process.

use std::fs;
use std::io::{self, Cursor, Read};

use diff::tar::{Entry, Kind, Writer};
use diff::{Limits, store};
use erofs::{Ground, Tree};
use types::ErrorKind;

const ENTRIES: u64 = 1_000_000;
const LAYERS: u64 = 10;

/// Bytes of a layer of a million files until its image is written, and of as many while they are merged (transfer.md,
/// "Memory").
const STORED_MAX: u64 = 60 << 20;
const MERGED_MAX: u64 = 72 << 20;
/// Most bytes of a hostile layer's tree with its pipeline.
const HOSTILE_MAX: u64 = (512 + 64) << 20;
const SHARED_MAX: u64 = 256 << 20;
const HOSTILE_LAYERS: usize = 3;

/// Gives an archive entry by entry: it is never in memory as a whole.
struct Archive<P> {
    at: u64,
    entries: u64,
    entry: P,
    piece: Cursor<Vec<u8>>,
}

impl<P: Fn(u64) -> Entry> Archive<P> {
    fn new(entries: u64, entry: P) -> Archive<P> {
        Archive { at: 0, entries, entry, piece: Cursor::default() }
    }
}

impl<P: Fn(u64) -> Entry> Read for Archive<P> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.piece.read(buffer)?;
        if len > 0 || self.at > self.entries {
            return Ok(len);
        }
        let mut writer = Writer::new(Vec::new(), 0);
        if self.at < self.entries {
            writer.entry(&(self.entry)(self.at), &mut io::empty())?;
        }
        let mut bytes = writer.finish()?;
        if self.at < self.entries {
            bytes.truncate(bytes.len() - 1024);
        }
        self.at += 1;
        self.piece = Cursor::new(bytes);
        self.piece.read(buffer)
    }
}

#[test]
fn the_memory_of_metadata_trees_is_bounded() {
    // As a daemon does, whose threads come and go, too.
    linux::memory::bound_heap();
    let data = tempfile::tempfile().unwrap();

    let file = |file: u64| {
        let path = format!("usr/lib/folder-{}/file-{:03}.so", file / 1000, file % 1000);
        Entry::new(path, Kind::File)
    };
    let stored = growth(|| {
        let stored = store(Archive::new(ENTRIES, file), Limits::default(), &data, None).unwrap();
        stored.tree.write(&mut io::sink()).unwrap();
    });
    println!("{ENTRIES} files stored: {stored} bytes");
    assert!(stored < STORED_MAX, "{stored} bytes for a layer of {ENTRIES} files");

    let each = ENTRIES / LAYERS;
    let images: Vec<tempfile::NamedTempFile> = (0..LAYERS)
        .map(|layer| {
            let data = tempfile::tempfile().unwrap();
            let files = Archive::new(each, move |number| file(layer * each + number));
            let mut image = tempfile::NamedTempFile::new().unwrap();
            store(files, Limits::default(), &data, None).unwrap().tree.write(&mut image).unwrap();
            image
        })
        .collect();
    let merged = growth(|| {
        let layers = images.iter().map(|image| Tree::read(&fs::read(image.path()).unwrap()));
        let tree = Tree::stack(layers, Ground::Nothing).unwrap();
        tree.write(&mut io::sink()).unwrap();
        assert!(tree.inode_count() > ENTRIES);
    });
    println!("{ENTRIES} files of {LAYERS} layers merged: {merged} bytes");
    assert!(merged < MERGED_MAX, "{merged} bytes for {LAYERS} layers of {each} files");

    // A few megabytes that name more directories than an honest layer has files, each the dearest that there is.
    let deep = |entry: u64| Entry::new(format!("{entry}{}/f", "/d".repeat(2000)), Kind::File);
    check_hostile("deep", Archive::new(20_000, deep));
    // Files that have nothing in common.
    let owned = |entry: u64| Entry { uid: u32::try_from(entry).unwrap(), ..file(entry) };
    check_hostile("owned", Archive::new(4 * ENTRIES, owned));
    check_hostile_together(|| Archive::new(20_000, deep));
}

/// It is refused before it takes more than a tree may.
fn check_hostile(what: &str, layer: impl Read + Send) {
    let data = tempfile::tempfile().unwrap();
    let mut refused = None;
    let hostile = growth(|| refused = store(layer, Limits::default(), &data, None).err());
    println!("{what}: {hostile} bytes");
    assert!(hostile < HOSTILE_MAX, "{what}: {hostile} bytes for a hostile layer");
    check_refused(what, refused);
}

/// Several that come at once go on one by one.
fn check_hostile_together<L: Read + Send>(layer: impl Fn() -> L + Sync) {
    let what = "several that are deep";
    let mut refused = Vec::new();
    let hostile = growth(|| {
        std::thread::scope(|scope| {
            let store = || store(layer(), Limits::default(), &tempfile::tempfile().unwrap(), None).err();
            let stored: Vec<_> = (0..HOSTILE_LAYERS).map(|_| scope.spawn(store)).collect();
            refused.extend(stored.into_iter().map(|stored| stored.join().unwrap()));
        });
    });
    println!("{what}: {hostile} bytes");
    let most = HOSTILE_MAX + SHARED_MAX;
    assert!(hostile < most, "{what}: {hostile} bytes for {HOSTILE_LAYERS} hostile layers");
    refused.into_iter().for_each(|refused| check_refused(what, refused));
}

fn check_refused(what: &str, refused: Option<types::Error>) {
    let refused = refused.expect("a layer that takes any memory is refused");
    assert!(refused.is(ErrorKind::ResourceExhausted), "{what}: {refused}");
    assert!(format!("{refused:?}{refused}").contains("more than the 536870912 bytes of memory"), "{refused}");
}

/// Bytes that the process grew by at the most while something was done.
fn growth(doing: impl FnOnce()) -> u64 {
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = memory("VmRSS:");
    doing();
    memory("VmHWM:").saturating_sub(before)
}

/// A figure of this process in bytes (proc_pid_status(5)).
fn memory(key: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() << 10
}
