//! Images pulled, loaded and saved: registries, archives, many layers, many files, large files.

mod broken_off;
mod commands;
mod docker;
mod formats;
mod page;

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use testkit::bulk::{Bulk, Compression, Shape};
use testkit::{Daemon, Fault, FaultProxy, Gate, Registry, Terminal, eventually, images};

#[test]
fn a_pulled_image_is_listed_run_and_removed() {
    let registry = Registry::start();
    let reference = registry.push(&images::busybox(), images::TAG, "tools/busybox:1");
    let daemon = Daemon::start();
    let pull = daemon.hoist(["pull", &reference]).ok();
    assert!(pull.stdout.lines().last().is_some_and(|line| line.contains(&reference)), "{pull}");
    assert!(!pull.stderr.contains('\r') && !pull.stdout.contains('\r'), "no bars in a pipe\n{pull}");
    assert!(daemon.hoist(["images"]).ok().stdout.contains("tools/busybox"));
    assert_eq!(daemon.hoist(["run", "--rm", &reference, "echo", "hi"]).ok().stdout, "hi\n");
    daemon.hoist(["rmi", &reference]).ok();
    assert!(!daemon.hoist(["images"]).ok().stdout.contains("tools/busybox"));
    daemon.hoist(["rmi", &reference]).expect_code(1).expect_stderr("tools/busybox");
}

#[test]
fn a_missing_image_is_named_with_the_registry_that_lacks_it() {
    let registry = Registry::start();
    let daemon = Daemon::start();
    let reference = format!("{}/no/such:1", registry.host());
    daemon.hoist(["pull", &reference]).expect_code(1).expect_stderr(&reference);
    daemon.hoist(["run", "--rm", &reference]).expect_code(125).expect_stderr(&registry.host());
    daemon.hoist(["pull", "UPPER/case"]).expect_code(1).expect_stderr("UPPER/case");
}

#[test]
fn archives_of_every_form_can_be_loaded_and_run() {
    let daemon = Daemon::start();
    for form in ["docker-archive", "oci-archive"] {
        let archive = daemon.dir().join(format!("{form}.tar"));
        images::archive(&images::busybox(), form, "from-archive:1", &archive);
        let shown = archive.display().to_string();
        assert_eq!(daemon.hoist(["run", "--rm", &shown, "echo", form]).ok().stdout, format!("{form}\n"));
    }
    let layout = format!("oci:{}", images::busybox().display());
    assert_eq!(daemon.hoist(["run", "--rm", &layout, "echo", "layout"]).ok().stdout, "layout\n");
}

#[test]
fn a_hundred_layers_are_one_tree() {
    let registry = Registry::start();
    let reference = registry.push(&images::hundred_layers(), images::TAG, "layers");
    let daemon = Daemon::start();
    let seen =
        daemon.hoist(["run", "--rm", &reference, "sh", "-c", "cat /last; echo; ls /layer | wc -l"]).ok();
    assert_eq!(seen.text().split_whitespace().collect::<Vec<_>>(), ["99", "99"], "{seen}");
}

#[test]
fn fifty_thousand_files_arrive() {
    let registry = Registry::start();
    let reference = registry.push(&images::many_files(), images::TAG, "files");
    let daemon = Daemon::start();
    let seen = daemon
        .hoist(["run", "--rm", &reference, "sh", "-c", "find /tree -type f | wc -l; cat /tree/499/99"])
        .ok();
    assert_eq!(seen.text().split_whitespace().collect::<Vec<_>>(), ["50000", "99"], "{seen}");
}

#[test]
fn a_layer_of_a_gibibyte_arrives_whole() {
    let registry = Registry::start();
    let reference = registry.push(&images::large_layer(), images::TAG, "large");
    let daemon = Daemon::start();
    let seen = daemon.hoist(["run", "--rm", &reference, "stat", "-c", "%s", "/large"]).ok();
    assert_eq!(seen.text(), "1073741824");
}

#[test]
fn a_saved_image_is_what_others_and_we_load() {
    let daemon = Daemon::start();
    let archive = daemon.dir().join("in.tar").display().to_string();
    images::archive(&images::busybox(), "oci-archive", "kept:1", archive.as_ref());
    daemon.hoist(["load", "-i", &archive]).ok();
    let name = daemon.hoist(["images", "--format", "{{.Repository}}:{{.Tag}}"]).ok().text().to_owned();
    let digest = daemon.hoist(["images", "--format", "{{.Digest}}"]).ok().text().to_owned();

    let saved = daemon.dir().join("out.tar");
    let out = saved.display().to_string();
    daemon.hoist(["save", "-o", &out, &name]).ok();
    let piped = daemon.command(["save", &name]).output().expect("hoist runs");
    assert!(piped.status.success());
    assert_eq!(
        piped.stdout,
        std::fs::read(&saved).expect("the archive is there"),
        "the same bytes both ways"
    );
    // skopeo reads both formats.
    for form in ["oci-archive", "docker-archive"] {
        let to = format!("dir:{}", daemon.dir().join(form).display());
        testkit::run(std::process::Command::new("skopeo").args([
            "--insecure-policy",
            "copy",
            "--quiet",
            &format!("{form}:{out}"),
            &to,
        ]))
        .ok();
    }
    daemon.hoist(["rmi", &name]).ok();
    daemon.hoist(["system", "prune", "-f"]).ok();
    daemon.hoist(["load", "-i", &out]).ok();
    assert_eq!(daemon.hoist(["images", "--format", "{{.Digest}}"]).ok().text(), digest);
    assert_eq!(daemon.hoist(["run", "--rm", &name, "echo", "back"]).ok().stdout, "back\n");

    let missing = daemon.hoist(["save", "-o", &format!("{out}.no"), "nowhere:1"]).expect_code(1);
    missing.expect_stderr("nowhere:1");
    let left: Vec<_> = std::fs::read_dir(daemon.dir())
        .expect("the directory is there")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("out.tar."))
        .collect();
    assert!(left.is_empty(), "half an archive is left: {left:?}");
}

#[test]
fn a_root_file_system_becomes_an_image() {
    let daemon = Daemon::start();
    let tree = daemon.dir().join("tree");
    std::fs::create_dir_all(tree.join("bin")).expect("a writable directory");
    std::fs::copy("/bin/busybox", tree.join("bin/sh")).expect("busybox-static is installed");
    let tar = daemon.dir().join("tree.tar.gz").display().to_string();
    testkit::run(std::process::Command::new("tar").args(["-czf", &tar, "-C"]).arg(&tree).arg(".")).ok();
    let imported = daemon.hoist(["import", "-m", "by hand", &tar, "own/tree:2"]).ok();
    assert!(imported.text().starts_with("sha256:"), "{imported}");
    let run = daemon.hoist(["run", "--rm", "own/tree:2", "/bin/sh", "-c", "echo from a tree"]).ok();
    assert_eq!(run.stdout, "from a tree\n");
    let mut piped = daemon.command(["import", "-", "own/tree:3"]);
    let file = File::open(&tar).expect("the tar is there");
    assert!(piped.stdin(file).status().expect("hoist runs").success());
    assert!(daemon.hoist(["images"]).ok().stdout.contains("own/tree"));
    daemon.hoist(["import", &format!("{tar}.no")]).expect_code(1).expect_stderr("tree.tar.gz.no");
    std::fs::write(tree.join("no-tar"), "no tar at all").expect("a writable directory");
    let no_tar = tree.join("no-tar").display().to_string();
    daemon.hoist(["import", &no_tar]).expect_code(1).expect_stderr("no-tar");
    let before = daemon.hoist(["images", "-aq"]).ok().stdout;
    let piped = |flags: &[&str], bytes: &[u8]| {
        let path = daemon.dir().join("piped");
        std::fs::write(&path, bytes).unwrap();
        let mut command = daemon.command([&["import"], flags, &["-", "own/odd"]].concat());
        testkit::run(command.stdin(File::open(&path).unwrap()))
    };
    // For another platform nothing is unpacked, which would show that it is no archive.
    for flags in [&[][..], &["--platform", "linux/s390x"]] {
        piped(flags, b"").expect_code(1).expect_stderr("it is empty, and so no archive");
        piped(flags, b"no archive").expect_code(1).expect_stderr("it is no tar archive");
        piped(flags, &[7; 10_000]).expect_code(1).expect_stderr("it is no tar archive");
        // An empty file, compressed with gzip.
        let gzip = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        piped(flags, &gzip).expect_code(1).expect_stderr("it is empty");
    }
    assert_eq!(daemon.hoist(["images", "-aq"]).ok().stdout, before, "no image is made");
    // An archive without files, as `tar --create --files-from /dev/null` writes it.
    piped(&[], &[0; 10_240]).ok();
}

/// Some builders write a layer's files without entries for their directories.
#[test]
fn a_layer_without_directories_leaves_those_below_as_they_are() {
    let dir = tempfile::TempDir::new().expect("a temporary directory");
    let work = dir.path().join("work");
    let script = r#"
        set -e
        mkdir -p base/bin base/srv/deep top/srv/deep/new
        cp /bin/busybox base/bin/busybox; ln -s busybox base/bin/sh; ln -s busybox base/bin/stat
        chmod 751 base; chown 7:8 base; touch -d 2002-03-04 base
        chmod 1777 base/srv; chown 5:6 base/srv/deep; chmod 710 base/srv/deep; touch -d 2001-02-03 base/srv/deep
        touch top/srv/deep/file top/srv/deep/new/file
        tar -C base -cf layer1.tar .
        tar -C top --no-recursion -cf layer2.tar srv/deep/file srv/deep/new/file
        id() { sha256sum "$1" | cut -d' ' -f1; }
        printf '{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:%s","sha256:%s"]}}' \
            "$(id layer1.tar)" "$(id layer2.tar)" > config.json
        printf '[{"Config":"config.json","RepoTags":["bare:1"],"Layers":["layer1.tar","layer2.tar"]}]' > manifest.json
        tar -cf image.tar manifest.json config.json layer1.tar layer2.tar
    "#;
    std::fs::create_dir(&work).expect("a writable directory");
    testkit::run(std::process::Command::new("sh").args(["-c", script]).current_dir(&work)).ok();
    let stat =
        "stat -c '%a %u %g' / /srv /srv/deep /srv/deep/new; stat -c %y /srv/deep | busybox cut -d' ' -f1";
    for form in ["archives", "directories"] {
        let daemon = Daemon::start_with(&[], &format!("[snapshots]\nlayers = {form:?}\n"));
        daemon.load(&work.join("image.tar"));
        let seen = daemon.hoist(["run", "--rm", "bare:1", "/bin/sh", "-c", stat]).ok();
        assert_eq!(seen.stdout, "751 7 8\n1777 0 0\n710 5 6\n755 0 0\n2001-02-03\n", "{form}");
        // The container's root directory is modified when the container is created. `image mount` shows the time of the
        // image.
        let shown = daemon.dir().join("shown");
        std::fs::create_dir(&shown).expect("a writable directory");
        let at = shown.display().to_string();
        daemon.hoist(["image", "mount", "bare:1", &at]).ok();
        let root = testkit::run(std::process::Command::new("stat").args(["-c", "%a %u %g %Y", &at])).ok();
        daemon.hoist(["image", "unmount", &at]).ok();
        let time = testkit::run(std::process::Command::new("date").args(["-d", "2002-03-04", "+%s"])).ok();
        assert_eq!(root.text(), format!("751 7 8 {}", time.text()), "{form}");
    }
}

#[test]
fn a_registry_with_tls_and_passwords_gives_to_those_who_have_one() {
    let registry = Registry::start_secured();
    let reference = registry.push(&images::busybox(), images::TAG, "private/busybox:1");
    let ca = registry.ca().display().to_string();
    let daemon = Daemon::start_in(&[], "", &[("SSL_CERT_FILE", &ca)]);
    let login = daemon.dir().join("login");
    std::fs::create_dir(&login).expect("a writable directory");
    let pull = |config: &str| {
        std::fs::write(login.join("config.json"), config).expect("a writable directory");
        testkit::run(daemon.command(["pull", &reference]).env("DOCKER_CONFIG", &login))
    };
    pull("{}").expect_code(1).expect_stderr("may need a login");
    let auth = |password: &str| {
        let pair = format!("{}:{password}", Registry::USER);
        let encoded = testkit::run(
            std::process::Command::new("sh").args(["-c", &format!("printf %s '{pair}' | base64")]),
        );
        format!(r#"{{"auths": {{"{}": {{"auth": "{}"}}}}}}"#, registry.host(), encoded.text())
    };
    pull(&auth("wrong")).expect_code(1).expect_stderr("as tester");
    pull(&auth(Registry::PASSWORD)).ok();
    assert_eq!(daemon.hoist(["run", "--rm", &reference, "echo", "private"]).ok().stdout, "private\n");

    // Without the CA, no request is sent, and no password.
    let stranger = Daemon::start();
    testkit::run(stranger.command(["pull", &reference]).env("DOCKER_CONFIG", &login))
        .expect_code(1)
        .expect_stderr("vouches for the certificate of");
}

#[test]
fn a_pull_on_a_terminal_has_a_bar_for_each_layer() {
    let registry = Registry::start();
    let reference = registry.push(&images::four_layers(), images::TAG, "shown");
    let daemon = Daemon::start();
    let mut pull = daemon.command(["pull", &reference]);
    pull.env("TERM", "xterm");
    let mut terminal = Terminal::run(pull);
    terminal.wait_for(&format!("{reference}:latest\r\n"));
    let seen = terminal.seen().to_owned();
    assert_eq!(terminal.end().0, Some(0));

    let digest = daemon.hoist(["inspect", "-f", "{{.Digest}}", &reference]).ok();
    let manifest = daemon.ctr(["content", "get", digest.text()]).ok();
    let manifest: serde_json::Value = serde_json::from_str(&manifest.stdout).expect("a manifest");
    let layers = manifest["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), 4);
    for layer in layers {
        let short = &layer["digest"].as_str().expect("a digest")["sha256:".len()..][..12];
        let bar = format!("{short}: Pull complete");
        let shown = seen.split(['\r', '\n', '\u{1b}']).find(|line| line.contains(&bar));
        // The bar is full, with the layer's size.
        assert!(shown.is_some_and(|line| line.contains('[') && line.contains("==]")), "{short}\n{seen:?}");
    }
    assert!(seen.matches("\u{1b}[").count() > 3, "they are drawn over\n{seen:?}");
}

/// After Ctrl-C, and after the daemon's end, the bytes that were received are not fetched again.
#[test]
fn a_pull_that_is_cut_short_goes_on_where_it_was() {
    const HELD_AT: u64 = 9_000_000;
    let image = Bulk::make(Shape { len: 90_000_000, files: 3, compression: Compression::Gzip });
    let registry = Registry::start();
    let reference = registry.push(image.layout.path(), images::TAG, "cut-short:1");
    let digest = image.blobs.last().and_then(|blob| blob.file_name()).expect("three layers");
    let layer = format!("sha256:{}", digest.to_string_lossy());
    for how in ["client", "daemon"] {
        let gate = Gate::default();
        let (wanted, held) = (layer.clone(), gate.clone());
        // On a busy machine the other layers may take longer than the client's timeout, and are requested again.
        let is_cut = Arc::new(AtomicBool::new(false));
        let goes_on = is_cut.clone();
        let proxy = FaultProxy::start(&registry, move |asked| match asked.blob() {
            Some(blob) if blob == wanted && !goes_on.load(Ordering::SeqCst) => {
                vec![Fault::Hold { at: HELD_AT, gate: held.clone() }]
            }
            _ => Vec::new(),
        });
        let name = proxy.through(&reference);
        let mut daemon = Daemon::start();
        let mut pull = daemon.command(["pull", "-q", &name]).spawn().expect("hoist starts");
        gate.arrivals(1);
        // The other layers are complete, and of this one the bytes before the gate are on the disk.
        let content = daemon.root().join("content");
        let (blobs, ingests) = (content.join("blobs/sha256"), content.join("ingest"));
        eventually("the layer is there up to the gate", || {
            let mut others = image.blobs.iter().filter_map(|blob| blob.file_name());
            if !others.all(|name| name == digest || blobs.join(name).exists()) {
                return None;
            }
            let files = std::fs::read_dir(&ingests).ok()?.flatten();
            let lens = files.filter_map(|file| Some(file.metadata().ok()?.len()));
            lens.max().filter(|len| *len + (1 << 20) > HELD_AT)
        });
        if how == "client" {
            let pid = rustix::process::Pid::from_child(&pull);
            rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("a child of ours");
            assert!(!pull.wait().expect("a child of ours").success());
        } else {
            daemon.kill();
            assert!(!pull.wait().expect("a child of ours").success());
            daemon.start_again();
        }
        // The interrupted blob is still there.
        is_cut.store(true, Ordering::SeqCst);
        daemon.hoist(["pull", "-q", &name]).ok();
        let starts: Vec<u64> =
            proxy.reads(&layer).iter().skip(1).filter_map(|read| read.asked.start()).collect();
        let fewest = starts.iter().min();
        assert!(fewest.is_some_and(|start| *start + (1 << 20) > HELD_AT), "{how}: {starts:?}");
        daemon.hoist(["run", "--rm", "--network", "none", &name, "sh", "-c", "test -s /data/2/0/0"]).ok();
        gate.open();
    }
}

#[test]
fn images_of_dockers_form_are_pulled_and_run() {
    let registry = Registry::start();
    let reference = format!("{}/schema2", registry.host());
    let from = format!("oci:{}:{}", images::busybox().display(), images::TAG);
    let to = format!("docker://{reference}");
    let copy =
        ["--insecure-policy", "copy", "--quiet", "--format", "v2s2", "--dest-tls-verify=false", &from, &to];
    testkit::run(std::process::Command::new("skopeo").args(copy)).ok();
    let daemon = Daemon::start();
    daemon.hoist(["pull", "-q", &reference]).ok();
    assert_eq!(daemon.hoist(["run", "--rm", &reference, "echo", "schema 2"]).ok().stdout, "schema 2\n");
}

/// An index of busybox for two platforms: that of another processor first, then this machine's.
#[test]
fn of_several_platforms_the_fitting_one_is_pulled() {
    let layout = tempfile::TempDir::new().expect("a temporary directory");
    let copy = ["-a", &format!("{}/.", images::busybox().display()), &layout.path().display().to_string()];
    testkit::run(std::process::Command::new("cp").args(copy)).ok();
    let read = |path: &std::path::Path| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(path).expect("a file of the layout")).expect("JSON")
    };
    let blob = |digest: &serde_json::Value| {
        layout.path().join("blobs").join(digest.as_str().expect("a digest").replace(':', "/"))
    };
    let store = |document: &serde_json::Value, kind: &str| -> serde_json::Value {
        let bytes = document.to_string();
        let file = layout.path().join("new");
        std::fs::write(&file, &bytes).expect("a writable directory");
        let sum = testkit::run(std::process::Command::new("sha256sum").arg(&file)).ok();
        let digest = format!("sha256:{}", &sum.stdout[..64]);
        std::fs::rename(&file, blob(&digest.clone().into())).expect("a writable directory");
        serde_json::json!({"mediaType": kind, "digest": digest, "size": bytes.len()})
    };
    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    let mut top = read(&layout.path().join("index.json"));
    let mut native = top["manifests"][0].clone();
    let mut manifest = read(&blob(&native["digest"]));
    let mut config = read(&blob(&manifest["config"]["digest"]));
    config["architecture"] = "s390x".into();
    manifest["config"] = store(&config, CONFIG);
    let mut foreign = store(&manifest, MANIFEST);
    foreign["platform"] = serde_json::json!({"os": "linux", "architecture": "s390x"});
    native["platform"] = serde_json::json!({"os": "linux", "architecture": "amd64"});
    native.as_object_mut().expect("a descriptor").remove("annotations");
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [foreign, native]});
    let mut target = store(&index, "application/vnd.oci.image.index.v1+json");
    target["annotations"] = top["manifests"][0]["annotations"].clone();
    top["manifests"] = serde_json::json!([target]);
    std::fs::write(layout.path().join("index.json"), top.to_string()).expect("a writable directory");

    let registry = Registry::start();
    let reference = registry.push(layout.path(), images::TAG, "many:1");
    let daemon = Daemon::start();
    assert_eq!(daemon.hoist(["run", "--rm", &reference, "echo", "mine"]).ok().stdout, "mine\n");
    let shown = daemon.hoist(["inspect", "-f", "{{.Architecture}}", &reference]).ok();
    assert_eq!(shown.text(), "amd64");
    let riscv = daemon.hoist(["pull", "--platform", "linux/riscv64", &reference]).expect_code(1);
    assert!(riscv.stderr.contains("linux/s390x") && riscv.stderr.contains("linux/amd64"), "{riscv}");
    daemon.hoist(["pull", "-q", "--platform", "linux/s390x", &reference]).ok();
}

#[test]
fn a_tag_is_another_name_and_moves() {
    let daemon = Daemon::start();
    let archive = daemon.dir().join("in.tar").display().to_string();
    images::archive(&images::busybox(), "docker-archive", "first:1", archive.as_ref());
    daemon.hoist(["load", "-i", &archive]).ok();
    daemon.hoist(["tag", "first:1", "second"]).ok();
    daemon.hoist(["tag", "second", "second:latest"]).ok();
    daemon.hoist(["rmi", "first:1"]).ok();
    daemon.hoist(["system", "prune", "-f"]).ok();
    assert_eq!(daemon.hoist(["run", "--rm", "second", "echo", "held"]).ok().stdout, "held\n");
    daemon.hoist(["tag", "first:1", "third"]).expect_code(1).expect_stderr("first:1");
    daemon.hoist(["tag", "second", "UPPER"]).expect_code(1).expect_stderr("UPPER");
}

/// A container keeps the image that it was created from, whatever its name refers to later.
#[test]
fn an_image_is_not_used_by_containers_of_what_had_its_name_before() {
    let daemon = Daemon::with_busybox();
    daemon.hoist(["create", "--name", "one", "--network", "none", "busybox", "true"]).ok();
    daemon.hoist(["rmi", "busybox"]).expect_code(1).expect_stderr("is used by container one");
    daemon.hoist(["commit", "one", "busybox"]).ok();
    daemon.hoist(["rmi", "busybox"]).ok();
}
