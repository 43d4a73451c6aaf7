//! Hosts with wrong bytes: detected by the digest, skipped for the next host, and remembered.

use registry::{Capability, Remote};
use types::{Descriptor, Digest, ErrorKind};

use crate::hosts::Configured;
use crate::server::{Server, give};

const BLOB: &[u8] = b"the right bytes, and enough of them";

fn blob() -> Descriptor {
    Descriptor::new("x/y", Digest::of(BLOB), BLOB.len() as u64)
}

fn honest() -> Server {
    Server::start(|request, _| give(BLOB, request))
}

/// A host that changes a byte.
fn liar() -> Server {
    Server::start(|request, _| give(&BLOB.to_ascii_uppercase(), request))
}

/// A host that breaks off the first response.
fn breaking() -> Server {
    Server::start(|request, before| match before {
        0 => give(BLOB, request).cut_after(10),
        _ => give(BLOB, request),
    })
}

fn behind(mirrors: &[&Server], own: &Server) -> Configured {
    let mut text = format!("server = 'http://{}'\n", own.host());
    for mirror in mirrors {
        text += &format!("[host.'http://{}']\n", mirror.host());
    }
    Configured::new(&text)
}

fn resting(remote: &Remote) -> Vec<String> {
    let all = remote.endpoints(Capability::Pull).into_iter();
    all.filter(|host| host.is_resting()).map(|host| host.name().to_owned()).collect()
}

#[tokio::test]
async fn a_host_that_lies_is_left_for_the_next_and_asked_last_from_then_on() {
    let (mirrors, own) = ([liar(), liar()], honest());
    let configured = behind(&[&mirrors[0], &mirrors[1]], &own);
    let bytes = configured.remote().small_blob(&blob()).await.unwrap();
    assert_eq!(bytes, BLOB);
    assert_eq!(resting(&configured.remote()), [mirrors[0].host(), mirrors[1].host()]);
    configured.remote().small_blob(&blob()).await.unwrap();
    assert_eq!((mirrors[0].seen().len(), mirrors[1].seen().len(), own.seen().len()), (1, 1, 2));
}

#[tokio::test]
async fn after_wrong_bytes_of_several_hosts_each_is_asked_by_itself() {
    for (mirror, own) in [(breaking(), liar()), (liar_that_breaks(), honest())] {
        let configured = behind(&[&mirror], &own);
        let bytes = configured.remote().small_blob(&blob()).await.unwrap();
        assert_eq!(bytes, BLOB);
    }
}

/// A host with wrong bytes that also breaks off the first response.
fn liar_that_breaks() -> Server {
    Server::start(|request, before| {
        let reply = give(&BLOB.to_ascii_uppercase(), request);
        if before == 0 { reply.cut_after(10) } else { reply }
    })
}

#[tokio::test]
async fn when_all_lie_each_is_named() {
    let (mirror, own) = (liar(), liar());
    let error = behind(&[&mirror], &own).remote().small_blob(&blob()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss);
    let found = Digest::of(&BLOB.to_ascii_uppercase()).to_string();
    for words in [mirror.host().as_str(), "from r.test have the digest", &found] {
        assert!(error.chain().contains(words), "{words}: {}", error.chain());
    }
    assert_eq!((mirror.seen().len(), own.seen().len()), (1, 1), "nobody is asked twice");
}

#[tokio::test]
async fn an_empty_blob_of_another_digest_is_asked_for_once() {
    let own = honest();
    let empty = Descriptor::new("x/y", Digest::of(b"not empty"), 0);
    let error = behind(&[], &own).remote().small_blob(&empty).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss);
}

#[tokio::test]
async fn a_document_that_is_another_is_fetched_from_the_next_host() {
    let (mirror, own) = (liar(), honest());
    let configured = behind(&[&mirror], &own);
    assert_eq!(configured.remote().manifest(&blob()).await.unwrap(), BLOB);
    assert_eq!(resting(&configured.remote()), [mirror.host()]);
    let error = behind(&[], &mirror).remote().manifest(&blob()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss);
}
