//! Commands about images: `images`, `tag`, `rmi`, `history`, `inspect`, `prune`, `mount`, `convert`.

use serde_json::{Value, json};
use testkit::layout::tar_of;
use testkit::{Daemon, Layout};

/// Three images without a shell, made years apart: `tools/old:1`, `tools/new:1` and `plain:1`.
fn three(daemon: &Daemon) {
    let layout = Layout::new();
    for (name, created, label) in [
        ("docker.io/tools/old:1", "2001-01-01T00:00:00Z", "old"),
        ("docker.io/tools/new:1", "2011-01-01T00:00:00Z", "new"),
        ("docker.io/library/plain:1", "2021-01-01T00:00:00Z", "plain"),
    ] {
        let config = json!({"created": created, "config": {"Labels": {"age": label, "kind": "test"}}});
        let image = layout.image_of("amd64", &[tar_of(&[("file", name)])], &config);
        layout.tag(&image, name);
    }
    daemon.load(layout.path());
}

fn names(daemon: &Daemon, filters: &[&str]) -> Vec<String> {
    let flags = filters.iter().flat_map(|filter| ["--filter", filter]);
    let listed =
        daemon.hoist(["images", "--format", "{{.Repository}}:{{.Tag}}"].into_iter().chain(flags)).ok();
    listed.stdout.lines().map(str::to_owned).collect()
}

#[test]
fn images_are_filtered_as_docker_filters_them() {
    let daemon = Daemon::start();
    three(&daemon);
    daemon.hoist(["import".as_ref(), Layout::new().path().join("none").as_os_str()]).expect_code(1);
    let all = ["plain:1", "tools/new:1", "tools/old:1"];
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &all),
        (&["label=kind"], &all),
        (&["label=kind=test", "label=age=old"], &["tools/old:1"]),
        (&["label=age=none"], &[]),
        (&["before=tools/new:1"], &["tools/old:1"]),
        (&["since=tools/new:1"], &["plain:1"]),
        (&["until=2015-01-01"], &["tools/new:1", "tools/old:1"]),
        (&["until=24h"], &all),
        (&["reference=tools/*"], &["tools/new:1", "tools/old:1"]),
        (&["reference=*:1"], &["plain:1"]),
        (&["reference=tools/old", "reference=plain:*"], &["plain:1", "tools/old:1"]),
        (&["dangling=true"], &[]),
        (&["dangling=false"], &all),
    ];
    for (filters, expected) in cases {
        let mut found = names(&daemon, filters);
        found.sort();
        assert_eq!(found, *expected, "{filters:?}");
    }
    for (wrong, why) in [("nosuch=1", "known are"), ("until=soon", "duration"), ("before=nosuch", "nosuch")] {
        daemon.hoist(["images", "--filter", wrong]).expect_code(1).expect_stderr(why);
    }
    assert!(daemon.hoist(["image", "ls", "tools/n*"]).ok().stdout.contains("tools/new"));
}

#[test]
fn an_image_without_a_name_is_shown_when_asked_for_and_pruned() {
    let daemon = Daemon::start();
    three(&daemon);
    let tree = daemon.dir().join("tree.tar");
    std::fs::write(&tree, tar_of(&[("file", "content")])).expect("a writable directory");
    let tree = tree.display().to_string();
    daemon.hoist(["import", &tree]).ok();
    assert_eq!(names(&daemon, &["dangling=true"]), ["<none>:<none>"]);
    assert_eq!(names(&daemon, &[]).len(), 3);
    assert_eq!(daemon.hoist(["images", "--all", "--quiet"]).ok().stdout.lines().count(), 4);

    let pruned = daemon.hoist(["image", "prune", "--force"]).ok();
    assert!(pruned.stdout.contains("Deleted: sha256:"), "{pruned}");
    assert!(!pruned.stdout.contains("reclaimed space: 0B"), "{pruned}");
    assert_eq!(daemon.hoist(["images", "--all", "--quiet"]).ok().stdout.lines().count(), 3);

    // Docker's way to save an image from it.
    daemon.hoist(["image", "prune", "--all", "--force", "--filter", "label!=age=old"]).ok();
    assert_eq!(names(&daemon, &[]), ["tools/old:1"]);
    daemon.hoist(["image", "prune", "--all", "--force", "--filter", "until=2000-01-01"]).ok();
    assert_eq!(names(&daemon, &[]), ["tools/old:1"]);
    daemon.hoist(["image", "prune", "-a", "-f"]).ok();
    assert!(names(&daemon, &[]).is_empty());
}

#[test]
fn names_go_one_by_one_and_an_id_with_all_of_them() {
    let daemon = Daemon::start();
    three(&daemon);
    daemon.hoist(["tag", "plain:1", "other:2"]).ok();
    let id = daemon.hoist(["images", "-q", "--no-trunc", "plain"]).ok().text().to_owned();

    let refused = daemon.hoist(["rmi", &id]).expect_code(1).expect_stderr("several names");
    assert!(refused.stderr.contains("plain:1") && refused.stderr.contains("other:2"), "{refused}");

    let removed = daemon.hoist(["rmi", "plain:1"]).ok();
    assert_eq!(removed.stdout, "Untagged: plain:1\n");
    removed.expect_stderr("stays as other:2");
    let removed = daemon.hoist(["rmi", "other:2"]).ok();
    assert_eq!(removed.stdout, format!("Untagged: other:2\nDeleted: {id}\n"));

    daemon.hoist(["tag", "tools/old:1", "more:1"]).ok();
    let digest = daemon.hoist(["inspect", "-f", "{{.Digest}}", "more:1"]).ok().text().to_owned();
    let by_digest = daemon.hoist(["rmi", &format!("more@{digest}")]).ok();
    assert_eq!(by_digest.stdout, "Untagged: more:1\n");
    daemon.hoist(["tag", "tools/old:1", "more:1"]).ok();
    let forced = daemon.hoist(["image", "rm", "-f", &digest[..20]]).ok();
    assert!(forced.stdout.starts_with("Untagged: more:1\nUntagged: tools/old:1\nDeleted: "), "{forced}");
    assert_eq!(names(&daemon, &[]), ["tools/new:1"]);
    daemon.hoist(["rmi", "nosuch", "tools/new:1"]).expect_code(1).expect_stderr("nosuch");
    assert!(names(&daemon, &[]).is_empty(), "it goes on after an error");
}

#[test]
fn an_image_of_a_container_stays_while_it_has_one_name() {
    let daemon = Daemon::start();
    let layout = format!("oci:{}", testkit::images::busybox().display());
    daemon.hoist(["create", "--name", "user", &layout]).ok();
    let name = daemon.hoist(["images", "--format", "{{.Repository}}:{{.Tag}}"]).ok().text().to_owned();
    daemon.hoist(["tag", &name, "second"]).ok();
    daemon.hoist(["rmi", &name]).ok();
    daemon.hoist(["rmi", "second"]).expect_code(1).expect_stderr("container user");
    daemon.hoist(["image", "prune", "--all", "--force"]).ok();
    assert_eq!(names(&daemon, &[]), ["second:latest"], "a used image is not pruned");
    daemon.hoist(["rmi", "--force", "second"]).ok();
    daemon.hoist(["start", "user"]).ok();
}

#[test]
fn a_history_tells_every_step_and_the_size_of_each_layer() {
    let daemon = Daemon::start();
    let layout = Layout::new();
    let long = format!("RUN {}", "make ".repeat(20));
    let history = json!([
        {"created": "2001-01-01T00:00:00Z", "created_by": "ADD root", "comment": "first"},
        {"created": "2001-01-02T00:00:00Z", "created_by": "ENV A=1", "empty_layer": true},
        {"created": "2001-01-03T00:00:00Z", "created_by": long},
    ]);
    let layers = [tar_of(&[("a", "one")]), tar_of(&[("b", "two")]), tar_of(&[("c", "three")])];
    let image = layout.image_of("amd64", &layers, &json!({"history": history}));
    layout.tag(&image, "docker.io/library/steps:1");
    daemon.load(layout.path());

    let shown = daemon.hoist(["history", "steps:1"]).ok();
    let lines: Vec<&str> = shown.stdout.lines().collect();
    assert!(
        lines[0].starts_with("IMAGE") && lines.len() == 5,
        "a layer without a step is a line too\n{shown}"
    );
    assert!(lines[2].contains("RUN make") && lines[2].contains('…') && lines[4].contains("first"), "{shown}");
    let rows = daemon.hoist(["history", "--human=false", "--no-trunc", "--format", "json", "steps:1"]).ok();
    let rows: Vec<Value> =
        rows.stdout.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    assert_eq!(rows[1]["CreatedBy"], long.as_str());
    assert_eq!(rows[1]["CreatedAt"], "2001-01-03T00:00:00Z");
    assert_eq!(rows[2]["Size"], 0, "an empty layer");
    assert!(rows[3]["Size"].as_u64().is_some_and(|size| size > 0), "{rows:?}");
    let quiet = daemon.hoist(["history", "-q", "steps:1"]).ok();
    assert_eq!(quiet.stdout.lines().nth(1), Some("<missing>"));
    assert_eq!(quiet.stdout.lines().count(), 4);
}

#[test]
fn inspect_has_dockers_shape() {
    let daemon = Daemon::start();
    three(&daemon);
    daemon.hoist(["tag", "tools/new:1", "tools/new:2"]).ok();
    let shown = daemon.hoist(["image", "inspect", "tools/new:2"]).ok();
    let documents: Value = serde_json::from_str(&shown.stdout).expect("JSON");
    let document = &documents[0];
    assert_eq!(document["RepoTags"], json!(["tools/new:1", "tools/new:2"]));
    let digest = document["Descriptor"]["digest"].as_str().expect("a digest");
    assert_eq!(document["RepoDigests"], json!([format!("tools/new@{digest}")]));
    assert_eq!(document["Config"]["Labels"]["age"], "new");
    assert_eq!((&document["Os"], &document["Architecture"]), (&json!("linux"), &json!("amd64")));
    assert_eq!(document["RootFS"]["Layers"].as_array().map(Vec::len), Some(1));
    assert!(document.get("GraphDriver").is_none());
    daemon.hoist(["image", "inspect", "nosuch"]).expect_code(1).expect_stderr("nosuch");
}

#[test]
fn the_files_of_an_image_are_listed_with_their_layers() {
    let daemon = Daemon::start();
    let layout = Layout::new();
    let layers = [
        tar_of(&[("etc/", ""), ("etc/old", "1"), ("etc/kept", "22")]),
        tar_of(&[("etc/.wh.old", ""), ("etc/new", "333")]),
    ];
    layout.tag(&layout.image_of("amd64", &layers, &json!({})), "files:1");
    daemon.load(layout.path());
    let listed = daemon.hoist(["image", "ls-files", "files:1"]).ok();
    let lines: Vec<Vec<&str>> = listed.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["MODE", "UID:GID", "SIZE", "LAYER", "PATH"]);
    assert_eq!(lines[1], ["drw-r--r--", "0:0", "0B", "0", "/etc"]);
    assert_eq!(lines[2], ["-rw-r--r--", "0:0", "2B", "0", "/etc/kept"]);
    assert_eq!(lines[3], ["-rw-r--r--", "0:0", "3B", "1", "/etc/new"]);
    assert_eq!(lines.len(), 4, "{listed}");
    let upper = daemon.hoist(["image", "ls-files", "--layer", "1", "--format", "{{.Path}}", "files:1"]).ok();
    assert_eq!(upper.text(), "/etc/new");
    daemon.hoist(["image", "ls-files", "nosuch"]).expect_code(1).expect_stderr("nosuch");
}

#[test]
fn a_mounted_image_survives_the_daemon_and_is_missed_when_it_is_gone() {
    let mut daemon = Daemon::start();
    let layout = Layout::new();
    let layers = [tar_of(&[("a", "lower"), ("b", "hidden")]), tar_of(&[("b", "upper")])];
    layout.tag(&layout.image_of("amd64", &layers, &json!({})), "seen:1");
    daemon.load(layout.path());
    let place = daemon.dir().join("place");
    std::fs::create_dir(&place).expect("a writable directory");
    let path = place.display().to_string();
    let state = |daemon: &Daemon| {
        daemon.hoist(["image", "mount", "--format", "{{.Image}} {{.Path}} {{.State}}"]).ok().text().to_owned()
    };
    assert_eq!(daemon.hoist(["image", "mount", "seen:1", &path]).ok().text(), path);
    let read = |name: &str| std::fs::read_to_string(place.join(name)).expect("a file of the image");
    assert_eq!((read("a"), read("b")), ("lower".to_owned(), "upper".to_owned()));
    assert!(std::fs::write(place.join("new"), "x").is_err(), "it is read-only");
    daemon.hoist(["image", "mount", "seen:1", &path]).expect_code(1).expect_stderr("mounted on");

    daemon.kill();
    daemon.start_again();
    daemon.hoist(["rmi", "seen:1"]).ok();
    daemon.hoist(["system", "prune", "-f"]).ok();
    assert_eq!(read("b"), "upper", "the mount keeps its trees");
    assert_eq!(state(&daemon), format!("seen:1 {path} mounted"));
    assert_eq!(daemon.hoist(["system", "check"]).ok().text(), "nothing is left over");
    assert_eq!(daemon.hoist(["image", "unmount", &path]).ok().text(), path);
    assert_eq!(std::fs::read_dir(&place).expect("a folder").count(), 0);
    daemon.hoist(["image", "unmount", &path]).expect_code(1).expect_stderr("no image is mounted");

    // As after a reboot: the record is there, the mount is not.
    daemon.load(layout.path());
    daemon.hoist(["image", "mount", "seen:1", &path]).ok();
    testkit::run(std::process::Command::new("umount").arg(&path)).ok();
    assert_eq!(state(&daemon), format!("seen:1 {path} gone"));
    let found = daemon.hoist(["system", "check"]).expect_code(1);
    assert!(found.stdout.contains("no longer mounted on"), "{found}");
    daemon.hoist(["system", "check", "--repair"]).ok();
    assert_eq!(state(&daemon), "");
}

#[test]
fn a_converted_image_runs_and_is_read_by_others() {
    let daemon = Daemon::start();
    daemon.load(&testkit::images::busybox());
    let name = daemon.hoist(["images", "--format", "{{.Repository}}:{{.Tag}}"]).ok().text().to_owned();
    let digest = daemon.hoist(["image", "convert", "--compression", "zstd", &name, "zst:1"]).ok();
    assert!(digest.text().starts_with("sha256:"), "{digest}");
    assert_eq!(daemon.hoist(["run", "--rm", "zst:1", "echo", "zstd"]).ok().stdout, "zstd\n");
    daemon
        .hoist(["image", "convert", "--compression", "gzip", "--format", "docker", "zst:1", "docker:1"])
        .ok();
    let ids = daemon.hoist(["images", "-q"]).ok();
    assert_eq!(ids.stdout.lines().count(), 1, "one image in three forms\n{ids}");
    for image in ["zst:1", "docker:1"] {
        let saved = daemon.dir().join(format!("{}.tar", &image[..3])).display().to_string();
        daemon.hoist(["save", "-o", &saved, image]).ok();
        let to = format!("dir:{}", daemon.dir().join(&image[..3]).display());
        let copy = ["--insecure-policy", "copy", "--quiet", &format!("oci-archive:{saved}"), &to];
        testkit::run(std::process::Command::new("skopeo").args(copy)).ok();
    }
    daemon
        .hoist(["image", "convert", "--compression", "zstd", "--format", "docker", &name, "no:1"])
        .expect_code(1)
        .expect_stderr("no zstd layers");
}

#[test]
fn a_blob_that_rotted_is_fetched_anew() {
    let registry = testkit::Registry::start();
    let reference = registry.push(&testkit::images::busybox(), testkit::images::TAG, "rotting:1");
    let daemon = Daemon::start();
    daemon.hoist(["pull", "-q", &reference]).ok();
    let good = daemon.hoist(["image", "verify"]).ok();
    assert!(good.stdout.contains("3 good, 0 mended, 0 broken"), "{good}");
    let blobs = daemon.root().join("content/blobs/sha256");
    let largest = std::fs::read_dir(&blobs).expect("blobs").map(|blob| blob.expect("a blob").path());
    let layer = largest.max_by_key(|blob| blob.metadata().map_or(0, |blob| blob.len())).expect("a layer");
    let mut bytes = std::fs::read(&layer).expect("a blob");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::remove_file(&layer).expect("a blob");
    std::fs::write(&layer, &bytes).expect("a writable store");
    let mended = daemon.hoist(["image", "verify", &reference]).ok();
    assert!(
        mended.stdout.contains("mended") && mended.stdout.contains("2 good, 1 mended, 0 broken"),
        "{mended}"
    );
    std::fs::write(&layer, "broken again").unwrap_or_else(|_| {
        std::fs::remove_file(&layer).expect("a blob");
        std::fs::write(&layer, "broken again").expect("a writable store");
    });
    drop(registry);
    let broken = daemon.hoist(["image", "verify", &reference]).expect_code(1);
    assert!(broken.stdout.contains("1 broken") && broken.stdout.contains("rotting"), "{broken}");
}
