//! A content store in another process (`docs/extend/content-store.md`).

use std::process::Command;

use api::grpc::content::{WriteAction, WriteContentRequest};
use api::grpc::images::ListImagesRequest;
use api::grpc::images::images_client::ImagesClient;
use rustix::process::Signal;
use testkit::{is_root, run};
use tonic::Code;
use types::Digest;

use super::{Example, chunk, daemon, run_with, write};
use crate::typed::{ask, code, on};

#[test]
fn blobs_are_kept_in_a_proxy_content_store() {
    if !is_root("a container") {
        return;
    }
    let mut memory = Example::new(env!("CARGO_BIN_EXE_example-content"));
    memory.start(&[]);
    let config = format!("[content]\nstore = \"memory\"\n\n{}", memory.config("memory", "content"));
    let daemon = daemon(&config);
    assert_eq!(run_with(&daemon, "native", "echo from memory").ok().text(), "from memory");
    let blobs = daemon.ctr(["content", "ls", "-q"]).ok();
    assert!(blobs.text().lines().count() >= 3, "{blobs}");
    assert!(!daemon.root().join("content").exists(), "the daemon keeps no blobs itself");
    let saved = daemon.dir().join("saved.tar").display().to_string();
    daemon.hoist(["save", "-o", &saved, "busybox"]).ok();
    let listed = run(Command::new("tar").args(["-tf", &saved])).ok();
    assert!(listed.stdout.contains("manifest.json"), "{listed}");
    // A client continues an ingest at the offset where an earlier one left it.
    on(&daemon, async |channel| {
        let (first, rest) = (vec![1; 3 << 20], vec![2; 10]);
        let whole = [first.clone(), rest.clone()].concat();
        let total = whole.len() as i64;
        let begin = WriteContentRequest { total, ..chunk("left", 0, &first) };
        let begun = write(&channel, &[begin]).await.unwrap();
        assert_eq!(begun.offset, 3 << 20);
        let asked = WriteContentRequest { r#ref: "left".into(), total, ..WriteContentRequest::default() };
        assert_eq!(write(&channel, &[asked]).await.unwrap().offset, 3 << 20);
        let digest = Digest::of(&whole).to_string();
        let last = WriteContentRequest {
            action: WriteAction::Commit.into(),
            total,
            expected: digest.clone(),
            ..chunk("left", 3 << 20, &rest)
        };
        assert_eq!(write(&channel, &[last]).await.unwrap().digest, digest);
        let wrong = WriteContentRequest {
            action: WriteAction::Commit.into(),
            offset: 4,
            expected: Digest::of(b"other").to_string(),
            ..WriteContentRequest::default()
        };
        let messages = [chunk("wrong", 0, b"else"), wrong];
        assert_eq!(code(write(&channel, &messages)).await, Code::FailedPrecondition);
    });
    memory.kill();
    daemon.hoist(["save", "-o", &saved, "busybox"]).expect_stderr("memory");
    daemon.hoist(["ps"]).ok();
}

#[test]
fn a_stuck_content_store_times_out() {
    if !is_root("a container") {
        return;
    }
    let mut memory = Example::new(env!("CARGO_BIN_EXE_example-content"));
    memory.start(&[]);
    let daemon = daemon(&format!("[content]\nstore = \"memory\"\n\n{}", memory.config("memory", "content")));
    daemon.hoist(["run", "-d", "--name", "runs", "--network", "none", "busybox", "sleep", "1000"]).ok();
    on(&daemon, async |channel| {
        let mut at = 0;
        let mut begin = async || {
            at += 1;
            code(write(&channel, &[chunk(&format!("r{at}"), 0, b"bytes")])).await
        };
        assert_eq!(begin().await, Code::Ok);
        memory.signal(Signal::STOP);
        assert_eq!(begin().await, Code::DeadlineExceeded);
        assert_eq!(begin().await, Code::Unavailable);
        // Calls that read no blob work meanwhile.
        ImagesClient::new(channel.clone()).list(ask(ListImagesRequest::default())).await.unwrap();
        assert_eq!(daemon.hoist(["exec", "runs", "echo", "fine"]).ok().text(), "fine");
        memory.signal(Signal::CONT);
        while begin().await != Code::Ok {
            tokio::task::yield_now().await;
        }
    });
    daemon.hoist(["rm", "-f", "runs"]).ok();
}
