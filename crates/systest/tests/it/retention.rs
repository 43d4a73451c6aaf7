//! Blobs of unpacked layers: kept, dropped, or recompressed when a client reads them.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{Containerd, Daemon, Layout, Registry, eventually, images, run};
use types::Digest;
use types::descriptor::media_type;

fn config(unpacked: &str) -> String {
    format!("[content]\nunpacked = {unpacked:?}\n[snapshots]\nlayers = \"archives\"\n")
}

/// The digest and size of the one layer of an image, from its manifest in the store.
pub(crate) fn layer(daemon: &Daemon, reference: &str) -> (Digest, u64) {
    let target = daemon.hoist(["inspect", "-f", "{{.Digest}}", reference]).ok().text().to_owned();
    let manifest = daemon.ctr(["content", "get", &target]).ok().stdout;
    let manifest: Value = serde_json::from_str(&manifest).expect("a manifest");
    let layer = &manifest["layers"][0];
    let digest = layer["digest"].as_str().and_then(|digest| digest.parse().ok()).expect("a digest");
    (digest, layer["size"].as_u64().expect("a size"))
}

pub(crate) fn blob(daemon: &Daemon, digest: &Digest) -> PathBuf {
    daemon.root().join("content/blobs/sha256").join(digest.hex())
}

fn recipe(daemon: &Daemon, digest: &Digest) -> PathBuf {
    daemon.root().join("content/recipes/sha256").join(format!("{}.recipe", digest.hex()))
}

fn until_gone(path: &Path) {
    eventually("the blob is gone", || (!path.exists()).then_some(()));
}

/// What a client of the API reads of a blob.
fn read(daemon: &Daemon, digest: &Digest) -> Vec<u8> {
    let output = daemon.ctr_command(["content", "get", &digest.to_string()]).output().expect("ctr runs");
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

/// A row of `system df`.
fn usage(daemon: &Daemon, kind: &str) -> Value {
    let shown = daemon.hoist(["system", "df", "--format", "json"]).ok().stdout;
    let rows: Value = serde_json::from_str(&shown)
        .or_else(|_| {
            let lines: Result<Vec<Value>, _> = shown.lines().map(serde_json::from_str).collect();
            lines.map(Value::Array)
        })
        .expect("JSON");
    let row = rows.as_array().and_then(|rows| rows.iter().find(|row| row["Type"] == kind));
    row.expect("a row").clone()
}

#[test]
fn a_blob_with_a_recipe_is_as_any_other() {
    let registry = Registry::start();
    let reference = registry.push(&images::busybox(), images::TAG, "made-again");
    let mut daemon = Daemon::start_with(&[], &config("recipe"));
    daemon.hoist(["pull", "-q", &reference]).ok();
    let (digest, size) = layer(&daemon, &reference);
    until_gone(&blob(&daemon, &digest));
    let len = fs::metadata(recipe(&daemon, &digest)).expect("a recipe").len();
    println!("a layer of {size} bytes has a recipe of {len}");
    assert!(len < size / 2, "{len} of {size}");
    let row = usage(&daemon, "Blobs by recipe");
    assert_eq!(row["TotalCount"], 1, "{row}");
    assert!(row["SavedBytes"].as_u64().is_some_and(|saved| saved > size / 2), "{row}");

    let whole = |daemon: &Daemon| {
        assert_eq!(Digest::of(&read(daemon, &digest)), digest);
        let listed = daemon.ctr(["content", "ls"]).ok();
        assert!(listed.stdout.contains(&digest.to_string()), "{listed}");
        assert!(!blob(daemon, &digest).exists(), "it is made for the reader");
    };
    whole(&daemon);
    daemon.kill();
    daemon.start_again();
    whole(&daemon);
    daemon.hoist(["run", "--rm", &reference, "true"]).ok();

    // To another repository, from which it comes as it was.
    let copy = format!("{}/copied:1", registry.host());
    daemon.hoist(["tag", &reference, &copy]).ok();
    daemon.hoist(["push", &copy]).ok();
    let other = Daemon::start();
    other.hoist(["pull", "-q", &copy]).ok();
    assert_eq!(Digest::of(&fs::read(blob(&other, &digest)).expect("a blob")), digest);

    // Into an archive that is the same as one of the blob itself, and back.
    let archives = [&daemon, &other].map(|from| {
        let archive = from.dir().join("saved.tar");
        from.hoist(["save", "-o", &archive.display().to_string(), &copy]).ok();
        archive
    });
    assert!(fs::read(&archives[0]).unwrap() == fs::read(&archives[1]).unwrap());
    let verified = daemon.hoist(["image", "verify"]).ok();
    assert!(verified.stdout.contains("3 good, 0 mended, 0 broken"), "{verified}");

    // What is needed for it stays, whoever lets go first.
    daemon.hoist(["rmi", &reference]).ok();
    daemon.hoist(["image", "prune", "--force"]).ok();
    whole(&daemon);
    daemon.hoist(["rmi", &copy]).ok();
    daemon.hoist(["image", "prune", "--force"]).ok();
    let recipes = daemon.root().join("content/recipes/sha256");
    eventually("nothing is left", || (fs::read_dir(&recipes).expect("recipes").count() == 0).then_some(()));
}

#[test]
fn disk_usage_tells_blobs_recipes_and_trees_apart() {
    let registry = Registry::start();
    let reference = registry.push(&images::busybox(), images::TAG, "usage");
    for policy in ["keep", "recipe", "drop"] {
        let daemon = Daemon::start_with(&[], &config(policy));
        daemon.hoist(["pull", "-q", &reference]).ok();
        let (digest, size) = layer(&daemon, &reference);
        if policy != "keep" {
            until_gone(&blob(&daemon, &digest));
        }
        let bytes = |kind: &str| usage(&daemon, kind)["SizeBytes"].as_u64().expect("a number");
        let recipe = fs::metadata(recipe(&daemon, &digest)).map_or(0, |metadata| metadata.blocks() * 512);
        assert_eq!(recipe > 0, policy == "recipe");
        assert_eq!(
            bytes("Images") > size,
            policy == "keep",
            "{policy}: the layer's blob, beside the documents"
        );
        assert_eq!(bytes("Blobs by recipe"), recipe, "{policy}");
        assert!(bytes("Unpacked layers") > size, "{policy}: what is run is there");
        let shown = daemon.hoist(["system", "df"]).ok();
        assert!(
            ["Images", "Blobs by recipe", "Unpacked layers"].iter().all(|row| shown.stdout.contains(row)),
            "{shown}"
        );
    }
}

/// Without an archive nothing can be made again, which is said, and nothing lost; dropping needs none.
#[test]
fn blobs_of_directories_are_kept_or_dropped_and_have_no_recipes() {
    let registry = Registry::start();
    let reference = registry.push(&images::busybox(), images::TAG, "directories");
    for policy in ["recipe", "drop"] {
        let config = config(policy).replace("archives", "directories");
        let mut daemon = Daemon::start_with(&[], &config);
        daemon.hoist(["pull", "-q", &reference]).ok();
        let (digest, size) = layer(&daemon, &reference);
        let warnings = |daemon: &Daemon| daemon.log().matches("those that are directories are kept").count();
        match policy {
            "drop" => {
                until_gone(&blob(&daemon, &digest));
                assert_eq!(warnings(&daemon), 0, "{}", daemon.log());
            }
            _ => {
                eventually("it is said", || (warnings(&daemon) > 0).then_some(()));
                daemon.terminate();
                assert_eq!(warnings(&daemon), 1, "once: {}", daemon.log());
                assert_eq!(fs::metadata(blob(&daemon, &digest)).expect("a blob").len(), size);
                daemon.start_again();
            }
        }
        daemon.hoist(["run", "--rm", &reference, "true"]).ok();
    }
}

/// A layer and its recipe rot together, for they share the file.
#[test]
fn a_blob_that_cannot_be_made_again_is_fetched_anew() {
    let registry = Registry::start();
    let reference = registry.push(&images::busybox(), images::TAG, "rotten-recipe");
    let daemon = Daemon::start_with(&[], &config("recipe"));
    daemon.hoist(["pull", "-q", &reference]).ok();
    let (digest, _) = layer(&daemon, &reference);
    until_gone(&blob(&daemon, &digest));
    let plain = recipe(&daemon, &digest).with_extension("plain");
    let mut bytes = fs::read(&plain).expect("a file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&plain, bytes).expect("a file of ours");
    let failed = daemon.ctr(["content", "get", &digest.to_string()]);
    assert_ne!(failed.code, 0, "no wrong byte leaves: {failed}");
    assert!(failed.stderr.contains("DataLoss") && failed.stderr.contains("image verify"), "{failed}");
    let mended = daemon.hoist(["image", "verify", &reference]).ok();
    assert!(mended.stdout.contains(&registry.host()) && mended.stdout.contains("its blob"), "{mended}");
    assert_eq!(Digest::of(&read(&daemon, &digest)), digest);
    daemon.hoist(["run", "--rm", &reference, "true"]).ok();
}

/// One recipe that rotted is told, mended, and in nobody else's way.
#[test]
fn a_recipe_that_rotted_is_told() {
    let registry = Registry::start();
    let reference = registry.push(&images::busybox(), images::TAG, "rotten-header");
    let mut daemon = Daemon::start_with(&[], &config("recipe"));
    daemon.hoist(["pull", "-q", &reference]).ok();
    let (digest, _) = layer(&daemon, &reference);
    until_gone(&blob(&daemon, &digest));
    let recipe = recipe(&daemon, &digest);
    let right = fs::read(&recipe).expect("a recipe");
    fs::remove_file(&recipe).expect("a recipe");
    fs::write(&recipe, [b"?", &right[1..]].concat()).expect("a file of ours");
    // A blob of no record, which the first collection of a daemon takes away.
    let stray = daemon.root().join("content/blobs/sha256").join(Digest::of(b"stray").hex());
    fs::write(&stray, b"stray").expect("a file");
    daemon.kill();
    daemon.start_again();
    daemon.hoist(["system", "prune", "--force"]).ok();
    assert!(!stray.exists(), "the others are compared with their records");
    assert!(recipe.exists(), "what is damaged is not taken away");
    daemon.hoist(["system", "df"]).ok();
    let found = daemon.hoist(["system", "check"]).expect_code(1);
    let row = found.stdout.lines().find(|line| line.starts_with("damaged: ")).unwrap_or_default();
    assert!(row.contains(&digest.to_string()) && row.contains(&reference), "{found}");
    let repaired = daemon.hoist(["system", "check", "--repair"]).ok();
    assert!(repaired.stdout.contains(&format!("mended: layer {digest}")), "{repaired}");
    daemon.hoist(["system", "check"]).ok();
    assert_eq!(Digest::of(&read(&daemon, &digest)), digest);
}

#[test]
fn a_dropped_blob_is_gone_until_it_is_wanted_again() {
    let registry = Registry::start();
    let reference = registry.push(&images::busybox(), images::TAG, "dropped");
    let daemon = Daemon::start_with(&[], &config("keep"));
    daemon.hoist(["pull", "-q", &reference]).ok();
    let (digest, _) = layer(&daemon, &reference);
    assert!(blob(&daemon, &digest).exists());
    // By the namespace's own label, which counts at once.
    daemon.ctr(["namespaces", "label", "default", "hoist.content/unpacked=drop"]).ok();
    until_gone(&blob(&daemon, &digest));
    let missing = daemon.ctr(["content", "get", &digest.to_string()]);
    assert_ne!(missing.code, 0);
    assert!(missing.stderr.contains("not found"), "{missing}");
    daemon.hoist(["run", "--rm", &reference, "true"]).ok();
    daemon.hoist(["pull", "-q", &reference]).ok();
    assert!(!blob(&daemon, &digest).exists(), "the layer is here, so nothing is fetched");
    daemon.hoist(["images", "--tree"]).ok();
    let copy = format!("{}/copied:1", registry.host());
    daemon.hoist(["tag", &reference, &copy]).ok();
    daemon.hoist(["push", &copy]).expect_code(1).expect_stderr(&digest.to_string());
    daemon.hoist(["image", "verify"]).ok();

    daemon.ctr(["namespaces", "label", "default", "hoist.content/unpacked=keep"]).ok();
    daemon.hoist(["pull", "-q", &reference]).ok();
    assert_eq!(Digest::of(&read(&daemon, &digest)), digest);
    daemon.hoist(["push", &copy]).ok();
    let removed = daemon.hoist(["rmi", &reference, &copy]).ok();
    assert!(removed.stdout.contains("Deleted"), "{removed}");
}

/// One tree, in three layers that unpack to it: each is made again, and they share the file that it is made of.
#[test]
fn layers_in_other_compressions_are_made_again_too() {
    let daemon = Daemon::start_with(&[], &config("recipe"));
    daemon.load(&images::busybox());
    let name = daemon.hoist(["images", "--format", "{{.Repository}}:{{.Tag}}"]).ok().text().to_owned();
    for compression in ["gzip", "zstd", "none"] {
        let converted = format!("converted:{compression}");
        daemon.hoist(["image", "convert", "--compression", compression, &name, &converted]).ok();
        let (digest, size) = layer(&daemon, &converted);
        until_gone(&blob(&daemon, &digest));
        let recipe = fs::metadata(recipe(&daemon, &digest)).expect("a recipe").len();
        println!("{compression}: {size} bytes, recipe {recipe}");
        assert!(recipe < size / 10, "{compression}: {recipe} of {size}");
        assert_eq!(Digest::of(&read(&daemon, &digest)), digest, "{compression}");
    }
}

/// A plain layer of what images are made of.
fn plain_layer() -> Vec<u8> {
    let tree = TempDir::new().expect("a temporary directory");
    fs::copy("/bin/busybox", tree.path().join("busybox")).expect("busybox-static is installed");
    for file in 0..200 {
        let text = format!("line of file {file}, as they stand in configurations\n").repeat(10 + file % 40);
        fs::write(tree.path().join(format!("{file}.conf")), text).expect("a writable directory");
    }
    let tar = Command::new("tar").arg("-C").arg(tree.path()).args(["-cf", "-", "."]).output();
    tar.expect("tar is part of Debian").stdout
}

fn image_of(layer: &[u8]) -> Layout {
    let layout = Layout::new();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    layout.tag(&layout.image_of(architecture, &[layer.to_vec()], &json!({})), images::TAG);
    layout
}

/// What a containerd makes of the changes in a snapshot, with the gzip of its language; none without one.
fn compressed_by_containerd(layer: &[u8]) -> Option<Vec<u8>> {
    let containerd = Containerd::start()?;
    let archive = containerd.dir().join("plain.tar");
    image_of(layer).archive(&archive);
    let path = archive.display().to_string();
    containerd.ctr(["images", "import", "--base-name", "plain", &path]).ok();
    let listed = containerd.ctr(["snapshots", "ls"]).ok().stdout;
    let key = listed.lines().nth(1).and_then(|line| line.split_whitespace().next()).expect("a snapshot");
    let diff = containerd.ctr_command(["snapshots", "diff", key]).output().expect("ctr runs");
    assert!(diff.status.success(), "{diff:?}");
    Some(diff.stdout)
}

/// What the programs write whose layers are in registries: containerd (as docker and BuildKit do), and skopeo (as podman and
/// buildah do).
#[test]
fn layers_that_others_compressed_are_made_again() {
    let registry = Registry::start();
    let layer = plain_layer();
    let mut images = Vec::new();
    if let Some(blob) = compressed_by_containerd(&layer) {
        let mut plain = Vec::new();
        diff::Decoder::new(&blob[..]).and_then(|mut from| from.read_to_end(&mut plain)).expect("gzip");
        assert_eq!(diff::Compression::detect(&blob), diff::Compression::Gzip);
        let layout = Layout::new();
        let diff_ids = json!({"rootfs": {"type": "layers", "diff_ids": [Digest::of(&plain).to_string()]}});
        let image = layout.image_of_blobs(&[layout.blob(media_type::OCI_LAYER_GZIP, &blob)], &diff_ids);
        layout.tag(&image, images::TAG);
        images.push(("containerd", registry.push(layout.path(), images::TAG, "by-containerd:1"), 20));
    }
    let by_skopeo = format!("{}/by-skopeo:1", registry.host());
    let plain = image_of(&layer);
    let mut copy = Command::new("skopeo");
    copy.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", "--dest-creds"]);
    copy.arg(format!("{}:{}", Registry::USER, Registry::PASSWORD));
    copy.arg(format!("oci:{}:{}", plain.path().display(), images::TAG));
    run(copy.arg(format!("docker://{by_skopeo}"))).ok();
    images.push(("skopeo", by_skopeo, 8));
    for (writer, reference, part) in images {
        let daemon = Daemon::start_with(&[], &config("recipe"));
        daemon.hoist(["pull", "-q", &reference]).ok();
        let (digest, size) = self::layer(&daemon, &reference);
        assert!(size < layer.len() as u64 * 3 / 4, "{writer} compresses: {size} of {}", layer.len());
        until_gone(&blob(&daemon, &digest));
        let recipe = fs::metadata(recipe(&daemon, &digest)).expect("a recipe").len();
        println!("{writer}: {size} bytes, recipe {recipe}");
        assert!(recipe < size / part, "{writer}: {recipe} of {size}");
        assert_eq!(Digest::of(&read(&daemon, &digest)), digest, "{writer}");
    }
}

/// What Go programs write as zstd (skopeo here, by klauspost/compress) is nothing that the library gives again: such a blob
/// is kept as it came, which is noted, and goes on as it came.
#[test]
fn zstd_of_another_writer_is_kept_as_it_came() {
    let plain = image_of(&plain_layer());
    let compressed = TempDir::new().expect("a temporary directory");
    let mut copy = Command::new("skopeo");
    copy.args(["--insecure-policy", "copy", "--quiet", "--dest-compress-format", "zstd"]);
    copy.arg(format!("oci:{}:{}", plain.path().display(), images::TAG));
    run(copy.arg(format!("oci:{}:{}", compressed.path().display(), images::TAG))).ok();
    let registry = Registry::start();
    let reference = registry.push(compressed.path(), images::TAG, "zstd-by-skopeo:1");
    let daemon = Daemon::start_with(&[], &config("recipe"));
    daemon.hoist(["pull", "-q", &reference]).ok();
    let (digest, size) = layer(&daemon, &reference);
    eventually("it is noted that no recipe is worth it", || {
        let listed = daemon.ctr(["content", "ls"]).ok().stdout;
        let line = listed.lines().find(|line| line.starts_with(&digest.to_string()))?;
        line.contains("hoist.content/recipe=none").then_some(())
    });
    assert!(!recipe(&daemon, &digest).exists());
    let kept = fs::read(blob(&daemon, &digest)).expect("a blob");
    assert_eq!(diff::Compression::detect(&kept), diff::Compression::Zstd);
    assert_eq!((kept.len() as u64, Digest::of(&kept)), (size, digest.clone()));
    daemon.hoist(["run", "--rm", "--network", "none", &reference, "/busybox", "true"]).ok();

    let copy = format!("{}/zstd-copied:1", registry.host());
    daemon.hoist(["tag", &reference, &copy]).ok();
    daemon.hoist(["push", &copy]).ok();
    let other = Daemon::start();
    other.hoist(["pull", "-q", &copy]).ok();
    assert_eq!(layer(&other, &copy), (digest.clone(), size));
    assert_eq!(Digest::of(&read(&other, &digest)), digest);
}

/// Namespaces that share a layer, of which one keeps its blobs: there is no recipe in its place until that one wants it too.
#[test]
fn a_namespace_keeps_its_blobs_whatever_others_do() {
    let registry = Registry::start();
    let reference = registry.push(&images::busybox(), images::TAG, "shared:1");
    let daemon = Daemon::start_with(&[], &config("recipe"));
    let label = |value: &str| {
        let label = format!("hoist.content/unpacked={value}");
        daemon.ctr(["namespaces", "label", "keeping", &label]).ok();
    };
    daemon.ctr(["namespaces", "create", "keeping", "hoist.content/unpacked=keep"]).ok();
    daemon.ctr(["--namespace", "keeping", "images", "pull", "--plain-http", &reference]).ok();
    daemon.hoist(["pull", "-q", &reference]).ok();
    let (digest, _) = layer(&daemon, &reference);
    // Its own layer gets a recipe, by which time the pass has looked at the other one, or is about to.
    let own = image_of(&plain_layer());
    let own = registry.push(own.path(), images::TAG, "own:1");
    for _ in 0..2 {
        daemon.hoist(["pull", "-q", &own]).ok();
        let (own_digest, _) = layer(&daemon, &own);
        until_gone(&blob(&daemon, &own_digest));
        daemon.hoist(["rmi", &own]).ok();
        daemon.hoist(["system", "prune", "--force"]).ok();
    }
    assert!(blob(&daemon, &digest).exists(), "the other namespace keeps it");
    label("recipe");
    until_gone(&blob(&daemon, &digest));
    let kept = daemon.ctr_command(["--namespace", "keeping", "content", "get", &digest.to_string()]).output();
    assert_eq!(Digest::of(&kept.expect("ctr runs").stdout), digest);
}
