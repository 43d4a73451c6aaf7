//! The client against registries that break off, violate the protocol and require tokens.

mod authorization;
mod blobs;
mod downloads;
mod hosts;
mod proxies;
mod push;
mod referrers;
mod secured;
mod server;
mod sources;
mod tags;
mod tls;

use std::time::{Duration, Instant};

use registry::{Capability, Connections, Credentials, Keyring, Remote};
use server::{Reply, Seen, Server};
use types::descriptor::media_type;
use types::{Descriptor, Digest, ErrorKind, Reference, Result};

fn remote(server: &Server, credentials: Option<Credentials>) -> Remote {
    let reference: Reference = format!("{}/some/image:1", server.host()).parse().unwrap();
    Remote::new(&reference, credentials)
}

fn user() -> Credentials {
    Credentials::Password { user: "u".into(), password: "p".into() }
}

/// `u:p`
const BASIC: &str = "Basic dTpw";

fn bytes(len: u32) -> Vec<u8> {
    (0..len).map(|at| at.to_le_bytes()[(at % 2) as usize]).collect()
}

/// Fetches a blob from an offset on.
async fn fetch(server: &Server, blob: &[u8], offset: u64) -> Result<Vec<u8>> {
    let descriptor = Descriptor::new(media_type::OCI_LAYER, Digest::of(blob), blob.len() as u64);
    let mut stream = remote(server, None).blob(&descriptor, offset).await?;
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

fn start_of(request: &Seen) -> Option<usize> {
    request.header("range")?.strip_prefix("bytes=")?.split('-').next()?.parse().ok()
}

#[tokio::test]
async fn a_blob_that_breaks_off_is_taken_up_where_it_ended() {
    let blob = bytes(1 << 20);
    let whole = blob.clone();
    let server = Server::start(move |request, before| {
        let start = start_of(request).unwrap_or(0);
        let status = if start > 0 { 206 } else { 200 };
        // Each answer has 300,000 bytes more, and the last one the rest.
        let range = format!("bytes {start}-{}/{}", whole.len() - 1, whole.len());
        let reply = Reply::new(status, &whole[start..]).header("Content-Range", range);
        reply.cut_after(if before < 3 { 300_000 } else { usize::MAX })
    });
    assert_eq!(fetch(&server, &blob, 0).await.unwrap(), blob);
    let starts: Vec<_> = server.seen().iter().map(start_of).collect();
    assert_eq!(starts, [None, Some(300_000), Some(600_000), Some(900_000)], "no byte is asked for twice");
}

#[tokio::test]
async fn a_server_without_ranges_is_skipped_through() {
    let blob = bytes(500_000);
    let whole = blob.clone();
    let server = Server::start(move |_, before| {
        Reply::new(200, whole.clone()).cut_after(if before == 0 { 100_000 } else { usize::MAX })
    });
    assert_eq!(fetch(&server, &blob, 0).await.unwrap(), blob);
    assert_eq!(fetch(&server, &blob, 123_456).await.unwrap(), &blob[123_456..]);
}

#[tokio::test]
async fn a_blob_of_another_length_is_refused() {
    let blob = bytes(1000);
    let longer = Server::start(|_, _| Reply::new(200, bytes(2000)).announce(None));
    assert_eq!(fetch(&longer, &blob, 0).await.unwrap_err().kind(), ErrorKind::DataLoss);
    let announced = Server::start(|_, _| Reply::new(200, bytes(2000)));
    let error = fetch(&announced, &blob, 0).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss);
    assert!(error.chain().contains("2000 bytes are announced"), "{}", error.chain());
}

#[tokio::test]
async fn transient_errors_are_retried() {
    let server = Server::start(|_, before| match before {
        0 => Reply::new(503, "").header("Retry-After", "0"),
        1 => Reply::new(429, "slow down").header("Retry-After", "0"),
        _ => Reply::new(200, r#"{"schemaVersion":2}"#).header("Content-Type", media_type::OCI_MANIFEST),
    });
    let since = Instant::now();
    let resolved = remote(&server, None).resolve().await.unwrap();
    assert_eq!(resolved.descriptor.media_type, media_type::OCI_MANIFEST);
    assert_eq!(server.seen().len(), 3);
    assert!(since.elapsed() >= Duration::from_millis(200 + 400), "whoever wants no pause gets ours");

    let down = Server::start(|_, _| Reply::new(503, "out of order").header("Retry-After", "86400"));
    let error = remote(&down, None).resolve().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(down.seen().len(), 1, "a server that asks for a day is not waited for");
    let said = error.chain();
    assert!(said.contains("out of order") && said.contains(&down.host()), "{said}");
}

/// A `Retry-After` holds for all other requests to the same host.
#[tokio::test]
async fn a_host_that_wants_to_be_asked_later_is_left_alone_by_all() {
    const LATER: Duration = Duration::from_secs(2);
    let blobs = [bytes(1000), bytes(2000)];
    let (log, came) = std::sync::mpsc::channel();
    let known = blobs.clone();
    let server = Server::start(move |request, before| {
        log.send(Instant::now()).unwrap();
        let asked = known.iter().find(|blob| request.path.ends_with(&Digest::of(blob).to_string()));
        match before {
            0 => Reply::new(429, "slow down").header("Retry-After", LATER.as_secs().to_string()),
            _ => Reply::new(200, asked.unwrap().clone()),
        }
    });
    let reference: Reference = format!("{}/some/image:1", server.host()).parse().unwrap();
    let connections = Connections::default();
    let [first, second] = blobs.map(|blob| {
        let remote = connections.remote(&reference, &Keyring::default()).unwrap();
        let descriptor = Descriptor::new(media_type::OCI_LAYER, Digest::of(&blob), blob.len() as u64);
        async move { remote.blob(&descriptor, 0).await?.next().await }
    });
    let first = tokio::spawn(first);
    let host =
        connections.remote(&reference, &Keyring::default()).unwrap().endpoints(Capability::Pull).remove(0);
    while !host.is_resting() {
        assert!(!first.is_finished(), "nobody remembers what it was told");
        tokio::task::yield_now().await;
    }
    assert!(second.await.unwrap().is_some() && first.await.unwrap().unwrap().is_some());
    let told = came.recv().unwrap();
    let after: Vec<Duration> = came.try_iter().map(|at| at - told).collect();
    assert!(after.len() == 2 && after.iter().all(|after| *after >= LATER), "{after:?}");
}

#[tokio::test]
async fn missing_and_forbidden_repositories_are_named() {
    for (status, kind) in [(404, ErrorKind::NotFound), (403, ErrorKind::PermissionDenied)] {
        let words = r#"{"errors":[{"code":"NAME","message":"the words of the registry"}]}"#;
        let server = Server::start(move |_, _| Reply::new(status, words));
        let error = remote(&server, None).resolve().await.unwrap_err();
        assert_eq!(error.kind(), kind);
        let said = error.chain();
        assert!(said.contains("some/image") && said.contains("the words of the registry"), "{said}");
        assert_eq!(server.seen().len(), 1, "asking again would not help");
    }
}

#[tokio::test]
async fn documents_that_lie_or_never_end_are_refused() {
    let body = r#"{"schemaVersion":2}"#;
    let server = Server::start(move |_, _| Reply::new(200, body));
    let wrong = Descriptor::new(media_type::OCI_MANIFEST, Digest::of(b"something else"), 19);
    assert_eq!(remote(&server, None).manifest(&wrong).await.unwrap_err().kind(), ErrorKind::DataLoss);
    let announced = Server::start(|_, _| Reply::new(200, "").announce(Some(9 << 20)));
    let error = remote(&announced, None).resolve().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
    let endless = Server::start(|_, _| Reply::new(200, vec![b' '; 9 << 20]).announce(None));
    let error = remote(&endless, None).resolve().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
}

#[tokio::test]
async fn a_token_is_fetched_once_and_used_again() {
    let server = Server::start(|request, _| {
        if request.path.starts_with("/token") {
            assert_eq!(request.header("authorization"), Some(BASIC));
            return Reply::new(200, r#"{"token":"t0ken"}"#);
        }
        if request.header("authorization") == Some("Bearer t0ken") {
            return Reply::new(200, r#"{"schemaVersion":2}"#);
        }
        let realm = format!("http://{}/token", request.header("host").unwrap());
        Reply::new(401, "").header("WWW-Authenticate", format!(r#"Bearer realm="{realm}",service="here""#))
    });
    let remote = remote(&server, Some(user()));
    remote.resolve().await.unwrap();
    remote.resolve().await.unwrap();
    let paths: Vec<String> = server.seen().iter().map(|seen| seen.path.clone()).collect();
    let manifest = "/v2/some/image/manifests/1";
    assert_eq!([&paths[0], &paths[2], &paths[3]], [manifest; 3], "{paths:?}");
    assert!(
        paths[1].contains("service=here") && paths[1].contains("scope=repository:some/image:pull"),
        "{paths:?}"
    );
}

#[tokio::test]
async fn a_password_is_sent_only_to_the_host_that_challenges() {
    let elsewhere = Server::start(|request, _| {
        assert_eq!(request.header("authorization"), None, "another host is told nothing");
        Reply::new(200, r#"{"schemaVersion":2}"#)
    });
    let target = format!("http://{}/stored", elsewhere.host());
    let server = Server::start(move |request, _| match request.header("authorization") {
        Some(BASIC) => Reply::new(307, "").header("Location", target.clone()),
        _ => Reply::new(401, "").header("WWW-Authenticate", r#"Basic realm="here""#),
    });
    remote(&server, Some(user())).resolve().await.unwrap();
    assert_eq!((server.seen().len(), elsewhere.seen().len()), (2, 1));

    let error = remote(&server, None).resolve().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert!(error.chain().contains("may need a login"), "{}", error.chain());
}

#[tokio::test]
async fn redirects_in_a_circle_end() {
    let server = Server::start(|request, _| {
        Reply::new(302, "").header("Location", format!("http://{}/again", request.header("host").unwrap()))
    });
    let error = remote(&server, None).resolve().await.unwrap_err();
    assert!(error.chain().contains("redirect"), "{}", error.chain());
}
