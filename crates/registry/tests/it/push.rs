//! Uploads to a registry that keeps partial uploads, as the distribution specification allows: Debian's discards
//! them.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use registry::{Push, Ranges, Remote, Sent};
use testkit::{Fault, FaultProxy, noise};
use tokio::sync::mpsc;
use types::descriptor::media_type;
use types::{Descriptor, Digest, ErrorKind, Result};

use crate::hosts::Configured;
use crate::server::{Reply, Server};

/// Uploads by number, and blobs by digest.
#[derive(Default)]
struct Kept {
    uploads: HashMap<usize, Vec<u8>>,
    blobs: HashMap<String, Vec<u8>>,
    begun: usize,
}

/// A registry with blobs only. Its threads end with the test process.
struct Keeper {
    address: SocketAddr,
    kept: Arc<Mutex<Kept>>,
}

impl Keeper {
    fn start() -> Keeper {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let (address, kept) = (listener.local_addr().unwrap(), Arc::<Mutex<Kept>>::default());
        let own = kept.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let kept = own.clone();
                // The client hung up.
                std::thread::spawn(move || drop(serve(&stream, &kept)));
            }
        });
        Keeper { address, kept }
    }

    fn blob(&self, digest: &Digest) -> Option<Vec<u8>> {
        self.kept.lock().unwrap().blobs.get(&digest.to_string()).cloned()
    }
}

fn serve(stream: &TcpStream, kept: &Mutex<Kept>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream);
    let mut first = String::new();
    lines.read_line(&mut first)?;
    let (mut len, mut range) = (0, None);
    loop {
        let mut line = String::new();
        lines.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => len = value.parse().unwrap(),
            "content-range" => range = value.split('-').next().and_then(|start| start.parse::<usize>().ok()),
            _ => {}
        }
    }
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut stream = stream;
    let mut say = |status: &str, headers: &str| {
        write!(stream, "HTTP/1.1 {status} Said\r\nConnection: close\r\nContent-Length: 0\r\n{headers}\r\n")
    };
    if method == "HEAD" {
        let digest = path.rsplit('/').next().unwrap_or_default();
        let found = kept.lock().unwrap().blobs.contains_key(digest);
        return say(if found { "200" } else { "404" }, "");
    }
    if method == "POST" {
        let mut kept = kept.lock().unwrap();
        kept.begun += 1;
        let number = kept.begun;
        kept.uploads.insert(number, Vec::new());
        return say("202", &format!("Location: /up/{number}?state=x\r\n"));
    }
    let number: usize =
        path.trim_start_matches("/up/").split('?').next().unwrap_or_default().parse().unwrap_or(0);
    let Some(before) = kept.lock().unwrap().uploads.get(&number).map(Vec::len) else { return say("404", "") };
    if range.is_some_and(|start| start != before) {
        return say("416", "");
    }
    let mut chunk = [0; 16 * 1024];
    while len > 0 {
        let read = lines.read(&mut chunk[..len.min(16 * 1024)])?;
        if read == 0 {
            return Ok(());
        }
        len -= read;
        kept.lock().unwrap().uploads.get_mut(&number).unwrap().extend_from_slice(&chunk[..read]);
    }
    let mut kept = kept.lock().unwrap();
    let so_far = kept.uploads[&number].len();
    let Some((_, digest)) = path.split_once("digest=") else {
        let status = if method == "GET" { "204" } else { "202" };
        return say(
            status,
            &format!("Location: /up/{number}?state=x\r\nRange: 0-{}\r\n", so_far.saturating_sub(1)),
        );
    };
    let bytes = kept.uploads.remove(&number).unwrap();
    if Digest::of(&bytes).to_string() != digest {
        return say("400", "");
    }
    kept.blobs.insert(digest.to_owned(), bytes);
    say("201", "")
}

async fn push(host: &str, blob: &[u8], digest: Digest) -> Result<Sent> {
    push_from(host, blob, digest, &[]).await
}

async fn push_from(host: &str, blob: &[u8], digest: Digest, sources: &[String]) -> Result<Sent> {
    let remote = Remote::new(&format!("{host}/some/image:1").parse().unwrap(), None);
    let whole = Bytes::copy_from_slice(blob);
    let ranges: Ranges = Arc::new(move |range| {
        let (send, receive) = mpsc::channel(1);
        let part = whole.slice(range.start as usize..range.end as usize);
        tokio::spawn(async move {
            for start in (0..part.len()).step_by(100_000) {
                let end = part.len().min(start + 100_000);
                if send.send(Ok(part.slice(start..end))).await.is_err() {
                    return;
                }
            }
        });
        receive
    });
    let descriptor = Descriptor::new(media_type::OCI_LAYER, digest, blob.len() as u64);
    Push::new(&remote)?.blob(&descriptor, sources, &ranges).await
}

#[tokio::test]
async fn an_upload_that_breaks_goes_on_where_it_was() {
    let blob = noise("blob", 3_000_000);
    let keeper = Keeper::start();
    // It breaks three times, a little further each time.
    let breaks = AtomicUsize::new(0);
    let proxy = FaultProxy::start_at(keeper.address, move |asked| {
        let has_body = asked.header("content-length").is_some_and(|len| len.len() > 5);
        match has_body && breaks.fetch_add(1, Ordering::SeqCst) < 3 {
            true => vec![Fault::CutUpload(700_000)],
            false => Vec::new(),
        }
    });
    assert_eq!(push(&proxy.host(), &blob, Digest::of(&blob)).await.unwrap(), Sent::Uploaded);
    assert!(keeper.blob(&Digest::of(&blob)).unwrap() == blob);
    let sent: u64 = proxy.log().iter().map(|served| served.received).sum();
    assert_eq!(sent, 3_000_000, "no byte that the registry had was sent again");
    assert_eq!(proxy.requests(|asked| asked.method == "POST").len(), 1, "one upload all along");
    assert_eq!(push(&proxy.host(), &blob, Digest::of(&blob)).await.unwrap(), Sent::Existed);
}

#[tokio::test]
async fn a_refused_upload_is_not_retried() {
    let blob = noise("blob", 300_000);
    let keeper = Keeper::start();
    let proxy = FaultProxy::start_at(keeper.address, |_| Vec::new());
    let error = push(&proxy.host(), &blob, Digest::of(b"another")).await.unwrap_err();
    assert!(error.chain().contains("push blob") && error.chain().contains("400"), "{}", error.chain());
    assert_eq!(proxy.requests(|asked| asked.method == "PUT").len(), 1);
    assert!(keeper.kept.lock().unwrap().blobs.is_empty());

    let denied = FaultProxy::start_at(keeper.address, |asked| match asked.method.as_str() {
        "POST" => vec![Fault::answer(403)],
        _ => Vec::new(),
    });
    let error = push(&denied.host(), &blob, Digest::of(&blob)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert_eq!(denied.requests(|asked| asked.method == "POST").len(), 1);
}

/// The registry stores the blob, but its answer is lost: to a proxy's timeout, or the client's.
#[tokio::test]
async fn a_blob_that_is_there_after_all_is_not_sent_again() {
    let blob = noise("blob", 300_000);
    for fault in [Fault::CutAnswer, Fault::Status(502)] {
        let keeper = Keeper::start();
        let proxy = FaultProxy::start_at(keeper.address, move |asked| match asked.method.as_str() {
            "PUT" => vec![fault.clone()],
            _ => Vec::new(),
        });
        assert_eq!(push(&proxy.host(), &blob, Digest::of(&blob)).await.unwrap(), Sent::Uploaded);
        assert_eq!(proxy.requests(|asked| asked.method == "PUT").len(), 1);
        assert!(keeper.blob(&Digest::of(&blob)).unwrap() == blob);
    }
}

/// The registry restarts: for a moment it is not reachable.
#[tokio::test]
async fn a_registry_that_is_away_after_a_break_is_asked_again() {
    // Either it cannot report the upload's offset, or it does not know the upload and cannot tell whether it has the
    // blob, for longer than any request waits, so that each attempt fails at once.
    let headers = || vec![("Retry-After", "60".to_owned())];
    let away = move |status| vec![Fault::Answer { status, headers: headers(), body: Vec::new() }];
    for (of_upload, of_blob) in [(503, 404), (404, 503)] {
        let blob = noise("blob", 300_000);
        let keeper = Keeper::start();
        let proxy =
            FaultProxy::start_at(keeper.address, move |asked| match (asked.method.as_str(), asked.before) {
                ("PUT", 0) => vec![Fault::CutUpload(100_000)],
                ("GET", 0) => away(of_upload),
                ("HEAD", 1) => away(of_blob),
                _ => Vec::new(),
            });
        assert_eq!(push(&proxy.host(), &blob, Digest::of(&blob)).await.unwrap(), Sent::Uploaded);
        let sent: u64 = proxy.log().iter().map(|served| served.received).sum();
        assert_eq!(sent, 300_000, "it went on where it was");
    }
}

/// Mirrors get few retries because another host is asked after them, but not for a push.
#[tokio::test]
async fn a_push_to_a_mirror_is_retried_as_to_a_registry() {
    let mirror = Server::start(|_, before| match before {
        0 => Reply::new(429, "").header("Retry-After", "0"),
        _ => Reply::new(201, ""),
    });
    let own = Server::start(|_, _| Reply::new(201, ""));
    let text = format!("server = \"http://{}\"\n[host.\"http://{}\"]", own.host(), mirror.host());
    let push = Push::new(&Configured::new(&text).remote()).unwrap();
    push.document("1", media_type::OCI_MANIFEST, b"{}".to_vec()).await.unwrap();
    assert_eq!((mirror.seen().len(), own.seen().len()), (2, 0));
}

/// Some registries give a token for all requested scopes or none.
#[tokio::test]
async fn a_push_without_a_token_for_the_mount_source_uploads() {
    let server = Server::start(|request, _| {
        if request.path.starts_with("/token") {
            let is_refused = request.path.contains("repository:team/base:");
            return Reply::new(if is_refused { 401 } else { 200 }, r#"{"token":"t"}"#);
        }
        if request.header("authorization").is_none() {
            let scope =
                if request.path.contains("mount=") { ",scope=\"repository:team/base:pull\"" } else { "" };
            let realm = format!("http://{}/token", request.header("host").unwrap());
            let asked = format!("Bearer realm=\"{realm}\",service=\"here\"{scope}");
            return Reply::new(401, "").header("WWW-Authenticate", asked);
        }
        match request.method.as_str() {
            "HEAD" => Reply::new(404, ""),
            "POST" => Reply::new(202, "").header("Location", "/up/1"),
            _ => Reply::new(201, ""),
        }
    });
    let (blob, sources) = (noise("blob", 1000), ["team/base".to_owned()]);
    let sent = push_from(&server.host(), &blob, Digest::of(&blob), &sources).await.unwrap();
    assert_eq!(sent, Sent::Uploaded);
    assert!(server.seen().iter().any(|seen| seen.path.contains("team/base")), "it was tried");
}

/// A registry redirects the start of an upload to another host: its `Location` is relative to that host.
#[tokio::test]
async fn an_upload_goes_on_where_its_beginning_led() {
    let storage = Server::start(|request, _| match (request.method.as_str(), request.path.as_str()) {
        ("POST", "/v2/some/image/blobs/uploads/") => Reply::new(202, "").header("Location", "1?state=x"),
        ("PUT", path) if path.starts_with("/v2/some/image/blobs/uploads/1?state=x&digest=") => {
            Reply::new(201, "")
        }
        _ => Reply::new(404, ""),
    });
    let host = storage.host();
    let registry = Server::start(move |request, _| match request.method.as_str() {
        "POST" => Reply::new(307, "").header("Location", format!("http://{host}{}", request.path)),
        _ => Reply::new(404, ""),
    });
    let blob = noise("blob", 1000);
    assert_eq!(push(&registry.host(), &blob, Digest::of(&blob)).await.unwrap(), Sent::Uploaded);
    assert_eq!(storage.seen().last().unwrap().body, blob);
}

/// A registry that asks for chunks, and answers each with this `Range`.
fn wants_chunks(range: &'static str) -> Server {
    Server::start(move |request, before| match request.method.as_str() {
        "HEAD" => Reply::new(404, ""),
        // The upload would otherwise never end.
        _ if before > 40 => Reply::new(400, "enough"),
        "POST" => Reply::new(202, "").header("Location", "/up/1"),
        "PUT" if request.path.contains("digest=") && request.body.is_empty() => Reply::new(201, ""),
        "PUT" => Reply::new(413, ""),
        "GET" => Reply::new(204, "").header("Location", "/up/1").header("Range", "0-0"),
        _ => Reply::new(202, "").header("Location", "/up/1").header("Range", range),
    })
}

#[tokio::test]
async fn a_registry_that_takes_chunks_and_has_none_of_them_is_given_up() {
    let blob = noise("blob", 33 << 20);
    let registry = wants_chunks("0-0");
    let error = push(&registry.host(), &blob, Digest::of(&blob)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
    assert!(error.chain().contains("0 of 34603008"), "{}", error.chain());
    let chunks = registry.seen().iter().filter(|seen| seen.method == "PATCH").count();
    assert!(chunks <= 6, "{chunks} chunks");
}

#[tokio::test]
async fn a_registry_that_has_more_than_it_was_sent_is_not_believed() {
    let blob = noise("blob", 33 << 20);
    let registry = wants_chunks("0-99999999999");
    let error = push(&registry.host(), &blob, Digest::of(&blob)).await.unwrap_err();
    assert!(error.chain().contains("more than it was sent"), "{}", error.chain());
}
