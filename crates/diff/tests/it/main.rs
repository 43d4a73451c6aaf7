//! Layers applied to real trees: what GNU tar writes arrives as it was, and nothing leaves the root.

mod compare;
mod lay;
mod spans;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use diff::{Applied, ApplyOptions, Limits, Whiteouts, apply};
use tempfile::TempDir;
use types::{Digest, ErrorKind, Result};

fn apply_to(tree: &Path, bytes: &[u8], whiteouts: Whiteouts) -> Result<Applied> {
    apply_within(tree, bytes, whiteouts, Limits::default())
}

fn apply_within(tree: &Path, bytes: &[u8], whiteouts: Whiteouts, limits: Limits) -> Result<Applied> {
    let root = fs::File::open(tree).unwrap();
    apply(bytes, ApplyOptions { whiteouts, limits }, root.as_fd())
}

/// A raw header, so that a test can say anything.
fn entry(path: &str, typeflag: u8, link: &str, data: &[u8]) -> Vec<u8> {
    let mut block = [0_u8; 512];
    let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, path);
    put(100, "0000755\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}\0", data.len()));
    put(136, "00000000007\0");
    put(148, "        ");
    put(157, link);
    put(257, "ustar\x0000");
    put(329, "0000001\0");
    put(337, "0000003\0");
    block[156] = typeflag;
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut bytes = block.to_vec();
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// Applies hostile entries inside a folder whose neighbour must stay as it is.
fn attack(entries: &[Vec<u8>]) -> (TempDir, Result<Applied>) {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("root")).unwrap();
    fs::write(dir.path().join("outside"), "untouched").unwrap();
    let applied = apply_to(&dir.path().join("root"), &entries.concat(), Whiteouts::Remove);
    assert_eq!(fs::read_to_string(dir.path().join("outside")).unwrap(), "untouched");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing beside the root");
    (dir, applied)
}

#[test]
fn names_with_dots_and_slashes_stay_inside() {
    let (dir, applied) = attack(&[
        entry("../../outside", b'0', "", b"x"),
        entry("/abs", b'0', "", b"y"),
        entry("a/../../../b", b'0', "", b"z"),
    ]);
    applied.unwrap();
    for (name, text) in [("outside", "x"), ("abs", "y"), ("b", "z")] {
        assert_eq!(fs::read_to_string(dir.path().join("root").join(name)).unwrap(), text);
    }
}

/// An opaque whiteout costs a walk of its directory, and a small layer has room for millions of whiteouts.
#[test]
fn repeated_opaque_whiteouts_empty_a_directory_once() {
    const NAMES: usize = 5000;
    let dir = TempDir::new().unwrap();
    fs::create_dir_all(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("d/below"), "").unwrap();
    let own = (0..NAMES).map(|at| entry(&format!("d/{at}"), b'0', "", b""));
    let link = entry("link", b'2', "d", b"");
    let markers = ["d/.wh..wh..opq", "link/.wh..wh..opq"].map(|path| entry(path, b'0', "", b""));
    let layer: Vec<u8> = own.chain([link]).chain(markers.into_iter().cycle().take(NAMES)).flatten().collect();
    let begun = std::time::Instant::now();
    apply_to(dir.path(), &layer, Whiteouts::Remove).unwrap();
    assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    assert_eq!(
        fs::read_dir(dir.path().join("d")).unwrap().count(),
        NAMES,
        "its own stay, and the other went"
    );
}

/// Makes directories in each other, more of them than a path may name.
fn deep(dir: &Path, levels: usize) {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    let open = |parent: std::os::fd::BorrowedFd<'_>, name: &Path| {
        openat(parent, name, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
    };
    let mut at = open(CWD, dir);
    for _ in 0..levels {
        mkdirat(&at, "d", Mode::RWXU).unwrap();
        at = open(at.as_fd(), Path::new("d"));
    }
}

/// Deeper than there are descriptors.
#[test]
fn a_deep_directory_is_replaced() {
    let dir = TempDir::new().unwrap();
    for (whiteouts, layer) in [
        (Whiteouts::Overlay, entry("top", b'0', "", b"a file now")),
        (Whiteouts::Remove, entry("top", b'0', "", b"a file now")),
        (Whiteouts::Remove, entry(".wh.top", b'0', "", b"")),
    ] {
        let top = dir.path().join("top");
        fs::create_dir(&top).unwrap();
        deep(&top, 2000);
        apply_to(dir.path(), &layer, whiteouts).unwrap();
        assert!(!top.is_dir());
        let _made = fs::remove_file(&top);
    }
}

#[test]
fn links_lead_to_places_inside_only() {
    let outside = |link: &str| [entry("link", b'2', link, b""), entry("link/outside", b'0', "", b"x")];
    for link in ["..", "/..", "../../", "/"] {
        let (_dir, applied) = attack(&outside(link));
        applied.unwrap();
    }
    let (_dir, applied) =
        attack(&[entry("a", b'2', "b", b""), entry("b", b'2', "a", b""), entry("a/x", b'0', "", b"")]);
    applied.unwrap_err();
}

#[test]
fn a_file_is_never_written_through_a_link() {
    let (dir, applied) = attack(&[entry("x", b'2', "../outside", b""), entry("x", b'0', "", b"own")]);
    applied.unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("root/x")).unwrap(), "own");
    assert!(fs::symlink_metadata(dir.path().join("root/x")).unwrap().is_file());
}

#[test]
fn hard_links_out_of_the_root_are_refused() {
    for target in ["../outside", "/../outside", "../../etc/passwd"] {
        let (_dir, applied) = attack(&[entry("x", b'1', target, b"")]);
        assert_eq!(applied.unwrap_err().kind(), ErrorKind::NotFound, "{target}");
    }
    let (_dir, applied) = attack(&[entry("up", b'2', "..", b""), entry("x", b'1', "up/outside", b"")]);
    applied.unwrap_err();
}

#[test]
fn the_last_of_several_entries_wins() {
    let (dir, applied) = attack(&[
        entry("x", b'0', "", b"first"),
        entry("x", b'0', "", b"second"),
        entry("d/inside", b'0', "", b""),
        entry("d", b'0', "", b"a file now"),
        entry("f", b'0', "", b""),
        entry("f/", b'5', "", b""),
        entry("f/in", b'0', "", b"in"),
    ]);
    applied.unwrap();
    let root = dir.path().join("root");
    assert_eq!(fs::read_to_string(root.join("x")).unwrap(), "second");
    assert_eq!(fs::read_to_string(root.join("d")).unwrap(), "a file now");
    assert_eq!(fs::read_to_string(root.join("f/in")).unwrap(), "in");
}

#[test]
fn damaged_archives_are_refused() {
    let mut broken = entry("x", b'0', "", b"data");
    broken[0] ^= 1;
    let cut = entry("x", b'0', "", &[1; 600])[..800].to_vec();
    let negative = {
        let mut bytes = entry("x", b'0', "", b"");
        bytes[124..136].copy_from_slice(&[0xff; 12]);
        bytes
    };
    let pax_without_newline = entry("p", b'x', "", b"10 path=xx");
    let pax_too_long = entry("p", b'x', "", b"99999999999999999999 path=x\n");
    let unknown = entry("x", b'Z', "", b"");
    for bytes in
        [broken, cut, negative, pax_without_newline, pax_too_long, unknown, b"not a tar archive".repeat(100)]
    {
        let (_dir, applied) = attack(&[bytes]);
        applied.unwrap_err();
    }
}

#[test]
fn a_pax_size_bounds_its_entry() {
    let hidden = entry("hidden", b'0', "", b"x");
    let carrier = entry("carrier", b'0', "", &hidden);
    // The header says there is nothing; the record says how much there is.
    let carrier = with_size(carrier, 0);
    let record = format!("13 size={}\n", hidden.len());
    let (dir, applied) = attack(&[entry("p", b'x', "", record.as_bytes()), carrier]);
    applied.unwrap();
    assert!(!dir.path().join("root/hidden").exists());
    assert_eq!(fs::read(dir.path().join("root/carrier")).unwrap(), hidden);
}

/// A PAX record, whose length counts itself.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
}

#[test]
fn headers_before_an_entry_are_bounded_together() {
    for typeflag in [b'x', b'g', b'L', b'K'] {
        let header = entry("h", typeflag, "", &record("key", &[b'v'; 12 << 10]));
        let headers = |count: usize| [header.repeat(count), entry("x", b'0', "", b"")];
        let (_dir, applied) = attack(&headers(1));
        if typeflag == b'x' || typeflag == b'g' {
            applied.unwrap();
        }
        let (_dir, applied) = attack(&headers(100));
        let error = applied.unwrap_err().chain();
        assert!(error.contains("headers before an entry"), "{}: {error}", char::from(typeflag));
    }
    // Empty ones are headers too.
    let (_dir, applied) = attack(&[entry("h", b'x', "", b"").repeat(3000), entry("x", b'0', "", b"")]);
    applied.unwrap_err();
}

/// As in Go's archive/tar and in containerd.
#[test]
fn global_pax_headers_are_ignored() {
    let global =
        [record("uid", b"5"), record("path", b"other"), record("SCHILY.xattr.user.own", b"1")].concat();
    let own = record("gid", b"6");
    let (dir, applied) = attack(&[
        entry("g", b'g', "", &global),
        entry("first", b'0', "", b""),
        entry("h", b'x', "", &own),
        entry("g", b'g', "", &global),
        entry("second", b'0', "", b""),
        entry("third", b'0', "", b""),
    ]);
    applied.unwrap();
    let root = dir.path().join("root");
    assert_eq!(fs::read_dir(&root).unwrap().count(), 3);
    let look = |name: &str| {
        let stat = fs::metadata(root.join(name)).unwrap();
        (stat.uid(), stat.gid())
    };
    // And of what was said before them nothing is left.
    assert_eq!((look("first"), look("second"), look("third")), ((0, 0), (0, 0), (0, 0)));
    let mut names = [0; 64];
    let len = rustix::fs::listxattr(root.join("first"), &mut names).unwrap();
    assert!(!names[..len].starts_with(b"user.own"));
    // They are records nevertheless.
    let (_dir, applied) = attack(&[entry("g", b'g', "", b"10 path=xx"), entry("x", b'0', "", b"")]);
    applied.unwrap_err();
}

/// If several headers describe one entry, other readers must not see another file than is unpacked.
#[test]
fn extension_headers_before_an_entry_are_read_as_in_go() {
    let pax = |key: &str, value: &[u8]| entry("h", b'x', "", &record(key, value));
    let long = |name: &[u8]| entry("l", b'L', "", &[name, b"\0"].concat());
    let global = entry("g", b'g', "", &record("comment", b"x"));
    let version = |major: &[u8]| {
        let records = [
            record("GNU.sparse.name", b"sparse"),
            record("GNU.sparse.major", major),
            record("GNU.sparse.minor", b"0"),
        ];
        entry("h", b'x', "", &records.concat())
    };
    for (before, name, gid) in [
        (vec![pax("path", b"pax"), pax("gid", b"6")], "own", 6),
        (vec![pax("path", b"pax"), long(b"long")], "long", 0),
        (vec![long(b"long"), pax("path", b"pax")], "long", 0),
        (vec![long(b""), pax("path", b"pax")], "pax", 0),
        (vec![long(b"long"), pax("path", b"pax"), global], "own", 0),
        (vec![pax("GNU.sparse.name", b"sparse")], "own", 0),
        (vec![version(b"7")], "own", 0),
    ] {
        let (dir, applied) = attack(&[before, vec![entry("own", b'0', "", b"data")]].concat());
        applied.unwrap();
        let path = dir.path().join("root").join(name);
        let found = (fs::read(&path).unwrap(), fs::metadata(&path).unwrap().gid());
        assert_eq!(found, (b"data".to_vec(), gid), "{name}");
    }
    // Records of a map are nothing to an entry that has its map in its header.
    let mut old = entry("own", b'S', "", b"data");
    old[257..265].copy_from_slice(b"ustar  \0");
    old[386..410].copy_from_slice(b"00000000000\x0000000000004\0");
    old[483..495].copy_from_slice(b"00000000004\0");
    let (dir, applied) = attack(&[version(b"1"), summed(old)]);
    applied.unwrap();
    assert_eq!(fs::read(dir.path().join("root/own")).unwrap(), b"data");
    // And wrong for one without data.
    let (_dir, applied) = attack(&[version(b"1"), entry("own", b'2', "to", b"")]);
    assert!(applied.unwrap_err().chain().contains("an entry that is no file has a sparse map"));
}

/// A file may have its map twice over, once as one record and once as many.
#[test]
fn a_sparse_map_of_form_0_0_overrides_one_of_form_0_1() {
    let with_map = |map: &[(&str, &str)]| {
        let size = [("size", "8"), ("numblocks", "1")];
        let records = size.iter().chain(map);
        let records = records.map(|(key, value)| record(&format!("GNU.sparse.{key}"), value.as_bytes()));
        let records = records.collect::<Vec<_>>().concat();
        attack(&[entry("h", b'x', "", &records), entry("own", b'0', "", b"data")])
    };
    let (one, offset, len) = (("map", "4,4"), ("offset", "0"), ("numbytes", "4"));
    for (map, content) in [
        (vec![one], b"\0\0\0\0data"),
        (vec![offset, len], b"data\0\0\0\0"),
        (vec![one, offset, len], b"data\0\0\0\0"),
        (vec![offset, len, one], b"data\0\0\0\0"),
    ] {
        let (dir, applied) = with_map(&map);
        applied.unwrap();
        assert_eq!(fs::read(dir.path().join("root/own")).unwrap(), content, "{map:?}");
    }
    for map in [vec![offset], vec![len, offset], vec![offset, offset, len], vec![("offset", "0,4")]] {
        let (_dir, applied) = with_map(&map);
        applied.unwrap_err();
    }
    let (_dir, applied) = with_map(&[("map", "0,4,8")]);
    assert!(applied.unwrap_err().chain().contains("no list of pairs"));
}

/// Go takes the size of the header here, which counts only the map and the data: no writer means this.
#[test]
fn a_sparse_file_whose_records_give_no_size_is_refused() {
    let records = [record("GNU.sparse.major", b"1"), record("GNU.sparse.minor", b"0")];
    let mut data = b"1\n0\n4\n".to_vec();
    data.resize(512, 0);
    data.extend_from_slice(b"data");
    let (_dir, applied) = attack(&[entry("h", b'x', "", &records.concat()), entry("own", b'0', "", &data)]);
    assert!(applied.unwrap_err().chain().contains("no real size"));
}

#[test]
fn tar_numbers_may_be_padded_at_either_side() {
    for size in [b"\x000000001000\0", b"\0\0  00001000", b"1000  \0\0\0\0\0\0", b"    001000 \0"] {
        let mut sized = entry("sized", b'0', "", &[b'd'; 512]);
        sized[124..136].copy_from_slice(size);
        let (dir, applied) = attack(&[summed(sized), entry("next", b'0', "", b"")]);
        applied.unwrap();
        assert_eq!(fs::metadata(dir.path().join("root/sized")).unwrap().len(), 512, "{size:?}");
        assert!(dir.path().join("root/next").exists(), "{size:?}");
    }
}

/// GNU tar writes the names of attributes as the file system has them.
#[test]
fn pax_records_whose_keys_are_not_utf8_are_ignored() {
    let mut odd = record("SCHILY.xattr.user.?", b"1");
    let last = odd.iter().position(|byte| *byte == b'?').unwrap();
    odd[last] = 0xe9;
    let records = [odd, record("SCHILY.xattr.user.own", b"2"), record("gid", b"6")].concat();
    let (dir, applied) = attack(&[entry("p", b'x', "", &records), entry("x", b'0', "", b"data")]);
    applied.unwrap();
    let path = dir.path().join("root/x");
    assert_eq!((fs::read(&path).unwrap(), fs::metadata(&path).unwrap().gid()), (b"data".to_vec(), 6));
    let mut names = [0; 64];
    let len = rustix::fs::listxattr(&path, &mut names).unwrap();
    assert!(names[..len].starts_with(b"user.own\0") && !names[..len].contains(&0xe9));
}

/// Sets the size in a header.
fn with_size(mut entry: Vec<u8>, size: usize) -> Vec<u8> {
    entry[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    summed(entry)
}

fn summed(mut entry: Vec<u8>) -> Vec<u8> {
    entry[148..156].copy_from_slice(b"        ");
    let sum: u32 = entry[..512].iter().map(|byte| u32::from(*byte)).sum();
    entry[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    entry
}

/// As in Go's archive/tar: scanners of images must not see other files than are unpacked.
#[test]
fn only_regular_files_have_data() {
    let root = |dir: &TempDir, name: &str| fs::symlink_metadata(dir.path().join("root").join(name));
    for typeflag in *b"123456" {
        let sized = with_size(entry("sized", typeflag, "target", b""), 512);
        let entries = [entry("target", b'0', "", b""), sized, entry("next", b'0', "", b"")];
        let (dir, applied) = attack(&entries);
        applied.unwrap();
        assert!(root(&dir, "sized").is_ok() && root(&dir, "next").is_ok(), "{}", char::from(typeflag));
    }
    // A slash at a name's end makes a directory of what has no type at all.
    for (typeflag, is_directory) in [(0, true), (b'0', false)] {
        let sized = with_size(entry("sized/", typeflag, "", b""), 512);
        let (dir, applied) = attack(&[sized, entry("next", b'0', "", b"")]);
        applied.unwrap();
        assert_eq!(root(&dir, "sized").unwrap().is_dir(), is_directory);
        assert_eq!(root(&dir, "next").is_ok(), is_directory);
    }
}

#[test]
fn entries_of_too_large_sizes_are_refused() {
    for size in ["9223372036854775808", "18446744073709551615"] {
        for typeflag in [b'0', b'5'] {
            let records = record("size", size.as_bytes());
            let (_dir, applied) = attack(&[entry("p", b'x', "", &records), entry("x", typeflag, "", b"")]);
            let error = applied.unwrap_err().chain();
            assert!(error.contains("too large"), "{error}");
        }
    }
    // Regions that lie over each other, and are more than any number together.
    let map: String = (0..8).map(|_| format!("0,{},", (1_u64 << 62) - 1)).collect();
    let records =
        [record("GNU.sparse.map", map.trim_end_matches(',').as_bytes()), record("GNU.sparse.size", b"1")];
    let (_dir, applied) = attack(&[entry("p", b'x', "", &records.concat()), entry("x", b'0', "", b"")]);
    assert!(applied.unwrap_err().chain().contains("sparse map"));
}

#[test]
fn an_archive_ends_with_two_blocks_of_zeros_or_with_its_bytes() {
    let (first, second, zeros) = (entry("x", b'0', "", b"1"), entry("y", b'0', "", b"2"), vec![0; 512]);
    for end in [&[][..], std::slice::from_ref(&zeros), &[zeros.clone(), zeros.clone(), second.clone()]] {
        let (dir, applied) = attack(&[std::slice::from_ref(&first), end].concat());
        applied.unwrap();
        assert!(!dir.path().join("root/y").exists());
    }
    for more in [second, b"rubbish".to_vec()] {
        let (_dir, applied) = attack(&[first.clone(), zeros.clone(), more]);
        applied.unwrap_err();
    }
}

#[test]
fn the_name_prefix_of_each_tar_format_is_read() {
    let named = |magic: &[u8; 8], trailer: &[u8]| {
        let mut bytes = entry("name", b'0', "", b"");
        bytes[257..265].copy_from_slice(magic);
        bytes[345..351].copy_from_slice(b"prefix");
        // Times, as star has them behind its prefix.
        bytes[476..500].copy_from_slice(b"00000000007 00000000007 ");
        bytes[508..508 + trailer.len()].copy_from_slice(trailer);
        summed(bytes)
    };
    for (magic, trailer, name) in
        [(b"ustar\x0000", &b"tar\0"[..], "prefix/name"), (b"ustar  \0", b"", "name"), (&[0; 8], b"", "name")]
    {
        let (dir, applied) = attack(&[named(magic, trailer)]);
        applied.unwrap();
        assert!(dir.path().join("root").join(name).is_file(), "{name}");
    }
    let whole = entry("name", b'0', "", b"");
    let long = "p".repeat(155);
    let bytes = [&whole[..345], long.as_bytes(), &whole[500..]].concat();
    let (dir, applied) = attack(&[summed(bytes)]);
    applied.unwrap();
    assert!(dir.path().join("root").join(long).join("name").is_file());
}

#[test]
fn a_sparse_map_without_an_end_is_refused_at_once() {
    let records = [
        record("GNU.sparse.major", b"1"),
        record("GNU.sparse.minor", b"0"),
        record("GNU.sparse.realsize", b"1"),
    ];
    let (_dir, applied) =
        attack(&[entry("h", b'x', "", &records.concat()), entry("x", b'0', "", &[b'1'; 64 << 10])]);
    let error = applied.unwrap_err().chain();
    assert!(error.contains("no list of numbers"), "{error}");
}

#[test]
fn layers_beyond_a_limit_are_refused() {
    let dir = TempDir::new().unwrap();
    let limits = Limits { entries: 3, bytes: 1 << 20, ..Limits::default() };
    let many: Vec<u8> = (0..5).flat_map(|name| entry(&name.to_string(), b'0', "", b"")).collect();
    let error = apply_within(dir.path(), &many, Whiteouts::Remove, limits).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted);

    // Directories, which have their times at the end, and all names where whiteouts delete.
    let limits_of_paths = Limits { paths: 40, ..Limits::default() };
    let long: Vec<u8> = (0..5).flat_map(|at| entry(&format!("long name {at}"), b'5', "", b"")).collect();
    for whiteouts in [Whiteouts::Remove, Whiteouts::Overlay] {
        let error = apply_within(dir.path(), &long, whiteouts, limits_of_paths).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error:?}");
    }

    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), 64 << 20), &mut encoder).unwrap();
    let bomb = encoder.finish().unwrap();
    assert!(bomb.len() < 100_000);
    let inside = with_size(entry("zeros", b'0', "", b""), 32 << 20);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut encoder, &inside).unwrap();
    let first = encoder.finish().unwrap();
    let error = apply_within(dir.path(), &[first, bomb].concat(), Whiteouts::Remove, limits).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error:?}");
}

#[test]
fn attributes_of_overlayfs_are_not_taken_from_archives() {
    let records =
        [record("SCHILY.xattr.trusted.overlay.redirect", b"/etc"), record("SCHILY.xattr.user.own", b"1")]
            .concat();
    let (dir, applied) = attack(&[entry("p", b'x', "", &records), entry("d/", b'5', "", b"")]);
    applied.unwrap();
    let listed = Command::new("python3")
        .args(["-c", "import os,sys; print(os.listxattr(sys.argv[1]))"])
        .arg(dir.path().join("root/d"))
        .output()
        .unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("user.own") && !listed.contains("redirect"), "{listed}");
}

#[test]
fn whiteouts_become_those_of_overlayfs() {
    let dir = TempDir::new().unwrap();
    let bytes = [
        entry("d/.wh.gone", b'0', "", b""),
        entry("o/.wh..wh..opq", b'0', "", b""),
        entry("o/new", b'0', "", b""),
        entry("c/.wh.d", b'0', "", b""),
        entry("c/d/e/f", b'0', "", b""),
    ];
    let applied = apply_to(dir.path(), &bytes.concat(), Whiteouts::Overlay).unwrap();
    let gone = fs::symlink_metadata(dir.path().join("d/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    for (opaque, made) in [("o", "o/new"), ("c/d", "c/d/e/f")] {
        let mut value = [0; 8];
        let opaque = dir.path().join(opaque);
        let len = rustix::fs::getxattr(&opaque, c"trusted.overlay.opaque", &mut value).unwrap();
        assert_eq!(&value[..len], b"y");
        assert!(dir.path().join(made).exists());
    }
    assert_eq!(applied.implied, ["", "c", "c/d", "c/d/e", "d", "o"].map(Path::new));
}

#[test]
fn whiteouts_delete_files_of_lower_layers() {
    let dir = TempDir::new().unwrap();
    for name in ["d/gone", "d/kept", "o/old/deep", "o/older"] {
        fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
        fs::write(dir.path().join(name), "").unwrap();
    }
    let bytes = [
        entry("o/new", b'0', "", b""),
        entry("d/.wh.gone", b'0', "", b""),
        entry("o/.wh..wh..opq", b'0', "", b""),
        entry("d/.wh...", b'0', "", b""),
    ];
    apply_to(dir.path(), &bytes[..3].concat(), Whiteouts::Remove).unwrap();
    assert!(!dir.path().join("d/gone").exists() && dir.path().join("d/kept").exists());
    let left: Vec<_> =
        fs::read_dir(dir.path().join("o")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["new"]);
    apply_to(dir.path(), &bytes[3], Whiteouts::Remove).unwrap_err();
}

/// Whiteouts of a layer delete only lower files, in any order of its entries.
#[test]
fn whiteouts_reach_into_directories_that_the_layer_has_as_well() {
    let made = [entry("a/b/", b'5', "", b""), entry("a/b/new", b'0', "", b"")].concat();
    let link = [entry("a/link", b'2', "../kept", b""), entry("a/c/d/new", b'0', "", b"")].concat();
    for marker in ["a/.wh..wh..opq", ".wh.a"] {
        let dir = TempDir::new().unwrap();
        for name in ["a/old", "a/b/old", "a/b/old directory/file", "a/c/d/old", "a/c/old", "kept/file"] {
            fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
            fs::write(dir.path().join(name), "").unwrap();
        }
        let markers = [marker, "a/.wh.link"].map(|path| entry(path, b'0', "", b"")).concat();
        let layer = [made.clone(), link.clone(), markers].concat();
        apply_to(dir.path(), &layer, Whiteouts::Remove).unwrap();
        let find = Command::new("find").arg(dir.path()).args(["-mindepth", "1", "-printf", "%P\n"]).output();
        let mut left: Vec<_> =
            String::from_utf8(find.unwrap().stdout).unwrap().lines().map(str::to_owned).collect();
        left.sort();
        let expected = ["a", "a/b", "a/b/new", "a/c", "a/c/d", "a/c/d/new", "a/link", "kept", "kept/file"];
        assert_eq!(left, expected);
    }
}

/// The kernel allows users' attributes on files and directories only; an image that has them elsewhere is unpacked
/// without.
#[test]
fn user_attributes_on_special_files_are_left_out() {
    for typeflag in *b"2346" {
        let records = record("SCHILY.xattr.user.own", b"1");
        let (dir, applied) = attack(&[entry("p", b'x', "", &records), entry("x", typeflag, "target", b"")]);
        applied.unwrap();
        assert!(fs::symlink_metadata(dir.path().join("root/x")).is_ok(), "{}", char::from(typeflag));
    }
}

/// Archives of a tree with all types of files, in each format of GNU tar.
#[test]
fn archives_of_gnu_tar_are_unpacked_in_all_formats() {
    let dir = TempDir::new().unwrap();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("deep").join("d".repeat(80)).join("e".repeat(80))).unwrap();
    fs::write(source.join("deep").join("d".repeat(80)).join("e".repeat(80)).join("f"), "deep").unwrap();
    fs::write(source.join("setuid"), "x").unwrap();
    fs::set_permissions(source.join("setuid"), fs::Permissions::from_mode(0o6755)).unwrap();
    std::os::unix::fs::chown(source.join("setuid"), Some(12), Some(34)).unwrap();
    fs::hard_link(source.join("setuid"), source.join("second name")).unwrap();
    symlink("setuid", source.join("link")).unwrap();
    let made = Command::new("mkfifo").arg(source.join("fifo")).status().unwrap().success();
    let node = |name: &str, numbers: [&str; 3]| {
        Command::new("mknod").arg(source.join(name)).args(numbers).status().unwrap().success()
    };
    assert!(made && node("null", ["c", "1", "3"]) && node("disk", ["b", "259", "300"]), "fifo and devices");
    let sparse = fs::File::create(source.join("sparse")).unwrap();
    sparse.set_len(10 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", 5 << 20).unwrap();
    Command::new("touch")
        .args(["-d", "2001-02-03 04:05:06.7", "-h"])
        .arg(source.join("link"))
        .status()
        .unwrap();

    for flags in [
        &["--format=gnu"][..],
        &["--format=gnu", "--sparse"],
        &["--format=pax"],
        &["--format=pax", "--sparse", "--sparse-version=0.0"],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
        &["--format=pax", "--sparse", "--sparse-version=1.0"],
    ] {
        let output =
            Command::new("tar").args(flags).arg("-C").arg(&source).args(["-cf", "-", "."]).output().unwrap();
        assert!(output.status.success(), "{flags:?}");
        let target = TempDir::new().unwrap();
        let applied = apply_to(target.path(), &output.stdout, Whiteouts::Overlay).unwrap();
        assert_eq!(
            applied,
            Applied {
                diff_id: Digest::of(&output.stdout),
                size: output.stdout.len() as u64,
                implied: Vec::new()
            }
        );
        let list = |tree: &Path| {
            let script = "cd \"$0\"; find . -printf '%P %y %m %U %G %s %l %n %T@\\n' | grep -v '^ ' | sort; find . -type f | sort | xargs -d'\\n' sha256sum; \
                          find . -type b -o -type c | sort | xargs -d'\\n' stat -c '%t:%T of %n'";
            let output = Command::new("sh").args(["-c", script]).arg(tree).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        // Fractions of seconds are in PAX only.
        let rounded = |text: String| {
            if flags[0] == "--format=pax" {
                return text;
            }
            let lines = text.lines().map(|line| {
                line.rsplit_once('.').filter(|_| line.contains(' ')).map_or(line, |(front, _)| front)
            });
            lines.collect::<Vec<_>>().join("\n")
        };
        // Directories' sizes are the file system's business.
        let normal = |tree: &Path| {
            let text = rounded(list(tree));
            text.lines().filter(|line| !line.contains(" d ")).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(normal(target.path()), normal(&source), "{flags:?}");
        let held = fs::metadata(target.path().join("sparse")).unwrap();
        if flags.contains(&"--sparse") {
            assert!(held.blocks() < 1000, "{flags:?}: holes stay holes");
        }
    }
}

#[test]
fn every_compression_is_detected() {
    let plain = entry("x", b'0', "", b"data");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &plain[..300]).unwrap();
    let mut members = gzip.finish().unwrap();
    let mut second = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut second, &plain[300..]).unwrap();
    members.extend(second.finish().unwrap());
    let zstd = zstd::encode_all(&plain[..], 3).unwrap();
    for bytes in [plain.clone(), members, zstd] {
        let dir = TempDir::new().unwrap();
        let applied = apply_to(dir.path(), &bytes, Whiteouts::Overlay).unwrap();
        assert_eq!(applied.diff_id, Digest::of(&plain));
        assert_eq!(fs::read_to_string(dir.path().join("x")).unwrap(), "data");
    }
}

#[test]
fn a_file_name_with_the_gzip_magic_is_no_gzip() {
    let mut plain = entry("..name", b'0', "", b"data");
    plain[..2].copy_from_slice(&[0x1f, 0x8b]);
    let dir = TempDir::new().unwrap();
    let applied = apply_to(dir.path(), &summed(plain.clone()), Whiteouts::Overlay).unwrap();
    assert_eq!(applied.diff_id, Digest::of(&summed(plain)));
    let name: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"\x1f\x8bname");
    assert_eq!(fs::read(dir.path().join(name)).unwrap(), b"data");
}

#[test]
fn implied_directories_are_reported() {
    let dir = TempDir::new().unwrap();
    let bytes = [
        entry("a/b/file", b'0', "", b""),
        entry("a/", b'5', "", b""),
        entry("c/d/", b'5', "", b""),
        entry("c/e", b'0', "", b""),
    ];
    let applied = apply_to(dir.path(), &bytes.concat(), Whiteouts::Overlay).unwrap();
    assert_eq!(applied.implied, ["", "a/b", "c"].map(Path::new));
    let with_root = [vec![entry("./", b'5', "", b"")], bytes.to_vec()].concat();
    let dir = TempDir::new().unwrap();
    let applied = apply_to(dir.path(), &with_root.concat(), Whiteouts::Overlay).unwrap();
    assert_eq!(applied.implied, ["a/b", "c"].map(Path::new));
}
