//! Stream processors (`docs/extend/stream-processor.md`), which turn layers of foreign media types into tar archives.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use api::grpc::diff::ApplyRequest;
use api::grpc::types::{Any, Descriptor};
use serde_json::json;
use tempfile::TempDir;
use testkit::layout::tar_of;
use testkit::{Daemon, Layout, Registry, is_root};
use tonic::Code;
use types::Digest;

use super::{PLAIN_LAYER, apply, archive, committed, layer, pull_by_transfer, tree};
use crate::archives::shell_layer;
use crate::typed::on;

/// The indented block of `docs/extend/stream-processor.md` after the line that ends with `behind`.
fn page_of_stream_processors(behind: &str) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/extend/stream-processor.md");
    let page = fs::read_to_string(path).expect("the page of the manual");
    let lines = page.lines().skip_while(|line| !line.ends_with(behind)).skip(1);
    let block = lines.skip_while(|line| line.is_empty()).map_while(|line| line.strip_prefix("    "));
    block.map(|line| format!("{line}\n")).collect()
}

/// ROT13, as the stream processors of these tests undo it.
fn rot13(plain: &[u8]) -> Vec<u8> {
    let turn = |byte: &u8| match byte {
        b'a'..=b'm' | b'A'..=b'M' => byte + 13,
        b'n'..=b'z' | b'N'..=b'Z' => byte - 13,
        other => *other,
    };
    plain.iter().map(turn).collect()
}

/// Configuration of three stream processors: `rot` undoes ROT13, `fails` exits with an error, and `lies` returns bytes
/// that do not match the diff ID.
fn processors() -> String {
    let stage = |name: &str, script: &str| {
        format!(
            "[stream_processors.{name}]\naccepts = [\"application/vnd.example.{name}\"]\nreturns = \"{PLAIN_LAYER}\"\n\
             path = \"sh\"\nargs = [\"-c\", \"{script}\"]\n"
        )
    };
    let turn = "LC_ALL=C tr A-Za-z N-ZA-Mn-za-m";
    let more = format!("{turn}; head -c 512 /dev/zero");
    let stages = [("rot", turn), ("fails", "echo no key >&2; exit 3"), ("lies", &more)];
    stages.map(|(name, script)| stage(name, script)).concat() + "\n"
}

/// Tags as `foreign` an image of two layers: a shell, and a layer of `media_type` that changes a file and removes one.
/// The blob of the upper layer is its archive in ROT13.
fn tag_foreign_image(layout: &Layout, media_type: &str) {
    let lower = shell_layer();
    let upper = tar_of(&[("etc/base", "turned"), ("etc/.wh.gone", "")]);
    let diff_ids = [&lower, &upper].map(|layer| Digest::of(layer).to_string());
    let layers = [layout.blob(PLAIN_LAYER, &lower), layout.blob(media_type, &rot13(&upper))];
    let image = layout.image_of_blobs(&layers, &json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}}));
    layout.tag(&image, "foreign");
}

/// The program and the configuration of the page, word for word but for the path of the program.
#[test]
fn the_stream_processor_of_the_manual_works() {
    if !is_root("the daemon") {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    let program = dir.path().join("rot");
    testkit::executable(&program, &page_of_stream_processors("This is a whole one:"));
    let table = page_of_stream_processors("# A stream processor");
    let table = table.replace("/usr/local/bin/rot", &program.display().to_string());
    assert!(table.contains("/rot\"") && !table.contains("/usr/local"), "{table}");
    let daemon = Daemon::start_with(&[], &table);
    let plain = archive(dir.path());
    on(&daemon, async |channel| {
        let mounts = tree(&channel, "a").await;
        let root = PathBuf::from(&mounts[0].source);
        let rot = layer(&channel, "application/vnd.example.rot", &rot13(&plain)).await;
        let request = ApplyRequest { diff: Some(rot), mounts, ..ApplyRequest::default() };
        let applied = apply(&channel, request).await.unwrap().applied.unwrap();
        assert_eq!(applied.digest, Digest::of(&plain).to_string());
        assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "in a layer");
    });
}

#[test]
fn layers_of_foreign_media_types_go_through_stream_processors() {
    /// Checks the payload on descriptor 3, an encoded `Any` of the type `key` with the value `secret`: its letters are
    /// these two words, its other bytes tags and lengths.
    const KEYED: &str = "[ $(tr -cd a-z <&3) = keysecret ] || exit 4";
    if !is_root("the daemon") {
        return;
    }
    let config = format!(
        "[stream_processors.rot]\naccepts = [\"application/vnd.example.rot\"]\nreturns = \"{PLAIN_LAYER}\"\n\
         path = \"sh\"\nargs = [\"-c\", \"{KEYED}; LC_ALL=C tr A-Za-z N-ZA-Mn-za-m\"]\n\
         [stream_processors.fails]\naccepts = [\"application/vnd.example.fails\"]\nreturns = \"{PLAIN_LAYER}\"\n\
         path = \"sh\"\nargs = [\"-c\", \"echo no key >&2; exit 3\"]\n\n"
    );
    let daemon = Daemon::start_with(&[], &config);
    let dir = TempDir::new().expect("a temporary directory");
    let plain = archive(dir.path());
    on(&daemon, async |channel| {
        let mounts = tree(&channel, "a").await;
        let root = PathBuf::from(&mounts[0].source);
        let rot = layer(&channel, "application/vnd.example.rot", &rot13(&plain)).await;
        let payload = Any { type_url: "key".into(), value: b"secret".to_vec() };
        let request = ApplyRequest {
            diff: Some(rot.clone()),
            mounts,
            payloads: [("rot".to_owned(), payload)].into(),
            ..ApplyRequest::default()
        };
        let applied = apply(&channel, request.clone()).await.unwrap().applied.unwrap();
        assert_eq!(
            (applied.digest, applied.media_type.as_str()),
            (Digest::of(&plain).to_string(), PLAIN_LAYER)
        );
        assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "in a layer");

        let keyless = ApplyRequest { payloads: BTreeMap::new(), ..request.clone() };
        let failed = apply(&channel, keyless).await.unwrap_err();
        assert!(failed.message().contains("stream processor rot: exit status: 4"), "{failed}");

        let fails = Descriptor { media_type: "application/vnd.example.fails".into(), ..rot.clone() };
        let failed =
            apply(&channel, ApplyRequest { diff: Some(fails), ..request.clone() }).await.unwrap_err();
        assert!(failed.message().contains("fails") && failed.message().contains("no key"), "{failed}");
        let unknown = Descriptor { media_type: "application/vnd.example.none".into(), ..rot };
        let unknown = apply(&channel, ApplyRequest { diff: Some(unknown), ..request }).await.unwrap_err();
        assert_eq!(unknown.code(), Code::Unimplemented);
        assert!(unknown.message().contains("application/vnd.example.none"), "{unknown}");
    });
}

/// With layers kept as archives and as directories, a container sees the same after a pull by either API and a load.
#[test]
fn images_with_layers_of_foreign_media_types_are_pulled_loaded_and_run() {
    if !is_root("containers") {
        return;
    }
    let (registry, layout) = (Registry::start(), Layout::new());
    tag_foreign_image(&layout, "application/vnd.example.rot");
    let reference = registry.push(layout.path(), "foreign", "foreign:1");
    for form in ["archives", "directories"] {
        let config = format!("[snapshots]\nlayers = \"{form}\"\n\n{}", processors());
        let check = |take: &dyn Fn(&Daemon) -> String| {
            let daemon = Daemon::start_with(&[], &config);
            let name = take(&daemon);
            assert_eq!(committed(&daemon), 2, "{form}: unpacked by the pull or load");
            let run = [
                "run",
                "--rm",
                "--network",
                "none",
                &name,
                "sh",
                "-c",
                "cat /etc/base; ls /etc/gone || echo -gone",
            ];
            assert_eq!(daemon.hoist(run).ok().stdout, "turned-gone\n", "{form}");
            let files = daemon.hoist(["image", "ls-files", &name]).ok();
            assert!(files.stdout.contains("etc/base") && !files.stdout.contains("etc/gone"), "{files}");
            daemon.hoist(["image", "verify", &name]).ok();
        };
        check(&|daemon| {
            daemon.hoist(["pull", &reference]).ok();
            reference.clone()
        });
        check(&|daemon| {
            pull_by_transfer(daemon, &reference).expect("a pull");
            reference.clone()
        });
        check(&|daemon| {
            let loaded = daemon.hoist([Path::new("load"), Path::new("-i"), layout.path()]).ok();
            loaded.text().rsplit(": ").next().expect("a name").to_owned()
        });
    }
}

#[test]
fn a_failing_stream_processor_is_named_and_leaves_no_snapshot() {
    if !is_root("the daemon") {
        return;
    }
    let registry = Registry::start();
    let cases = [
        ("fails", &["stream processor fails", "no key"][..]),
        ("lies", &["stream processor lies", "unpacks to"]),
        ("none", &["application/vnd.example.none"]),
    ];
    for (kind, words) in cases {
        let layout = Layout::new();
        tag_foreign_image(&layout, &format!("application/vnd.example.{kind}"));
        let reference = registry.push(layout.path(), "foreign", &format!("{kind}:1"));
        for form in ["archives", "directories"] {
            let config = format!("[snapshots]\nlayers = \"{form}\"\n\n{}", processors());
            let daemon = Daemon::start_with(&[], &config);
            let pulled = daemon.hoist(["pull", &reference]).expect_code(1);
            assert!(words.iter().all(|word| pulled.stderr.contains(word)), "{form}: {pulled}");
            let refused = pull_by_transfer(&daemon, &reference).unwrap_err();
            assert!(words.iter().all(|word| refused.message().contains(word)), "{form}: {refused}");
            assert_eq!((committed(&daemon), daemon.hoist(["images", "-q"]).ok().text()), (0, ""), "{form}");
            daemon.hoist(["system", "prune", "-f"]).ok();
            let listed = daemon.ctr(["snapshots", "ls"]).ok();
            assert_eq!(listed.stdout.lines().count(), 1, "{form}: {listed}");
        }
    }
}

/// The error says that a stream processor is missing, not that the layer is corrupt.
#[test]
fn an_encrypted_layer_without_a_decoder_is_reported_as_such() {
    if !is_root("the daemon") {
        return;
    }
    let (registry, layout) = (Registry::start(), Layout::new());
    tag_foreign_image(&layout, "application/vnd.oci.image.layer.v1.tar+encrypted");
    let reference = registry.push(layout.path(), "foreign", "encrypted:1");
    let daemon = Daemon::start();
    daemon.hoist(["pull", &reference]).expect_code(1).expect_stderr("stream processor");
}

/// imgcrypt's decoder finds the wrapped key in an annotation of the layer, which the daemon hands it on descriptor 3.
#[test]
fn the_decoder_of_encrypted_layers_gets_the_annotations_of_each_layer() {
    const KIND: &str = "application/vnd.oci.image.layer.v1.tar+encrypted";
    if !is_root("the daemon") {
        return;
    }
    let (registry, layout) = (Registry::start(), Layout::new());
    let (lower, upper) = (shell_layer(), tar_of(&[("etc/base", "decrypted")]));
    let diff_ids = [&lower, &upper].map(|layer| Digest::of(layer).to_string());
    let mut encrypted = layout.blob(KIND, &rot13(&upper));
    encrypted["annotations"] = json!({ "org.opencontainers.image.enc.keys.jwe": "wrapped-key" });
    let layers = [layout.blob(PLAIN_LAYER, &lower), encrypted];
    let config = json!({ "rootfs": { "type": "layers", "diff_ids": diff_ids } });
    layout.tag(&layout.image_of_blobs(&layers, &config), "encrypted");
    let reference = registry.push(layout.path(), "encrypted", "encrypted:2");
    let config = format!(
        "[stream_processors.\"io.containerd.ocicrypt.decoder.v1.tar\"]\naccepts = [\"{KIND}\"]\n\
         returns = \"{PLAIN_LAYER}\"\npath = \"sh\"\n\
         args = [\"-c\", \"grep -q wrapped-key <&3 || exit 4; LC_ALL=C tr A-Za-z N-ZA-Mn-za-m\"]\n\n"
    );
    let daemon = Daemon::start_with(&[], &config);
    daemon.hoist(["pull", &reference]).ok();
    let shown =
        daemon.hoist(["run", "--rm", "--network", "none", &reference, "sh", "-c", "cat /etc/base"]).ok();
    assert_eq!(shown.stdout, "decrypted");
    daemon.hoist(["rmi", &reference]).ok();
    daemon.hoist(["system", "prune", "-f"]).ok();
    pull_by_transfer(&daemon, &reference).expect("a pull");
}
