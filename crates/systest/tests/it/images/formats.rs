//! Every form of image that other tools write, and Hoist's images in every form that they read.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use testkit::layout::tar_of;
use testkit::{Daemon, Layout, Registry, digest_of, images, run};

fn skopeo(from: &str, to: &str) {
    run(Command::new("skopeo").args([
        "--insecure-policy",
        "copy",
        "--quiet",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        from,
        to,
    ]))
    .ok();
}

/// The digest of the only image of a layout's folder.
fn digest_in(layout: &Path) -> String {
    let index: Value =
        serde_json::from_slice(&std::fs::read(layout.join("index.json")).expect("a layout")).expect("JSON");
    digest_of(&index["manifests"][0])
}

#[test]
fn standard_input_is_loaded_and_imported() {
    let daemon = Daemon::start();
    let archive = daemon.dir().join("in.tar");
    images::archive(&images::busybox(), "docker-archive", "piped:1", &archive);
    let mut load = daemon.command(["load"]);
    let loaded = run(load.stdin(File::open(&archive).expect("the archive"))).ok();
    assert_eq!(loaded.stdout, "Loaded image: docker.io/library/piped:1\n");
    assert_eq!(daemon.hoist(["run", "--rm", "piped:1", "echo", "through"]).ok().stdout, "through\n");

    // Through a pipe, in gzip, with more behind the end.
    let script = "(cat \"$0\"; head -c 3000000 /dev/zero) | gzip -1 | \"$1\" load";
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(&archive).arg(testkit::hoist_program());
    run(command.env("HOIST_ADDRESS", daemon.socket())).ok();

    // An archive that breaks off is told as such, whoever broke it.
    let cut = "head -c 100000 \"$0\" | \"$1\" load";
    let mut command = Command::new("sh");
    command.args(["-c", cut]).arg(&archive).arg(testkit::hoist_program());
    run(command.env("HOIST_ADDRESS", daemon.socket())).expect_code(1).expect_stderr("ends in the middle");
    run(daemon.command(["load"]).stdin(Stdio::null())).expect_code(1).expect_stderr("neither index.json");
}

#[test]
fn what_skopeo_and_umoci_write_keeps_its_digest_through_us() {
    let daemon = Daemon::start();
    let layout = images::busybox();
    let before = digest_in(&layout);
    daemon.load(&layout);
    let name = daemon.hoist(["images", "--format", "{{.Repository}}:{{.Tag}}"]).ok().text().to_owned();
    assert_eq!(daemon.hoist(["inspect", "-f", "{{.Digest}}", &name]).ok().text(), before);

    let folder = daemon.dir().join("folder");
    daemon.hoist(["save", "-o", &format!("{}/", folder.display()), &name]).ok();
    assert_eq!(digest_in(&folder), before, "as umoci wrote it");
    // umoci reads the folder, and skopeo copies it on without changing it.
    run(Command::new("umoci").args(["list", "--layout"]).arg(&folder)).ok();
    let copied = daemon.dir().join("copied");
    skopeo(&format!("oci:{}", folder.display()), &format!("oci:{}:again", copied.display()));
    assert_eq!(digest_in(&copied), before, "as skopeo copied it");
    let other = Daemon::start();
    other.load(&copied);
    let digests = other.hoist(["images", "--format", "{{.Digest}}"]).ok();
    assert_eq!(digests.text(), before);

    daemon
        .hoist(["save", "-o", &folder.display().to_string(), &name])
        .expect_code(1)
        .expect_stderr("not empty");
}

#[test]
fn podman_loads_what_we_save() {
    let daemon = Daemon::start();
    let archive = daemon.dir().join("in.tar");
    images::archive(&images::busybox(), "oci-archive", "for-podman:1", &archive);
    daemon.load(&archive);
    let name = daemon.hoist(["images", "--format", "{{.Repository}}:{{.Tag}}"]).ok().text().to_owned();
    let id = daemon.hoist(["images", "-q", "--no-trunc"]).ok().text().replace("sha256:", "");
    let saved = daemon.dir().join("out.tar").display().to_string();
    daemon.hoist(["save", "-o", &saved, &name]).ok();
    let podman = |args: &[&str]| {
        let root = daemon.dir().join("podman");
        let (root, state) =
            (root.display().to_string(), daemon.dir().join("podman-run").display().to_string());
        let fixed = ["--root", &root, "--runroot", &state, "--storage-driver", "vfs"];
        run(Command::new("podman").args(fixed).args(args)).ok()
    };
    podman(&["load", "--quiet", "--input", &saved]);
    let shown = podman(&["images", "--quiet", "--no-trunc"]);
    assert_eq!(shown.text().replace("sha256:", ""), id, "the same id there");
    podman(&["save", "--quiet", "--format", "docker-archive", "-o", &format!("{saved}.podman"), &id]);
    daemon.hoist(["load", "-i", &format!("{saved}.podman")]).ok();
}

#[test]
fn artifacts_are_pulled_saved_and_not_run() {
    let layout = Layout::new();
    let subject = layout.image_of("amd64", &[tar_of(&[("file", "content")])], &json!({}));
    let artifact = layout.artifact("application/vnd.example.report", &subject, "all is well");
    layout.tag(&artifact, "report");
    let registry = Registry::start();
    let reference = registry.push(layout.path(), "report", "reports/one:1");
    let daemon = Daemon::start();
    daemon.hoist(["pull", "-q", &reference]).ok();
    daemon
        .hoist(["run", "--rm", &reference])
        .expect_code(125)
        .expect_stderr("artifact of type application/vnd.example.report");
    let tree = daemon.hoist(["images", "--tree"]).ok();
    assert!(tree.stdout.contains("└─ artifact application/vnd.example.report"), "{tree}");
    let folder = daemon.dir().join("saved");
    daemon.hoist(["save", "-o", &format!("{}/", folder.display()), &reference]).ok();
    assert_eq!(digest_in(&folder), digest_of(&artifact));
}

#[test]
fn platforms_are_shown_and_saved_one_by_one() {
    let layout = Layout::new();
    let image =
        |architecture: &str| layout.image_of(architecture, &[tar_of(&[("file", architecture)])], &json!({}));
    let (mine, other) = (image("amd64"), image("s390x"));
    let index = layout.index(&[other.clone(), mine.clone()]);
    layout.tag(&index, "many:1");
    let registry = Registry::start();
    let reference = registry.push(layout.path(), "many:1", "many:1");
    let daemon = Daemon::start();
    daemon.hoist(["pull", "-q", &reference]).ok();
    let tree = daemon.hoist(["images", "--tree"]).ok();
    let line = |platform: &str| {
        let line = tree.stdout.lines().find(|line| line.contains(platform));
        line.unwrap_or_else(|| panic!("{platform} is not in {tree}")).to_owned()
    };
    assert!(line("├─ linux/s390x").ends_with("not here"), "{tree}");
    assert!(line("└─ linux/amd64").ends_with("   here"), "{tree}");

    let folder = |name: &str| daemon.dir().join(name);
    let save = |name: &str, flags: &[&str]| {
        let to = format!("{}/", folder(name).display());
        let words = ["save", "-o", &to].into_iter().chain(flags.iter().copied()).chain([reference.as_str()]);
        daemon.hoist(words)
    };
    save("default", &[]).ok();
    assert_eq!(digest_in(&folder("default")), digest_of(&mine), "what is here");
    save("all", &["--all-platforms"]).expect_code(1).expect_stderr("linux/s390x missing");
    save("other", &["--platform", "linux/s390x"]).expect_code(1).expect_stderr("there is linux/amd64");
    assert!(!folder("all").exists() && !folder("other").exists());

    daemon.hoist(["pull", "-q", "--platform", "linux/s390x", &reference]).ok();
    save("all", &["--all-platforms"]).ok();
    assert_eq!(digest_in(&folder("all")), digest_of(&index));
    save("other", &["--platform", "linux/s390x"]).ok();
    assert_eq!(digest_in(&folder("other")), digest_of(&other));
    let shown = daemon.hoist(["inspect", "-f", "{{.Architecture}}", &reference]).ok();
    assert_eq!(shown.text(), "amd64");
}

#[test]
fn on_a_terminal_a_bar_shows_how_an_archive_moves() {
    let daemon = Daemon::start();
    let archive = daemon.dir().join("in.tar");
    images::archive(&images::busybox(), "docker-archive", "shown:1", &archive);
    let shown = |words: &str| {
        let program = testkit::hoist_program();
        let line = format!("HOIST_ADDRESS={} {} {words}", daemon.socket().display(), program.display());
        let script = ["--quiet", "--return", "--command", &line, "/dev/null"];
        run(Command::new("script").args(script).env("TERM", "xterm")).ok().stdout
    };
    let loaded = shown(&format!("load -i {}", archive.display()));
    assert!(loaded.contains("Loading") && loaded.contains("\u{1b}["), "{loaded:?}");
    assert!(loaded.contains("Loaded image: docker.io/library/shown:1"), "{loaded:?}");
    let converted = shown("image convert --compression zstd shown:1 shown:2");
    assert!(converted.contains("\u{1b}[") && converted.contains("sha256:"), "{converted:?}");
    let quiet = shown(&format!("load --quiet -i {}", archive.display()));
    assert!(!quiet.contains("\u{1b}["), "{quiet:?}");
}

/// As tools in Go write what they have none of: everywhere that an image may say nothing.
#[test]
fn null_in_an_image_says_nothing() {
    let layout = Layout::new();
    let layer = tar_of(&[("word", "said")]);
    let nulls = ["Env", "Entrypoint", "Volumes", "ExposedPorts", "Labels", "User", "WorkingDir", "OnBuild"];
    let mut run: serde_json::Map<String, Value> =
        nulls.map(|name| (name.to_owned(), Value::Null)).into_iter().collect();
    run.insert("Cmd".into(), json!(["/word"]));
    let mut image = layout.image_of(
        "amd64",
        &[layer],
        &json!({
            "created": null, "author": null, "variant": null, "os.features": null, "config": run,
            "history": [{"created": null, "created_by": null, "comment": null, "empty_layer": null}],
        }),
    );
    let blob = std::fs::read(layout.blob_path(&image)).expect("a manifest");
    let mut manifest: Value = serde_json::from_slice(&blob).expect("JSON");
    for name in ["annotations", "subject", "artifactType"] {
        manifest[name] = Value::Null;
    }
    for name in ["urls", "annotations", "platform", "data"] {
        manifest["config"][name] = Value::Null;
        manifest["layers"][0][name] = Value::Null;
    }
    image["digest"] =
        layout.document("application/vnd.oci.image.manifest.v1+json", &manifest)["digest"].clone();
    image["size"] = json!(manifest.to_string().len());
    image["platform"] = json!({"os": "linux", "architecture": "amd64", "variant": null, "os.features": null});
    image["urls"] = Value::Null;
    layout.tag(&layout.index(&[image]), "nulls:1");

    let registry = Registry::start();
    let reference = registry.push(layout.path(), "nulls:1", "nulls:1");
    let daemon = Daemon::start();
    daemon.hoist(["create", "--name", "nulls", &reference]).ok();
    daemon.hoist(["cp", "nulls:/word", &daemon.dir().display().to_string()]).ok();
    assert_eq!(std::fs::read_to_string(daemon.dir().join("word")).expect("a file"), "said");
    daemon.load(layout.path());
    let archive = daemon.dir().join("nulls.tar");
    layout.archive(&archive);
    daemon.hoist(["load", "-i", &archive.display().to_string()]).ok();
}
