//! Lists of referrers: from mirrors without one, in pages, and endless.

use registry::Push;
use types::descriptor::media_type;
use types::{Descriptor, Digest, ErrorKind};

use crate::hosts::Configured;
use crate::server::{Reply, Server};

/// A page of a list with `count` entries of a type, numbered from `first`.
fn page(first: usize, count: usize, kind: &str) -> Reply {
    let entry = |at: usize| {
        let (media, digest) = (media_type::OCI_MANIFEST, Digest::of(&at.to_le_bytes()));
        format!(r#"{{"mediaType":"{media}","size":1,"digest":"{digest}","artifactType":"{kind}"}}"#)
    };
    let entries = (first..first + count).map(entry).collect::<Vec<_>>().join(",");
    let body = format!(r#"{{"schemaVersion":2,"manifests":[{entries}]}}"#);
    Reply::new(200, body).header("Content-Type", media_type::OCI_INDEX)
}

fn mirrored(mirror: &Server, own: &Server) -> Configured {
    Configured::new(&format!("server = \"http://{}\"\n[host.\"http://{}\"]", own.host(), mirror.host()))
}

#[tokio::test]
async fn a_mirror_that_has_no_list_hides_none() {
    let subject = Digest::of(b"subject");
    let own = Server::start(|_, _| page(0, 2, "signature"));
    let nothing: [fn() -> Reply; 4] = [
        || Reply::new(404, ""),
        || Reply::new(403, ""),
        || Reply::new(200, "a page for people"),
        || page(0, 0, "signature"),
    ];
    for answer in nothing {
        let mirror = Server::start(move |_, _| answer());
        let found = mirrored(&mirror, &own).remote().referrers(&subject, None).await.unwrap();
        assert_eq!((found.len(), mirror.seen().len()), (2, 1));
    }
    // The registry lacks the API, too, so the fallback tag counts.
    let none = Server::start(|_, _| Reply::new(404, ""));
    let tagged = Server::start(|request, _| match request.path.contains("/manifests/sha256-") {
        true => page(0, 3, "signature"),
        false => Reply::new(404, ""),
    });
    let found = mirrored(&none, &tagged).remote().referrers(&subject, None).await.unwrap();
    assert_eq!(found.len(), 3);
}

#[tokio::test]
async fn endless_lists_of_referrers_are_refused() {
    // Entries of other types are dropped and not counted.
    let full = |request: &crate::server::Seen, before: usize| {
        let page = page(before * 1000, 1000, "dust");
        let path = request.path.split('?').next().unwrap_or_default();
        let last =
            if before % 10 == 9 { String::new() } else { format!("<{path}?last={before}>; rel=\"next\"") };
        page.header("Link", last)
    };
    let registry = Server::start(full);
    let remote = Configured::new(&format!("server = \"http://{}\"", registry.host())).remote();
    let subject = Digest::of(b"subject");
    assert_eq!(remote.referrers(&subject, Some("signature")).await.unwrap().len(), 0);
    assert_eq!(registry.seen().len(), 10);
    let error = remote.referrers(&subject, Some("dust")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{}", error.chain());
    assert_eq!(registry.seen().len(), 15);
}

/// A mirror may lag behind; entries that it lacks would be lost.
#[tokio::test]
async fn a_referrer_is_added_to_the_list_of_the_registry_and_not_of_a_mirror() {
    let mirror = Server::start(|_, _| page(0, 1, "signature"));
    let own = Server::start(|request, _| match request.method.as_str() {
        "GET" => page(1, 2, "signature"),
        _ => Reply::new(201, ""),
    });
    let text = format!("server = \"http://{}\"\n[host.\"http://{}\"]", own.host(), mirror.host());
    let configured = Configured::new(&format!("{text}\ncapabilities = [\"pull\", \"resolve\"]"));
    let referrer = Descriptor::new(media_type::OCI_MANIFEST, Digest::of(b"referrer"), 1);
    let push = Push::new(&configured.remote()).unwrap();
    push.note_referrer(&Digest::of(b"subject"), referrer.clone()).await.unwrap();
    let written = String::from_utf8(own.seen().last().unwrap().body.clone()).unwrap();
    let known = [1_usize, 2].map(|at| Digest::of(&at.to_le_bytes()));
    for digest in [&known[0], &known[1], &referrer.digest] {
        assert!(written.contains(&digest.to_string()), "{digest}: {written}");
    }
    assert_eq!(mirror.seen().len(), 0);
}

/// `Link: <?last=a>` is relative to the list's URL, and `<b>` to its parent.
#[tokio::test]
async fn the_next_page_is_where_the_list_says() {
    let registry = Server::start(|request, before| {
        let next = match before {
            0 => "<?last=a>; rel=\"next\"",
            1 => "<next>; rel=\"next\"",
            _ => "",
        };
        let is_list = request.path.starts_with("/v2/some/image/referrers/");
        if is_list { page(before, 1, "x").header("Link", next) } else { Reply::new(404, "") }
    });
    let remote = Configured::new(&format!("server = \"http://{}\"", registry.host())).remote();
    assert_eq!(remote.referrers(&Digest::of(b"subject"), None).await.unwrap().len(), 3);
}
