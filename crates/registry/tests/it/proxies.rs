//! Requests through proxies: absolute URLs for http, tunnels for https, and proxy authorization.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use registry::{Options, Proxies};
use types::Result;

use crate::hosts::Configured;
use crate::secured::{Authority, Secured, TlsFront};
use crate::server::{Reply, Server};

/// A proxy that connects every tunnel to one address. Its threads end with the test process.
struct Tunnels {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Tunnels {
    fn start(to: SocketAddr, answer: &'static str) -> Tunnels {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let log = log.clone();
                // The client hung up.
                std::thread::spawn(move || drop(tunnel(stream, to, answer, &log)));
            }
        });
        Tunnels { address, asked }
    }
}

fn tunnel(stream: TcpStream, to: SocketAddr, answer: &str, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        lines.read_line(&mut head)?;
    }
    log.lock().unwrap().push(head);
    let mut stream = stream;
    write!(stream, "HTTP/1.1 {answer}\r\n\r\n")?;
    let (mut onward, mut back) = (TcpStream::connect(to)?, stream.try_clone()?);
    let mut from = onward.try_clone()?;
    let returning = std::thread::spawn(move || std::io::copy(&mut from, &mut back));
    std::io::copy(&mut lines, &mut onward)?;
    onward.shutdown(std::net::Shutdown::Write)?;
    drop(returning.join());
    Ok(())
}

async fn ask(server: &str, authority: Option<&Authority>, variables: &[(&str, String)]) -> Result<()> {
    let find =
        |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone());
    let options = Options { proxies: Proxies::from_variables(find).unwrap(), ..Options::default() };
    let text = format!("server = \"{server}\"\n{}", if authority.is_some() { "ca = \"ca.pem\"" } else { "" });
    let configured = Configured::with(&text, options);
    if let Some(authority) = authority {
        authority.write(configured.own().join("ca.pem"));
    }
    configured.remote().resolve().await.map(drop)
}

#[tokio::test]
async fn https_goes_through_a_tunnel() {
    let authority = Authority::new("ca");
    let server = Secured::start(&authority, &[b"h2"], None).await;
    let proxy = Tunnels::start(server.address, "200 OK");
    let variables = [("HTTPS_PROXY", format!("http://user:p%40ss@{}", proxy.address))];
    // The certificate is for 127.0.0.1, but clients of the proxy request a name, and that is verified.
    let error = ask("https://registry.test:5000", Some(&authority), &variables).await.unwrap_err();
    assert!(error.chain().contains("certificate of registry.test:5000"), "{}", error.chain());
    let head = proxy.asked.lock().unwrap()[0].to_ascii_lowercase();
    assert!(head.starts_with("connect registry.test:5000 http/1.1\r\n"), "{head}");
    assert!(head.contains("proxy-authorization: basic dxnlcjpwqhnz\r\n"), "{head}");
    // The client requests a foreign address, and the proxy connects it to the server.
    let named = Secured::start_for(&authority, "registry.test", &[b"h2"]).await;
    let proxy = Tunnels::start(named.address, "200 OK");
    let variables = [("HTTPS_PROXY", format!("{}", proxy.address))];
    ask("https://registry.test", Some(&authority), &variables).await.unwrap();
    assert_eq!(named.spoken()[0].version, http::Version::HTTP_2);
    assert!(proxy.asked.lock().unwrap()[0].starts_with("CONNECT registry.test:443 "));
}

#[tokio::test]
async fn http_is_asked_for_by_its_whole_address() {
    let proxy = Server::start(|request, _| {
        assert_eq!(request.path, "http://registry.test/v2/some/image/manifests/1?ns=r.test");
        assert_eq!(request.header("proxy-authorization"), Some("Basic dTpw"));
        Reply::new(200, r#"{"schemaVersion":2}"#)
    });
    let variables = [("HTTP_PROXY", format!("http://u:p@{}", proxy.host()))];
    ask("http://registry.test", None, &variables).await.unwrap();
    assert_eq!(proxy.seen().len(), 1);
}

#[tokio::test]
async fn loopback_hosts_are_reached_without_a_proxy() {
    let own = Server::start(|request, _| {
        assert_eq!(request.header("proxy-authorization"), None);
        Reply::new(200, r#"{"schemaVersion":2}"#)
    });
    let proxy = Server::start(|_, _| Reply::new(500, ""));
    let variables = [("HTTP_PROXY", format!("http://u:p@{}", proxy.host()))];
    ask(&format!("http://{}", own.host()), None, &variables).await.unwrap();
    assert!(proxy.seen().is_empty());
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named() {
    let proxy = Tunnels::start(SocketAddr::from(([127, 0, 0, 1], 1)), "407 Proxy Authentication Required");
    let variables = [("HTTPS_PROXY", format!("http://user:s3cret@{}", proxy.address))];
    let error = ask("https://registry.test", None, &variables).await.unwrap_err().chain();
    for words in [
        "registry.test cannot be reached",
        &format!("through proxy http://{}", proxy.address),
        "authorization required",
    ] {
        assert!(error.contains(words), "{error:?} has no {words:?}");
    }
    assert!(!error.contains("s3cret"), "{error}");
}

/// Passes the proxy's address to the other half of the test.
const PROXY_WITH_TLS: &str = "TEST_PROXY_WITH_TLS";

/// A proxy's certificate is verified by the system's authorities, which an environment variable sets: so the client
/// runs in a process of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_speaks_tls_is_spoken_to_in_tls() {
    let (authority, stranger) = (Authority::new("ca"), Authority::new("another"));
    let directory = tempfile::TempDir::new().unwrap();
    let trusted = authority.write(directory.path().join("trusted.pem"));
    let untrusted = stranger.write(directory.path().join("untrusted.pem"));
    let server = Server::start(|_, _| Reply::new(200, r#"{"schemaVersion":2}"#));
    let front = TlsFront::start(&authority, server.host().parse().unwrap()).await;
    let ask = async |trust: &std::path::Path| {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "proxies::asks_through_a_proxy_with_tls", "--nocapture"]);
        command.env("SSL_CERT_FILE", trust).env(PROXY_WITH_TLS, front.address.to_string());
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    };
    let asked = ask(&trusted).await;
    assert!(asked.status.success(), "{asked:?}");
    assert_eq!(server.seen()[0].path, "http://registry.test/v2/some/image/manifests/1?ns=r.test");
    assert_eq!(server.seen()[0].header("proxy-authorization"), Some("Basic dTpw"));
    let refused = ask(&untrusted).await;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("through proxy https://"), "{said}");
    assert_eq!(server.seen().len(), 1, "nobody is told a password that is not trusted");
}

/// The other half of `a_proxy_that_speaks_tls_is_spoken_to_in_tls`.
#[tokio::test]
async fn asks_through_a_proxy_with_tls() {
    let Ok(proxy) = std::env::var(PROXY_WITH_TLS) else { return };
    let variables = [("HTTP_PROXY", format!("https://u:p@{proxy}"))];
    if let Err(error) = ask("http://registry.test", None, &variables).await {
        panic!("{}", error.chain());
    }
}
