//! The kit itself: its images are real images, and its registry serves them.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::{Arc, Mutex};

use testkit::disk::{RecordedDisk, mount_image};
use testkit::{Fault, FaultProxy, Layout, Registry, digest_of, images, run};

#[test]
fn a_layout_made_from_packages_can_be_pushed_and_read_back() {
    if !testkit::is_root("making images from packages") {
        return;
    }
    let registry = Registry::start();
    let reference = registry.push(&images::redis(), images::TAG, "redis:7");
    let seen = run(Command::new("skopeo")
        .args(["inspect", "--tls-verify=false"])
        .arg(format!("docker://{reference}")))
    .ok();
    let seen: serde_json::Value = serde_json::from_str(&seen.stdout).expect("skopeo prints JSON");
    assert_eq!(seen["Os"], "linux");
    assert_eq!(seen["Layers"].as_array().map(Vec::len), Some(1), "{seen}");
}

/// A get of a blob, over a plain connection: what arrives of the body, and the whole head.
fn fetch(host: &str, blob: &str, range: Option<&str>) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(host).expect("the proxy listens");
    let range = range.map_or_else(String::new, |range| format!("Range: bytes={range}\r\n"));
    write!(stream, "GET /v2/x/blobs/{blob} HTTP/1.1\r\nHost: {host}\r\n{range}\r\n").expect("it reads");
    let mut answer = Vec::new();
    // A connection that breaks leaves what came before.
    let _ = stream.read_to_end(&mut answer);
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(answer.len());
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    (head, answer.get(end + 4..).unwrap_or_default().to_vec())
}

#[test]
fn a_proxy_misbehaves_as_told_and_counts() {
    let layout = Layout::new();
    let layer = layout.layer("file", 100_000);
    let size = usize::try_from(layer["size"].as_u64().expect("a size")).expect("a small layer");
    layout.tag(&layout.image("amd64", std::slice::from_ref(&layer)), images::TAG);
    let digest = digest_of(&layer);
    let registry = Registry::start();
    registry.push(layout.path(), images::TAG, "x");
    let faults = Arc::new(Mutex::new(Vec::new()));
    let proxy = {
        let faults = faults.clone();
        FaultProxy::start(&registry, move |_| faults.lock().expect("nobody panics").clone())
    };
    let check = |fault: Vec<Fault>, range: Option<&str>, status: &str, len: usize| {
        *faults.lock().expect("nobody panics") = fault;
        let (head, body) = fetch(&proxy.host(), &digest, range);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        assert_eq!(body.len(), len, "{head}");
        (head, body)
    };
    let (_, whole) = check(vec![], None, "200", size);
    assert_eq!(types::Digest::of(&whole).to_string(), digest);
    check(vec![], Some("10-19"), "206", 10);
    check(vec![Fault::ignore_range()], Some("10-19"), "200", size);
    check(vec![Fault::Cut(777)], None, "200", 777);
    check(vec![Fault::answer(503)], None, "503", 0);
    check(vec![Fault::Body(b"short".to_vec())], None, "200", 5);
    let (head, _) = check(vec![Fault::redirect("http://elsewhere/")], None, "307", 0);
    assert!(head.contains("Location: http://elsewhere/"), "{head}");
    let (head, _) = check(vec![Fault::say("Docker-Content-Digest", "sha256:lie")], None, "200", size);
    assert!(head.contains("Content-Digest: sha256:lie"), "{head}");
    assert!(!head.contains(&format!("Content-Digest: {digest}")), "{head}");
    let (_, corrupt) = check(vec![Fault::Corrupt(50_000)], None, "200", size);
    let differing: Vec<usize> = (0..size).filter(|at| corrupt[*at] != whole[*at]).collect();
    assert_eq!(differing, [50_000]);
    check(vec![Fault::Corrupt(50_000)], Some("50001-50003"), "206", 3);
    let sent: u64 = proxy.reads(&digest).iter().map(|served| served.sent).sum();
    assert_eq!(sent, proxy.blob_bytes());
    assert_eq!(proxy.blob_bytes(), (4 * size + 10 + 777 + 5 + 3) as u64);
    assert_eq!(proxy.reads(&digest).len(), 10);
}

#[test]
fn a_recorded_disk_keeps_what_was_synced_and_perhaps_the_rest() {
    if !testkit::is_root("mounting a disk") {
        return;
    }
    let disk = RecordedDisk::new(16 << 20);
    let mut safe = fs::File::create(disk.path().join("safe")).unwrap();
    safe.write_all(&[1; 100_000]).unwrap();
    safe.sync_all().unwrap();
    let synced = disk.now();
    fs::write(disk.path().join("perhaps"), [2; 100_000]).unwrap();
    drop(safe);
    let recording = disk.end();
    assert!(recording.len() > synced, "unmounting writes");

    let dir = tempfile::TempDir::new().unwrap();
    let (image, at) = (dir.path().join("image"), dir.path().join("at"));
    fs::create_dir(&at).unwrap();
    let after = |cut: usize, kept: bool| {
        recording.after_cut(cut, |_| kept, &image);
        mount_image(&image, &at);
        let read = |name| fs::read(at.join(name)).ok();
        let found = (read("safe"), read("perhaps"));
        run(Command::new("umount").arg(&at)).ok();
        found
    };
    let (safe, perhaps) = (Some(vec![1; 100_000]), Some(vec![2; 100_000]));
    assert_eq!(after(0, true), (None, None));
    assert_eq!(after(synced, false), (safe.clone(), None));
    assert_eq!(after(recording.len(), true), (safe, perhaps));
}
