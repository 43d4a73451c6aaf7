//! Mirrors and the registry behind them: which host gets which request, in which order, and the errors when all fail.

use std::fs;
use std::io::{BufRead, Write};
use std::time::Duration;

use http::HeaderMap;
use http::{HeaderValue, Method, header};
use registry::{
    Body, CallerOptions, Capability, Connections, Keyring, Options, Pace, Proxies, Remote, Request, Scheme,
};
use tempfile::TempDir;
use types::{Descriptor, Digest, ErrorKind, Reference};

use crate::server::{Reply, Server};
use crate::user;

const MANIFEST: &str = r#"{"schemaVersion":2}"#;

/// The hosts of the registry `r.test`, configured by a file.
pub(crate) struct Configured {
    pub(crate) directory: TempDir,
    pub(crate) connections: Connections,
}

impl Configured {
    pub(crate) fn new(text: &str) -> Configured {
        Configured::with(text, Options::default())
    }

    pub(crate) fn with(text: &str, options: Options) -> Configured {
        let directory = TempDir::new().unwrap();
        let own = directory.path().join("r.test");
        fs::create_dir(&own).unwrap();
        fs::write(own.join("hosts.toml"), text).unwrap();
        let options = Options { directories: vec![directory.path().to_owned()], ..options };
        Configured { directory, connections: Connections::new(options) }
    }

    /// The directory of `hosts.toml`.
    pub(crate) fn own(&self) -> std::path::PathBuf {
        self.directory.path().join("r.test")
    }

    pub(crate) fn remote(&self) -> Remote {
        self.remote_as(&Keyring::new())
    }

    pub(crate) fn remote_as(&self, keyring: &Keyring) -> Remote {
        let reference: Reference = "r.test/some/image:1".parse().unwrap();
        self.connections.remote(&reference, keyring).unwrap()
    }
}

fn found() -> Server {
    Server::start(|_, _| Reply::new(200, MANIFEST))
}

fn missing() -> Server {
    Server::start(|_, _| Reply::new(404, r#"{"errors":[{"message":"manifest unknown"}]}"#))
}

fn paths(server: &Server) -> Vec<String> {
    server.seen().iter().map(|seen| seen.path.clone()).collect()
}

/// An address without a listener.
fn nowhere() -> String {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().to_string()
}

#[tokio::test]
async fn mirrors_are_asked_in_order_with_the_registry_as_namespace() {
    let (first, second, own) = (missing(), found(), found());
    let configured = Configured::new(&format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n[host.\"http://{}/cache/\"]",
        own.host(),
        first.host(),
        second.host()
    ));
    let answer = configured.remote().send(&Request::get("manifests/1", Capability::Resolve)).await.unwrap();
    assert_eq!(answer.endpoint().name(), second.host());
    assert_eq!(paths(&first), ["/v2/some/image/manifests/1?ns=r.test"]);
    assert_eq!(paths(&second), ["/cache/v2/some/image/manifests/1?ns=r.test"]);
    assert!(own.seen().is_empty());
}

#[tokio::test]
async fn a_host_gets_only_requests_for_its_capabilities() {
    let (pulls, pushes, own) = (found(), found(), found());
    let configured = Configured::new(&format!(
        "server = \"http://{}\"\ncapabilities = [\"pull\", \"resolve\"]\n\
         [host.\"http://{}\"]\ncapabilities = [\"pull\"]\n\
         [host.\"http://{}/p\"]\noverride_path = true\ncapabilities = [\"push\"]",
        own.host(),
        pulls.host(),
        pushes.host()
    ));
    let remote = configured.remote();
    remote.resolve().await.unwrap();
    assert_eq!((pulls.seen().len(), pushes.seen().len(), own.seen().len()), (0, 0, 1));
    remote.send(&Request::get("blobs/x", Capability::Pull)).await.unwrap();
    assert_eq!((pulls.seen().len(), pushes.seen().len(), own.seen().len()), (1, 0, 1));
    remote.send(&Request::new(Method::POST, "blobs/uploads/", Capability::Push)).await.unwrap();
    assert_eq!(paths(&pushes), ["/p/some/image/blobs/uploads/?ns=r.test"]);
    let error = remote.send(&Request::get("referrers/x", Capability::Referrers)).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(error.chain().contains("no host of r.test/some/image has the capability referrers"));
}

#[tokio::test]
async fn a_mirror_that_is_down_is_left_and_remembered() {
    let broken = Server::start(|_, _| Reply::new(503, "out of order"));
    let own = found();
    let configured = Configured::new(&format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n[host.\"http://{}\"]",
        own.host(),
        nowhere(),
        broken.host()
    ));
    configured.remote().resolve().await.unwrap();
    assert_eq!((broken.seen().len(), own.seen().len()), (2, 1), "a mirror is asked once more, not six times");
    configured.remote().resolve().await.unwrap();
    assert_eq!((broken.seen().len(), own.seen().len()), (2, 2), "the next pull does not ask it");
}

#[tokio::test]
async fn a_resting_mirror_is_asked_if_the_other_hosts_fail() {
    let mirror = Server::start(|_, before| match before {
        0 => Reply::new(429, "").header("Retry-After", "300"),
        _ => Reply::new(200, MANIFEST),
    });
    let own = missing();
    let configured =
        Configured::new(&format!("server = \"http://{}\"\n[host.\"http://{}\"]", own.host(), mirror.host()));
    let error = configured.remote().resolve().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "what the registry itself says counts: {}", error.chain());
    assert_eq!(mirror.seen().len(), 1, "it is not waited for when another can be asked");
    configured.remote().resolve().await.unwrap();
    assert_eq!((mirror.seen().len(), own.seen().len()), (2, 2));
}

#[tokio::test]
async fn a_mirror_that_says_nothing_is_left_after_its_deadline() {
    // It accepts connections and never answers.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let own = found();
    let text =
        format!("server = \"http://{}\"\n[host.\"http://{}\"]", own.host(), silent.local_addr().unwrap());
    let options = Options { mirror_timeout: Duration::from_millis(200), ..Options::default() };
    let configured = Configured::with(&text, options);
    configured.remote().resolve().await.unwrap();
    assert_eq!(own.seen().len(), 1);
    assert!(configured.remote().endpoints(Capability::Pull)[1].is_resting());
}

#[tokio::test]
async fn a_mirror_that_stops_in_the_middle_of_a_blob_is_remembered() {
    let stuck = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = stuck.local_addr().unwrap();
    let sticking = std::thread::spawn(move || {
        let (mut stream, _) = stuck.accept().unwrap();
        let mut request = std::io::BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            request.read_line(&mut line).unwrap();
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsome").unwrap();
        // Until the client hangs up.
        std::io::copy(&mut request, &mut std::io::sink()).unwrap_or_default();
    });
    let own = Server::start(|request, _| {
        assert_eq!(request.header("range"), Some("bytes=4-8"));
        Reply::new(206, "bytes").header("Content-Range", "bytes 4-8/9")
    });
    let configured =
        Configured::new(&format!("server = \"http://{}\"\n[host.\"http://{address}\"]", own.host()));
    let blob = Descriptor::new("x/y", Digest::of(b"somebytes"), 9);
    let pace = Pace { idle_timeout: Duration::from_millis(200), ..Pace::default() };
    let mut stream = configured.remote().blob(&blob, 0).await.unwrap().with_pace(pace);
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await.unwrap() {
        all.extend_from_slice(&chunk);
    }
    assert_eq!(all, b"somebytes");
    let next = configured.remote().endpoints(Capability::Pull);
    assert_eq!((next[0].name(), next[1].is_resting()), ("r.test", true));
    drop(stream);
    sticking.join().unwrap();
}

#[tokio::test]
async fn the_errors_of_all_hosts_are_in_one_line() {
    let own = missing();
    let dead = nowhere();
    let configured =
        Configured::new(&format!("server = \"http://{}\"\n[host.\"http://{dead}\"]", own.host()));
    let error = configured.remote().resolve().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let line = error.chain();
    for words in [
        &format!("{dead} cannot be reached"),
        "Connection refused",
        "nothing listens there",
        "r.test has no 1 in r.test/some/image: manifest unknown",
        "check the name and the tag",
    ] {
        assert!(line.contains(words), "{line:?} has no {words:?}");
    }
    assert!(!line.contains('\n') && !line.contains("client error"), "{line}");
}

#[tokio::test]
async fn a_files_headers_go_to_its_host_and_no_further() {
    let elsewhere = Server::start(|request, _| {
        assert_eq!(request.header("x-key"), None, "it is another's");
        Reply::new(200, MANIFEST)
    });
    let target = format!("http://{}/stored", elsewhere.host());
    let own = Server::start(move |request, _| {
        assert_eq!(request.header("x-key"), Some("s3cret"));
        Reply::new(307, "").header("Location", target.clone())
    });
    let configured =
        Configured::new(&format!("server = \"http://{}\"\n[header]\nx-key = \"s3cret\"", own.host()));
    configured.remote().resolve().await.unwrap();
    assert_eq!(elsewhere.seen().len(), 1);
}

#[tokio::test]
async fn the_file_is_read_anew_for_each_pull_and_its_mistakes_are_told() {
    let (one, two) = (found(), found());
    let configured = Configured::new(&format!("server = \"http://{}\"", one.host()));
    configured.remote().resolve().await.unwrap();
    let file = configured.own().join("hosts.toml");
    fs::write(&file, format!("server = \"http://{}\"", two.host())).unwrap();
    configured.remote().resolve().await.unwrap();
    assert_eq!((one.seen().len(), two.seen().len()), (1, 1));
    fs::write(&file, "sever = \"x\"").unwrap();
    let reference: Reference = "r.test/x".parse().unwrap();
    let error = configured.connections.remote(&reference, &Keyring::new()).err().unwrap().chain();
    assert!(error.contains("hosts.toml:1: unknown key `sever`; did you mean `server`?"), "{error}");
    assert_eq!((one.seen().len(), two.seen().len()), (1, 1), "nobody is asked");
}

#[tokio::test]
async fn a_body_is_sent_again_after_a_challenge_and_a_redirect() {
    let stored = Server::start(|_, _| Reply::new(201, ""));
    let target = format!("http://{}/stored", stored.host());
    let own = Server::start(move |request, _| match request.header("authorization") {
        None => Reply::new(401, "").header("WWW-Authenticate", "Basic"),
        Some(_) => Reply::new(307, "").header("Location", target.clone()),
    });
    let configured = Configured::new(&format!("server = \"http://{}\"", own.host()));
    let remote = configured.remote_as(&Keyring::from([("r.test".to_owned(), user())]));
    let parts: [&'static [u8]; 2] = [b"one ", b"two"];
    let open = move || {
        let (send, receive) = tokio::sync::mpsc::channel(2);
        for part in parts {
            send.try_send(Ok(part.into())).unwrap();
        }
        receive
    };
    for body in [Body::Stream { len: 7, open: std::sync::Arc::new(open) }, Body::Bytes("one two".into())] {
        let request = Request::new(Method::PUT, "blobs/uploads/1", Capability::Push)
            .header(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"))
            .body(body);
        remote.send(&request).await.unwrap();
    }
    let bodies: Vec<_> =
        own.seen().iter().chain(stored.seen().iter()).map(|seen| seen.body.clone()).collect();
    // Requested, refused, sent with a password; the second request starts with the password.
    assert_eq!(bodies, vec![b"one two".to_vec(); 5]);
    assert!(stored.seen().iter().all(|seen| seen.method == "PUT" && seen.header("authorization").is_none()));

    let short = Body::Stream { len: 8, open: std::sync::Arc::new(open) };
    let request = Request::new(Method::PUT, "blobs/uploads/1", Capability::Push).body(short);
    let error = remote.send(&request).await.err().unwrap().chain();
    assert!(error.contains("fewer bytes than were announced"), "{error}");
}

#[tokio::test]
async fn a_location_is_followed_at_the_host_that_said_it() {
    let own = Server::start(|request, _| match request.path.as_str() {
        "/v2/some/image/blobs/uploads/?ns=r.test" => {
            Reply::new(202, "").header("Location", "/upload/7?state=a")
        }
        "/upload/7?state=a" => Reply::new(201, ""),
        other => Reply::new(404, other.to_owned()),
    });
    let configured = Configured::new(&format!("server = \"http://{}\"", own.host()));
    let begin = Request::new(Method::POST, "blobs/uploads/", Capability::Push);
    let answer = configured.remote().send(&begin).await.unwrap();
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    let next = Request::at(Method::PUT, location, Capability::Push).body(Body::Bytes("x".into()));
    let done = answer.endpoint().send(&next).await.unwrap().checked().await.unwrap();
    assert_eq!(done.status(), 201);
    assert_eq!(paths(&own), ["/v2/some/image/blobs/uploads/?ns=r.test", "/upload/7?state=a"]);
}

#[tokio::test]
async fn a_circle_of_redirects_is_noticed_when_it_closes() {
    let own = Server::start(|request, _| {
        let next = if request.path.ends_with("/a") { "/b" } else { "/a" };
        Reply::new(302, "").header("Location", next)
    });
    let configured = Configured::new(&format!("server = \"http://{}\"", own.host()));
    let error = configured.remote().resolve().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(error.chain().contains("redirects in a circle"), "{}", error.chain());
    assert_eq!(own.seen().len(), 3, "it is not a fault that passes");
}

#[test]
fn a_path_that_is_no_directory_is_told() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("r.test"), "").unwrap();
    let options = Options { directories: vec![directory.path().to_owned()], ..Options::default() };
    let reference: Reference = "r.test/x".parse().unwrap();
    let error = Connections::new(options).remote(&reference, &Keyring::new()).err().unwrap();
    assert!(error.chain().contains("is not a directory"), "{}", error.chain());
}

#[tokio::test]
async fn a_caller_says_how_hosts_are_spoken_to_and_files_say_more() {
    let options = |scheme| CallerOptions {
        headers: HeaderMap::from_iter([(header::ACCEPT_LANGUAGE, HeaderValue::from_static("caller"))]),
        default_scheme: Some(scheme),
        ..CallerOptions::default()
    };
    let reference: Reference = "r.test/some/image:1".parse().unwrap();
    // A registry without a configuration file: the proxy sees its URL.
    let proxy = found();
    let variable = |name: &str| (name == "HTTP_PROXY").then(|| format!("http://{}", proxy.host()));
    let proxies = Proxies::from_variables(variable).unwrap();
    let connections = Connections::new(Options { proxies, ..Options::default() });
    let remote = connections.remote_with(&reference, &Keyring::new(), &options(Scheme::Http)).unwrap();
    remote.resolve().await.unwrap();
    assert_eq!(paths(&proxy), ["http://r.test/v2/some/image/manifests/1"]);
    assert_eq!(proxy.seen()[0].header("accept-language"), Some("caller"));

    // For a configured registry the file decides, and both headers are sent.
    let own = found();
    let text = format!("server = \"http://{}\"\n[header]\naccept-language = \"file\"", own.host());
    let configured = Configured::new(&text);
    let connections = &configured.connections;
    let remote = connections.remote_with(&reference, &Keyring::new(), &options(Scheme::Https)).unwrap();
    remote.resolve().await.unwrap();
    assert_eq!(own.seen()[0].all("accept-language"), ["caller", "file"]);
}
