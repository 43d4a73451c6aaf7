//! A differ in another process (`docs/extend/differ.md`): `Apply` and `Diff`, and the layers of pulls and loads.

use std::fs;
use std::path::{Path, PathBuf};

use api::grpc::content::InfoRequest;
use api::grpc::content::content_client::ContentClient;
use api::grpc::diff::diff_client::DiffClient;
use api::grpc::diff::{ApplyRequest, DiffRequest};
use api::grpc::types::Descriptor;
use serde_json::json;
use testkit::layout::tar_of;
use testkit::{Daemon, Layout, Registry, eventually, is_root};
use tonic::Code;
use types::Digest;

use super::{Example, PLAIN_LAYER, apply, archive, committed, kept, layer, pull_by_transfer, tree};
use crate::archives::shell_layer;
use crate::typed::{ask, code, on};

#[test]
fn a_proxy_differ_is_asked_first_and_the_built_in_one_for_other_media_types() {
    if !is_root("the daemon") {
        return;
    }
    let mut notes = Example::new(env!("CARGO_BIN_EXE_example-differ"));
    let config = format!("[diff]\ndefault = [\"notes\", \"walking\"]\n\n{}", notes.config("notes", "diff"));
    let daemon = Daemon::start_with(&[], &config);
    notes.start(&[&daemon.socket()]);
    on(&daemon, async |channel| {
        let mounts = tree(&channel, "a").await;
        let root = PathBuf::from(&mounts[0].source);
        let note = layer(&channel, "application/vnd.example.note", b"remember").await;
        let request = ApplyRequest { diff: Some(note.clone()), mounts, ..ApplyRequest::default() };
        let applied = apply(&channel, request.clone()).await.unwrap().applied.unwrap();
        assert_eq!(applied.digest, note.digest);
        assert_eq!(fs::read_to_string(root.join("NOTE")).unwrap(), "remember");

        // `Diff`: the plugin makes layers of the media type that it knows, in the caller's namespace. The
        // built-in differ makes the others.
        fs::write(root.join("NOTE"), "another").unwrap();
        let (differ, empty) = (DiffClient::new(channel.clone()), tree(&channel, "empty").await);
        let compare = async |media_type: &str| {
            let (left, right) = (empty.clone(), request.mounts.clone());
            let labels = kept();
            let (media_type, r#ref) = (media_type.to_owned(), String::new());
            let asked = DiffRequest { left, right, media_type, r#ref, labels, source_date_epoch: None };
            differ.clone().diff(ask(asked)).await.map(|made| made.into_inner().diff.unwrap_or_default())
        };
        let made = compare("application/vnd.example.note").await.unwrap();
        assert_eq!((made.media_type.as_str(), made.size), ("application/vnd.example.note", 7));
        assert_eq!(made.digest, Digest::of(b"another").to_string());
        let info = InfoRequest { digest: made.digest };
        ContentClient::new(channel.clone()).info(ask(info)).await.expect("the blob is the caller's");
        assert_eq!(compare(PLAIN_LAYER).await.unwrap().media_type, PLAIN_LAYER);
        fs::remove_file(root.join("NOTE")).unwrap();
        let refused = compare("application/vnd.example.note").await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "no other differ is asked after a failure");
        assert!(refused.message().contains("a tree without a note"), "{refused}");

        let plain = layer(&channel, PLAIN_LAYER, &archive(notes.dir.path())).await;
        let request = ApplyRequest { diff: Some(plain.clone()), ..request };
        assert_eq!(apply(&channel, request.clone()).await.unwrap().applied.unwrap().digest, plain.digest);
        assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "in a layer");
        let unknown = Descriptor { media_type: "application/vnd.example.song".into(), ..note };
        let request = ApplyRequest { diff: Some(unknown), ..request };
        assert_eq!(code(apply(&channel, request.clone())).await, Code::Unimplemented);
        notes.kill();
        assert_eq!(
            code(apply(&channel, request)).await,
            Code::Unavailable,
            "a dead differ may know the media type"
        );
    });
}

/// The lowest layer is a note, which the example differ applies; the built-in differ applies the other two.
#[test]
fn pulls_and_loads_apply_layers_through_a_proxy_differ() {
    if !is_root("containers") {
        return;
    }
    let (registry, note) = (Registry::start(), b"remember");
    let layout = |diff_id: &str| {
        let layout = Layout::new();
        let upper = [shell_layer(), tar_of(&[("etc/base", "upmost"), ("etc/.wh.gone", "")])];
        let mut layers = vec![layout.blob("application/vnd.example.note", note)];
        layers.extend(upper.iter().map(|layer| layout.blob(PLAIN_LAYER, layer)));
        let mut diff_ids = vec![diff_id.to_owned()];
        diff_ids.extend(upper.iter().map(|layer| Digest::of(layer).to_string()));
        let config = json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}});
        layout.tag(&layout.image_of_blobs(&layers, &config), "noted");
        layout
    };
    let (right, wrong) = (layout(&Digest::of(note).to_string()), layout(&Digest::of(b"other").to_string()));
    let [good, bad] = [(&right, "noted:1"), (&wrong, "noted:2")]
        .map(|(layout, name)| registry.push(layout.path(), "noted", name));
    for form in ["archives", "directories"] {
        let mut notes = Example::new(env!("CARGO_BIN_EXE_example-differ"));
        let differs = "[diff]\ndefault = [\"notes\", \"walking\"]\n\n";
        let plugin = notes.config("notes", "diff");
        let daemon =
            Daemon::start_with(&[], &format!("[snapshots]\nlayers = \"{form}\"\n\n{differs}{plugin}"));
        notes.start(&[&daemon.socket()]);
        let check = |name: &str| {
            assert_eq!(committed(&daemon), 3, "{form}");
            let run = [
                "run",
                "--rm",
                "--network",
                "none",
                name,
                "sh",
                "-c",
                "cat /NOTE /etc/base; ls /etc/gone || echo -gone",
            ];
            assert_eq!(daemon.hoist(run).ok().stdout, "rememberupmost-gone\n", "{form}");
            daemon.hoist(["rmi", name]).ok();
            daemon.hoist(["system", "prune", "-f"]).ok();
            eventually("the snapshots of the image are collected", || {
                (committed(&daemon) == 0).then_some(())
            });
        };
        daemon.hoist(["pull", &good]).ok();
        check(&good);
        pull_by_transfer(&daemon, &good).expect("a pull");
        check(&good);
        let loaded = daemon.hoist([Path::new("load"), Path::new("-i"), right.path()]).ok();
        check(loaded.text().rsplit(": ").next().expect("a name"));

        let refused = daemon.hoist(["pull", &bad]).expect_code(1);
        assert!(
            refused.stderr.contains("differ notes") && refused.stderr.contains("unpacks to"),
            "{refused}"
        );
        assert_eq!(committed(&daemon), 0, "{form}");
        notes.kill();
        daemon.hoist(["pull", &good]).expect_code(1).expect_stderr("proxy plugin notes");
        assert_eq!(committed(&daemon), 0, "{form}");
    }
}
