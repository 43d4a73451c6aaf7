//! Interrupted pulls, and pushes: the daemon is killed in the middle, the command line's output, and other tools at the
//! other end.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use testkit::{Daemon, Fault, FaultProxy, Gate, Layout, Registry, digest_of, images, noise, run};

/// The bytes of all ingests (`docs/design/content.md`).
fn ingested(daemon: &Daemon) -> u64 {
    let entries = fs::read_dir(daemon.root().join("content/ingest")).expect("a content store");
    let files = entries.filter_map(Result::ok).filter(|entry| {
        PathBuf::from(entry.file_name()).extension().is_some_and(|extension| extension == "data")
    });
    files.filter_map(|file| file.metadata().ok()).map(|file| file.len()).max().unwrap_or(0)
}

/// Ten pseudo-random offsets in a blob, the same in every run.
fn places(size: u64) -> Vec<u64> {
    let bytes = noise("where the daemon is killed", 80);
    let numbers = bytes.chunks_exact(8).map(|eight| u64::from_le_bytes(eight.try_into().expect("eight")));
    let mut places: Vec<u64> = numbers.map(|number| number % size).collect();
    places.sort_unstable();
    places
}

#[test]
fn a_pull_that_is_killed_ten_times_fetches_no_stored_byte_again() {
    let layout = Layout::new();
    let layer = layout.layer("layer", 40_000_000);
    let size = layer["size"].as_u64().expect("a size");
    layout.tag(&layout.image("amd64", std::slice::from_ref(&layer)), images::TAG);
    let registry = Registry::start();
    let reference = registry.push(layout.path(), images::TAG, "killed:1");

    // The registry stops sending at an offset of the blob, and the daemon is killed there.
    let digest = digest_of(&layer);
    let stop: Arc<Mutex<Option<(u64, Gate)>>> = Arc::default();
    let (wanted, place) = (digest.clone(), stop.clone());
    let proxy = FaultProxy::start(&registry, move |asked| {
        let stop = place.lock().expect("nobody panics").clone();
        match (asked.blob(), stop) {
            (Some(blob), Some((at, gate))) if blob == wanted => vec![Fault::Hold { at, gate }],
            _ => Vec::new(),
        }
    });
    let name = proxy.through(&reference);
    let mut daemon = Daemon::start();
    let mut stored = 0;
    for at in places(size) {
        if at <= stored {
            continue;
        }
        let gate = Gate::default();
        *stop.lock().expect("nobody panics") = Some((at, gate.clone()));
        proxy.clear();
        let mut pull = daemon
            .command(["pull", "-q", &name])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("hoist runs");
        gate.arrivals(1);
        daemon.kill();
        pull.wait().expect("a child of ours");
        check_reads(&proxy, &digest, stored);
        let now = ingested(&daemon);
        assert!(now >= stored, "{now} bytes are stored, {stored} were before");
        stored = now;
        daemon.start_again();
    }
    assert!(stored > size / 2, "only {stored} of {size} bytes were stored before the last kill");
    *stop.lock().expect("nobody panics") = None;
    proxy.clear();
    daemon.hoist(["pull", "-q", &name]).ok();
    check_reads(&proxy, &digest, stored);
    assert_eq!(proxy.reads(&digest).iter().map(|read| read.sent).sum::<u64>(), size - stored);
    proxy.clear();
    daemon.hoist(["pull", "-q", &name]).ok();
    assert_eq!(proxy.blob_bytes(), 0, "what is here is not fetched");
}

/// No request for the blob may begin before the bytes that are stored.
#[track_caller]
fn check_reads(proxy: &FaultProxy, digest: &str, stored: u64) {
    for read in proxy.reads(digest) {
        let start = read.asked.start().unwrap_or(0);
        assert!(start >= stored, "{stored} bytes were stored, and it was asked for from {start} on");
    }
}

#[test]
fn a_pushed_image_is_what_the_tools_of_others_read_and_back() {
    let (daemon, registry) = (Daemon::start(), Registry::start());
    let archive = daemon.dir().join("in.tar").display().to_string();
    images::archive(&images::busybox(), "oci-archive", "mine:1", archive.as_ref());
    daemon.hoist(["load", "-i", &archive]).ok();
    let own = daemon.hoist(["images", "--digests", "--format", "{{.Repository}}:{{.Tag}} {{.Digest}}"]).ok();
    let (name, digest) = own.text().split_once(' ').expect("one image");
    let target = format!("{}/team/busybox:1", registry.host());
    daemon.hoist(["tag", name, &target]).ok();

    let pushed = daemon.hoist(["push", &target]).ok();
    assert!(pushed.stdout.contains(&format!("1: digest: {digest} size: ")), "{pushed}");
    assert!(pushed.stderr.contains(": Pushed"), "{pushed}");
    assert!(!pushed.stderr.contains('\r'), "no bars in a pipe\n{pushed}");
    let again = daemon.hoist(["push", &target]).ok();
    assert!(again.stderr.contains("Layer already exists") && !again.stderr.contains("Pushed"), "{again}");
    assert_eq!(daemon.hoist(["push", "-q", &target]).ok().text(), target);

    // skopeo copies it from the registry to a layout, umoci unpacks it there, and skopeo copies it back.
    let (layout, bundle) = (daemon.dir().join("layout"), daemon.dir().join("bundle"));
    let skopeo = |from: &str, to: &str| {
        let copy = ["--insecure-policy", "copy", "--quiet", "--preserve-digests"];
        let tls = ["--src-tls-verify=false", "--dest-tls-verify=false", from, to];
        run(Command::new("skopeo").args(copy).args(tls)).ok()
    };
    let in_layout = format!("oci:{}:got", layout.display());
    skopeo(&format!("docker://{target}"), &in_layout);
    let umoci = ["unpack", "--image", &format!("{}:got", layout.display())];
    run(Command::new("umoci").args(umoci).arg(&bundle)).ok();
    assert!(bundle.join("rootfs/bin/busybox").is_file());
    let back = format!("{}/team/back:1", registry.host());
    skopeo(&in_layout, &format!("docker://{back}"));
    daemon.hoist(["pull", "-q", &back]).ok();
    let listed = daemon.hoist(["images", "--format", "{{.Repository}} {{.Digest}}"]).ok();
    let same = listed.stdout.lines().filter(|line| line.ends_with(digest)).count();
    assert_eq!(same, 3, "the digest is the same on all ways\n{listed}");
}

#[test]
fn a_push_says_what_does_not_go_and_why() {
    let (daemon, registry) = (Daemon::start(), Registry::start());
    let layout = Layout::new();
    let platforms = ["amd64", "s390x"].map(|name| layout.image(name, &[layout.layer(name, 10_000)]));
    layout.tag(&layout.index(&platforms), "both");
    let name = registry.push(layout.path(), "both", "both:1");
    daemon.hoist(["pull", "-q", &name]).ok();
    let target = format!("{}/other:1", registry.host());
    daemon.hoist(["tag", &name, &target]).ok();
    let pushed =
        daemon.hoist(["push", &target]).ok().expect_stderr("Not pushed, because it is not here: linux/s390x");
    assert!(pushed.stdout.contains(&digest_of(&platforms[0])), "{pushed}");
    daemon.hoist(["push", "--all-platforms", &target]).expect_code(1).expect_stderr("linux/s390x");
    daemon.hoist(["push", "--platform", "linux/s390x", &target]).expect_code(1).expect_stderr("linux/s390x");
    daemon.hoist(["push", "--platform", "a/b/c/d", &target]).expect_code(1).expect_stderr("a/b/c/d");
    let one = daemon.hoist(["push", "--platform", "linux/amd64", &target]).ok();
    assert!(!one.stderr.contains("Not pushed") && one.stdout.contains(&digest_of(&platforms[0])), "{one}");

    daemon.hoist(["push", "nobody/has:this"]).expect_code(1).expect_stderr("No such image");
    let nowhere = "127.0.0.1:1/nobody/listens:1";
    daemon.hoist(["tag", &name, nowhere]).ok();
    daemon.hoist(["push", nowhere]).expect_code(1).expect_stderr("127.0.0.1:1");
}

#[test]
fn what_refers_to_an_image_is_listed() {
    let (daemon, registry) = (Daemon::start(), Registry::start());
    let layout = Layout::new();
    let image = layout.image("amd64", &[layout.layer("layer", 10_000)]);
    let signature = layout.artifact("application/vnd.example.signature", &image, "signed");
    layout.tag(&image, "image");
    layout.tag(&signature, "signature");
    let names: Vec<String> = ["image", "signature"]
        .iter()
        .map(|tag| registry.push(layout.path(), tag, &format!("from/app:{tag}")))
        .collect();
    for name in &names {
        daemon.hoist(["pull", "-q", name]).ok();
    }
    let target = format!("{}/to/app:1", registry.host());
    daemon.hoist(["tag", &names[0], &target]).ok();
    daemon.hoist(["push", "--referrers", &target]).ok().expect_stderr("refers to the image");
    let table = daemon.hoist(["image", "referrers", &target]).ok();
    assert!(
        table.stdout.contains("ARTIFACT TYPE") && table.stdout.contains(&digest_of(&signature)),
        "{table}"
    );
    let json = daemon.hoist(["image", "referrers", "--format", "json", &target]).ok();
    let row: serde_json::Value = serde_json::from_str(json.text()).expect("one line of JSON");
    assert_eq!(row["ArtifactType"], "application/vnd.example.signature");
    assert_eq!(row["Subject"], digest_of(&image));
    let none =
        daemon.hoist(["image", "referrers", "--artifact-type", "another", "--format", "json", &target]).ok();
    assert_eq!(none.text(), "");
}

#[test]
fn a_push_on_a_terminal_has_a_bar_for_each_blob() {
    let (daemon, registry) = (Daemon::start(), Registry::start());
    let archive = daemon.dir().join("in.tar").display().to_string();
    images::archive(&images::busybox(), "docker-archive", "mine:1", archive.as_ref());
    daemon.hoist(["load", "-i", &archive]).ok();
    let target = format!("{}/mine:1", registry.host());
    daemon.hoist(["tag", "mine:1", &target]).ok();
    let (socket, hoist) = (daemon.socket(), testkit::hoist_program());
    let push = format!("HOIST_ADDRESS={} {} push {target}", socket.display(), hoist.display());
    let script = ["--quiet", "--return", "--command", &push, "/dev/null"];
    let shown = run(Command::new("script").args(script).env("TERM", "xterm")).ok();
    assert!(shown.stdout.matches("\u{1b}[").count() > 3 && shown.stdout.contains("Pushed"), "{shown}");
}
