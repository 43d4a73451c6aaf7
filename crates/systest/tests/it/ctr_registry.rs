//! `ctr` and registries: fetching and pushing single blobs, pulls of metadata alone, what `--http-dump` and
//! `--http-trace` print.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;
use testkit::{Daemon, Registry, images};

/// A registry with busybox, and the image's reference.
fn registry() -> (Registry, String) {
    let registry = Registry::start();
    let image = registry.push(&images::busybox(), images::TAG, "busybox") + ":latest";
    (registry, image)
}

/// The manifest in an output, and the digests of its config and layers.
fn manifest(text: &str) -> (String, Vec<String>) {
    let document: Value = serde_json::from_str(text).expect("a document");
    let digest = |value: &Value| value["digest"].as_str().expect("a digest").to_owned();
    let layers = document["layers"].as_array().expect("layers");
    (digest(&document["config"]), layers.iter().map(digest).collect())
}

/// The output of both clients, which must be equal.
fn alike(daemon: &Daemon, words: &[&str]) -> String {
    let (theirs, ours) = (daemon.ctr(words).ok(), daemon.own_ctr(words).ok());
    assert_eq!(theirs.stdout, ours.stdout, "{words:?}");
    ours.stdout
}

#[test]
fn objects_are_fetched_as_debians_fetches_them() {
    let (registry, image) = registry();
    let daemon = Daemon::start();
    let fetch = ["content", "fetch-object", "--plain-http"];
    let document = alike(&daemon, &[&fetch[..], &[&image]].concat());
    let (config, layers) = manifest(&document);
    let repository = image.strip_suffix(":latest").expect("a tag");
    let named = |digest: &str| format!("{repository}@{digest}");
    let written = alike(&daemon, &[&fetch[..], &[&named(&config), "and", "hints"]].concat());
    assert!(written.contains("rootfs"), "{written}");
    // One layer, and several at once.
    let blob = ["content", "fetch-blob", "--plain-http", repository, &config, &config];
    assert_eq!(daemon.own_ctr(blob).ok().stdout, written.repeat(2));
    let place = daemon.dir().join("layer");
    let line = format!("\"$0\" \"$@\" > {}", place.display());
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &line]).arg(daemon.own_ctr_command([""; 0]).get_program());
    let own = daemon.own_ctr_command([&fetch[..], &[&named(&layers[0])]].concat());
    command.args(own.get_args());
    testkit::run(&mut command).ok();
    let sum = testkit::run(std::process::Command::new("sha256sum").arg(&place)).ok().stdout;
    assert_eq!(sum.split_whitespace().next(), layers[0].strip_prefix("sha256:"));
    for (words, said) in [
        (vec![format!("{repository}:none")], "not found"),
        (vec![named(&format!("sha256:{}", "0".repeat(64)))], "not found"),
        (vec![], "must be provided"),
    ] {
        let words: Vec<&str> = fetch.into_iter().chain(words.iter().map(String::as_str)).collect();
        let refused = daemon.own_ctr(&words);
        assert!(refused.code == 1 && refused.stderr.contains(said), "{refused}");
    }
    drop(registry);
}

#[test]
fn objects_are_pushed_as_debians_pushes_them() {
    let (registry, image) = registry();
    let daemon = Daemon::start();
    daemon.own_ctr(["content", "fetch", "--plain-http", &image]).ok();
    let document = daemon.own_ctr(["content", "fetch-object", "--plain-http", &image]).ok().stdout;
    let (config, layers) = manifest(&document);
    let target = daemon.own_ctr(["images", "ls"]).ok().stdout;
    let target = target.split_whitespace().find(|word| word.starts_with("sha256:")).expect("a digest");
    let kinds = [
        (layers[0].as_str(), "application/vnd.oci.image.layer.v1.tar+gzip"),
        (&config, "application/vnd.oci.image.config.v1+json"),
        (target, "application/vnd.oci.image.manifest.v1+json"),
    ];
    let push = |ours: bool, name: &str, digest: &str, kind: &str| {
        let words = ["content", "push-object", "--plain-http", name, digest, kind];
        if ours { daemon.own_ctr(words) } else { daemon.ctr(words) }
    };
    for ours in [true, false] {
        let name = format!("{}/pushed-{ours}:1", registry.host());
        for (digest, kind) in kinds {
            assert_eq!(push(ours, &name, digest, kind).ok().stdout, format!("Pushed {digest} {kind}\n"));
        }
        for (digest, kind) in kinds {
            let refused = push(ours, &name, digest, kind);
            let said = format!("ctr: content {digest} on remote: already exists\n");
            assert_eq!((refused.code, refused.stderr.as_str()), (1, said.as_str()));
        }
        assert_eq!(
            daemon.own_ctr(["content", "fetch-object", "--plain-http", &name]).ok().stdout,
            document,
            "whoever pushed it"
        );
    }
    let zeros = format!("sha256:{}", "0".repeat(64));
    let name = format!("{}/none:1", registry.host());
    for (digest, said) in [(zeros.as_str(), "not found"), ("zeros", "digest")] {
        let refused = push(true, &name, digest, "application/x");
        assert!(refused.code == 1 && refused.stderr.contains(said), "{refused}");
    }
}

/// `--metadata-only`: manifests and configs are stored permanently, and no layer.
#[test]
fn documents_come_without_layers() {
    let (_registry, image) = registry();
    let daemon = Daemon::start();
    daemon.own_ctr(["content", "fetch", "--metadata-only", "--label", "a=b", "--plain-http", &image]).ok();
    let document = daemon.own_ctr(["content", "fetch-object", "--plain-http", &image]).ok().stdout;
    let (config, layers) = manifest(&document);
    let listed = || {
        let listed = daemon.ctr(["content", "ls", "-q"]).ok().stdout;
        listed.lines().map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let known = listed();
    assert!(known.len() == 2 && known.contains(&config) && !known.contains(&layers[0]), "{known:?}");
    assert!(daemon.ctr(["images", "ls", "labels.a==b"]).ok().stdout.contains(&image));
    let labels = daemon.ctr(["content", "ls"]).ok().stdout;
    for label in ["distribution.source.127.0.0.1=busybox", "gc.ref.content.config", "gc.ref.content.l.0"] {
        assert!(labels.contains(label), "{label}: {labels}");
    }
    // A collection keeps them, and a full fetch adds the layers.
    daemon.own_ctr(["leases", "rm", "--sync", daemon.own_ctr(["leases", "create"]).ok().stdout.trim()]).ok();
    assert_eq!(listed(), known);
    daemon.own_ctr(["content", "fetch", "--plain-http", &image]).ok();
    assert!(listed().contains(&layers[0]));
}

#[test]
fn what_is_said_to_a_registry_is_shown() {
    let (registry, image) = registry();
    let daemon = Daemon::start();
    let dumped = |words: &[&str]| daemon.own_ctr(words.iter().chain([&image.as_str()])).ok().stderr;
    for words in [
        &["images", "pull", "--http-dump", "--plain-http"][..],
        &["content", "fetch", "--http-dump", "--plain-http"],
        &["content", "fetch-object", "--http-dump", "--plain-http"],
        &["content", "fetch", "--metadata-only", "--http-dump", "--plain-http"],
    ] {
        let said = dumped(words);
        let asked = format!("GET /v2/busybox/manifests/latest HTTP/1.1\nHost: {}\n", registry.host());
        for part in [asked.as_str(), "User-Agent: hoist/", "HTTP/1.1 200 OK\n", "\"schemaVersion\":2"] {
            assert!(said.contains(part), "{words:?}: {part:?} is not in {said}");
        }
        assert!(!said.contains("Connection"), "{said}");
    }
    let traced = dumped(&["images", "push", "--http-trace", "--plain-http"]);
    let made = format!("Connection successful remote_addr=\"{}\" reused=", registry.host());
    assert!(traced.contains(&made) && traced.contains("reused=true"), "{traced}");
    assert!(!traced.contains("HTTP/1.1"), "{traced}");
    let both = dumped(&["images", "pull", "--http-trace", "--http-dump", "--plain-http"]);
    assert!(both.contains(&made) && both.contains("HTTP/1.1"), "{both}");
    assert!(!daemon.log().contains("HTTP/1.1"), "what is asked for on a stream is not logged");
}

/// Neither passwords nor tokens are printed, whether the daemon or `ctr` speaks to the registry.
#[test]
fn secrets_are_not_shown() {
    let registry = Registry::start_secured();
    let image = registry.push(&images::busybox(), images::TAG, "busybox") + ":latest";
    let image = image.replace("127.0.0.1", "localhost");
    let daemon = Daemon::start();
    let user = format!("{}:{}", Registry::USER, Registry::PASSWORD);
    for words in [&["images", "pull"][..], &["content", "fetch-object"]] {
        let flags = ["--http-dump", "--http-trace", "-k", "--user", &user, &image];
        let said = daemon.own_ctr(words.iter().copied().chain(flags)).ok().stderr;
        assert!(said.contains("Authorization: [not shown]"), "{said}");
        assert!(said.contains("DNS lookup host=\"localhost\"") && said.contains("127.0.0.1"), "{said}");
        assert!(!said.contains("Basic ") || said.contains("Www-Authenticate: Basic realm"), "{said}");
        assert!(!said.contains(Registry::PASSWORD), "{said}");
    }
    let _ = fs::remove_file(daemon.dir().join("layer"));
}
